//! How an instance starts, stops, and starts again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::commands::family;
use support::{
    Daemon, Role, SOON, Value, eventually, eventually_eq, json, number, outcomes, shown,
};

/// Stopping an idle daemon takes no time; so much for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Runs a task of so many seconds, until it is running.
#[track_caller]
fn running(daemon: &Daemon, seconds: f64) -> String {
    let id = daemon.submit("sleep", &json!({ "seconds": seconds }), &[]);
    daemon.until(&id, "running");
    id
}

/// Has the daemon end with 0, and says how long that took.
#[track_caller]
fn ends_well(daemon: &mut Daemon, began: Instant, within: Duration) -> Duration {
    let tree = daemon.tree();
    let status = daemon.gone(SOON);
    let took = began.elapsed();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < within, "{took:?}");
    assert!(tree.iter().all(|process| !process.is_there()), "something is left");
    took
}

/// A task that a stop gave back: not charged, and on its way again.
#[track_caller]
fn assert_given_back(daemon: &mut Daemon, id: &str) {
    daemon.start_again();
    let task: Value = daemon.until(id, "running");
    assert_eq!(outcomes(&task), ["requeued", "running"], "{task}");
    assert_eq!(number(&daemon.json(&["stats"]), "/worker_lost"), 0);
}

#[test]
fn term_ends_an_idle_daemon_at_once() {
    let mut daemon = Daemon::start("");
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    ends_well(&mut daemon, began, AT_ONCE);
    daemon.fails(3, &["info"]);
}

#[test]
fn term_lets_running_tasks_end() {
    let mut daemon = Daemon::start("");
    let id = running(&daemon, 1.0);
    let waiting = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    eventually("submissions are refused", SOON, || {
        (daemon.forq(&["submit", "noop"]).status.code() == Some(5)).then_some(())
    });
    ends_well(&mut daemon, began, AT_ONCE);
    daemon.start_again();
    let task = daemon.task(&id);
    assert_eq!(task["state"], "succeeded", "{task}");
    assert_eq!(task["attempt"], 1, "{task}");
    assert_eq!(daemon.state(&waiting), "scheduled");
}

#[test]
fn term_gives_long_tasks_back_after_the_drain_timeout() {
    let mut daemon = Daemon::start("[workers]\ndrain_timeout = \"1s\"\n");
    let id = running(&daemon, 60.0);
    let file = daemon.file("leader");
    let command = daemon.submit("exec", &family(&file), &[]);
    eventually("the command runs", SOON, || file.exists().then_some(()));
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let took = ends_well(&mut daemon, began, Duration::from_secs(4));
    assert!(took >= Duration::from_secs(1), "{took:?}");
    assert_given_back(&mut daemon, &id);
    daemon.until(&command, "running");
}

#[test]
fn int_is_quick() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut daemon = Daemon::start("");
        let id = running(&daemon, 60.0);
        let began = Instant::now();
        daemon.signal(signal);
        ends_well(&mut daemon, began, AT_ONCE);
        assert_given_back(&mut daemon, &id);
    }
}

#[test]
fn int_cuts_a_drain_to_two_seconds() {
    let mut daemon = Daemon::start("");
    let id = running(&daemon, 60.0);
    daemon.signal(Signal::SIGTERM);
    eventually_eq("draining".to_owned(), || {
        daemon.json(&["info"])["phase"].as_str().unwrap_or_default().to_owned()
    });
    let began = Instant::now();
    daemon.signal(Signal::SIGINT);
    let took = ends_well(&mut daemon, began, Duration::from_secs(5));
    assert!(took >= Duration::from_millis(1900), "{took:?}");
    assert_given_back(&mut daemon, &id);
}

/// Of a stop that takes its time, operators see where it is, and can still change their minds about
/// each task.
#[test]
fn a_draining_daemon_answers_and_cancels() {
    let mut daemon = Daemon::start("[workers]\ndrain_timeout = \"60s\"\n");
    let (first, second) = (running(&daemon, 60.0), running(&daemon, 60.0));
    let waiting = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let info = daemon.info_when("it drains", |info| info["phase"] == "draining");
    let in_flight = info["workers"].as_array().unwrap().iter();
    assert_eq!(in_flight.map(|worker| number(worker, "/in_flight")).sum::<u64>(), 2, "{info}");
    daemon.fails(5, &["reload"]);
    daemon.fails(5, &["scale", "+1"]);
    daemon.fails(5, &["submit", "noop"]);
    daemon.ok(&["cancel", &first, &waiting]);
    assert_eq!(daemon.until(&first, "cancelled")["attempt"], 1);
    // The last one is gone, and so is every reason to wait.
    daemon.ok(&["cancel", &second]);
    ends_well(&mut daemon, began, AT_ONCE);
}

#[test]
fn stop_waits_for_running_tasks_and_for_the_end() {
    let mut daemon = Daemon::start("");
    let id = running(&daemon, 1.0);
    assert_eq!(daemon.ok(&["stop"]), "stopped");
    let began = Instant::now();
    ends_well(&mut daemon, began, Duration::from_millis(500));
    daemon.fails(3, &["stop"]);
    daemon.start_again();
    assert_eq!(daemon.state(&id), "succeeded");
}

