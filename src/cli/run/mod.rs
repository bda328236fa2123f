//! `forq run`: a file of tasks, a workflow, or one task, from nothing to its answers with a daemon
//! of its own that goes when they are there.
//!
//! # Layout
//! - `provider`: which model is asked, pure
//! - `children`: the daemon, the simulated model
//! - `work`: what is to be run
//! - `drive`: from submission to exit code; `asking`: the threads that submit, wait and follow
//! - `board`: what is told when, pure; `screen`: telling it (of a workflow: [`super::tree`])
//! - `summary`: the table at the end

mod asking;
mod board;
mod children;
mod drive;
mod provider;
mod screen;
mod summary;
mod work;

use clap::Args;

use self::children::{Daemon, Simulated};
use self::drive::Run;
use self::provider::{Provider, Wishes};
use super::out::Out;
use super::{CliError, Exit, Globals, Instance};
use crate::config;

/// Reports that wait to be told. A terminal that stands still holds up nothing but the telling.
const REPORTS_MAX: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A file of tasks that ends in .jsonl, a workflow that ends in .toml, or what kind of task:
    /// chat, http, exec, …
    #[arg(value_name = "FILE|KIND")]
    what: String,
    /// The input of the one task: JSON, @FILE, or - for stdin [default: {}]
    #[arg(allow_hyphen_values = true)]
    input: Option<String>,
    /// A value for an input of the workflow: NAME=VALUE, NAME=@FILE, or @FILE with an object of
    /// them; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Ask this OpenAI-compatible server [env: OPENAI_BASE_URL]
    ///
    /// Its key, if it wants one, is taken from OPENAI_API_KEY. Without a server, and without one
    /// in the configuration, a simulated model answers.
    #[arg(long, value_name = "URL")]
    provider_url: Option<String>,
    /// The model to ask it for
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

pub(crate) fn run(args: RunArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let work = work::read(&args.what, args.input.as_deref(), &args.set)?;
    if work.tasks().next().is_none() {
        out.note(format_args!("no task in {}", args.what));
        return Ok(Exit::Done as u8);
    }
    let mut private = None;
    let instance = globals.instance_to_run(|| {
        let folder = tempfile::Builder::new().prefix("forq-run-").tempdir().map_err(|error| {
            CliError::invalid(format!("cannot make a temporary folder: {error}"))
        })?;
        Ok(private.insert(folder).path().to_owned())
    })?;
    if instance.is_live() {
        return Err(already_up(&args, &instance));
    }
    let (reports, told) = crossbeam_channel::bounded(REPORTS_MAX);
    asking::listen_for_signals(reports.clone())?;
    let provider = choose_provider(&args, &instance)?;
    let simulated = match provider {
        // No other kind asks a model.
        Provider::Simulated
            if work.tasks().any(|task| matches!(&*task.kind, "chat" | "workflow")) =>
        {
            out.note("no provider is configured: a simulated model answers");
            Some(Simulated::start()?)
        }
        _ => None,
    };
    let server = match &provider {
        Provider::Server(server) => Some(server),
        _ => simulated.as_ref().map(|simulated| &simulated.server),
    };
    let settings = server.map(|server| server.settings()).unwrap_or_default();
    let daemon = Daemon::start(&instance, &settings)?;
    Run { instance, daemon, private, reports, told }.drive(work, out)
}

fn already_up(args: &RunArgs, instance: &Instance) -> CliError {
    let folder = instance.state_dir.display();
    let what = match &args.input {
        _ if args.what.ends_with(".jsonl") => format!("--jsonl {}", args.what),
        _ if args.what.ends_with(".toml") => format!("workflow @{}", args.what),
        None => args.what.clone(),
        Some(_) => format!("{} INPUT", args.what),
    };
    CliError::invalid(format!("a daemon is already up in {folder}"))
        .hint(format!("submit to it: forq submit {what} --wait --state-dir {folder}"))
}

/// Reads the configuration as the daemon will, so that its mistakes are told by us.
fn choose_provider(args: &RunArgs, instance: &Instance) -> Result<Provider, CliError> {
    let sources = config::read_sources(Some(&instance.config()), instance.named_config.is_some());
    let loaded = sources.and_then(|sources| config::load(&sources));
    let loaded = loaded.map_err(|errors| CliError::invalid(errors.to_string()))?;
    let wishes = Wishes {
        url: args.provider_url.as_deref(),
        model: args.model.as_deref(),
        is_configured: !loaded.config.providers.is_empty(),
        env: &|name| std::env::var(name).ok(),
    };
    wishes.choose()
}
