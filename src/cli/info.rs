//! `forq info`: the daemon's processes, its scale, its queue, its providers and its
//! schedules.

use std::time::{Duration, Instant};

use comfy_table::Cell;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, unexpected};
use super::out::{Out, size, span};
use super::{CliError, Exit, Globals};
use crate::instance::Instance;
use crate::protocol::control::{Reply, Request};

/// A broker that is alive answers at once; after this the master's own word has to do.
pub(crate) const BROKER_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let instance = globals.instance_to_ask()?;
    let (json, from_broker) = match ask(&instance) {
        Ok(json) => (json, true),
        Err(error) if error.exit == Exit::TimedOut => match last_status(&instance) {
            Some(json) => (json, false),
            None => return Err(error),
        },
        Err(error) => return Err(error),
    };
    if !from_broker {
        out.note("the broker does not answer: this is what the master last wrote");
    }
    if out.json {
        out.line(json.trim_end())?;
        return Ok(Exit::Done as u8);
    }
    let info: Info = serde_json::from_str(&json)
        .map_err(|error| CliError::internal(format!("cannot read the daemon's info: {error}")))?;
    print(&info, out)?;
    Ok(Exit::Done as u8)
}

fn ask(instance: &Instance) -> Result<String, CliError> {
    let deadline = Instant::now() + BROKER_PATIENCE;
    match Client::connect_until(instance, Some(deadline))?.call(&Request::Info)? {
        Reply::Json { document } => Ok(document.get().to_owned()),
        other => Err(unexpected(&other)),
    }
}

/// What the master last wrote about itself, in the shape of `info` as far as it knows.
pub(crate) fn last_status(instance: &Instance) -> Option<String> {
    std::fs::read_to_string(instance.status()).ok()
}

