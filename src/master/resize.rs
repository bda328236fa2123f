//! How many workers there should be: the load, the bounds, and who moved them.

use std::time::{Duration, Instant};

use super::bounds::Bounds;
use super::supervise::Master;
use crate::protocol::lifeline::{Load, Resize};

/// The pool's size as it should be.
pub(super) struct Sizing {
    pub(super) bounds: Bounds,
    pub(super) want: u32,
    /// Why, in one line.
    pub(super) reason: String,
    load: Load,
}

impl Sizing {
    pub(super) fn new(bounds: Bounds) -> Self {
        let reason = "at workers.min until there is more to do".to_owned();
        Self { bounds, want: bounds.min, reason, load: Load::default() }
    }

    /// Under new bounds; what operators asked for before is forgotten.
    pub(super) fn rebound(&mut self, bounds: Bounds) {
        self.want = bounds.clamp(self.want);
        self.bounds = bounds;
    }
}

impl Master {
    /// The broker tells how much there is to do.
    pub(super) fn take_load(&mut self, load: Load, now: Instant) {
        for child in self.workers.iter_mut().filter_map(|slot| slot.child.as_mut()) {
            let busy = load.busy.iter().find(|(serial, _)| *serial == child.serial);
            child.in_flight = busy.map_or(0, |(_, in_flight)| *in_flight);
        }
        let urgent = load.ready > 0 && load.slots == 0;
        self.sizing.load = load;
        if urgent {
            self.resize(now);
        }
    }

    /// Decides anew.
    pub(super) fn resize(&mut self, _now: Instant) {
        let _ = Duration::ZERO;
        let want = self.sizing.bounds.clamp(self.sizing.want);
        if want != self.sizing.want {
            self.sizing.want = want;
            self.changed = true;
        }
    }

    /// An operator wants more or fewer workers.
    pub(super) fn operator_resizes(&mut self, resize: Resize) {
        let sizing = &mut self.sizing;
        sizing.bounds = sizing.bounds.resized(sizing.want, resize);
        sizing.want = sizing.bounds.clamp(sizing.want);
        sizing.reason = format!(
            "asked for: between {} and {} until the next reload",
            sizing.bounds.min, sizing.bounds.max
        );
        tracing::info!("scaled to {}: {}", sizing.want, sizing.reason);
        self.changed = true;
    }
}
