//! Socket activation: the control socket from systemd instead of one of our own. See
//! sd_listen_fds(3).
//!
//! systemd makes the socket with its owner, group and mode, keeps it while the service starts,
//! crashes or is restarted (clients wait in its backlog), and hands it over as descriptor 3.

use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};

/// The control socket that was passed to this process, if one was. The error is one sentence.
///
/// Called before anything is forked. It takes `LISTEN_PID` and `LISTEN_FDS` out of the environment:
/// an image that the master execs in place has the same pid, and would take whatever is
/// descriptor 3 by then.
pub(crate) fn take() -> Result<Option<UnixListener>, String> {
    let passed_to = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
    if passed_to != Some(std::process::id()) {
        return Ok(None);
    }
    let mut passed = ListenFd::from_env();
    match passed.len() {
        0 => Ok(None),
        1 => match passed.take_unix_listener(0) {
            Ok(Some(listener)) => checked(listener).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(refusal(&error.to_string())),
        },
        count => Err(refusal(&format!("{count} sockets were passed"))),
    }
}

fn checked(listener: UnixListener) -> Result<UnixListener, String> {
    match getsockopt(&listener, sockopt::AcceptConn) {
        Ok(true) => {}
        Ok(false) => return Err(refusal("it is a connection")),
        Err(error) => return Err(refusal(error.desc())),
    }
    listener.set_nonblocking(true).map_err(|error| refusal(&error.to_string()))?;
    Ok(listener)
}

fn refusal(found: &str) -> String {
    format!(
        "cannot use what systemd passed: {found}: the socket unit must have one ListenStream= with \
         a path, and Accept=no"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_a_listener_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let listener = checked(listener).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let (connection, _) = UnixStream::pair().unwrap();
        let refused = checked(UnixListener::from(OwnedFd::from(connection))).unwrap_err();
        assert!(refused.contains("it is a connection"), "{refused}");
    }
}
