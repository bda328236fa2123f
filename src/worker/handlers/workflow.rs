//! The kind `workflow`: checked here, when it is submitted. Its advances are no ordinary attempts:
//! see [`crate::worker::flows`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Registry, parse_input};
use crate::workflow::{Problem, Workflow};

/// The name of the kind.
pub(crate) const KIND: &str = "workflow";
/// Definitions that are kept read. Programs submit few different ones, many times each.
const DEFINITIONS_MAX: usize = 64;

/// A run's input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunInput<'a> {
    /// The definition, which the run keeps for itself.
    #[serde(borrow)]
    pub(crate) workflow: &'a RawValue,
    /// Values for its inputs.
    #[serde(default)]
    pub(crate) inputs: Map<String, Value>,
}

/// Definitions that were read and found good, by their digest.
#[derive(Default)]
pub(crate) struct Definitions(BTreeMap<[u8; 32], Arc<Workflow>>);

impl Definitions {
    /// Reads a definition, unless it was read before. The error tells all that is wrong with it.
    pub(crate) fn read(&mut self, definition: &RawValue) -> Result<Arc<Workflow>, String> {
        self.read_and_check(definition, |_| Ok(()))
    }

    /// The same, with a further check of one that is new.
    fn read_and_check(
        &mut self,
        definition: &RawValue,
        check: impl FnOnce(&Workflow) -> Result<(), String>,
    ) -> Result<Arc<Workflow>, String> {
        let digest: [u8; 32] = Sha256::digest(definition.get()).into();
        if let Some(known) = self.0.get(&digest) {
            return Ok(Arc::clone(known));
        }
        let workflow = Workflow::read(definition).map_err(|problems| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        })?;
        check(&workflow)?;
        if self.0.len() >= DEFINITIONS_MAX {
            self.0.clear();
        }
        let workflow = Arc::new(workflow);
        self.0.insert(digest, Arc::clone(&workflow));
        Ok(workflow)
    }
}

/// The handler of `workflow` tasks.
pub(crate) struct WorkflowHandler {
    /// The kinds that steps may have.
    others: Registry,
    definitions: RefCell<Definitions>,
}

impl WorkflowHandler {
    pub(crate) fn new(others: Registry) -> Self {
        Self { others, definitions: RefCell::default() }
    }

    /// What the definition cannot know by itself: whether its kinds, agents and models are there.
    fn knows(&self, workflow: &Workflow) -> Result<(), String> {
        for step in workflow.step_kinds() {
            let at = |error: String| workflow.problem_at(&Problem::new(&step.path, error));
            if step.kind == KIND {
                continue;
            }
            if self.others.get(&step.kind).is_none() {
                let known = self.others.kinds().chain([KIND]).collect::<Vec<_>>().join(", ");
                return Err(at(format!("unknown kind '{}': this daemon knows {known}", step.kind)));
            }
            if step.kind == "chat" {
                let input = json!({ "prompt": "-", "agent": step.agent, "model": step.model });
                let input = serde_json::value::to_raw_value(&input).map_err(|e| e.to_string())?;
                self.others.check(&step.kind, &input).map_err(at)?;
            }
        }
        Ok(())
    }
}

impl Handler for WorkflowHandler {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        let input: RunInput<'_> =
            serde_json::from_str(input.get()).map_err(|_| match parse_input::<Shape>(input) {
                Err(error) => error,
                Ok(_) => "input: give {\"workflow\": …, \"inputs\": {…}}".to_owned(),
            })?;
        let mut definitions = self.definitions.borrow_mut();
        let workflow = definitions.read_and_check(input.workflow, |new| self.knows(new))?;
        workflow.check_inputs(&input.inputs).map(drop)
    }

    fn run(&self, _: Context, _: Box<RawValue>) -> HandlerFuture {
        let error = HandlerError::fatal("a workflow cannot run without a daemon");
        Box::pin(std::future::ready(Err(error)))
    }
}

/// [`RunInput`], read so that an error names the field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read for its errors")]
struct Shape {
    workflow: Map<String, Value>,
    #[serde(default)]
    inputs: Map<String, Value>,
}
