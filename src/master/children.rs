//! The table of children: who is there, since when, and what became of the one before.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::lifeline::Lifeline;
use super::rules::policy::{self, Life};
use super::rules::pulse::Pulse;
use super::rules::roll::Member;
use super::upgrade::handover::{ChildLeft, SlotLeft};
use crate::protocol::lifeline::PoolWorker;
use crate::task::{Cause, LossReason};

/// How long a child that was told to abort may take before it is killed: time for a core.
const ABORT_MAX: Duration = Duration::from_secs(2);

/// A place for a child: the broker's, or one of the workers'. It stays when its child has gone,
/// with its history.
#[derive(Default)]
pub(super) struct Slot {
    /// From 1 for workers, 0 for the broker.
    pub(super) number: u32,
    pub(super) child: Option<Child>,
    /// When the next one is forked; `None` beside no child: there need be none.
    pub(super) fork_at: Option<Instant>,
    pub(super) restarts: u32,
    strikes: u32,
    backoff: Duration,
    last_exit: Option<String>,
}

/// A child that lives, or has not been reaped.
pub(super) struct Child {
    pub(super) pid: Pid,
    /// A number since the instance started.
    pub(super) serial: u64,
    pub(super) lifeline: Lifeline,
    /// The generation that it was forked with.
    pub(super) generation: u32,
    pub(super) pulse: Pulse,
    pub(super) ready_at: Option<Instant>,
    /// Not 0: it gets no more tasks, and this numbers the wish.
    pub(super) drain: u32,
    /// It is to be replaced, and why.
    pub(super) recycle: Option<&'static str>,
    /// Tasks after which it is; 0: never.
    pub(super) tasks_max: u64,
    /// What the broker last said that it runs.
    pub(super) in_flight: u32,
    end: End,
}

/// What the master has done to a child's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    No,
    /// It drained, or the instance stops: its end is no loss.
    Told {
        kill_at: Instant,
    },
    /// It was told to leave a core.
    Aborted {
        reason: LossReason,
        why: &'static str,
        kill_at: Instant,
    },
    /// It was killed.
    Killed {
        reason: LossReason,
        why: &'static str,
    },
}

impl Child {
    pub(super) fn new(
        pid: Pid,
        serial: u64,
        lifeline: Lifeline,
        generation: u32,
        now: Instant,
    ) -> Self {
        Self {
            pid,
            serial,
            lifeline,
            generation,
            pulse: Pulse::new(now),
            ready_at: None,
            drain: 0,
            recycle: None,
            tasks_max: 0,
            in_flight: 0,
            end: End::No,
        }
    }

    /// Asks it to end, since it has nothing left or the instance stops; ends it for certain if it
    /// takes longer.
    pub(super) fn terminate(&mut self, within: Duration, now: Instant) {
        self.end = End::Told { kill_at: now + within };
        self.signal(Signal::SIGTERM);
    }

    /// Ends it with a core, if cores are kept, and for certain after a moment.
    fn abort(&mut self, reason: LossReason, why: &'static str, now: Instant) {
        self.end = End::Aborted { reason, why, kill_at: now + ABORT_MAX };
        self.signal(Signal::SIGABRT);
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self, reason: LossReason, why: &'static str) {
        self.end = End::Killed { reason, why };
        self.signal(Signal::SIGKILL);
    }

    /// When it is looked at next: for its beats, or for an end that does not come. `None`: it was
    /// killed, and only the kernel has it now.
    pub(super) fn look_at(&self, silence_max: Duration) -> Option<Instant> {
        match self.end {
            End::No => Some(self.pulse.due(silence_max)),
            End::Told { kill_at } | End::Aborted { kill_at, .. } => Some(kill_at),
            End::Killed { .. } => None,
        }
    }

    /// Aborts it if it was silent for too long, and kills it if it was to end and has not.
    pub(super) fn look(&mut self, silence_max: Duration, why: &'static str, now: Instant) {
        match self.end {
            End::No if self.pulse.look(silence_max, now) => {
                tracing::error!("pid {} is silent for {silence_max:?}: {why}; aborted", self.pid);
                self.abort(LossReason::Heartbeat, why, now);
            }
            End::Told { kill_at } if now >= kill_at => {
                tracing::error!("pid {} does not end when it is told to: killed", self.pid);
                self.kill(LossReason::Crash, "it did not end when it was told to");
            }
            End::Aborted { reason, why, kill_at } if now >= kill_at => self.kill(reason, why),
            _ => {}
        }
    }

    /// Whether it was told to end, one way or the other.
    pub(super) fn is_ending(&self) -> bool {
        self.end != End::No
    }

    /// Whether it was told to end for no fault of its own.
    pub(super) fn is_told_to_end(&self) -> bool {
        matches!(self.end, End::Told { .. })
    }

    /// Whether it is dying, and its place is to be filled again.
    pub(super) fn leaves_a_vacancy(&self) -> bool {
        matches!(self.end, End::Aborted { .. } | End::Killed { .. }) && self.drain == 0
    }

    /// Sends a signal. One that is dead and not reaped takes it, too.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// How it died, with what the master knows of it.
    pub(super) fn cause(&self, mut cause: Cause) -> Cause {
        match self.end {
            End::Aborted { reason, .. } | End::Killed { reason, .. } => cause.reason = Some(reason),
            End::Told { .. } | End::No => {}
        }
        cause
    }

