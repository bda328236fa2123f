//! What those who follow a task are told.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::task::{StepView, TaskId, TaskView};

/// Where a follower was: an event's attempt and number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventPosition {
    /// 1 for the first start.
    pub attempt: u32,
    /// Counts from 1 in each attempt.
    pub n: u64,
}

impl fmt::Display for EventPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.attempt, self.n)
    }
}

impl FromStr for EventPosition {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('.');
        let parsed = parts.and_then(|(attempt, n)| {
            Some(Self { attempt: attempt.parse().ok()?, n: n.parse().ok()? })
        });
        parsed.ok_or_else(|| format!("'{text}' is no event of a task: they are like 1.17"))
    }
}

/// Something that happened to a followed task. One flat object, for the users of
/// `forq follow --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "FlatEvent")]
pub struct FollowEvent {
    /// The task.
    pub id: TaskId,
    /// Where in the stream this is: `forq follow --after` goes on behind it, also at another broker.
    #[serde(default)]
    pub event: String,
    /// The same of a task that is no run.
    #[serde(flatten)]
    pub position: EventPosition,
    /// Of a run: the step that this is about, by its key; those of a workflow within it behind a
    /// `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What happened.
    #[serde(flatten)]
    pub body: FollowBody,
}

/// What happened to a followed task.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FollowBody {
    /// It waits; told again every second while it is queued.
    Waiting {
        /// Its place among the tasks that wait for the same, from 1.
        position: Option<u64>,
        /// About how long it will wait yet, in milliseconds.
        estimated_wait_ms: Option<u64>,
    },
    /// An attempt began in a worker.
    Started {
        /// The worker.
        worker_pid: i32,
    },
    /// An earlier attempt was lost or failed; what follows begins anew.
    Restarted,
    /// A piece of text.
    Text {
        /// The piece.
        text: String,
    },
    /// Anything else that the handler tells.
    Data {
        /// The value.
        data: serde_json::Value,
    },
    /// Events are missing here: there were more than forq keeps.
    Gap,
    /// A step of a run began, changed its state, or has come further.
    Step {
        /// How it stands.
        view: Box<StepView>,
    },
    /// The task ended; the last event.
    Finished {
        /// The whole task.
        task: Box<TaskView>,
    },
}

/// How a [`FollowEvent`] is read: field by field, so that a task's raw JSON stays raw.
#[derive(Deserialize)]
struct FlatEvent {
    id: TaskId,
    #[serde(default)]
    event: String,
    attempt: u32,
    n: u64,
    step: Option<String>,
    view: Option<Box<StepView>>,
    r#type: String,
    worker_pid: Option<i32>,
    position: Option<u64>,
    estimated_wait_ms: Option<u64>,
    text: Option<String>,
    #[serde(default)]
    data: serde_json::Value,
    task: Option<Box<TaskView>>,
}

impl TryFrom<FlatEvent> for FollowEvent {
    type Error = String;

    fn try_from(flat: FlatEvent) -> Result<Self, String> {
        let lacks = |field: &str| format!("an event of type '{}' lacks '{field}'", flat.r#type);
        let body = match flat.r#type.as_str() {
            "waiting" => FollowBody::Waiting {
                position: flat.position,
                estimated_wait_ms: flat.estimated_wait_ms,
            },
            "started" => FollowBody::Started {
                worker_pid: flat.worker_pid.ok_or_else(|| lacks("worker_pid"))?,
            },
            "restarted" => FollowBody::Restarted,
            "text" => FollowBody::Text { text: flat.text.ok_or_else(|| lacks("text"))? },
            "data" => FollowBody::Data { data: flat.data },
            "gap" => FollowBody::Gap,
            "step" => FollowBody::Step { view: flat.view.ok_or_else(|| lacks("view"))? },
            "finished" => FollowBody::Finished { task: flat.task.ok_or_else(|| lacks("task"))? },
            unknown => return Err(format!("unknown type of event '{unknown}'")),
        };
        let position = EventPosition { attempt: flat.attempt, n: flat.n };
        Ok(Self { id: flat.id, event: flat.event, position, step: flat.step, body })
    }
}
