//! Whether a child's event loop still turns: pure.
//!
//! Silence is only what the master itself has seen pass. A master that was stopped, or a machine
//! that slept, looks once and finds a long time gone; of that it counts no more than
//! [`look_max`], and what the children said meanwhile is heard first. So nobody is killed for a
//! sleep that was everybody's.

use std::time::{Duration, Instant};

/// The silence of one child, as far as it was watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulse {
    silence: Duration,
    looked_at: Instant,
}

/// How much of the time between two looks counts as silence.
fn look_max(timeout: Duration) -> Duration {
    timeout / 2
}

impl Pulse {
    /// A child that was heard just now.
    pub(crate) fn new(now: Instant) -> Self {
        Self { silence: Duration::ZERO, looked_at: now }
    }

    /// Whether it has been silent for too long. Call it at [`due`](Self::due) or earlier.
    pub(crate) fn look(&mut self, timeout: Duration, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.looked_at);
        self.silence += since.min(look_max(timeout));
        self.looked_at = now;
        self.silence >= timeout
    }

    /// When to look again at the latest.
    pub(crate) fn due(&self, timeout: Duration) -> Instant {
        let left = timeout.saturating_sub(self.silence);
        self.looked_at + left.min(look_max(timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn a_child_that_beats_lives_and_one_that_does_not_is_found_in_time() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let mut now = start;
        while !pulse.look(TIMEOUT, now) {
            now = pulse.due(TIMEOUT);
            assert!(now > start);
        }
        assert_eq!(now - start, TIMEOUT);
    }

    #[test]
    fn a_sleep_of_the_master_is_nobodys_silence() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let hour = Duration::from_secs(3600);
        assert!(!pulse.look(TIMEOUT, start + hour), "one look counts half at most");
        assert!(!pulse.look(TIMEOUT, start + hour + TIMEOUT / 4));
        assert!(pulse.look(TIMEOUT, start + hour + TIMEOUT), "but a dead one is found");
    }
}
