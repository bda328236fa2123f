//! A forq binary whose kinds misbehave, for the tests of how that is dealt with.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use forq::App;
use forq::handler::{Context, HandlerError};
use serde::Deserialize;
use serde_json::{Value, json};

/// Between two looks at whether a file is there.
const LOOK: Duration = Duration::from_millis(20);

/// What was hoarded, for as long as the worker lives.
static HOARD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Computes without end and without a pause, so the event loop stands still.
async fn spin(_context: Context, _input: Nothing) -> Result<Value, HandlerError> {
    let mut turns = 0_u64;
    while black_box(turns) < u64::MAX {
        turns += 1;
    }
    Ok(json!({ "turns": turns }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stutter {
    /// It goes on until this file is there.
    until: PathBuf,
}

/// Computes for a quarter of a second at a time, so the event loop turns and is always late.
async fn stutter(_context: Context, input: Stutter) -> Result<Value, HandlerError> {
    while !input.until.exists() {
        let begin = Instant::now();
        while black_box(begin.elapsed()) < Duration::from_millis(250) {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(json!({}))
}

/// Takes the worker down with it.
async fn abort(_context: Context, _input: Nothing) -> Result<Value, HandlerError> {
    process::abort()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hoard {
    mib: usize,
    /// Made before anything is hoarded. Whoever finds it there does nothing: it is not the first.
    once: PathBuf,
    /// It goes on until this file is there.
    until: PathBuf,
}

/// Takes memory, and gives none of it back.
async fn hoard(_context: Context, input: Hoard) -> Result<Value, HandlerError> {
    match OpenOptions::new().write(true).create_new(true).open(&input.once) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(json!({})),
        Err(error) => return Err(HandlerError::fatal(error.to_string())),
    }
    // Not zero, so that every page is touched.
    let taken = vec![1; input.mib << 20];
    HOARD.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
    while !input.until.exists() {
        tokio::time::sleep(LOOK).await;
    }
    Ok(json!({}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
}

/// A line in the worker's log.
async fn note(_context: Context, input: Text) -> Result<Value, HandlerError> {
    tracing::info!("note: {}", input.text);
    Ok(json!({}))
}

/// Takes an input of any size, for a moment.
async fn swallow(_context: Context, input: Text) -> Result<Value, HandlerError> {
    tokio::time::sleep(LOOK).await;
    Ok(json!({ "bytes": input.text.len() }))
}

fn main() -> ExitCode {
    App::new()
        .handler("spin", spin)
        .handler("stutter", stutter)
        .handler("abort", abort)
        .handler("hoard", hoard)
        .handler("note", note)
        .handler("swallow", swallow)
        .main()
}
