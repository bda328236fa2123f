//! Workers that come, go and die, and what becomes of their tasks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::protocol::lifeline::{Exit, FromBroker, Pool};
use crate::protocol::link::{Hello, Run, Seq, ToWorker};

use super::outbox::Outbox;
use super::pending::Pending;
use super::store::writer::Op;
use super::workers::Knock;
use super::{Core, Link, rules};

/// How long a dead worker's last words are waited for. Its socket ends with it, so this is only
/// for a descriptor that somebody else holds.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

impl Core {
    /// A connection wants to be a worker's.
    pub(super) fn knocked(&mut self, knock: Knock) {
        self.knocks.retain(|knock| !knock.admit.is_closed());
        self.knocks.push(knock);
        self.admit();
    }

    fn admit(&mut self) {
        for knock in std::mem::take(&mut self.knocks) {
            let named = self.pool.workers.iter().find(|worker| worker.pid == Some(knock.pid));
            match named {
                Some(worker) => drop(knock.admit.send(worker.serial)),
                None => self.knocks.push(knock),
            }
        }
    }

    /// The master tells of its pool. The first time settles what an earlier broker left behind.
    pub(super) fn pool_changed(&mut self, pool: Pool) {
        self.pool = pool;
        self.admit();
        self.heed_drains();
        let alive: BTreeSet<u64> = self.pool.workers.iter().map(|worker| worker.serial).collect();
        self.workers.retain(|serial, worker| {
            worker.link.is_some() || alive.contains(serial) || self.exits.contains_key(serial)
        });
        // A claim whose owner is neither alive nor reported dead has no owner.
        let orphans: Vec<(Run, u64)> = self
            .runs
            .values()
            .filter(|state| {
                !alive.contains(&state.serial)
                    && !self.exits.contains_key(&state.serial)
                    && !self.workers.contains_key(&state.serial)
            })
            .map(|state| (state.facts.run, state.serial))
            .collect();
        for (run, serial) in orphans {
            self.permits.heard(serial);
            self.put_back(run);
        }
    }

    /// Who drains and who does not, as the master has it.
    fn heed_drains(&mut self) {
        for named in &self.pool.workers {
            if let Some(worker) = self.workers.get_mut(&named.serial) {
                worker.drain = named.drain;
            }
        }
    }

    /// A worker said hello, for the first time or after its connection or a broker broke.
    pub(super) fn worker_came(
        &mut self,
        connection: u64,
        serial: u64,
        hello: Hello,
        outbox: Outbox,
    ) {
        let pid = self.pool.workers.iter().find(|worker| worker.serial == serial);
        let pid = pid.and_then(|worker| worker.pid).unwrap_or(0);
        tracing::debug!(
            "worker {} (pid {pid}) is here, with {} runs",
            hello.slot,
            hello.holds.len()
        );
        let mut worker = self.workers.remove(&serial).unwrap_or_default();
        if let Some(old) =
            worker.link.replace(Link { connection, protocol: hello.protocol, outbox })
        {
            old.outbox.close();
        }
        worker.pid = pid;
        worker.slot = hello.slot;
        worker.generation = hello.generation;
        worker.capacity = hello.capacity;
        worker.unheard = self.permits_of(serial);
        self.workers.insert(serial, worker);
        self.forget_asks(serial);
        if hello.protocol < 2 {
            self.permits.heard(serial);
        }
        self.heed_drains();
        self.reconcile(serial, &hello.holds);
        if !self.phase.dispatches() {
            self.tell_drain(serial);
        }
    }

