//! A forq binary with two kinds of task of its own:
//!
//! ```text
//! cargo run --example checksums -- run checksum '{"path": "src"}'
//! cargo run --example checksums -- run appears '{"path": "/tmp/done", "seconds": 60}'
//! ```
//!
//! It has every verb of `forq`, so `serve` and `submit` work as well.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use forq::App;
use forq::handler::{Context, HandlerError};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Checksum {
    path: PathBuf,
}

/// Reads and computes, so it runs on the blocking pool. Each file is told as it is done.
fn checksum(context: Context, input: Checksum) -> Result<Value, HandlerError> {
    let mut files = Vec::new();
    walk(&input.path, &mut files).map_err(|error| failure(&input.path, &error))?;
    let (mut all, mut bytes) = (Sha256::new(), 0);
    for path in &files {
        let (sha256, size) = digest(path).map_err(|error| failure(path, &error))?;
        context.data(json!({ "path": path, "bytes": size, "sha256": &sha256 }));
        all.update(format!("{sha256}  {}\n", path.display()));
        bytes += size;
    }
    Ok(json!({ "files": files.len(), "bytes": bytes, "sha256": hex(&all.finalize()) }))
}

/// Every file at or below `path`, in order; symbolic links are left out.
fn walk(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        entries.iter().try_for_each(|entry| walk(&entry.path(), files))?;
    } else if kind.is_file() {
        files.push(path.to_owned());
    }
    Ok(())
}

fn digest(path: &Path) -> io::Result<(String, u64)> {
    let (mut file, mut hash, mut size) = (File::open(path)?, Sha256::new(), 0);
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((hex(&hash.finalize()), size)),
            count => {
                hash.update(&chunk[..count]);
                size += count as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is not there will not be there a second later; anything else may pass.
fn failure(path: &Path, error: &io::Error) -> HandlerError {
    let retryable = error.kind() != io::ErrorKind::NotFound;
    HandlerError { retryable, ..HandlerError::fatal(format!("{}: {error}", path.display())) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Appears {
    path: PathBuf,
    seconds: u32,
}

/// Only waits, so it shares the event loop with thousands like it.
async fn appears(_context: Context, input: Appears) -> Result<Value, HandlerError> {
    for waited in 0..=input.seconds {
        if input.path.exists() {
            return Ok(json!({ "waited_seconds": waited }));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(HandlerError::retryable(format!("{} did not appear", input.path.display())))
}

fn main() -> ExitCode {
    App::new().blocking_handler("checksum", checksum).handler("appears", appears).main()
}
