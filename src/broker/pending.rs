//! What the store was asked, and what to do with its answers.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::protocol::calls::{Answered, Grant};
use crate::protocol::link::Run;
use crate::task::TaskId;

use super::Core;
use super::cache::Answer;
use super::clients::ReplyTo;
use super::queue::Need;
use super::requests::Changes;
use super::store::{self, Ready};

/// What to do with an answer, noted when its op was sent.
pub(crate) enum Pending {
    DryRun {
        to: ReplyTo,
    },
    Insert {
        to: ReplyTo,
        wait: bool,
    },
    /// Of a schedule, for this time.
    Run {
        name: String,
        at_ms: i64,
    },
    Claim {
        serial: u64,
        ready: Ready,
        grant: Option<Grant>,
        answer: Option<Arc<Answer>>,
    },
    End {
        run: Run,
        serial: u64,
        /// The worker that is to advance the run that this end wakes.
        advance: Option<u64>,
    },
    Cancel {
        id: TaskId,
        changes: Changes,
    },
    Retry {
        id: TaskId,
        changes: Changes,
    },
    Clear {
        to: ReplyTo,
        queue: Option<String>,
        cleared: u64,
    },
    ForgetSession {
        to: ReplyTo,
        name: String,
    },
    Promote,
    Expire,
    Prune,
    Refill(Need),
    Pause {
        to: ReplyTo,
        queue: Option<String>,
        paused: bool,
    },
    ExitSeen {
        serial: u64,
    },
    /// The clock asked for it.
    Sync,
    /// A read that must not tell what does not hold.
    Read(Box<dyn FnOnce(&mut Core)>),
    Queues {
        to: ReplyTo,
        queue: Option<String>,
    },
    Document {
        to: ReplyTo,
        write: fn(&mut Core, ReplyTo, store::Depth),
    },
    Drained,
    Remember,
    Answered {
        serial: u64,
        answered: Answered,
    },
}

/// The ops whose answers have not come, by number: they are counted from 0, as the writer does.
#[derive(Default)]
pub(crate) struct PendingOps {
    /// The number of the first that is kept.
    first: u64,
    /// `None` is answered already: nearly always all of it, as answers come in order.
    ops: VecDeque<Option<Pending>>,
}

impl PendingOps {
    pub(super) fn push(&mut self, pending: Pending) {
        self.ops.push_back(Some(pending));
    }

    /// Takes one whose answer has come; `None` if nobody asked.
    pub(super) fn take(&mut self, number: u64) -> Option<Pending> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let taken = self.ops.get_mut(index)?.take();
        while let Some(None) = self.ops.front() {
            self.ops.pop_front();
            self.first += 1;
        }
        taken
    }

    /// Whether every answer has come.
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Whether this permit is about to be told to its asker.
    pub(super) fn answers(&self, permit: u64) -> bool {
        self.ops.iter().flatten().any(|pending| match pending {
            Pending::Answered { answered, .. } => {
                answered.result.as_ref().is_ok_and(|grant| grant.permit == permit)
            }
            _ => false,
        })
    }

    /// Claims on their way, each as the worker it is for.
    pub(super) fn claims(&self) -> impl Iterator<Item = u64> {
        self.ops.iter().flatten().filter_map(|pending| match pending {
            Pending::Claim { serial, .. } => Some(*serial),
            Pending::End { advance, .. } => *advance,
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests may fail loudly")]

    use super::*;

    #[test]
    fn answers_find_their_ops_in_any_order() {
        let mut pending = PendingOps::default();
        (0..5).for_each(|serial| pending.push(Pending::ExitSeen { serial }));
        for number in [0, 3, 1, 4, 2] {
            let taken = pending.take(number).unwrap();
            assert!(matches!(taken, Pending::ExitSeen { serial } if serial == number));
            assert!(pending.take(number).is_none(), "only once");
        }
        assert!(pending.ops.is_empty() && pending.take(5).is_none());
        pending.push(Pending::ExitSeen { serial: 5 });
        assert!(pending.take(5).is_some());
    }
}
