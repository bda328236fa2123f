//! `forq cancel` and `forq retry`: change tasks, each told what became of it.

use clap::Args;

use super::args::SomeTasks;
use super::client::unexpected;
use super::out::Out;
use super::{CliError, Exit, Globals};
use crate::protocol::control::{Change, Reply, Request};
use crate::task::State;

pub(crate) fn cancel(args: SomeTasks, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    change(&Request::Cancel { ids: args.ids }, after_cancel, globals, out)
}

#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    tasks: SomeTasks,
    /// Of a workflow that has ended: run this step again, and all that comes after it
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
}

pub(crate) fn retry(args: RetryArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let request = Request::Retry { ids: args.tasks.ids, from: args.from };
    change(&request, after_retry, globals, out)
}

fn change(
    request: &Request,
    judge: fn(&Change) -> Result<String, CliError>,
    globals: &Globals,
    out: &mut Out,
) -> Result<u8, CliError> {
    let results = match globals.connect()?.call(request)? {
        Reply::Changed { results } => results,
        other => return Err(unexpected(&other)),
    };
    let mut first_error = None;
    for change in &results {
        let judged = judge(change);
        match judged {
            _ if out.json => out.value(change)?,
            Ok(ref line) => out.line(format_args!("{} {line}", change.id))?,
            // The first is told at the edge.
            Err(ref error) if first_error.is_some() => out.note(format_args!("error: {error}")),
            Err(_) => {}
        }
        if let Err(error) = judged {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(Exit::Done as u8), Err)
}

/// A task that has ended is as cancelled as it can be: no error.
fn after_cancel(change: &Change) -> Result<String, CliError> {
    match change.state {
        None => Err(no_such_task(change)),
        Some(State::Running) => Ok("cancelling".to_owned()),
        Some(state) if change.changed => Ok(state.to_string()),
        Some(state) => Ok(format!("already {state}")),
    }
}

/// A task that is on its way may have been put back by this very request, sent twice: no error.
fn after_retry(change: &Change) -> Result<String, CliError> {
    match change.state {
        None => Err(no_such_task(change)),
        Some(state) if change.changed => Ok(state.to_string()),
        Some(state @ (State::Succeeded | State::Cancelled | State::Failed)) => {
            let reason = change.reason.as_deref().unwrap_or("only a failed task is put back");
            let message = format!("task {} is in state {state}: {reason}", change.id);
            Err(CliError::new(Exit::Forbidden, message))
        }
        Some(state) => Ok(format!("already {state}")),
    }
}

fn no_such_task(change: &Change) -> CliError {
    CliError::new(Exit::NoSuchTask, format!("no task {}", change.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::TaskId;

    fn judged(
        judge: fn(&Change) -> Result<String, CliError>,
        state: Option<State>,
        changed: bool,
    ) -> (u8, String) {
        match judge(&Change { id: TaskId::new(), state, changed, reason: None }) {
            Ok(line) => (0, line),
            Err(error) => (error.exit as u8, String::new()),
        }
    }

    #[test]
    fn what_became_of_a_task_decides_the_exit_code() {
        use State::*;
        let cancels = [
            (None, false, 6, ""),
            (Some(Cancelled), true, 0, "cancelled"),
            (Some(Running), true, 0, "cancelling"),
            (Some(Cancelled), false, 0, "already cancelled"),
            (Some(Succeeded), false, 0, "already succeeded"),
        ];
        for (state, changed, exit, line) in cancels {
            assert_eq!(judged(after_cancel, state, changed), (exit, line.to_owned()), "{state:?}");
        }
        let retries = [
            (None, false, 6, ""),
            (Some(Queued), true, 0, "queued"),
            (Some(Queued), false, 0, "already queued"),
            (Some(Succeeded), false, 7, ""),
            (Some(Cancelled), false, 7, ""),
        ];
        for (state, changed, exit, line) in retries {
            assert_eq!(judged(after_retry, state, changed), (exit, line.to_owned()), "{state:?}");
        }
    }
}
