//! How far the pool may shrink and grow, and what operators do to that: pure.

use crate::protocol::lifeline::Resize;

/// The floor and the ceiling of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

/// Workers at most, whatever is asked for; as `workers.max` in the configuration.
const WORKERS_MAX: u32 = 1024;

impl Bounds {
    /// The nearest number of workers that is allowed.
    pub(crate) fn clamp(self, want: u32) -> u32 {
        want.clamp(self.min, self.max)
    }

    /// Moves the floor or the ceiling so that a pool of `want` becomes what the operator asks for,
    /// and the scale rule does not undo it. It holds until the next reload.
    pub(crate) fn resized(self, want: u32, resize: Resize) -> Self {
        match resize {
            Resize::To(count) => {
                let count = count.clamp(1, WORKERS_MAX);
                Self { min: count, max: count }
            }
            Resize::More(count) => {
                let min = want.saturating_add(count).min(WORKERS_MAX);
                Self { min, max: self.max.max(min) }
            }
            // As with Gunicorn, the last one stays.
            Resize::Fewer(count) => {
                let max = want.saturating_sub(count).max(1);
                Self { min: self.min.min(max), max }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_ask_for_moves_what_is_in_its_way() {
        let bounds = |min, max| Bounds { min, max };
        let cases = [
            (bounds(2, 4), 2, Resize::More(1), bounds(3, 4)),
            (bounds(2, 4), 4, Resize::More(1), bounds(5, 5)),
            (bounds(2, 4), 3, Resize::More(2), bounds(5, 5)),
            (bounds(2, 4), 2, Resize::Fewer(1), bounds(1, 1)),
            (bounds(2, 4), 4, Resize::Fewer(1), bounds(2, 3)),
            (bounds(2, 4), 3, Resize::Fewer(9), bounds(1, 1)),
            (bounds(0, 4), 0, Resize::Fewer(1), bounds(0, 1)),
            (bounds(2, 4), 3, Resize::To(7), bounds(7, 7)),
            (bounds(2, 4), 3, Resize::To(0), bounds(1, 1)),
            (bounds(2, 4), 3, Resize::More(u32::MAX), bounds(1024, 1024)),
        ];
        for (before, want, resize, after) in cases {
            assert_eq!(before.resized(want, resize), after, "{before:?} {want} {resize:?}");
        }
    }
}
