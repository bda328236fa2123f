//! `forq result`: what a task gave back.

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::args::OneTask;
use super::client::{Client, unexpected};
use super::out::Out;
use super::{CliError, Exit, Globals, workflow};
use crate::protocol::control::{Reply, Request};
use crate::task::{State, TaskId, TaskView};

#[derive(Debug, Args)]
pub(crate) struct ResultArgs {
    #[command(flatten)]
    task: OneTask,
    /// Wait until it has ended
    #[arg(long)]
    wait: bool,
}

pub(crate) fn run(args: ResultArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let mut client = globals.connect()?;
    let id = args.task.id;
    if args.wait {
        return wait_and_print(&mut client, id, out);
    }
    let task = one_task(&mut client, id)?;
    print(&task, out)
}

/// Waits for a task, and prints what it gave back.
pub(crate) fn wait_and_print(
    client: &mut Client,
    id: TaskId,
    out: &mut Out,
) -> Result<u8, CliError> {
    let mut ended = None;
    client.wait(&[id], true, |end| {
        ended = end.task;
        Ok(())
    })?;
    match ended {
        Some(task) => print(&task, out),
        None => Err(CliError::internal(format!("the daemon did not say how task {id} ended"))),
    }
}

/// The whole of one task.
pub(crate) fn one_task(client: &mut Client, id: TaskId) -> Result<Box<TaskView>, CliError> {
    match client.call(&Request::Status { id })? {
        Reply::Task { task } => Ok(task),
        other => Err(unexpected(&other)),
    }
}

/// Prints an ended task's output; any other end is an error.
pub(crate) fn print(task: &TaskView, out: &mut Out) -> Result<u8, CliError> {
    verdict(task)?;
    if let Some(output) = &task.output {
        match text_of(output) {
            Some(text) if !out.json => {
                out.raw(&text)?;
                if !text.ends_with('\n') {
                    out.raw("\n")?;
                }
            }
            _ => out.line(output.get())?,
        }
    }
    Ok(Exit::Done as u8)
}

/// Whether a task succeeded, and else why not.
pub(crate) fn verdict(task: &TaskView) -> Result<(), CliError> {
    let id = task.id;
    let why = task.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    match task.state {
        State::Succeeded => Ok(()),
        State::Failed => Err(CliError::new(Exit::TaskFailed, format!("task {id} failed{why}"))
            .hint(retry_hint(task))),
        State::Cancelled => {
            let why = task.error.as_ref().map_or("cancelled", |error| &error.message);
            Err(CliError::new(Exit::TaskFailed, format!("task {id} has no result: {why}")))
        }
        state => Err(CliError::new(Exit::TimedOut, format!("task {id} is {state}: no result yet"))
            .hint(format!("`forq result {id} --wait` waits for it"))),
    }
}

fn retry_hint(task: &TaskView) -> String {
    let id = task.id;
    if task.kind == workflow::KIND {
        return format!(
            "`forq status {id}` tells of every step, `forq retry {id}` goes on from the failed one"
        );
    }
    format!("`forq status {id}` tells of every attempt, `forq retry {id}` tries again")
}

/// The text of an output that has one, as a chat's has.
pub(crate) fn text_of(output: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct HasText {
        text: String,
    }
    serde_json::from_str(output.get()).ok().map(|HasText { text }| text)
}
