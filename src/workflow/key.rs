//! The names of a run's tasks: `plot`, `scene[3]` (an item, from 0), `table#2` (a round, from 1).

use super::Workflow;
use super::definition::{Form, Step};
use super::limits::{ITEMS_MAX, ROUNDS_MAX};

/// The key of a step's task with this number, from 0.
pub(super) fn of(step: &Step, number: usize) -> String {
    let name = &step.name;
    match step.form {
        Form::Once => name.clone(),
        Form::ForEach(_) | Form::Plan { .. } => format!("{name}[{number}]"),
        Form::Repeat { .. } => format!("{name}#{}", number + 1),
    }
}

/// The step of a key, and the number of the task.
pub(super) fn find(workflow: &Workflow, key: &str) -> Option<(usize, usize)> {
    let name = step_of(key);
    let step = *workflow.by_name.get(name)?;
    let rest = key.get(name.len()..)?;
    let number = match workflow.steps.get(step)?.form {
        Form::Once => rest.is_empty().then_some(0)?,
        Form::ForEach(_) | Form::Plan { .. } => {
            number(rest.strip_prefix('[')?.strip_suffix(']')?).filter(|n| *n < ITEMS_MAX)?
        }
        Form::Repeat { .. } => {
            number(rest.strip_prefix('#')?).filter(|n| *n <= ROUNDS_MAX)?.checked_sub(1)?
        }
    };
    Some((step, number))
}

/// The name of the step that a key belongs to.
pub(crate) fn step_of(key: &str) -> &str {
    key.split(['[', '#']).next().unwrap_or(key)
}

/// A number in its one way of being written.
fn number(digits: &str) -> Option<usize> {
    let canonical = digits == "0" || !digits.starts_with(['0', '+']);
    digits.parse().ok().filter(|_| canonical)
}
