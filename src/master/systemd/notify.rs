//! The master's voice to systemd: ready, reloading, stopping, one line of status, and that its
//! loop turns. See sd_notify(3).
//!
//! Where to speak is in `NOTIFY_SOCKET`, which stays in the environment: an image that the master
//! execs in place finds it there and, having the same pid, is heard. The broker and the workers
//! inherit the variable and never use it (systemd listens to the main process alone), and a
//! command does not get it: see [`DAEMON_VARIABLES`](crate::master::DAEMON_VARIABLES).

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// The longest line of status: systemd drops a datagram of more than 4096 bytes.
const STATUS_BYTES_MAX: usize = 1024;
/// Turns of the life cycle that wait for a systemd that does not read. There are two a reload.
const WAITING_MESSAGES_MAX: usize = 32;

/// Speaks to systemd, or to nobody where there is none. Nothing here makes the master wait.
pub(crate) struct Notifier {
    to: Option<Manager>,
    /// The last line that was told.
    status: String,
    watchdog_interval: Option<Duration>,
}

/// The service manager's socket.
struct Manager {
    address: SocketAddr,
    socket: UnixDatagram,
    /// What it has not taken yet, oldest first.
    waiting: VecDeque<String>,
    /// That it cannot be reached has been logged.
    is_lost: bool,
}

impl Notifier {
    /// A voice to whoever started this process and wants to hear of it.
    pub(crate) fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok();
        let interval = watchdog_interval(
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Self::new(std::env::var_os("NOTIFY_SOCKET").as_deref(), interval)
    }

    fn new(socket: Option<&OsStr>, watchdog_interval: Option<Duration>) -> Self {
        let socket = socket.filter(|socket| !socket.is_empty());
        let to = socket.and_then(|socket| match Manager::connect(socket) {
            Ok(manager) => Some(manager),
            Err(error) => {
                tracing::warn!("cannot speak to systemd at {}: {error}", socket.display());
                None
            }
        });
        Self { to, status: String::new(), watchdog_interval }
    }

    /// At work: after a start, and after each [`reloading`](Self::reloading) however it ended.
    pub(crate) fn ready(&mut self, status: &str) {
        self.turn(&[NotifyState::Ready], status);
    }

