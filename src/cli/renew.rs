//! `forq reload` and `forq upgrade`: the master does what HUP and USR2 say, and replaces the
//! workers one by one; with `--wait` this verb ends when the new ones are there.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use uuid::Uuid;

use super::client::{Client, pause, unexpected};
use super::out::Out;
use super::{CliError, Exit, Globals};
use crate::instance::Instance;
use crate::protocol::control::{Reply, Request};

/// How often the daemon is looked at while its workers are replaced.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// Wait until every worker that takes tasks is a new one
    #[arg(long)]
    wait: bool,
}

pub(crate) fn reload(args: RenewArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    renew(&Request::Reload { request: Uuid::now_v7() }, "reloaded", args, globals, out)
}

pub(crate) fn upgrade(args: RenewArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    renew(&Request::Upgrade { request: Uuid::now_v7() }, "upgraded", args, globals, out)
}

fn renew(
    request: &Request,
    done: &str,
    args: RenewArgs,
    globals: &Globals,
    out: &mut Out,
) -> Result<u8, CliError> {
    let instance = globals.instance_to_ask()?;
    let generation = match Client::connect(&instance)?.call(request)? {
        Reply::Done { count } => count,
        other => return Err(unexpected(&other)),
    };
    let seen = if args.wait { Some(until_rolled(&instance, request, generation)?) } else { None };
    if out.json {
        let version = seen.as_ref().map(|seen| &seen.version);
        out.value(&serde_json::json!({
            "generation": generation, "rolled": seen.is_some(), "version": version,
        }))?;
        return Ok(Exit::Done as u8);
    }
    match seen {
        Some(seen) => {
            let old = seen.workers.iter().filter(|worker| worker.state == "draining").count();
            let rest = match old {
                0 => String::new(),
                1 => "; an old worker finishes its tasks".to_owned(),
                old => format!("; {old} old workers finish their tasks"),
            };
            out.line(format_args!("{done}: {}, generation {generation}{rest}", seen.version))?;
        }
        None => out.line(format_args!("generation {generation}: workers are being replaced"))?,
    }
    Ok(Exit::Done as u8)
}

/// What `forq info --json` says of it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Seen {
    version: String,
    phase: String,
    reason: Option<String>,
    upgrade_error: Option<String>,
    generation: u64,
    rolled: bool,
    workers: Vec<Worker>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Worker {
    state: String,
}

fn until_rolled(instance: &Instance, request: &Request, generation: u64) -> Result<Seen, CliError> {
    let upgrades = matches!(request, Request::Upgrade { .. });
    loop {
        let document = match Client::connect(instance)?.call(&Request::Info)? {
            Reply::Json { document } => document,
            other => return Err(unexpected(&other)),
        };
        let seen: Seen = serde_json::from_str(document.get())
            .map_err(|error| CliError::internal(format!("cannot read the info: {error}")))?;
        if let Some(end) = judge(&seen, upgrades, generation) {
            return end.map(|()| seen);
        }
        pause(LOOK_AGAIN);
    }
}

/// Whether it is over, and how.
fn judge(seen: &Seen, upgrades: bool, generation: u64) -> Option<Result<(), CliError>> {
    if matches!(seen.phase.as_str(), "draining" | "stopping") {
        return Some(Err(CliError::new(Exit::Unavailable, "the daemon is stopping".to_owned())));
    }
    if seen.generation < generation {
        return None;
    }
    // Of a reload's instance it may be an old story.
    if let Some(error) = seen.upgrade_error.as_ref().filter(|_| upgrades) {
        return Some(Err(CliError::new(Exit::TaskFailed, format!("not upgraded: {error}"))));
    }
    if let Some(reason) = &seen.reason {
        let sentence = format!("generation {generation} does not start: {reason}");
        return Some(Err(CliError::new(Exit::TaskFailed, sentence)));
    }
    seen.rolled.then_some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_the_new_workers_are_there_or_cannot_be() {
        let seen = |phase: &str, generation, rolled, reason: Option<&str>| Seen {
            phase: phase.to_owned(),
            generation,
            rolled,
            reason: reason.map(str::to_owned),
            ..Seen::default()
        };
        let exit =
            |seen: Seen| judge(&seen, true, 2).map(|end| end.map_err(|error| error.exit as u8));
        assert_eq!(exit(seen("running", 1, true, None)), None, "not yet begun");
        assert_eq!(exit(seen("reloading", 2, false, None)), None);
        assert_eq!(exit(seen("running", 2, true, None)), Some(Ok(())));
        assert_eq!(exit(seen("running", 3, true, None)), Some(Ok(())), "and another one after it");
        assert_eq!(exit(seen("degraded", 2, false, Some("exit code 1"))), Some(Err(1)));
        let back =
            Seen { upgrade_error: Some("no broker".to_owned()), ..seen("running", 3, true, None) };
        assert!(judge(&back, false, 2).is_some_and(|end| end.is_ok()), "it was a reload");
        assert_eq!(exit(back), Some(Err(1)));
        assert_eq!(exit(seen("draining", 1, false, None)), Some(Err(5)));
    }
}
