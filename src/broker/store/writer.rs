//! The one thread that writes: it takes what has gathered, does it in one transaction, and
//! answers after the commit. While it waits for the disk, the next transaction gathers.

use std::collections::VecDeque;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::mpsc::UnboundedSender;

use super::reserve::Reserve;
use super::{
    Accepted, Cancelled, Claim, Claimed, Clear, Depth, Due, End, Insert, Moved, Ready, Refill,
    Retried, Store, StoreError,
};
use crate::protocol::control::{Refusal, RefusalKind};
use crate::task::TaskId;

/// Steps that one transaction takes at most: enough to make a commit cheap, few enough that
/// nobody waits long behind it.
const STEPS_MAX: usize = 2048;
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// One thing to do in the store.
#[derive(Debug)]
pub(crate) enum Op {
    Insert(Insert),
    Claim(Claim),
    End(End),
    Cancel {
        id: TaskId,
        now_ms: i64,
    },
    Clear(Clear),
    Retry {
        id: TaskId,
        now_ms: i64,
    },
    Promote {
        now_ms: i64,
        limit: u32,
    },
    Expire {
        now_ms: i64,
        limit: u32,
    },
    Prune {
        finished_before_ms: i64,
        limit: u32,
    },
    Refill(Refill),
    Pause {
        queue: Option<String>,
        paused: bool,
    },
    Depth,
    /// Does nothing but make everything before it hold.
    Sync,
}

/// What came of it. Answers come in the order of their ops.
#[derive(Debug)]
pub(crate) enum Answer {
    Inserted(Result<Vec<Accepted>, Refusal>),
    /// `Err` if the disk is full: the task is as it was.
    Claimed(Result<Option<Claimed>, DiskFull>),
    Ended(Option<Moved>),
    Cancelled(Result<Option<Cancelled>, Refusal>),
    Cleared(Result<Vec<Moved>, Refusal>),
    Retried(Result<Option<Retried>, Refusal>),
    Promoted(Due),
    Expired(Due),
    Pruned(u32),
    Refilled(Vec<Ready>),
    Paused(Result<(), Refusal>),
    Depth(Depth),
    Synced,
}

/// There was no room for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskFull;

/// What the writer tells the broker's loop.
#[derive(Debug)]
pub(crate) enum Told {
    /// The answers of one batch, committed. `holds`: a power cut does not undo them, nor any
    /// that were told before.
    Answers { answers: Vec<Answer>, holds: bool },
    /// The disk is full, or has room again.
    DiskFull(bool),
    /// The store is of no use any more; one sentence.
    Broken(String),
}

