//! The accounts: what calls took, by day, provider, model, agent and queue.

use super::Sqlite;
use crate::broker::budget::{DAY_MS, Spent, day_of};
use crate::broker::store::{End, StoreError};

/// Days that the accounts are kept: a year and a month, so that one can be held against another.
const USAGE_DAYS_MAX: i64 = 400;

impl Sqlite {
    /// Adds the calls of an attempt that ended. Its end moves the task only once, and so they are
    /// counted only once, whatever was resent.
    pub(super) fn count_calls(
        &mut self,
        end: &End,
        agent: Option<&str>,
        queue: &str,
    ) -> Result<(), StoreError> {
        for paid in &end.calls {
            let usage = paid.usage.filter(|_| !paid.cached).unwrap_or_default();
            let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.db
                .prepare_cached(
                    "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                     ON CONFLICT DO UPDATE SET
                       calls = calls + excluded.calls, failed = failed + excluded.failed,
                       cached = cached + excluded.cached,
                       tokens_in = tokens_in + excluded.tokens_in,
                       tokens_out = tokens_out + excluded.tokens_out,
                       cost = cost + excluded.cost",
                )?
                .execute(rusqlite::params![
                    day_of(end.now_ms),
                    paid.server,
                    paid.model,
                    agent.unwrap_or_default(),
                    queue,
                    !paid.cached,
                    paid.failed && !paid.cached,
                    paid.cached,
                    tokens(usage.prompt_tokens),
                    tokens(usage.completion_tokens),
                    paid.spent(),
                ])?;
        }
        Ok(())
    }

    /// What was spent on a day so far.
    pub(super) fn read_spent(&self, day: i64) -> Result<Spent, StoreError> {
        let mut spent = Spent::on(day);
        let mut query = self.db.prepare(
            "SELECT provider, agent, queue, sum(cost) FROM usage WHERE day = ?1
             GROUP BY provider, agent, queue",
        )?;
        let mut rows = query.query([day])?;
        while let Some(row) = rows.next()? {
            let [provider, agent, queue]: [String; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            spent.add(&provider, Some(&agent), &queue, row.get(3)?);
        }
        Ok(spent)
    }

    /// Forgets the oldest days.
    pub(super) fn prune_usage(&self, now_ms: i64) -> Result<(), StoreError> {
        let oldest = day_of(now_ms.saturating_sub(USAGE_DAYS_MAX * DAY_MS));
        self.db.prepare_cached("DELETE FROM usage WHERE day < ?1")?.execute([oldest])?;
        Ok(())
    }
}
