//! What `benches/core.rs` measures and the library does not show otherwise. No part of the API:
//! it may change with any release.

use crate::broker::queue::{self, Queues};
use crate::broker::store::{Ord, Ready};
use crate::handler::Needs;
use crate::protocol::link::Seq;
use crate::task::PRIORITY_DEFAULT;

/// Ready tasks that memory holds of one queue and priority.
pub const WINDOW_TASKS_MAX: usize = queue::WINDOW_TASKS_MAX;

/// The queue decisions, with as little between them and the caller as the broker has.
#[derive(Debug, Default)]
pub struct Decisions {
    queues: Queues,
    last: Ord,
}

impl Decisions {
    /// Takes in a task that became ready after all others.
    pub fn push(&mut self, queue: &str) {
        self.last += 1;
        self.queues.push(&ready(queue, self.last));
    }

    /// Takes the task that runs next, ends it, and puts another into the queue that it was of:
    /// as many wait afterwards as before. False if none may run.
    pub fn turn_over(&mut self) -> bool {
        let Some(next) = self.queues.pop(0, &mut |_, _, _| true) else { return false };
        self.push(&next.queue);
        self.queues.ended(&next.queue);
        true
    }

    /// Takes the tasks that run next, at most `count_max`, and ends them. How many there were.
    pub fn drain(&mut self, count_max: usize) -> usize {
        let mut count = 0;
        while count < count_max
            && let Some(next) = self.queues.pop(0, &mut |_, _, _| true)
        {
            self.queues.ended(&next.queue);
            count += 1;
        }
        count
    }

    /// Refills what runs low, as a store would that has more than is asked for. How many tasks
    /// came in.
    pub fn refill(&mut self) -> usize {
        let needs = self.queues.needs();
        let mut count = 0;
        for need in &needs {
            let found: Vec<_> = (need.after + 1..)
                .take(need.limit as usize)
                .map(|ord| ready(&need.queue, ord))
                .collect();
            count += found.len();
            self.queues.refilled(need, &found);
        }
        count
    }
}

fn ready(queue: &str, ord: Ord) -> Ready {
    let seq: Seq = ord;
    let needs = Needs::default();
    Ready {
        queue: queue.to_owned(),
        priority: PRIORITY_DEFAULT,
        ord,
        seq,
        solo: false,
        needs,
        session: None,
    }
}
