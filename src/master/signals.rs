//! The master's signals. A handler only sets a flag and writes a byte; the loop acts.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};

/// What signals ask for, since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// CHLD: somebody died.
    pub(super) reap: bool,
    /// TERM: stop gracefully.
    pub(super) stop: bool,
    /// INT, QUIT: stop quickly.
    pub(super) stop_now: bool,
    /// One that this version has no answer to, by number.
    pub(super) unanswered: Option<i32>,
}

/// The listeners. They must be taken out again in a child: its runtime shares their registry,
/// and the pipe is the master's.
pub(super) struct Signals {
    wake: UnixStream,
    flags: Vec<(i32, Arc<AtomicBool>)>,
    actions: Vec<SigId>,
}

impl Signals {
    /// Listens to every signal that has a meaning for forq, so that none has its default effect.
    pub(super) fn listen() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let mut signals = Self { wake, flags: Vec::new(), actions: Vec::new() };
        for signal in
            [SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU]
        {
            let flag = Arc::new(AtomicBool::new(false));
            signals.actions.push(signal_hook::flag::register(signal, Arc::clone(&flag))?);
            // After the flag: who is woken must find it set.
            let wake = write.try_clone()?;
            signals.actions.push(signal_hook::low_level::pipe::register(signal, wake)?);
            signals.flags.push((signal, flag));
        }
        Ok(signals)
    }

    /// Becomes readable when there is something to take.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What was asked for since the last time.
    pub(super) fn take(&mut self) -> Asked {
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(count) if count > 0) {}
        let mut asked = Asked::default();
        for (signal, flag) in &self.flags {
            if !flag.swap(false, Ordering::SeqCst) {
                continue;
            }
            match *signal {
                SIGCHLD => asked.reap = true,
                SIGTERM => asked.stop = true,
                SIGINT | SIGQUIT => asked.stop_now = true,
                other => asked.unanswered = Some(other),
            }
        }
        asked
    }

    /// In a child: takes the actions out and leaves the kernel's handlers in place. After a reset
    /// to the default, tokio would never install its own, and a TERM would kill the child.
    pub(super) fn unregister(&mut self) {
        for action in self.actions.drain(..) {
            signal_hook::low_level::unregister(action);
        }
    }
}
