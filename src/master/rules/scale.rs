//! How many workers there should be: pure, from what the broker reports.
//!
//! A task that waits for a model costs a slot and hardly any CPU, so the measure is slots, and it
//! is what is in flight now: a measure of what was completed reads nothing while tasks of a minute
//! run. The pool grows when its slots are 80 % full, at a rate that doubles, and shrinks when it
//! could do at 60 % what it had to do at any moment of the last minute, one worker at a time. In
//! between it stays as it is, so a constant load never moves it twice.
//!
//! The rule keeps its own target rather than counting who lives: a worker that died is still
//! wanted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::bounds::Bounds;

#[cfg(test)]
mod tests;

/// How full slots may be, as a fraction, before there should be more of them.
const FULL_UP: (u64, u64) = (4, 5);
/// How full they must still leave a smaller pool.
const FULL_DOWN: (u64, u64) = (3, 5);
/// No free slot for this long calls for more, though nothing waits yet.
const FULL_MAX: Duration = Duration::from_secs(2);
/// Ready work that has waited longer calls for more.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Between two steps up: a tick of a second, which may come a little early.
const STEP_UP: Duration = Duration::from_millis(900);
/// Workers of one step up at most.
const RATE_MAX: u32 = 8;
/// Steps down in a window at most.
const STEPS_DOWN: u32 = 6;
/// How far flapping lengthens the window: this many times.
const WINDOW_FACTOR_MAX: u32 = 10;
/// How long a reason stands, unless the target changes: whoever watches is told of each change.
const REASON_MIN: Duration = Duration::from_secs(5);

/// What the broker last reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Tasks that could run now if there were a slot for them.
    pub(crate) ready: u64,
    /// Tasks that hold slots of workers that do not drain.
    pub(crate) in_flight: u64,
    /// How long the oldest of the ready ones has waited.
    pub(crate) oldest_wait: Duration,
    /// Slots that the providers' limits leave any use for; absent: no limit.
    pub(crate) ceiling: Option<u64>,
}

/// The pool as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolNow {
    /// Workers that are ready and do not drain.
    pub(crate) ready: u32,
    /// Workers that were forked and are not ready yet.
    pub(crate) booting: u32,
    /// Workers that drain and could be taken back.
    pub(crate) draining: u32,
    /// Slots of the ready ones together. A worker whose loop lags has fewer than it began with.
    pub(crate) slots: u64,
    /// Slots of one new worker.
    pub(crate) concurrency: u32,
}

/// What the rule says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Workers, booting or ready and not draining, that there should be now.
    pub(crate) want: u32,
    /// Why, on one line. It changes with `want`, and otherwise only every few seconds.
    pub(crate) reason: String,
}

/// The rule, and what it remembers.
pub(crate) struct Scale {
    /// The window as it was configured.
    down_after: Duration,
    /// The window as flapping has lengthened it.
    window: Duration,
    target: u32,
    /// What a pool that is 60 % full would have needed, over the window; falling, so that the
    /// first is the most.
    needed: VecDeque<(Instant, u32)>,
    full_since: Option<Instant>,
    /// Workers of the next step up.
    rate: u32,
    last_up: Instant,
    last_down: Option<Instant>,
    /// Since the last step down, or the calm window that was last counted; absent when an up has
    /// followed.
    calm_since: Option<Instant>,
    reason: String,
    reason_at: Instant,
}

impl Scale {
    /// A rule for a pool that should have `target` workers now. It shrinks nothing before
    /// `down_after` has passed.
    pub(crate) fn new(down_after: Duration, target: u32, now: Instant) -> Self {
        Self {
            down_after,
            window: down_after,
            target,
            needed: VecDeque::new(),
            full_since: None,
            rate: 1,
            last_up: now,
            last_down: None,
            calm_since: None,
            reason: String::new(),
            reason_at: now,
        }
    }

    /// Goes on from a pool of this size, as another image of the master had it.
    pub(crate) fn set_target(&mut self, target: u32) {
        self.target = target;
    }

    /// Changes the window, and forgets what flapping made of it.
    pub(crate) fn set_down_after(&mut self, down_after: Duration) {
        self.down_after = down_after;
        self.window = down_after;
    }

    /// Decides. To be asked about once a second, and whenever there is something new.
    pub(crate) fn decide(
        &mut self,
        load: &Load,
        pool: &PoolNow,
        bounds: Bounds,
        now: Instant,
    ) -> Decision {
        let demand = demand(load);
        let need = workers_for(demand, FULL_UP, pool);
        self.observe(load, pool, bounds.max, now);
        let min = bounds.min.min(bounds.max);
        let (mut target, mut reason) = (self.target, None);
        if target < min {
            (target, reason) = (min, Some(format!("up to {min}: min is {min}")));
            self.last_up = now;
        } else if target > bounds.max {
            let max = bounds.max;
            (target, reason) = (max, Some(format!("down to {max}: max is {max}")));
        }
        if let Some(step) = self.step_up(target, need.min(bounds.max), load, pool, now) {
            target += step;
            reason = Some(format!("up to {target}: {}", in_words(load)));
        } else if target > min && self.may_step_down(target, now) {
            target -= 1;
            self.last_down = Some(now);
            self.calm_since = Some(now);
            reason = Some(self.why_down(target));
        }
        self.calm_down(now);
        self.target = target;
        let stale = self.reason.is_empty() || now >= self.reason_at + REASON_MIN;
        let steady = || stale.then(|| steady_reason(load, pool, need, bounds, target));
        if let Some(reason) = reason.or_else(steady).filter(|reason| *reason != self.reason) {
            (self.reason, self.reason_at) = (reason, now);
        }
        Decision { want: target, reason: self.reason.clone() }
    }

