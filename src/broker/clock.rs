//! What time brings: tasks that become due, tasks that expire, results that grow old.

use std::time::Duration;

use super::pending::Pending;
use super::store::writer::Op;
use super::{Core, now_ms};

/// Tasks that one look at the clock moves; more are moved by the next turn.
const MOVED_TASKS_MAX: u32 = 512;
/// Results that are forgotten at once, so that a prune never stalls the queue.
const PRUNED_TASKS_MAX: u32 = 256;
/// Between two looks for old results, or less if conversations grow old sooner.
const PRUNE_EVERY_MS: i64 = 30_000;
/// And at least this.
const PRUNE_EVERY_MS_MIN: i64 = 1000;
/// Between two looks while there are more.
const PRUNE_AGAIN_MS: i64 = 20;
/// How long a result may wait for somebody else's commit to carry it along.
const SYNC_AFTER_MS: i64 = 2;
/// The longest sleep of the loop: deaths that are overdue, and clocks that jump.
const SLEEP_MS_MAX: i64 = 500;

/// When to look next, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    due_at_ms: Option<i64>,
    expiry_at_ms: Option<i64>,
    prune_at_ms: i64,
    sync_at_ms: Option<i64>,
    promoting: bool,
    expiring: bool,
    pruning: bool,
}

impl Clock {
    /// A task becomes due then.
    pub(crate) fn due(&mut self, at_ms: Option<i64>) {
        self.due_at_ms = earlier(self.due_at_ms, at_ms);
    }

    /// A task expires then.
    pub(crate) fn expires(&mut self, at_ms: Option<i64>) {
        self.expiry_at_ms = earlier(self.expiry_at_ms, at_ms);
    }

    pub(crate) fn promoted(&mut self, next_at_ms: Option<i64>) {
        self.promoting = false;
        self.due(next_at_ms);
    }

    pub(crate) fn expired(&mut self, next_at_ms: Option<i64>) {
        self.expiring = false;
        self.expires(next_at_ms);
    }

    /// `idle_ms`: after that time a conversation is old.
    pub(crate) fn pruned(&mut self, count: u32, idle_ms: Option<i64>, now_ms: i64) {
        self.pruning = false;
        let every_ms = idle_ms.unwrap_or(PRUNE_EVERY_MS).clamp(PRUNE_EVERY_MS_MIN, PRUNE_EVERY_MS);
        let again = count == PRUNED_TASKS_MAX;
        self.prune_at_ms = now_ms + if again { PRUNE_AGAIN_MS } else { every_ms };
    }

    /// Whether there are commits that do not hold yet.
    pub(crate) fn unsynced(&mut self, unsynced: bool, now_ms: i64) {
        let sync_at_ms = self.sync_at_ms.unwrap_or(now_ms + SYNC_AFTER_MS);
        self.sync_at_ms = unsynced.then_some(sync_at_ms);
    }

    /// How long the loop may sleep.
    pub(crate) fn sleep(&self, now_ms: i64) -> Duration {
        let next = earlier(self.due_at_ms, self.expiry_at_ms);
        let next = earlier(next, self.sync_at_ms).unwrap_or(i64::MAX);
        let next = if self.pruning { next } else { next.min(self.prune_at_ms) };
        let sleep_ms = next.saturating_sub(now_ms).clamp(0, SLEEP_MS_MAX);
        Duration::from_millis(sleep_ms.unsigned_abs())
    }
}

fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Core {
    /// Asks the store for everything whose time has come.
    pub(super) fn look_at_the_clock(&mut self) {
        let now_ms = now_ms();
        self.heed_the_day(now_ms);
        let limit = MOVED_TASKS_MAX;
        if !self.clock.promoting && self.clock.due_at_ms.is_some_and(|at| at <= now_ms) {
            self.clock.promoting = true;
            self.clock.due_at_ms = None;
            self.store(Op::Promote { now_ms, limit }, Pending::Promote);
        }
        if !self.clock.expiring && self.clock.expiry_at_ms.is_some_and(|at| at <= now_ms) {
            self.clock.expiring = true;
            self.clock.expiry_at_ms = None;
            self.store(Op::Expire { now_ms, limit }, Pending::Expire);
        }
        if self.clock.sync_at_ms.is_some_and(|at| at <= now_ms) {
            self.clock.sync_at_ms = None;
            self.store(Op::Sync, Pending::Sync);
        }
        if !self.clock.pruning && self.clock.prune_at_ms <= now_ms {
            self.clock.pruning = true;
            let ttl_ms =
                i64::try_from(self.config.queue.result_ttl.as_millis()).unwrap_or(i64::MAX);
            let finished_before_ms = now_ms.saturating_sub(ttl_ms);
            let idle_before_ms = self.sessions_idle_ms().map(|idle| now_ms.saturating_sub(idle));
            let limit = PRUNED_TASKS_MAX;
            let prune = Op::Prune { finished_before_ms, idle_before_ms, limit };
            self.store(prune, Pending::Prune);
        }
    }
}