    /// A reload has begun. systemd takes the time from the same datagram, so that a ready that
    /// was sent before its own request is not taken for the answer.
    pub(crate) fn reloading(&mut self, status: &str) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.turn(&[NotifyState::Reloading, now], status),
            Err(error) => tracing::warn!("systemd is not told of the reload: {error}"),
        }
    }

    /// A stop has begun. Final.
    pub(crate) fn stopping(&mut self, status: &str) {
        self.turn(&[NotifyState::Stopping], status);
    }

    /// Says what `systemctl status` shows, if it is not what was said last.
    pub(crate) fn status(&mut self, status: &str) {
        let status = one_line(status);
        if status == self.status || self.is_behind() {
            return;
        }
        if let Some(manager) = &mut self.to {
            manager.send(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// The loop turns. To be said each [`watchdog_interval`](Self::watchdog_interval).
    pub(crate) fn watchdog(&mut self) {
        self.keep_alive(&NotifyState::Watchdog);
    }

    /// How often systemd is to hear that the loop turns: half of what it waits. `None`: it does
    /// not want to.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.to.as_ref().and(self.watchdog_interval)
    }

    /// Asks systemd not to give up on what is going on (start, reload, stop) for this long from
    /// now. It counts only where it goes past the unit's own timeout, and must be said again
    /// before it has passed.
    pub(crate) fn extend_timeout(&mut self, by: Duration) {
        let usec = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.keep_alive(&NotifyState::ExtendTimeoutUsec(usec));
    }

    /// What to wait on, with POLLOUT, while [`is_behind`](Self::is_behind).
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.to.as_ref().map(|manager| manager.socket.as_fd())
    }

    /// Whether messages wait for systemd to read.
    pub(crate) fn is_behind(&self) -> bool {
        self.to.as_ref().is_some_and(|manager| !manager.waiting.is_empty())
    }

    /// Sends what waits, as far as systemd reads.
    pub(crate) fn flush(&mut self) {
        if let Some(manager) = &mut self.to {
            manager.flush();
        }
    }

    fn turn(&mut self, states: &[NotifyState<'_>], status: &str) {
        let Some(manager) = &mut self.to else { return };
        self.status = one_line(status);
        let mut states = states.to_vec();
        states.push(NotifyState::Status(&self.status));
        manager.send(&states);
    }

    /// A sign of life that comes late is none: it does not join those that wait.
    fn keep_alive(&mut self, state: &NotifyState<'_>) {
        self.flush();
        if !self.is_behind()
            && let Some(manager) = &mut self.to
        {
            manager.send(std::slice::from_ref(state));
        }
    }
}

impl Manager {
    /// `@` begins a name without a file.
    fn connect(socket: &OsStr) -> io::Result<Self> {
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        let socket = connected(&address)?;
        Ok(Self { address, socket, waiting: VecDeque::new(), is_lost: false })
    }

    /// All states in one datagram, now or as soon as it is taken.
    fn send(&mut self, states: &[NotifyState<'_>]) {
        let mut message = String::new();
        for state in states {
            // Cannot fail: it is memory.
            let _ = writeln!(message, "{state}");
        }
        if self.waiting.len() >= WAITING_MESSAGES_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(message);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            match self.send_now(&message) {
                Ok(()) => self.is_lost = false,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
                {
                    self.waiting.push_front(message);
                    return;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_lost, true) {
                        tracing::warn!("systemd does not listen: {error}");
                    }
                }
            }
        }
    }

    /// A socket whose other end was bound anew is connected anew, once.
    fn send_now(&mut self, message: &str) -> io::Result<()> {
        match self.socket.send(message.as_bytes()) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::ConnectionReset
                        | ErrorKind::NotConnected
                ) =>
            {
                self.socket = connected(&self.address)?;
                self.socket.send(message.as_bytes()).map(drop)
            }
            sent => sent.map(drop),
        }
    }
}

fn connected(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(address)?;
    Ok(socket)
}

/// Half of `WATCHDOG_USEC`, unless it is meant for another process.
fn watchdog_interval(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    let usec: u64 = usec?.parse().ok()?;
    (usec > 0).then(|| Duration::from_micros(usec) / 2)
}

