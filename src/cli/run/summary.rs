//! The table at the end of `forq run`: what became of the tasks, how long they took, and which
//! worker ran how many.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::Cell;
use serde::Deserialize;

use crate::cli::CliError;
use crate::cli::out::{Out, span};
use crate::cli::samples::Samples;
use crate::task::{State, TaskView};

/// What is kept of the tasks that have ended.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    wait: Samples,
    run: Samples,
    tokens: u64,
    /// Tasks by the worker that ended them.
    by_worker: BTreeMap<i32, u64>,
}

/// The part of `forq info` that the table shows.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Pool {
    #[serde(default)]
    broker: Broker,
    #[serde(default)]
    workers: Vec<Worker>,
}

#[derive(Debug, Default, Deserialize)]
struct Broker {
    #[serde(default)]
    restarts: u64,
}

#[derive(Debug, Deserialize)]
struct Worker {
    slot: u32,
    pid: i32,
    #[serde(default)]
    restarts: u64,
}

impl Summary {
    pub(super) fn add(&mut self, task: &TaskView) {
        match task.state {
            State::Succeeded => self.succeeded += 1,
            State::Cancelled => self.cancelled += 1,
            _ => self.failed += 1,
        }
        if let Some(ms) = task.wait_ms {
            self.wait.push(Duration::from_millis(ms));
        }
        if let Some(ms) = task.run_ms {
            self.run.push(Duration::from_millis(ms));
        }
        self.tokens += task.usage.map_or(0, |usage| usage.total_tokens);
        if let Some(pid) = task.worker_pid {
            *self.by_worker.entry(pid).or_default() += 1;
        }
    }

    pub(super) fn all_succeeded(&self) -> bool {
        self.failed + self.cancelled == 0
    }

    /// Tells everything, in three tables with their columns in line with nothing else.
    pub(super) fn tell(self, took: Duration, pool: &Pool, out: &mut Out) -> Result<(), CliError> {
        let total = self.succeeded + self.failed + self.cancelled;
        let counts = [total, self.succeeded, self.failed, self.cancelled, self.tokens];
        let took = span(took.as_millis() as u64);
        let cells = counts.iter().map(Cell::new).chain([Cell::new(took)]).collect();
        out.table(&["TASKS", "SUCCEEDED", "FAILED", "CANCELLED", "TOKENS", "TIME"], [cells])?;
        out.line("")?;
        let times = [("wait", self.wait), ("run", self.run)];
        out.table(
            &["", "AVG", "P50", "P95", "MAX"],
            times.into_iter().map(|(name, samples)| times_row(name, samples)),
        )?;
        out.line("")?;
        out.table(&["WORKER", "PID", "TASKS", "RESTARTS"], workers(&self.by_worker, pool))?;
        match pool.broker.restarts {
            0 => Ok(()),
            count => out.line(format_args!("\nbroker restarts: {count}")),
        }
    }
}

fn times_row(name: &str, samples: Samples) -> Vec<Cell> {
    let average = samples.average();
    let spread = samples.spread();
    let of = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| span(ms.round() as u64));
    let figures =
        [average, spread.map(|s| s.p50), spread.map(|s| s.p95), spread.map(|s| s.max)].map(of);
    std::iter::once(name.to_owned()).chain(figures).map(Cell::new).collect()
}

/// The workers that are there, then those that have gone and had ended tasks before.
fn workers(by_worker: &BTreeMap<i32, u64>, pool: &Pool) -> Vec<Vec<Cell>> {
    let mut gone = by_worker.clone();
    let mut rows: Vec<Vec<Cell>> = pool
        .workers
        .iter()
        .map(|worker| {
            let tasks = gone.remove(&worker.pid).unwrap_or(0);
            let Worker { slot, pid, restarts } = worker;
            vec![Cell::new(slot), Cell::new(pid), Cell::new(tasks), Cell::new(restarts)]
        })
        .collect();
    rows.extend(gone.iter().map(|(pid, tasks)| {
        vec![Cell::new("gone"), Cell::new(pid), Cell::new(tasks), Cell::new("-")]
    }));
    rows
}
