//! A user's own binary: `examples/checksums.rs`, with every verb and two kinds of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

use sha2::{Digest, Sha256};
use support::{Daemon, SOON, json, number, text};

fn checksums() -> PathBuf {
    support::example("checksums")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_folder_is_summed_up_and_each_file_is_told() {
    let daemon = Daemon::start_program(&checksums(), "");
    let folder = daemon.file("folder");
    fs::create_dir_all(folder.join("below")).unwrap();
    fs::write(folder.join("a"), "first").unwrap();
    fs::write(folder.join("below/b"), vec![7; 200_000]).unwrap();
    let (id, events) = daemon.run_followed("checksum", &json!({ "path": folder }));
    let told: Vec<String> = events
        .iter()
        .filter(|event| event["type"] == "data")
        .map(|event| text(event, "/data/sha256"))
        .collect();
    let files = [(folder.join("a"), b"first".to_vec()), (folder.join("below/b"), vec![7; 200_000])];
    let digests = files.clone().map(|(_, content)| hex(&Sha256::digest(content)));
    assert_eq!(told, digests);
    let list: String = files
        .iter()
        .zip(&digests)
        .map(|((path, _), digest)| format!("{digest}  {}\n", path.display()))
        .collect();
    let output = &daemon.task(&id)["output"];
    assert_eq!((number(output, "/files"), number(output, "/bytes")), (2, 200_005));
    assert_eq!(text(output, "/sha256"), hex(&Sha256::digest(list)));
}

#[test]
fn own_kinds_are_checked_like_all_others() {
    let daemon = Daemon::start_program(&checksums(), "");
    let refused = daemon.fails(2, &["submit", "checksum", r#"{"path": 3}"#]);
    assert!(refused.contains("checksum: input.path: invalid type"), "{refused}");
    let refused = daemon.fails(2, &["submit", "appears", r#"{"path": "/x"}"#]);
    assert!(refused.contains("missing field `seconds`"), "{refused}");
    let refused = daemon.fails(2, &["submit", "nope"]);
    assert!(refused.contains("knows appears, chat, checksum, exec, http, noop"), "{refused}");
    let missing = json!({ "path": daemon.file("nothing") });
    let task = daemon.until(&daemon.submit("checksum", &missing, &[]), "failed");
    assert_eq!((number(&task, "/attempt"), &task["error"]["retryable"]), (1, &json!(false)));
    let task = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&task, "succeeded");
}

#[test]
fn a_handler_that_waits_shares_its_worker() {
    let config = "[workers]\nmin = 1\nmax = 1\n";
    let daemon = Daemon::start_program(&checksums(), config);
    let file = daemon.file("comes");
    let tasks = vec![json!({"kind": "appears", "input": {"path": file, "seconds": 60}}); 20];
    let ids = daemon.submit_all(&tasks);
    ids.iter().for_each(|id| drop(daemon.until(id, "running")));
    File::create(&file).unwrap();
    daemon.wait_for_all(&ids, "30s");
    assert!(ids.iter().all(|id| daemon.state(id) == "succeeded"));
}

/// One worker, and a thread of it that computes without end: its event loop turns all the same.
#[test]
fn a_handler_that_computes_holds_up_nobody() {
    let config = "[workers]\nmin = 1\nmax = 1\n";
    let mut daemon = Daemon::start_program(&checksums(), config);
    let endless = daemon.file("endless");
    // Takes no room on the disk, and longer to sum up than any test runs.
    File::create(&endless).unwrap().set_len(1 << 42).unwrap();
    let tasks = vec![json!({ "kind": "checksum", "input": { "path": endless } }); 2];
    let busy = daemon.submit_all(&tasks);
    busy.iter().for_each(|id| drop(daemon.until(id, "running")));
    let ids = daemon.submit_all(&vec![json!({ "kind": "noop" }); 200]);
    daemon.wait_for_all(&ids, "30s");
    assert!(ids.iter().all(|id| daemon.state(id) == "succeeded"));
    assert!(busy.iter().all(|id| daemon.state(id) == "running"));
    // A thread cannot be interrupted, but nobody waits for it.
    daemon.ok(&["cancel", &busy[0]]);
    daemon.until(&busy[0], "cancelled");
    let began = Instant::now();
    daemon.ok(&["stop", "--now"]);
    assert!(daemon.gone(SOON).success());
    assert!(began.elapsed() < SOON / 2, "it waited for the thread: {:?}", began.elapsed());
}