    /// Takes the moment into what is remembered.
    fn observe(&mut self, load: &Load, pool: &PoolNow, max: u32, now: Instant) {
        if load.in_flight < pool.slots {
            self.full_since = None;
        } else {
            self.full_since.get_or_insert(now);
        }
        // Falling and within bounds, the memory is never longer than the pool is large.
        let needed = workers_for(demand(load), FULL_DOWN, pool).min(max);
        while self.needed.back().is_some_and(|&(_, earlier)| earlier <= needed) {
            self.needed.pop_back();
        }
        self.needed.push_back((now, needed));
        while self.needed.front().is_some_and(|&(at, _)| at + self.window < now) {
            self.needed.pop_front();
        }
    }

    /// How many workers more, if it is time.
    fn step_up(
        &mut self,
        target: u32,
        need: u32,
        load: &Load,
        pool: &PoolNow,
        now: Instant,
    ) -> Option<u32> {
        let missing = need.checked_sub(target).filter(|&missing| missing > 0);
        let Some(missing) = missing else {
            self.rate = 1;
            return None;
        };
        let waits = load.ready > 0 && load.oldest_wait > WAIT_MAX;
        let full = self.full_since.is_some_and(|since| now >= since + FULL_MAX);
        let due = (waits || full) && now >= self.last_up + STEP_UP;
        // Nobody is there at all: whoever submits now would wait for nothing.
        let first = target == 0 && load.ready > 0;
        if !due && !first {
            return None;
        }
        // Whoever drains is there already, and costs no fork.
        let step = missing.min(self.rate.saturating_add(pool.draining));
        self.rate = (self.rate * 2).min(RATE_MAX);
        self.last_up = now;
        let after_down = self.calm_since.take().and(self.last_down);
        if after_down.is_some_and(|at| now < at + self.window) {
            let longest = self.down_after.saturating_mul(WINDOW_FACTOR_MAX);
            self.window = (self.window + self.down_after / 2).min(longest);
        }
        Some(step)
    }

    fn may_step_down(&self, target: u32, now: Instant) -> bool {
        let paused = self.last_down.is_none_or(|at| now >= at + self.window / STEPS_DOWN);
        paused && now >= self.last_up + self.window && self.most_needed() < target
    }

    /// The most that the window saw.
    fn most_needed(&self) -> u32 {
        self.needed.front().map_or(0, |&(_, needed)| needed)
    }

    /// Takes back what flapping did to the window, a step for each window in which a smaller pool
    /// proved right. Time alone proves nothing: it would bring the flapping back.
    fn calm_down(&mut self, now: Instant) {
        if self.calm_since.is_some_and(|since| now >= since + self.window) {
            let shorter = self.window.saturating_sub(self.down_after / 2);
            self.window = shorter.max(self.down_after);
            self.calm_since = Some(now);
        }
    }

    fn why_down(&self, target: u32) -> String {
        let window = seconds(self.window);
        match self.most_needed() {
            0 => format!("down to {target}: nothing to do in the last {window}"),
            most => format!("down to {target}: no more than {most} needed in the last {window}"),
        }
    }
}

/// Slots that there is work for. What runs beyond a ceiling that was lowered still runs, and a
/// ceiling of nothing leaves one to try with.
fn demand(load: &Load) -> u64 {
    let all = load.in_flight.saturating_add(load.ready);
    let ceiling = load.ceiling.map_or(u64::MAX, |ceiling| ceiling.max(1));
    all.min(ceiling).max(load.in_flight)
}

/// Workers that serve `demand` with their slots no fuller than the fraction `full`. What the ready
/// ones do not have comes from new ones with all their slots, so that one that lags does not make
/// a crowd necessary.
fn workers_for(demand: u64, full: (u64, u64), pool: &PoolNow) -> u32 {
    let needed = (u128::from(demand) * u128::from(full.1)).div_ceil(u128::from(full.0));
    let (slots, ready) = (u128::from(pool.slots), u128::from(pool.ready));
    let workers = match needed.checked_sub(slots) {
        Some(more) => ready + more.div_ceil(u128::from(pool.concurrency.max(1))),
        None => (needed * ready).div_ceil(slots),
    };
    // Idle workers without a slot are not needed either.
    if demand == 0 { 0 } else { u32::try_from(workers).unwrap_or(u32::MAX).max(1) }
}

/// Why nothing changes.
fn steady_reason(load: &Load, pool: &PoolNow, need: u32, bounds: Bounds, target: u32) -> String {
    let all = load.in_flight.saturating_add(load.ready);
    match load.ceiling {
        Some(ceiling) if all > ceiling => {
            format!("limited by providers to {ceiling}: {} ready", load.ready)
        }
        _ if all == 0 => "idle".to_owned(),
        _ if need > bounds.max && target == bounds.max => {
            format!("at max {target}: {}", in_words(load))
        }
        _ => format!("steady: {} of {} slots busy", load.in_flight, pool.slots),
    }
}

fn in_words(load: &Load) -> String {
    let Load { ready, in_flight, .. } = load;
    match ready {
        0 => format!("{in_flight} in flight, nothing waits"),
        _ => {
            let waits = load.oldest_wait.as_secs_f64();
            format!("{ready} ready, {in_flight} in flight, oldest waits {waits:.1} s")
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}
