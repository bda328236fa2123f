//! The store: where tasks live. The broker alone writes it.
//!
//! * [`sqlite`]: the embedded default, with its [`schema`].
//! * [`writer`]: the one thread that writes; group commit.
//! * [`reader`]: the thread for people's reads.
//! * [`view`], [`tree`], [`sessions`], [`usage`]: tasks, runs, conversations and accounts as people
//!   see them.
//! * [`reserve`]: the file that is given up when the disk is full.
//!
//! A store decides nothing: which task runs next, and what becomes of a failed one, is told to
//! it. It keeps what is told, whole or not at all.

pub(crate) mod reader;
pub(crate) mod reserve;
pub(crate) mod schema;
pub(crate) mod sessions;
pub(crate) mod sqlite;
pub(crate) mod tree;
pub(crate) mod usage;
pub(crate) mod view;
pub(crate) mod writer;

use std::collections::{BTreeMap, BTreeSet};

use super::budget::Spent;
use super::conversation::{Bounds, Keep, SessionHash};
use super::permits::Memo;
use crate::handler::Needs;
use crate::protocol::control::Refusal;
use crate::protocol::link::{Run, Seq};
use crate::protocol::steps::{StepNews, StepTask};
use crate::task::{NewTask, State, TaskError, TaskId, Usage};

/// The promises that the broker builds on. Each method is one step of a transaction that is
/// opened by [`begin`](Store::begin) and ended by [`commit`](Store::commit) or
/// [`rollback`](Store::rollback). Steps see the steps before them.
pub(crate) trait Store: Send {
    /// Opens a transaction. Once committed, its steps outlive the death of every process, and
    /// with `durable` a power cut, together with all commits before it.
    fn begin(&mut self, durable: bool) -> Result<(), StoreError>;
    /// Makes all steps since `begin` true at once.
    fn commit(&mut self) -> Result<(), StoreError>;
    /// Forgets all steps since `begin`.
    fn rollback(&mut self);

    /// Accepts all of a submission or nothing of it. A task whose id is known with equal content
    /// is accepted as that task, and so is one whose key belongs to a task that did not fail.
    fn insert(&mut self, insert: &Insert) -> Result<Result<Vec<Accepted>, Refusal>, StoreError>;
    /// Gives a queued task to an owner; `None` if it is not queued any more or has expired.
    fn claim(&mut self, claim: &Claim) -> Result<Option<Claimed>, StoreError>;
    /// Ends a claim, if `owner` still holds it with this attempt, and adds its calls to the
    /// accounts; `None`, and nothing is added, if it does not.
    fn end(&mut self, end: &End) -> Result<Option<Moved>, StoreError>;
    /// Cancels a task. One that runs is only marked: the end of its claim decides.
    fn cancel(&mut self, id: TaskId, now_ms: i64) -> Result<Option<Cancelled>, StoreError>;
    /// Cancels what is queued, delayed or blocked in a queue (or in all), `limit` at a time.
    fn clear(&mut self, clear: &Clear) -> Result<Vec<Moved>, StoreError>;
    /// Puts a failed task back, at the tail of its lane if it has one.
    fn retry(&mut self, retry: &Retry) -> Result<Option<Retried>, StoreError>;
    /// Queues scheduled tasks whose time has come, `limit` at a time.
    fn promote(&mut self, now_ms: i64, limit: u32) -> Result<Due, StoreError>;
    /// Cancels tasks that expired before they started, `limit` at a time.
    fn expire(&mut self, now_ms: i64, limit: u32) -> Result<Due, StoreError>;
    /// Forgets tasks that ended before a time, `limit` at a time, and old accounts. Returns how
    /// many tasks.
    fn prune(&mut self, finished_before_ms: i64, limit: u32) -> Result<u32, StoreError>;
    /// Forgets the conversation of a session; `None` if there is no such session.
    fn forget_session(&mut self, name: &str, now_ms: i64) -> Result<Option<Forgotten>, StoreError>;
    /// Forgets the conversations of sessions without a task that waits or runs, the last of which
    /// ended before a time, `limit` at a time. Returns how many.
    fn prune_sessions(&mut self, ended_before_ms: i64, limit: u32) -> Result<u32, StoreError>;
    /// The queued tasks of one queue, priority and gate after a position, in order.
    fn refill(&mut self, refill: &Refill) -> Result<Vec<Ready>, StoreError>;
    /// Remembers that a queue is paused; `None` is all of them.
    fn pause(&mut self, queue: Option<&str>, paused: bool) -> Result<(), StoreError>;
    /// Remembers what permits must not forget.
    fn remember(&mut self, memo: &Memo) -> Result<(), StoreError>;
    /// Everything that is remembered about permits; what was spent, since this slot.
    fn memos(&mut self, oldest_slot: i64) -> Result<Vec<Memo>, StoreError>;
    /// What calls have cost on a day (since 1970, UTC), as far as their attempts have ended.
    fn spent_on(&mut self, day: i64) -> Result<Spent, StoreError>;
    /// Remembers that a schedule ran; `None` forgets it.
    fn remember_run(&mut self, schedule: &str, at_ms: Option<i64>) -> Result<(), StoreError>;
    /// For which time each schedule ran last.
    fn last_runs(&mut self) -> Result<BTreeMap<String, i64>, StoreError>;
    /// Every claim that has not ended, with what a decision about it needs.
    fn claims(&mut self) -> Result<Vec<OpenClaim>, StoreError>;
    /// How many tasks of each queue are in each state that is not final.
    fn depth(&mut self) -> Result<Depth, StoreError>;
    /// Tidies up for a quick next start.
    fn close(&mut self);
}

