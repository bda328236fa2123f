//! Tasks on their way: claimed, ended, cancelled, cleared, put back.

use rusqlite::{OptionalExtension, Row};

use super::look::{id_of, state_of};
use super::{READY_COLUMNS, Sqlite, code, ready_at, ready_of, session_at};
use crate::broker::store::{
    AdvanceBy, Cancelled, Claim, Claimed, Clear, End, Facts, Moved, Next, Ord, Owner, Paid, Ready,
    StoreError,
};
use crate::protocol::calls::CALL_TOKENS_MAX;
use crate::protocol::link::{Run, Seq};
use crate::task::{ErrorKind, State, TaskError, TaskId};

/// The columns that make a [`Facts`], in [`facts_of`]'s order.
pub(super) const FACTS_COLUMNS: &str = "seq, attempt, id, queue, attempt - attempt_at_retry, charged, suspect, max_attempts, \
     cancel_asked, agent, parent, kind = 'workflow', lane";
/// How many they are.
pub(super) const FACTS_COUNT: usize = 13;

pub(super) fn facts_of(row: &Row<'_>) -> rusqlite::Result<Facts> {
    Ok(Facts {
        run: Run { seq: row.get(0)?, attempt: row.get(1)? },
        id: id_of(row, 2)?,
        queue: row.get(3)?,
        starts: row.get(4)?,
        charged: row.get(5)?,
        suspect: row.get(6)?,
        max_attempts: row.get(7)?,
        cancel_asked: row.get(8)?,
        agent: row.get(9)?,
        parent: row.get(10)?,
        is_run: row.get(11)?,
        session: session_at(row, 12)?,
    })
}

/// What a move needs to know of the task before it.
pub(super) struct Before {
    pub(super) seq: Seq,
    pub(super) id: TaskId,
    pub(super) queue: String,
    pub(super) state: State,
    pub(super) lane: Option<String>,
    pub(super) parent: Option<Seq>,
    /// It is a run that has begun.
    pub(super) stepping: bool,
    /// It is a run that has steps: it has begun, or is to be resumed.
    pub(super) has_steps: bool,
    pub(super) has_key: bool,
    /// Its cancel was asked for while it ran.
    pub(super) cancel_asked: bool,
    /// Of a session's summary: the last turn that it stands for.
    pub(super) sums_up: Option<Ord>,
}

pub(super) const BEFORE_COLUMNS: &str = "seq, id, queue, state, lane, parent, stepping = 1, stepping > 0, key IS NOT NULL, sums_up, \
     cancel_asked";
/// How many they are.
pub(super) const BEFORE_COUNT: usize = 11;

pub(super) fn before_of(row: &Row<'_>) -> rusqlite::Result<Before> {
    Ok(Before {
        seq: row.get(0)?,
        id: id_of(row, 1)?,
        queue: row.get(2)?,
        state: state_of(row, 3)?,
        lane: row.get(4)?,
        parent: row.get(5)?,
        stepping: row.get(6)?,
        has_steps: row.get(7)?,
        has_key: row.get(8)?,
        sums_up: row.get(9)?,
        cancel_asked: row.get(10)?,
    })
}

/// A claim, but for its input and its steps.
pub(super) fn claimed_of(row: &Row<'_>) -> rusqlite::Result<Claimed> {
    let facts = facts_of(row)?;
    let timeout_ms: i64 = row.get(FACTS_COUNT + 1)?;
    Ok(Claimed {
        id: facts.id,
        kind: row.get(FACTS_COUNT)?,
        input: String::new(),
        timeout_ms: timeout_ms.unsigned_abs(),
        expect: row.get(FACTS_COUNT + 2)?,
        steps: None,
        history: None,
        facts,
    })
}

