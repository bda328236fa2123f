//! A task, its states and its legal moves: pure, no I/O.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::handler::Needs;

/// The number of priorities: 0 (last) to 9 (first).
pub const PRIORITIES: usize = 10;
/// The priority of a task that names none.
pub const PRIORITY_DEFAULT: u8 = 5;
/// The queue of a task that names none.
pub const QUEUE_DEFAULT: &str = "default";
/// Starts in all after which a task fails, whatever ended them: the last resort against a loop
/// of losses that nobody is charged for.
pub const STARTS_MAX: u32 = 20;
/// Uncharged losses in company after which a task runs alone in its worker.
pub const SUSPECT_LOSSES_MAX: u32 = 2;

/// A task's name for the world: a UUIDv7, made by the client, so that a resent submission is
/// the same task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

impl TaskId {
    /// A new id. Takes its randomness from the kernel, so it is safe after a fork.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for TaskId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ready to run, waiting for its turn.
    Queued,
    /// Sent to a worker.
    Running,
    /// Waits for a time: delayed, or between two attempts.
    Scheduled,
    /// Waits for its lane's turn, or for the steps of its run.
    Blocked,
    /// Ended with an output.
    Succeeded,
    /// Ended without one: the dead letters.
    Failed,
    /// Ended because somebody said so, or because it expired.
    Cancelled,
}

impl State {
    /// Every state, in the order of a task's life.
    pub const ALL: [State; 7] = [
        State::Queued,
        State::Running,
        State::Scheduled,
        State::Blocked,
        State::Succeeded,
        State::Failed,
        State::Cancelled,
    ];

    /// Whether nothing more happens to the task unless it is retried by hand.
    pub fn is_final(self) -> bool {
        matches!(self, State::Succeeded | State::Failed | State::Cancelled)
    }

    /// The word that users see, which is also the word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Scheduled => "scheduled",
            State::Blocked => "blocked",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    /// Whether a task may go from this state to `next`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        match self {
            Queued => matches!(next, Running | Cancelled),
            Running => {
                matches!(next, Queued | Scheduled | Blocked | Succeeded | Failed | Cancelled)
            }
            Scheduled => matches!(next, Queued | Cancelled),
            // A run that its steps wake, or a step whose key has an answer.
            Blocked => !matches!(next, Blocked | Failed),
            // By `forq retry` only.
            Failed => matches!(next, Queued | Blocked),
            // A run that is resumed `--from` a step; steps of a run that is resumed.
            Succeeded | Cancelled => matches!(next, Queued | Blocked),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        State::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let all: Vec<_> = State::ALL.iter().map(|state| state.as_str()).collect();
            format!("unknown state '{text}': one of {}", all.join(", "))
        })
    }
}

/// Who is to blame for an attempt that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The task's own code, command or request failed.
    Handler,
    /// The input cannot be worked on.
    Input,
    /// The task's own time limit passed.
    Timeout,
    /// The worker died under it.
    WorkerLost,
    /// The model's provider, or each service of a tool, refused, failed or could not be reached.
    Provider,
    /// Somebody cancelled it, or it expired before it started.
    Cancelled,
}

/// Why a worker died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// It ended by a signal or an exit code of its own.
    Crash,
    /// The kernel probably ended it for want of memory.
    Oom,
    /// Its event loop stood still.
    Heartbeat,
    /// It passed the memory limit.
    Memory,
}

/// The evidence behind an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// The signal that ended the process, by name (`SIGKILL`).
    #[serde(default)]
    pub signal: Option<String>,
    /// The code that the process ended with.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Why a worker died.
    #[serde(default)]
    pub reason: Option<LossReason>,
}

/// Why an attempt did not succeed, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskError {
    /// Who is to blame.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
    /// Whether another attempt may help.
    pub retryable: bool,
    /// The evidence, if there is any.
    #[serde(default)]
    pub cause: Option<Cause>,
}

/// Tokens that a task used, as the provider counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens in.
    pub prompt_tokens: u64,
    /// Tokens out.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

/// What a client asks for: one task, not yet accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// The id; absent in a JSONL file, where the CLI makes it.
    #[serde(default = "TaskId::new")]
    pub id: TaskId,
    /// The handler's name.
    pub kind: String,
    /// The handler's input, passed through as it was written.
    #[serde(default = "empty_object")]
    pub input: Box<RawValue>,
    /// 0 to 9, 9 first; 5 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// The queue; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// One at a time, in order, with the lane's other tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
    /// A lane that also carries the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at_ms: Option<i64>,
    /// Cancelled if not started by this time, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    /// Time limit of one attempt, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Attempts before it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// What its handler says that it needs; found out when it is accepted.
    #[serde(skip)]
    pub needs: Needs,
}

impl NewTask {
    /// A task of `kind` with everything else left at its default.
    pub fn new(kind: impl Into<String>, input: Box<RawValue>) -> Self {
        Self {
            id: TaskId::new(),
            kind: kind.into(),
            input,
            priority: None,
            queue: None,
            lane: None,
            session: None,
            key: None,
            due_at_ms: None,
            expires_at_ms: None,
            timeout_ms: None,
            max_attempts: None,
            needs: Needs::default(),
        }
    }
}

