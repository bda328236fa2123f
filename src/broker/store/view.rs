//! Tasks as people see them, read from the database.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};
use serde_json::value::RawValue;

use super::sqlite::{id_of, state_of};
use crate::broker::now_ms;
use crate::protocol::control::ListFilter;
use crate::protocol::link::Seq;
use crate::task::{
    Attempt, State, StepView, TaskError, TaskId, TaskView, Usage, WaitingFor, Waits,
};
use crate::worker::handlers::workflow::KIND;
use uuid::Uuid;

const COLUMNS: &str = "seq, id, kind, queue, priority, state, lane, key, due_at, max_attempts, \
                       attempt, created_at, first_started_at, started_at, finished_at, \
                       usage_in, usage_out, error, worker_pid, gate, tokens, ord, \
                       cost, CASE WHEN sums_up IS NULL THEN step ELSE 'summary' END, \
                       advances, stepping, \
                       (SELECT id FROM tasks AS run WHERE run.seq = tasks.parent)";
/// How many they are.
const COUNT: usize = 27;

/// The most tasks of one page of `list`.
pub(crate) const PAGE_TASKS_MAX: u32 = 1000;
/// The most finished tasks that `stats` looks at for its times.
const TIMES_MAX: u32 = 10_000;

/// One task, whole.
pub(crate) fn task(db: &Connection, id: TaskId) -> rusqlite::Result<Option<TaskView>> {
    let sql = format!(
        "SELECT {COLUMNS}, coalesce(input, (SELECT input FROM inputs WHERE seq = tasks.seq)),
           output FROM tasks WHERE id = ?1"
    );
    let found = db
        .prepare_cached(&sql)?
        .query_row([id.0.as_bytes()], |row| {
            let mut view = view_of(row)?;
            view.input = raw(row.get(COUNT)?);
            view.output = raw(row.get(COUNT + 1)?);
            Ok((row.get::<_, Seq>(0)?, view))
        })
        .optional()?;
    let Some((seq, mut view)) = found else { return Ok(None) };
    view.attempts = attempts(db, seq, &view)?;
    view.by_step = by_step(db, seq)?;
    view.steps = view.by_step.iter().map(|step| step.id).collect();
    Ok(Some(view))
}

/// The steps of a run, in the order in which they began.
fn by_step(db: &Connection, run: Seq) -> rusqlite::Result<Vec<StepView>> {
    let mut query = db.prepare_cached(
        "SELECT step, id, kind, state, attempt - advances, created_at, first_started_at,
           finished_at, usage_in, usage_out, cost, error, stepping
         FROM tasks INDEXED BY tasks_steps WHERE parent = ?1 ORDER BY seq",
    )?;
    let now_ms = now_ms();
    let found = query.query_map([run], |row| {
        let state = state_of(row, 3)?;
        let (created_at, error): (i64, Option<String>) = (row.get(5)?, row.get(11)?);
        let (started_at, finished_at): (Option<i64>, Option<i64>) = (row.get(6)?, row.get(7)?);
        Ok(StepView {
            step: row.get(0)?,
            id: id_of(row, 1)?,
            kind: row.get(2)?,
            state,
            attempt: attempt_of(state, row.get(4)?, row.get(12)?),
            wait_ms: started_at.map(|at| at.abs_diff(created_at)),
            run_ms: ran_ms((state, row.get(12)?), started_at, finished_at, now_ms),
            text_bytes: None,
            usage: usage_of(row.get(8)?, row.get(9)?),
            cost: row.get(10)?,
            error: error.and_then(|error| serde_json::from_str(&error).ok()),
        })
    })?;
    found.collect()
}

/// A run that waits for its steps is in an attempt, which its next advance goes on with.
pub(super) fn attempt_of(state: State, starts: u32, stepping: u8) -> u32 {
    starts + u32::from(state == State::Blocked && stepping == 1)
}

/// How long a step has run: to its end, or to now. A run goes on between its advances.
pub(super) fn ran_ms(
    (state, stepping): (State, u8),
    first_started_at: Option<i64>,
    finished_at: Option<i64>,
    now_ms: i64,
) -> Option<u64> {
    let runs = state == State::Running || stepping > 0;
    let to = finished_at.or(runs.then_some(now_ms))?;
    Some(to.saturating_sub(first_started_at?).max(0).unsigned_abs())
}

pub(super) fn usage_of(usage_in: Option<i64>, usage_out: Option<i64>) -> Option<Usage> {
    unsigned(usage_in).zip(unsigned(usage_out)).map(|(prompt_tokens, completion_tokens)| Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
    })
}