/// Why the store could not do as told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// No room: try again when there is some.
    #[error("the disk is full")]
    Full,
    /// The database cannot be used at all; a new broker could not either.
    #[error("{0}")]
    Fatal(String),
    /// Anything else.
    #[error("the database failed: {0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase, SystemIoFailure};
        match error.sqlite_error_code() {
            // A write that fails while there is no room reports either.
            Some(DiskFull | SystemIoFailure) => StoreError::Full,
            Some(DatabaseCorrupt | NotADatabase) => StoreError::Fatal(error.to_string()),
            _ => StoreError::Sqlite(error),
        }
    }
}

/// A process that claims tasks: never the same twice in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    /// The start of the instance that it belongs to.
    pub(crate) instance: i64,
    /// The worker's number in it.
    pub(crate) serial: u64,
}

/// Where a task stands in the order of its queue and priority: microseconds since 1970 at which
/// it became ready, made strictly increasing. One that is put back keeps its place.
pub(crate) type Ord = i64;

/// A submission.
#[derive(Debug)]
pub(crate) struct Insert {
    pub(crate) tasks: Vec<NewTask>,
    pub(crate) defaults: Defaults,
    pub(crate) now_ms: i64,
    /// Why some of them, by their place, are not accepted unless they were accepted before.
    pub(crate) over_budget: BTreeMap<usize, String>,
    /// Only say whether they would be accepted, as some of this many.
    pub(crate) dry_run: Option<u64>,
}

/// A run of a schedule.
#[derive(Clone, Debug)]
pub(crate) struct LastRun {
    pub(crate) schedule: String,
    /// The time that it is for, in milliseconds since 1970.
    pub(crate) at_ms: i64,
}

/// What a task gets that does not say otherwise, and what bounds them all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Defaults {
    pub(crate) max_attempts: u32,
    pub(crate) timeout_ms: u64,
    pub(crate) max_queued: u64,
}

/// A task that was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) id: TaskId,
    pub(crate) state: State,
    /// In the queue, if it is ready.
    pub(crate) ready: Option<Ready>,
    /// When it can become ready, if it waits for a time.
    pub(crate) due_at_ms: Option<i64>,
    pub(crate) expires_at_ms: Option<i64>,
}

/// A ready task: what the queue must know of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ready {
    pub(crate) queue: String,
    pub(crate) priority: u8,
    pub(crate) ord: Ord,
    pub(crate) seq: Seq,
    /// It was lost in company too often, and runs alone now.
    pub(crate) solo: bool,
    /// What it waits for besides a slot; of a chat in a session, with the tokens of its
    /// conversation.
    pub(crate) needs: Needs,
    pub(crate) session: Option<SessionHash>,
}

#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) seq: Seq,
    pub(crate) owner: Owner,
    pub(crate) worker_pid: i32,
    pub(crate) now_ms: i64,
    /// How much of its session's conversation it sees.
    pub(crate) sees: Option<Bounds>,
}