impl Sqlite {
    pub(super) fn claim_one(&mut self, claim: &Claim) -> Result<Option<Claimed>, StoreError> {
        // Not RETURNING: SQLite keeps its rows in a table of their own, and a journal for it.
        let sql = "UPDATE tasks SET state = 1, attempt = attempt + 1, instance = ?2, serial = ?3,
               worker_pid = ?4, started_at = ?5, first_started_at = coalesce(first_started_at, ?5),
               due_at = NULL, expires_at = NULL, wakes = 0
             WHERE seq = ?1 AND state = 0 AND (expires_at IS NULL OR expires_at > ?5)";
        let Owner { instance, serial } = claim.owner;
        let parameters = (claim.seq, instance, serial as i64, claim.worker_pid, claim.now_ms);
        if self.db.prepare_cached(sql)?.execute(parameters)? == 0 {
            return Ok(None);
        }
        let sql = format!(
            "SELECT {FACTS_COLUMNS}, kind, timeout_ms, expect, input,
               CASE WHEN kind = 'chat' AND sums_up IS NULL THEN lane END
             FROM tasks WHERE seq = ?1"
        );
        let (mut claimed, input, lane): (Claimed, Option<String>, Option<String>) =
            self.db.prepare_cached(&sql)?.query_row([claim.seq], |row| {
                let (input, lane) = (row.get(FACTS_COUNT + 3)?, row.get(FACTS_COUNT + 4)?);
                Ok((claimed_of(row)?, input, lane))
            })?;
        claimed.input = match input {
            Some(input) => input,
            None => self.read_input(claim.seq)?,
        };
        self.count(&claimed.facts.queue, Some(State::Queued), State::Running);
        if claimed.facts.is_run {
            claimed.steps = Some(self.all_steps(claim.seq)?);
        }
        if let (Some(lane), Some(bounds)) = (lane, claim.sees) {
            claimed.history = self.history(&lane, bounds)?;
        }
        Ok(Some(claimed))
    }

    pub(super) fn read_input(&self, seq: Seq) -> Result<String, StoreError> {
        let mut input = self.db.prepare_cached("SELECT input FROM inputs WHERE seq = ?1")?;
        Ok(input.query_row([seq], |row| row.get(0))?)
    }

    pub(super) fn end_claim(&mut self, end: &End) -> Result<Option<Moved>, StoreError> {
        if let Next::Advanced { steps, defaults } = &end.next {
            return self.park_run(end, steps, defaults);
        }
        if !matches!(end.next, Next::Succeeded { .. }) {
            self.keep_attempt(end)?;
        }
        let ended = self.next_ord();
        let cost: f64 = end.calls.iter().map(Paid::spent).sum();
        let sql = "UPDATE tasks SET state = ?5, instance = NULL, serial = NULL,
               finished_at = ?6, output = ?7, error = ?8, usage_in = ?9, usage_out = ?10,
               due_at = ?11, charged = coalesce(?12, charged), suspect = coalesce(?13, suspect),
               ended = CASE WHEN parent IS NOT NULL AND ?5 >= 4 THEN ?14 END,
               cost = CASE WHEN ?15 > 0.0 THEN coalesce(cost, 0.0) + ?15 ELSE cost END
             WHERE seq = ?1 AND state = 1 AND instance = ?2 AND serial = ?3 AND attempt = ?4";
        let next = &end.next;
        let state = next.state();
        let written = Written::of(next);
        let held = self.db.prepare_cached(sql)?.execute(rusqlite::params![
            end.run.seq,
            end.owner.instance,
            end.owner.serial as i64,
            end.run.attempt,
            code(state),
            state.is_final().then_some(end.now_ms),
            written.output,
            written.error,
            written.usage_in,
            written.usage_out,
            written.due_at_ms,
            written.charged,
            written.suspect,
            ended,
            cost,
        ])?;
        if held == 0 {
            return Ok(None);
        }
        let sql = format!("SELECT {BEFORE_COLUMNS}, {READY_COLUMNS} FROM tasks WHERE seq = ?1");
        let (mut before, ready) = self
            .db
            .prepare_cached(&sql)?
            .query_row([end.run.seq], |row| Ok((before_of(row)?, ready_at(row, BEFORE_COUNT)?)))?;
        self.count_end(&before.queue, next);
        self.count_calls(end, ready.needs.agent.as_deref(), &before.queue)?;
        if let Next::RunFailed { blamed, heard, .. } = next {
            self.blame(before.seq, blamed, *heard)?;
        }
        if !state.is_final()
            && let Some(moved) = self.cancel_instead(&before, state, end.now_ms)?
        {
            return Ok(Some(moved));
        }
        let summary = self.keep_turn(&before, &ready, end)?;
        // Its lane is the summary's now.
        before.lane = before.lane.filter(|_| summary.is_none());
        let mut moved = self.moved(before, state, end.advance.as_ref(), end.now_ms)?;
        moved.released.extend(summary);
        moved.ready = (state == State::Queued).then_some(ready);
        moved.due_at_ms = moved.due_at_ms.or(written.due_at_ms);
        Ok(Some(moved))
    }

