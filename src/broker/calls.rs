//! Calls of running attempts: who may make one now, and what came of it.

use std::collections::BTreeMap;

use crate::protocol::calls::{Answered, Ask, CALL_TOKENS_MAX, CallOutcome, Grant, Settled};
use crate::protocol::link::{Run, ToWorker};
use crate::task::Usage;

use super::pending::Pending;
use super::queue::place;
use super::store::Paid;
use super::store::writer::Op;
use super::{Core, now_ms, steady_ms};

/// A running attempt that waits for a permit. It takes no slot meanwhile.
pub(crate) struct Asking {
    serial: u64,
    ask: Ask,
    /// Where it stands among the tasks that wait for the same: see [`place`].
    place: i64,
}

impl Core {
    /// The permits of a worker's attempts.
    pub(super) fn permits_of(&self, serial: u64) -> Vec<(Run, u64)> {
        let mine = self.runs.values().filter(|state| state.serial == serial);
        let held =
            mine.flat_map(|state| state.permits.iter().map(|permit| (state.facts.run, *permit)));
        // Those that are yet to be told are told on whatever connection there is then.
        held.filter(|(_, permit)| !self.pending.answers(*permit)).collect()
    }

    /// A worker says which permits it holds: first of all, on a new connection.
    pub(super) fn holds_permits(&mut self, serial: u64, held: Vec<(Run, Grant)>) {
        let unheard =
            self.workers.get_mut(&serial).map(|worker| std::mem::take(&mut worker.unheard));
        for (run, permit) in unheard.unwrap_or_default() {
            if held.iter().any(|(_, grant)| grant.permit == permit) {
                continue;
            }
            if let Some(state) = self.runs.get_mut(&run.seq) {
                state.permits.retain(|known| *known != permit);
            }
            // Settled meanwhile, if it was used: that is said next, and changes nothing then.
            self.permits.release(permit, steady_ms());
        }
        for (run, grant) in held {
            let owned = self
                .runs
                .get_mut(&run.seq)
                .filter(|state| state.serial == serial && state.facts.run == run && !state.ending);
            // Of an attempt that is not its any more: its cancel is on the way.
            let Some(state) = owned else { continue };
            self.permits.hold(&grant);
            if !state.permits.contains(&grant.permit) {
                state.permits.push(grant.permit);
            }
        }
        self.permits.heard(serial);
    }

    /// A running attempt wants to call.
    pub(super) fn asks_to_call(&mut self, serial: u64, mut ask: Ask) {
        ask.tokens = ask.tokens.min(CALL_TOKENS_MAX);
        let known = self.runs.get(&ask.run.seq);
        let Some(state) = known.filter(|state| state.serial == serial && !state.ending) else {
            return;
        };
        let now_us = now_ms().saturating_mul(1000);
        let place = place(now_us, state.priority);
        let asking = self.asking.entry((ask.run, ask.number));
        asking.or_insert(Asking { serial, ask, place });
        self.count_asking(serial);
    }

    /// Answers those who can be answered, the best placed first.
    pub(super) fn answer_asks(&mut self) {
        if self.asking.is_empty() {
            return;
        }
        let now_ms = steady_ms();
        // A task without a slot is no rival: it could wait for just these to go on and end.
        let has_rivals = self.may_dispatch();
        let mut rivals: BTreeMap<Vec<String>, Option<i64>> = BTreeMap::new();
        let mut order: Vec<_> = self.asking.iter().map(|(key, one)| (one.place, *key)).collect();
        order.sort_unstable();
        for (place, key) in order {
            let Some(Asking { serial, ask, .. }) = self.asking.get(&key) else { continue };
            if !self.permits.answers(&ask.servers, ask.tokens, now_ms) {
                continue;
            }
            if has_rivals {
                let (queues, permits) = (&self.queues, &self.permits);
                let rival = rivals.entry(ask.servers.clone()).or_insert_with(|| {
                    queues.best_place(|gate| permits.competes(gate, &ask.servers, now_ms))
                });
                if rival.is_some_and(|rival| rival < place) {
                    continue;
                }
            }
            let (serial, run) = (*serial, ask.run);
            let granted = self.permits.grant_one_of(&ask.servers, ask.tokens, now_ms);
            let result = match granted {
                Ok(None) => continue,
                Ok(Some(grant)) => Ok(grant),
                Err(why) => Err(why),
            };
            self.asking.remove(&key);
            self.count_asking(serial);
            if let (Ok(grant), Some(state)) = (&result, self.runs.get_mut(&run.seq)) {
                state.permits.push(grant.permit);
            }
            self.remember_permits();
            let answered = Answered { run, number: key.1, result };
            // Told after the commit of what it costs.
            self.store(Op::Nothing, Pending::Answered { serial, answered });
        }
    }

