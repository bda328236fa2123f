//! Who may call whom, now: the limits, breakers and closed doors of providers and tools, for the
//! whole pool. Pure: what must be remembered over a broker's death is told in [`Memo`]s.
//!
//! * A *server* is what is called: a provider, or one service of a tool (`TOOL/SERVICE`). It has a
//!   [`breaker`], and it may have asked everybody to stay away for a while.
//! * A *meter* is what is counted: a provider's limits, or a tool's, which its services share.
//! * A *gate* is where tasks wait: a chain of servers. It is open if the first server of the chain
//!   that is in service has room. A chain falls back for trouble, never for a limit of ours: while
//!   the primary is well and its minute is used up, its tasks wait.

mod breaker;
mod look;
mod made;
mod meter;
mod server;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::calls::{CallOutcome, Grant, PERMIT_MS_SHIFT, Settled};

pub(crate) use breaker::Facts;
pub(crate) use look::Outlook;
pub(crate) use meter::{Slot, oldest_slot};
pub(crate) use server::Server;

use meter::{Meter, slot_at};

/// A call that went out so long after its grant is counted anew: the second that the window is
/// longer than a minute has room for less.
const LATE_MS_MIN: u64 = 500;

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Permits {
    servers: BTreeMap<String, Server>,
    meters: BTreeMap<String, Meter>,
    gates: BTreeMap<String, Vec<String>>,
    /// Gates whose tasks know what to do when nobody is in service: they go without a permit.
    fallbacks: BTreeSet<String>,
    held: BTreeMap<u64, Held>,
    last_permit: u64,
    /// Workers that may hold permits of an earlier broker and have not said which: until they
    /// have, nothing is granted.
    awaited: BTreeSet<u64>,
    memos: Vec<Memo>,
    /// By meter: the place of the task that the tokens of its minute are kept for.
    kept_for: BTreeMap<String, i64>,
}

/// A permit that is not settled.
#[derive(Clone, Debug)]
struct Held {
    server: String,
    tokens: u64,
    /// Its place in the meter's window; absent if it has no meter.
    slot: Option<i64>,
}

/// What must outlive this process before anything that follows from it is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Memo {
    /// Granted, or put right, in a meter's window.
    Spent { meter: String, slot: i64, requests: i64, tokens: i64 },
    /// A server's trouble.
    Server { name: String, breaker: Facts, closed_until_ms: Option<i64> },
}

/// What a chain of servers says.
enum Choice<'a> {
    /// Call this one now.
    Go(&'a str),
    /// The first that is in service has no room.
    Wait,
    /// None is in service.
    Out,
}

impl Permits {
    /// Whether a task at this gate may go now. At a gate that the configuration does not know any
    /// more nothing waits: its handler says what is wrong.
    pub(crate) fn admits(&mut self, gate: &str, tokens: u64, place: i64, now_ms: i64) -> bool {
        let Some(chain) = self.gates.get(gate) else { return true };
        self.awaited.is_empty()
            && match choose(&self.servers, &mut self.meters, chain, tokens, now_ms) {
                Choice::Go(server) => {
                    let meter = self.servers.get(server).map(|server| &server.meter);
                    let kept_for = meter.and_then(|meter| self.kept_for.get(meter));
                    kept_for.is_none_or(|kept_for| place <= *kept_for)
                }
                Choice::Wait => false,
                Choice::Out => self.fallbacks.contains(gate),
            }
    }

    /// Keeps what a minute has of tokens for the best placed of those that want more than is left
    /// of them: smaller ones behind it would take them for ever.
    pub(crate) fn keep_tokens<'a>(
        &mut self,
        heads: impl Iterator<Item = (&'a [String], i64, u64)>,
        now_ms: i64,
    ) {
        self.kept_for.clear();
        for (chain, place, tokens) in heads {
            let Some((_, server)) = self.first_in_service(chain, now_ms) else { continue };
            let short =
                self.meters.get(&server.meter).filter(|meter| meter.is_short(tokens, now_ms));
            if short.is_some() {
                let meter = server.meter.clone();
                let kept_for = self.kept_for.entry(meter).or_insert(place);
                *kept_for = place.min(*kept_for);
            }
        }
    }

    /// Whether there is anything to keep.
    pub(crate) fn counts_tokens(&self) -> bool {
        self.meters.values().any(|meter| meter.limits.tpm.is_some())
    }

