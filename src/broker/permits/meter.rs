//! How much goes to one provider or tool: calls at once, requests and tokens a minute. Pure.
//!
//! Requests and tokens are counted in a sliding window: what was granted in the last 61 s, by the
//! tenth of a second, never passes the limit. So no 60 s see more than the limit, also where calls
//! arrive up to a second later than they were granted; there is no burst on top. The price is a
//! sixty-first of the limit.

use std::collections::VecDeque;

/// What is counted together.
const SLOT_MS: i64 = 100;
/// How long it counts: a minute, and what calls may be late by.
const WINDOW_MS: i64 = 61_000;

/// The limits of a provider or a tool; absent: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_concurrent: Option<u32>,
    /// Requests a minute.
    pub(crate) rpm: Option<u32>,
    /// Tokens a minute.
    pub(crate) tpm: Option<u64>,
}

/// What was granted in one tenth of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Tenths of a second since 1970.
    pub(crate) at: i64,
    pub(crate) requests: u64,
    pub(crate) tokens: u64,
}

/// The books of one provider or tool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    pub(crate) limits: Limits,
    pub(crate) in_flight: u32,
    window: VecDeque<Slot>,
    /// The sums of the window.
    requests: u64,
    tokens: u64,
}

impl Meter {
    /// Takes in what an earlier broker had granted.
    pub(crate) fn restore(&mut self, slot: Slot) {
        self.change(slot.at, |found| {
            found.requests += slot.requests;
            found.tokens = found.tokens.saturating_add(slot.tokens);
        });
    }

    /// Whether a call that takes so many tokens may go now. One that takes more than the whole
    /// limit goes when the window is empty of tokens: it would wait for ever otherwise.
    pub(crate) fn admits(&mut self, tokens: u64, now_ms: i64) -> bool {
        self.forget(now_ms);
        let Limits { max_concurrent, rpm, tpm } = self.limits;
        max_concurrent.is_none_or(|max| self.in_flight < max)
            && rpm.is_none_or(|rpm| self.requests < u64::from(rpm))
            && tpm.is_none_or(|tpm| self.tokens == 0 || self.tokens.saturating_add(tokens) <= tpm)
    }

    /// Whether only tokens are missing for a call that takes so many.
    pub(crate) fn is_short(&self, tokens: u64, now_ms: i64) -> bool {
        let (_, used) = self.used(now_ms);
        let short = |tpm| used > 0 && used.saturating_add(tokens) > tpm;
        self.limits.tpm.is_some_and(short) && self.room_but_for_tokens(now_ms) > 0
    }

    /// How many more calls could go now, if they took no tokens.
    pub(crate) fn room(&self, now_ms: i64) -> u64 {
        let (_, tokens) = self.used(now_ms);
        let used_up = self.limits.tpm.is_some_and(|tpm| tokens >= tpm);
        if used_up { 0 } else { self.room_but_for_tokens(now_ms) }
    }

    fn room_but_for_tokens(&self, now_ms: i64) -> u64 {
        let (requests, _) = self.used(now_ms);
        let left = |max: Option<u32>, used: u64| {
            max.map_or(u64::MAX, |max| u64::from(max).saturating_sub(used))
        };
        let Limits { max_concurrent, rpm, .. } = self.limits;
        left(max_concurrent, self.in_flight.into()).min(left(rpm, requests))
    }

    /// Counts a call that goes now, and gives its place in the window.
    pub(crate) fn take(&mut self, tokens: u64, now_ms: i64) -> i64 {
        self.in_flight += 1;
        let at = slot_at(now_ms);
        self.change(at, |slot| {
            slot.requests += 1;
            slot.tokens = slot.tokens.saturating_add(tokens);
        });
        at
    }

    /// Counts a call that an earlier broker had let go and that is under way.
    pub(crate) fn hold(&mut self) {
        self.in_flight += 1;
    }

    /// A call has ended.
    pub(crate) fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Puts right what a call was counted for. What has left the window stays as it was.
    pub(crate) fn correct(&mut self, at: i64, requests: i64, tokens: i64) {
        if self.window.iter().any(|slot| slot.at == at) {
            self.change(at, |slot| {
                slot.requests = slot.requests.saturating_add_signed(requests);
                slot.tokens = slot.tokens.saturating_add_signed(tokens);
            });
        }
    }

    /// Whether anything is counted over time.
    pub(crate) fn is_timed(&self) -> bool {
        self.limits.rpm.is_some() || self.limits.tpm.is_some()
    }

