//! A definition as it was checked: what there is to do, with steps named by their numbers.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::set::StepSet;
use super::shape::Shape;
use super::template::Template;

/// One step. Its number is its place in the file.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) action: Action,
    /// The steps that it waits for, but for the one that it rescues.
    pub(super) needs: Vec<usize>,
    /// The steps that wait for it by name.
    pub(super) needed_by: Vec<usize>,
    /// The step in whose place it runs, once that has failed.
    pub(super) rescues: Option<usize>,
    /// The steps that its templates may name: those that have ended whenever it begins.
    pub(super) sees: StepSet,
    pub(super) when: Option<Template>,
    /// The idempotency key of its tasks.
    pub(super) key: Option<Template>,
    pub(super) on_failure: OnFailure,
    pub(super) form: Form,
}

/// What is sent: all that makes a task but its name and its turn.
#[derive(Debug, Default)]
pub(super) struct Action {
    pub(super) kind: String,
    pub(super) input: Shape,
    pub(super) priority: Option<u8>,
    pub(super) timeout_ms: Option<u64>,
    pub(super) attempts: Option<u32>,
    pub(super) expect: Option<Box<RawValue>>,
    pub(super) expects_json: bool,
}

/// What becomes of a run whose step has failed.
#[derive(Debug)]
pub(super) enum OnFailure {
    Fail,
    /// It goes on with this output.
    Output(Shape),
    /// It goes on with the result of this step.
    Step(usize),
}

/// How many tasks a step is.
#[derive(Debug)]
pub(super) enum Form {
    Once,
    ForEach(Fan),
    Repeat { until: Option<Template>, max: usize },
    Plan { fan: Fan, actions: BTreeMap<String, Planned>, in_order: bool },
}

/// A list of tasks.
#[derive(Debug)]
pub(super) struct Fan {
    pub(super) list: Template,
    /// Tasks at once.
    pub(super) concurrency: usize,
    pub(super) max: usize,
}

/// What a task of a plan may be.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) action: Action,
    /// The output to go on with if it fails; otherwise the step fails.
    pub(super) fallback: Option<Shape>,
}

/// Whose text a follower of a run is shown as it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// Every step's.
    All,
    /// That of these steps.
    Steps(Vec<String>),
}

/// A kind that a workflow uses: nobody but a daemon knows which kinds there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsedKind {
    /// The step or action, such as `steps.plan.actions.insight`.
    pub(crate) path: String,
    pub(crate) kind: String,
    /// The agent, unless a template says it.
    pub(crate) agent: Option<String>,
    /// The model, unless a template says it.
    pub(crate) model: Option<String>,
}
