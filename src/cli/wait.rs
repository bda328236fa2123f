//! `forq wait`: until tasks have ended.

use std::time::{Duration, Instant};

use clap::Args;

use super::args::SomeTasks;
use super::client::Client;
use super::out::Out;
use super::{CliError, Exit, Globals, when};
use crate::task::{State, TaskId};

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    tasks: SomeTasks,
    /// Give up after this long, with exit code 4
    #[arg(long, value_name = "TIME", value_parser = when::duration_ms, allow_hyphen_values = true)]
    timeout: Option<u64>,
}

pub(crate) fn run(args: WaitArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let deadline = args.timeout.map(|ms| Instant::now() + Duration::from_millis(ms));
    let mut client = Client::connect_until(&globals.instance_to_ask()?, deadline)?;
    until_ended(&mut client, &args.tasks.ids, out)
}

/// Waits for each of `ids`, prints each end as it comes, and fails if one did not succeed.
pub(crate) fn until_ended(
    client: &mut Client,
    ids: &[TaskId],
    out: &mut Out,
) -> Result<u8, CliError> {
    out.flush()?;
    let (mut ended, mut bad) = (0, 0);
    let waited = client.wait(ids, out.json, |end| {
        ended += 1;
        bad += usize::from(end.state != State::Succeeded);
        match &end.task {
            Some(task) if out.json => out.value(task)?,
            _ if out.json => out.value(&end)?,
            _ => out.line(format_args!("{} {}", end.id, end.state))?,
        }
        out.flush()
    });
    match waited {
        Err(error) if error.exit == Exit::TimedOut => {
            Err(CliError::new(Exit::TimedOut, format!("timed out: {ended} of {} ended", ids.len())))
        }
        Err(error) => Err(error),
        Ok(()) if bad > 0 => {
            Err(CliError::new(Exit::TaskFailed, format!("{bad} of {} did not succeed", ids.len()))
                .hint("`forq status ID` says why"))
        }
        Ok(()) => Ok(Exit::Done as u8),
    }
}
