//! What the permits tell people: how full, how broken, how long.

use super::breaker::State;
use super::meter::Limits;
use super::{Permits, Server};

/// One server, for `forq info`.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) limits: Limits,
    pub(crate) in_flight: u32,
    pub(crate) rpm_used: u64,
    pub(crate) tpm_used: u64,
    pub(crate) breaker: State,
    pub(crate) failures: u32,
    /// When it may be called again, if it may not be now.
    pub(crate) out_until_ms: Option<i64>,
}

/// What a gate will let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outlook {
    pub(crate) max_concurrent: Option<u32>,
    pub(crate) in_flight: u32,
    /// In how many milliseconds requests and tokens have room.
    pub(crate) opens_ms: u64,
}

impl Permits {
    /// How a server stands.
    pub(crate) fn look(&self, name: &str, now_ms: i64) -> Option<Look> {
        let server = self.servers.get(name)?;
        let meter = self.meters.get(&server.meter)?;
        let (rpm_used, tpm_used) = meter.used(now_ms);
        Some(Look {
            limits: meter.limits,
            in_flight: meter.in_flight,
            rpm_used,
            tpm_used,
            breaker: server.breaker.state(now_ms),
            failures: server.breaker.facts().failures,
            out_until_ms: server.opens_at(now_ms),
        })
    }

    /// Whether none of its servers is in service.
    pub(crate) fn is_out(&self, gate: &str, now_ms: i64) -> bool {
        let chain = self.gates.get(gate);
        chain.is_some_and(|chain| self.first_in_service(chain, now_ms).is_none())
    }

    /// Why a task at this gate waits; `None` if it does not, or not for that.
    pub(crate) fn why_closed(&self, gate: &str, tokens: u64, now_ms: i64) -> Option<String> {
        let chain = self.gates.get(gate)?;
        if !self.awaited.is_empty() {
            return Some("workers have yet to say which calls are under way".to_owned());
        }
        let Some((name, server)) = self.first_in_service(chain, now_ms) else {
            let why: Vec<_> = chain.iter().map(|name| self.why_not(name, now_ms)).collect();
            return Some(why.join("; "));
        };
        self.meters.get(&server.meter)?.why_full(name, tokens, now_ms)
    }

    /// Whether tasks at these gates want the same.
    pub(crate) fn are_rivals(&self, gate: &str, other: &str, now_ms: i64) -> bool {
        if gate == other {
            return true;
        }
        match self.gates.get(other) {
            Some(chain) => self.competes(gate, chain, now_ms),
            None => !self.gates.contains_key(gate),
        }
    }

    /// What a gate will let through, and when it has room for so many calls with so many tokens
    /// each; `None` if nothing limits it.
    pub(crate) fn outlook(
        &self,
        gate: &str,
        calls: u64,
        tokens: u64,
        now_ms: i64,
    ) -> Option<Outlook> {
        let chain = self.gates.get(gate)?;
        let first = self.first_in_service(chain, now_ms);
        let soonest = |name: &String| {
            let server = self.servers.get(name)?;
            Some((server, server.opens_at(now_ms).unwrap_or(now_ms)))
        };
        let (server, back_ms) = match first {
            Some((_, server)) => (server, now_ms),
            None => chain.iter().filter_map(soonest).min_by_key(|(_, back_ms)| *back_ms)?,
        };
        let meter = self.meters.get(&server.meter)?;
        let room_ms = meter.room_for_at(calls, tokens, now_ms);
        let opens_ms = (room_ms.max(back_ms) - now_ms).max(0).unsigned_abs();
        let max_concurrent = meter.limits.max_concurrent;
        Some(Outlook { max_concurrent, in_flight: meter.in_flight, opens_ms })
    }

    pub(super) fn first_in_service<'a>(
        &'a self,
        chain: &'a [String],
        now_ms: i64,
    ) -> Option<(&'a str, &'a Server)> {
        let known = chain.iter().filter_map(|name| Some((name.as_str(), self.servers.get(name)?)));
        known.into_iter().find(|(_, server)| server.is_in_service(now_ms))
    }
}
