//! The log of an instance: rotated under its writers, and its level changed while it is written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use support::processes::{self, descriptors};
use support::{Daemon, SOON, Value, eventually, json};

fn start(config: impl Fn(&Path) -> String) -> (Daemon, PathBuf) {
    let mut daemon = Daemon::prepare("state", "");
    let log = daemon.file("forq.log");
    daemon.configure(&config(&log));
    daemon.set_program(&support::example("misbehave"));
    daemon.start_again();
    (daemon, log)
}

fn with_level(log: &Path, level: &str) -> String {
    format!("[workers]\nmin = 2\nmax = 2\n[log]\nfile = {log:?}\nlevel = \"{level}\"\n")
}

/// The files in the log's folder that a process has open, by name, rotated ones as well.
fn open_logs(pid: i32, log: &Path) -> Vec<PathBuf> {
    let in_place = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.parent() == log.parent() && name.starts_with("forq.log")
    };
    descriptors(pid).into_values().filter(in_place).collect()
}

/// Waits until every process of the instance writes the file at the log's path, and no other.
#[track_caller]
fn all_write(daemon: &Daemon, log: &Path) {
    let mut last = Vec::new();
    let deadline = std::time::Instant::now() + SOON;
    while std::time::Instant::now() < deadline {
        let pids = daemon.all_up();
        let all = pids.workers.iter().chain([&pids.master, &pids.broker]);
        last = all
            .filter(|pid| processes::Process::of(**pid).is_some())
            .map(|pid| (processes::name(*pid), open_logs(*pid, log)))
            .collect();
        if last.len() == pids.workers.len() + 2 && last.iter().all(|(_, open)| *open == [log]) {
            return;
        }
        support::pause(std::time::Duration::from_millis(20));
    }
    panic!("not everybody writes {}: {last:?}", log.display());
}

fn notes(names: impl Iterator<Item = u32>) -> Vec<Value> {
    names.map(|name| json!({ "kind": "note", "input": { "text": format!("<{name}>") } })).collect()
}

/// How often each note was written, in all of these files.
fn written(files: &[PathBuf]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for file in files {
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            let Some((_, note)) = line.split_once("note: <") else { continue };
            let name = note.strip_suffix('>').expect("a whole line").parse().expect("a number");
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

#[test]
fn a_rotated_log_is_opened_again_by_everybody_and_no_line_is_lost() {
    const ROUNDS: u32 = 12;
    const NOTES: u32 = 25;
    let (daemon, log) = start(|log| with_level(log, "info"));
    all_write(&daemon, &log);
    let mut files = vec![log.clone()];
    let mut ids = Vec::new();
    for round in 0..ROUNDS {
        let tasks = notes(round * NOTES..(round + 1) * NOTES);
        ids.extend(daemon.submit_all(&tasks));
        let old = daemon.file(&format!("forq.log.{round}"));
        fs::rename(&log, &old).unwrap();
        files.push(old);
        // By itself, and before and after the signal of a reload, whose new workers are forked in
        // the middle of it.
        let signals: &[Signal] = match round % 3 {
            0 => &[Signal::SIGUSR1],
            1 => &[Signal::SIGHUP, Signal::SIGUSR1],
            _ => &[Signal::SIGUSR1, Signal::SIGHUP],
        };
        signals.iter().for_each(|signal| daemon.signal(*signal));
        eventually("the master writes a new file", SOON, || log.exists().then_some(()));
        if round % 3 == 0 {
            all_write(&daemon, &log);
        }
    }
    daemon.wait_for_all(&ids, "30s");
    daemon.ok(&["reload", "--wait"]);
    all_write(&daemon, &log);
    // Worker, broker and master, each in its own words.
    let last = daemon.submit_all(&notes(ROUNDS * NOTES..ROUNDS * NOTES + 1));
    daemon.wait_for_all(&last, "10s");
    daemon.signal(Signal::SIGTTIN);
    eventually("the new file is written", SOON, || {
        let new = fs::read_to_string(&log).unwrap();
        let has = |part: &str| new.lines().any(|line| line.contains(part));
        (has(&format!("note: <{}>", ROUNDS * NOTES)) && has("asked for: 3 workers")).then_some(())
    });
    let expected: BTreeMap<u32, usize> = (0..=ROUNDS * NOTES).map(|name| (name, 1)).collect();
    assert_eq!(written(&files), expected);
    // No worker of before has kept a file that was moved.
    for process in daemon.tree() {
        assert_eq!(open_logs(process.pid, &log), std::slice::from_ref(&log), "{}", process.name());
    }
}

#[test]
fn a_new_level_holds_for_everybody_from_the_reload_on() {
    let (daemon, log) = start(|log| with_level(log, "warn"));
    let broker = daemon.all_up().broker;
    let lines = |part: &str| {
        let log = fs::read_to_string(&log).unwrap_or_default();
        log.lines().filter(|line| line.contains(part)).count()
    };
    let note = |name: u32| {
        let ids = daemon.submit_all(&notes(name..name + 1));
        daemon.wait_for_all(&ids, "10s");
        lines(&format!("note: <{name}>"))
    };
    let brokers = format!("broker{{pid={broker}}}");
    assert_eq!((note(1), lines("INFO"), lines("DEBUG")), (0, 0, 0));

    daemon.configure(&with_level(&log, "debug"));
    daemon.ok(&["reload", "--wait"]);
    assert_eq!((note(2), lines("reloaded: generation 2")), (1, 1));
    // It is the same one as before, and tells of the workers that have come.
    eventually("the broker tells details", SOON, || {
        let log = fs::read_to_string(&log).unwrap();
        log.lines().any(|line| line.contains("DEBUG") && line.contains(&brokers)).then_some(())
    });
    assert_eq!(daemon.all_up().broker, broker);

    daemon.configure(&with_level(&log, "error"));
    daemon.ok(&["reload", "--wait"]);
    daemon.info_when("the old ones have gone", |info| {
        info["workers"].as_array().unwrap().len() == 2 && info["rolled"] == true
    });
    let before = fs::read_to_string(&log).unwrap();
    assert_eq!(note(3), 0);
    daemon.strike(support::Role::Worker(1));
    daemon.ok(&["submit", "noop", "--wait"]);
    let since = fs::read_to_string(&log).unwrap().split_off(before.len());
    assert!(since.lines().all(|line| line.contains("ERROR")), "{since}");
}
