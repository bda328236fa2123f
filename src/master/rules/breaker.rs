//! A pool that cannot boot: pure.
//!
//! Each slot backs off by itself ([`super::policy`]); that alone would fork a large pool's worth
//! of children into the same wall. After [`FAILURES_MAX`] boots in a row that came to nothing, one
//! child at a time is tried, and the instance says that it is degraded, and why. The first child
//! that gets ready ends it.

use std::time::{Duration, Instant};

use super::policy;

/// Failed boots in a row after which the pool is taken to be unable to boot.
const FAILURES_MAX: u32 = 3;

/// The pool's boots.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    reason: String,
    probe_at: Option<Instant>,
}

impl Breaker {
    /// A child ended before it was ready.
    pub(crate) fn failed(&mut self, how: &str, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.reason = how.to_owned();
        self.probe_at = (self.failures >= FAILURES_MAX).then(|| now + self.pause());
    }

    /// A child is ready; whether that ended a trouble.
    pub(crate) fn booted(&mut self) -> bool {
        std::mem::take(self).probe_at.is_some()
    }

    /// When the next child may be forked; `None`: at any time.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        self.probe_at
    }

    /// Why the pool is degraded, if it is.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.probe_at.map(|_| {
            let Self { failures, reason, .. } = self;
            format!("workers do not start: {reason} ({failures} times in a row; see the log)")
        })
    }

    fn pause(&self) -> Duration {
        policy::pause(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_a_few_failures_and_closes_with_one_success() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 1..FAILURES_MAX {
            breaker.failed("exit code 1", now);
            assert_eq!((breaker.probe_at(), breaker.trouble()), (None, None));
        }
        breaker.failed("exit code 2", now);
        assert!(breaker.probe_at().is_some_and(|at| at > now));
        let trouble = breaker.trouble().unwrap_or_default();
        assert!(trouble.contains("exit code 2 (3 times in a row"), "{trouble}");
        assert!(breaker.booted());
        assert_eq!((breaker.probe_at(), breaker.trouble()), (None, None));
        assert!(!breaker.booted(), "nothing was wrong");
    }

    #[test]
    fn an_hour_of_failures_is_tried_rarely() {
        let start = Instant::now();
        let (mut breaker, mut now) = (Breaker::default(), start);
        let mut tries = 0;
        while now < start + Duration::from_secs(3600) {
            breaker.failed("exit code 1", now);
            tries += 1;
            now = breaker.probe_at().unwrap_or(now);
        }
        assert!((100..150).contains(&tries), "{tries}");
    }
}
