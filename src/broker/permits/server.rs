//! What is called: whether it is in service, and why not. Pure.

use super::breaker::{Breaker, Facts, State};

/// The longest wish to be left alone that is heeded: a day.
const SHUT_MS_MAX: i64 = 24 * 60 * 60 * 1000;

/// A provider, or one service of a tool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// Whose books its calls stand in.
    pub(crate) meter: String,
    pub(crate) breaker: Breaker,
    /// It asked everybody to stay away until then.
    closed_until_ms: Option<i64>,
    /// Its budget, or that of all, is spent until then.
    pub(crate) spent_until_ms: Option<i64>,
}

impl Server {
    /// As an earlier broker left it.
    pub(crate) fn restore(&mut self, breaker: Facts, closed_until_ms: Option<i64>) {
        self.breaker.restore(breaker);
        self.closed_until_ms = closed_until_ms;
    }

    /// What must outlive the broker.
    pub(crate) fn facts(&self) -> (Facts, Option<i64>) {
        (self.breaker.facts(), self.closed_until_ms)
    }

    /// It asks everybody to stay away. A second wish never shortens the first.
    pub(crate) fn close_for(&mut self, closed_ms: u64, now_ms: i64) {
        let until_ms = now_ms.saturating_add(i64::try_from(closed_ms).unwrap_or(i64::MAX));
        self.closed_until_ms = self.closed_until_ms.max(Some(until_ms));
    }

    /// A clock that was set back must not keep it shut for days.
    pub(crate) fn heed_the_clock(&mut self, now_ms: i64) {
        self.breaker.heed_the_clock(now_ms);
        let latest_ms = now_ms.saturating_add(SHUT_MS_MAX);
        self.closed_until_ms = self.closed_until_ms.map(|until_ms| until_ms.min(latest_ms));
    }

    /// Whether it may be called.
    pub(crate) fn is_in_service(&self, now_ms: i64) -> bool {
        self.shut_until(now_ms).is_none() && self.breaker.admits(now_ms)
    }

    fn shut_until(&self, now_ms: i64) -> Option<i64> {
        self.closed_until_ms.max(self.spent_until_ms).filter(|until_ms| *until_ms > now_ms)
    }

    /// Until when it asked to be left alone.
    pub(crate) fn closed_until_ms(&self, now_ms: i64) -> Option<i64> {
        self.closed_until_ms.filter(|until_ms| *until_ms > now_ms)
    }

    /// When it is in service again, if only time is missing.
    pub(crate) fn opens_at(&self, now_ms: i64) -> Option<i64> {
        let breaker = self.breaker.facts().open_until_ms.filter(|until_ms| *until_ms > now_ms);
        self.shut_until(now_ms).max(breaker)
    }

    /// Why it is not called, one sentence.
    pub(crate) fn why_not(&self, name: &str, now_ms: i64) -> String {
        let left_s = |until_ms: i64| ((until_ms - now_ms).max(0) + 999) / 1000;
        if let Some(until_ms) = self.spent_until_ms.filter(|until_ms| *until_ms > now_ms) {
            return format!("{name}: the daily budget is spent for {} s more", left_s(until_ms));
        }
        if let Some(until_ms) = self.closed_until_ms(now_ms) {
            return format!("{name} asked to be left alone for {} s more", left_s(until_ms));
        }
        let Facts { failures, open_until_ms, .. } = self.breaker.facts();
        match self.breaker.state(now_ms) {
            State::Open => {
                let left_s = left_s(open_until_ms.unwrap_or(now_ms));
                format!(
                    "{name} is left alone for {left_s} s more after {failures} failures in a row"
                )
            }
            _ => format!("{name} is being tried by one call after {failures} failures in a row"),
        }
    }
}
