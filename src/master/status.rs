//! `status.json`: what the master last wrote about itself, for when no broker answers.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use crate::protocol::lifeline::{Pool, PoolWorker};

/// Writes the file as a whole or not at all.
pub(super) fn write(path: &Path, pool: &Pool, broker_pid: Option<i32>) {
    let workers: Vec<_> = pool
        .workers
        .iter()
        .map(|worker| {
            json!({
                "slot": worker.slot,
                "pid": worker.pid,
                "generation": worker.generation,
                "state": state(worker),
                "restarts": worker.restarts,
                "backoff_ms": worker.backoff_ms,
                "last_exit": worker.last_exit,
            })
        })
        .collect();
    let status = json!({
        "phase": pool.phase,
        "reason": pool.reason,
        "generation": pool.generation,
        "rolled": pool.rolled,
        "version": env!("CARGO_PKG_VERSION"),
        "master_pid": std::process::id(),
        "broker_pid": broker_pid,
        "scale": {
            "min": pool.scale.min,
            "max": pool.scale.max,
            "want": pool.scale.want,
            "reason": pool.scale.reason,
        },
        "broker_restarts": pool.broker_restarts,
        "workers": workers,
    });
    if let Err(error) = replace(path, &status) {
        tracing::warn!("cannot write {}: {error}", path.display());
    }
}

/// As the broker says it in `forq info`.
fn state(worker: &PoolWorker) -> &'static str {
    match worker {
        PoolWorker { pid: None, .. } => "waiting",
        PoolWorker { drain: 1.., .. } => "draining",
        PoolWorker { ready: true, .. } => "ready",
        _ => "booting",
    }
}

fn replace(path: &Path, status: &serde_json::Value) -> std::io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    writeln!(file, "{status}")?;
    std::fs::rename(&new, path)
}