    /// Holds what the worker has against what the store says that it has.
    fn reconcile(&mut self, serial: u64, holds: &[Run]) {
        let holds: BTreeSet<Run> = holds.iter().copied().collect();
        let mine = |state: &&super::runs::RunState| state.serial == serial;
        let claimed: Vec<(Run, bool)> =
            self.runs.values().filter(mine).map(|state| (state.facts.run, state.ending)).collect();
        // Claims on their way to the store are counted and not among the runs yet; their answers
        // find the new connection.
        let mut running = self.claims_under_way(serial);
        for (run, ending) in &claimed {
            match (holds.contains(run), ending) {
                (true, false) => running += 1,
                (false, false) => {
                    // The start never reached it.
                    running += 1;
                    if let Some(worker) = self.workers.get_mut(&serial) {
                        worker.in_flight = running;
                    }
                    self.put_back(*run);
                    running -= 1;
                }
                (_, true) => {}
            }
        }
        let Some(worker) = self.workers.get_mut(&serial) else { return };
        worker.in_flight = running;
        let Some(link) = &worker.link else { return };
        let asked: BTreeSet<Seq> = self
            .runs
            .values()
            .filter(mine)
            .filter(|state| state.facts.cancel_asked)
            .map(|state| state.facts.run.seq)
            .collect();
        for run in &holds {
            let known = claimed.iter().any(|(claimed, _)| claimed == run);
            if !known || asked.contains(&run.seq) {
                link.outbox.put(&ToWorker::Cancel(*run));
            }
        }
    }

    fn claims_under_way(&self, serial: u64) -> u32 {
        self.pending.claims().filter(|claimant| *claimant == serial).count() as u32
    }

    /// A worker's connection ended. If it is dead, its last words have been heard now.
    pub(super) fn worker_gone(&mut self, connection: u64, serial: u64) {
        let Some(worker) = self.workers.get_mut(&serial) else { return };
        if worker.link.as_ref().is_some_and(|link| link.connection == connection) {
            worker.link = None;
            if let Some((exit, _)) = self.exits.get(&serial) {
                self.lost(exit.clone());
            }
        }
    }

    /// The master reports a death.
    pub(super) fn exited(&mut self, exit: Exit) {
        let serial = exit.serial;
        let linked = self.workers.get(&serial).is_some_and(|worker| worker.link.is_some());
        self.exits.insert(serial, (exit.clone(), Instant::now()));
        if !linked {
            self.lost(exit);
        }
    }

    /// Deals with deaths whose sockets did not end in time.
    pub(super) fn overdue_exits(&mut self, now: Instant) {
        let overdue: Vec<Exit> = self
            .exits
            .values()
            .filter(|(_, since)| now.duration_since(*since) > LAST_WORDS_MAX)
            .map(|(exit, _)| exit.clone())
            .collect();
        for exit in overdue {
            self.lost(exit);
        }
    }

    /// A worker is dead, and everything that it had said is taken in: its tasks go back.
    fn lost(&mut self, exit: Exit) {
        let serial = exit.serial;
        self.exits.remove(&serial);
        self.workers.remove(&serial);
        self.permits.heard(serial);
        self.forget_asks(serial);
        let held: Vec<Run> = self
            .runs
            .values()
            .filter(|state| state.serial == serial && !state.ending)
            .map(|state| state.facts.run)
            .collect();
        let alone = held.len() == 1;
        if !held.is_empty() {
            tracing::warn!(
                "{} tasks lost worker pid {}: {}",
                held.len(),
                exit.pid,
                rules::loss_message(&exit.cause)
            );
        }
        for run in held {
            let Some(state) = self.runs.get(&run.seq) else { continue };
            let next = if state.facts.cancel_asked {
                let error = super::store::sqlite::cancelled("cancelled by request");
                super::store::Next::Cancelled { error }
            } else if self.phase.dispatches() {
                rules::after_loss(&state.facts, exit.cause.clone(), alone)
            } else {
                // A stop kills what does not end in time: nobody's fault.
                rules::after_put_back(&state.facts)
            };
            self.end(run, serial, next);
        }
        // Its answer comes after those of the ends above: then the master may forget this death.
        self.store(Op::Sync, Pending::ExitSeen { serial });
    }

    /// The store holds everything that this death moved.
    pub(super) fn exit_seen(&mut self, serial: u64) {
        self.to_master.send(&FromBroker::ExitSeen { serial });
    }
}
