//! Sessions: the turns of their conversations.
//!
//! A turn is written by the end of its task, in one transaction with it, and read by the claim of
//! the session's next task. As a session is a lane, no two tasks of it overlap: what a task has seen
//! when it was claimed is what there is when it ends. Turns that go past the bounds are deleted, or
//! a task that sums them up takes their lane over before anybody else has it.

use rusqlite::{OptionalExtension, Row};

use super::moves::Before;
use super::{READY_COLUMNS, Sqlite, ready_of};
use crate::broker::conversation::{Bounds, Keep, LANE_PREFIX, SummaryBy, Weight, session_of};
use crate::broker::store::schema::INLINE_INPUT_BYTES_MAX;
use crate::broker::store::{End, Forgotten, Next, Ord, Ready, StoreError};
use crate::task::{State, TaskId};
use crate::worker::handlers::chat::{self, SummaryTask, Turn};

/// The kind of task that has turns.
const KIND: &str = "chat";

/// What stands for the turns before those that are kept.
#[derive(Default)]
struct Summary {
    text: Option<String>,
    tokens: u64,
}

impl Sqlite {
    /// The conversation so far, as a task of this lane sees it.
    pub(super) fn history(&self, lane: &str, bounds: Bounds) -> Result<Option<String>, StoreError> {
        let Some(session) = session_of(lane) else { return Ok(None) };
        let summary = self.summary(session)?;
        let weights = self.weights(session)?;
        let count = bounds.fit(&weights, summary.tokens);
        let since = weights[..count].last().map_or(Ord::MAX, |turn| turn.n);
        let turns = self.messages(session, since, Ord::MAX)?;
        Ok(chat::history(summary.text.as_deref(), turns.iter().map(String::as_str)))
    }

