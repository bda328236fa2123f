//! What a run is told, and what it answers.

use serde_json::value::RawValue;

use super::limits::STEP_OVERHEAD_BYTES;

/// How a task has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this output.
    Succeeded(Box<RawValue>),
    /// For good, with this message.
    Failed(String),
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Advance {
    /// These tasks begin; possibly none, until another one has ended.
    Go(Vec<NewStep>),
    /// The run has succeeded.
    Done { output: Box<RawValue> },
    /// The run has failed; a retry has to run the tasks with the keys in `blamed` again.
    Failed { message: String, blamed: Vec<String> },
}

/// A task of a run, to be begun.
#[derive(Debug)]
pub(crate) struct NewStep {
    /// Its name in the run: `plot`, `scene[3]` (an item, from 0), `table#2` (a round, from 1).
    pub(crate) key: String,
    pub(crate) kind: String,
    pub(crate) input: Box<RawValue>,
    pub(crate) priority: Option<u8>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) max_attempts: Option<u32>,
    /// The idempotency key.
    pub(crate) task_key: Option<String>,
    /// What its answer must be like, for `Expect::read`.
    pub(crate) expect: Option<Box<RawValue>>,
}

impl NewStep {
    /// What it takes on its way.
    pub(super) fn bytes(&self) -> u64 {
        let expect = self.expect.as_ref().map_or(0, |expect| expect.get().len());
        let key = self.task_key.as_ref().map_or(0, String::len);
        (self.input.get().len() + expect + key) as u64 + STEP_OVERHEAD_BYTES
    }
}
