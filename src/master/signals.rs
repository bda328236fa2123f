//! The master's signals. A handler only sets a flag and writes a byte; the loop acts.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    /// HUP: reload.
    pub(super) reload: bool,
    /// USR1: open the log file again.
    pub(super) reopen_log: bool,
    /// USR2: upgrade.
    pub(super) upgrade: bool,
    /// TTIN: so many workers more.
    pub(super) more: u32,
    /// TTOU: so many workers fewer.
    pub(super) fewer: u32,
}

/// The listeners. They must be taken out again in a child: its runtime shares their registry,
/// and the pipe is the master's.
pub(super) struct Signals {
    wake: UnixStream,
    flags: Vec<(i32, Arc<AtomicBool>)>,
    /// Signals whose number matters: a byte for each.
    counts: Vec<(i32, UnixStream)>,
    actions: Vec<SigId>,
}

impl Signals {
    /// Listens to every signal that has a meaning for forq, so that none has its default effect.
    pub(super) fn listen() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let mut signals = Self { wake, flags: Vec::new(), counts: Vec::new(), actions: Vec::new() };
        for signal in [SIGTTIN, SIGTTOU] {
            let (count, each) = UnixStream::pair()?;
            count.set_nonblocking(true)?;
            each.set_nonblocking(true)?;
            signals.actions.push(signal_hook::low_level::pipe::register(signal, each)?);
            let wake = write.try_clone()?;
            signals.actions.push(signal_hook::low_level::pipe::register(signal, wake)?);
            signals.counts.push((signal, count));
        }
        for signal in [SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2] {
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
        bytes_in(&mut self.wake);
        let mut asked = Asked::default();
        for (signal, count) in &mut self.counts {
            let count = bytes_in(count);
            match *signal {
                SIGTTIN => asked.more = count,
                _ => asked.fewer = count,
            }
        }
        for (signal, flag) in &self.flags {
            if !flag.swap(false, Ordering::SeqCst) {
                continue;
            }
            match *signal {
                SIGCHLD => asked.reap = true,
                SIGTERM => asked.stop = true,
                SIGINT | SIGQUIT => asked.stop_now = true,
                SIGHUP => asked.reload = true,
                SIGUSR1 => asked.reopen_log = true,
                _ => asked.upgrade = true,
            }
        }
        asked
    }

    /// Before another image takes over, with all signals blocked: what has come and was not taken
    /// comes again, and waits for its handlers.
    pub(super) fn pass_on(&mut self) {
        let noted = self.flags.iter().filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        let counted = self.counts.iter_mut().filter_map(|(signal, count)| {
            // The kernel keeps no more than one.
            (bytes_in(count) > 0).then_some(*signal)
        });
        for signal in noted.map(|(signal, _)| *signal).chain(counted) {
            // Cannot fail: it is a signal that is listened to, and this very process.
            let _ = Signal::try_from(signal).and_then(|signal| kill(Pid::this(), signal));
        }
    }

    /// In a child: takes the actions out and leaves the kernel's handlers in place. After a reset
    /// to the default, tokio would never install its own, and a TERM would kill the child.
    pub(super) fn unregister(&mut self) {
        for action in self.actions.drain(..) {
            signal_hook::low_level::unregister(action);
        }
    }
}

/// Reads all there is, and says how much it was.
fn bytes_in(stream: &mut UnixStream) -> u32 {
    let (mut bytes, mut sum) = ([0; 64], 0);
    while let Ok(count) = stream.read(&mut bytes)
        && count > 0
    {
        sum += count as u32;
    }
    sum
}
