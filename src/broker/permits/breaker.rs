//! When a server that fails is left alone: pure.
//!
//! * `closed`: calls go; so many failures in a row open it.
//! * `open`: no call goes until the cooldown is over.
//! * `half-open`: one call goes, the probe. Its success closes the breaker, its failure opens it
//!   for another cooldown.
//!
//! A failure is a [`CallOutcome::Failed`]: 429, 5xx, 408, no connection, a time limit, a broken
//! answer. Any other 4xx shows a server that is well.

use crate::config::Breaker as Settings;
use crate::protocol::calls::CallOutcome;

/// One server's breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Breaker {
    settings: Settings,
    facts: Facts,
}

/// What a breaker remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// In a row.
    pub(crate) failures: u32,
    /// Not closed: no call goes before this time.
    pub(crate) open_until_ms: Option<i64>,
    /// The permit of the one call that finds out.
    pub(crate) probe: Option<u64>,
}

/// What a breaker does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Closed,
    Open,
    HalfOpen,
}

impl State {
    /// The word that users see.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        }
    }
}

impl Breaker {
    /// A breaker under other settings: what it saw stays.
    pub(crate) fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// As an earlier broker left it.
    pub(crate) fn restore(&mut self, facts: Facts) {
        self.facts = facts;
    }

    /// A clock that was set back must not keep it open for longer than a cooldown.
    pub(crate) fn heed_the_clock(&mut self, now_ms: i64) {
        let cooldown_ms = i64::try_from(self.settings.cooldown.as_millis()).unwrap_or(i64::MAX);
        let latest_ms = now_ms.saturating_add(cooldown_ms);
        self.facts.open_until_ms = self.facts.open_until_ms.map(|until_ms| until_ms.min(latest_ms));
    }

    /// The worker that made the probe is gone.
    pub(crate) fn forget_probe(&mut self, is_held: impl Fn(u64) -> bool) {
        self.facts.probe = self.facts.probe.filter(|permit| is_held(*permit));
    }

    /// What must outlive the broker.
    pub(crate) fn facts(&self) -> Facts {
        self.facts
    }

    pub(crate) fn state(&self, now_ms: i64) -> State {
        match self.facts.open_until_ms {
            None => State::Closed,
            Some(until_ms) if now_ms < until_ms => State::Open,
            Some(_) => State::HalfOpen,
        }
    }

    /// Whether a call may go.
    pub(crate) fn admits(&self, now_ms: i64) -> bool {
        match self.state(now_ms) {
            State::Closed => true,
            State::Open => false,
            State::HalfOpen => self.facts.probe.is_none(),
        }
    }

    /// A call goes.
    pub(crate) fn granted(&mut self, permit: u64) {
        if self.facts.open_until_ms.is_some() {
            self.facts.probe = Some(permit);
        }
    }

    /// A call has ended. Calls from before it opened say nothing about now.
    pub(crate) fn settled(&mut self, permit: u64, outcome: CallOutcome, now_ms: i64) {
        if self.facts.open_until_ms.is_some() {
            if self.facts.probe == Some(permit) {
                self.facts.probe = None;
                match outcome {
                    CallOutcome::Succeeded | CallOutcome::Refused => {
                        self.facts = Facts::default();
                    }
                    CallOutcome::Failed => self.fail(now_ms),
                    CallOutcome::Abandoned | CallOutcome::NotMade => {}
                }
            }
            return;
        }
        match outcome {
            CallOutcome::Succeeded => self.facts.failures = 0,
            CallOutcome::Failed => self.fail(now_ms),
            CallOutcome::Refused | CallOutcome::Abandoned | CallOutcome::NotMade => {}
        }
    }

    fn fail(&mut self, now_ms: i64) {
        self.facts.failures = self.facts.failures.saturating_add(1);
        if self.facts.failures >= self.settings.failures {
            let cooldown_ms = i64::try_from(self.settings.cooldown.as_millis());
            self.facts.open_until_ms = Some(now_ms.saturating_add(cooldown_ms.unwrap_or(i64::MAX)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CallOutcome::{Abandoned, Failed, Refused, Succeeded};

    /// Calls one after the other, each a second later: what the breaker is after each.
    fn after(outcomes: &[CallOutcome]) -> (Breaker, Vec<State>) {
        let mut breaker = Breaker::default();
        let states = (1i64..).zip(outcomes).map(|(second, outcome)| {
            let permit = second.unsigned_abs();
            breaker.granted(permit);
            breaker.settled(permit, *outcome, second * 1000);
            breaker.state(second * 1000)
        });
        let states = states.collect();
        (breaker, states)
    }

    #[test]
    fn five_failures_in_a_row_open_it() {
        for (outcomes, last) in [
            (&[Failed; 4][..], State::Closed),
            (&[Failed; 5], State::Open),
            (&[Failed, Failed, Succeeded, Failed, Failed, Failed], State::Closed),
            (&[Failed, Failed, Refused, Abandoned, Failed, Failed, Failed], State::Open),
            (&[Refused; 9], State::Closed),
        ] {
            assert_eq!(after(outcomes).1.last(), Some(&last), "{outcomes:?}");
        }
    }

    #[test]
    fn one_probe_after_the_cooldown_decides() {
        for (outcome, state, lets_another) in [
            (Succeeded, State::Closed, true),
            (Refused, State::Closed, true),
            (Failed, State::Open, false),
            (Abandoned, State::HalfOpen, true),
        ] {
            let (mut breaker, _) = after(&[Failed; 5]);
            assert!(!breaker.admits(64_999) && breaker.admits(65_000));
            breaker.granted(100);
            assert!(!breaker.admits(65_000), "one probe");
            breaker.settled(1, Succeeded, 65_500);
            assert_eq!(breaker.state(65_500), State::HalfOpen, "a call from before");
            breaker.settled(100, outcome, 66_000);
            assert_eq!((breaker.state(66_000), breaker.admits(66_000)), (state, lets_another));
        }
    }

    #[test]
    fn a_probe_that_fails_waits_for_a_whole_cooldown() {
        let (mut breaker, _) = after(&[Failed; 5]);
        breaker.granted(100);
        breaker.settled(100, Failed, 70_000);
        assert!(!breaker.admits(129_999) && breaker.admits(130_000));
    }

    #[test]
    fn a_clock_that_is_set_back_opens_it_for_a_cooldown_at_most() {
        let (mut breaker, _) = after(&[Failed; 5]);
        breaker.heed_the_clock(-10_000_000);
        assert!(!breaker.admits(-9_940_001) && breaker.admits(-9_940_000));
    }

    #[test]
    fn another_broker_goes_on_from_there() {
        let (breaker, _) = after(&[Failed; 5]);
        let mut next = Breaker::default();
        next.restore(breaker.facts());
        assert_eq!(next, breaker);
    }
}
