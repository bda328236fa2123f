//! `forq bench`: a load against the running daemon, and what it took.

mod books;
mod client;
mod commits;

use std::path::Path;
use std::time::Instant;

use clap::{Args, ValueEnum};
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::value::RawValue;

use self::books::{Outcome, Pace, Plan};
use self::client::{BenchError, Client};
use self::commits::BareCommits;
use super::out::Out;
use super::samples::{Spread, per_second};
use super::{CliError, Exit, Globals};
use crate::instance::{Instance, SocketPath};

/// A lone client has this many batches under way, as many as the daemon works on at once.
const BATCHES_UNDER_WAY: u64 = 8;
/// The batch of a lone client, if none is given, is between these.
const BATCH_MIN: u64 = 500;
const BATCH_MAX: u64 = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Tasks that do nothing
    Noop,
    /// Tasks that wait for --seconds
    Sleep,
    /// Short chats with the configured model
    Chat,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What the tasks do
    #[arg(value_enum, default_value_t = Load::Noop)]
    load: Load,
    /// Tasks in all
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: u64,
    /// Clients at once, each with a connection of its own and one submission at a time
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=4_000))]
    clients: u64,
    /// Tasks in one submission [default: 1; for a lone client 500 or more, by the count]
    ///
    /// A lone client with batches of more than one task does not wait for the acknowledgement
    /// before it sends the next.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=50_000))]
    batch: Option<u64>,
    /// How long a task of `sleep` waits, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Submit only once every task of the submission before has ended
    ///
    /// With --clients 1 --batch 1 this measures the way of one task through an idle daemon, and
    /// beside it two bare commits on the same file system, taken in turn.
    #[arg(long)]
    wait: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    submitted: u64,
    succeeded: u64,
    submit_per_s: f64,
    done_per_s: f64,
    submit_ms: Option<Spread>,
    result_ms: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bare_commits_ms: Option<Spread>,
}

pub(crate) fn run(args: BenchArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let instance = globals.instance_to_ask()?;
    // The ordinary client's way to explain why there is nobody, or the wrong one.
    drop(super::client::Client::connect(&instance)?);
    let yardstick = if args.is_latency() { yardstick(&instance.state_dir, out) } else { None };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| CliError::internal(format!("no event loop: {error}")))?;
    let outcome = runtime.block_on(load(&args, &instance, yardstick)).map_err(explain)?;
    let report = Report::of(outcome);
    report.tell(out)?;
    Ok(if report.succeeded == report.submitted { Exit::Done } else { Exit::TaskFailed } as u8)
}

/// Runs every client's share at once, from the moment that all are connected.
async fn load(
    args: &BenchArgs,
    instance: &Instance,
    mut yardstick: Option<BareCommits>,
) -> Result<Outcome, BenchError> {
    let socket = SocketPath::of(&instance.control_socket).map_err(BenchError::Connect)?;
    let clients = try_join_all((0..args.clients()).map(|_| Client::connect(&socket))).await?;
    let plan = args.plan()?;
    let began = Instant::now();
    let driven = clients.into_iter().enumerate().map(|(index, client)| {
        let plan = Plan { tasks: args.share(index as u64), ..plan.clone() };
        client.drive(plan, yardstick.take(), began)
    });
    let mut whole = Outcome::default();
    for outcome in try_join_all(driven).await? {
        whole.merge(outcome);
    }
    Ok(whole)
}

/// None where we may not write; the run is worth having without it.
fn yardstick(state_dir: &Path, out: &mut Out) -> Option<BareCommits> {
    match BareCommits::open(state_dir) {
        Ok(commits) => Some(commits),
        Err(error) => {
            out.note(format_args!("no bare commits: {}: {error}", state_dir.display()));
            None
        }
    }
}

fn explain(error: BenchError) -> CliError {
    match error {
        BenchError::Refused(refusal) => refusal.into(),
        BenchError::Version(_) => CliError::invalid(error.to_string()),
        BenchError::Connect(_) | BenchError::Broken(_) => {
            CliError::new(Exit::Unavailable, error.to_string())
        }
        BenchError::Garbled(_) | BenchError::Commit(_) => CliError::internal(error.to_string()),
    }
}

impl BenchArgs {
    /// No more clients than tasks.
    fn clients(&self) -> u64 {
        self.clients.min(self.count)
    }

    fn batch(&self) -> u64 {
        let lone = || self.count.div_ceil(BATCHES_UNDER_WAY).clamp(BATCH_MIN, BATCH_MAX);
        self.batch.unwrap_or_else(|| if self.clients == 1 { lone() } else { 1 })
    }

    fn pace(&self) -> Pace {
        match (self.wait, self.clients, self.batch()) {
            (true, ..) => Pace::Finished,
            (false, 1, 2..) => Pace::Pipelined,
            (false, ..) => Pace::Acknowledged,
        }
    }

    fn is_latency(&self) -> bool {
        self.wait && self.clients == 1 && self.batch() == 1
    }

    /// How many tasks are one client's: as even as they can be.
    fn share(&self, index: u64) -> u64 {
        let clients = self.clients();
        self.count / clients + u64::from(index < self.count % clients)
    }

    fn plan(&self) -> Result<Plan, BenchError> {
        let (kind, input) = match self.load {
            Load::Noop => ("noop", serde_json::json!({})),
            Load::Sleep => ("sleep", serde_json::json!({ "seconds": self.seconds })),
            Load::Chat => ("chat", serde_json::json!({ "prompt": "Say hello in one sentence." })),
        };
        let input = RawValue::from_string(input.to_string())?;
        Ok(Plan { kind, input, tasks: self.count, batch: self.batch(), pace: self.pace() })
    }
}

impl Report {
    fn of(outcome: Outcome) -> Self {
        Self {
            submitted: outcome.submitted,
            succeeded: outcome.succeeded,
            submit_per_s: per_second(outcome.submitted, outcome.submitting),
            done_per_s: per_second(outcome.succeeded, outcome.running),
            submit_ms: outcome.submit.spread(),
            result_ms: outcome.result.spread(),
            bare_commits_ms: outcome.commits.spread(),
        }
    }

    fn tell(&self, out: &mut Out) -> Result<(), CliError> {
        if out.json {
            return out.value(self);
        }
        out.pairs(&[
            ("submitted", format!("{} ({}/s)", self.submitted, self.submit_per_s)),
            ("succeeded", format!("{} ({}/s)", self.succeeded, self.done_per_s)),
        ])?;
        let rows = [
            ("submission", self.submit_ms),
            ("result", self.result_ms),
            ("two bare commits", self.bare_commits_ms),
        ];
        out.line("")?;
        out.table(
            &["MILLISECONDS", "P50", "P95", "P99", "MAX"],
            rows.into_iter().filter_map(|(name, spread)| spread.map(|spread| row(name, spread))),
        )
    }
}

fn row(name: &str, spread: Spread) -> Vec<comfy_table::Cell> {
    let figures = [spread.p50, spread.p95, spread.p99, spread.max];
    std::iter::once(name.to_owned())
        .chain(figures.map(|ms| format!("{ms:.3}")))
        .map(comfy_table::Cell::new)
        .collect()
}

/// A task's length: what a day has, at most.
fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds))
        .ok_or_else(|| format!("'{text}' is not a number of seconds from 0 to 86400"))
}

#[cfg(test)]
mod tests;