/// A task that was claimed: what its run needs.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) id: TaskId,
    pub(crate) kind: String,
    pub(crate) input: String,
    pub(crate) timeout_ms: u64,
    pub(crate) facts: Facts,
    /// What the answer must be like, as JSON.
    pub(crate) expect: Option<String>,
    /// Of a run: its steps.
    pub(crate) steps: Option<Steps>,
    /// Of a chat in a session: the conversation so far, as a JSON list of messages.
    pub(crate) history: Option<String>,
}

/// What a run's advance is told of its steps.
#[derive(Debug)]
pub(crate) struct Steps {
    /// The worker knows the run, and these are the news; otherwise they are all.
    pub(crate) known: bool,
    pub(crate) news: Vec<StepNews>,
    /// News after this place in the order of ends are yet to be told.
    pub(crate) heard: Ord,
    /// Steps that a retry puts back.
    pub(crate) resumed: Vec<Ready>,
}

/// What the rules of failure and loss look at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    pub(crate) id: TaskId,
    pub(crate) queue: String,
    pub(crate) run: Run,
    /// Starts since the submission or the last `retry`.
    pub(crate) starts: u32,
    /// Failures and losses that count against `max_attempts`.
    pub(crate) charged: u32,
    /// Losses in company.
    pub(crate) suspect: u32,
    pub(crate) max_attempts: u32,
    pub(crate) cancel_asked: bool,
    /// Whose budget its calls are charged to.
    pub(crate) agent: Option<String>,
    /// The run whose step it is.
    pub(crate) parent: Option<Seq>,
    /// It is a run itself.
    pub(crate) is_run: bool,
    pub(crate) session: Option<SessionHash>,
}

/// A claim that has not ended.
#[derive(Debug)]
pub(crate) struct OpenClaim {
    pub(crate) owner: Owner,
    pub(crate) priority: u8,
    pub(crate) facts: Facts,
}

/// The end of a claim.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) run: Run,
    pub(crate) owner: Owner,
    pub(crate) now_ms: i64,
    pub(crate) next: Next,
    /// Somebody waits to be told.
    pub(crate) awaited: bool,
    /// The calls that it made.
    pub(crate) calls: Vec<Paid>,
    /// Who advances the run that this end wakes, if it can be at once.
    pub(crate) advance: Option<AdvanceBy>,
    /// What is done with its turn, if it is of a session.
    pub(crate) keep: Option<Box<Keep>>,
}

/// A worker that advances a run.
#[derive(Clone, Debug)]
pub(crate) struct AdvanceBy {
    pub(crate) owner: Owner,
    pub(crate) worker_pid: i32,
    /// It knows the run, and has heard of its steps up to this place in the order of their ends.
    pub(crate) heard: Option<Ord>,
}

/// A call, or an answer that stood for one, as the accounts see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Paid {
    /// A provider, or `TOOL/SERVICE`.
    pub(crate) server: String,
    pub(crate) model: String,
    pub(crate) failed: bool,
    /// No call was made: an equal request had been answered.
    pub(crate) cached: bool,
    pub(crate) usage: Option<Usage>,
    /// In the currency of the provider's price.
    pub(crate) cost: f64,
}

impl Paid {
    /// What it added to the bill.
    pub(crate) fn spent(&self) -> f64 {
        if self.cached { 0.0 } else { self.cost }
    }
}

/// What becomes of a task whose attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// Done, with its output.
    Succeeded { output: String, usage: Option<Usage> },
    /// Final, without one.
    Failed { error: TaskError },
    /// The same of a run, whose retry runs the steps with these keys again, and those that it has
    /// not heard of: whose ends came after this place.
    RunFailed { error: TaskError, blamed: Vec<String>, heard: Ord },
    /// A run that waits for its steps; these are new.
    Advanced { steps: Vec<StepTask>, defaults: Defaults },
    /// Final, on demand.
    Cancelled { error: TaskError },
    /// Again at this time.
    RetryAt { due_at_ms: i64, charged: u32, error: TaskError },
    /// Again at once, in its old place; lost with its worker.
    Lost { charged: u32, suspect: u32, error: TaskError },
    /// Again at once, in its old place; nobody's fault (a stop, or it never started).
    PutBack,
}

impl Next {
    /// The state that it leads to.
    pub(crate) fn state(&self) -> State {
        match self {
            Next::Succeeded { .. } => State::Succeeded,
            Next::Failed { .. } | Next::RunFailed { .. } => State::Failed,
            Next::Cancelled { .. } => State::Cancelled,
            Next::RetryAt { .. } => State::Scheduled,
            Next::Lost { .. } | Next::PutBack => State::Queued,
            Next::Advanced { .. } => State::Blocked,
        }
    }
}