/// The state of each id that there is.
pub(crate) fn states(
    db: &Connection,
    ids: &[TaskId],
) -> rusqlite::Result<Vec<(TaskId, Option<State>)>> {
    let mut query = db.prepare_cached("SELECT state FROM tasks WHERE id = ?1")?;
    ids.iter()
        .map(|id| {
            let state = query.query_row([id.0.as_bytes()], |row| state_of(row, 0)).optional()?;
            Ok((*id, state))
        })
        .collect()
}

/// A page of tasks, newest first.
pub(crate) fn list(db: &Connection, filter: &ListFilter) -> rusqlite::Result<Vec<TaskView>> {
    let states: Vec<String> =
        filter.states.iter().map(|state| (*state as usize).to_string()).collect();
    let in_states = if states.is_empty() {
        String::new()
    } else {
        format!("AND state IN ({})", states.join(","))
    };
    let of = match (filter.run, filter.steps) {
        (Some(_), _) => "parent = (SELECT seq FROM tasks WHERE id = ?5)",
        (None, true) => "?5 IS NULL",
        (None, false) => "parent IS NULL AND ?5 IS NULL",
    };
    let run = filter.run.map(|id| id.0.into_bytes());
    let sql = format!(
        "SELECT {COLUMNS} FROM tasks
         WHERE {of} AND (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR queue = ?2)
           AND (?3 IS NULL OR seq < (SELECT seq FROM tasks WHERE id = ?3)) {in_states}
         ORDER BY seq DESC LIMIT ?4"
    );
    let after = filter.after.map(|id| id.0.into_bytes());
    let limit = filter.limit.clamp(1, PAGE_TASKS_MAX);
    let parameters: [&dyn ToSql; 5] = [&filter.kind, &filter.queue, &after, &limit, &run];
    let mut query = db.prepare(&sql)?;
    query.query_map(parameters, view_of)?.collect()
}

fn view_of(row: &Row<'_>) -> rusqlite::Result<TaskView> {
    let state = state_of(row, 5)?;
    let lane: Option<String> = row.get(6)?;
    let (starts, created_at): (u32, i64) = (row.get(10)?, row.get(11)?);
    let (advances, stepping): (u32, u8) = (row.get(24)?, row.get(25)?);
    let attempt = attempt_of(state, starts.saturating_sub(advances), stepping);
    let parent: Option<[u8; 16]> = row.get(26)?;
    let first_started_at: Option<i64> = row.get(12)?;
    let (started_at, finished_at): (Option<i64>, Option<i64>) = (row.get(13)?, row.get(14)?);
    let due_at: Option<i64> = row.get(8)?;
    let named =
        |prefix| lane.as_deref().and_then(|lane| lane.strip_prefix(prefix)).map(String::from);
    let error: Option<String> = row.get(17)?;
    let waits = match state {
        State::Queued => Some(Waits {
            gate: row.get(19)?,
            tokens: unsigned(row.get(20)?).unwrap_or(0),
            ord: row.get(21)?,
        }),
        _ => None,
    };
    Ok(TaskView {
        id: id_of(row, 1)?,
        kind: row.get(2)?,
        state,
        waiting_for: waiting_for(state, attempt, stepping),
        waiting_reason: None,
        position: None,
        estimated_wait_ms: None,
        waits,
        priority: row.get(4)?,
        queue: row.get(3)?,
        session: named("s:"),
        lane: named("l:"),
        key: row.get(7)?,
        attempt,
        max_attempts: row.get(9)?,
        created_at: rfc3339(created_at),
        started_at: started_at.map(rfc3339),
        finished_at: finished_at.map(rfc3339),
        due_at: due_at.map(rfc3339),
        wait_ms: first_started_at.map(|at| at.abs_diff(created_at)),
        // A run's is from its first start on: its last start was a moment at its end.
        run_ms: if advances > 0 { first_started_at } else { started_at }
            .zip(finished_at)
            .map(|(from, to)| to.abs_diff(from)),
        worker_pid: row.get(18)?,
        input: None,
        output: None,
        usage: usage_of(row.get(15)?, row.get(16)?),
        error: error.and_then(|error| serde_json::from_str(&error).ok()),
        attempts: Vec::new(),
        cost: row.get(22)?,
        parent: parent.map(|id| TaskId(Uuid::from_bytes(id))),
        step: row.get(23)?,
        steps: Vec::new(),
        by_step: Vec::new(),
    })
}

