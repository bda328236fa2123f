//! A disk that is full: submissions are refused, what runs goes on and its results are kept, and
//! everything recovers by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]
#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::daemon::eventually_ended;
use support::{Daemon, SOON, eventually, json, shown, text};

/// Room for the database, its log (8 MiB from the start), and the reserve twice.
const DISK_MIB: u32 = 48;
/// What the reserve holds back.
const RESERVE_BYTES: u64 = 8 << 20;

/// A small file system, for as long as this value lives.
struct Disk {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Disk {
    /// `None`, with the reason on stderr, where a test may not mount one.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::create_dir(&path).unwrap();
        let size = format!("size={DISK_MIB}m,mode=700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "forq-test"])
            .arg(&path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { path, _folder: folder }),
            Ok(output) => {
                eprintln!("SKIPPED: no small disk can be mounted here: {}", shown(&output));
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: there is no `mount` here: {error}");
                None
            }
        }
    }

    /// Writes a file until there is no room for one more block.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("filler");
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        for size in [1 << 20, 64 << 10, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a daemon that is just ending may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.path).output();
    }
}

/// Whether the test is to run in a name space of its own, where it may mount; it does so by
/// running itself again.
fn in_own_name_space(test: &str) -> bool {
    const INSIDE: &str = "FORQ_TEST_INSIDE";
    if nix::unistd::geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let own = std::env::current_exe().unwrap();
    let inside = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(own)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output();
    match inside {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(101) => panic!("{}", shown(&output)),
        Ok(output) => eprintln!("SKIPPED: no name space of one's own here: {}", shown(&output)),
        Err(error) => eprintln!("SKIPPED: there is no `unshare` here: {error}"),
    }
    true
}

/// A daemon whose state folder lies on a small disk.
fn daemon_on(disk: &Disk) -> Daemon {
    let mut daemon = Daemon::prepare("state", "[workers]\nmin = 2\nmax = 2\n");
    daemon.set_state_dir(&disk.path.join("state"));
    daemon.start_again();
    daemon
}

fn reserve(daemon: &Daemon) -> PathBuf {
    daemon.state_dir().join("forq.reserve")
}

/// Submits small tasks until one is refused; gives the ids of the others.
fn submit_until_refused(daemon: &Daemon) -> (Vec<String>, String) {
    let mut ids = Vec::new();
    let refused = eventually("the disk is full", SOON, || {
        let input = json!({ "argv": ["true"], "stdin": "x".repeat(60_000) }).to_string();
        let output = daemon.forq(&["submit", "exec", &input, "--delay", "1h"]);
        if output.status.success() {
            ids.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
            return None;
        }
        assert_eq!(output.status.code(), Some(5), "{}", shown(&output));
        Some(String::from_utf8(output.stderr).unwrap())
    });
    (ids, refused)
}

fn wait_for_lines(file: &Path, count: usize) {
    eventually("the commands have run", SOON, || {
        let lines = fs::read_to_string(file).unwrap_or_default().lines().count();
        (lines == count).then_some(())
    });
}

