//! The state folder: made, locked, and its sockets bound.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use interprocess::local_socket::{
    GenericFilePath, ListenerNonblockingMode, ListenerOptions, ToFsName,
};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use interprocess::os::unix::uds_local_socket;
use nix::fcntl::{Flock, FlockArg};

use crate::instance::{Instance, SocketPath};

/// Who may enter a state folder that forq makes.
const DIR_MODE: u32 = 0o700;
/// Who may use the sockets and read the files.
const FILE_MODE: u32 = 0o600;

/// Makes the folder, with its parents, if it is not there. The error is one sentence.
pub(super) fn make_dir(dir: &Path) -> Result<(), String> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(|error| {
        format!(
            "cannot make the state folder {}: {error}: name one that you may write with \
                 --state-dir",
            dir.display()
        )
    })
}

/// Takes the instance's lock, which the kernel gives back when the last holder is gone.
pub(super) fn lock(instance: &Instance) -> Result<Flock<File>, String> {
    let path = instance.lock();
    let cannot = |what: &str, error: io::Error| {
        format!(
            "cannot {what} {}: {error}: name a folder that you may write with --state-dir",
            path.display()
        )
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(|error| cannot("open", error))?;
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    let mut locked =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => format!(
                "forq runs on {} already (pid {}): stop it with `forq stop`, or name another \
                 --state-dir",
                instance.state_dir.display(),
                holder.trim()
            ),
            other => cannot("lock", other.into()),
        })?;
    locked
        .set_len(0)
        .and_then(|()| {
            // Written at the start whatever was read before.
            io::Seek::rewind(&mut *locked)?;
            writeln!(locked, "{}", std::process::id())
        })
        .map_err(|error| cannot("write", error))?;
    Ok(locked)
}

/// Binds one of the instance's sockets. The lock is held, so what is in its place is stale.
pub(super) fn bind(path: &Path) -> Result<UnixListener, String> {
    try_bind(path).map_err(|error| format!("cannot bind the socket {}: {error}", path.display()))
}

/// Puts a link to a socket that somebody else bound where one of our own would be, so that who
/// knows the state folder finds it there. A name without a file has no link.
pub(super) fn point_to(listener: &UnixListener, path: &Path) -> Result<(), String> {
    let address = listener.local_addr().ok();
    let Some(socket) = address.as_ref().and_then(|address| address.as_pathname()) else {
        return Ok(());
    };
    // Not to be unlinked if it is the one that was bound.
    if is_same_file(socket, path) {
        return Ok(());
    }
    remove_stale(path)
        .and_then(|()| symlink(socket, path))
        .map_err(|error| format!("cannot link {} to the socket: {error}", path.display()))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    id(one).is_some_and(|one| Some(one) == id(other))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn try_bind(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let short = SocketPath::of(path)?;
    let listener = ListenerOptions::new()
        .name(short.as_path().to_fs_name::<GenericFilePath>()?)
        .nonblocking(ListenerNonblockingMode::Both)
        // A listener that is dropped in one process must not unlink what another one serves.
        .reclaim_name(false)
        .mode(FILE_MODE as nix::libc::mode_t)
        .create_sync_as::<uds_local_socket::Listener>()?;
    Ok(listener.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_passed_socket_is_found_in_the_state_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (passed, own) = (folder.path().join("run.sock"), folder.path().join("forq.sock"));
        // Whatever was left there: nothing, the last link, a socket of our own, a dead link.
        for round in 0..4 {
            let listener = try_bind(&passed).unwrap();
            if round == 2 {
                drop(try_bind(&own).unwrap());
            }
            point_to(&listener, &own).unwrap();
            assert_eq!(std::fs::read_link(&own).unwrap(), passed, "round {round}");
            UnixStream::connect(&own).unwrap();
            if round == 2 {
                std::fs::remove_file(&passed).unwrap();
            }
        }
        // Without activation, the link makes room, and what it named stays.
        drop(try_bind(&own).unwrap());
        assert!(!own.is_symlink() && passed.exists());
    }

    #[test]
    fn a_socket_that_was_passed_in_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("forq.sock");
        let listener = UnixListener::bind(&own).unwrap();
        point_to(&listener, &own).unwrap();
        UnixStream::connect(&own).unwrap();
        assert!(!own.is_symlink());
    }
}
