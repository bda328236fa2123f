//! The command line: what a user types, and what is told back.
//!
//! One file per verb or family of verbs. A verb asks through [`client`] and tells through
//! [`out`]; the error that it returns is told once, here. Only `serve` leaves this module, through
//! [`Daemon`].

mod args;
mod backup;
mod bench;
mod change;
mod chat;
pub(crate) mod client;
mod config;
mod error;
mod exchange;
#[cfg(test)]
mod fake;
mod follow;
mod generate;
mod info;
mod input;
mod jsonl;
pub(crate) mod link;
mod list;
pub(crate) mod out;
mod queue;
mod renew;
mod result;
mod run;
mod samples;
mod scale;
mod session;
mod sim_llm;
mod stats;
mod status;
mod steps;
mod stop;
mod submit;
mod top;
mod tree;
mod usage;
mod wait;
mod when;
mod workflow;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub(crate) use self::error::{CliError, Exit};
use self::out::Out;
use crate::handler::Registry;
use crate::instance::Instance;

/// What `serve` was told on the command line, over what the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct ServeOverrides {
    /// Workers that are always there
    #[arg(long, value_name = "N")]
    pub min_workers: Option<u32>,
    /// Workers at most
    #[arg(long, value_name = "N")]
    pub max_workers: Option<u32>,
    /// Tasks that one worker runs at once
    #[arg(long, value_name = "N")]
    pub concurrency: Option<u32>,
}

/// The one thing that the command line does not do itself.
pub trait Daemon {
    /// Runs the daemon of `instance` in this process until it ends, and tells its own errors.
    fn serve(&self, instance: &Instance, overrides: ServeOverrides) -> ExitCode;

    /// The kinds of task that it knows beside the built-in ones.
    fn own_kinds(&self) -> Registry {
        Registry::default()
    }
}

/// Durable LLM-agent work: submit tasks, and forked workers run them.
#[derive(Debug, Parser)]
#[command(name = "forq", version, propagate_version = false, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

/// The options that every verb takes, before or after it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Globals {
    /// The instance's folder [env: FORQ_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Its configuration, if not forq.toml in that folder [env: FORQ_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON: one value, or one a line for lists
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
}

impl Globals {
    /// The instance that a client verb means.
    pub(crate) fn instance_to_ask(&self) -> Result<Instance, CliError> {
        self.naming().to_ask()
    }

    /// The instance that a daemon would be started for.
    pub(crate) fn instance_to_serve(&self) -> Result<Instance, CliError> {
        self.naming().to_serve()
    }

    /// A connection to the instance that a client verb means.
    pub(crate) fn connect(&self) -> Result<client::Client, CliError> {
        client::Client::connect(&self.instance_to_ask()?)
    }

    /// The instance that `run` starts a daemon for, in `private_dir` if none is named.
    pub(crate) fn instance_to_run(
        &self,
        private_dir: impl FnOnce() -> Result<PathBuf, CliError>,
    ) -> Result<Instance, CliError> {
        self.naming().to_run(private_dir)
    }

