//! The control socket: what clients ask of the broker, and what it answers.
//!
//! Each message is one frame ([`super::frame`]) of JSON. The broker speaks first ([`Hello`]).
//! Then the client sends [`Request`]s, and gets for each one, in order, its [`Reply`]; `wait`
//! and `follow` get a stream of replies that ends with [`Reply::End`].
//!
//! A message is named outside (`{"submit": {…}}`), not by a field inside: with a field serde
//! holds the whole message back to look for it, and what it has held back is no raw JSON any more.

mod events;

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use uuid::Uuid;

pub use events::{EventPosition, FollowBody, FollowEvent};

use super::lifeline::Resize;
use crate::task::{NewTask, State, TaskId, TaskView};

/// The version of this protocol. A client refuses a daemon that speaks another.
pub const CONTROL_PROTOCOL: u32 = 1;

/// What the broker says first on every connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`CONTROL_PROTOCOL`] of the daemon.
    pub forq_protocol: u32,
    /// Its version, for people.
    pub version: String,
    /// The largest input that it takes, in bytes.
    pub input_bytes_max: u64,
    /// The largest frame that it takes, in bytes.
    pub frame_bytes_max: u64,
}

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Accept these tasks, all or none. Answer: [`Reply::Submitted`], and with `wait` afterwards
    /// [`Reply::Finished`] as they end, then [`Reply::End`].
    Submit {
        /// In order.
        tasks: Vec<NewTask>,
        /// Check only: nothing is accepted.
        #[serde(default)]
        dry_run: bool,
        /// With `dry_run`: how many tasks in all are to come, so that a full queue refuses early.
        #[serde(default)]
        room_for: u64,
        /// Tell how they end, too.
        #[serde(default)]
        wait: bool,
    },
    /// One task. Answer: [`Reply::Task`].
    Status {
        /// Which.
        id: TaskId,
    },
    /// Tell each task's end as it comes. Answer: [`Reply::Finished`]…, [`Reply::End`]. An unknown
    /// id is an error of kind `no_such_task` before anything else.
    Wait {
        /// Which.
        ids: Vec<TaskId>,
        /// With the whole task ([`Ended::task`]), not only its state.
        #[serde(default)]
        full: bool,
    },
    /// Stream a task's events. Answer: [`Reply::Event`]…, [`Reply::End`].
    Follow {
        /// Which.
        id: TaskId,
        /// Skip the events of earlier attempts, and of this attempt up to and with this number.
        #[serde(default)]
        after: Option<EventPosition>,
        /// The same as an event tells it ([`FollowEvent::event`]); goes before `after`.
        #[serde(default)]
        from: Option<String>,
        /// Of a run: the text of every step, not only of those that it names as its voice.
        #[serde(default)]
        all: bool,
    },
    /// Cancel, in every state that is not final. Answer: [`Reply::Changed`].
    Cancel {
        /// Which.
        ids: Vec<TaskId>,
    },
    /// Put failed tasks back. Answer: [`Reply::Changed`].
    Retry {
        /// Which.
        ids: Vec<TaskId>,
        /// Of a run: from this step on, whatever came of it and of those after it.
        #[serde(default)]
        from: Option<String>,
    },
    /// Tasks, newest first. Answer: [`Reply::Tasks`].
    List(ListFilter),
    /// Counts by state, and by queue. Answer: [`Reply::Queues`].
    QueueStatus {
        /// Only this one.
        queue: Option<String>,
    },
    /// Dispatch nothing from it. Answer: [`Reply::Done`].
    QueuePause {
        /// Only this one; all if absent.
        queue: Option<String>,
    },
    /// Dispatch again. Answer: [`Reply::Done`].
    QueueResume {
        /// Only this one; all if absent.
        queue: Option<String>,
    },
    /// Cancel what is queued, never what runs. Answer: [`Reply::Done`] with the count.
    QueueClear {
        /// Only this one; all if absent.
        queue: Option<String>,
    },
    /// The daemon. Answer: [`Reply::Json`] in the shape of `forq info --json`.
    Info,
    /// The counters. Answer: [`Reply::Json`] in the shape of `forq stats --json`.
    Stats,
    /// What calls took, and cost. Answer: [`Reply::Json`] in the shape of `forq usage --json`.
    Usage {
        /// From this day (since 1970, UTC) to now.
        since_day: i64,
        /// A row for each of what they have in common here; without any there is only the total.
        by: Vec<UsageBy>,
    },
    /// Stop the daemon. Answer: [`Reply::Done`] at once; the end of the stop is the end of the
    /// master, whose pid [`Reply::Done`] carries as its count.
    Stop {
        /// Do not wait for running tasks.
        #[serde(default)]
        now: bool,
    },
    /// Check the configuration file, and put it in force. Answer: [`Reply::Done`] with the new
    /// generation, at once; [`Request::Info`] says when its workers are there.
    Reload {
        /// The client's own id for it: asked again, it is not done twice.
        request: Uuid,
    },
    /// Exec the new binary in place. Answer: [`Reply::Done`] with the new generation, before it
    /// happens; [`Request::Info`] says when it has.
    Upgrade {
        /// As in [`Request::Reload`].
        request: Uuid,
    },
    /// How many workers there should be. Answer: [`Reply::Done`] with their number.
    Scale {
        /// As in [`Request::Reload`].
        request: Uuid,
        /// How many.
        size: Resize,
    },
    /// A consistent copy of the database. Answer: [`Reply::Done`] with its size in bytes.
    Backup {
        /// An absolute path that does not exist yet.
        file: String,
    },
    /// Sessions. Answer: [`Reply::Json`] in the shape of `forq session list --json`.
    Sessions {
        /// At most this many.
        limit: u32,
    },
    /// One session and its conversation. Answer: [`Reply::Json`] in the shape of
    /// `forq session show --json`.
    Session {
        /// Which.
        name: String,
    },
    /// Forget a session's conversation. Answer: [`Reply::Done`] with the count of its turns.
    SessionClear {
        /// Which.
        name: String,
    },
}

