//! Runs of workflows and their steps: advanced, parked, woken.
//!
//! A run that has begun waits `blocked` for its steps. The end of a step wakes it in the same
//! transaction: it is claimed for its next advance, or queued for it. What an advance brings forth
//! is inserted in the transaction that parks the run again. So whatever is killed, either a run is
//! woken by its next step's end, or it is queued, or its claim ends.

use rusqlite::{OptionalExtension, Row};

use super::insert::is_inline;
use super::moves::{
    BEFORE_COLUMNS, BEFORE_COUNT, Before, FACTS_COLUMNS, before_of, cancelled, claimed_of, to_json,
};
use super::{READY_COLUMNS, Sqlite, code, ready_of};
use crate::broker::store::{
    AdvanceBy, Claimed, Defaults, End, Moved, Ord, Ready, Steps, StoreError,
};
use crate::protocol::calls::CALL_TOKENS_MAX;
use crate::protocol::link::Seq;
use crate::protocol::steps::{StepEnd, StepNews, StepTask};
use crate::task::{ErrorKind, State, TaskError};

/// What steps take over from their run.
struct Run {
    seq: Seq,
    queue: String,
    priority: u8,
}

impl Sqlite {
    /// Ends an advance: its steps are there, and the run waits for them.
    pub(super) fn park_run(
        &mut self,
        end: &End,
        steps: &[StepTask],
        defaults: &Defaults,
    ) -> Result<Option<Moved>, StoreError> {
        let sql = "UPDATE tasks SET state = 3, instance = NULL, serial = NULL, stepping = 1,
               advances = advances + 1, attempt_at_retry = attempt, charged = 0, suspect = 0
             WHERE seq = ?1 AND state = 1 AND instance = ?2 AND serial = ?3 AND attempt = ?4";
        let parameters =
            (end.run.seq, end.owner.instance, end.owner.serial as i64, end.run.attempt);
        if self.db.prepare_cached(sql)?.execute(parameters)? == 0 {
            return Ok(None);
        }
        let sql = format!("SELECT {BEFORE_COLUMNS}, priority, wakes FROM tasks WHERE seq = ?1");
        let (before, priority, wakes) =
            self.db.prepare_cached(&sql)?.query_row([end.run.seq], |row| {
                let (priority, wakes) =
                    (row.get(BEFORE_COUNT)?, row.get::<_, u32>(BEFORE_COUNT + 1)?);
                Ok((before_of(row)?, priority, wakes))
            })?;
        self.count(&before.queue, Some(State::Running), State::Blocked);
        if let Some(moved) = self.cancel_instead(&before, State::Blocked, end.now_ms)? {
            return Ok(Some(moved));
        }
        let mut moved = Moved::of(before.seq, before.id, State::Blocked);
        let run = Run { seq: before.seq, queue: before.queue, priority };
        let mut ended = false;
        for step in steps {
            ended |= self.insert_step(&run, step, defaults, end.now_ms, &mut moved)?;
        }
        if wakes > 0 || ended {
            self.wake(run.seq, end.advance.as_ref(), end.now_ms, &mut moved)?;
        }
        Ok(Some(moved))
    }

