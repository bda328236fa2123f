//! How many workers there should be: the load, the bounds, and who moved them.

use std::time::{Duration, Instant};

use super::rules::bounds::Bounds;
use super::rules::roll::Member;
use super::rules::scale::{self, PoolNow, Scale};
use super::supervise::Master;
use crate::config::Workers;
use crate::protocol::lifeline::{Load, Resize};

/// The pool's size as it should be.
pub(super) struct Sizing {
    pub(super) bounds: Bounds,
    /// An operator has moved them.
    moved: bool,
    pub(super) want: u32,
    /// Why, in one line.
    pub(super) reason: String,
    rule: Scale,
    /// What the broker last told.
    load: Load,
}

impl Sizing {
    pub(super) fn new(workers: &Workers, now: Instant) -> Self {
        Self {
            bounds: Bounds { min: workers.min, max: workers.max },
            moved: false,
            want: workers.min,
            reason: "at the start".to_owned(),
            rule: Scale::new(workers.scale_down_after, workers.min, now),
            load: Load::default(),
        }
    }

    /// As an image before this one had it.
    pub(super) fn adopt(&mut self, want: u32, moved: Option<(u32, u32)>) {
        if let Some((min, max)) = moved {
            self.bounds = Bounds { min, max };
            self.moved = true;
        }
        self.want = self.bounds.clamp(want);
        self.rule.set_target(self.want);
    }

    /// The bounds, where an operator has moved them.
    pub(super) fn moved(&self) -> Option<(u32, u32)> {
        self.moved.then_some((self.bounds.min, self.bounds.max))
    }

    /// Tasks that run, and tasks that could.
    pub(super) fn load(&self) -> (u64, u64) {
        (self.load.in_flight, self.load.ready)
    }

    /// Under a new configuration; what operators asked for before is forgotten.
    pub(super) fn rebound(&mut self, workers: &Workers) {
        self.bounds = Bounds { min: workers.min, max: workers.max };
        self.moved = false;
        self.want = self.bounds.clamp(self.want);
        self.rule.set_down_after(workers.scale_down_after);
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

    /// Decides anew how many workers there should be.
    pub(super) fn resize(&mut self, now: Instant) {
        // What a broker said that is gone by now is no reason to grow or shrink.
        let informed = self.broker.child.as_ref().is_some_and(|child| child.ready_at.is_some());
        if self.phase.is_stopping() || !informed {
            return;
        }
        let pool = self.pool_now();
        let sizing = &mut self.sizing;
        let load = scale::Load {
            ready: sizing.load.ready,
            in_flight: sizing.load.in_flight,
            oldest_wait: Duration::from_millis(sizing.load.oldest_wait_ms),
            ceiling: sizing.load.ceiling,
        };
        let decision = sizing.rule.decide(&load, &pool, sizing.bounds, now);
        if decision.want != sizing.want {
            tracing::info!("{}", decision.reason);
        }
        if (decision.want, &decision.reason) != (sizing.want, &sizing.reason) {
            (sizing.want, sizing.reason) = (decision.want, decision.reason);
            self.changed = true;
        }
    }

    fn pool_now(&self) -> PoolNow {
        let members = self.members();
        let count = |which: fn(&Member) -> bool| {
            let members = members.iter().filter(|member| !member.ending && which(member));
            members.count() as u32
        };
        PoolNow {
            ready: count(|member| member.ready && !member.draining),
            booting: count(|member| !member.ready && !member.draining),
            draining: count(|member| member.draining && !member.stale),
            slots: self.sizing.load.slots,
            concurrency: self.boot.config.workers.concurrency,
        }
    }

    /// An operator wants more or fewer workers.
    pub(super) fn operator_resizes(&mut self, resize: Resize) {
        let sizing = &mut self.sizing;
        sizing.bounds = sizing.bounds.resized(sizing.want, resize);
        sizing.moved = true;
        sizing.want = sizing.bounds.clamp(sizing.want);
        let Bounds { min, max } = sizing.bounds;
        tracing::info!("asked for: {} workers, between {min} and {max}", sizing.want);
        self.changed = true;
        self.resize(Instant::now());
    }
}