/// What the calls of one row of `forq usage` have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageBy {
    /// Whom they went to: a provider, or `TOOL/SERVICE`.
    Provider,
    /// The model's name there; empty for a tool.
    Model,
    /// The agent of their tasks; empty if they have none.
    Agent,
    /// The queue of their tasks.
    Queue,
    /// The UTC day on which their attempts ended.
    Day,
}

impl UsageBy {
    /// All of them.
    pub const ALL: [UsageBy; 5] =
        [UsageBy::Provider, UsageBy::Model, UsageBy::Agent, UsageBy::Queue, UsageBy::Day];

    /// The word that users see.
    pub fn as_str(self) -> &'static str {
        match self {
            UsageBy::Provider => "provider",
            UsageBy::Model => "model",
            UsageBy::Agent => "agent",
            UsageBy::Queue => "queue",
            UsageBy::Day => "day",
        }
    }
}

impl FromStr for UsageBy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        UsageBy::ALL.into_iter().find(|by| by.as_str() == text).ok_or_else(|| {
            let all = UsageBy::ALL.map(UsageBy::as_str);
            format!("unknown column '{text}': one of {}", all.join(", "))
        })
    }
}

/// What `forq list` and `forq queue items` filter by.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListFilter {
    /// Only in one of these states; all if empty.
    #[serde(default)]
    pub states: Vec<State>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// At most this many.
    pub limit: u32,
    /// Only older than this one.
    pub after: Option<TaskId>,
    /// Only steps of this run.
    #[serde(default)]
    pub run: Option<TaskId>,
    /// Steps of runs, too: they are many.
    #[serde(default)]
    pub steps: bool,
}

/// What the broker answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Accepted and on disk (or, with `dry_run`, acceptable). One id a task, in order: the given
    /// one, or that of the task whose key it shares.
    Submitted {
        /// The ids.
        ids: Vec<TaskId>,
    },
    /// One task.
    Task {
        /// The whole of it.
        task: Box<TaskView>,
    },
    /// Some tasks, without inputs, outputs and attempts.
    Tasks {
        /// Newest first.
        tasks: Vec<TaskView>,
    },
    /// These ended.
    Finished {
        /// In the order in which they ended.
        tasks: Vec<Ended>,
    },
    /// Something happened to a followed task.
    Event(FollowEvent),
    /// A stream of replies is over.
    End,
    /// What became of each id that was to be changed, in order.
    Changed {
        /// One for each id.
        results: Vec<Change>,
    },
    /// Counts by queue.
    Queues {
        /// By name.
        queues: Vec<QueueCounts>,
    },
    /// Done; how many were concerned, where that means something.
    Done {
        /// See the request.
        count: u64,
    },
    /// A document whose shape is in the interface.
    Json {
        /// The document.
        document: Box<RawValue>,
    },
    /// Refused; nothing was done.
    Error(Refusal),
}

/// One task's end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    pub id: TaskId,
    /// `succeeded`, `failed` or `cancelled`.
    pub state: State,
    /// The whole task, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Box<TaskView>>,
}

/// What became of one id that was to be cancelled or retried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub id: TaskId,
    /// The state it is in now; absent if there is no such task.
    pub state: Option<State>,
    /// Whether this request changed it. A running task that is cancelled is `running` and changed
    /// until its handler has gone.
    pub changed: bool,
    /// Why it was not changed, where its state does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One queue in numbers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QueueCounts {
    /// Its name.
    pub queue: String,
    /// Ready.
    pub queued: u64,
    /// In workers.
    pub running: u64,
    /// Waiting for a time.
    pub scheduled: u64,
    /// Waiting for their lane, or for their steps.
    pub blocked: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// Its share.
    pub weight: u32,
    /// Its limit of running tasks, if it has one.
    pub max_running: Option<u32>,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Decides the exit code.
    pub kind: RefusalKind,
    /// One sentence: what was wrong, where, and the cure.
    pub message: String,
    /// Which task of a submission, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
}

/// The kinds of refusal, each with its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Bad usage or input: exit 2.
    Invalid,
    /// Full, out of disk, or stopping: try later; exit 5.
    Unavailable,
    /// No task of this id: exit 6.
    NoSuchTask,
    /// Not allowed: exit 7.
    Forbidden,
    /// A bug of ours: exit 70.
    Internal,
}

impl Refusal {
    /// A refusal of this kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), index: None }
    }
}

#[cfg(test)]
mod tests;