    /// Requests and tokens in the window.
    pub(crate) fn used(&self, now_ms: i64) -> (u64, u64) {
        let gone = self.window.iter().take_while(|slot| ends_at(slot.at) <= now_ms);
        gone.fold((self.requests, self.tokens), |(requests, tokens), slot| {
            (requests - slot.requests, tokens - slot.tokens)
        })
    }

    /// When there will have been room for so many calls, with so many tokens each, if others keep
    /// away: what is in the window leaves it, and a window is filled after the other.
    pub(crate) fn room_for_at(&self, calls: u64, tokens: u64, now_ms: i64) -> i64 {
        let Limits { rpm, tpm, .. } = self.limits;
        let live = || self.window.iter().filter(|slot| ends_at(slot.at) > now_ms);
        let at = |limit: u64, wanted: u64, of: fn(&Slot) -> u64| {
            let used: u64 = live().map(of).sum();
            let mut missing = used.saturating_add(wanted).saturating_sub(limit);
            let mut last_ms = now_ms;
            for slot in live() {
                if missing == 0 {
                    return last_ms;
                }
                missing = missing.saturating_sub(of(slot));
                last_ms = ends_at(slot.at);
            }
            let windows = i64::try_from(missing.div_ceil(limit.max(1))).unwrap_or(i64::MAX);
            last_ms.saturating_add(windows.saturating_mul(WINDOW_MS))
        };
        let by_calls = rpm.map(|rpm| at(rpm.into(), calls, |slot| slot.requests));
        let by_tokens = tpm.map(|tpm| at(tpm, calls.saturating_mul(tokens), |slot| slot.tokens));
        by_calls.max(by_tokens).unwrap_or(now_ms)
    }

    /// Why a call waits, one sentence; `None` if it need not.
    pub(crate) fn why_full(&self, name: &str, tokens: u64, now_ms: i64) -> Option<String> {
        let Limits { max_concurrent, rpm, tpm } = self.limits;
        let (requests, used) = self.used(now_ms);
        if let Some(max) = max_concurrent.filter(|max| self.in_flight >= *max) {
            return Some(format!("{name}: all of its {max} calls at once are under way"));
        }
        if let Some(rpm) = rpm.filter(|rpm| requests >= u64::from(*rpm)) {
            return Some(format!("{name}: its {rpm} requests a minute are used up"));
        }
        let tpm = tpm.filter(|tpm| used > 0 && used.saturating_add(tokens) > *tpm)?;
        Some(format!(
            "{name}: {used} of its {tpm} tokens a minute are used up, {tokens} are needed"
        ))
    }

    /// When the window next has more room, if it is not empty.
    pub(crate) fn eases_at(&self, now_ms: i64) -> Option<i64> {
        if !self.is_timed() {
            return None;
        }
        self.window.iter().map(|slot| ends_at(slot.at)).find(|ends_at| *ends_at > now_ms)
    }

    fn change(&mut self, at: i64, change: impl FnOnce(&mut Slot)) {
        // Nearly always the last: time goes on. A clock that was set back makes older ones.
        let place = self.window.partition_point(|slot| slot.at < at);
        if self.window.get(place).is_none_or(|slot| slot.at != at) {
            self.window.insert(place, Slot { at, ..Slot::default() });
        }
        let slot = &mut self.window[place];
        self.requests -= slot.requests;
        self.tokens -= slot.tokens;
        change(slot);
        self.requests += slot.requests;
        self.tokens += slot.tokens;
    }

    fn forget(&mut self, now_ms: i64) {
        while let Some(slot) = self.window.front().filter(|slot| ends_at(slot.at) <= now_ms) {
            self.requests -= slot.requests;
            self.tokens -= slot.tokens;
            self.window.pop_front();
        }
        // A clock that was set back by hours would close the gate for hours.
        let last = now_ms.saturating_add(WINDOW_MS).div_euclid(SLOT_MS);
        while let Some(slot) = self.window.back().filter(|slot| slot.at > last) {
            self.requests -= slot.requests;
            self.tokens -= slot.tokens;
            self.window.pop_back();
        }
    }
}

/// The tenth of a second that this time is in.
pub(super) fn slot_at(now_ms: i64) -> i64 {
    now_ms.div_euclid(SLOT_MS)
}

/// The oldest tenth of a second that still counts.
pub(crate) fn oldest_slot(now_ms: i64) -> i64 {
    (now_ms - WINDOW_MS).div_euclid(SLOT_MS) - 1
}

