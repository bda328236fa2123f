//! How long a task that waits for its turn or for a permit will probably wait: its position among
//! those that want the same, and an estimate.
//!
//! The estimate is the longest of three: until a slot, or one of the provider's calls at once, is
//! free (`ahead` tasks share them, each for as long as such tasks ran of late); until the minute's
//! requests and tokens have room for all that are ahead; until somebody of its chain is in
//! service. It knows nothing of tasks that come later with a higher priority, nor of queues'
//! weights. Absent until one such task has run.

use std::collections::BTreeMap;

use super::permits::Outlook as Permission;
use super::queue::place;
use super::{Core, steady_ms};
use crate::protocol::control::FollowBody;
use crate::task::{TaskId, TaskView, WaitingFor, Waits};

/// Between two looks at who follows a task that waits.
const TELL_EVERY_MS: i64 = 1000;
/// What the last run counts in the average.
const WEIGHT: f64 = 0.2;

/// How long tasks ran of late, by gate, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Paces(BTreeMap<String, f64>);

impl Paces {
    /// A task ran for so long.
    pub(crate) fn ran(&mut self, gate: &str, run_ms: u64) {
        let run_ms = run_ms as f64;
        match self.0.get_mut(gate) {
            Some(average) => *average += WEIGHT * (run_ms - *average),
            None => drop(self.0.insert(gate.to_owned(), run_ms)),
        }
    }

    fn of(&self, gate: &str) -> Option<f64> {
        self.0.get(gate).copied()
    }
}

/// Until `ahead` tasks and this one have had one of `slots` that are in use for `run_ms` each;
/// `free` of them are not in use.
fn until_free(ahead: u64, free: u64, slots: u64, run_ms: f64) -> u64 {
    let behind = (ahead + 1).saturating_sub(free);
    (behind as f64 * run_ms / slots.max(1) as f64) as u64
}

/// What somebody who waits is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prospect {
    position: u64,
    wait_ms: Option<u64>,
}

impl Core {
    /// Adds to a task that is queued what only the broker knows of the reason.
    pub(super) fn explain_briefly(&self, task: &mut TaskView) {
        let Some(waits) = &task.waits else { return };
        if self.queues.is_paused(&task.queue) {
            task.waiting_for = Some(WaitingFor::Paused);
        } else if let Some(why) = self.permits.why_closed(&waits.gate, waits.tokens, steady_ms()) {
            task.waiting_for = Some(WaitingFor::Permit);
            task.waiting_reason = Some(why);
        }
    }

    /// And how long it will wait yet.
    pub(super) fn explain(&self, task: &mut TaskView) {
        self.explain_briefly(task);
        let Some(waits) = task.waits.as_ref().filter(|_| !self.queues.is_paused(&task.queue))
        else {
            return;
        };
        let prospect = self.prospect(waits, task.priority, steady_ms());
        task.position = Some(prospect.position);
        task.estimated_wait_ms = prospect.wait_ms;
    }

    fn prospect(&self, waits: &Waits, priority: u8, now_ms: i64) -> Prospect {
        let permits = &self.permits;
        let rivals = |gate: &str| permits.are_rivals(gate, &waits.gate, now_ms);
        let ahead = self.queues.ahead(place(waits.ord, priority), rivals);
        let slots = self.slots();
        let busy: u64 = self.workers.values().map(|worker| u64::from(worker.in_flight)).sum();
        let (mut at_once, mut free) = (slots, slots.saturating_sub(busy));
        let mut wait_ms = 0;
        if let Some(outlook) = permits.outlook(&waits.gate, ahead + 1, waits.tokens, now_ms) {
            let Permission { max_concurrent, in_flight, opens_ms } = outlook;
            if let Some(max) = max_concurrent.map(u64::from) {
                at_once = at_once.min(max);
                free = free.min(max.saturating_sub(in_flight.into()));
            }
            wait_ms = opens_ms;
        }
        let by_slots = if ahead < free {
            Some(0)
        } else {
            self.paces.of(&waits.gate).map(|run_ms| until_free(ahead, free, at_once, run_ms))
        };
        let wait_ms = by_slots.map(|by_slots| by_slots.max(wait_ms));
        Prospect { position: ahead + 1, wait_ms }
    }

    /// Tells those who follow tasks that wait how it stands, once a second.
    pub(super) fn tell_prospects(&mut self) {
        let now_ms = steady_ms();
        if self.followers.is_empty() || now_ms < self.prospects_at_ms {
            return;
        }
        self.prospects_at_ms = now_ms + TELL_EVERY_MS;
        let mut prospects: BTreeMap<TaskId, Prospect> = BTreeMap::new();
        for (id, followers) in &self.followers {
            let waits = followers.iter().find_map(|follower| follower.waits.as_ref());
            if let Some((waits, priority)) = waits.filter(|_| !self.run_ids.contains_key(id)) {
                prospects.insert(*id, self.prospect(waits, *priority, now_ms));
            }
        }
        for (id, Prospect { position, wait_ms }) in prospects {
            for follower in self.followers.get(&id).into_iter().flatten() {
                let (position, estimated_wait_ms) = (Some(position), wait_ms);
                follower.tell(FollowBody::Waiting { position, estimated_wait_ms });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_ahead_share_the_slots() {
        for (ahead, free, slots, run_ms, expected) in [
            (0, 1, 2, 1000.0, 0),
            (0, 0, 1, 1000.0, 1000),
            (9, 0, 5, 1000.0, 2000),
            (9, 5, 5, 1000.0, 1000),
            (3, 0, 0, 100.0, 400),
        ] {
            assert_eq!(until_free(ahead, free, slots, run_ms), expected, "{ahead} {free} {slots}");
        }
    }

    #[test]
    fn the_pace_follows_what_happens() {
        let mut paces = Paces::default();
        assert_eq!(paces.of("m:a"), None);
        paces.ran("m:a", 1000);
        (0..30).for_each(|_| paces.ran("m:a", 100));
        assert!((100.0..105.0).contains(&paces.of("m:a").unwrap()));
    }
}
