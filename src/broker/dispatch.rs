//! Ready tasks to free workers.

use super::conversation::Bounds;
use super::pending::Pending;
use super::queue::Need;
use super::reuse::Next;
use super::store::writer::Op;
use super::store::{Claim, Owner, Ready, Refill};
use super::{Core, Link, Worker, now_ms, steady_ms};
use crate::protocol::calls::Grant;

/// Bytes that may wait for one worker before it gets no more tasks: it does not read.
const WORKER_OUTBOX_BYTES_MAX: usize = 4 << 20;
/// Tasks that a worker holds for each of its slots at most, if all others wait for permits.
const HELD_PER_SLOT_MAX: u32 = 4;
/// And that limit is at least this, for workers of few slots.
const HELD_MAX_MIN: u32 = 64;
/// Tasks that a worker may have more than the least busy one, and still be preferred for a session
/// that it knows.
const WARM_IN_FLIGHT_MORE_MAX: u32 = 4;

impl Worker {
    /// Whether it is here and does not drain.
    pub(super) fn takes_tasks(&self) -> bool {
        self.link.is_some() && self.drain == 0
    }

    /// Whether it can take one more task now.
    fn is_free(&self) -> bool {
        let reads = self.link.as_ref().is_some_and(Link::reads);
        reads && self.takes_tasks() && !self.solo && self.has_a_slot()
    }

    /// Those who wait for a permit leave their slots to others, up to a limit: they come back.
    fn has_a_slot(&self) -> bool {
        self.in_flight.saturating_sub(self.asking) < self.capacity
            && self.in_flight < self.capacity.saturating_mul(HELD_PER_SLOT_MAX).max(HELD_MAX_MIN)
    }
}

impl Link {
    /// Whether there is room for more that it is told.
    pub(super) fn reads(&self) -> bool {
        self.outbox.len() < WORKER_OUTBOX_BYTES_MAX
    }
}

impl Core {
    /// Whether a ready task could start now.
    pub(super) fn may_dispatch(&self) -> bool {
        self.phase.dispatches() && !self.disk_full && self.least_loaded().is_some()
    }

    /// Claims as many ready tasks as there are free slots.
    pub(super) fn dispatch(&mut self) {
        if !self.phase.dispatches() || self.disk_full {
            return;
        }
        let now_ms = now_ms();
        self.gated = !self.asking.is_empty();
        self.keep_tokens(steady_ms());
        self.dispatch_solo(now_ms);
        while let Some(serial) = self.least_loaded() {
            let Some(next) = self.next_ready(now_ms) else { break };
            if next.ready.solo {
                self.solo.push_back(next.ready);
                self.dispatch_solo(now_ms);
            } else {
                self.claim(self.warm_or(serial, &next.ready), next, now_ms);
            }
        }
        for need in self.queues.needs() {
            let Need { queue, priority, gate, after, limit } = need.clone();
            let refill = Refill { queue, priority, gate, after, limit };
            self.store(Op::Refill(refill), Pending::Refill(need));
        }
    }

    fn least_loaded(&self) -> Option<u64> {
        let free = self.workers.iter().filter(|(_, worker)| worker.is_free());
        free.min_by_key(|(_, worker)| worker.in_flight).map(|(serial, _)| *serial)
    }

    /// The worker that ran the last task of the session, if it is hardly busier than this one.
    fn warm_or(&self, least_loaded: u64, ready: &Ready) -> u64 {
        let Some(warm) = ready.session.and_then(|session| self.affinity.of(session)) else {
            return least_loaded;
        };
        let in_flight = |serial| self.workers.get(&serial).map_or(0, |worker| worker.in_flight);
        let is_free = self.workers.get(&warm).is_some_and(Worker::is_free);
        let is_near = in_flight(warm) <= in_flight(least_loaded) + WARM_IN_FLIGHT_MORE_MAX;
        if is_free && is_near { warm } else { least_loaded }
    }

    /// Gives a task that must run alone to an empty worker, or keeps one worker from filling up
    /// until it is empty.
    fn dispatch_solo(&mut self, now_ms: i64) {
        while !self.solo.is_empty() {
            let emptying = self
                .workers
                .iter()
                .find(|(_, worker)| worker.solo && worker.in_flight == 0 && worker.takes_tasks())
                .map(|(serial, _)| *serial);
            let empty = emptying.or_else(|| {
                self.least_loaded().filter(|serial| self.workers[serial].in_flight == 0)
            });
            let Some(serial) = empty else { break };
            let Some(ready) = self.solo.pop_front() else { break };
            if !self.permits.admits(&ready.needs.gate, ready.needs.tokens, i64::MIN, steady_ms()) {
                // It would hold a whole worker until its gate opens again.
                self.queues.put_back(&ready);
                continue;
            }
            if let Some(worker) = self.workers.get_mut(&serial) {
                worker.solo = true;
            }
            self.claim(serial, Next { ready, answer: None }, now_ms);
        }
        let reserved = self.workers.values().any(|worker| worker.solo && worker.takes_tasks());
        if !self.solo.is_empty()
            && !reserved
            && let Some(serial) = self.least_loaded()
            && let Some(worker) = self.workers.get_mut(&serial)
        {
            worker.solo = true;
        }
    }

    fn claim(&mut self, serial: u64, next: Next, now_ms: i64) {
        let Next { ready, answer } = next;
        let Some(worker) = self.workers.get_mut(&serial) else { return };
        worker.in_flight += 1;
        let worker_pid = worker.pid;
        let grant = match &answer {
            Some(_) => None,
            None => self.permits.grant(&ready.needs.gate, ready.needs.tokens, steady_ms()),
        };
        if answer.is_none() {
            self.lead(&ready);
        }
        self.remember_permits();
        let owner = Owner { instance: self.instance, serial };
        let sees = ready.session.map(|session| {
            self.affinity.ran(session, serial);
            Bounds::of(&self.config.sessions)
        });
        let claim = Claim { seq: ready.seq, owner, worker_pid, now_ms, sees };
        self.store(Op::Claim(claim), Pending::Claim { serial, ready, grant, answer });
    }

    /// A claim came to nothing: the task was cancelled, or there is no room on the disk.
    pub(super) fn claim_failed(
        &mut self,
        serial: u64,
        ready: &Ready,
        grant: Option<Grant>,
        put_back: bool,
    ) {
        if let Some(grant) = grant {
            self.permits.withdraw(grant.permit, steady_ms());
            self.remember_permits();
        }
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
            worker.solo &= worker.in_flight > 0;
        }
        if let Some(key) = ready.needs.cache_key {
            self.land(key, ready.seq, None);
        }
        if put_back {
            self.queues.put_back(ready);
        } else {
            self.queues.ended(&ready.queue);
        }
    }
}
