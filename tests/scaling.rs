//! How the pool grows and shrinks: by load, by hand, from nothing; and by memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{Daemon, SOON, Value, eventually, json, number, outcomes, text};

fn workers(info: &Value) -> usize {
    info["workers"].as_array().unwrap().len()
}

fn want(info: &Value) -> u64 {
    number(info, "/scale/want")
}

#[test]
fn a_burst_makes_the_pool_grow_and_quiet_makes_it_shrink_without_a_loss() {
    let daemon =
        Daemon::start("[workers]\nmin = 1\nmax = 4\nconcurrency = 4\nscale_down_after = \"2s\"\n");
    let began = Instant::now();
    let tasks = vec![json!({ "kind": "sleep", "input": { "seconds": 1 } }); 64];
    let ids = daemon.submit_all(&tasks);
    let info = daemon.info_when("it is at its ceiling", |info| {
        workers(info) == 4
            && info["workers"].as_array().unwrap().iter().all(|w| w["state"] == "ready")
    });
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(text(&info, "/scale/reason").contains("ready"), "{info}");
    // One long task on each of the many: those that shrink away must let theirs end.
    daemon.wait_for_all(&ids, "30s");
    let long = vec![json!({ "kind": "sleep", "input": { "seconds": 4 } }); 8];
    let long = daemon.submit_all(&long);
    daemon.wait_for_all(&long, "30s");
    let info = daemon.info_when("it is back at its floor", |info| workers(info) == 1);
    assert_eq!(want(&info), 1, "{info}");
    for id in ids.iter().chain(&long) {
        assert_eq!(outcomes(&daemon.task(id)), ["succeeded"]);
    }
    let ups = daemon.log().matches(" up to ").count();
    let downs = daemon.log().matches(" down to ").count();
    assert!((2..=3).contains(&ups) && downs == 3, "{ups} up, {downs} down: {}", daemon.log());
}

/// Bursts with pauses between them that are shorter than the window: the pool grows for the first
/// and is there for the others. Then a trickle, for which the floor is enough.
#[test]
fn a_saw_tooth_does_not_make_the_pool_one_and_a_trickle_does_not_move_it() {
    let daemon =
        Daemon::start("[workers]\nmin = 1\nmax = 3\nconcurrency = 4\nscale_down_after = \"4s\"\n");
    let moves = || {
        let log = daemon.log();
        (log.matches(" up to ").count(), log.matches(" down to ").count())
    };
    for _ in 0..3 {
        let burst = vec![json!({ "kind": "sleep", "input": { "seconds": 1 } }); 24];
        daemon.wait_for_all(&daemon.submit_all(&burst), "20s");
    }
    let (ups, downs) = moves();
    assert!((1..=2).contains(&ups) && downs == 0, "{ups} up, {downs} down: {}", daemon.log());
    daemon.info_when("it is back at its floor", |info| workers(info) == 1);
    let before = moves();
    assert_eq!(before.1, 2, "{}", daemon.log());
    for _ in 0..20 {
        daemon.ok(&["submit", "sleep", "{\"seconds\": 0.1}", "--wait"]);
    }
    assert_eq!(moves(), before, "{}", daemon.log());
}

#[test]
fn an_empty_pool_forks_for_the_first_task_at_once() {
    let daemon = Daemon::start("[workers]\nmin = 0\nmax = 2\nscale_down_after = \"1s\"\n");
    assert_eq!(workers(&daemon.json(&["info"])), 0);
    let began = Instant::now();
    daemon.ok(&["submit", "noop", "--wait"]);
    assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
    // And it is empty again when there is nothing to do.
    daemon.info_when("it is empty", |info| workers(info) == 0);
    daemon.ok(&["submit", "noop", "--wait"]);
}