    fn count_end(&mut self, queue: &str, next: &Next) {
        self.count(queue, Some(State::Running), next.state());
        let error = match next {
            Next::Failed { error }
            | Next::RunFailed { error, .. }
            | Next::RetryAt { error, .. }
            | Next::Lost { error, .. } => error,
            _ => return,
        };
        match error.kind {
            ErrorKind::Timeout => self.totals.timed_out += 1,
            ErrorKind::WorkerLost => self.totals.worker_lost += 1,
            _ => {}
        }
        if !next.state().is_final() {
            self.totals.retried += 1;
        }
    }

    /// Keeps the attempt that ended: the task's own row is about to tell of the next one.
    fn keep_attempt(&mut self, end: &End) -> Result<(), StoreError> {
        let (outcome, error) = match &end.next {
            Next::Succeeded { .. } | Next::Advanced { .. } => return Ok(()),
            Next::Failed { error }
            | Next::RunFailed { error, .. }
            | Next::RetryAt { error, .. } => (outcome_of(error), Some(error)),
            Next::Cancelled { error } => ("cancelled", Some(error)),
            Next::Lost { error, .. } => ("worker_lost", Some(error)),
            Next::PutBack => ("requeued", None),
        };
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO attempts
                 SELECT seq, attempt, coalesce(started_at, ?5), ?5, worker_pid, ?6, ?7 FROM tasks
                 WHERE seq = ?1 AND state = 1 AND instance = ?2 AND serial = ?3 AND attempt = ?4",
            )?
            .execute(rusqlite::params![
                end.run.seq,
                end.owner.instance,
                end.owner.serial as i64,
                end.run.attempt,
                end.now_ms,
                outcome,
                error.map(to_json),
            ])?;
        Ok(())
    }

    /// What a change to `state` moves besides the task itself: the next one of its lane, its own
    /// steps, the run that it is a step of, and steps of others that wait for its answer.
    pub(super) fn moved(
        &mut self,
        before: Before,
        state: State,
        advance: Option<&AdvanceBy>,
        now_ms: i64,
    ) -> Result<Moved, StoreError> {
        self.moved_with(before, (state, state), advance, now_ms)
    }

    /// The same of a task whose steps, if it has any, end as those of a run that has come to `whole`.
    fn moved_with(
        &mut self,
        before: Before,
        (state, whole): (State, State),
        advance: Option<&AdvanceBy>,
        now_ms: i64,
    ) -> Result<Moved, StoreError> {
        let mut moved = Moved::of(before.seq, before.id, state);
        if !state.is_final() {
            return Ok(moved);
        }
        let held_its_lane = before.state != State::Blocked || before.stepping;
        if let Some(lane) = before.lane.as_ref().filter(|_| held_its_lane) {
            self.end_in_session(lane, before.sums_up, now_ms)?;
            self.release_lane(lane, now_ms, &mut moved)?;
        }
        if before.has_steps {
            self.end_steps(before.seq, whole, now_ms, &mut moved)?;
        }
        if before.has_key {
            self.answer_twins(before.seq, state, now_ms, &mut moved)?;
        }
        if let Some(parent) = before.parent {
            if state == State::Failed {
                self.blame_late(before.seq, parent)?;
            }
            self.wake(parent, advance, now_ms, &mut moved)?;
        }
        Ok(moved)
    }

    fn release_lane(
        &mut self,
        lane: &str,
        now_ms: i64,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        let ord = self.next_ord();
        let sql = format!(
            "UPDATE tasks SET state = CASE WHEN due_at > ?2 THEN 2 ELSE 0 END, ord = ?3
             WHERE seq = (SELECT seq FROM tasks WHERE lane = ?1 AND state < 4 AND state = 3
                            AND stepping <> 1 ORDER BY ord LIMIT 1)
             RETURNING due_at, {READY_COLUMNS}"
        );
        let released = self
            .db
            .prepare_cached(&sql)?
            .query_row((lane, now_ms, ord), |row| {
                Ok((ready_at(row, 1)?, row.get::<_, Option<i64>>(0)?))
            })
            .optional()?;
        let Some((ready, due_at_ms)) = released else { return Ok(()) };
        if let Some(due_at_ms) = due_at_ms.filter(|due_at_ms| *due_at_ms > now_ms) {
            self.count(&ready.queue, Some(State::Blocked), State::Scheduled);
            moved.due_at_ms = Some(due_at_ms);
        } else {
            self.count(&ready.queue, Some(State::Blocked), State::Queued);
            moved.released.push(ready);
        }
        Ok(())
    }

    pub(super) fn cancel_one(
        &mut self,
        id: TaskId,
        now_ms: i64,
    ) -> Result<Option<Cancelled>, StoreError> {
        let Some(before) = self.before("id = ?1", id.0.as_bytes())? else { return Ok(None) };
        Ok(Some(match before.state {
            State::Running => {
                self.ask_to_cancel(before.seq)?;
                Cancelled::Running { seq: before.seq }
            }
            state if state.is_final() => Cancelled::Final(state),
            _ => Cancelled::Now(Box::new(self.cancel_waiting(
                before,
                "cancelled by request",
                now_ms,
            )?)),
        }))
    }

    pub(super) fn ask_to_cancel(&self, seq: Seq) -> Result<(), StoreError> {
        let sql = "UPDATE tasks SET cancel_asked = 1 WHERE seq = ?1";
        self.db.prepare_cached(sql)?.execute([seq])?;
        Ok(())
    }

    pub(super) fn clear_some(&mut self, clear: &Clear) -> Result<Vec<Moved>, StoreError> {
        let sql = format!(
            "SELECT {BEFORE_COLUMNS} FROM tasks
             WHERE state IN (0, 2, 3) AND (?1 IS NULL OR queue = ?1)
               AND stepping <> 1 AND parent IS NULL LIMIT ?2"
        );
        let found: Vec<Before> = self
            .db
            .prepare_cached(&sql)?
            .query_map((&clear.queue, clear.limit), before_of)?
            .collect::<Result<_, _>>()?;
        // A lane's head that is cleared would release a task that is cleared next: no matter,
        // each is read again by its own cancel.
        let mut moved = Vec::with_capacity(found.len());
        for before in found {
            let Some(before) = self.before("seq = ?1", before.seq)? else { continue };
            // A run that has begun is not waiting for its turn, and takes its steps along.
            if before.state.is_final() || before.stepping || before.parent.is_some() {
                continue;
            }
            moved.push(self.cancel_waiting(before, "cancelled by queue clear", clear.now_ms)?);
        }
        Ok(moved)
    }

    pub(super) fn before(
        &self,
        condition: &str,
        value: impl rusqlite::ToSql,
    ) -> Result<Option<Before>, StoreError> {
        let sql = format!("SELECT {BEFORE_COLUMNS} FROM tasks WHERE {condition}");
        Ok(self.db.prepare_cached(&sql)?.query_row([value], before_of).optional()?)
    }

    pub(super) fn cancel_waiting(
        &mut self,
        before: Before,
        why: &str,
        now_ms: i64,
    ) -> Result<Moved, StoreError> {
        self.cancel_for(before, (why, State::Cancelled), now_ms)
    }

    /// The same of what is part of something else, which has come to this state.
    pub(super) fn cancel_for(
        &mut self,
        before: Before,
        (why, whole): (&str, State),
        now_ms: i64,
    ) -> Result<Moved, StoreError> {
        let error = cancelled(why);
        let ended = before.parent.map(|_| self.next_ord());
        self.db
            .prepare_cached(
                "UPDATE tasks SET state = 6, finished_at = ?2, error = ?3, ended = ?4
                 WHERE seq = ?1",
            )?
            .execute((before.seq, now_ms, to_json(&error), ended))?;
        self.count(&before.queue, Some(before.state), State::Cancelled);
        let gone = match before.state {
            State::Queued => Some(Box::new(self.ready(before.seq)?)),
            _ => None,
        };
        let within = (State::Cancelled, whole);
        Ok(Moved { gone, ..self.moved_with(before, within, None, now_ms)? })
    }

    /// A task as the queue knows it.
    pub(super) fn ready(&self, seq: Seq) -> Result<Ready, StoreError> {
        let sql = format!("SELECT {READY_COLUMNS} FROM tasks WHERE seq = ?1");
        Ok(self.db.prepare_cached(&sql)?.query_row([seq], ready_of)?)
    }

    /// Cancels one task that expired; its place in a lane goes to the next.
    pub(super) fn expire_one(&mut self, seq: Seq, now_ms: i64) -> Result<Moved, StoreError> {
        let Some(before) = self.before("seq = ?1", seq)? else {
            return Err(StoreError::Sqlite(rusqlite::Error::QueryReturnedNoRows));
        };
        self.cancel_waiting(before, "expired before it could start", now_ms)
    }
}