    fn naming(&self) -> crate::instance::Naming<'_> {
        crate::instance::Naming {
            state_dir: self.state_dir.as_deref(),
            config: self.config.as_deref(),
            env: &|name| std::env::var_os(name),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Serve(ServeOverrides),
    /// Run a file of tasks, a workflow, or one task, with a daemon of its own
    Run(run::RunArgs),
    /// Submit a task, or a file of them, and print the id
    Submit(submit::SubmitArgs),
    /// Ask a model, and stream its answer
    Chat(chat::ChatArgs),
    /// Show a task; of a workflow its steps, too
    Status(args::OneTask),
    /// Print what a task gave back
    Result(result::ResultArgs),
    /// Stream a task's events; of a workflow its steps, and the text of its voice
    Follow(follow::FollowArgs),
    /// Cancel tasks, running ones too
    Cancel(args::SomeTasks),
    /// Put failed tasks back; a workflow goes on from its failed step
    Retry(change::RetryArgs),
    /// Wait until tasks have ended
    Wait(wait::WaitArgs),
    /// List tasks, newest first
    List(list::ListArgs),
    /// See or steer a queue as a whole
    Queue(queue::QueueArgs),
    /// See or clear conversations: what --session remembers
    Session(session::SessionArgs),
    /// Show the daemon: processes, workers, scale, providers
    Info,
    /// Show counters: outcomes, wait and run times
    Stats,
    /// Show what calls took and cost, by provider, model, agent, queue or day
    Usage(usage::UsageArgs),
    /// Put the configuration file in force, and replace the workers one by one
    Reload(renew::RenewArgs),
    /// Replace the running binary by the one that is installed now, without losing a task
    Upgrade(renew::RenewArgs),
    /// Set how many workers there are, until the next reload
    Scale(scale::ScaleArgs),
    /// Watch the daemon, live: workers, queue, rates, events
    Top(top::TopArgs),
    /// Stop the daemon, and wait until it has gone
    Stop(stop::StopArgs),
    /// Write a consistent copy of the database
    Backup(backup::BackupArgs),
    /// Check, show or start a configuration
    Config(config::ConfigArgs),
    /// Serve a simulated, OpenAI-compatible model
    SimLlm(sim_llm::SimLlmArgs),
    /// Put a load on the daemon, and measure it
    Bench(bench::BenchArgs),
    /// Print a shell's completions
    Completions(generate::CompletionsArgs),
    /// Print the manual page
    Man,
}

/// Does what `args` (the program's name first) say, and gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, daemon: &dyn Daemon) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout with 0, a mistake to stderr with 2. A closed pipe is no matter.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Invalid as u8));
        }
    };
    if let Verb::Serve(overrides) = cli.verb {
        return match cli.globals.instance_to_serve() {
            Ok(instance) => daemon.serve(&instance, overrides),
            Err(error) => fail(&error),
        };
    }
    let mut out = Out::stdio(cli.globals.json);
    let result = dispatch(cli, &daemon.own_kinds(), &mut out);
    let flushed = out.flush();
    drop(out);
    match result.and_then(|exit| flushed.map(|()| exit)) {
        Ok(exit) => ExitCode::from(exit),
        Err(error) => fail(&error),
    }
}

fn fail(error: &CliError) -> ExitCode {
    out::tell(error);
    ExitCode::from(error.exit as u8)
}

/// Every verb but `serve`.
fn dispatch(cli: Cli, own_kinds: &Registry, out: &mut Out) -> Result<u8, CliError> {
    let globals = &cli.globals;
    match cli.verb {
        // Taken by `run`.
        Verb::Serve(_) => Err(CliError::internal("serve is not a client's verb")),
        Verb::Run(args) => run::run(args, globals, out),
        Verb::Submit(args) => submit::run(args, globals, out),
        Verb::Chat(args) => chat::run(args, globals, out),
        Verb::Status(args) => status::run(args, globals, out),
        Verb::Result(args) => result::run(args, globals, out),
        Verb::Follow(args) => follow::run(args, globals, out),
        Verb::Cancel(args) => change::cancel(args, globals, out),
        Verb::Retry(args) => change::retry(args, globals, out),
        Verb::Wait(args) => wait::run(args, globals, out),
        Verb::List(args) => list::run(args, globals, out),
        Verb::Queue(args) => queue::run(args, globals, out),
        Verb::Session(args) => session::run(args, globals, out),
        Verb::Info => info::run(globals, out),
        Verb::Stats => stats::run(globals, out),
        Verb::Usage(args) => usage::run(args, globals, out),
        Verb::Reload(args) => renew::reload(args, globals, out),
        Verb::Upgrade(args) => renew::upgrade(args, globals, out),
        Verb::Scale(args) => scale::run(args, globals, out),
        Verb::Top(args) => top::run(args, globals, out),
        Verb::Stop(args) => stop::run(args, globals, out),
        Verb::Backup(args) => backup::run(args, globals, out),
        Verb::Config(args) => config::run(args, globals, own_kinds, out),
        Verb::SimLlm(args) => sim_llm::run(args, out),
        Verb::Bench(args) => bench::run(args, globals, out),
        Verb::Completions(args) => generate::completions(args, out),
        Verb::Man => generate::man(out),
    }
}

#[cfg(test)]
mod tests;
