//! What is left after real kills: the workers', the broker's, the master's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use support::commands::{append_after, family, poison, stream};
use support::processes;
use support::{
    Daemon, Role, SOON, Value, eventually, eventually_eq, json, number, outcomes, shown, text,
};

/// How long anything of an instance may outlive its master.
const ORPHANED_MAX: Duration = Duration::from_secs(1);

fn lines_by_word(file: &Path) -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

/// Each of these ran, and ran once.
#[track_caller]
fn assert_each_ran_once(file: &Path, names: &[String]) {
    let expected: BTreeMap<String, usize> = names.iter().map(|name| (name.clone(), 1)).collect();
    assert_eq!(lines_by_word(file), expected);
}

#[test]
fn a_dead_workers_tasks_run_again_at_once() {
    let daemon = Daemon::start("[workers]\nmin = 1\n");
    let (gate, file) = (daemon.file("gate"), daemon.file("traces"));
    let ids: Vec<String> =
        (0..5).map(|_| daemon.submit("exec", &append_after(&gate, &file, "done"), &[])).collect();
    for id in &ids {
        daemon.until(id, "running");
    }
    let dead = daemon.kill(Role::Worker(1));
    for id in &ids {
        let again = eventually("attempt 2 runs", SOON, || {
            let task = daemon.task(id);
            (task["attempt"] == 2 && task["state"] == "running").then_some(task)
        });
        assert_eq!(again["attempts"][0]["outcome"], "worker_lost", "{again}");
        assert_eq!(again["attempts"][0]["worker_pid"], dead, "{again}");
        let error = &again["attempts"][0]["error"];
        assert_eq!(error["kind"], "worker_lost", "{again}");
        assert_eq!(error["cause"]["signal"], "SIGKILL", "{again}");
        assert_eq!(error["cause"]["reason"], "crash", "{again}");
        assert_ne!(again["worker_pid"], dead, "{again}");
    }
    std::fs::write(&gate, "").unwrap();
    for id in &ids {
        let done = daemon.until(id, "succeeded");
        assert_eq!(outcomes(&done), ["worker_lost", "succeeded"]);
    }
    assert_eq!(lines_by_word(&file), BTreeMap::from([("done".to_owned(), 5)]));
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/worker_lost"), 5, "{stats}");
    assert_eq!(number(&stats, "/succeeded"), 5, "{stats}");
}

#[test]
fn the_brokers_death_costs_no_task_and_no_client() {
    let daemon = Daemon::start("");
    let before = daemon.all_up();
    let file = daemon.file("traces");
    let gate = daemon.file("gate");
    let names: Vec<String> = (1..=20).map(|number| format!("task-{number}")).collect();
    let tasks: Vec<Value> = names
        .iter()
        .map(|name| json!({ "kind": "exec", "input": append_after(&gate, &file, name) }))
        .collect();
    let ids = daemon.submit_all(&tasks);
    for id in &ids {
        daemon.until(id, "running");
    }
    let args: Vec<&str> = std::iter::once("wait").chain(ids.iter().map(String::as_str)).collect();
    let waiting = daemon.background(&args);
    daemon.kill(Role::Broker);
    // One command after the other while there is no broker, or a new one.
    let storm: Vec<String> = (0..20).map(|_| daemon.submit("noop", &json!({}), &[])).collect();
    std::fs::write(&gate, "").unwrap();

    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success(), "{}", shown(&waited));
    let told = String::from_utf8(waited.stdout).unwrap();
    let told: BTreeSet<&str> = told.lines().collect();
    let expected: Vec<String> = ids.iter().map(|id| format!("{id} succeeded")).collect();
    assert_eq!(told, expected.iter().map(String::as_str).collect());

    for id in ids.iter().chain(&storm) {
        let task = daemon.until(id, "succeeded");
        assert_eq!(outcomes(&task), ["succeeded"], "{task}");
        assert_eq!(task["attempt"], 1, "{task}");
    }
    assert_each_ran_once(&file, &names);
    let after = daemon.all_up();
    assert_eq!((after.master, &after.workers), (before.master, &before.workers));
    assert_ne!(after.broker, before.broker);
}

