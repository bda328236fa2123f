//! Deaths: who is silent, who is too large, who has ended, and who is told.

use std::time::Instant;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::children::{self, Slot};
use super::supervise::Master;
use crate::protocol::lifeline::{Exit, ToBroker};
use crate::task::{Cause, LossReason};

impl Master {
    /// Whoever does not do in time what is asked of it is ended.
    pub(super) fn keep_deadlines(&mut self, now: Instant) {
        let workers = &self.boot.config.workers;
        let (boot_timeout, heartbeat_timeout) = (workers.boot_timeout, workers.heartbeat_timeout);
        for child in self.children_mut() {
            let (silence_max, why) = match child.ready_at {
                Some(_) => (heartbeat_timeout, "its event loop stood still"),
                None => (boot_timeout, "not ready within workers.boot_timeout"),
            };
            child.look(silence_max, why, now);
        }
        self.keep_phase_deadline(now);
        self.reload.keep_deadline(now);
        self.upgrade.keep_deadline(now);
    }

    /// Workers that have grown too large: replaced, or killed.
    pub(super) fn look_at_memory(&mut self, now: Instant) {
        // So that an old kill is not taken for the cause of a later death.
        self.oom.killed_lately(now);
        let bytes_max = self.boot.config.workers.max_memory;
        let mut changed = false;
        for child in self.workers.iter_mut().filter_map(|slot| slot.child.as_mut()) {
            let Some(bytes) = super::limits::resident_bytes(child.pid) else { continue };
            if bytes <= bytes_max || child.is_ending() {
                continue;
            }
            if bytes > bytes_max.saturating_mul(2) {
                tracing::error!("worker pid {} has {bytes} bytes: killed", child.pid);
                child.kill(LossReason::Memory, "over twice workers.max_memory");
            } else if child.recycle.is_none() {
                tracing::warn!("worker pid {} has {bytes} bytes: to be replaced", child.pid);
                child.recycle = Some("over workers.max_memory");
            }
            changed = true;
        }
        self.changed |= changed;
    }

    /// Collects every death there is, also those of strangers that were left to us.
    #[allow(clippy::disallowed_methods, reason = "the master is the one that reaps")]
    pub(super) fn reap(&mut self) {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                return;
            }
            if let Some((pid, cause)) = children::death(status) {
                self.died(pid, cause);
            }
        }
    }

    fn died(&mut self, pid: Pid, cause: Cause) {
        // What it said before it died counts: it may have been ready.
        self.hear_children();
        let now = Instant::now();
        if self.config_check_died(pid, &cause) || self.upgrade_check_died(pid, &cause) {
            return;
        }
        let is = |slot: &Slot| slot.child.as_ref().is_some_and(|child| child.pid == pid);
        if is(&self.broker) {
            self.broker_died(pid, &cause, now);
        } else if let Some(place) = self.workers.iter().position(is) {
            self.worker_died(place, cause, now);
        }
    }

    fn broker_died(&mut self, pid: Pid, cause: &Cause, now: Instant) {
        self.changed = true;
        let told = self.broker.child.as_ref().is_some_and(|child| child.is_ending());
        self.broker.empty(cause, now);
        // There is always to be one.
        self.broker.fork_at = self.broker.fork_at.or(Some(now));
        if !told {
            let how = self.broker.last_exit();
            let line = format!("the broker (pid {pid}) is dead: {how}; a new one follows");
            self.tell_death(0, &line, now);
        }
    }

    fn worker_died(&mut self, place: usize, cause: Cause, now: Instant) {
        self.changed = true;
        let slot = &mut self.workers[place];
        let Some(child) = slot.child.as_ref() else { return };
        let (pid, told, was_ready) = (child.pid, child.is_ending(), child.ready_at.is_some());
        // One that hung in its boot until it was aborted has failed to boot.
        let failed = !was_ready && !child.is_told_to_end();
        let mut cause = child.cause(cause);
        if !told && cause.signal.as_deref() == Some("SIGKILL") && self.oom.killed_lately(now) {
            cause.reason = Some(LossReason::Oom);
        }
        let Some(child) = slot.empty(&cause, now) else { return };
        let (number, how) = (slot.number, slot.last_exit().to_owned());
        if failed {
            self.breaker.failed(&how, now);
        }
        if self.phase.is_stopping() || (told && child.drain != 0) {
            tracing::debug!("worker {number} (pid {pid}) has ended: {how}");
        } else {
            self.tell_death(number, &format!("worker {number} (pid {pid}) is dead: {how}"), now);
        }
        let exit = Exit { serial: child.serial, pid: pid.as_raw(), cause };
        self.tell_broker(&ToBroker::Exited(exit.clone()));
        self.exits.insert(child.serial, exit);
    }

    /// The first deaths in a slot are told one by one, the rest of a loop in numbers.
    fn tell_death(&mut self, slot: u32, line: &str, now: Instant) {
        // Of a minute that has passed since the last look.
        self.tell_held(now);
        if self.quiet.admit(slot, now).is_some() {
            tracing::warn!("{line}");
        }
    }

    /// Tells of the deaths that were not told one by one.
    pub(super) fn tell_held(&mut self, now: Instant) {
        for (slot, count) in self.quiet.take_held(now) {
            let who = if slot == 0 { "the broker".to_owned() } else { format!("worker {slot}") };
            tracing::warn!("{who} died {count} more times in the last minute");
        }
    }
}