/// What a state means to somebody who waits; the broker adds what only it knows (a pause,
/// a closed gate).
fn waiting_for(state: State, attempt: u32, stepping: u8) -> Option<WaitingFor> {
    match state {
        State::Queued => Some(WaitingFor::Turn),
        State::Scheduled if attempt > 0 => Some(WaitingFor::Retry),
        State::Scheduled => Some(WaitingFor::Delay),
        State::Blocked if stepping == 1 => Some(WaitingFor::Steps),
        State::Blocked => Some(WaitingFor::Lane),
        State::Running | State::Succeeded | State::Failed | State::Cancelled => None,
    }
}

/// Every start: those that were kept when they ended, and the one that the task itself tells of.
fn attempts(db: &Connection, seq: Seq, view: &TaskView) -> rusqlite::Result<Vec<Attempt>> {
    let mut query = db.prepare_cached(
        "SELECT attempt, started_at, ended_at, worker_pid, outcome, error FROM attempts
         WHERE seq = ?1 ORDER BY attempt",
    )?;
    let mut attempts: Vec<Attempt> = query
        .query_map([seq], |row| {
            let error: Option<String> = row.get(5)?;
            Ok(Attempt {
                attempt: row.get(0)?,
                started_at: rfc3339(row.get(1)?),
                ended_at: Some(rfc3339(row.get(2)?)),
                worker_pid: row.get(3)?,
                outcome: row.get(4)?,
                error: error.and_then(|error| serde_json::from_str::<TaskError>(&error).ok()),
            })
        })?
        .collect::<Result<_, _>>()?;
    if view.kind == KIND {
        // Each advance of a run is a start, and no attempt.
        (1..).zip(&mut attempts).for_each(|(number, attempt)| attempt.attempt = number);
    }
    let told = attempts.last().map_or(0, |attempt| attempt.attempt);
    if let Some(started_at) = &view.started_at
        && told < view.attempt
    {
        attempts.push(Attempt {
            attempt: view.attempt,
            started_at: started_at.clone(),
            ended_at: view.finished_at.clone(),
            worker_pid: view.worker_pid,
            outcome: view.state.as_str().to_owned(),
            error: None,
        });
    }
    Ok(attempts)
}

/// What `stats` reads: totals by outcome, and the times of the tasks that ended last.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) totals: Vec<(String, i64)>,
    /// Creation to first start, in milliseconds, unordered.
    pub(crate) wait_ms: Vec<u64>,
    /// The last attempt, in milliseconds, unordered.
    pub(crate) run_ms: Vec<u64>,
    /// Tasks that ended in the last minute.
    pub(crate) ended_in_last_minute: u64,
}

/// Reads [`Numbers`].
pub(crate) fn numbers(db: &Connection, now_ms: i64) -> rusqlite::Result<Numbers> {
    let mut numbers = Numbers::default();
    let mut totals = db.prepare_cached("SELECT name, count FROM totals")?;
    numbers.totals =
        totals.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut times = db.prepare_cached(
        "SELECT created_at, first_started_at, started_at, finished_at FROM tasks
         WHERE finished_at IS NOT NULL AND started_at IS NOT NULL AND advances = 0
         ORDER BY finished_at DESC LIMIT ?1",
    )?;
    let mut rows = times.query([TIMES_MAX])?;
    while let Some(row) = rows.next()? {
        let [created, first, started, finished]: [i64; 4] =
            [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
        numbers.wait_ms.push(first.abs_diff(created));
        numbers.run_ms.push(finished.abs_diff(started));
    }
    numbers.ended_in_last_minute = db.query_row(
        "SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL AND finished_at > ?1",
        [now_ms - 60_000],
        |row| row.get::<_, i64>(0).map(i64::unsigned_abs),
    )?;
    Ok(numbers)
}

/// A consistent copy in a new file; its size in bytes.
pub(crate) fn backup(db: &Connection, file: &str) -> rusqlite::Result<u64> {
    db.execute("VACUUM INTO ?1", [file])?;
    Ok(std::fs::metadata(file).map_or(0, |meta| meta.len()))
}

fn unsigned(value: Option<i64>) -> Option<u64> {
    value.map(i64::unsigned_abs)
}

fn raw(text: Option<String>) -> Option<Box<RawValue>> {
    RawValue::from_string(text?).ok()
}

/// Milliseconds since 1970 as people write times; always of the same length, so that they sort as
/// text, too.
pub(crate) fn rfc3339(ms: i64) -> String {
    format!("{:.3}", Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH))
}
