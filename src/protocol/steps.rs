//! What worker and broker say about workflows: since version 3 of the worker link.
//!
//! A run's claim is its advance: the worker is told which steps have ended since it last looked, and
//! answers with the steps that are next ([`Outcome::Advanced`]), or with the run's own end.
//!
//! [`Outcome::Advanced`]: super::link::Outcome::Advanced

use serde::{Deserialize, Serialize};

use super::calls::Begin;
use super::link::Start;
use crate::handler::Needs;
use crate::task::TaskId;

/// An advance of a run to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advance {
    /// The run. Its input is empty if the worker is to know it from its last advance.
    pub start: Start,
    /// `steps` are those that have ended since this worker's last advance of the run; otherwise
    /// they are all that there are.
    pub known: bool,
    /// In the order in which they ended.
    pub steps: Vec<StepNews>,
}

/// A step's task, as far as its run cares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepNews {
    /// Its key in the run: `plot`, `scene[3]`, `table#2`.
    pub key: String,
    /// How it ended, if it has.
    pub end: Option<StepEnd>,
}

/// How a step's task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StepEnd {
    /// With this output, as JSON.
    Succeeded(String),
    /// Failed, or cancelled: one sentence.
    Failed(String),
}

/// A step that is next, as a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTask {
    /// The task.
    pub id: TaskId,
    /// Its key in the run.
    pub key: String,
    /// The handler.
    pub kind: String,
    /// JSON.
    pub input: String,
    /// 0 to 9; that of its agent, or of the run, if absent.
    pub priority: Option<u8>,
    /// Time limit of one attempt, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Attempts before it fails.
    pub max_attempts: Option<u32>,
    /// Its idempotency key.
    pub task_key: Option<String>,
    /// What its answer must be like, as JSON.
    pub expect: Option<String>,
    /// What its handler says that it needs.
    pub needs: Needs,
}

/// An attempt to start, with what not every attempt has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeginWith {
    /// The attempt.
    pub begin: Begin,
    /// What its answer must be like, as JSON.
    pub expect: Option<String>,
    /// The conversation so far, as JSON: a list of messages.
    pub history: Option<String>,
}