/// The columns that the end of a claim writes.
#[derive(Default)]
struct Written<'a> {
    output: Option<&'a str>,
    error: Option<String>,
    usage_in: Option<i64>,
    usage_out: Option<i64>,
    due_at_ms: Option<i64>,
    charged: Option<u32>,
    suspect: Option<u32>,
}

impl<'a> Written<'a> {
    fn of(next: &'a Next) -> Self {
        match next {
            Next::Succeeded { output, usage } => Self {
                output: Some(output),
                usage_in: usage.map(|usage| tokens(usage.prompt_tokens)),
                usage_out: usage.map(|usage| tokens(usage.completion_tokens)),
                ..Self::default()
            },
            Next::Failed { error } | Next::RunFailed { error, .. } | Next::Cancelled { error } => {
                Self { error: Some(to_json(error)), ..Self::default() }
            }
            Next::RetryAt { due_at_ms, charged, error } => Self {
                error: Some(to_json(error)),
                due_at_ms: Some(*due_at_ms),
                charged: Some(*charged),
                ..Self::default()
            },
            Next::Lost { charged, suspect, error } => Self {
                error: Some(to_json(error)),
                charged: Some(*charged),
                suspect: Some(*suspect),
                ..Self::default()
            },
            Next::PutBack | Next::Advanced { .. } => Self::default(),
        }
    }
}

/// As many as count: servers say what they like, and a run's are summed up.
fn tokens(count: u64) -> i64 {
    count.min(CALL_TOKENS_MAX).cast_signed()
}

/// The error of a task that was cancelled.
pub(crate) fn cancelled(why: &str) -> TaskError {
    TaskError { kind: ErrorKind::Cancelled, message: why.to_owned(), retryable: false, cause: None }
}

fn outcome_of(error: &TaskError) -> &'static str {
    match error.kind {
        ErrorKind::Timeout => "timeout",
        ErrorKind::WorkerLost => "worker_lost",
        ErrorKind::Cancelled => "cancelled",
        _ => "failed",
    }
}

pub(super) fn to_json(error: &TaskError) -> String {
    // A TaskError is strings, numbers and options: it cannot fail to be JSON.
    serde_json::to_string(error).unwrap_or_default()
}