    /// How many tasks at this gate could go now.
    pub(crate) fn room(&self, gate: &str, now_ms: i64) -> u64 {
        let Some(chain) = self.gates.get(gate) else { return u64::MAX };
        if !self.awaited.is_empty() {
            return 0;
        }
        let Some((_, server)) = self.first_in_service(chain, now_ms) else {
            return if self.fallbacks.contains(gate) { u64::MAX } else { 0 };
        };
        let meter = self.meters.get(&server.meter);
        meter.map_or(u64::MAX, |meter| meter.room(now_ms))
    }

    /// The permit that travels with a task's start; `None` if its gate is closed, or none of ours.
    pub(crate) fn grant(&mut self, gate: &str, tokens: u64, now_ms: i64) -> Option<Grant> {
        let chain = self.gates.get(gate)?.clone();
        self.grant_one_of(&chain, tokens, now_ms).ok().flatten()
    }

    /// The permit for the first of these that is in service: `None` if it has no room now. The
    /// error says of each why it is not.
    pub(crate) fn grant_one_of(
        &mut self,
        servers: &[String],
        tokens: u64,
        now_ms: i64,
    ) -> Result<Option<Grant>, Vec<String>> {
        if !self.awaited.is_empty() {
            return Ok(None);
        }
        let server = match choose(&self.servers, &mut self.meters, servers, tokens, now_ms) {
            Choice::Go(server) => server.to_owned(),
            Choice::Wait => return Ok(None),
            Choice::Out => {
                return Err(servers.iter().map(|name| self.why_not(name, now_ms)).collect());
            }
        };
        self.last_permit = (self.last_permit + 1).max(now_ms.unsigned_abs() << PERMIT_MS_SHIFT);
        let permit = self.last_permit;
        let mut slot = None;
        self.change(&server, |server| server.breaker.granted(permit));
        if let Some(known) = self.servers.get(&server)
            && let Some(meter) = self.meters.get_mut(&known.meter)
        {
            let at = meter.take(tokens, now_ms);
            slot = Some(at);
            if meter.is_timed() {
                let meter = known.meter.clone();
                let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
                self.memos.push(Memo::Spent { meter, slot: at, requests: 1, tokens });
            }
        }
        self.held.insert(permit, Held { server: server.clone(), tokens, slot });
        Ok(Some(Grant { permit, server, tokens }))
    }

    /// The servers behind a gate, best first; none if the configuration does not know it.
    pub(crate) fn chain(&self, gate: &str) -> &[String] {
        self.gates.get(gate).map_or(&[], Vec::as_slice)
    }

    /// Says of each server until when its budget is spent. A broker that starts knows this from the
    /// accounts, so nothing of it is remembered here.
    pub(crate) fn spent(&mut self, until_ms: impl Fn(&str) -> Option<i64>) {
        for (name, server) in &mut self.servers {
            server.spent_until_ms = until_ms(name);
        }
    }

    /// Whether there is an answer for who would call one of these: a permit, or that none of them is
    /// in service.
    pub(crate) fn answers(&mut self, servers: &[String], tokens: u64, now_ms: i64) -> bool {
        let choice = choose(&self.servers, &mut self.meters, servers, tokens, now_ms);
        self.awaited.is_empty() && !matches!(choice, Choice::Wait)
    }

    /// Whether the first server in service of this gate shares its books with one of `servers`.
    pub(crate) fn competes(&self, gate: &str, servers: &[String], now_ms: i64) -> bool {
        let meter =
            |chain| self.first_in_service(chain, now_ms).map(|(_, server)| server.meter.as_str());
        let wanted = meter(servers);
        wanted.is_some() && self.gates.get(gate).and_then(|chain| meter(chain)) == wanted
    }

    /// A call has ended. A permit that is not held was settled before, or by a loss.
    pub(crate) fn settle(&mut self, settled: &Settled, now_ms: i64) {
        let Some(mut held) = self.held.remove(&settled.grant.permit) else { return };
        if settled.late_ms >= LATE_MS_MIN {
            self.was_late(&mut held, settled);
        }
        let used = settled.usage.map(|usage| usage.total_tokens);
        let made = settled.outcome != CallOutcome::NotMade;
        self.put_right(&held, made, used, now_ms);
        self.change(&held.server, |server| {
            server.breaker.settled(settled.grant.permit, settled.outcome, now_ms);
            if let Some(closed_ms) = settled.closed_ms {
                server.close_for(closed_ms, now_ms);
            }
        });
    }