#[test]
fn operators_move_the_bounds_and_the_rule_does_not_undo_it() {
    let daemon = Daemon::start("[workers]\nmin = 2\nmax = 4\nscale_down_after = \"1s\"\n");
    let of = |info: &Value| {
        (want(info), number(info, "/scale/min"), number(info, "/scale/max"), workers(info))
    };
    let settles = |expected| {
        daemon.info_when("the pool is as asked", |info| {
            of(info) == expected && info["rolled"] == true && info["phase"] == "running"
        })
    };
    daemon.signal(Signal::SIGTTIN);
    settles((3, 3, 4, 3));
    assert_eq!(daemon.ok(&["scale", "+2"]), "5 workers from now on, until the next reload");
    settles((5, 5, 5, 5));
    // Long after a rule left alone would have shrunk it.
    let reason = settles((5, 5, 5, 5));
    eventually("the rule has had its chance", SOON, || {
        let info = daemon.json(&["info"]);
        assert_eq!(want(&info), 5, "{info}");
        (number(&info, "/uptime_s") > number(&reason, "/uptime_s") + 3).then_some(())
    });
    daemon.signal(Signal::SIGTTOU);
    settles((4, 4, 4, 4));
    assert_eq!(daemon.json(&["scale", "1"])["want"], 1);
    settles((1, 1, 1, 1));
    daemon.signal(Signal::SIGTTOU);
    daemon.ok(&["submit", "noop", "--wait"]);
    settles((1, 1, 1, 1));
    assert!(daemon.fails(2, &["scale", "0"]).contains("forq queue pause"));
    daemon.fails(2, &["scale", "many"]);
    // A reload is back to the file.
    daemon.ok(&["reload", "--wait"]);
    settles((2, 2, 4, 2));
}

#[test]
fn scaling_down_waits_for_what_runs() {
    let daemon = Daemon::start("[workers]\nmin = 3\nmax = 3\n");
    let tasks = vec![json!({ "kind": "sleep", "input": { "seconds": 2 } }); 6];
    let ids = daemon.submit_all(&tasks);
    ids.iter().for_each(|id| drop(daemon.until(id, "running")));
    daemon.ok(&["scale", "1"]);
    daemon.info_when("two of them drain", |info| {
        let states = info["workers"].as_array().unwrap().iter();
        states.filter(|worker| worker["state"] == "draining").count() == 2
    });
    // What drains is taken back before anything is forked.
    let pids = |info: &Value| -> Vec<Value> {
        info["workers"].as_array().unwrap().iter().map(|worker| worker["pid"].clone()).collect()
    };
    let before = pids(&daemon.json(&["info"]));
    daemon.ok(&["scale", "3"]);
    let info = daemon.info_when("all are ready", |info| info["rolled"] == true);
    assert_eq!(pids(&info), before);
    daemon.ok(&["scale", "1"]);
    daemon.wait_for_all(&ids, "20s");
    daemon.info_when("one is left", |info| workers(info) == 1);
    for id in &ids {
        assert_eq!(outcomes(&daemon.task(id)), ["succeeded"]);
    }
}

/// A program of one's own may grow; here it is the events that are kept.
#[test]
fn a_worker_that_grows_is_replaced() {
    let daemon = Daemon::start("[workers]\nmin = 1\nmax = 1\nmax_memory = \"16MiB\"\n");
    let before = daemon.all_up();
    // A test build may be over the limit from the start: then each worker is replaced in turn,
    // which is seen all the same, and every task ends.
    let tasks: Vec<Value> = (0..40)
        .map(|_| {
            let script = "head -c 900000 /dev/zero | tr '\\0' x";
            json!({ "kind": "exec", "input": { "argv": ["sh", "-c", script] } })
        })
        .collect();
    let ids = daemon.submit_all(&tasks);
    let info = daemon.info_when("it is replaced", |info| {
        let worker = &info["workers"][0];
        worker["pid"].is_i64() && worker["pid"] != before.workers[0]
    });
    assert!(workers(&info) <= 2, "{info}");
    daemon.wait_for_all(&ids, "60s");
    assert!(daemon.log().contains("to be replaced"), "{}", daemon.log());
}
