//! How late the event loop is, and how many tasks it takes because of that.
//!
//! A worker has one thread: when its timers fire late, it has more to compute than there is time
//! for, and another task would only make all of them slower. So a loop that was late for 5 s takes
//! a fifth less; after 10 s without that it takes one more again, up to `concurrency`. The broker
//! sends what is left to other workers, and the pool grows.

use std::time::{Duration, Instant};

/// Between two looks.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A look that comes later than this was late.
const LATE: Duration = Duration::from_millis(100);
/// The looks that are judged together: 5 s of them.
const LOOKS: u32 = 50;
/// Of those, so many may be late: the 95th percentile.
const LATE_MAX: u32 = LOOKS / 20;
/// After so long without trouble there is one more.
const RECOVER_AFTER: Duration = Duration::from_secs(10);

/// How many tasks the worker takes at once, now.
#[derive(Debug)]
pub(super) struct Pace {
    concurrency: u32,
    effective: u32,
    looks: u32,
    late: u32,
    changed_at: Instant,
}

impl Pace {
    pub(super) fn new(concurrency: u32, now: Instant) -> Self {
        Self { concurrency, effective: concurrency, looks: 0, late: 0, changed_at: now }
    }

    /// After a look that came `lag` late; gives what the worker takes from now on.
    pub(super) fn looked(&mut self, lag: Duration, now: Instant) -> u32 {
        // One look stands for those that could not be taken meanwhile.
        let missed = lag.as_millis() / LOOK_EVERY.as_millis();
        let looks = 1 + u32::try_from(missed).unwrap_or(LOOKS).min(LOOKS);
        self.looks += looks;
        if lag > LATE {
            self.late += looks;
        }
        if self.looks >= LOOKS {
            if self.late > LATE_MAX {
                self.effective = (self.effective * 4 / 5).max(1);
                self.changed_at = now;
            }
            (self.looks, self.late) = (0, 0);
        }
        if self.effective < self.concurrency && now.duration_since(self.changed_at) >= RECOVER_AFTER
        {
            self.effective += 1;
            self.changed_at = now;
        }
        self.effective
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many seconds with this lag at each look: what is taken then.
    fn after(pace: &mut Pace, now: &mut Instant, seconds: u64, lag_ms: u64) -> u32 {
        let until = *now + Duration::from_secs(seconds);
        let lag = Duration::from_millis(lag_ms);
        let mut taken = pace.effective;
        while *now < until {
            *now += LOOK_EVERY + lag;
            taken = pace.looked(lag, *now);
        }
        taken
    }

    #[test]
    fn a_late_loop_takes_less_and_recovers() {
        let mut now = Instant::now();
        let mut pace = Pace::new(32, now);
        assert_eq!(after(&mut pace, &mut now, 60, 90), 32, "a little late");
        let cut = after(&mut pace, &mut now, 10, 300);
        assert!((16..=25).contains(&cut), "{cut}");
        assert_eq!(after(&mut pace, &mut now, 120, 300), 1, "never none");
        let back = after(&mut pace, &mut now, 105, 0);
        assert!((10..=11).contains(&back), "{back}");
        assert_eq!(after(&mut pace, &mut now, 3600, 0), 32, "never more");
    }

    #[test]
    fn one_late_look_is_forgiven() {
        let mut now = Instant::now();
        let mut pace = Pace::new(32, now);
        after(&mut pace, &mut now, 10, 0);
        pace.looked(Duration::from_millis(150), now);
        assert_eq!(after(&mut pace, &mut now, 20, 0), 32);
        // A second and more without a turn is not forgiven.
        pace.looked(Duration::from_secs(2), now);
        assert_eq!(after(&mut pace, &mut now, 5, 0), 25);
    }
}
