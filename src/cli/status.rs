//! `forq status`: one task, with every attempt and why it ended.

use comfy_table::Cell;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::args::OneTask;
use super::out::{Out, span};
use super::tree::money;
use super::{CliError, Exit, Globals, result, steps, workflow};
use crate::task::{Attempt, Cause, TaskError, TaskView};

pub(crate) fn run(args: OneTask, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let task = result::one_task(&mut globals.connect()?, args.id)?;
    if out.json {
        out.value(&task)?;
        return Ok(Exit::Done as u8);
    }
    out.pairs(&pairs(&task))?;
    if !task.attempts.is_empty() {
        out.line("")?;
        out.table(
            &["ATTEMPT", "STARTED", "ENDED", "WORKER", "OUTCOME", "WHY"],
            task.attempts.iter().map(attempt_row),
        )?;
    }
    if !task.by_step.is_empty() {
        out.line("")?;
        out.table(&steps::HEADER, steps::rows(&task.by_step))?;
    }
    if let Some(hint) = hint(&task) {
        out.note(hint);
    }
    Ok(Exit::Done as u8)
}

fn pairs(task: &TaskView) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("id", task.id.to_string()),
        ("kind", task.kind.clone()),
        ("state", state(task)),
        ("priority", task.priority.to_string()),
        ("queue", task.queue.clone()),
    ];
    let mut add = |name, value: Option<String>| pairs.extend(value.map(|value| (name, value)));
    add("waits", task.waiting_reason.clone());
    add("place", task.position.map(|position| position.to_string()));
    add("expected", task.estimated_wait_ms.map(|wait_ms| format!("in about {}", span(wait_ms))));
    add("lane", task.lane.clone());
    add("session", task.session.clone());
    add("key", task.key.clone());
    add("attempt", Some(attempt(task)));
    add("created", Some(task.created_at.clone()));
    add("due", task.due_at.clone());
    add("started", task.started_at.clone());
    add("finished", task.finished_at.clone());
    add("waited", task.wait_ms.map(span));
    add("ran", task.run_ms.map(span));
    add("worker", task.worker_pid.map(|pid| pid.to_string()));
    add("workflow", task.parent.map(|id| id.to_string()));
    add("step", task.step.clone());
    add(
        "tokens",
        task.usage
            .map(|usage| format!("{} in, {} out", usage.prompt_tokens, usage.completion_tokens)),
    );
    add("cost", task.cost.map(money));
    add("input", input(task));
    add("output", task.output.as_ref().map(|output| output.get().to_owned()));
    add("error", task.error.as_ref().map(why));
    pairs
}

/// As it was submitted; of a run its inputs, without the definition.
fn input(task: &TaskView) -> Option<String> {
    #[derive(Deserialize)]
    struct OfRun<'a> {
        #[serde(borrow)]
        inputs: Option<&'a RawValue>,
    }
    let input = task.input.as_ref()?.get();
    if task.kind != workflow::KIND {
        return Some(input.to_owned());
    }
    let inputs = serde_json::from_str::<OfRun<'_>>(input).ok()?.inputs;
    Some(inputs.map_or("{}", RawValue::get).to_owned())
}

/// Starts so far, and how many failures there may be. There are more starts after `forq retry`,
/// and after losses that are nobody's fault.
fn attempt(task: &TaskView) -> String {
    let (attempt, max_attempts) = (task.attempt, task.max_attempts);
    if attempt <= max_attempts {
        format!("{attempt} of {max_attempts}")
    } else {
        format!("{attempt} (max_attempts {max_attempts})")
    }
}

/// The state, and what it waits for.
pub(crate) fn state(task: &TaskView) -> String {
    match task.waiting_for {
        Some(waiting_for) => format!("{} ({})", task.state, word(&waiting_for)),
        None => task.state.to_string(),
    }
}

fn attempt_row(attempt: &Attempt) -> Vec<Cell> {
    vec![
        Cell::new(attempt.attempt),
        Cell::new(&attempt.started_at),
        Cell::new(attempt.ended_at.as_deref().unwrap_or("")),
        Cell::new(attempt.worker_pid.map(|pid| pid.to_string()).unwrap_or_default()),
        Cell::new(&attempt.outcome),
        Cell::new(attempt.error.as_ref().map(why).unwrap_or_default()),
    ]
}

/// An error in one line: kind, sentence, evidence, and nothing twice.
pub(crate) fn why(error: &TaskError) -> String {
    let evidence =
        error.cause.as_ref().map(|cause| evidence(cause, &error.message)).unwrap_or_default();
    let kind = word(&error.kind);
    if error.message.starts_with(&kind) {
        return format!("{}{evidence}", error.message);
    }
    format!("{kind}: {}{evidence}", error.message)
}

/// What the sentence does not say itself.
fn evidence(cause: &Cause, sentence: &str) -> String {
    let parts: Vec<String> = [
        cause.reason.map(|reason| word(&reason)),
        cause.signal.clone(),
        cause.exit_code.map(|code| format!("exit code {code}")),
    ]
    .into_iter()
    .flatten()
    .filter(|part| !sentence.contains(part))
    .collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// The word that JSON uses, which is the one that users know.
fn word(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).ok();
    json.as_ref().and_then(|json| json.as_str()).unwrap_or_default().to_owned()
}

fn hint(task: &TaskView) -> Option<String> {
    use crate::task::{State, WaitingFor};
    let id = task.id;
    match (task.state, task.waiting_for) {
        (State::Failed, _) if task.kind == workflow::KIND => Some(format!(
            "hint: `forq retry {id}` resumes it from the failed step, `--from STEP` from another"
        )),
        (State::Failed, _) => Some(format!("hint: `forq retry {id}` tries again")),
        (_, Some(WaitingFor::Paused)) => {
            Some(format!("hint: `forq queue resume --queue {}` lets it run", task.queue))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{ErrorKind, LossReason};

    #[test]
    fn an_error_tells_kind_sentence_and_evidence() {
        let mut error = TaskError {
            kind: ErrorKind::WorkerLost,
            message: "the worker died".to_owned(),
            retryable: true,
            cause: Some(Cause {
                signal: Some("SIGKILL".to_owned()),
                exit_code: None,
                reason: Some(LossReason::Oom),
            }),
        };
        assert_eq!(why(&error), "worker_lost: the worker died (oom, SIGKILL)");
        error.cause = None;
        assert_eq!(why(&error), "worker_lost: the worker died");
        error.message = "ended with exit code 3".to_owned();
        error.cause = Some(Cause { exit_code: Some(3), ..Cause::default() });
        assert_eq!(why(&error), "worker_lost: ended with exit code 3");
        (error.kind, error.cause) = (ErrorKind::Cancelled, None);
        error.message = "cancelled by request".to_owned();
        assert_eq!(why(&error), "cancelled by request");
    }
}