/// What moved when a task changed state.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) seq: Seq,
    pub(crate) id: TaskId,
    pub(crate) state: State,
    /// This task, if it is ready again.
    pub(crate) ready: Option<Ready>,
    /// Where this task stood, if it was ready and is no more.
    pub(crate) gone: Option<Box<Ready>>,
    /// What it makes ready: the next one of its lane, the run whose step it was, new steps.
    pub(crate) released: Vec<Ready>,
    /// When this task, or the next one of its lane, can become ready.
    pub(crate) due_at_ms: Option<i64>,
    /// The run whose step it was, claimed by who was to advance it.
    pub(crate) advance: Option<Box<Claimed>>,
    /// Other tasks that ended with it: the waiting steps of a run, steps that waited for its answer.
    pub(crate) also: Vec<Moved>,
    /// Running steps of a run that is cancelled.
    pub(crate) running: Vec<Seq>,
}

impl Moved {
    /// The move of one task alone.
    pub(crate) fn of(seq: Seq, id: TaskId, state: State) -> Self {
        Self {
            seq,
            id,
            state,
            ready: None,
            gone: None,
            released: Vec::new(),
            due_at_ms: None,
            advance: None,
            also: Vec::new(),
            running: Vec::new(),
        }
    }
}

/// What a cancel did.
#[derive(Debug)]
pub(crate) enum Cancelled {
    /// It was waiting, and is cancelled.
    Now(Box<Moved>),
    /// It runs: the worker must be told.
    Running { seq: Seq },
    /// It is over already.
    Final(State),
}

/// What came of a session's end.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    /// How many turns there were.
    pub(crate) turns: u64,
    /// The task that was to sum them up.
    pub(crate) moved: Option<Box<Moved>>,
    /// The same, if it runs: the worker must be told.
    pub(crate) running: Option<Seq>,
}

/// A task to put back.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) id: TaskId,
    /// Of a run: the names of the steps that are run again, whatever came of them.
    pub(crate) redo: Option<BTreeSet<String>>,
}

/// What a retry did.
#[derive(Debug)]
pub(crate) enum Retried {
    /// It is back.
    Back(Box<Moved>),
    /// It is in this state, which nothing is put back from.
    Not(State),
    /// Its key belongs to this task by now.
    KeyTaken(TaskId),
    /// It is a step, and its run has ended.
    StepOf(TaskId),
    /// A step that was to be run again still runs.
    StillRuns(String),
}

#[derive(Debug)]
pub(crate) struct Clear {
    pub(crate) queue: Option<String>,
    pub(crate) now_ms: i64,
    pub(crate) limit: u32,
}

/// What a look at the clock moved, and when the next look is due.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) moved: Vec<Moved>,
    pub(crate) next_at_ms: Option<i64>,
}

#[derive(Debug)]
pub(crate) struct Refill {
    pub(crate) queue: String,
    pub(crate) priority: u8,
    pub(crate) gate: String,
    pub(crate) after: Ord,
    pub(crate) limit: u32,
}

/// Tasks by queue and state, final states left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Depth {
    pub(crate) queues: BTreeMap<String, Counts>,
    /// Queues that are paused.
    pub(crate) paused: Vec<String>,
    pub(crate) all_paused: bool,
    /// The queues, priorities and gates with ready tasks, and how many.
    pub(crate) groups: Vec<(String, u8, String, u64)>,
    pub(crate) next_due_at_ms: Option<i64>,
    pub(crate) next_expiry_at_ms: Option<i64>,
}

/// Tasks of one queue by state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) queued: u64,
    pub(crate) running: u64,
    pub(crate) scheduled: u64,
    pub(crate) blocked: u64,
}

impl Counts {
    /// What counts against `max_queued`.
    pub(crate) fn waiting(&self) -> u64 {
        self.queued + self.scheduled + self.blocked
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts one task into or out of a state.
    pub(crate) fn count(&mut self, state: State, in_or_out: i64) {
        let field = match state {
            State::Queued => &mut self.queued,
            State::Running => &mut self.running,
            State::Scheduled => &mut self.scheduled,
            State::Blocked => &mut self.blocked,
            State::Succeeded | State::Failed | State::Cancelled => return,
        };
        *field = field.saturating_add_signed(in_or_out);
    }
}