    fn summary(&self, session: &str) -> Result<Summary, StoreError> {
        let sql = "SELECT summary, summary_tokens FROM sessions WHERE name = ?1";
        let read = |row: &Row<'_>| {
            let tokens: i64 = row.get(1)?;
            Ok(Summary { text: row.get(0)?, tokens: tokens.unsigned_abs() })
        };
        Ok(self.db.prepare_cached(sql)?.query_row([session], read).optional()?.unwrap_or_default())
    }

    /// The turns, newest first.
    fn weights(&self, session: &str) -> Result<Vec<Weight>, StoreError> {
        let mut query = self.db.prepare_cached(
            "SELECT n, tokens, octet_length(messages), continues FROM turns
             WHERE session = ?1 ORDER BY n DESC",
        )?;
        let found = query.query_map([session], |row| {
            let (tokens, bytes): (i64, i64) = (row.get(1)?, row.get(2)?);
            let (tokens, bytes) = (tokens.unsigned_abs(), bytes.unsigned_abs());
            Ok(Weight { n: row.get(0)?, tokens, bytes, continues: row.get(3)? })
        })?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// The messages of the turns from one place to another, both included, oldest first.
    fn messages(&self, session: &str, from: Ord, to: Ord) -> Result<Vec<String>, StoreError> {
        let mut query = self.db.prepare_cached(
            "SELECT messages FROM turns WHERE session = ?1 AND n BETWEEN ?2 AND ?3 ORDER BY n",
        )?;
        let found = query.query_map((session, from, to), |row| row.get(0))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// A task of a session has succeeded: its turn is added to the conversation. What goes past the
    /// bounds by it is forgotten, or else this is the task that sums it up: the lane stays its.
    pub(super) fn keep_turn(
        &mut self,
        before: &Before,
        ready: &Ready,
        end: &End,
    ) -> Result<Option<Ready>, StoreError> {
        let session = before.lane.as_deref().and_then(session_of);
        let (Some(session), Some(keep), Next::Succeeded { output, .. }) =
            (session, &end.keep, &end.next)
        else {
            return Ok(None);
        };
        if let Some(last) = before.sums_up {
            self.take_summary(session, last, output, keep.bounds)?;
            return Ok(None);
        }
        let kind: String = self
            .db
            .prepare_cached("SELECT kind FROM tasks WHERE seq = ?1")?
            .query_row([before.seq], |row| row.get(0))?;
        let input = self.read_whole_input(before.seq)?;
        let turn = if kind == KIND { chat::turn_of(&input, output) } else { None };
        let Some(turn) = turn else { return Ok(None) };
        self.add_turn(session, &turn, end.now_ms)?;
        let Some(last) = self.past_bounds(session, keep)? else { return Ok(None) };
        let Some(by) = &keep.summary else {
            self.delete_turns(session, last)?;
            return Ok(None);
        };
        let model = model_of(&input, by);
        let task = self.summary_task(session, last, model.as_deref(), keep.bounds)?;
        self.settle(session, end.now_ms)?;
        self.insert_summary(session, last, ready, by, &task, end.now_ms).map(Some)
    }

    fn add_turn(&mut self, session: &str, turn: &Turn, now_ms: i64) -> Result<(), StoreError> {
        self.db
            .prepare_cached("INSERT OR IGNORE INTO sessions (name, touched_at) VALUES (?1, ?2)")?
            .execute((session, now_ms))?;
        let n = self.next_ord();
        self.db
            .prepare_cached(
                "INSERT INTO turns (session, n, at, tokens, continues, messages)
                 VALUES (?1, max(?2, coalesce((SELECT max(n) + 1 FROM turns WHERE session = ?1), 0)),
                   ?3, ?4, ?5, ?6)",
            )?
            .execute(rusqlite::params![
                session,
                n,
                now_ms,
                i64::try_from(turn.tokens).unwrap_or(i64::MAX),
                turn.continues,
                turn.messages,
            ])?;
        Ok(())
    }

    /// The last turn that goes past the bounds, or that is to be summed up because one does.
    fn past_bounds(&self, session: &str, keep: &Keep) -> Result<Option<Ord>, StoreError> {
        let summary = self.summary(session)?;
        let weights = self.weights(session)?;
        let mut kept = keep.bounds.fit(&weights, summary.tokens);
        if kept < weights.len() && keep.summary.is_some() {
            kept = keep.bounds.after_summary().fit(&weights, 0);
        }
        Ok(weights.get(kept).map(|turn| turn.n))
    }

    fn summary_task(
        &self,
        session: &str,
        last: Ord,
        model: Option<&str>,
        bounds: Bounds,
    ) -> Result<SummaryTask, StoreError> {
        let earlier = self.summary(session)?.text;
        let turns = self.messages(session, Ord::MIN, last)?;
        let turns = turns.iter().map(String::as_str);
        Ok(chat::summary_task(model, earlier.as_deref(), turns, bounds.summed_up_bytes_max()))
    }

    /// The task that sums up is the head of its lane from its first moment.
    fn insert_summary(
        &mut self,
        session: &str,
        last: Ord,
        after: &Ready,
        by: &SummaryBy,
        task: &SummaryTask,
        now_ms: i64,
    ) -> Result<Ready, StoreError> {
        self.last_seq += 1;
        let (seq, ord) = (self.last_seq, self.next_ord());
        let inline = (task.input.len() <= INLINE_INPUT_BYTES_MAX).then_some(&task.input);
        let gate = by.model.as_ref().map_or(&after.needs.gate, |(_, gate)| gate);
        let sql = format!(
            "INSERT INTO tasks (seq, id, kind, queue, priority, state, lane, ord, timeout_ms,
               max_attempts, created_at, input, gate, tokens, agent, sums_up)
             VALUES (?1, ?2, ?3, ?4, ?5, 0, 's:' || ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
             RETURNING {READY_COLUMNS}"
        );
        let ready = self.db.prepare_cached(&sql)?.query_row(
            rusqlite::params![
                seq,
                TaskId::new().0.as_bytes(),
                KIND,
                after.queue,
                after.priority,
                session,
                ord,
                i64::try_from(by.defaults.timeout_ms).unwrap_or(i64::MAX),
                by.defaults.max_attempts,
                now_ms,
                inline,
                gate,
                i64::try_from(task.tokens).unwrap_or(i64::MAX),
                after.needs.agent,
                last,
            ],
            ready_of,
        )?;
        if inline.is_none() {
            self.db
                .prepare_cached("INSERT INTO inputs VALUES (?1, ?2)")?
                .execute((seq, &task.input))?;
        }
        self.count(&after.queue, None, State::Queued);
        Ok(ready)
    }

    /// A summary is there: it stands for the turns that it sums up, unless those were forgotten.
    fn take_summary(
        &mut self,
        session: &str,
        last: Ord,
        output: &str,
        bounds: Bounds,
    ) -> Result<(), StoreError> {
        let summed_up = self.delete_turns(session, last)?;
        if let Some((text, tokens)) = chat::summary_of(output, bounds.summary_tokens_max())
            && summed_up > 0
        {
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            self.db
                .prepare_cached(
                    "UPDATE sessions SET summary = ?2, summary_tokens = ?3 WHERE name = ?1",
                )?
                .execute((session, text, tokens))?;
        }
        Ok(())
    }

    /// A task of this lane has ended for good, and its turn is there. The turns that it was to sum up
    /// are forgotten if it has not.
    pub(super) fn end_in_session(
        &mut self,
        lane: &str,
        sums_up: Option<Ord>,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let Some(session) = session_of(lane) else { return Ok(()) };
        if let Some(last) = sums_up {
            self.delete_turns(session, last)?;
        }
        self.settle(session, now_ms)
    }

    fn delete_turns(&self, session: &str, last: Ord) -> Result<usize, StoreError> {
        let sql = "DELETE FROM turns WHERE session = ?1 AND n <= ?2";
        Ok(self.db.prepare_cached(sql)?.execute((session, last))?)
    }

    /// Counts what the next task will see, and that there was something to see until now.
    fn settle(&self, session: &str, now_ms: i64) -> Result<(), StoreError> {
        self.db
            .prepare_cached(
                "UPDATE sessions SET touched_at = ?2, tokens = summary_tokens
                   + (SELECT coalesce(sum(tokens), 0) FROM turns WHERE session = ?1)
                 WHERE name = ?1",
            )?
            .execute((session, now_ms))?;
        Ok(())
    }

    /// Forgets a conversation. A task that runs adds its turn to what is a new one by then; one that
    /// was to sum the old one up is not needed any more.
    pub(super) fn forget_one_session(
        &mut self,
        session: &str,
        now_ms: i64,
    ) -> Result<Option<Forgotten>, StoreError> {
        let lane = format!("{LANE_PREFIX}{session}");
        let turns = self.delete_turns(session, Ord::MAX)?;
        let known =
            self.db.prepare_cached("DELETE FROM sessions WHERE name = ?1")?.execute([session])?;
        if known == 0 && !self.lane_is_busy(&lane)? {
            return Ok(None);
        }
        let mut forgotten = Forgotten { turns: turns as u64, ..Forgotten::default() };
        let summary = self.before("lane = ?1 AND state < 4 AND sums_up IS NOT NULL", &lane)?;
        match summary {
            Some(summary) if summary.state == State::Running => {
                self.ask_to_cancel(summary.seq)?;
                forgotten.running = Some(summary.seq);
            }
            Some(summary) => {
                let why = "its session was cleared";
                forgotten.moved = Some(Box::new(self.cancel_waiting(summary, why, now_ms)?));
            }
            None => {}
        }
        Ok(Some(forgotten))
    }

    /// Forgets conversations that nobody goes on with. Returns how many.
    pub(super) fn forget_idle(&mut self, before_ms: i64, limit: u32) -> Result<u32, StoreError> {
        let mut query = self.db.prepare_cached(
            "DELETE FROM sessions WHERE name IN (
               SELECT name FROM sessions WHERE touched_at < ?1 AND NOT EXISTS
                 (SELECT 1 FROM tasks WHERE lane = 's:' || sessions.name AND state < 4)
               ORDER BY touched_at LIMIT ?2)
             RETURNING name",
        )?;
        let idle = query.query_map((before_ms, limit), |row| row.get::<_, String>(0))?;
        let idle: Vec<String> = idle.collect::<Result<_, _>>()?;
        drop(query);
        for session in &idle {
            self.delete_turns(session, Ord::MAX)?;
        }
        Ok(idle.len() as u32)
    }
}

/// The model that sums up after a task with this input.
fn model_of(input: &str, by: &SummaryBy) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Input {
        model: Option<String>,
    }
    let own = || serde_json::from_str::<Input>(input).ok()?.model;
    let configured = by.model.as_ref().map(|(model, _)| model.clone());
    configured.or_else(own).or_else(|| by.agents_model.clone())
}