#[test]
fn stop_now_does_not_wait() {
    let mut daemon = Daemon::start("");
    let id = running(&daemon, 60.0);
    let began = Instant::now();
    assert_eq!(daemon.json(&["stop", "--now"])["stopped"], true);
    ends_well(&mut daemon, began, AT_ONCE);
    assert_given_back(&mut daemon, &id);
}

#[test]
fn a_stop_survives_the_brokers_death() {
    let mut daemon = Daemon::start("");
    let id = running(&daemon, 1.5);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    eventually("it drains", SOON, || daemon.log().contains("stopping:").then_some(()));
    assert!(daemon.strike(Role::Broker));
    ends_well(&mut daemon, began, Duration::from_secs(5));
    daemon.start_again();
    let task = daemon.until(&id, "succeeded");
    assert_eq!(outcomes(&task), ["succeeded"], "{task}");
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start("");
    let before = daemon.all_up();
    let told = daemon.fails(2, &["serve"]);
    assert!(told.contains(&format!("pid {}", before.master)), "{told}");
    let id = daemon.submit("noop", &json!({}), &["--wait"]);
    assert_eq!(id, "{}");
    assert_eq!(daemon.all_up(), before);
}

#[test]
fn what_a_dead_daemon_left_is_no_obstacle() {
    let mut daemon = Daemon::start("");
    let id = running(&daemon, 60.0);
    for name in ["forq.sock", "worker.sock", "forq.lock"] {
        assert!(daemon.state_dir().join(name).exists(), "{name}");
    }
    daemon.kill_everything();
    let told = daemon.fails(3, &["status", &id]);
    assert!(told.contains("no daemon at") && told.contains("forq serve"), "{told}");
    assert_given_back(&mut daemon, &id);
}

#[test]
fn a_long_path_is_a_good_path() {
    let folder = tempfile::tempdir().unwrap();
    let missing = 200_usize.saturating_sub(folder.path().as_os_str().len() + "/".len() * 2);
    let below = format!("{}/{}", "d".repeat(missing / 2), "e".repeat(missing - missing / 2));
    let mut daemon = Daemon::prepare(&below, "");
    assert!(daemon.state_dir().as_os_str().len() >= 200);
    daemon.start_again();
    let id = daemon.submit("exec", &json!({ "argv": ["echo", "far"] }), &[]);
    daemon.ok(&["wait", &id]);
    let before = daemon.all_up();
    daemon.kill(Role::Broker);
    eventually("a new broker", SOON, || daemon.pids().filter(|now| now.broker != before.broker));
    assert_eq!(daemon.json(&["result", &id])["stdout"], "far\n");
    daemon.ok(&["stop"]);
    daemon.gone(AT_ONCE);
}

#[test]
fn a_folder_that_cannot_be_made_is_refused() {
    let mut daemon = Daemon::prepare("file/state", "");
    std::fs::write(daemon.file("file"), "not a folder").unwrap();
    daemon.spawn();
    let status = daemon.gone(AT_ONCE);
    assert_eq!(status.code(), Some(2));
    let log = daemon.log();
    assert!(log.contains("file/state"), "{log}");
    assert_eq!(log.lines().count(), 1, "one sentence: {log}");
}

#[test]
fn a_bad_configuration_is_refused_before_anything_is_made() {
    let mut daemon = Daemon::prepare("state", "[workers]\nmax = 0\n");
    daemon.spawn();
    assert_eq!(daemon.gone(AT_ONCE).code(), Some(2));
    let log = daemon.log();
    assert!(log.contains("forq.toml line 2") && log.contains("workers.max"), "{log}");
    assert!(!daemon.state_dir().exists());
}

#[test]
fn a_broker_that_keeps_dying_comes_back() {
    let daemon = Daemon::start("");
    let id = running(&daemon, 4.0);
    for deaths in 1..=5 {
        eventually("a broker to kill", SOON, || daemon.strike(Role::Broker).then_some(()));
        // Dead for the master, too.
        eventually("its end is seen", SOON, || {
            (daemon.log().matches("the broker (pid").count() == deaths).then_some(())
        });
    }
    // A command only waits for it.
    let output = daemon.forq(&["submit", "noop", "--wait"]);
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(number(&daemon.json(&["info"]), "/broker/restarts"), 5);
    assert_eq!(daemon.until(&id, "succeeded")["attempt"], 1);
}

#[test]
fn a_worker_that_keeps_dying_is_held_back() {
    let daemon = Daemon::start("[workers]\nmin = 1\n");
    // Each death comes before a second of service.
    for deaths in 1..=5 {
        eventually("a worker to kill", SOON, || daemon.strike(Role::Worker(1)).then_some(()));
        eventually_eq(deaths, || number(&daemon.json(&["info"]), "/workers/0/restarts"));
    }
    let held_back = daemon.json(&["info"]);
    let backoff_ms = number(&held_back, "/workers/0/backoff_ms");
    assert!((400..=800).contains(&backoff_ms), "{held_back}");
    assert!(held_back["workers"][0]["pid"].is_null(), "{held_back}");
    let id = daemon.submit("noop", &json!({}), &[]);
    assert_eq!(daemon.until(&id, "succeeded")["attempt"], 1);
    eventually_eq(0, || number(&daemon.json(&["info"]), "/workers/0/backoff_ms"));
}
