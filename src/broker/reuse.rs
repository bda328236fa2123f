//! Ready tasks whose answer is there already, or on its way with an equal one.

use std::sync::Arc;
use std::time::Duration;

use super::cache::{Answer, Key, Known};
use super::queue::WINDOW_TASKS_MAX;
use super::store::{Paid, Ready};
use super::{Core, steady_ms};
use crate::config::Config;
use crate::protocol::calls::CallOutcome;
use crate::protocol::link::{Outcome, Run};

/// A task that may start, and the answer that it needs no call for.
pub(super) struct Next {
    pub(super) ready: Ready,
    pub(super) answer: Option<Arc<Answer>>,
}

impl Core {
    /// A task became ready. One whose answer is there waits at no gate.
    pub(super) fn make_ready(&mut self, ready: &Ready) {
        let known = self.key_of(ready).map(|key| self.answers.look(key, steady_ms()));
        match known {
            Some(Known::Answer(_))
                if self.queues.may_run(&ready.queue) && self.answered.len() < WINDOW_TASKS_MAX =>
            {
                self.answered.push_back(ready.clone());
            }
            _ => self.queues.push(ready),
        }
    }

    /// Takes the task that starts next, and counts it as running.
    pub(super) fn next_ready(&mut self, now_ms: i64) -> Option<Next> {
        while let Some(ready) = self.answered.pop_front() {
            let known = self.key_of(&ready).map(|key| self.answers.look(key, steady_ms()));
            match known {
                Some(Known::Answer(answer)) if self.queues.may_run(&ready.queue) => {
                    self.queues.runs(&ready.queue);
                    return Some(Next { ready, answer: Some(answer) });
                }
                // It has gone in the meantime.
                _ => self.queues.push(&ready),
            }
        }
        loop {
            let ready = self.pop(now_ms)?;
            let Some(key) = self.key_of(&ready) else {
                return Some(Next { ready, answer: None });
            };
            match self.answers.look(key, steady_ms()) {
                Known::Answer(answer) => return Some(Next { ready, answer: Some(answer) }),
                Known::UnderWay if self.answers.is_leader(key, ready.seq) => {
                    return Some(Next { ready, answer: None });
                }
                Known::UnderWay if self.answers.join(key, &ready) => {
                    self.queues.ended(&ready.queue);
                }
                Known::UnderWay | Known::Nothing => return Some(Next { ready, answer: None }),
            }
        }
    }

    fn pop(&mut self, now_ms: i64) -> Option<Ready> {
        let (permits, answers, mut gated) = (&mut self.permits, &self.answers, false);
        let steady = steady_ms();
        let ready = self.queues.pop(now_ms, &mut |gate, slot, place| {
            let open = permits.admits(gate, slot.tokens, place, steady);
            gated |= !open;
            let answered = |key| match answers.look(key, steady) {
                Known::Answer(_) => true,
                // Old, and nobody is there to ask.
                _ => permits.is_out(gate, steady) && answers.stale(key).is_some(),
            };
            open || slot.key().is_some_and(answered)
        });
        self.gated |= gated;
        ready
    }

    /// Under which its answer would be found.
    fn key_of(&self, ready: &Ready) -> Option<Key> {
        self.kept_key(ready).filter(|_| !ready.needs.cache_refresh && !ready.solo)
    }

    /// Under which its answer will be kept: nobody waits for one that will not be.
    fn kept_key(&self, ready: &Ready) -> Option<Key> {
        let keeps = |_: &Key| keeps(&self.config, &ready.needs.gate);
        ready.needs.cache_key.filter(keeps)
    }

    /// A task goes without an answer: equal ones wait for its.
    pub(super) fn lead(&mut self, ready: &Ready) {
        if let Some(key) = self.kept_key(ready) {
            self.answers.lead(key, ready.seq);
        }
    }

    /// An attempt has an answer that may be given again, once it is on disk. One that no call gave
    /// (a tool's default, say) may not.
    pub(super) fn note_answer(&mut self, run: Run, outcome: &Outcome) {
        let Outcome::Succeeded { output, .. } = outcome else { return };
        let Some(state) = self.runs.get_mut(&run.seq) else { return };
        let answered =
            |call: &&crate::protocol::calls::Settled| call.outcome == CallOutcome::Succeeded;
        let Some(call) = state.calls.iter().rev().find(answered) else { return };
        let Some((fresh, stale)) =
            state.needs.as_ref().map(|needs| lives(&self.config, &needs.gate))
        else {
            return;
        };
        let fresh_ms = i64::try_from(fresh.as_millis()).unwrap_or(i64::MAX);
        state.answer = (!fresh.is_zero()).then(|| Answer {
            output: output.clone(),
            server: call.grant.server.clone(),
            model: call.model.clone(),
            fresh_until_ms: steady_ms().saturating_add(fresh_ms),
            kept_for: fresh.saturating_add(stale),
        });
    }

    /// The attempt of a task that others wait for is over: they have its answer, or one of them
    /// goes next.
    pub(super) fn land(&mut self, key: Key, leader: i64, answer: Option<Answer>) {
        if let Some(answer) = answer {
            self.answers.keep(key, answer);
        }
        for ready in self.answers.land(key, leader, steady_ms()) {
            self.make_ready(&ready);
        }
    }

    /// What a cached answer counts as in the accounts.
    pub(super) fn paid_for_answer(answer: &Answer) -> Paid {
        let (server, model) = (answer.server.clone(), answer.model.clone());
        Paid { server, model, cached: true, ..Paid::default() }
    }
}

/// Whether answers that come through this gate are kept at all.
pub(super) fn keeps(config: &Config, gate: &str) -> bool {
    config.cache.bytes_max > 0 && !lives(config, gate).0.is_zero()
}

/// How long an answer that came through this gate stands for a call, and how much longer it may
/// stand in when there is no better one.
pub(super) fn lives(config: &Config, gate: &str) -> (Duration, Duration) {
    let none = (Duration::ZERO, Duration::ZERO);
    match gate.split_once(':') {
        Some(("m", name)) => {
            config.models.get(name).map_or(none, |model| (model.cache_ttl, Duration::ZERO))
        }
        Some(("t", name)) => {
            config.tools.get(name).map_or(none, |tool| (tool.cache_ttl, tool.stale_ttl))
        }
        _ => none,
    }
}
