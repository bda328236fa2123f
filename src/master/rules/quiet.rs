//! Keeps a crash loop from filling the log: the first lines of a kind are written, and of the rest
//! only how many there were. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What was written and held back, by kind. Kinds are the master's own, a few for each slot, so
/// they need no limit; those that are over are forgotten.
pub(crate) struct Quiet<K> {
    /// Lines of a kind that are written in one window.
    lines_max: u32,
    window: Duration,
    kinds: BTreeMap<K, Window>,
}

struct Window {
    began: Instant,
    written: u32,
    held: u64,
}

impl<K: Ord + Clone> Quiet<K> {
    pub(crate) fn new(lines_max: u32, window: Duration) -> Self {
        Self { lines_max, window, kinds: BTreeMap::new() }
    }

    /// Whether a line of this kind may be written now. `Some` is how many were held back in a
    /// window that is over, and were not told yet; `None`: this one is held back, too.
    pub(crate) fn admit(&mut self, kind: K, now: Instant) -> Option<u64> {
        let begin = || Window { began: now, written: 0, held: 0 };
        let window = self.kinds.entry(kind).or_insert_with(begin);
        let mut untold = 0;
        if now >= window.began + self.window {
            untold = window.held;
            *window = begin();
        }
        if window.written == self.lines_max {
            window.held += 1;
            return None;
        }
        window.written += 1;
        Some(untold)
    }

    /// The kinds whose window is over and how many lines were held back in it, each told once.
    pub(crate) fn take_held(&mut self, now: Instant) -> Vec<(K, u64)> {
        let mut held = Vec::new();
        self.kinds.retain(|kind, window| {
            let is_over = now >= window.began + self.window;
            if is_over && window.held > 0 {
                held.push((kind.clone(), window.held));
            }
            !is_over
        });
        held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    #[test]
    fn the_first_lines_are_written_and_the_rest_are_counted() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut quiet = Quiet::new(2, WINDOW);
        let told = [0, 1, 2, 59].map(|seconds| quiet.admit("worker 1 is dead", at(seconds)));
        assert_eq!(told, [Some(0), Some(0), None, None]);
        // Another kind is another matter.
        assert_eq!(quiet.admit("worker 2 is dead", at(3)), Some(0));
        assert_eq!(quiet.take_held(at(59)), []);
        assert_eq!(quiet.take_held(at(60)), [("worker 1 is dead", 2)]);
        assert_eq!(quiet.take_held(at(61)), vec![]);
        assert_eq!(quiet.admit("worker 1 is dead", at(62)), Some(0));
        assert_eq!(quiet.take_held(at(200)), []);
        assert!(quiet.kinds.is_empty(), "what is over is forgotten");
    }

    #[test]
    fn a_line_after_the_window_tells_what_nobody_took() {
        let start = Instant::now();
        let mut quiet = Quiet::new(1, WINDOW);
        let told = [0, 1, 2].map(|seconds| quiet.admit((), start + Duration::from_secs(seconds)));
        assert_eq!(told, [Some(0), None, None]);
        assert_eq!(quiet.admit((), start + WINDOW), Some(2));
        assert_eq!(quiet.take_held(start + 3 * WINDOW), []);
    }

    proptest! {
        #[test]
        fn each_line_is_written_or_told(
            lines in proptest::collection::vec((0u8..3, 0u64..40, any::<bool>()), 0..200),
            lines_max in 1u32..5,
        ) {
            let mut now = Instant::now();
            let mut quiet = Quiet::new(lines_max, WINDOW);
            let (mut written, mut told) = (0, 0);
            for &(kind, seconds, takes) in &lines {
                now += Duration::from_secs(seconds);
                if takes {
                    told += quiet.take_held(now).iter().map(|(_, held)| held).sum::<u64>();
                }
                if let Some(untold) = quiet.admit(kind, now) {
                    written += 1;
                    told += untold;
                }
            }
            told += quiet.take_held(now + WINDOW).iter().map(|(_, held)| held).sum::<u64>();
            prop_assert_eq!(written + told, lines.len() as u64);
        }
    }
}
