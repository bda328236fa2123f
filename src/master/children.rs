//! The table of children: who is there, since when, and what became of the one before.

use std::time::{Duration, Instant};

use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::lifeline::Lifeline;
use super::policy::{self, Life};
use crate::protocol::lifeline::PoolWorker;
use crate::task::{Cause, LossReason};

/// A place for a child: the broker's, or one of the workers'.
#[derive(Default)]
pub(super) struct Slot {
    /// From 1 for workers, 0 for the broker.
    pub(super) number: u32,
    pub(super) child: Option<Child>,
    /// When the next one is forked, if there is none.
    pub(super) fork_at: Option<Instant>,
    pub(super) restarts: u32,
    strikes: u32,
    backoff: Duration,
    last_exit: Option<String>,
}

/// A child that lives, or has not been reaped.
pub(super) struct Child {
    pub(super) pid: Pid,
    /// A worker's number since the instance started.
    pub(super) serial: u64,
    pub(super) lifeline: Lifeline,
    pub(super) forked_at: Instant,
    pub(super) ready_at: Option<Instant>,
}

impl Slot {
    /// An empty place that is to be filled now.
    pub(super) fn new(number: u32, now: Instant) -> Self {
        Self { number, fork_at: Some(now), ..Self::default() }
    }

    /// Puts a child in.
    pub(super) fn fill(&mut self, child: Child) {
        self.child = Some(child);
        self.fork_at = None;
    }

    /// Takes the dead child out, and decides when the next one comes.
    pub(super) fn empty(&mut self, cause: &Cause, now: Instant) -> Option<Child> {
        let child = self.child.take()?;
        let served = child.ready_at.map(|ready_at| now.duration_since(ready_at));
        self.strikes = policy::strikes(self.strikes, Life { served });
        self.restarts = self.restarts.saturating_add(1);
        self.last_exit = Some(in_words(cause));
        self.fork_after(policy::pause(self.strikes), now);
        Some(child)
    }

    /// The fork itself failed: that is a quick death, too.
    pub(super) fn fork_failed(&mut self, now: Instant) {
        self.strikes = self.strikes.saturating_add(2);
        self.fork_after(policy::pause(self.strikes), now);
    }

    fn fork_after(&mut self, pause: Duration, now: Instant) {
        self.backoff = pause;
        self.fork_at = Some(now + pause);
    }

    /// What the broker and `status.json` are told.
    pub(super) fn view(&self) -> PoolWorker {
        let child = self.child.as_ref();
        let backoff_ms = if child.is_some() { 0 } else { self.backoff.as_millis() };
        PoolWorker {
            slot: self.number,
            pid: child.map(|child| child.pid.as_raw()),
            serial: child.map_or(0, |child| child.serial),
            ready: child.is_some_and(|child| child.ready_at.is_some()),
            restarts: self.restarts,
            backoff_ms: u64::try_from(backoff_ms).unwrap_or(u64::MAX),
            last_exit: self.last_exit.clone(),
        }
    }
}

/// A wait status as a cause, if it is a death.
pub(super) fn death(status: WaitStatus) -> Option<(Pid, Cause)> {
    let reason = Some(LossReason::Crash);
    match status {
        WaitStatus::Exited(pid, code) => {
            Some((pid, Cause { signal: None, exit_code: Some(code), reason }))
        }
        WaitStatus::Signaled(pid, signal, _) => {
            let signal = Some(signal.as_str().to_owned());
            Some((pid, Cause { signal, exit_code: None, reason }))
        }
        _ => None,
    }
}

/// How a child ended, for people.
pub(super) fn in_words(cause: &Cause) -> String {
    match (&cause.signal, cause.exit_code) {
        (Some(signal), _) => format!("ended by {signal}"),
        (None, code) => format!("exit code {}", code.unwrap_or(0)),
    }
}