#[test]
fn a_worker_and_the_broker_may_die_together() {
    let daemon = Daemon::start("");
    for roles in [[Role::Broker, Role::Worker(1)], [Role::Worker(1), Role::Broker]] {
        let before = daemon.all_up();
        let (gate, file) = (daemon.file(&format!("gate-{roles:?}")), daemon.file("traces"));
        let waits = json!({ "kind": "exec", "input": append_after(&gate, &file, "done") });
        let ids = daemon.submit_all(&vec![waits; 12]);
        for id in &ids {
            daemon.until(id, "running");
        }
        for role in roles {
            assert!(daemon.strike(role), "{role:?}");
        }
        std::fs::write(&gate, "").unwrap();
        for id in &ids {
            let task = daemon.until(id, "succeeded");
            let was_lost = task["attempts"][0]["worker_pid"] == before.workers[0];
            if was_lost {
                assert_eq!(outcomes(&task), ["worker_lost", "succeeded"], "{task}");
                assert_eq!(task["attempts"][0]["error"]["cause"]["signal"], "SIGKILL", "{task}");
            } else {
                assert_eq!(outcomes(&task), ["succeeded"], "{task}");
            }
        }
        daemon.all_up();
    }
}

#[test]
fn a_cancel_outlives_the_broker_that_took_it() {
    let daemon = Daemon::start("");
    for _ in 0..5 {
        let id = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
        daemon.until(&id, "running");
        daemon.ok(&["cancel", &id]);
        daemon.strike(Role::Broker);
        let task = daemon.until(&id, "cancelled");
        assert_eq!(outcomes(&task), ["cancelled"], "{task}");
        daemon.all_up();
    }
}

#[test]
fn submissions_in_a_storm_of_brokers_are_accepted_once() {
    let daemon = Daemon::start("");
    let batches: Vec<_> = (0..4)
        .map(|batch| {
            let file = daemon.file(&format!("batch-{batch}.jsonl"));
            let tasks: Vec<Value> = (0..500).map(|_| json!({ "kind": "noop" })).collect();
            std::fs::write(&file, support::daemon::jsonl(&tasks)).unwrap();
            daemon.background(&["submit", "--wait", "--jsonl", &file.to_string_lossy()])
        })
        .collect();
    for _ in 0..3 {
        daemon.kill(Role::Broker);
    }
    for batch in batches {
        let output = batch.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
    }
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/succeeded"), 2000, "{stats}");
    assert_eq!(number(&stats, "/worker_lost"), 0, "{stats}");
    assert_eq!(number(&stats, "/retried"), 0, "{stats}");
}

#[test]
fn a_stream_goes_on_over_the_brokers_death() {
    let daemon = Daemon::start("");
    let id = daemon.submit("exec", &stream(50, 0.06), &[]);
    let mut plain = daemon.background(&["follow", &id]);
    let mut events = daemon.background(&["follow", &id, "--json"]);
    let mut plain_lines = BufReader::new(plain.stdout.take().unwrap()).lines();
    let mut event_lines = BufReader::new(events.stdout.take().unwrap()).lines();

    let mut printed = Vec::new();
    let mut told: Vec<Value> = Vec::new();
    for kills in 0..2 {
        // Both have begun, or go on, before the broker dies.
        for _ in 0..8 {
            printed.push(plain_lines.next().expect("a line").unwrap());
            told.push(serde_json::from_str(&event_lines.next().expect("a line").unwrap()).unwrap());
        }
        daemon.kill(Role::Broker);
        eventually_eq(kills + 1, || number(&daemon.json(&["info"]), "/broker/restarts"));
    }
    printed.extend(plain_lines.map(Result::unwrap));
    told.extend(event_lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()));

    let expected: Vec<String> = (1..=50).map(|number| format!("line {number}")).collect();
    assert_eq!(printed, expected);
    let texts: String = told.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(texts.lines().collect::<Vec<_>>(), expected, "{told:?}");
    let count = |kind: &str| told.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("started"), count("finished")), (1, 1), "{told:?}");
    assert_eq!((count("gap"), count("restarted")), (0, 0), "{told:?}");
    assert!(plain.wait().unwrap().success() && events.wait().unwrap().success());
    assert_eq!(daemon.task(&id)["attempt"], 1);
}

