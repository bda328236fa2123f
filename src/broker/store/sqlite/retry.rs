//! Failed tasks that are put back, and runs that are resumed.

use std::collections::BTreeSet;

use rusqlite::OptionalExtension;

use super::look::id_of;
use super::moves::{BEFORE_COLUMNS, Before, before_of, to_json};
use super::steps::{Twin, key_taken};
use super::{READY_COLUMNS, Sqlite, code, ready_of};
use crate::broker::store::{Moved, Ord, Ready, Retried, Retry, StoreError};
use crate::protocol::link::Seq;
use crate::task::{State, TaskId};
use crate::workflow::step_of;

impl Sqlite {
    pub(super) fn retry_one(&mut self, retry: &Retry) -> Result<Option<Retried>, StoreError> {
        let Some(before) = self.before("id = ?1", retry.id.0.as_bytes())? else { return Ok(None) };
        let redone = retry.redo.is_some() && before.state == State::Succeeded;
        if before.state != State::Failed && !redone {
            return Ok(Some(Retried::Not(before.state)));
        }
        if let Some(run) = before.parent {
            let id = self
                .db
                .prepare_cached("SELECT id FROM tasks WHERE seq = ?1")?
                .query_row([run], |row| id_of(row, 0))?;
            return Ok(Some(Retried::StepOf(id)));
        }
        if !redone && let Some(heir) = self.heir_of_key(before.seq)? {
            return Ok(Some(Retried::KeyTaken(heir)));
        }
        if let Some(redo) = &retry.redo
            && let Some(step) = self.forget_steps(before.seq, redo)?
        {
            return Ok(Some(Retried::StillRuns(step)));
        }
        self.put_back_by_hand(before).map(|moved| Some(Retried::Back(Box::new(moved))))
    }

    fn put_back_by_hand(&mut self, before: Before) -> Result<Moved, StoreError> {
        let blocked = match &before.lane {
            Some(lane) => self.lane_is_busy(lane)?,
            None => false,
        };
        let state = if blocked { State::Blocked } else { State::Queued };
        let ord = self.next_ord();
        let sql = format!(
            "UPDATE tasks SET state = ?2, ord = ?3, charged = 0, suspect = 0, cancel_asked = 0,
               attempt_at_retry = attempt, finished_at = NULL, expires_at = NULL, due_at = NULL,
               output = NULL, ended = NULL, blamed = 0,
               stepping = CASE WHEN stepping = 0 THEN 0 ELSE 2 END
             WHERE seq = ?1 RETURNING {READY_COLUMNS}"
        );
        let ready =
            self.db.prepare_cached(&sql)?.query_row((before.seq, code(state), ord), ready_of)?;
        self.count(&before.queue, None, state);
        let mut moved = Moved::of(before.seq, before.id, state);
        moved.ready = (state == State::Queued).then_some(ready);
        Ok(moved)
    }

    /// The task that a failed task's key stands for by now.
    fn heir_of_key(&self, seq: Seq) -> Result<Option<TaskId>, StoreError> {
        let sql = "SELECT id FROM tasks WHERE key = (SELECT key FROM tasks WHERE seq = ?1)
                   AND state < 5 LIMIT 1";
        Ok(self.db.prepare_cached(sql)?.query_row([seq], |row| id_of(row, 0)).optional()?)
    }

    /// Notes which steps a run has failed for, or would have, had it heard of them: a retry would
    /// only fail for these.
    pub(super) fn blame(&self, run: Seq, keys: &[String], heard: Ord) -> Result<(), StoreError> {
        // Keys are text: as JSON they are one parameter, and the steps are looked at once.
        let keys = serde_json::Value::from(keys).to_string();
        self.db
            .prepare_cached(
                "UPDATE tasks SET blamed = 1 WHERE parent = ?1 AND state = 5
                   AND (ended > ?3 OR step IN (SELECT value FROM json_each(?2)))",
            )?
            .execute((run, keys, heard))?;
        Ok(())
    }

    /// The same of a step that fails when its run has failed already.
    pub(super) fn blame_late(&self, step: Seq, run: Seq) -> Result<(), StoreError> {
        let sql = "UPDATE tasks SET blamed = 1
                   WHERE seq = ?1 AND (SELECT state FROM tasks WHERE seq = ?2) = 5";
        self.db.prepare_cached(sql)?.execute((step, run))?;
        Ok(())
    }

    /// The turn of a run that was put back has come: the steps that it failed for go back, too, and
    /// those that were not started for it.
    pub(super) fn resume_steps(&mut self, run: Seq) -> Result<Vec<Ready>, StoreError> {
        let resumes = self
            .db
            .prepare_cached("UPDATE tasks SET stepping = 1 WHERE seq = ?1 AND stepping = 2")?
            .execute([run])?;
        if resumes == 0 {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {BEFORE_COLUMNS} FROM tasks
             WHERE parent = ?1 AND (state = 6 OR state = 5 AND blamed = 1)"
        );
        let steps: Vec<Before> =
            self.db.prepare_cached(&sql)?.query_map([run], before_of)?.collect::<Result<_, _>>()?;
        let mut resumed = Vec::with_capacity(steps.len());
        for step in steps {
            resumed.extend(self.resume_step(step)?);
        }
        Ok(resumed)
    }

