//! `forq submit`: one task, or a file of them.

use std::collections::BTreeMap;

use std::path::PathBuf;

use clap::Args;

use super::args::TaskOptions;
use super::client::{Client, unexpected};
use super::jsonl::{self, Numbered};
use super::out::Out;
use super::{CliError, Exit, Globals, follow, input, result, wait, when, workflow};
use crate::protocol::control::{Refusal, RefusalKind, Reply, Request};
use crate::task::{NewTask, TaskId, empty_object};

/// A request carries tasks up to this size, so that neither side holds a whole file in one frame.
/// One task alone may be larger.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// What a task takes besides its input, at most: names, times, ids.
const TASK_OVERHEAD_BYTES: usize = 512;

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// What kind of task: chat, http, exec, tool, workflow, sleep, noop, or one of the daemon's own
    #[arg(required_unless_present = "jsonl")]
    kind: Option<String>,
    /// Its input: JSON, @FILE, or - for stdin [default: {}]; of a workflow @FILE.toml, too
    #[arg(allow_negative_numbers = true)]
    input: Option<String>,
    /// A value for an input of the workflow: NAME=VALUE, NAME=@FILE, or @FILE with an object of
    /// them; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// A file of tasks, one {"kind":…,"input":…} a line, or - for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "input", "set", "key", "follow"])]
    jsonl: Option<PathBuf>,
    #[command(flatten)]
    options: TaskOptions,
    /// Wait for it, and print its result
    #[arg(long)]
    wait: bool,
    /// Stream its events until it ends
    #[arg(long, conflicts_with = "wait")]
    follow: bool,
}

pub(crate) fn run(args: SubmitArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    if let Some(file) = &args.jsonl {
        return submit_file(file.clone(), &args, globals, out);
    }
    let mut task = task_of(&args)?;
    args.options.complete(&mut task, when::now_ms());
    let mut client = globals.connect()?;
    let id = submit_one(&mut client, task)?;
    if args.follow {
        return follow::follow(&mut client, id, out);
    }
    if args.wait {
        return result::wait_and_print(&mut client, id, out);
    }
    print_id(id, out)?;
    Ok(Exit::Done as u8)
}

fn task_of(args: &SubmitArgs) -> Result<NewTask, CliError> {
    let kind = args.kind.clone().unwrap_or_default();
    if kind == workflow::KIND {
        let input = args.input.as_deref().ok_or_else(|| {
            CliError::invalid("which workflow?")
                .hint("forq submit workflow @FILE.toml --set NAME=VALUE")
        })?;
        return workflow::task_of_input(input, &args.set);
    }
    if !args.set.is_empty() {
        return Err(CliError::invalid(format!("--set is for workflows: '{kind}' has an INPUT")));
    }
    let input = args.input.as_deref().map_or_else(|| Ok(empty_object()), input::json)?;
    Ok(NewTask::new(kind, input))
}

/// Submits one task; its id is that of an older one if they share a key.
pub(crate) fn submit_one(client: &mut Client, task: NewTask) -> Result<TaskId, CliError> {
    input::check_size(&task.input, client.hello()).map_err(CliError::invalid)?;
    let ids = submit_batch(client, vec![task])??;
    ids.first().copied().ok_or_else(|| CliError::internal("the daemon accepted a task without id"))
}

fn submit_file(
    file: PathBuf,
    args: &SubmitArgs,
    globals: &Globals,
    out: &mut Out,
) -> Result<u8, CliError> {
    let tasks = jsonl::read(&input::file_or_stdin(&file)?, &args.options, when::now_ms())?;
    let mut client = globals.connect()?;
    let ids = submit_lines(&mut client, tasks, |accepted| {
        accepted.iter().try_for_each(|id| print_id(*id, out))?;
        out.flush()
    })?;
    if args.wait {
        return wait::until_ended(&mut client, &ids, out);
    }
    Ok(Exit::Done as u8)
}

