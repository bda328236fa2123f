//! The end of an instance, as far as it is the broker's: no new work, running tasks to their end
//! or back to the queue, everything on disk, then the master is told.

use std::time::{Duration, Instant};

use crate::protocol::control::{Refusal, RefusalKind};
use crate::protocol::lifeline::FromBroker;
use crate::protocol::link::Run;

use super::Core;
use super::pending::Pending;
use super::store::writer::Op;

/// How long the last claims may take to reach their workers.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// How often that is looked at.
const CLOSE_LOOK: Duration = Duration::from_millis(2);
/// How long workers may take to drop what they were told to.
const CANCEL_MAX: Duration = Duration::from_millis(1500);

/// Where the broker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Takes work and gives it out.
    Serving,
    /// Running tasks may still end until then.
    Draining { until: Instant },
    /// Running tasks were told to drop, and go back to the queue by then at the latest.
    Cancelling { until: Instant },
    /// Nothing runs; the last commits are on their way.
    Settling,
    /// All is told. The master ends the process.
    Drained,
    /// Told to end: claims that are on their way reach their workers, nothing else is begun or
    /// answered, and whoever wants something finds the next broker.
    Closing { until: Instant },
}

impl Phase {
    /// Whether ready tasks are given to workers.
    pub(crate) fn dispatches(self) -> bool {
        self == Phase::Serving
    }

    /// Why submissions are refused, if they are.
    pub(crate) fn refusal(self) -> Option<Refusal> {
        let message = "the daemon is stopping: submit again when it is back";
        (self != Phase::Serving).then(|| Refusal::new(RefusalKind::Unavailable, message))
    }
}

impl Core {
    /// Begins to close.
    pub(super) fn close(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Closing { .. }) {
            self.phase = Phase::Closing { until: now + CLOSE_MAX };
        }
    }

    /// Whether it is closed: everything that was begun has reached its store or its worker.
    pub(super) fn is_closed(&self, now: Instant) -> bool {
        let Phase::Closing { until } = self.phase else { return false };
        let links = self.workers.values().filter_map(|worker| worker.link.as_ref());
        let is_quiet = || self.pending.is_empty() && links.clone().all(|l| l.outbox.is_idle());
        now >= until || is_quiet()
    }

    /// Begins to stop, or hastens a stop that has begun.
    pub(super) fn stop(&mut self, drain: Duration, now: Instant) {
        let until = now + drain;
        match self.phase {
            Phase::Serving => {
                tracing::info!("stopping: {} tasks run", self.runs.len());
                self.phase = Phase::Draining { until };
                let serials: Vec<u64> = self.workers.keys().copied().collect();
                for serial in serials {
                    self.tell_drain(serial);
                }
            }
            Phase::Draining { until: before } => {
                self.phase = Phase::Draining { until: until.min(before) };
            }
            Phase::Cancelling { .. } | Phase::Settling | Phase::Drained | Phase::Closing { .. } => {
            }
        }
    }

    /// The next step of a stop, when it is due.
    pub(super) fn drain(&mut self, now: Instant) {
        let idle = self.runs.is_empty() && self.pending.claims().next().is_none();
        match self.phase {
            Phase::Draining { .. } | Phase::Cancelling { .. } if idle => {
                self.phase = Phase::Settling;
                // Answered after everything before it is committed.
                self.store(Op::Sync, Pending::Drained);
            }
            Phase::Draining { until } if now >= until => {
                self.phase = Phase::Cancelling { until: now + CANCEL_MAX };
                for run in self.open_runs() {
                    self.cancel_run(run);
                }
            }
            Phase::Cancelling { until } if now >= until => {
                for run in self.open_runs() {
                    self.put_back(run);
                }
            }
            _ => {}
        }
    }

    /// When [`drain`](Self::drain) has its next step.
    pub(super) fn drain_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Draining { until } | Phase::Cancelling { until } => Some(until),
            // There is no event for a socket that has taken everything.
            Phase::Closing { .. } => Some(Instant::now() + CLOSE_LOOK),
            Phase::Serving | Phase::Settling | Phase::Drained => None,
        }
    }

    pub(super) fn drained(&mut self) {
        self.phase = Phase::Drained;
        self.to_master.send(&FromBroker::Drained);
    }

    fn open_runs(&self) -> Vec<Run> {
        self.runs.values().filter(|state| !state.ending).map(|state| state.facts.run).collect()
    }
}
