//! The one thread that writes, and what it is asked.
//!
//! [`thread`]: how it takes what has gathered and does it in one transaction; [`full`]: what it
//! does while there is no room.

mod full;
mod thread;

use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use tokio::sync::mpsc::UnboundedSender;

use super::reserve::Reserve;
use super::{
    Accepted, Cancelled, Claim, Claimed, Clear, Depth, Due, End, Forgotten, Insert, LastRun, Moved,
    Ready, Refill, Retried, Retry, Store,
};
use crate::broker::permits::Memo;
use crate::protocol::control::Refusal;
use crate::task::TaskId;

/// One thing to do in the store.
#[derive(Debug)]
pub(crate) enum Op {
    Insert(Insert),
    /// Also remembers the run, if the submission is accepted.
    InsertRun {
        insert: Insert,
        run: LastRun,
    },
    Claim(Claim),
    End(End),
    Cancel {
        id: TaskId,
        now_ms: i64,
    },
    Clear(Clear),
    Retry(Retry),
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
        /// Conversations that ended before; absent: they stay.
        idle_before_ms: Option<i64>,
        limit: u32,
    },
    ForgetSession {
        name: String,
        now_ms: i64,
    },
    Refill(Refill),
    Pause {
        queue: Option<String>,
        paused: bool,
    },
    Depth,
    /// Remembers what permits must not forget.
    Remember(Memo),
    /// Forgets when a schedule ran last.
    ForgetRuns {
        schedule: String,
    },
    /// Does nothing: its answer comes after those of the ops before it.
    Nothing,
    /// Does nothing but make everything before it hold.
    Sync,
}

/// What came of it.
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
    SessionForgotten(Result<Option<Forgotten>, Refusal>),
    Refilled(Vec<Ready>),
    Paused(Result<(), Refusal>),
    Depth(Depth),
    /// As far as there was room.
    Remembered,
    Nothing,
    Synced,
}

/// There was no room for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskFull;

/// What the writer tells the broker's loop.
#[derive(Debug)]
pub(crate) enum Told {
    /// The answers of ops in a row, committed; `first` is the number of the first of them, counted
    /// from 0 over all that was ever sent. Only a result without room is answered out of turn.
    /// `holds`: a power cut does not undo them, nor any that were told before.
    Answers { first: u64, answers: Vec<Answer>, holds: bool },
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
        let state = thread::State::new(store, reserve, told);
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

/// Whether somebody is told of this op's success at once, and so must be able to rely on it. A
/// claim that is undone is only a task that runs again, and a result that nobody waits for can
/// wait for the next commit that holds: its worker keeps it until then.
fn must_hold(op: &Op) -> bool {
    matches!(
        op,
        Op::Insert(_)
            | Op::InsertRun { .. }
            | Op::End(End { awaited: true, .. })
            | Op::Sync
            | Op::Cancel { .. }
            | Op::Clear(_)
            | Op::ForgetSession { .. }
            | Op::Retry(_)
            | Op::Pause { .. }
    )
}

#[cfg(test)]
mod tests;
