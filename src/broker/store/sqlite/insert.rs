//! Submissions: all of one or nothing of it.

use rusqlite::OptionalExtension;
use serde_json::Value;

use super::{Sqlite, code};
use crate::broker::conversation::{LANE_PREFIX, hash_of};
use crate::broker::store::schema::INLINE_INPUT_BYTES_MAX;
use crate::broker::store::{Accepted, Defaults, Insert, Ready, StoreError};
use crate::protocol::control::{Refusal, RefusalKind};
use crate::protocol::link::Seq;
use crate::task::{NewTask, PRIORITY_DEFAULT, QUEUE_DEFAULT, State, TaskId};

/// A task in the store whose id or key a new one shares.
pub(super) struct Known {
    pub(super) seq: Seq,
    pub(super) id: TaskId,
    pub(super) kind: String,
    pub(super) input: String,
    lane: Option<String>,
    pub(super) state: State,
}

impl Sqlite {
    pub(super) fn insert_all(
        &mut self,
        insert: &Insert,
    ) -> Result<Result<Vec<Accepted>, Refusal>, StoreError> {
        let waiting: u64 = self.depth.queues.values().map(|counts| counts.waiting()).sum();
        let wanted = insert.dry_run.unwrap_or(insert.tasks.len() as u64);
        let full = waiting + wanted > insert.defaults.max_queued;
        // A resent submission takes no room: it was accepted before.
        if full
            && (insert.dry_run.is_some()
                || waiting + self.unknown_ids(&insert.tasks)? > insert.defaults.max_queued)
        {
            return Ok(Err(queue_full(waiting, wanted, insert.defaults.max_queued)));
        }
        self.db.prepare_cached("SAVEPOINT submission")?.execute([])?;
        let may_undo = insert.tasks.len() > 1 || insert.dry_run.is_some();
        let depth_before = may_undo.then(|| self.depth.clone());
        let inserted = self.insert_each(insert)?;
        if inserted.is_err() || insert.dry_run.is_some() {
            self.db.execute_batch("ROLLBACK TO submission")?;
            if let Some(depth) = depth_before {
                self.depth = depth;
            }
        }
        self.db.prepare_cached("RELEASE submission")?.execute([])?;
        Ok(inserted)
    }

    fn insert_each(
        &mut self,
        insert: &Insert,
    ) -> Result<Result<Vec<Accepted>, Refusal>, StoreError> {
        let mut accepted = Vec::with_capacity(insert.tasks.len());
        for (index, task) in insert.tasks.iter().enumerate() {
            if let Some(message) = insert.over_budget.get(&index)
                && !self.is_known(task)?
            {
                let refusal = Refusal::new(RefusalKind::Forbidden, message);
                return Ok(Err(Refusal { index: Some(index), ..refusal }));
            }
            match self.insert_one(task, &insert.defaults, insert.now_ms)? {
                Ok(one) => accepted.push(one),
                Err(refusal) => return Ok(Err(Refusal { index: Some(index), ..refusal })),
            }
        }
        Ok(Ok(accepted))
    }