    /// A call went out long after its grant: from then on its minute runs.
    fn was_late(&mut self, held: &mut Held, settled: &Settled) {
        let Some(slot) = held.slot else { return };
        let Some(server) = self.servers.get(&held.server) else { return };
        let Some(meter) = self.meters.get_mut(&server.meter).filter(|meter| meter.is_timed())
        else {
            return;
        };
        let at_ms = settled.grant.at_ms().saturating_add(settled.late_ms);
        let later = slot_at(i64::try_from(at_ms).unwrap_or(i64::MAX));
        let tokens = i64::try_from(held.tokens).unwrap_or(i64::MAX);
        meter.correct(slot, -1, -tokens);
        meter.restore(Slot { at: later, requests: 1, tokens: held.tokens });
        held.slot = Some(later);
        for (slot, sign) in [(slot, -1), (later, 1)] {
            let meter = server.meter.clone();
            self.memos.push(Memo::Spent { meter, slot, requests: sign, tokens: sign * tokens });
        }
    }

    /// The attempt that held a permit is over, and nobody knows what came of the call.
    pub(crate) fn release(&mut self, permit: u64, now_ms: i64) {
        self.give_back(permit, true, now_ms);
    }

    /// A permit that was never told to anybody.
    pub(crate) fn withdraw(&mut self, permit: u64, now_ms: i64) {
        self.give_back(permit, false, now_ms);
    }

    fn give_back(&mut self, permit: u64, made: bool, now_ms: i64) {
        let Some(held) = self.held.remove(&permit) else { return };
        self.put_right(&held, made, None, now_ms);
        self.change(&held.server, |server| {
            server.breaker.settled(permit, CallOutcome::Abandoned, now_ms);
        });
    }

    /// Changes a server, and has it remembered if that is worth it.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Server)) {
        let Some(server) = self.servers.get_mut(name) else { return };
        let before = server.facts();
        change(server);
        let (breaker, closed_until_ms) = server.facts();
        if (breaker, closed_until_ms) != before {
            let name = name.to_owned();
            self.memos.push(Memo::Server { name, breaker, closed_until_ms });
        }
    }

    fn put_right(&mut self, held: &Held, made: bool, used: Option<u64>, now_ms: i64) {
        let Some(server) = self.servers.get(&held.server) else { return };
        let Some(meter) = self.meters.get_mut(&server.meter) else { return };
        meter.release();
        let estimated = i64::try_from(held.tokens).unwrap_or(i64::MAX);
        let (requests, tokens) = match (made, used) {
            (false, _) => (-1, -estimated),
            (true, Some(used)) => (0, i64::try_from(used).unwrap_or(i64::MAX) - estimated),
            (true, None) => (0, 0),
        };
        let Some(slot) = held.slot.filter(|_| (requests, tokens) != (0, 0)) else { return };
        meter.correct(slot, requests, tokens);
        if meter.is_timed() && slot >= oldest_slot(now_ms) {
            let meter = server.meter.clone();
            self.memos.push(Memo::Spent { meter, slot, requests, tokens });
        }
    }

    fn why_not(&self, name: &str, now_ms: i64) -> String {
        match self.servers.get(name) {
            Some(server) => server.why_not(name, now_ms),
            None => format!("{name} is not configured"),
        }
    }

    /// What is to be remembered since this was asked last.
    pub(crate) fn take_memos(&mut self) -> Vec<Memo> {
        std::mem::take(&mut self.memos)
    }

    /// Time has passed, forwards or not.
    pub(crate) fn heed_the_clock(&mut self, now_ms: i64) {
        self.servers.values_mut().for_each(|server| server.heed_the_clock(now_ms));
    }

    /// When a closed gate may open without anybody's doing.
    pub(crate) fn next_change(&self, now_ms: i64) -> Option<i64> {
        let servers = self.servers.values().filter_map(|server| server.opens_at(now_ms));
        servers.chain(self.meters.values().filter_map(|meter| meter.eases_at(now_ms))).min()
    }
}

/// Where a permit of an earlier broker stands in its meter's window.
fn slot_of(permit: u64) -> i64 {
    slot_at(i64::try_from(permit >> PERMIT_MS_SHIFT).unwrap_or(i64::MAX))
}

fn choose<'a>(
    servers: &BTreeMap<String, Server>,
    meters: &mut BTreeMap<String, Meter>,
    chain: &'a [String],
    tokens: u64,
    now_ms: i64,
) -> Choice<'a> {
    for name in chain {
        let Some(server) = servers.get(name).filter(|server| server.is_in_service(now_ms)) else {
            continue;
        };
        let has_room =
            meters.get_mut(&server.meter).is_none_or(|meter| meter.admits(tokens, now_ms));
        return if has_room { Choice::Go(name) } else { Choice::Wait };
    }
    Choice::Out
}
