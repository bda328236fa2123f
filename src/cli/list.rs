//! `forq list`: tasks, newest first, in pages.

use clap::Args;
use comfy_table::Cell;

use super::client::{Client, unexpected};
use super::out::{Out, span, state_cell};
use super::{CliError, Exit, Globals, args, status, when};
use crate::protocol::control::{ListFilter, Reply, Request};
use crate::task::{State, TaskId, TaskView};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only in this state; may be given several times
    #[arg(long, value_name = "STATE")]
    state: Vec<State>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only of this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// The steps of this run
    #[arg(long, value_name = "ID", value_parser = args::task_id)]
    run: Option<TaskId>,
    /// Steps of all runs, too
    #[arg(long, conflicts_with = "run")]
    steps: bool,
    #[command(flatten)]
    page: Page,
}

/// Which part of a long list.
#[derive(Debug, Args)]
pub(crate) struct Page {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = args::at_least_one)]
    limit: u32,
    /// Only older than this task: the next page
    #[arg(long, value_name = "ID", value_parser = args::task_id)]
    after: Option<TaskId>,
}

pub(crate) fn run(args: ListArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let mut client = globals.connect()?;
    let ListArgs { state: states, kind, queue, run, steps, page } = args;
    let filter = ListFilter { states, kind, queue, run, steps, ..page.filter() };
    print(&mut client, filter, out)
}

impl Page {
    pub(crate) fn filter(&self) -> ListFilter {
        ListFilter { limit: self.limit, after: self.after, ..ListFilter::default() }
    }
}

/// Prints one page.
pub(crate) fn print(
    client: &mut Client,
    filter: ListFilter,
    out: &mut Out,
) -> Result<u8, CliError> {
    let limit = filter.limit;
    let tasks = match client.call(&Request::List(filter))? {
        Reply::Tasks { tasks } => tasks,
        other => return Err(unexpected(&other)),
    };
    if out.json {
        for task in &tasks {
            out.value(task)?;
        }
        return Ok(Exit::Done as u8);
    }
    if tasks.is_empty() {
        out.note("no tasks");
        return Ok(Exit::Done as u8);
    }
    let now_ms = when::now_ms();
    out.table(
        &["ID", "KIND", "STATE", "PRIO", "QUEUE", "ATTEMPT", "WAITED", "RAN", "AGE"],
        tasks.iter().map(|task| row(task, now_ms)),
    )?;
    if let Some(last) = tasks.last().filter(|_| tasks.len() >= limit as usize) {
        out.note(format_args!("hint: there may be more: --after {}", last.id));
    }
    Ok(Exit::Done as u8)
}

fn row(task: &TaskView, now_ms: i64) -> Vec<Cell> {
    let age = match when::moment_ms(&task.created_at) {
        Ok(created_ms) => span(u64::try_from(now_ms - created_ms).unwrap_or(0)),
        Err(_) => String::new(),
    };
    vec![
        Cell::new(task.id),
        Cell::new(match &task.step {
            Some(step) => format!("{} ({step})", task.kind),
            None => task.kind.clone(),
        }),
        state_cell(task.state, status::state(task)),
        Cell::new(task.priority),
        Cell::new(&task.queue),
        Cell::new(task.attempt),
        Cell::new(task.wait_ms.map(span).unwrap_or_default()),
        Cell::new(task.run_ms.map(span).unwrap_or_default()),
        Cell::new(age),
    ]
}
