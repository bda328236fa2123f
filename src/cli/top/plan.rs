//! Which part gets how many rows, in any window. Pure.

/// From this height on there are gaps between the parts.
const GAPS_FROM: u16 = 16;
/// From this height on the keys are told.
const KEYS_FROM: u16 = 10;

/// Rows of each part, from the top. Their sum is the window's height at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The daemon as a whole, the most important line first.
    pub(super) head: u16,
    /// The table of workers with its header, if there is room for one.
    pub(super) workers: u16,
    /// The events with their header, if there is room for one.
    pub(super) events: u16,
    /// Empty rows above the workers, and above the events.
    pub(super) gap: u16,
    /// The keys.
    pub(super) keys: u16,
}

impl Plan {
    /// For a window of `height` rows, and what each part would like to have. The head comes first,
    /// up to half of a small window; then workers, but for a third that is for events.
    pub(super) fn of(height: u16, head: u16, workers: u16, events: u16) -> Self {
        let gap = u16::from(height >= GAPS_FROM);
        let keys = u16::from(height >= KEYS_FROM);
        let body = height - keys;
        let head = head.min((body / 2).max(1)).min(body);
        let body = (body - head).saturating_sub(2 * gap);
        // Fewer rows would hold no event that can be understood.
        let reserved = if body < 5 { 0 } else { events.min((body / 3).max(2)) };
        let workers = workers.min(body - reserved);
        Self { head, workers, events: body - workers, gap, keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_windows_show_what_matters_first() {
        // Height, then rows of head, workers, events, keys, of 6, 5 and 4 wanted.
        let table = [
            (0, [0, 0, 0, 0]),
            (1, [1, 0, 0, 0]),
            (2, [1, 1, 0, 0]),
            (5, [2, 3, 0, 0]),
            (10, [4, 3, 2, 1]),
            (15, [6, 5, 3, 1]),
            (24, [6, 5, 10, 1]),
        ];
        for (height, [head, workers, events, keys]) in table {
            let plan = Plan::of(height, 6, 5, 4);
            let found = [plan.head, plan.workers, plan.events, plan.keys];
            assert_eq!(found, [head, workers, events, keys], "{height}");
        }
    }

    #[test]
    fn the_parts_never_exceed_the_window() {
        for height in 0..60 {
            for wanted in 0..40 {
                let plan = Plan::of(height, 3 + wanted % 5, wanted, 40 - wanted);
                let rows = plan.head + plan.workers + plan.events + 2 * plan.gap + plan.keys;
                assert!(rows <= height, "{height} {wanted} {plan:?}");
            }
        }
    }
}
