//! `forq stats`: the counters that an operator asks for.

use serde::Deserialize;
use serde_json::Value;

use super::client::unexpected;
use super::out::{Out, span};
use super::{CliError, Exit, Globals};
use crate::protocol::control::{Reply, Request};

/// Counts, in the order in which people are shown them, with the words that JSON uses.
const COUNTS: [&str; 10] = [
    "queued",
    "running",
    "scheduled",
    "blocked",
    "succeeded",
    "failed",
    "cancelled",
    "timed_out",
    "retried",
    "worker_lost",
];

pub(crate) fn run(globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let document = match globals.connect()?.call(&Request::Stats)? {
        Reply::Json { document } => document,
        other => return Err(unexpected(&other)),
    };
    if out.json {
        out.line(document.get())?;
        return Ok(Exit::Done as u8);
    }
    let stats: Value = serde_json::from_str(document.get())
        .map_err(|error| CliError::internal(format!("cannot read the daemon's stats: {error}")))?;
    out.pairs(&pairs(&stats))?;
    Ok(Exit::Done as u8)
}

fn pairs(stats: &Value) -> Vec<(&'static str, String)> {
    let mut pairs: Vec<_> = COUNTS
        .into_iter()
        .filter_map(|name| stats[name].as_u64().map(|count| (name, count.to_string())))
        .collect();
    let mut add = |name, value: Option<String>| pairs.extend(value.map(|value| (name, value)));
    add("waited", times(&stats["wait_ms"]));
    add("ran", times(&stats["run_ms"]));
    add("tasks/min", stats["tasks_per_min"].as_f64().map(|rate| format!("{rate:.1}")));
    add("utilisation", stats["utilisation"].as_f64().map(|part| format!("{:.1} %", part * 100.0)));
    pairs
}

fn times(times: &Value) -> Option<String> {
    #[derive(Deserialize)]
    struct Times {
        avg: Option<f64>,
        p50: Option<f64>,
        p95: Option<f64>,
        p99: Option<f64>,
    }
    let Times { avg, p50, p95, p99 } = Times::deserialize(times).ok()?;
    // Milliseconds since the daemon began fit easily.
    let shown = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| span(ms.max(0.0).round() as u64));
    Some(format!("avg {}, p50 {}, p95 {}, p99 {}", shown(avg), shown(p50), shown(p95), shown(p99)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_told_with_the_words_of_the_interface() {
        let stats = serde_json::json!({
            "queued": 3, "failed": 1, "wait_ms": {"avg": 12.4, "p50": 10, "p95": null, "p99": 2000},
            "tasks_per_min": 60, "utilisation": 0.5,
        });
        let pairs = pairs(&stats);
        let get =
            |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
        assert_eq!(get("queued"), Some("3"));
        assert_eq!(get("waited"), Some("avg 12ms, p50 10ms, p95 -, p99 2.0s"));
        assert_eq!(get("utilisation"), Some("50.0 %"));
        assert_eq!(get("succeeded"), None);
    }
}