/// `{}`: the input of a task that gives none.
pub fn empty_object() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitingFor {
    /// A free slot, and the tasks before it.
    Turn,
    /// A provider's limit.
    Permit,
    /// The task before it in its lane.
    Lane,
    /// The steps that it needs.
    Steps,
    /// The pause before its next attempt.
    Retry,
    /// The time that it was submitted for.
    Delay,
    /// Its queue, which is paused.
    Paused,
}

/// Where a queued task waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) gate: String,
    pub(crate) tokens: u64,
    /// When it became ready, in microseconds.
    pub(crate) ord: i64,
}

/// One attempt, as `forq status` tells it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// 1 for the first.
    pub attempt: u32,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; absent while it runs.
    pub ended_at: Option<String>,
    /// The worker that ran it.
    pub worker_pid: Option<i32>,
    /// `running`, `succeeded`, `failed`, `worker_lost`, `timeout`, `cancelled` or `requeued`.
    pub outcome: String,
    /// Why it did not succeed.
    pub error: Option<TaskError>,
}

/// A task as the CLI prints it: the JSON contract of `forq status --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskView {
    /// The id.
    pub id: TaskId,
    /// The handler's name.
    pub kind: String,
    /// Where it stands.
    pub state: State,
    /// What it waits for, while it waits.
    pub waiting_for: Option<WaitingFor>,
    /// Why, in a sentence: which provider's limit, say.
    #[serde(default)]
    pub waiting_reason: Option<String>,
    /// Its place among the tasks that wait for the same, from 1; while it is queued.
    #[serde(default)]
    pub position: Option<u64>,
    /// About how long it will wait yet, in milliseconds; absent until such a task has run.
    #[serde(default)]
    pub estimated_wait_ms: Option<u64>,
    /// Where it waits, for those three.
    #[serde(skip)]
    pub(crate) waits: Option<Waits>,
    /// 0 to 9.
    pub priority: u8,
    /// The queue.
    pub queue: String,
    /// The lane, if it has one.
    pub lane: Option<String>,
    /// The session, if it has one.
    pub session: Option<String>,
    /// The idempotency key, if it has one.
    pub key: Option<String>,
    /// Starts so far.
    pub attempt: u32,
    /// Attempts before it fails.
    pub max_attempts: u32,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; the last start.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub finished_at: Option<String>,
    /// RFC 3339: not before this time.
    pub due_at: Option<String>,
    /// Creation to first start, in milliseconds.
    pub wait_ms: Option<u64>,
    /// The last attempt, in milliseconds.
    pub run_ms: Option<u64>,
    /// The worker of the last attempt.
    pub worker_pid: Option<i32>,
    /// As submitted; absent in lists.
    pub input: Option<Box<RawValue>>,
    /// As the handler gave it; absent in lists.
    pub output: Option<Box<RawValue>>,
    /// Tokens, for kinds that count them.
    pub usage: Option<Usage>,
    /// Why it did not succeed.
    pub error: Option<TaskError>,
    /// Every start, oldest first; absent in lists.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// What its calls have cost, in the currency of the providers' prices; absent if nothing.
    #[serde(default)]
    pub cost: Option<f64>,
    /// The workflow that it belongs to.
    pub parent: Option<TaskId>,
    /// Its key there: `plot`, `scene[3]`, `table#2`.
    #[serde(default)]
    pub step: Option<String>,
    /// A workflow's steps.
    #[serde(default)]
    pub steps: Vec<TaskId>,
    /// The same with what each took; absent in lists.
    #[serde(default)]
    pub by_step: Vec<StepView>,
}

/// A workflow's step, as `forq status` tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    /// Its key in the run.
    pub step: String,
    /// Its task.
    pub id: TaskId,
    /// The handler's name.
    pub kind: String,
    /// Where it stands.
    pub state: State,
    /// Starts so far.
    pub attempt: u32,
    /// Creation to first start, in milliseconds.
    pub wait_ms: Option<u64>,
    /// First start to end, or to now, in milliseconds.
    pub run_ms: Option<u64>,
    /// While it runs and is followed: how much text has come, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_bytes: Option<u64>,
    /// Tokens, for kinds that count them.
    pub usage: Option<Usage>,
    /// What its calls have cost.
    pub cost: Option<f64>,
    /// Why it did not succeed.
    pub error: Option<TaskError>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_only_leave_by_retry() {
        for from in State::ALL.into_iter().filter(|state| state.is_final()) {
            for to in State::ALL.into_iter().filter(|to| from.may_become(*to)) {
                assert!(matches!(to, State::Queued | State::Blocked), "{from} may become {to}");
            }
        }
    }

    #[test]
    fn states_read_back_as_written() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse::<State>(), Ok(state));
        }
        assert!("done".parse::<State>().is_err());
    }
}
