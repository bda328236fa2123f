//! How fast a step's text comes: pure.

use std::collections::VecDeque;

/// What is older says little about now.
const WINDOW_MS: u64 = 4_000;
/// Before this much time no figure is worth showing.
const SPAN_MS_MIN: u64 = 500;
/// Looks that are kept; they come about every half second.
const LOOKS_MAX: usize = 16;
/// A rule of thumb: the tokens themselves are counted when the answer is whole.
const TOKEN_BYTES: u64 = 4;

/// The last looks at how much text there is.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When, in milliseconds, and how many bytes.
    looks: VecDeque<(u64, u64)>,
}

impl Pace {
    /// Before the first byte there is only waiting, which is no pace.
    pub(super) fn take(&mut self, now_ms: u64, bytes: u64) {
        if self.looks.back().is_some_and(|(_, before)| *before > bytes) {
            // The text has begun anew.
            self.looks.clear();
        }
        if bytes == 0 {
            return;
        }
        self.looks.push_back((now_ms, bytes));
        let old = |looks: &VecDeque<(u64, u64)>| {
            looks.get(1).is_some_and(|(at_ms, _)| at_ms + WINDOW_MS <= now_ms)
        };
        while self.looks.len() > LOOKS_MAX || old(&self.looks) {
            self.looks.pop_front();
        }
    }

    /// `None` while there is nothing to say. A text that stands still becomes slower.
    pub(super) fn tokens_per_s(&self, now_ms: u64) -> Option<u64> {
        let ((from_ms, from), (_, to)) = self.looks.front().zip(self.looks.back())?;
        let span_ms = now_ms.saturating_sub(*from_ms);
        (span_ms >= SPAN_MS_MIN && to > from)
            .then(|| (to - from).saturating_mul(1_000) / TOKEN_BYTES / span_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.tokens_per_s(0), None);
        for second in 0..10 {
            pace.take(second * 1_000, second * 400);
        }
        assert_eq!(pace.tokens_per_s(9_000), Some(100));
        // Twice as fast from now on.
        for second in 10..15 {
            pace.take(second * 1_000, 3_600 + (second - 9) * 800);
        }
        assert_eq!(pace.tokens_per_s(14_000), Some(200));
        assert_eq!(pace.tokens_per_s(18_000), Some(100), "it stands still");
    }

    #[test]
    fn a_text_that_begins_anew_has_a_pace_of_its_own() {
        let mut pace = Pace::default();
        pace.take(0, 10);
        pace.take(1_000, 4_010);
        assert_eq!(pace.tokens_per_s(1_000), Some(1_000));
        pace.take(2_000, 0);
        pace.take(9_000, 40);
        assert_eq!(pace.tokens_per_s(9_900), None);
        pace.take(10_000, 80);
        assert_eq!(pace.tokens_per_s(10_000), Some(10));
    }

    #[test]
    fn looks_are_few() {
        let mut pace = Pace::default();
        (0..1_000).for_each(|at| pace.take(at, at));
        assert!(pace.looks.len() <= LOOKS_MAX);
    }
}
