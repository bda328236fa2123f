//! `forq queue`: queues as a whole.

use clap::{Args, Subcommand};
use comfy_table::Cell;

use super::args::queue_name;
use super::client::{Client, unexpected};
use super::list::{self, Page};
use super::out::Out;
use super::{CliError, Exit, Globals};
use crate::protocol::control::{ListFilter, QueueCounts, Reply, Request};
use crate::task::State;

#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    #[command(subcommand)]
    verb: QueueVerb,
    /// Only this queue [default: all]
    #[arg(long, value_name = "NAME", global = true, value_parser = queue_name)]
    queue: Option<String>,
}

#[derive(Debug, Subcommand)]
enum QueueVerb {
    /// Show what waits and runs in each queue
    Status,
    /// Start nothing more from it
    Pause,
    /// Start tasks from it again
    Resume,
    /// Cancel what is queued, never what runs
    Clear,
    /// List the tasks in it that have not ended
    Items(Page),
}

pub(crate) fn run(args: QueueArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let mut client = globals.connect()?;
    let queue = args.queue;
    let which = queue.as_ref().map_or("all queues".to_owned(), |name| format!("queue {name}"));
    let (request, did) = match args.verb {
        QueueVerb::Items(page) => {
            let states = State::ALL.into_iter().filter(|state| !state.is_final()).collect();
            let filter = ListFilter { states, queue, steps: true, ..page.filter() };
            return list::print(&mut client, filter, out);
        }
        QueueVerb::Status => (Request::QueueStatus { queue }, String::new()),
        QueueVerb::Pause => (Request::QueuePause { queue }, format!("{which}: paused")),
        QueueVerb::Resume => (Request::QueueResume { queue }, format!("{which}: resumed")),
        QueueVerb::Clear => (Request::QueueClear { queue }, format!("{which}: tasks cancelled")),
    };
    let is_clear = matches!(request, Request::QueueClear { .. });
    let resumed = match &request {
        Request::QueueResume { queue: Some(queue) } => Some(queue.clone()),
        _ => None,
    };
    match client.call(&request)? {
        Reply::Queues { queues } => print(&queues, out)?,
        Reply::Done { count } if out.json => out.value(&serde_json::json!({ "count": count }))?,
        Reply::Done { count } if is_clear => out.line(format_args!("{did}: {count}"))?,
        Reply::Done { .. } => out.line(did)?,
        other => return Err(unexpected(&other)),
    }
    if let Some(queue) = resumed
        && is_paused(&mut client, queue)?
    {
        out.note("hint: all queues are paused: `forq queue resume` resumes them");
    }
    Ok(Exit::Done as u8)
}

/// Whether a queue is paused: one that was just resumed still is, if all are.
fn is_paused(client: &mut Client, queue: String) -> Result<bool, CliError> {
    match client.call(&Request::QueueStatus { queue: Some(queue) })? {
        Reply::Queues { queues } => Ok(queues.iter().any(|counts| counts.paused)),
        other => Err(unexpected(&other)),
    }
}

fn print(queues: &[QueueCounts], out: &mut Out) -> Result<(), CliError> {
    if out.json {
        return queues.iter().try_for_each(|counts| out.value(counts));
    }
    if queues.is_empty() {
        out.note("nothing waits or runs in any queue");
        return Ok(());
    }
    let header =
        ["QUEUE", "STATE", "QUEUED", "RUNNING", "SCHEDULED", "BLOCKED", "WEIGHT", "MAX RUNNING"];
    out.table(&header, queues.iter().map(row))
}

fn row(counts: &QueueCounts) -> Vec<Cell> {
    vec![
        Cell::new(&counts.queue),
        Cell::new(if counts.paused { "paused" } else { "open" }),
        Cell::new(counts.queued),
        Cell::new(counts.running),
        Cell::new(counts.scheduled),
        Cell::new(counts.blocked),
        Cell::new(counts.weight),
        Cell::new(counts.max_running.map_or("-".to_owned(), |max| max.to_string())),
    ]
}