    /// Keeps tokens for who is first in line for them, among the tasks and those who ask.
    pub(super) fn keep_tokens(&mut self, now_ms: i64) {
        if !self.permits.counts_tokens() {
            return;
        }
        let heads: Vec<(Vec<String>, i64, u64)> = self
            .queues
            .heads()
            .map(|(gate, place, tokens)| (self.permits.chain(gate).to_vec(), place, tokens))
            .chain(
                self.asking
                    .values()
                    .map(|asking| (asking.ask.servers.clone(), asking.place, asking.ask.tokens)),
            )
            .collect();
        let heads = heads.iter().map(|(chain, place, tokens)| (&chain[..], *place, *tokens));
        self.permits.keep_tokens(heads, now_ms);
    }

    /// What a permit costs is in the store: its asker is told.
    pub(super) fn tell_answer(&self, serial: u64, answered: Answered) {
        let worker = self.workers.get(&serial);
        if let Some(link) = worker.and_then(|worker| worker.link.as_ref()) {
            link.outbox.put(&ToWorker::Answered(answered));
        }
    }

    /// A call has ended.
    pub(super) fn settled(&mut self, serial: u64, mut settled: Settled) {
        // As the server has it, who may say anything.
        settled.usage = settled.usage.map(|usage| Usage {
            prompt_tokens: usage.prompt_tokens.min(CALL_TOKENS_MAX),
            completion_tokens: usage.completion_tokens.min(CALL_TOKENS_MAX),
            total_tokens: usage.total_tokens.min(CALL_TOKENS_MAX),
        });
        self.permits.settle(&settled, steady_ms());
        self.remember_permits();
        let known = self.runs.get_mut(&settled.run.seq);
        let Some(state) = known.filter(|state| state.serial == serial) else { return };
        state.permits.retain(|permit| *permit != settled.grant.permit);
        let permit = settled.grant.permit;
        // Sent again to each broker until the attempt's end is acknowledged.
        if state.facts.run == settled.run
            && !state.calls.iter().any(|call| call.grant.permit == permit)
        {
            state.calls.push(settled);
        }
    }

    /// The attempt is over: what it held and what it asked for is free.
    pub(super) fn forget_calls(&mut self, run: Run, serial: u64) {
        let asked: Vec<_> =
            self.asking.range((run, 0)..=(run, u32::MAX)).map(|(key, _)| *key).collect();
        for key in asked {
            self.asking.remove(&key);
        }
        self.count_asking(serial);
        let Some(state) = self.runs.get_mut(&run.seq) else { return };
        let now_ms = steady_ms();
        for permit in std::mem::take(&mut state.permits) {
            self.permits.release(permit, now_ms);
        }
        self.remember_permits();
    }

    /// A worker is gone, or talks anew: what it asked it asks again.
    pub(super) fn forget_asks(&mut self, serial: u64) {
        self.asking.retain(|_, asking| asking.serial != serial);
        self.count_asking(serial);
    }

    fn count_asking(&mut self, serial: u64) {
        let count = self.asking.values().filter(|asking| asking.serial == serial).count();
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.asking = count as u32;
        }
    }

    /// Has the store remember what has changed, before whatever is asked of it next.
    pub(super) fn remember_permits(&mut self) {
        for memo in self.permits.take_memos() {
            self.store(Op::Remember(memo), Pending::Remember);
        }
    }

    /// The calls of an attempt, for the accounts.
    pub(super) fn paid(&self, run: Run) -> Vec<Paid> {
        let Some(state) = self.runs.get(&run.seq) else { return Vec::new() };
        if let Some(answer) = &state.reused {
            return vec![Self::paid_for_answer(answer)];
        }
        let made = state.calls.iter().filter(|call| call.outcome != CallOutcome::NotMade);
        made.map(|call| self.paid_for(call)).collect()
    }

    fn paid_for(&self, call: &Settled) -> Paid {
        let price = self.config.providers.get(&call.grant.server).and_then(|it| it.price);
        let cost = price.zip(call.usage).map_or(0.0, |(price, usage)| {
            (usage.prompt_tokens as f64 * price.input_per_mtok
                + usage.completion_tokens as f64 * price.output_per_mtok)
                / 1e6
        });
        Paid {
            server: call.grant.server.clone(),
            model: call.model.clone(),
            failed: call.outcome != CallOutcome::Succeeded,
            cached: false,
            usage: call.usage,
            cost,
        }
    }
}
