//! The files that a workflow names, in the places of their names: a run keeps its own copy of all.

use std::path::Path;

use serde_json::{Map, Value};

use super::file;
use crate::cli::CliError;

/// Workflows within workflows; also what ends a file that names itself.
const DEPTH_MAX: usize = 8;

/// Reads a workflow file and all that it names.
pub(super) fn load(path: &Path) -> Result<Value, CliError> {
    load_at(path, 1)
}

fn load_at(path: &Path, depth: usize) -> Result<Value, CliError> {
    if depth > DEPTH_MAX {
        return Err(CliError::invalid(format!(
            "{}: workflows within workflows, {DEPTH_MAX} deep at most: does one name itself?",
            path.display()
        )));
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut definition = file::read(path)?;
    inline_steps(&mut definition, folder, depth)?;
    Ok(definition)
}

/// Puts in what a definition names that was not read from a file of its own: such names are
/// relative to the working folder, or to the file that the INPUT came from.
pub(super) fn inline(mut definition: Value, argument: &str) -> Result<Value, CliError> {
    let file = argument.strip_prefix('@').map(Path::new);
    let folder = file.and_then(Path::parent).unwrap_or(Path::new("."));
    inline_steps(&mut definition, folder, 1)?;
    Ok(definition)
}

/// Whatever does not look as it should is left for the check to name.
fn inline_steps(definition: &mut Value, folder: &Path, depth: usize) -> Result<(), CliError> {
    let Some(steps) = definition.get_mut("steps").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    for step in steps.values_mut().filter_map(Value::as_object_mut) {
        inline_step(step, folder, depth)?;
        let actions = step.get_mut("actions").and_then(Value::as_object_mut);
        for action in actions.into_iter().flat_map(Map::values_mut) {
            if let Some(action) = action.as_object_mut() {
                inline_step(action, folder, depth)?;
            }
        }
    }
    Ok(())
}

fn inline_step(step: &mut Map<String, Value>, folder: &Path, depth: usize) -> Result<(), CliError> {
    match step.get_mut("workflow") {
        Some(Value::String(name)) => {
            let nested = load_at(&folder.join(&*name), depth + 1)?;
            step.insert("workflow".to_owned(), nested);
        }
        Some(nested) => inline_steps(nested, folder, depth + 1)?,
        None => {}
    }
    if let Some(schema) = step.get_mut("expect").and_then(|expect| expect.get_mut("schema"))
        && let Value::String(name) = &*schema
    {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            CliError::invalid(format!("cannot read {}: {error}", path.display()))
        })?;
        *schema = serde_json::from_str(&text)
            .map_err(|error| CliError::invalid(format!("{}: not JSON: {error}", path.display())))?;
    }
    Ok(())
}
