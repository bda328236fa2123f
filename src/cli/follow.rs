//! `forq follow`: a task's events as they come.

use clap::Args;

use super::args::OneTask;
use super::client::Client;
use super::out::{Out, span};
use super::tree::Show;
use super::{CliError, Exit, Globals, result};
use crate::protocol::control::{FollowBody, FollowEvent};
use crate::task::TaskId;

#[derive(Debug, Args)]
pub(crate) struct FollowArgs {
    #[command(flatten)]
    task: OneTask,
    /// Go on behind this event: the `event` of the last one that `--json` printed
    #[arg(long, value_name = "EVENT")]
    after: Option<String>,
    /// Of a workflow: the text of every step, not only of its voice
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(args: FollowArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let FollowArgs { task, after, all } = args;
    follow_from(&mut globals.connect()?, task.id, after, all, out)
}

/// Streams a task to its end; its result is printed if nothing was streamed.
pub(crate) fn follow(client: &mut Client, id: TaskId, out: &mut Out) -> Result<u8, CliError> {
    follow_from(client, id, None, false, out)
}

fn follow_from(
    client: &mut Client,
    id: TaskId,
    after: Option<String>,
    all: bool,
    out: &mut Out,
) -> Result<u8, CliError> {
    let is_resumed = after.is_some();
    let (mut teller, mut show, mut ended) = (Teller::default(), None, None);
    client.follow(id, after, all, |event| {
        if out.json {
            out.value(&event)?;
        } else if show.is_some() || Show::is_about(&event) {
            show.get_or_insert_with(|| Show::new(all, is_resumed, out)).take(&event, out)?;
        } else {
            teller.tell(&event, out)?;
        }
        if let FollowBody::Finished { task } = event.body {
            ended = Some(task);
        }
        out.flush()
    })?;
    let Some(task) = ended else {
        return Err(CliError::internal(format!("the daemon did not say how task {id} ended")));
    };
    if let Some(show) = show {
        show.end(&task, out)?;
    } else if !out.json && !teller.has_streamed {
        return result::print(&task, out);
    }
    result::verdict(&task)?;
    Ok(Exit::Done as u8)
}

/// A shorter wait is over before it is read.
const WAIT_TOLD_MS_MIN: u64 = 1000;

/// Tells events to people.
#[derive(Default)]
struct Teller {
    /// Whether the current attempt's text is on stdout.
    has_streamed: bool,
    in_line: bool,
    /// As it was told last.
    position: Option<u64>,
}

impl Teller {
    fn tell(&mut self, event: &FollowEvent, out: &mut Out) -> Result<(), CliError> {
        match &event.body {
            FollowBody::Text { text } => {
                out.raw(text)?;
                self.has_streamed |= !text.is_empty();
                self.in_line = if text.is_empty() { self.in_line } else { !text.ends_with('\n') };
            }
            FollowBody::Data { data } => {
                self.end_line(out)?;
                out.value(data)?;
                self.has_streamed = true;
            }
            FollowBody::Restarted => {
                self.end_line(out)?;
                self.has_streamed = false;
                out.note(format_args!(
                    "task {} begins anew: attempt {}",
                    event.id, event.position.attempt
                ));
            }
            FollowBody::Gap => {
                self.end_line(out)?;
                out.note("some of the output is missing here: `forq result` has the whole");
            }
            FollowBody::Finished { .. } => self.end_line(out)?,
            FollowBody::Waiting { position: Some(position), estimated_wait_ms } => {
                self.tell_wait(*position, *estimated_wait_ms, out);
            }
            FollowBody::Waiting { .. } | FollowBody::Started { .. } | FollowBody::Step { .. } => {}
        }
        Ok(())
    }

    /// Only a wait that is worth a line, and when it has changed.
    fn tell_wait(&mut self, position: u64, wait_ms: Option<u64>, out: &mut Out) {
        if self.position.replace(position) == Some(position) {
            return;
        }
        match wait_ms {
            Some(wait_ms) if wait_ms < WAIT_TOLD_MS_MIN => {}
            Some(wait_ms) => {
                out.note(format_args!("waiting: place {position}, about {}", span(wait_ms)));
            }
            None => out.note(format_args!("waiting: place {position}")),
        }
    }

    fn end_line(&mut self, out: &mut Out) -> Result<(), CliError> {
        if std::mem::take(&mut self.in_line) { out.raw("\n") } else { Ok(()) }
    }
}
