//! When a child that died is forked again: pure.

use std::time::Duration;

/// A child that lived this long after it was ready had nothing wrong with its boot.
pub(crate) const QUICK_DEATH: Duration = Duration::from_secs(1);
/// Quick deaths in a row after which a slot is taken to be unable to keep a child.
pub(crate) const FLAPS: u32 = 3;
/// The first pause.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How a child's life went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    /// From being ready to its death; absent if it never was ready.
    pub(crate) served: Option<Duration>,
}

/// Quick deaths in a row, after this one.
pub(crate) fn strikes(before: u32, life: Life) -> u32 {
    let quick = life.served.is_none_or(|served| served < QUICK_DEATH);
    if quick { before.saturating_add(1) } else { 0 }
}

/// The pause before the next fork: none after one quick death, since that may be an accident,
/// then doubling.
pub(crate) fn pause(strikes: u32) -> Duration {
    match strikes {
        0 | 1 => Duration::ZERO,
        more => BACKOFF_FIRST.saturating_mul(1 << (more - 2).min(16)).min(BACKOFF_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_served_is_replaced_at_once() {
        let life = Life { served: Some(QUICK_DEATH) };
        assert_eq!(strikes(7, life), 0);
        assert_eq!(pause(0), Duration::ZERO);
    }

    #[test]
    fn quick_deaths_back_off_and_are_bounded() {
        let mut count = 0;
        let mut pauses = Vec::new();
        for _ in 0..20 {
            count = strikes(count, Life { served: None });
            pauses.push(pause(count).as_millis());
        }
        assert_eq!(pauses[..5], [0, 100, 200, 400, 800]);
        assert_eq!(pauses.last(), Some(&BACKOFF_MAX.as_millis()));
    }

    #[test]
    fn forks_in_the_first_half_minute_of_a_crash_loop_are_few() {
        let (mut at, mut forks, mut count) = (Duration::ZERO, 0, 0);
        while at < Duration::from_secs(30) {
            forks += 1;
            count = strikes(count, Life { served: None });
            at += pause(count);
        }
        assert!(forks <= 12, "{forks}");
    }
}
