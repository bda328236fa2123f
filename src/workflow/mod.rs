//! Workflows: graphs of tasks, from their definition to what comes next in a run. Pure: nothing here
//! reads a file, a clock or a queue.
//!
//! | where | what |
//! | --- | --- |
//! | `read`, `read_step`, `read_action`, `inputs`, `table` | a definition is read, and every mistake in it noted (`problem`) |
//! | `draft`, `names`, `literals` | its templates are kept for the engine (`template`, `shape`), and what they name is looked at |
//! | `graph`, `set` | who waits for whom |
//! | `definition` | what comes of it |
//! | `progress`, `fan`, `rounds`, `ends`, `key` | one run: what has begun and ended, and so what comes next (`words`) |
//! | `scope`, `outcome` | what its templates see |

mod definition;
mod draft;
mod ends;
mod fan;
mod graph;
mod inputs;
mod key;
mod limits;
mod literals;
mod names;
mod outcome;
mod problem;
mod progress;
mod read;
mod read_action;
mod read_step;
mod rounds;
mod scope;
mod set;
mod shape;
mod table;
mod template;
#[cfg(test)]
mod tests;
mod words;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use minijinja::context;
use minijinja::value::Serde;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

pub(crate) use definition::{UsedKind, Voice};
pub(crate) use key::step_of;
pub(crate) use problem::Problem;
pub(crate) use progress::Progress;
pub(crate) use words::{Advance, Ended, NewStep};

use definition::Step;
use inputs::Inputs;
use problem::Source;
use shape::Shape;
use template::{Template, Templates};

/// A definition that was read and checked whole, its templates compiled. Runs of the same
/// definition share it.
#[derive(Debug)]
pub(crate) struct Workflow {
    name: String,
    inputs: Inputs,
    /// In the order of the file.
    steps: Vec<Step>,
    by_name: Arc<BTreeMap<String, usize>>,
    output: Option<Shape>,
    voice: Voice,
    key: Option<Template>,
    source: Source,
    kinds: Vec<UsedKind>,
    templates: Templates,
}

impl Workflow {
    /// Reads and checks a definition, with every one nested in it. The error is everything that is
    /// wrong; never empty.
    pub(crate) fn read(definition: &RawValue) -> Result<Self, Vec<Problem>> {
        read::read(definition, 0, Rc::new(Cell::new(limits::PATTERNS_MAX)))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whose text followers are shown.
    pub(crate) fn voice(&self) -> &Voice {
        &self.voice
    }

    /// The problem in words, with file and line as far as the definition knows them.
    pub(crate) fn problem_at(&self, problem: &Problem) -> String {
        self.source.locate(problem.clone()).to_string()
    }

    /// The idempotency key of a run with these inputs, which were checked.
    pub(crate) fn key(&self, inputs: &Map<String, Value>) -> Result<Option<String>, Problem> {
        let Some(key) = &self.key else { return Ok(None) };
        let inputs = minijinja::Value::from(Serde(inputs));
        let key = self.templates.text(key, &context! { inputs });
        key.map(Some).map_err(|problem| self.source.locate(problem))
    }

    /// What a run begins with: the inputs that are given, and the defaults of the others. The error
    /// names the first that is wrong, missing or unknown.
    pub(crate) fn check_inputs(
        &self,
        given: &Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        self.inputs.check(given)
    }

    /// The step and all whose results depend on its: those that need it or stand in for it, and so
    /// on. None if there is no such step.
    pub(crate) fn downstream(&self, step: &str) -> Option<BTreeSet<String>> {
        let found = graph::downstream(&self.steps, *self.by_name.get(step)?);
        let names = found.into_iter().filter_map(|i| self.steps.get(i));
        Some(names.map(|step| step.name.clone()).collect())
    }

    /// The kind of each step and action, those of nested workflows included.
    pub(crate) fn step_kinds(&self) -> &[UsedKind] {
        &self.kinds
    }
}
