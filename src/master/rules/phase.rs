//! Where the instance is in its life: pure.

use std::time::{Duration, Instant};

/// What INT and QUIT leave of a graceful stop.
const HASTENED: Duration = Duration::from_secs(2);

/// The phases, in their order. Reloading and being degraded are conditions of a running instance,
/// not phases: both may be true at once, and every signal is answered in them as in any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not every child has been ready yet.
    Booting,
    /// At work.
    Running,
    /// This binary took over. Its broker is ready by `until`, or the binary before it comes back.
    Upgrading { until: Instant },
    /// The broker lets running tasks end, or puts them back.
    Draining { until: Instant },
    /// Everything is on disk, and workers end.
    EndingWorkers,
    /// Workers are gone, and the broker ends.
    EndingBroker,
}

/// What holds beside the phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Workers are being replaced.
    pub(crate) reloading: bool,
    /// Something does not start.
    pub(crate) degraded: bool,
}

impl Phase {
    /// The word of `forq info`.
    pub(crate) fn word(self, condition: Condition) -> &'static str {
        match self {
            Phase::Draining { .. } => "draining",
            Phase::EndingWorkers | Phase::EndingBroker => "stopping",
            Phase::Upgrading { .. } => "upgrading",
            _ if condition.degraded => "degraded",
            Phase::Booting => "booting",
            Phase::Running if condition.reloading => "reloading",
            Phase::Running => "running",
        }
    }

    /// Whether it has begun to stop.
    pub(crate) fn is_stopping(self) -> bool {
        matches!(self, Phase::Draining { .. } | Phase::EndingWorkers | Phase::EndingBroker)
    }

    /// Begins to stop, or hastens a stop that has begun; `None` if it is too late for either.
    pub(crate) fn stop(self, drain: Duration, now: Instant) -> Option<Phase> {
        let until = now + drain;
        match self {
            Phase::Booting | Phase::Running | Phase::Upgrading { .. } => {
                Some(Phase::Draining { until })
            }
            Phase::Draining { until: before } if until < before => Some(Phase::Draining { until }),
            _ => None,
        }
    }

    /// What a quick stop leaves running tasks.
    pub(crate) fn quick_drain(self) -> Duration {
        if matches!(self, Phase::Draining { .. }) { HASTENED } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_phase_can_be_stopped_and_a_stop_only_gets_shorter() {
        let now = Instant::now();
        let drain = |seconds: u32| Phase::Draining { until: now + SECOND * seconds };
        let upgrading = Phase::Upgrading { until: now };
        for phase in [Phase::Booting, Phase::Running, upgrading] {
            assert_eq!(phase.stop(SECOND * 30, now), Some(drain(30)));
            assert_eq!(phase.quick_drain(), Duration::ZERO);
        }
        assert_eq!(drain(30).stop(SECOND * 30, now + SECOND), None, "a second TERM");
        assert_eq!(drain(30).stop(drain(30).quick_drain(), now), Some(drain(2)), "an INT");
        assert_eq!(drain(1).stop(drain(1).quick_drain(), now), None, "it was nearly done");
        for phase in [Phase::EndingWorkers, Phase::EndingBroker] {
            assert_eq!(phase.stop(Duration::ZERO, now), None);
            assert!(phase.is_stopping());
        }
    }

    #[test]
    fn the_word_says_what_matters_most() {
        let (none, until) = (Condition::default(), Instant::now());
        let reloading = Condition { reloading: true, ..none };
        let degraded = Condition { degraded: true, ..reloading };
        for (phase, condition, word) in [
            (Phase::Booting, none, "booting"),
            (Phase::Booting, degraded, "degraded"),
            (Phase::Running, none, "running"),
            (Phase::Running, reloading, "reloading"),
            (Phase::Running, degraded, "degraded"),
            (Phase::Upgrading { until }, degraded, "upgrading"),
            (Phase::Draining { until }, degraded, "draining"),
            (Phase::EndingWorkers, none, "stopping"),
            (Phase::EndingBroker, none, "stopping"),
        ] {
            assert_eq!(phase.word(condition), word, "{phase:?} {condition:?}");
        }
    }
}