    /// Inserts a step. `true`: it has ended already, since the task with its key has.
    fn insert_step(
        &mut self,
        run: &Run,
        step: &StepTask,
        defaults: &Defaults,
        now_ms: i64,
        moved: &mut Moved,
    ) -> Result<bool, StoreError> {
        let twin = match &step.task_key {
            Some(key) => self.twin_of((&step.kind, &step.input), key)?,
            None => Twin::None,
        };
        let state = twin.state();
        self.last_seq += 1;
        let (seq, ord) = (self.last_seq, self.next_ord());
        let inline = is_inline(&step.kind, &step.input).then_some(&step.input);
        let timeout_ms = step.timeout_ms.unwrap_or(defaults.timeout_ms);
        let priority = step.priority.unwrap_or(run.priority);
        self.db
            .prepare_cached(
                "INSERT INTO tasks (seq, id, kind, queue, priority, state, key, ord, timeout_ms,
                   max_attempts, created_at, input, gate, tokens, cache_key, cache_refresh, agent,
                   parent, step, expect, twin, ended, finished_at, error, output)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                   ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24,
                   (SELECT output FROM tasks WHERE seq = ?25))",
            )?
            .execute(rusqlite::params![
                seq,
                step.id.0.as_bytes(),
                step.kind,
                run.queue,
                priority,
                code(state),
                step.task_key.as_ref().filter(|_| matches!(twin, Twin::None)),
                ord,
                i64::try_from(timeout_ms).unwrap_or(i64::MAX),
                step.max_attempts.unwrap_or(defaults.max_attempts),
                now_ms,
                inline,
                step.needs.gate,
                i64::try_from(step.needs.tokens).unwrap_or(i64::MAX),
                step.needs.cache_key.map(u128::to_be_bytes),
                step.needs.cache_refresh,
                step.needs.agent,
                run.seq,
                step.key,
                step.expect,
                twin.open(),
                state.is_final().then_some(ord),
                state.is_final().then_some(now_ms),
                twin.error(),
                twin.ended(),
            ])?;
        if inline.is_none() {
            self.db
                .prepare_cached("INSERT INTO inputs VALUES (?1, ?2)")?
                .execute((seq, &step.input))?;
        }
        self.count(&run.queue, None, state);
        if state == State::Queued {
            let (queue, needs) = (run.queue.clone(), step.needs.clone());
            let (solo, session) = (false, None);
            moved.released.push(Ready { queue, priority, ord, seq, solo, needs, session });
        }
        Ok(state.is_final())
    }

    /// The task that a step's key stands for already.
    pub(super) fn twin_of(
        &self,
        (kind, input): (&str, &str),
        key: &str,
    ) -> Result<Twin, StoreError> {
        let Some(known) = self.known("key = ?1 AND state < 5", key)? else { return Ok(Twin::None) };
        if known.kind != kind || !super::insert::same_input(kind, input, &known.input) {
            return Ok(Twin::Other(format!(
                "the key '{key}' belongs to task {}, which has other content: use another one",
                known.id
            )));
        }
        let ended = known.state == State::Succeeded;
        Ok(if ended { Twin::Ended(known.seq) } else { Twin::Open(known.seq) })
    }

    /// A step has ended: the run that waits for it goes on.
    pub(super) fn wake(
        &mut self,
        run: Seq,
        advance: Option<&AdvanceBy>,
        now_ms: i64,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        let woken = match advance.filter(|_| moved.advance.is_none()) {
            Some(by) => self.claim_woken(run, by, now_ms)?.map(Woken::Claimed),
            None => self.queue_woken(run)?.map(Woken::Queued),
        };
        match woken {
            Some(Woken::Claimed(claimed)) => moved.advance = Some(Box::new(claimed)),
            Some(Woken::Queued(ready)) => moved.released.push(ready),
            None => {
                self.db
                    .prepare_cached(
                        "UPDATE tasks SET wakes = wakes + 1 WHERE seq = ?1 AND state = 1",
                    )?
                    .execute([run])?;
            }
        }
        Ok(())
    }

    fn claim_woken(
        &mut self,
        run: Seq,
        by: &AdvanceBy,
        now_ms: i64,
    ) -> Result<Option<Claimed>, StoreError> {
        let sql = "UPDATE tasks SET state = 1, attempt = attempt + 1, instance = ?2, serial = ?3,
               worker_pid = ?4, started_at = ?5, wakes = 0
             WHERE seq = ?1 AND state = 3 AND stepping = 1";
        let parameters = (run, by.owner.instance, by.owner.serial as i64, by.worker_pid, now_ms);
        if self.db.prepare_cached(sql)?.execute(parameters)? == 0 {
            return Ok(None);
        }
        let sql =
            format!("SELECT {FACTS_COLUMNS}, kind, timeout_ms, expect FROM tasks WHERE seq = ?1");
        let mut claimed = self.db.prepare_cached(&sql)?.query_row([run], claimed_of)?;
        self.count(&claimed.facts.queue, Some(State::Blocked), State::Running);
        match by.heard {
            Some(heard) => claimed.steps = Some(self.steps_since(run, heard)?),
            None => {
                claimed.input = self.read_whole_input(run)?;
                claimed.steps = Some(self.all_steps(run)?);
            }
        }
        Ok(Some(claimed))
    }

    pub(super) fn read_whole_input(&self, seq: Seq) -> Result<String, StoreError> {
        let sql = "SELECT coalesce(input, (SELECT input FROM inputs WHERE seq = tasks.seq))
                   FROM tasks WHERE seq = ?1";
        Ok(self.db.prepare_cached(sql)?.query_row([seq], |row| row.get(0))?)
    }

    fn queue_woken(&mut self, run: Seq) -> Result<Option<Ready>, StoreError> {
        let ord = self.next_ord();
        let sql = format!(
            "UPDATE tasks SET state = 0, ord = ?2 WHERE seq = ?1 AND state = 3 AND stepping = 1
             RETURNING {READY_COLUMNS}"
        );
        let ready = self.db.prepare_cached(&sql)?.query_row((run, ord), ready_of).optional()?;
        if let Some(ready) = &ready {
            self.count(&ready.queue, Some(State::Blocked), State::Queued);
        }
        Ok(ready)
    }

    /// All steps of a run that is claimed, for a worker that does not know it. Those that a retry
    /// puts back are put back now that its turn has come.
    pub(super) fn all_steps(&mut self, run: Seq) -> Result<Steps, StoreError> {
        let resumed = self.resume_steps(run)?;
        let mut query = self.db.prepare_cached(
            "SELECT step, state, output, error FROM tasks WHERE parent = ?1 ORDER BY ended",
        )?;
        let news = query.query_map([run], news_of)?.collect::<Result<_, _>>()?;
        Ok(Steps { known: false, news, heard: self.last_ord, resumed })
    }

    fn steps_since(&self, run: Seq, heard: Ord) -> Result<Steps, StoreError> {
        let mut query = self.db.prepare_cached(
            "SELECT step, state, output, error FROM tasks
             WHERE parent = ?1 AND ended > ?2 ORDER BY ended",
        )?;
        let news = query.query_map((run, heard), news_of)?.collect::<Result<_, _>>()?;
        Ok(Steps { known: true, news, heard: self.last_ord, resumed: Vec::new() })
    }

    /// A run has ended: what it has spent is its steps' sum, and steps that wait are not started.
    /// Those that run may end, for a retry to find, unless the run is cancelled.
    pub(super) fn end_steps(
        &mut self,
        run: Seq,
        state: State,
        now_ms: i64,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        if state != State::Succeeded {
            self.cancel_steps(run, state, now_ms, moved)?;
        }
        self.db
            .prepare_cached(
                "UPDATE tasks SET (usage_in, usage_out, cost) =
                   (SELECT min(sum(usage_in), ?2), min(sum(usage_out), ?2), sum(cost)
                    FROM tasks WHERE parent = ?1)
                 WHERE seq = ?1",
            )?
            .execute((run, CALL_TOKENS_MAX.cast_signed()))?;
        Ok(())
    }

    fn cancel_steps(
        &mut self,
        run: Seq,
        state: State,
        now_ms: i64,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        let why = match state {
            State::Cancelled => "its run was cancelled",
            _ => "its run has failed",
        };
        let sql = format!("SELECT {BEFORE_COLUMNS} FROM tasks WHERE parent = ?1 AND ended IS NULL");
        let open: Vec<Before> =
            self.db.prepare_cached(&sql)?.query_map([run], before_of)?.collect::<Result<_, _>>()?;
        for step in open {
            // The end of one may have moved another, which had its key.
            let Some(step) = self.before("seq = ?1", step.seq)? else { continue };
            if step.state != State::Running {
                moved.also.push(self.cancel_for(step, (why, state), now_ms)?);
            } else if state == State::Cancelled {
                self.ask_to_cancel(step.seq)?;
                moved.running.push(step.seq);
            }
        }
        Ok(())
    }

    /// A task that would go on is cancelled if that was asked for while word of its end was on its
    /// way, and a step if its run has ended meanwhile: a retry of the run puts it back.
    pub(super) fn cancel_instead(
        &mut self,
        task: &Before,
        state: State,
        now_ms: i64,
    ) -> Result<Option<Moved>, StoreError> {
        let why = match task.parent {
            _ if task.cancel_asked => ("cancelled by request", State::Cancelled),
            Some(run) => match self.failed(run)? {
                Some(whole) => ("its run has ended", whole),
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let Some(task) = self.before("seq = ?1", task.seq)? else { return Ok(None) };
        debug_assert_eq!(task.state, state);
        self.cancel_for(task, why, now_ms).map(Some)
    }

    /// How a run has ended, if it has and did not succeed.
    fn failed(&self, run: Seq) -> Result<Option<State>, StoreError> {
        let sql = "SELECT state FROM tasks WHERE seq = ?1 AND state > 4";
        let state = |row: &Row<'_>| super::look::state_of(row, 0);
        Ok(self.db.prepare_cached(sql)?.query_row([run], state).optional()?)
    }

    /// A task with a key has ended: steps that have the same key have its answer, or one of them
    /// goes next.
    pub(super) fn answer_twins(
        &mut self,
        seq: Seq,
        state: State,
        now_ms: i64,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        let sql = format!("SELECT {BEFORE_COLUMNS} FROM tasks WHERE twin = ?1 AND state = 3");
        let twins: Vec<Before> =
            self.db.prepare_cached(&sql)?.query_map([seq], before_of)?.collect::<Result<_, _>>()?;
        let mut heir = None;
        for twin in twins {
            match (state, heir) {
                (State::Succeeded, _) => moved.also.push(self.answer_twin(twin, seq, now_ms)?),
                (_, None) => {
                    heir = Some(twin.seq);
                    moved.released.push(self.release_twin(&twin, seq)?);
                }
                (_, Some(heir)) => {
                    self.db
                        .prepare_cached("UPDATE tasks SET twin = ?2 WHERE seq = ?1")?
                        .execute((twin.seq, heir))?;
                }
            }
        }
        Ok(())
    }

    fn answer_twin(&mut self, twin: Before, of: Seq, now_ms: i64) -> Result<Moved, StoreError> {
        let ended = self.next_ord();
        self.db
            .prepare_cached(
                "UPDATE tasks SET state = 4, twin = NULL, ended = ?3, finished_at = ?4,
                   output = (SELECT output FROM tasks WHERE seq = ?2)
                 WHERE seq = ?1",
            )?
            .execute((twin.seq, of, ended, now_ms))?;
        self.count(&twin.queue, Some(State::Blocked), State::Succeeded);
        self.moved(twin, State::Succeeded, None, now_ms)
    }

    fn release_twin(&mut self, twin: &Before, of: Seq) -> Result<Ready, StoreError> {
        let ord = self.next_ord();
        let sql = format!(
            "UPDATE tasks SET state = 0, twin = NULL, ord = ?3,
               key = (SELECT key FROM tasks WHERE seq = ?2)
             WHERE seq = ?1 RETURNING {READY_COLUMNS}"
        );
        let ready = self.db.prepare_cached(&sql)?.query_row((twin.seq, of, ord), ready_of)?;
        self.count(&twin.queue, Some(State::Blocked), State::Queued);
        Ok(ready)
    }
}

enum Woken {
    Claimed(Claimed),
    Queued(Ready),
}

/// Whether the key of a step is taken, and by whom.
pub(super) enum Twin {
    None,
    /// By a task that has not ended.
    Open(Seq),
    /// By one that has succeeded.
    Ended(Seq),
    /// By one with other content; why that is an error.
    Other(String),
}

impl Twin {
    /// Where a step begins whose key is taken like this.
    fn state(&self) -> State {
        match self {
            Twin::None => State::Queued,
            Twin::Open(_) => State::Blocked,
            Twin::Ended(_) => State::Succeeded,
            Twin::Other(_) => State::Failed,
        }
    }

    /// Its error as JSON, if it has failed by that.
    fn error(&self) -> Option<String> {
        let Twin::Other(message) = self else { return None };
        Some(to_json(&key_taken(message)))
    }

    fn open(&self) -> Option<Seq> {
        match self {
            Twin::Open(seq) => Some(*seq),
            _ => None,
        }
    }

    fn ended(&self) -> Option<Seq> {
        match self {
            Twin::Ended(seq) => Some(*seq),
            _ => None,
        }
    }
}

/// The error of a step whose key belongs to another task.
pub(super) fn key_taken(message: &str) -> TaskError {
    let message = message.to_owned();
    TaskError { kind: ErrorKind::Input, message, retryable: false, cause: None }
}

fn news_of(row: &Row<'_>) -> rusqlite::Result<StepNews> {
    let state = super::look::state_of(row, 1)?;
    let end = match state {
        State::Succeeded => Some(StepEnd::Succeeded(row.get(2)?)),
        State::Failed | State::Cancelled => {
            let error: Option<String> = row.get(3)?;
            let error = error.and_then(|error| serde_json::from_str::<TaskError>(&error).ok());
            let error = error.unwrap_or_else(|| cancelled("it ended without a reason"));
            Some(StepEnd::Failed(error.message))
        }
        _ => None,
    };
    Ok(StepNews { key: row.get(0)?, end })
}
