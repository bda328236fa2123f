//! The writer on a full disk: results go alone, into the room that the reserve had held, and wait
//! if even that is gone; everything else is answered at once, mostly by a refusal.

use super::thread::State;
use super::{Answer, DiskFull, Op, Told};
use crate::broker::store::{Due, StoreError};
use crate::protocol::control::{Refusal, RefusalKind};

/// When what time brings is looked at again.
const LATER_MS: i64 = 1000;

impl State {
    /// One op on a full disk.
    pub(super) fn work_without_room(&mut self, op: Op) -> Result<(), StoreError> {
        let number = self.number(1);
        // What must keep its order stays behind the first that waits for room.
        let behind = !self.stuck.is_empty() && matches!(op, Op::End(_) | Op::Sync);
        let answer = if behind { None } else { self.try_alone(&op)? };
        match answer {
            Some(answer) => self.tell_one(number, answer),
            None => self.stuck.push_back((number, op)),
        }
        Ok(())
    }

    /// Tries the results that wait for room again, in their order.
    pub(super) fn work_on_the_stuck(&mut self) -> Result<(), StoreError> {
        while let Some((number, op)) = self.stuck.pop_front() {
            let Some(answer) = self.try_alone(&op)? else {
                self.stuck.push_front((number, op));
                if !self.full {
                    self.become_full();
                }
                break;
            };
            self.tell_one(number, answer);
        }
        Ok(())
    }

    /// `None` if it waits for room.
    fn try_alone(&mut self, op: &Op) -> Result<Option<Answer>, StoreError> {
        // Not even tried: their room is for results.
        if self.full && matches!(op, Op::Insert(_) | Op::InsertRun { .. } | Op::Claim(_)) {
            return Ok(refused(op));
        }
        match self.alone(op) {
            Ok(answer) => Ok(Some(answer)),
            Err(StoreError::Full) => Ok(refused(op)),
            Err(error) => Err(error),
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

    fn tell_one(&self, first: u64, answer: Answer) {
        // Only these are never answered without a commit that holds.
        let holds = matches!(answer, Answer::Ended(_) | Answer::Synced);
        let _ = self.told.send(Told::Answers { first, answers: vec![answer], holds });
    }

    pub(super) fn become_full(&mut self) {
        tracing::error!("the disk is full: submissions are refused, results are still kept");
        self.full = true;
        self.reserve.give_up();
        let _ = self.told.send(Told::DiskFull(true));
    }

    pub(super) fn look_for_room(&mut self) {
        if self.reserve.take_again().is_ok() {
            tracing::info!("the disk has room again");
            self.full = false;
            let _ = self.told.send(Told::DiskFull(false));
        }
    }
}

/// The answer of an op that found no room. `None`: it waits for room, however long.
fn refused(op: &Op) -> Option<Answer> {
    Some(match op {
        Op::Insert(_) | Op::InsertRun { .. } => Answer::Inserted(Err(no_room())),
        Op::Claim(_) => Answer::Claimed(Err(DiskFull)),
        Op::Cancel { .. } => Answer::Cancelled(Err(no_room())),
        Op::Clear(_) => Answer::Cleared(Err(no_room())),
        Op::ForgetSession { .. } => Answer::SessionForgotten(Err(no_room())),
        Op::Retry { .. } => Answer::Retried(Err(no_room())),
        Op::Pause { .. } => Answer::Paused(Err(no_room())),
        Op::Promote { now_ms, .. } => Answer::Promoted(try_later(*now_ms)),
        Op::Expire { now_ms, .. } => Answer::Expired(try_later(*now_ms)),
        Op::Prune { .. } => Answer::Pruned(0),
        // This broker knows; one that comes after it in this plight may count too little.
        Op::Remember(_) | Op::ForgetRuns { .. } => Answer::Remembered,
        Op::Nothing => Answer::Nothing,
        Op::End(_) | Op::Sync | Op::Depth | Op::Refill(_) => return None,
    })
}

fn no_room() -> Refusal {
    let message = "the disk is full: make room, then try again; what was accepted is safe";
    Refusal::new(RefusalKind::Unavailable, message)
}

fn try_later(now_ms: i64) -> Due {
    Due { moved: Vec::new(), next_at_ms: Some(now_ms + LATER_MS) }
}