/// What an error or a path says must not end the line and begin a word of its own to systemd.
fn one_line(status: &str) -> String {
    let mut line: String =
        status.trim().chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    line.truncate(line.floor_char_boundary(STATUS_BYTES_MAX));
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    struct Systemd {
        folder: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Systemd {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { folder, socket }
        }

        fn notifier(&self) -> Notifier {
            let path = self.folder.path().join("notify");
            Notifier::new(Some(path.as_os_str()), Some(Duration::from_secs(10)))
        }

        /// Every datagram that has come.
        fn heard(&self) -> Vec<String> {
            let mut bytes = [0; 8192];
            let mut heard = Vec::new();
            while let Ok(count) = self.socket.recv(&mut bytes) {
                heard.push(String::from_utf8(bytes[..count].to_vec()).unwrap());
            }
            heard
        }
    }

    #[test]
    fn each_turn_is_one_datagram() {
        let systemd = Systemd::new();
        let mut notifier = systemd.notifier();
        notifier.ready("2 workers");
        notifier.watchdog();
        notifier.extend_timeout(Duration::from_secs(5));
        notifier.extend_timeout(Duration::from_secs(1 << 40));
        notifier.stopping("3 tasks run");
        assert_eq!(
            systemd.heard(),
            [
                "READY=1\nSTATUS=2 workers\n",
                "WATCHDOG=1\n",
                "EXTEND_TIMEOUT_USEC=5000000\n",
                "EXTEND_TIMEOUT_USEC=4294967295\n",
                "STOPPING=1\nSTATUS=3 tasks run\n",
            ]
        );
    }

    #[test]
    fn a_reload_tells_its_time_in_the_same_datagram() {
        let usec = || {
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
                .map(|now| i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec() / 1000))
                .unwrap()
        };
        let systemd = Systemd::new();
        let before = usec();
        systemd.notifier().reloading("reloading");
        let heard = systemd.heard().concat();
        let time = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let time = time.and_then(|rest| rest.strip_suffix("\nSTATUS=reloading\n"));
        let time: i128 = time.unwrap_or_else(|| panic!("{heard}")).parse().unwrap();
        assert!((before..=usec()).contains(&time), "{time} is not {before}");
    }

    #[test]
    fn a_status_is_told_once_and_is_one_line() {
        let systemd = Systemd::new();
        let mut notifier = systemd.notifier();
        notifier.ready("up");
        notifier.status("up");
        notifier.status(" bad file\nMAINPID=1 \n");
        notifier.status("bad file MAINPID=1");
        notifier.status(&"é".repeat(STATUS_BYTES_MAX));
        let heard = systemd.heard();
        assert_eq!(heard[..2], ["READY=1\nSTATUS=up\n", "STATUS=bad file MAINPID=1\n"]);
        assert_eq!(heard[2].len(), "STATUS=\n".len() + STATUS_BYTES_MAX);
        assert_eq!(heard.len(), 3);
    }

    #[test]
    fn turns_wait_for_a_systemd_that_does_not_read() {
        let systemd = Systemd::new();
        let mut notifier = systemd.notifier();
        let mut sent = 0;
        while !notifier.is_behind() {
            notifier.ready(&format!("{sent}"));
            sent += 1;
        }
        // Signs of life do not pile up, and a status that could not be told is told later.
        notifier.watchdog();
        notifier.status("later");
        assert_eq!(systemd.heard().len(), sent - 1);
        let mut wanted = [PollFd::new(notifier.fd().unwrap(), PollFlags::POLLOUT)];
        assert_eq!(poll(&mut wanted, PollTimeout::from(10_000_u16)), Ok(1));
        notifier.flush();
        notifier.status("later");
        let last = format!("READY=1\nSTATUS={}\n", sent - 1);
        assert_eq!(systemd.heard(), [last.as_str(), "STATUS=later\n"]);
        for _ in 0..1000 {
            notifier.stopping("");
        }
        assert_eq!(notifier.to.unwrap().waiting.len(), WAITING_MESSAGES_MAX);
    }

    #[test]
    fn a_socket_that_is_bound_anew_is_found_again() {
        let mut systemd = Systemd::new();
        let mut notifier = systemd.notifier();
        let path = systemd.folder.path().join("notify");
        std::fs::remove_file(&path).unwrap();
        systemd.socket = UnixDatagram::unbound().unwrap();
        notifier.watchdog();
        assert!(!notifier.is_behind());
        systemd.socket = UnixDatagram::bind(&path).unwrap();
        systemd.socket.set_nonblocking(true).unwrap();
        notifier.watchdog();
        assert_eq!(systemd.heard(), ["WATCHDOG=1\n"]);
    }

    #[test]
    fn names_without_a_file_and_none_at_all() {
        let name = format!("forq-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::new(Some(OsStr::new(&format!("@{name}"))), None).ready("");
        let mut bytes = [0; 64];
        let count = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"READY=1\nSTATUS=\n");
        for nobody in [None, Some(OsStr::new("")), Some(OsStr::new("/nowhere/notify"))] {
            let mut notifier = Notifier::new(nobody, Some(Duration::from_secs(1)));
            notifier.ready("to nobody");
            assert_eq!(notifier.watchdog_interval(), None);
            assert!(!notifier.is_behind() && notifier.fd().is_none());
        }
    }

    #[test]
    fn the_watchdog_is_heard_at_half_its_time() {
        let table = [
            (None, None, None),
            (Some("30000000"), None, Some(15)),
            (Some("30000000"), Some("7"), Some(15)),
            (Some("30000000"), Some("8"), None),
            (Some("0"), Some("7"), None),
            (Some("soon"), Some("7"), None),
        ];
        for (usec, pid, expected) in table {
            let interval = watchdog_interval(usec, pid, 7);
            assert_eq!(interval, expected.map(Duration::from_secs), "{usec:?} {pid:?}");
        }
    }
}
