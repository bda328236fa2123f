//! The loop: take what has gathered, do it in one transaction, and answer after the commit. While
//! it waits for the disk, the next transaction gathers.

use std::collections::VecDeque;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::mpsc::UnboundedSender;

use super::{Answer, Op, Told, must_hold};
use crate::broker::store::reserve::Reserve;
use crate::broker::store::{Store, StoreError};

/// Steps that one transaction takes at most: enough to make a commit cheap, few enough that
/// nobody waits long behind it.
const STEPS_MAX: usize = 2048;
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(500);

pub(super) struct State {
    pub(super) store: Box<dyn Store>,
    pub(super) reserve: Reserve,
    pub(super) told: UnboundedSender<Told>,
    /// The last commit found no room.
    pub(super) full: bool,
    /// Results, and what must stay behind them, that found no room; each with its number.
    pub(super) stuck: VecDeque<(u64, Op)>,
    /// The number of the next op.
    next: u64,
}

type Batches = VecDeque<Vec<Op>>;

impl State {
    pub(super) fn new(
        store: Box<dyn Store>,
        reserve: Reserve,
        told: UnboundedSender<Told>,
    ) -> Self {
        Self { store, reserve, told, full: false, stuck: VecDeque::new(), next: 0 }
    }

    pub(super) fn run(mut self, inbox: &Receiver<Vec<Op>>) {
        while let Some(batches) = self.gather(inbox) {
            if let Err(error) = self.work(batches) {
                tracing::error!("{error}");
                let _ = self.told.send(Told::Broken(error.to_string()));
                return;
            }
        }
        self.store.close();
    }

    /// Everything that waits, up to a limit; nothing if a full disk is to be tried again; `None`
    /// when the broker has let go.
    fn gather(&self, inbox: &Receiver<Vec<Op>>) -> Option<Batches> {
        let first = if self.full {
            inbox.recv_timeout(FULL_RETRY)
        } else {
            inbox.recv().map_err(RecvTimeoutError::from)
        };
        let first = match first {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => return Some(Batches::new()),
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let mut steps = steps_of(&first);
        let mut batches = Batches::from([first]);
        while steps < STEPS_MAX
            && let Ok(batch) = inbox.try_recv()
        {
            steps += steps_of(&batch);
            batches.push_back(batch);
        }
        Some(batches)
    }

    fn work(&mut self, batches: Batches) -> Result<(), StoreError> {
        if self.full {
            self.look_for_room();
            self.work_on_the_stuck()?;
        }
        if !self.full {
            match self.commit_all(&batches) {
                Ok((answers, holds)) => {
                    answers.into_iter().for_each(|answers| self.tell_next(answers, holds));
                    return Ok(());
                }
                Err(StoreError::Full) => self.become_full(),
                Err(error) => return Err(error),
            }
        }
        batches.into_iter().flatten().try_for_each(|op| self.work_without_room(op))
    }

    fn commit_all(&mut self, batches: &Batches) -> Result<(Vec<Vec<Answer>>, bool), StoreError> {
        let durable = batches.iter().flatten().any(must_hold);
        let done = self.store.begin(durable).and_then(|()| {
            let answers = batches
                .iter()
                .map(|batch| batch.iter().map(|op| self.step(op)).collect())
                .collect::<Result<_, _>>()?;
            self.store.commit()?;
            Ok((answers, durable))
        });
        if done.is_err() {
            self.store.rollback();
        }
        done
    }

    pub(super) fn step(&mut self, op: &Op) -> Result<Answer, StoreError> {
        let store = &mut self.store;
        Ok(match op {
            Op::Insert(insert) => Answer::Inserted(store.insert(insert)?),
            Op::InsertRun { insert, run } => {
                let inserted = store.insert(insert)?;
                if inserted.is_ok() {
                    store.remember_run(&run.schedule, Some(run.at_ms))?;
                }
                Answer::Inserted(inserted)
            }
            Op::Claim(claim) => Answer::Claimed(Ok(store.claim(claim)?)),
            Op::End(end) => Answer::Ended(store.end(end)?),
            Op::Cancel { id, now_ms } => Answer::Cancelled(Ok(store.cancel(*id, *now_ms)?)),
            Op::Clear(clear) => Answer::Cleared(Ok(store.clear(clear)?)),
            Op::Retry(retry) => Answer::Retried(Ok(store.retry(retry)?)),
            Op::Promote { now_ms, limit } => Answer::Promoted(store.promote(*now_ms, *limit)?),
            Op::Expire { now_ms, limit } => Answer::Expired(store.expire(*now_ms, *limit)?),
            Op::Prune { finished_before_ms, idle_before_ms, limit } => {
                let pruned = store.prune(*finished_before_ms, *limit)?;
                let idle = idle_before_ms.map(|before_ms| store.prune_sessions(before_ms, *limit));
                // Whichever has more to do.
                Answer::Pruned(pruned.max(idle.transpose()?.unwrap_or(0)))
            }
            Op::ForgetSession { name, now_ms } => {
                Answer::SessionForgotten(Ok(store.forget_session(name, *now_ms)?))
            }
            Op::Refill(refill) => Answer::Refilled(store.refill(refill)?),
            Op::Pause { queue, paused } => {
                Answer::Paused(Ok(store.pause(queue.as_deref(), *paused)?))
            }
            Op::Remember(memo) => {
                store.remember(memo)?;
                Answer::Remembered
            }
            Op::ForgetRuns { schedule } => {
                store.remember_run(schedule, None)?;
                Answer::Remembered
            }
            Op::Depth => Answer::Depth(store.depth()?),
            Op::Nothing => Answer::Nothing,
            Op::Sync => Answer::Synced,
        })
    }

    /// Answers the ops that come next.
    fn tell_next(&mut self, answers: Vec<Answer>, holds: bool) {
        let first = self.number(answers.len());
        let _ = self.told.send(Told::Answers { first, answers, holds });
    }

    /// The number of the next op, of `count` that are taken together.
    pub(super) fn number(&mut self, count: usize) -> u64 {
        let first = self.next;
        self.next += count as u64;
        first
    }
}

/// What a batch costs a transaction.
fn steps_of(batch: &[Op]) -> usize {
    let steps = |op: &Op| match op {
        Op::Insert(insert) => insert.tasks.len(),
        _ => 1,
    };
    batch.iter().map(steps).sum()
}