fn ends_at(slot: i64) -> i64 {
    (slot + 1) * SLOT_MS + WINDOW_MS - SLOT_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(max_concurrent: Option<u32>, rpm: Option<u32>, tpm: Option<u64>) -> Meter {
        Meter { limits: Limits { max_concurrent, rpm, tpm }, ..Meter::default() }
    }

    #[test]
    fn calls_at_once() {
        let mut meter = limits(Some(2), None, None);
        assert_eq!(meter.room(0), 2);
        meter.take(0, 0);
        meter.take(0, 0);
        assert!(!meter.admits(0, 0) && meter.room(0) == 0);
        meter.release();
        assert!(meter.admits(0, 0));
    }

    #[test]
    fn requests_come_back_after_a_minute_and_a_second() {
        let mut meter = limits(None, Some(2), None);
        meter.take(0, 1000);
        meter.take(0, 1500);
        assert_eq!(meter.eases_at(1500), Some(62_000));
        assert_eq!(meter.eases_at(62_000), Some(62_500), "what is past does not count");
        assert!(!meter.admits(0, 61_999) && meter.admits(0, 62_000));
        assert_eq!((meter.room(62_000), meter.room(62_500)), (1, 2));
    }

    #[test]
    fn tokens_are_counted_as_estimated_and_put_right() {
        let mut meter = limits(None, None, Some(100));
        let at = meter.take(80, 0);
        assert!(!meter.admits(30, 0) && meter.admits(20, 0));
        meter.correct(at, 0, 10 - 80);
        assert!(meter.admits(90, 0) && !meter.admits(91, 0));
        meter.correct(at, 0, 200);
        assert!(!meter.admits(0, 0) && meter.room(0) == 0, "more than was thought");
        assert!(meter.admits(1000, 61_100), "larger than the limit: alone");
        meter.correct(at, 5, 5);
        assert_eq!(meter.used(61_100), (0, 0), "long gone");
    }

    #[test]
    fn a_clock_that_is_set_back_closes_nothing_for_long() {
        let mut meter = limits(None, Some(1), None);
        meter.take(0, 10_000_000);
        assert!(meter.admits(0, 0));
        meter.take(0, 1000);
        meter.take(0, 500);
        assert_eq!(meter.used(1000), (2, 0));
        assert_eq!(meter.used(61_600), (1, 0));
    }

    proptest! {
        /// Whoever asks whenever: no 60 s hold more than the limit, and whoever always asks gets
        /// nearly all of it.
        #[test]
        fn no_minute_passes_the_limit(
            rpm in 1u32..200,
            gaps_ms in prop::collection::vec(prop_oneof![0i64..50, 0i64..5000], 1..2000),
        ) {
            let mut meter = limits(None, Some(rpm), None);
            let (mut now_ms, mut granted) = (0, Vec::new());
            for gap_ms in gaps_ms {
                now_ms += gap_ms;
                if meter.admits(0, now_ms) {
                    meter.take(0, now_ms);
                    granted.push(now_ms);
                }
            }
            for (place, at) in granted.iter().enumerate() {
                let in_minute = granted[place..].iter().take_while(|other| **other < at + 60_000);
                prop_assert!(in_minute.count() <= rpm as usize);
            }
        }
    }

    #[test]
    fn the_wait_for_room_is_foreseen() {
        let mut meter = limits(None, Some(2), Some(100));
        assert_eq!(meter.room_for_at(2, 10, 0), 0);
        meter.take(10, 0);
        meter.take(10, 5000);
        for (calls, tokens, at_ms) in
            [(1, 10, 61_000), (2, 10, 66_000), (3, 10, 127_000), (4, 10, 127_000), (1, 81, 61_000)]
        {
            assert_eq!(meter.room_for_at(calls, tokens, 6000), at_ms, "{calls} of {tokens}");
        }
        let why = meter.why_full("a", 10, 6000).unwrap();
        assert_eq!(why, "a: its 2 requests a minute are used up");
        assert_eq!(meter.why_full("a", 10, 61_500), None);
        let why = meter.why_full("a", 95, 61_500).unwrap();
        assert_eq!(why, "a: 10 of its 100 tokens a minute are used up, 95 are needed");
    }

    #[test]
    fn the_limit_is_used() {
        let mut meter = limits(None, Some(500), None);
        let mut count = 0;
        for now_ms in 0..180_000 {
            if meter.admits(0, now_ms) {
                meter.take(0, now_ms);
                count += 1;
            }
        }
        assert_eq!(count, 1500);
    }
}