#[test]
fn nothing_outlives_the_master_and_nothing_acknowledged_is_lost() {
    let mut daemon = Daemon::start("");
    let file = daemon.file("leader");
    let command = daemon.submit("exec", &family(&file), &[]);
    let delayed = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    let sleeps: Vec<String> =
        (0..10).map(|_| daemon.submit("sleep", &json!({ "seconds": 1.5 }), &[])).collect();
    eventually("the command runs", SOON, || file.exists().then_some(()));
    // The command, its two sleeps (one in a session of its own), and their guard.
    eventually_eq(2, || daemon.tree().iter().filter(|process| process.name() == "sleep").count());
    let tree = daemon.tree();
    assert!(tree.iter().any(|process| process.name() == "forq: guard"));
    let queued: Vec<String> = (0..40).map(|_| daemon.submit("noop", &json!({}), &[])).collect();

    let took = daemon.kill_everything();
    assert!(took < ORPHANED_MAX, "{took:?}");

    daemon.start_again();
    for id in sleeps.iter().chain(&queued) {
        let task = daemon.until(id, "succeeded");
        let outcomes = outcomes(&task);
        let (last, lost) = outcomes.split_last().unwrap();
        assert_eq!(last, "succeeded");
        assert!(lost.iter().all(|outcome| outcome == "requeued"), "{task}");
    }
    assert_eq!(daemon.state(&delayed), "scheduled");
    let again = daemon.until(&command, "running");
    assert_eq!(outcomes(&again), ["requeued", "running"]);
    daemon.ok(&["cancel", &command]);
    daemon.until(&command, "cancelled");
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/worker_lost"), 0, "the master's death is nobody's fault: {stats}");
}

#[test]
fn a_dead_workers_command_is_gone_before_it_runs_again() {
    let daemon = Daemon::start("[workers]\nmin = 1\n");
    let file = daemon.file("leader");
    let id = daemon.submit("exec", &family(&file), &[]);
    eventually("the command runs", SOON, || file.exists().then_some(()));
    eventually_eq(2, || daemon.tree().iter().filter(|process| process.name() == "sleep").count());
    let worker = daemon.all_up().workers[0];
    let below = processes::tree(worker);
    std::fs::remove_file(&file).unwrap();
    daemon.kill(Role::Worker(1));
    eventually("the first attempt is gone", ORPHANED_MAX, || {
        below.iter().all(|process| !process.is_there()).then_some(())
    });
    eventually("the second attempt runs", SOON, || file.exists().then_some(()));
    assert_eq!(outcomes(&daemon.task(&id)), ["worker_lost", "running"]);
    daemon.ok(&["cancel", &id]);
    daemon.until(&id, "cancelled");
}

#[test]
fn a_poison_task_fails_alone() {
    const MAX_ATTEMPTS: u64 = 3;
    let daemon = Daemon::start("");
    let sleep = json!({ "kind": "sleep", "input": { "seconds": 0.4 } });
    let mut tasks = vec![sleep; 30];
    tasks.insert(15, json!({ "kind": "exec", "input": poison() }));
    let mut ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, "60s");

    let poison = daemon.task(&ids.remove(15));
    assert_eq!(poison["state"], "failed", "{poison}");
    assert_eq!(poison["error"]["kind"], "worker_lost", "{poison}");
    assert_eq!(poison["error"]["cause"]["signal"], "SIGKILL", "{poison}");
    assert!(text(&poison, "/error/message").contains("SIGKILL"), "{poison}");
    assert!(number(&poison, "/attempt") <= MAX_ATTEMPTS + 2, "{poison}");
    assert!(outcomes(&poison).iter().all(|outcome| outcome == "worker_lost"), "{poison}");

    for id in &ids {
        let task = daemon.task(id);
        assert_eq!(task["state"], "succeeded", "{task}");
    }
    let info = daemon.json(&["info"]);
    let deaths: u64 =
        info["workers"].as_array().unwrap().iter().map(|worker| number(worker, "/restarts")).sum();
    assert_eq!(deaths, number(&poison, "/attempt"), "{info}");
}