/// The broker's end of the writer.
pub(crate) struct Writer {
    ops: Option<Sender<Vec<Op>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        store: Box<dyn Store>,
        reserve: Reserve,
        told: UnboundedSender<Told>,
    ) -> std::io::Result<Self> {
        let (ops, inbox) = crossbeam_channel::unbounded();
        let state = State { store, reserve, told, full: false };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || state.run(&inbox))?;
        Ok(Self { ops: Some(ops), thread: Some(thread) })
    }

    /// Hands over a batch; its answers come back together. A writer that is gone has said why.
    pub(crate) fn send(&self, batch: Vec<Op>) {
        if let Some(ops) = &self.ops {
            let _ = ops.send(batch);
        }
    }

    /// Waits until everything sent is done and the database is tidy.
    pub(crate) fn close(mut self) {
        self.ops = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct State {
    store: Box<dyn Store>,
    reserve: Reserve,
    told: UnboundedSender<Told>,
    /// The last commit found no room.
    full: bool,
}

type Batches = VecDeque<Vec<Op>>;

impl State {
    fn run(mut self, inbox: &Receiver<Vec<Op>>) {
        while let Some(batches) = self.gather(inbox) {
            if let Err(error) = self.work(batches) {
                tracing::error!("{error}");
                let _ = self.told.send(Told::Broken(error.to_string()));
                return;
            }
        }
        self.store.close();
    }

    /// Everything that waits, up to a limit; `None` when the broker has let go.
    fn gather(&mut self, inbox: &Receiver<Vec<Op>>) -> Option<Batches> {
        let first = loop {
            if !self.full {
                break inbox.recv().ok()?;
            }
            match inbox.recv_timeout(FULL_RETRY) {
                Ok(batch) => break batch,
                Err(RecvTimeoutError::Timeout) => self.look_for_room(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        };
        let mut steps = steps_of(&first);
        let mut batches = VecDeque::from([first]);
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
        }
        if !self.full {
            match self.commit_all(&batches) {
                Ok((answers, holds)) => {
                    self.tell(answers, holds);
                    return Ok(());
                }
                Err(StoreError::Full) => self.become_full(),
                Err(error) => return Err(error),
            }
        }
        // Out of room: results go alone, as long as it takes; the rest is refused.
        for batch in batches {
            let answers =
                batch.iter().map(|op| self.one_when_full(op)).collect::<Result<_, _>>()?;
            // Only these are never answered without a commit that holds.
            let holds = batch.iter().any(|op| matches!(op, Op::End(_) | Op::Sync));
            self.tell(vec![answers], holds);
        }
        Ok(())
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

    fn step(&mut self, op: &Op) -> Result<Answer, StoreError> {
        let store = &mut self.store;
        Ok(match op {
            Op::Insert(insert) => Answer::Inserted(store.insert(insert)?),
            Op::Claim(claim) => Answer::Claimed(Ok(store.claim(claim)?)),
            Op::End(end) => Answer::Ended(store.end(end)?),
            Op::Cancel { id, now_ms } => Answer::Cancelled(Ok(store.cancel(*id, *now_ms)?)),
            Op::Clear(clear) => Answer::Cleared(Ok(store.clear(clear)?)),
            Op::Retry { id, now_ms } => Answer::Retried(Ok(store.retry(*id, *now_ms)?)),
            Op::Promote { now_ms, limit } => Answer::Promoted(store.promote(*now_ms, *limit)?),
            Op::Expire { now_ms, limit } => Answer::Expired(store.expire(*now_ms, *limit)?),
            Op::Prune { finished_before_ms, limit } => {
                Answer::Pruned(store.prune(*finished_before_ms, *limit)?)
            }
            Op::Refill(refill) => Answer::Refilled(store.refill(refill)?),
            Op::Pause { queue, paused } => {
                Answer::Paused(Ok(store.pause(queue.as_deref(), *paused)?))
            }
            Op::Depth => Answer::Depth(store.depth()?),
            Op::Sync => Answer::Synced,
        })
    }

    /// One op on a full disk.
    fn one_when_full(&mut self, op: &Op) -> Result<Answer, StoreError> {
        loop {
            let answer = match op {
                Op::Insert(_) => return Ok(Answer::Inserted(Err(no_room()))),
                Op::Claim(_) => return Ok(Answer::Claimed(Err(DiskFull))),
                op => self.alone(op),
            };
            match (answer, op) {
                (Ok(answer), _) => return Ok(answer),
                (Err(StoreError::Full), Op::Cancel { .. }) => {
                    return Ok(Answer::Cancelled(Err(no_room())));
                }
                (Err(StoreError::Full), Op::Clear(_)) => {
                    return Ok(Answer::Cleared(Err(no_room())));
                }
                (Err(StoreError::Full), Op::Retry { .. }) => {
                    return Ok(Answer::Retried(Err(no_room())));
                }
                (Err(StoreError::Full), Op::Pause { .. }) => {
                    return Ok(Answer::Paused(Err(no_room())));
                }
                (Err(StoreError::Full), Op::Promote { now_ms, .. }) => {
                    return Ok(Answer::Promoted(try_later(*now_ms)));
                }
                (Err(StoreError::Full), Op::Expire { now_ms, .. }) => {
                    return Ok(Answer::Expired(try_later(*now_ms)));
                }
                (Err(StoreError::Full), Op::Prune { .. }) => return Ok(Answer::Pruned(0)),
                // A result is kept, however long there is no room.
                (Err(StoreError::Full), _) => wait_for_room(),
                (Err(error), _) => return Err(error),
            }
        }
    }

    fn alone(&mut self, op: &Op) -> Result<Answer, StoreError> {
        // What only reads needs no room at all.
        self.store.begin(!matches!(op, Op::Depth | Op::Refill(_)))?;
        let done = self.step(op).and_then(|answer| self.store.commit().map(|()| answer));
        if done.is_err() {
            self.store.rollback();
        }
        done
    }

    fn tell(&self, batches: Vec<Vec<Answer>>, holds: bool) {
        for answers in batches {
            let _ = self.told.send(Told::Answers { answers, holds });
        }
    }

    fn become_full(&mut self) {
        tracing::error!("the disk is full: submissions are refused, results are still kept");
        self.full = true;
        self.reserve.give_up();
        let _ = self.told.send(Told::DiskFull(true));
    }

    fn look_for_room(&mut self) {
        if self.reserve.take_again().is_ok() {
            tracing::info!("the disk has room again");
            self.full = false;
            let _ = self.told.send(Told::DiskFull(false));
        }
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

/// Whether somebody is told of this op's success at once, and so must be able to rely on it. A
/// claim that is undone is only a task that runs again, and a result that nobody waits for can
/// wait for the next commit that holds: its worker keeps it until then.
fn must_hold(op: &Op) -> bool {
    matches!(
        op,
        Op::Insert(_)
            | Op::End(End { awaited: true, .. })
            | Op::Sync
            | Op::Cancel { .. }
            | Op::Clear(_)
            | Op::Retry { .. }
            | Op::Pause { .. }
    )
}

fn no_room() -> Refusal {
    let message = "the disk is full: make room, then try again; what was accepted is safe";
    Refusal::new(RefusalKind::Unavailable, message)
}

fn try_later(now_ms: i64) -> Due {
    Due { moved: Vec::new(), next_at_ms: Some(now_ms + 1000) }
}

#[allow(clippy::disallowed_methods, reason = "no condition to wait on: only the clock")]
fn wait_for_room() {
    std::thread::sleep(FULL_RETRY);
}

#[cfg(test)]
mod tests;