/// `forq info --json`, as far as people are shown it. Daemons differ in age, so all is optional.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Info {
    pub(super) version: Option<String>,
    pub(super) phase: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) upgrade_error: Option<String>,
    pub(super) disk_full: Option<bool>,
    pub(super) uptime_s: Option<f64>,
    pub(super) master_pid: Option<i32>,
    pub(super) master: Option<Process>,
    pub(super) broker: Option<Process>,
    pub(super) workers: Vec<Worker>,
    pub(super) scale: Option<Scale>,
    pub(super) queue: Option<Queue>,
    pub(super) providers: Vec<Provider>,
    pub(super) schedules: Vec<Schedule>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Process {
    pub(super) pid: Option<i32>,
    pub(super) rss_bytes: Option<u64>,
    pub(super) restarts: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Worker {
    pub(super) slot: Option<u32>,
    pub(super) pid: Option<i32>,
    pub(super) generation: Option<u64>,
    pub(super) state: Option<String>,
    pub(super) in_flight: Option<u64>,
    pub(super) capacity: Option<u64>,
    pub(super) rss_bytes: Option<u64>,
    pub(super) tasks_done: Option<u64>,
    pub(super) restarts: Option<u64>,
    pub(super) last_exit: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Scale {
    pub(super) min: Option<u32>,
    pub(super) max: Option<u32>,
    pub(super) want: Option<u32>,
    pub(super) reason: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Queue {
    pub(super) queued: u64,
    pub(super) running: u64,
    pub(super) scheduled: u64,
    pub(super) blocked: u64,
    pub(super) paused: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Provider {
    pub(super) name: String,
    pub(super) in_flight: Option<u64>,
    pub(super) max_concurrent: Option<u64>,
    pub(super) rpm: Option<u64>,
    pub(super) rpm_used: Option<u64>,
    pub(super) tpm: Option<u64>,
    pub(super) tpm_used: Option<u64>,
    pub(super) breaker: Option<Value>,
}

#[derive(Clone, Debug, Deserialize, Default)]
#[serde(default)]
pub(super) struct Schedule {
    pub(super) name: String,
    pub(super) next_at: Option<String>,
    pub(super) last_at: Option<String>,
    pub(super) error: Option<String>,
}

impl Queue {
    /// That it is paused, in words.
    pub(super) fn pause(&self) -> Option<String> {
        match &self.paused {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Number(number)) if number.as_u64() == Some(0) => None,
            Some(Value::Bool(true)) => Some("paused".to_owned()),
            Some(other) => Some(format!("paused: {}", loose(other))),
        }
    }
}

fn print(info: &Info, out: &mut Out) -> Result<(), CliError> {
    let mut pairs = Vec::new();
    let mut add = |name, value: Option<String>| pairs.extend(value.map(|value| (name, value)));
    add("version", info.version.clone());
    add("phase", info.phase.clone());
    add("reason", info.reason.clone());
    add("upgrade", info.upgrade_error.as_ref().map(|error| format!("came to nothing: {error}")));
    add(
        "uptime",
        info.uptime_s.map(|s| span(Duration::from_secs_f64(s.max(0.0)).as_millis() as u64)),
    );
    let master = info.master.as_ref().map(process);
    add("master", master.or_else(|| info.master_pid.map(|pid| format!("pid {pid}"))));
    add("broker", info.broker.as_ref().map(process));
    add("scale", info.scale.as_ref().map(scale));
    add("queue", info.queue.as_ref().map(queue));
    out.pairs(&pairs)?;
    if !info.workers.is_empty() {
        out.line("")?;
        let header = [
            "WORKER",
            "PID",
            "GENERATION",
            "STATE",
            "TASKS",
            "RSS",
            "DONE",
            "RESTARTS",
            "LAST EXIT",
        ];
        out.table(&header, info.workers.iter().map(worker_row))?;
    }
    if !info.providers.is_empty() {
        out.line("")?;
        let header = ["PROVIDER", "IN FLIGHT", "REQUESTS/MIN", "TOKENS/MIN", "BREAKER"];
        out.table(&header, info.providers.iter().map(provider_row))?;
    }
    if !info.schedules.is_empty() {
        out.line("")?;
        let header = ["SCHEDULE", "NEXT RUN", "LAST RUN"];
        out.table(&header, info.schedules.iter().map(schedule_row))?;
    }
    Ok(())
}

fn process(process: &Process) -> String {
    let mut shown = format!("pid {}", text(process.pid));
    if let Some(bytes) = process.rss_bytes {
        shown.push_str(&format!(", {}", size(bytes)));
    }
    if let Some(restarts) = process.restarts {
        shown.push_str(&format!(", {restarts} restarts"));
    }
    shown
}

pub(super) fn scale(scale: &Scale) -> String {
    let reason = scale.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let (want, min, max) = (text(scale.want), text(scale.min), text(scale.max));
    format!("{want} workers of {min} to {max}{reason}")
}

fn queue(queue: &Queue) -> String {
    let paused = queue.pause().map(|pause| format!(", {pause}")).unwrap_or_default();
    format!(
        "{} queued, {} running, {} scheduled, {} blocked{paused}",
        queue.queued, queue.running, queue.scheduled, queue.blocked
    )
}

fn worker_row(worker: &Worker) -> Vec<Cell> {
    vec![
        Cell::new(text(worker.slot)),
        Cell::new(text(worker.pid)),
        Cell::new(text(worker.generation)),
        Cell::new(worker.state.as_deref().unwrap_or("-")),
        Cell::new(used(worker.in_flight, worker.capacity)),
        Cell::new(worker.rss_bytes.map_or_else(|| "-".to_owned(), size)),
        Cell::new(text(worker.tasks_done)),
        Cell::new(text(worker.restarts)),
        Cell::new(worker.last_exit.as_ref().map(loose).unwrap_or_default()),
    ]
}

fn provider_row(provider: &Provider) -> Vec<Cell> {
    vec![
        Cell::new(&provider.name),
        Cell::new(used(provider.in_flight, provider.max_concurrent)),
        Cell::new(used(provider.rpm_used, provider.rpm)),
        Cell::new(used(provider.tpm_used, provider.tpm)),
        Cell::new(provider.breaker.as_ref().map(loose).unwrap_or_default()),
    ]
}

fn schedule_row(schedule: &Schedule) -> Vec<Cell> {
    let never = schedule.error.as_ref().map(|error| format!("never: {error}"));
    vec![
        Cell::new(&schedule.name),
        Cell::new(text(never.or_else(|| schedule.next_at.clone()))),
        Cell::new(text(schedule.last_at.as_ref())),
    ]
}

pub(super) fn used(used: Option<u64>, limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("{}/{limit}", text(used)),
        None => text(used),
    }
}

pub(super) fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A value whose shape may grow: text as it is, anything else as JSON.
pub(super) fn loose(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