    /// A step goes back, unless its key stands for another task by now: then it waits for that one's
    /// answer, or has it.
    fn resume_step(&mut self, step: Before) -> Result<Option<Ready>, StoreError> {
        let sql =
            "SELECT coalesce(key, (SELECT key FROM tasks AS of WHERE of.seq = tasks.twin)), kind
                   FROM tasks WHERE seq = ?1";
        let (key, kind): (Option<String>, String) = self
            .db
            .prepare_cached(sql)?
            .query_row([step.seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let twin = match &key {
            Some(key) => self.twin_of((&kind, &self.read_whole_input(step.seq)?), key)?,
            None => Twin::None,
        };
        let seq = step.seq;
        match &twin {
            Twin::None => {
                let sql = "UPDATE tasks SET key = ?2, twin = NULL WHERE seq = ?1";
                self.db.prepare_cached(sql)?.execute((seq, key))?;
                Ok(self.put_back_by_hand(step)?.ready)
            }
            Twin::Open(of) => {
                let queue = step.queue.clone();
                self.put_back_by_hand(step)?;
                let sql = "UPDATE tasks SET state = 3, key = NULL, twin = ?2 WHERE seq = ?1";
                self.db.prepare_cached(sql)?.execute((seq, of))?;
                self.count(&queue, Some(State::Queued), State::Blocked);
                Ok(None)
            }
            Twin::Ended(of) => {
                let (ended, now_ms) = (self.next_ord(), super::now_us() / 1000);
                self.db
                    .prepare_cached(
                        "UPDATE tasks SET state = 4, key = NULL, twin = NULL, blamed = 0, ended = ?3,
                           finished_at = ?4, error = NULL,
                           output = (SELECT output FROM tasks WHERE seq = ?2)
                         WHERE seq = ?1",
                    )?
                    .execute((seq, of, ended, now_ms))?;
                self.count(&step.queue, None, State::Succeeded);
                Ok(None)
            }
            Twin::Other(error) => {
                let sql = "UPDATE tasks SET error = ?2 WHERE seq = ?1";
                self.db.prepare_cached(sql)?.execute((seq, to_json(&key_taken(error))))?;
                Ok(None)
            }
        }
    }

    /// Forgets the steps with these names, that they be run again. The key of one that runs, if
    /// there is one: then nothing is forgotten.
    fn forget_steps(
        &mut self,
        run: Seq,
        names: &BTreeSet<String>,
    ) -> Result<Option<String>, StoreError> {
        let mut query = self
            .db
            .prepare_cached("SELECT seq, step, ended IS NULL FROM tasks WHERE parent = ?1")?;
        let found = query
            .query_map([run], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<Vec<(Seq, String, bool)>, _>>()?;
        drop(query);
        let named = |key: &str| names.contains(step_of(key));
        let again: Vec<_> = found.into_iter().filter(|(_, key, _)| named(key)).collect();
        for (seq, key, open) in &again {
            if *open || self.has_open_steps(*seq)? {
                return Ok(Some(key.clone()));
            }
        }
        for (seq, ..) in again {
            self.forget(seq, u32::MAX)?;
        }
        Ok(None)
    }

    /// Whether something runs on within a run that has ended.
    fn has_open_steps(&self, run: Seq) -> Result<bool, StoreError> {
        let sql = "WITH RECURSIVE within (seq, ended) AS (
                     SELECT seq, ended FROM tasks WHERE parent = ?1
                     UNION ALL
                     SELECT tasks.seq, tasks.ended FROM within JOIN tasks ON parent = within.seq)
                   SELECT 1 FROM within WHERE ended IS NULL LIMIT 1";
        Ok(self.db.prepare_cached(sql)?.exists([run])?)
    }

    /// Forgets a task that has ended, and its steps before it: so many tasks at most. Returns how
    /// many.
    pub(super) fn forget(&self, seq: Seq, tasks_max: u32) -> Result<u32, StoreError> {
        let mut left = vec![seq];
        let mut forgotten = 0;
        while let Some(seq) = left.last().copied().filter(|_| forgotten < tasks_max) {
            let sql = "SELECT seq FROM tasks WHERE parent = ?1 LIMIT ?2";
            let mut steps = self.db.prepare_cached(sql)?;
            let found = left.len();
            for step in steps.query_map((seq, tasks_max), |row| row.get(0))? {
                left.push(step?);
            }
            if left.len() > found {
                continue;
            }
            for sql in [
                "DELETE FROM tasks WHERE seq = ?1",
                "DELETE FROM inputs WHERE seq = ?1",
                "DELETE FROM attempts WHERE seq = ?1",
            ] {
                self.db.prepare_cached(sql)?.execute([seq])?;
            }
            left.pop();
            forgotten += 1;
        }
        Ok(forgotten)
    }
}
