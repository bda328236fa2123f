//! Workflow files: read, put together with what they name, checked, and made into a task's input.
//!
//! * `file`: one file as JSON, with the lines of its values
//! * `inline`: the files that it names, in their places
//! * `order`: JSON in the order of the file
//! * `set`: `--set`

mod file;
mod inline;
mod order;
mod set;

use std::path::Path;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use self::order::Ordered;
use super::{CliError, input};
use crate::task::NewTask;
use crate::workflow::Workflow;

/// The name of the kind.
pub(crate) const KIND: &str = "workflow";

/// Whether a file of this name may be a workflow.
pub(crate) fn is_file_name(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "toml")
}

/// Whether a file's text is a workflow rather than a configuration.
pub(crate) fn is_workflow(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("steps"))
}

/// Checks a file, and all files that it names; the error has a line for each mistake.
pub(crate) fn check_file(path: &Path) -> Result<Workflow, CliError> {
    read(&inline::load(path)?).map(|(workflow, _)| workflow)
}

/// The task of a run: a file with the values of its inputs.
pub(crate) fn task_of_file(path: &Path, sets: &[String]) -> Result<NewTask, CliError> {
    task_of(&inline::load(path)?, Map::new(), sets)
}

/// The task of a run, from an INPUT: `@FILE` with a workflow in TOML or JSON, or JSON on the line
/// or on stdin; a definition, or `{"workflow": …, "inputs": {…}}`.
pub(crate) fn task_of_input(argument: &str, sets: &[String]) -> Result<NewTask, CliError> {
    if let Some(file) = argument.strip_prefix('@').map(Path::new).filter(|file| is_file_name(file))
    {
        return task_of_file(file, sets);
    }
    let value: Value = serde_json::from_str(input::json(argument)?.get())
        .map_err(|error| CliError::invalid(format!("input: {error}")))?;
    match value {
        Value::Object(mut whole) if whole.contains_key("workflow") => {
            let inputs = match whole.remove("inputs") {
                None => Map::new(),
                Some(Value::Object(inputs)) => inputs,
                Some(_) => return Err(CliError::invalid("input.inputs: give an object")),
            };
            let definition = whole.remove("workflow").unwrap_or_default();
            if let Some(unknown) = whole.keys().next() {
                return Err(CliError::invalid(format!("input.{unknown}: unknown field")));
            }
            task_of(&inline::inline(definition, argument)?, inputs, sets)
        }
        definition => task_of(&inline::inline(definition, argument)?, Map::new(), sets),
    }
}

fn task_of(
    definition: &Value,
    mut inputs: Map<String, Value>,
    sets: &[String],
) -> Result<NewTask, CliError> {
    let (workflow, raw) = read(definition)?;
    for set in sets {
        set::apply(&mut inputs, set, definition.get("inputs"))?;
    }
    let checked = workflow.check_inputs(&inputs).map_err(CliError::invalid)?;
    let key = workflow.key(&checked).map_err(|problem| CliError::invalid(problem.to_string()))?;
    // Another workflow with equal inputs is another run.
    let key = key.map(|key| format!("{}:{key}", workflow.name()));
    let input = to_raw_value(&json!({ "workflow": raw, "inputs": inputs }))
        .map_err(|error| CliError::internal(error.to_string()))?;
    Ok(NewTask { key, ..NewTask::new(KIND, input) })
}

fn read(definition: &Value) -> Result<(Workflow, Box<RawValue>), CliError> {
    let raw = to_raw_value(&Ordered::new(definition))
        .map_err(|error| CliError::internal(error.to_string()))?;
    let workflow = Workflow::read(&raw).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        CliError::invalid(lines.join("\n"))
    })?;
    Ok((workflow, raw))
}
