//! What time moves: delays that are over, tasks that expired, results that are old.

use super::{READY_COLUMNS, Sqlite, ready_at};
use crate::broker::store::{Due, Moved, StoreError};
use crate::protocol::link::Seq;
use crate::task::State;

/// Steps that are forgotten at once for each task that may be.
const STEPS_A_TASK: u32 = 8;

impl Sqlite {
    pub(super) fn promote_due(&mut self, now_ms: i64, limit: u32) -> Result<Due, StoreError> {
        let due = self.seqs(
            "SELECT seq FROM tasks WHERE state = 2 AND due_at <= ?1 ORDER BY due_at LIMIT ?2",
            now_ms,
            limit,
        )?;
        let mut moved = Vec::with_capacity(due.len());
        for seq in due {
            let ord = self.next_ord();
            let sql = format!(
                "UPDATE tasks SET state = 0, ord = ?2 WHERE seq = ?1
                 RETURNING id, {READY_COLUMNS}"
            );
            let (ready, id) = self.db.prepare_cached(&sql)?.query_row((seq, ord), |row| {
                Ok((ready_at(row, 1)?, super::look::id_of(row, 0)?))
            })?;
            self.count(&ready.queue, Some(State::Scheduled), State::Queued);
            moved.push(Moved { ready: Some(ready), ..Moved::of(seq, id, State::Queued) });
        }
        Ok(Due { moved, next_at_ms: self.next_due()? })
    }

    pub(super) fn expire_due(&mut self, now_ms: i64, limit: u32) -> Result<Due, StoreError> {
        let expired = self.seqs(
            "SELECT seq FROM tasks WHERE expires_at IS NOT NULL AND state IN (0, 2, 3)
               AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
            now_ms,
            limit,
        )?;
        let mut moved = Vec::with_capacity(expired.len());
        for seq in expired {
            moved.push(self.expire_one(seq, now_ms)?);
        }
        Ok(Due { moved, next_at_ms: self.next_expiry()? })
    }

    pub(super) fn prune_some(
        &mut self,
        finished_before_ms: i64,
        limit: u32,
    ) -> Result<u32, StoreError> {
        let old = self.seqs(
            "SELECT seq FROM tasks WHERE finished_at IS NOT NULL AND finished_at < ?1
               AND parent IS NULL AND NOT EXISTS (
                 WITH RECURSIVE within (seq, ended) AS (
                   SELECT seq, ended FROM tasks AS step WHERE step.parent = tasks.seq
                   UNION ALL
                   SELECT step.seq, step.ended
                   FROM within JOIN tasks AS step ON step.parent = within.seq)
                 SELECT 1 FROM within WHERE ended IS NULL)
             ORDER BY finished_at LIMIT ?2",
            finished_before_ms,
            limit,
        )?;
        // A run's steps are kept as long as the run, and take as long to forget.
        let mut room = limit.saturating_mul(STEPS_A_TASK);
        for seq in &old {
            room -= self.forget(*seq, room)?;
        }
        let now_ms = super::now_us() / 1000;
        self.prune_usage(now_ms)?;
        let oldest = crate::broker::permits::oldest_slot(now_ms);
        self.db.prepare_cached("DELETE FROM spent WHERE slot < ?1")?.execute([oldest])?;
        // Whatever was left is found again at once.
        Ok(if room == 0 { limit } else { old.len() as u32 })
    }

    fn seqs(&self, sql: &str, time_ms: i64, limit: u32) -> Result<Vec<Seq>, StoreError> {
        let mut query = self.db.prepare_cached(sql)?;
        let found = query.query_map((time_ms, limit), |row| row.get(0))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    pub(super) fn next_due(&self) -> Result<Option<i64>, StoreError> {
        self.least("SELECT min(due_at) FROM tasks WHERE state = 2")
    }

    pub(super) fn next_expiry(&self) -> Result<Option<i64>, StoreError> {
        self.least(
            "SELECT min(expires_at) FROM tasks
             WHERE expires_at IS NOT NULL AND state IN (0, 2, 3)",
        )
    }

    fn least(&self, sql: &str) -> Result<Option<i64>, StoreError> {
        Ok(self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }
}
