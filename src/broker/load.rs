//! What the master is told of the work: that the loop turns, how much there is, and who has
//! nothing left.

use super::queue::Waiting;
use super::{Core, now_ms, steady_ms};
use crate::protocol::lifeline::{FromBroker, Load};

impl Core {
    /// One beat, with how much there is to do.
    pub(super) fn beat(&mut self) {
        self.to_master.send(&FromBroker::Beat(self.load()));
    }

    fn load(&self) -> Load {
        let now_ms = now_ms();
        let waiting = self.waiting();
        let takes = self.workers.values().filter(|worker| worker.takes_tasks());
        let busy = self.workers.iter().filter(|(_, worker)| worker.in_flight > 0);
        Load {
            ready: waiting.tasks,
            in_flight: takes.map(|worker| u64::from(worker.in_flight)).sum(),
            oldest_wait_ms: waiting.oldest_ms.map_or(0, |at| (now_ms - at).max(0)).unsigned_abs(),
            slots: self.slots(),
            ceiling: None,
            busy: busy.map(|(serial, worker)| (*serial, worker.in_flight)).collect(),
        }
    }

    /// What could run now.
    fn waiting(&self) -> Waiting {
        if !self.phase.dispatches() || self.disk_full {
            return Waiting::default();
        }
        let mut waiting = self.queues.waiting(|gate| self.permits.room(gate, steady_ms()));
        waiting.tasks += self.solo.len() as u64;
        waiting
    }

    /// Slots of the workers that are here and take tasks.
    pub(super) fn slots(&self) -> u64 {
        let takes = self.workers.values().filter(|worker| worker.takes_tasks());
        takes.map(|worker| u64::from(worker.capacity)).sum()
    }

    /// Says at once what cannot wait for a beat: that a task waits and no worker is there, and
    /// that a worker which drains has nothing left.
    pub(super) fn tell_what_is_urgent(&mut self) {
        if self.slots() > 0 {
            self.urgent_told = false;
        } else if !self.urgent_told && self.waiting().tasks > 0 {
            self.urgent_told = true;
            self.beat();
        }
        let drained: Vec<u64> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.drain != 0 && worker.drain != worker.idle_told)
            .filter(|(serial, worker)| worker.link.is_some() && self.has_nothing(**serial))
            .map(|(serial, _)| *serial)
            .collect();
        for serial in drained {
            let Some(worker) = self.workers.get_mut(&serial) else { continue };
            worker.idle_told = worker.drain;
            self.to_master.send(&FromBroker::Idle { serial, drain: worker.drain });
        }
    }

    /// Whether this worker holds no task, and no result that does not hold on disk.
    fn has_nothing(&self, serial: u64) -> bool {
        self.workers.get(&serial).is_some_and(|worker| worker.in_flight == 0)
            && self.pending.claims().all(|claimant| claimant != serial)
            && self.runs.values().all(|state| state.serial != serial)
            && self.unsynced.iter().all(|ended| ended.serial != serial)
    }
}
