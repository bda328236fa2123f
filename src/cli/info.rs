//! `forq info`: the daemon's processes, its scale, its queue and its providers.

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
#[derive(Deserialize, Default)]
#[serde(default)]
struct Info {
    version: Option<String>,
    phase: Option<String>,
    uptime_s: Option<f64>,
    master_pid: Option<i32>,
    master: Option<Process>,
    broker: Option<Process>,
    workers: Vec<Worker>,
    scale: Option<Scale>,
    queue: Option<Queue>,
    providers: Vec<Provider>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Process {
    pid: Option<i32>,
    rss_bytes: Option<u64>,
    restarts: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Worker {
    slot: Option<u32>,
    pid: Option<i32>,
    generation: Option<u64>,
    state: Option<String>,
    in_flight: Option<u64>,
    capacity: Option<u64>,
    rss_bytes: Option<u64>,
    tasks_done: Option<u64>,
    restarts: Option<u64>,
    last_exit: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Scale {
    min: Option<u32>,
    max: Option<u32>,
    want: Option<u32>,
    reason: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Queue {
    queued: u64,
    running: u64,
    scheduled: u64,
    blocked: u64,
    paused: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Provider {
    name: String,
    in_flight: Option<u64>,
    max_concurrent: Option<u64>,
    rpm: Option<u64>,
    rpm_used: Option<u64>,
    tpm: Option<u64>,
    tpm_used: Option<u64>,
    breaker: Option<Value>,
}

fn print(info: &Info, out: &mut Out) -> Result<(), CliError> {
    let mut pairs = Vec::new();
    let mut add = |name, value: Option<String>| pairs.extend(value.map(|value| (name, value)));
    add("version", info.version.clone());
    add("phase", info.phase.clone());
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

fn scale(scale: &Scale) -> String {
    let reason = scale.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let (want, min, max) = (text(scale.want), text(scale.min), text(scale.max));
    format!("{want} workers of {min} to {max}{reason}")
}

fn queue(queue: &Queue) -> String {
    let paused = match &queue.paused {
        None | Some(Value::Null | Value::Bool(false)) => String::new(),
        Some(Value::Number(number)) if number.as_u64() == Some(0) => String::new(),
        Some(Value::Bool(true)) => ", paused".to_owned(),
        Some(other) => format!(", paused: {}", loose(other)),
    };
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

fn used(used: Option<u64>, limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("{}/{limit}", text(used)),
        None => text(used),
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A value whose shape may grow: text as it is, anything else as JSON.
fn loose(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