#[test]
fn a_full_disk_refuses_submissions_keeps_results_and_recovers_by_itself() {
    if in_own_name_space("a_full_disk_refuses_submissions_keeps_results_and_recovers_by_itself") {
        return;
    }
    let Some(disk) = Disk::mount() else { return };
    let mut daemon = daemon_on(&disk);
    assert_eq!(fs::metadata(reserve(&daemon)).unwrap().len(), RESERVE_BYTES);
    // Work that is under way while the disk fills up, and tells elsewhere that it was done.
    let (go, done) = (daemon.file("go"), daemon.file("done"));
    let script = r#"while [ ! -e "$1" ]; do sleep 0.02; done; echo ran >> "$2"; echo done"#;
    let argv = json!(["sh", "-c", script, "sh", go, done]);
    let tasks = vec![json!({ "kind": "exec", "input": { "argv": argv } }); 20];
    let running = daemon.submit_all(&tasks);
    running.iter().for_each(|id| drop(daemon.until(id, "running")));
    let waiting = daemon.submit("noop", &json!({}), &["--delay", "1h"]);

    let filler = disk.fill();
    let (accepted, refused) = submit_until_refused(&daemon);
    assert!(refused.contains("the disk is full: make room, then try again"), "{refused}");
    assert!(!reserve(&daemon).exists(), "the reserve is given up");
    assert_eq!(daemon.state(&waiting), "scheduled", "questions are answered");
    daemon.ok(&["info"]);
    // What runs goes on, and its results are on disk: told to those who wait, and seen by all.
    File::create(&go).unwrap();
    daemon.wait_for_all(&running, "20s");
    for id in &running {
        let task = daemon.task(id);
        assert_eq!((text(&task, "/state"), &task["attempt"]), ("succeeded".to_owned(), &json!(1)));
        assert_eq!(text(&task, "/output/stdout"), "done\n");
    }
    daemon.fails(5, &["submit", "noop"]);

    fs::remove_file(&filler).unwrap();
    let after = eventually("it recovers by itself", SOON, || {
        let output = daemon.forq(&["submit", "noop"]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    daemon.until(after.trim(), "succeeded");
    assert_eq!(fs::metadata(reserve(&daemon)).unwrap().len(), RESERVE_BYTES);
    let log = daemon.log();
    assert!(log.contains("the disk is full") && log.contains("the disk has room again"), "{log}");

    // All of it outlives the daemon: what was accepted, and what was done.
    daemon.kill_everything();
    daemon.start_again();
    wait_for_lines(&done, 20);
    assert!(running.iter().all(|id| daemon.state(id) == "succeeded"));
    assert!(accepted.iter().chain([&waiting]).all(|id| daemon.state(id) == "scheduled"));
}

/// A daemon with eight results that find no room, not even the reserve's.
fn without_any_room(disk: &Disk) -> (Daemon, Vec<String>, PathBuf) {
    let daemon = daemon_on(disk);
    let (go, done) = (daemon.file("go"), daemon.file("done"));
    let script = r#"while [ ! -e "$1" ]; do sleep 0.02; done
        head -c 300000 /dev/zero | tr '\0' x; echo ran >> "$2""#;
    let argv = json!(["sh", "-c", script, "sh", go, done]);
    let tasks = vec![json!({ "kind": "exec", "input": { "argv": argv } }); 8];
    let running = daemon.submit_all(&tasks);
    running.iter().for_each(|id| drop(daemon.until(id, "running")));
    disk.fill();
    submit_until_refused(&daemon);
    let filler = disk.fill();
    File::create(&go).unwrap();
    wait_for_lines(&done, 8);
    (daemon, running, filler)
}

/// Results wait until there is room.
#[test]
fn results_outlast_a_disk_without_any_room_at_all() {
    if in_own_name_space("results_outlast_a_disk_without_any_room_at_all") {
        return;
    }
    let Some(disk) = Disk::mount() else { return };
    let (daemon, running, filler) = without_any_room(&disk);
    daemon.fails(4, &[&["wait", "--timeout", "2s"], &strs(&running)[..]].concat());
    fs::remove_file(&filler).unwrap();
    daemon.wait_for_all(&running, "20s");
    for id in &running {
        let task = daemon.task(id);
        assert_eq!((text(&task, "/state"), &task["attempt"]), ("succeeded".to_owned(), &json!(1)));
        assert_eq!(text(&task, "/output/stdout").len(), 300_000);
    }
    wait_for_lines(&daemon.file("done"), 8);
}

/// Results that wait for room are in nobody's way.
#[test]
fn results_without_room_hold_up_nobody() {
    if in_own_name_space("results_without_room_hold_up_nobody") {
        return;
    }
    let Some(disk) = Disk::mount() else { return };
    let (daemon, running, filler) = without_any_room(&disk);
    daemon.fails(4, &["wait", "--timeout", "1s", &running[0]]);
    for (args, code) in [(&["submit", "noop"], 5), (&["queue", "status"], 0)] {
        let mut asked = daemon.background(args);
        let status = eventually_ended(&mut asked, SOON);
        let _ = asked.kill();
        assert_eq!(status.and_then(|status| status.code()), Some(code), "{args:?}");
    }
    fs::remove_file(&filler).unwrap();
    daemon.wait_for_all(&running, "20s");
}

fn strs(ids: &[String]) -> Vec<&str> {
    ids.iter().map(String::as_str).collect()
}