/// Submits a file's tasks: all are checked before the first is accepted. `on_accepted` is told
/// the ids as they come, in order.
pub(crate) fn submit_lines(
    client: &mut Client,
    tasks: Vec<Numbered>,
    mut on_accepted: impl FnMut(&[TaskId]) -> Result<(), CliError>,
) -> Result<Vec<TaskId>, CliError> {
    for numbered in &tasks {
        input::check_size(&numbered.task.input, client.hello())
            .map_err(|reason| jsonl::bad_line(numbered.line, reason))?;
    }
    one_content_a_key(&tasks)?;
    let (total, batches) = (tasks.len(), batches(tasks));
    for batch in &batches {
        dry_run(client, batch, total as u64)?;
    }
    let mut ids = Vec::with_capacity(total);
    for batch in batches {
        let tasks = batch.iter().map(|numbered| numbered.task.clone()).collect();
        let accepted = submit_batch(client, tasks)
            .and_then(|answer| answer.map_err(|refusal| about_line(refusal, &batch)))
            .map_err(|error| {
                let accepted = ids.len();
                let said = format!("{accepted} of {total} were accepted before it");
                if accepted == 0 { error } else { error.hint(said) }
            })?;
        on_accepted(&accepted)?;
        ids.extend(accepted);
    }
    Ok(ids)
}

/// Within a file, too, one key means one task. What is stored already is the daemon's to compare.
fn one_content_a_key(tasks: &[Numbered]) -> Result<(), CliError> {
    let mut seen = BTreeMap::new();
    for numbered in tasks {
        let Some(key) = &numbered.task.key else { continue };
        let content = (&numbered.task.kind, numbered.task.input.get());
        let (line, first) = *seen.entry(key).or_insert((numbered.line, content));
        if first != content {
            let reason = format!("the key '{key}' belongs to line {line}, which has other content");
            return Err(jsonl::bad_line(numbered.line, reason));
        }
    }
    Ok(())
}

/// Cuts a file into requests.
fn batches(tasks: Vec<Numbered>) -> Vec<Vec<Numbered>> {
    let mut batches: Vec<Vec<Numbered>> = Vec::new();
    let mut room_bytes = 0;
    for numbered in tasks {
        let bytes = numbered.task.input.get().len() + TASK_OVERHEAD_BYTES;
        match batches.last_mut() {
            Some(batch) if bytes <= room_bytes => {
                batch.push(numbered);
                room_bytes -= bytes;
            }
            _ => {
                batches.push(vec![numbered]);
                room_bytes = BATCH_BYTES_MAX.saturating_sub(bytes);
            }
        }
    }
    batches
}

/// Has a batch checked; nothing is accepted.
fn dry_run(client: &mut Client, batch: &[Numbered], total: u64) -> Result<(), CliError> {
    let tasks = batch.iter().map(|numbered| numbered.task.clone()).collect();
    let request = Request::Submit { tasks, dry_run: true, room_for: total, wait: false };
    match client.ask(&request)? {
        Ok(Reply::Submitted { .. }) => Ok(()),
        Ok(other) => Err(unexpected(&other)),
        Err(refusal) => Err(about_line(refusal, batch)),
    }
}

/// A refusal of one task is about its line; any other is about the whole.
fn about_line(refusal: Refusal, batch: &[Numbered]) -> CliError {
    match refusal.index.and_then(|index| batch.get(index)) {
        Some(numbered) if refusal.kind == RefusalKind::Invalid => {
            jsonl::bad_line(numbered.line, refusal.message)
        }
        Some(numbered) => {
            let message = format!("line {}: {}", numbered.line, refusal.message);
            Refusal { message, ..refusal }.into()
        }
        None => refusal.into(),
    }
}

fn submit_batch(
    client: &mut Client,
    tasks: Vec<NewTask>,
) -> Result<Result<Vec<TaskId>, Refusal>, CliError> {
    let count = tasks.len();
    let request = Request::Submit { tasks, dry_run: false, room_for: 0, wait: false };
    match client.ask(&request)? {
        Ok(Reply::Submitted { ids }) if ids.len() == count => Ok(Ok(ids)),
        Ok(other) => Err(unexpected(&other)),
        Err(refusal) => Ok(Err(refusal)),
    }
}

fn print_id(id: TaskId, out: &mut Out) -> Result<(), CliError> {
    if out.json { out.value(&serde_json::json!({ "id": id })) } else { out.line(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(input_bytes: usize) -> Numbered {
        let json = format!("\"{}\"", "x".repeat(input_bytes - 2));
        let input = serde_json::value::RawValue::from_string(json).unwrap();
        Numbered { line: 1, task: NewTask::new("noop", input) }
    }

    #[test]
    fn batches_keep_order_and_stay_small() {
        let sizes = [10, 600 << 10, 600 << 10, 3 << 20, 5, 5];
        let batches = batches(sizes.map(numbered).into());
        let lengths: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1, 1, 2]);
        let flat: Vec<_> =
            batches.iter().flatten().map(|numbered| numbered.task.input.get().len()).collect();
        assert_eq!(flat, sizes);
    }
}