    fn insert_one(
        &mut self,
        task: &NewTask,
        defaults: &Defaults,
        now_ms: i64,
    ) -> Result<Result<Accepted, Refusal>, StoreError> {
        if let Some(key) = &task.key
            && let Some(known) = self.known("key = ?1 AND state < 5", key)?
        {
            return Ok(same_or_refuse(task, &known, &format!("the key '{key}' belongs to")));
        }
        let lane = lane_of(task);
        let state = self.first_state(task, lane.as_deref(), now_ms)?;
        let seq = self.last_seq + 1;
        let ord = self.next_ord();
        let queue = task.queue.as_deref().unwrap_or(QUEUE_DEFAULT);
        let priority = task.priority.unwrap_or(PRIORITY_DEFAULT);
        let input = task.input.get();
        let inline = is_inline(&task.kind, input).then_some(input);
        let inserted = self
            .db
            .prepare_cached(
                "INSERT INTO tasks (seq, id, kind, queue, priority, state, lane, key, ord, due_at,
                   expires_at, timeout_ms, max_attempts, created_at, input, gate, tokens, cache_key,
                   cache_refresh, agent)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                   ?18, ?19, ?20)
                 ON CONFLICT (id) DO NOTHING",
            )?
            .execute(rusqlite::params![
                seq,
                task.id.0.as_bytes(),
                task.kind,
                queue,
                priority,
                code(state),
                lane,
                task.key,
                ord,
                task.due_at_ms,
                task.expires_at_ms,
                i64::try_from(task.timeout_ms.unwrap_or(defaults.timeout_ms)).unwrap_or(i64::MAX),
                task.max_attempts.unwrap_or(defaults.max_attempts),
                now_ms,
                inline,
                task.needs.gate,
                i64::try_from(task.needs.tokens).unwrap_or(i64::MAX),
                task.needs.cache_key.map(u128::to_be_bytes),
                task.needs.cache_refresh,
                task.needs.agent,
            ])?;
        if inserted == 0 {
            let Some(known) = self.known("id = ?1", task.id.0.as_bytes())? else {
                return Err(StoreError::Sqlite(rusqlite::Error::QueryReturnedNoRows));
            };
            return Ok(same_or_refuse(task, &known, "this id belongs to"));
        }
        self.last_seq = seq;
        if inline.is_none() {
            self.db.prepare_cached("INSERT INTO inputs VALUES (?1, ?2)")?.execute((seq, input))?;
        }
        self.count(queue, None, state);
        let mut ready = (state == State::Queued).then(|| Ready {
            queue: queue.to_owned(),
            priority,
            ord,
            seq,
            solo: false,
            needs: task.needs.clone(),
            session: lane.as_deref().and_then(hash_of),
        });
        if task.session.is_some() && ready.is_some() {
            ready = Some(self.ready(seq)?);
        }
        let due_at_ms = task.due_at_ms.filter(|_| state == State::Scheduled);
        let expires_at_ms = task.expires_at_ms;
        Ok(Ok(Accepted { id: task.id, state, ready, due_at_ms, expires_at_ms }))
    }

    fn is_known(&self, task: &NewTask) -> Result<bool, StoreError> {
        let mut known = self.db.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM tasks WHERE id = ?1)
               OR EXISTS (SELECT 1 FROM tasks WHERE key = ?2 AND state < 5)",
        )?;
        Ok(known.query_row((task.id.0.as_bytes(), &task.key), |row| row.get(0))?)
    }

    fn unknown_ids(&self, tasks: &[NewTask]) -> Result<u64, StoreError> {
        let mut known = self.db.prepare_cached("SELECT 1 FROM tasks WHERE id = ?1")?;
        let mut unknown = 0;
        for task in tasks {
            unknown += u64::from(!known.exists([task.id.0.as_bytes()])?);
        }
        Ok(unknown)
    }

    /// Behind the others of its lane, or until its time, or ready.
    fn first_state(
        &self,
        task: &NewTask,
        lane: Option<&str>,
        now_ms: i64,
    ) -> Result<State, StoreError> {
        if let Some(lane) = lane
            && self.lane_is_busy(lane)?
        {
            return Ok(State::Blocked);
        }
        let waits = task.due_at_ms.is_some_and(|due_at_ms| due_at_ms > now_ms);
        Ok(if waits { State::Scheduled } else { State::Queued })
    }

    pub(super) fn lane_is_busy(&self, lane: &str) -> Result<bool, StoreError> {
        let mut busy =
            self.db.prepare_cached("SELECT 1 FROM tasks WHERE lane = ?1 AND state < 4 LIMIT 1")?;
        Ok(busy.exists([lane])?)
    }

    pub(super) fn known(
        &self,
        condition: &str,
        value: impl rusqlite::ToSql,
    ) -> Result<Option<Known>, StoreError> {
        let sql = format!(
            "SELECT id, kind, coalesce(input, (SELECT input FROM inputs WHERE seq = tasks.seq)),
               lane, state, seq FROM tasks WHERE {condition} LIMIT 1"
        );
        let known = self
            .db
            .prepare_cached(&sql)?
            .query_row([value], |row| {
                Ok(Known {
                    id: super::look::id_of(row, 0)?,
                    kind: row.get(1)?,
                    input: row.get(2)?,
                    lane: row.get(3)?,
                    state: super::look::state_of(row, 4)?,
                    seq: row.get(5)?,
                })
            })
            .optional()?;
        Ok(known)
    }
}

/// Whether an input lies in its task's own row. A run's row is written anew at each of its steps.
pub(super) fn is_inline(kind: &str, input: &str) -> bool {
    input.len() <= INLINE_INPUT_BYTES_MAX && kind != "workflow"
}

/// A lane's name in the store; a session is a lane of its own kind.
fn lane_of(task: &NewTask) -> Option<String> {
    match (&task.session, &task.lane) {
        (Some(session), _) => Some(format!("{LANE_PREFIX}{session}")),
        (None, Some(lane)) => Some(format!("l:{lane}")),
        (None, None) => None,
    }
}

/// The known task stands for the new one if they would do the same work.
fn same_or_refuse(task: &NewTask, known: &Known, whose: &str) -> Result<Accepted, Refusal> {
    let equal = task.kind == known.kind
        && lane_of(task) == known.lane
        && same_input(&task.kind, task.input.get(), &known.input);
    if !equal {
        let message =
            format!("{whose} task {}, which has other content: use another one", known.id);
        return Err(Refusal::new(RefusalKind::Invalid, message));
    }
    let (ready, due_at_ms, expires_at_ms) = (None, None, None);
    Ok(Accepted { id: known.id, state: known.state, ready, due_at_ms, expires_at_ms })
}

/// Whether two texts are the same input of this kind, however they are written. On which line of
/// which file a workflow says something is no part of what it says.
pub(super) fn same_input(kind: &str, a: &str, b: &str) -> bool {
    let value = |text: &str| {
        let mut value = serde_json::from_str::<Value>(text).ok()?;
        if kind == "workflow" {
            forget_sources(&mut value);
        }
        Some(value)
    };
    a == b || (value(a).is_some() && value(a) == value(b))
}

fn forget_sources(input: &mut Value) {
    let Some(definition) = input.get_mut("workflow").and_then(Value::as_object_mut) else { return };
    definition.remove("source");
    let steps = definition.get_mut("steps").and_then(Value::as_object_mut);
    for step in steps.into_iter().flat_map(|steps| steps.values_mut()) {
        forget_sources(step);
        let actions = step.get_mut("actions").and_then(Value::as_object_mut);
        actions.into_iter().flat_map(|actions| actions.values_mut()).for_each(forget_sources);
    }
}

fn queue_full(waiting: u64, wanted: u64, max_queued: u64) -> Refusal {
    Refusal::new(
        RefusalKind::Unavailable,
        format!(
            "the queue is full: {waiting} tasks wait and {wanted} more would pass \
             max_queued = {max_queued}; try again later"
        ),
    )
}