    /// What the rules of the pool look at.
    pub(super) fn member(&self, slot: u32, generation: u32) -> Member {
        Member {
            slot,
            ready: self.ready_at.is_some(),
            draining: self.drain != 0,
            ending: self.is_ending(),
            stale: self.generation != generation || self.recycle.is_some(),
            in_flight: self.in_flight,
            serial: self.serial,
        }
    }
}

impl Slot {
    /// An empty place.
    pub(super) fn new(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// Puts a child in.
    pub(super) fn fill(&mut self, child: Child) {
        self.child = Some(child);
        self.fork_at = None;
    }

    /// Takes the dead child out. One that was told to end leaves the place empty; otherwise this
    /// decides when the next one comes.
    pub(super) fn empty(&mut self, cause: &Cause, now: Instant) -> Option<Child> {
        let child = self.child.take()?;
        self.last_exit = Some(in_words(cause, child.end, child.recycle));
        if matches!(child.end, End::Told { .. }) {
            self.strikes = 0;
            return Some(child);
        }
        self.restarts = self.restarts.saturating_add(1);
        if child.drain != 0 {
            return Some(child);
        }
        let served = child.ready_at.map(|ready_at| now.duration_since(ready_at));
        self.strikes = policy::strikes(self.strikes, Life { served });
        self.fork_after(policy::pause(self.strikes), now);
        Some(child)
    }

    /// The fork itself failed: that is a quick death, too.
    pub(super) fn fork_failed(&mut self, now: Instant) {
        self.strikes = self.strikes.saturating_add(2);
        self.fork_after(policy::pause(self.strikes), now);
    }

    /// Begins anew, without the pause that quick deaths have earned it.
    pub(super) fn forget_failures(&mut self, now: Instant) {
        self.strikes = 0;
        if let Some(fork_at) = &mut self.fork_at {
            *fork_at = now;
            self.backoff = Duration::ZERO;
        }
    }

    fn fork_after(&mut self, pause: Duration, now: Instant) {
        self.backoff = pause;
        self.fork_at = Some(now + pause);
    }

    /// What is handed over to another image of the master.
    pub(super) fn left(&self) -> SlotLeft {
        let child = self.child.as_ref().map(|child| ChildLeft {
            pid: child.pid.as_raw(),
            serial: child.serial,
            lifeline: child.lifeline.fd().as_raw_fd(),
            generation: child.generation,
            ready: child.ready_at.is_some(),
            drain: child.drain,
        });
        let last_exit = self.last_exit.clone();
        SlotLeft { number: self.number, restarts: self.restarts, last_exit, child }
    }

    /// As an image before this one had it.
    pub(super) fn remember_exit(&mut self, last_exit: Option<String>) {
        self.last_exit = last_exit;
    }

    /// Whether its child has been at work for long enough to be taken for sound.
    pub(super) fn is_sound(&self, now: Instant) -> bool {
        let ready_at = self.child.as_ref().and_then(|child| child.ready_at);
        ready_at.is_some_and(|at| now.duration_since(at) >= policy::QUICK_DEATH)
    }

    /// How its children end, if they do not stay up.
    pub(super) fn flapping(&self, now: Instant) -> Option<String> {
        let flaps = self.strikes >= policy::FLAPS && !self.is_sound(now);
        flaps.then(|| format!("{} ({} times in a row)", self.last_exit(), self.strikes))
    }

    /// Quick deaths in a row.
    pub(super) fn strikes(&self) -> u32 {
        self.strikes
    }

    /// Leaves the place empty after all.
    pub(super) fn give_up(&mut self) {
        self.fork_at = None;
        if let Some(child) = &mut self.child {
            // Any number says that it will not be replaced.
            child.drain = u32::MAX;
        }
    }

    /// How the last one ended, in words.
    pub(super) fn last_exit(&self) -> &str {
        self.last_exit.as_deref().unwrap_or("")
    }

    /// Whether its next child is only a matter of time.
    pub(super) fn is_vacant(&self) -> bool {
        match &self.child {
            None => self.fork_at.is_some(),
            Some(child) => child.leaves_a_vacancy(),
        }
    }

    /// What the broker and `status.json` are told; `None`: nobody is there, or expected.
    pub(super) fn view(&self) -> Option<PoolWorker> {
        let child = self.child.as_ref();
        if child.is_none() && self.fork_at.is_none() {
            return None;
        }
        let backoff_ms = if child.is_some() { 0 } else { self.backoff.as_millis() };
        Some(PoolWorker {
            slot: self.number,
            pid: child.map(|child| child.pid.as_raw()),
            serial: child.map_or(0, |child| child.serial),
            generation: child.map_or(0, |child| child.generation),
            ready: child.is_some_and(|child| child.ready_at.is_some()),
            drain: child.map_or(0, |child| child.drain),
            restarts: self.restarts,
            backoff_ms: u64::try_from(backoff_ms).unwrap_or(u64::MAX),
            last_exit: self.last_exit.clone(),
        })
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
fn in_words(cause: &Cause, end: End, recycle: Option<&'static str>) -> String {
    let how = match (&cause.signal, cause.exit_code) {
        (Some(signal), _) => format!("ended by {signal}"),
        (None, code) => format!("exit code {}", code.unwrap_or(0)),
    };
    match (end, cause.reason) {
        (End::Aborted { why, .. } | End::Killed { why, .. }, _) => format!("{how}: {why}"),
        (End::Told { .. }, _) => match recycle {
            Some(why) => format!("replaced: {why}"),
            None => "ended as told".to_owned(),
        },
        (End::No, Some(LossReason::Oom)) => format!("{how}: probably out of memory"),
        (End::No, _) => how,
    }
}
