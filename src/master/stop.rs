//! The ladder of a stop: no dispatch, the drain, cancel and put back, TERM, KILL. And what signals
//! ask for.

use std::time::{Duration, Instant};

use super::rules::phase::Phase;
use super::signals::Asked;
use super::supervise::Master;
use crate::protocol::lifeline::{Resize, ToBroker, ToWorker};
use crate::task::LossReason;

/// After a drain's end, how long the broker may take to put everything on disk before it is
/// taken for dead.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// How long a child may take to end after TERM.
pub(super) const TERM_MAX: Duration = Duration::from_secs(2);

impl Master {
    pub(super) fn heed_signals(&mut self) {
        let asked = self.signals.take();
        if asked.stop {
            self.stop(self.boot.config.workers.drain_timeout);
        }
        if asked.stop_now {
            self.stop(self.phase.quick_drain());
        }
        if asked.reopen_log {
            self.reopen_log();
        }
        if !self.phase.is_stopping() {
            self.heed_wishes(&asked);
        }
        // Last: what a dead check has said may make this process another image.
        if asked.reap {
            self.reap();
        }
    }

    /// What a stop makes pointless.
    fn heed_wishes(&mut self, asked: &Asked) {
        if asked.reload {
            self.reload.ask_by_signal();
        }
        if asked.upgrade {
            self.upgrade.ask_by_signal();
        }
        for _ in 0..asked.more {
            self.operator_resizes(Resize::More(1));
        }
        for _ in 0..asked.fewer {
            self.operator_resizes(Resize::Fewer(1));
        }
    }

    /// The master first: whoever is forked from now on has the new file.
    fn reopen_log(&mut self) {
        super::logging::reopen();
        self.tell_broker(&ToBroker::ReopenLog);
        for child in self.workers.iter_mut().filter_map(|slot| slot.child.as_mut()) {
            child.lifeline.send(&ToWorker::ReopenLog);
        }
    }

    /// Begins to stop, or hastens a stop that has begun.
    pub(super) fn stop(&mut self, drain: Duration) {
        let Some(phase) = self.phase.stop(drain, Instant::now()) else { return };
        if !self.phase.is_stopping() {
            tracing::info!("stopping: running tasks have {} s", drain.as_secs_f64());
        }
        self.enter(phase);
        self.tell_stop(drain);
    }

    pub(super) fn end_workers(&mut self, now: Instant) {
        self.enter(Phase::EndingWorkers);
        for child in self.workers.iter_mut().filter_map(|slot| slot.child.as_mut()) {
            child.terminate(TERM_MAX, now);
        }
    }

    pub(super) fn kill_all(&mut self) {
        for child in self.children_mut() {
            child.kill(LossReason::Crash, "it did not end when it was told to");
        }
    }

    pub(super) fn phase_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining { until } => Some(until + SETTLE_MAX),
            Phase::Upgrading { until } => Some(until),
            // Each child has its own.
            Phase::EndingWorkers | Phase::EndingBroker | Phase::Booting | Phase::Running => None,
        }
    }

    pub(super) fn keep_phase_deadline(&mut self, now: Instant) {
        match self.phase {
            Phase::Draining { until } if now >= until + SETTLE_MAX => {
                tracing::error!("the broker does not finish: its tasks go back at the next start");
                self.end_workers(now);
            }
            Phase::EndingWorkers if self.workers.iter().all(|slot| slot.child.is_none()) => {
                self.enter(Phase::EndingBroker);
                if let Some(broker) = &mut self.broker.child {
                    broker.terminate(SETTLE_MAX, now);
                }
            }
            _ => {}
        }
    }
}
