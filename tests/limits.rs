//! Limits, breakers and closed doors of providers: one pool, many workers, and what a server sees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::model::{Model, chat, provider, times_ms};
use support::{
    Daemon, Role, SOON, command, eventually, eventually_eq, json, number, outcomes, text, time,
};

/// One worker, one slot: whoever holds it holds up everybody.
const ONE_SLOT: &str = "[workers]\nmin = 1\nmax = 1\nconcurrency = 1\n";
const FOUR_WORKERS: &str = "[workers]\nmin = 4\nmax = 4\n";

fn quick(first_token_ms: u64) -> Model {
    let first_token_ms = first_token_ms.to_string();
    Model::start(&["--first-token-ms", &first_token_ms, "--tokens-per-second", "0"])
}

/// Waits until all of these have succeeded.
#[track_caller]
fn all_succeed(daemon: &Daemon, ids: &[String]) {
    daemon.wait_for_all(ids, "30s");
    let failed = daemon.json_lines(&["list", "--state", "failed", "--state", "cancelled"]);
    assert!(failed.is_empty(), "{failed:?}");
}

/// How many tasks are in this state.
#[track_caller]
fn count(daemon: &Daemon, state: &str) -> usize {
    daemon.json_lines(&["list", "--state", state, "--limit", "1000"]).len()
}

#[test]
fn so_many_calls_at_once_over_the_whole_pool() {
    let model = quick(30);
    let config = format!("{FOUR_WORKERS}{}", provider("sim", &model.url, "max_concurrent = 5"));
    let daemon = Daemon::start(&config);
    let ids = daemon.submit_all(&vec![chat("sim/m"); 100]);
    all_succeed(&daemon, &ids);
    let stats = model.stats();
    assert_eq!(number(&stats, "/requests"), 100);
    assert_eq!(number(&stats, "/open_requests_max"), 5, "reached, and never passed");
}

#[test]
fn a_used_up_minute_leaves_tasks_queued_and_their_slot_to_others() {
    let (model, other) = (quick(0), quick(0));
    let config = [
        ONE_SLOT.to_owned(),
        provider("sim", &model.url, "rpm = 20"),
        provider("other", &other.url, ""),
    ];
    let daemon = Daemon::start(&config.concat());
    let ids = daemon.submit_all(&vec![chat("sim/m"); 40]);
    eventually_eq(20, || count(&daemon, "succeeded"));
    // Three seconds of others' work, in the only slot.
    for _ in 0..3 {
        let mut passing = vec![daemon.submit("sleep", &json!({ "seconds": 1 }), &[])];
        passing.extend(daemon.submit_all(&[json!({ "kind": "noop" }), chat("other/m")]));
        all_succeed(&daemon, &passing);
    }
    let times = times_ms(&model.stats());
    assert_eq!(times.len(), 20, "{times:?}");
    assert_eq!((count(&daemon, "queued"), count(&daemon, "failed")), (20, 0));
    let waiting: Vec<_> =
        ids.iter().map(|id| daemon.task(id)).filter(|task| task["state"] == "queued").collect();
    assert!(waiting.iter().all(|task| task["attempts"] == json!([])), "{waiting:?}");
}

#[test]
fn a_fallback_that_waits_leaves_its_slot_to_others() {
    let (model, other) = (quick(0), quick(0));
    let config = [
        ONE_SLOT.to_owned(),
        "[models.default]\nchain = ['dead/m', 'sim/m']\n".to_owned(),
        provider("dead", "http://127.0.0.1:1/v1", ""),
        provider("sim", &model.url, "rpm = 1"),
        provider("other", &other.url, ""),
    ];
    let daemon = Daemon::start(&config.concat());
    all_succeed(&daemon, &[daemon.submit("chat", &json!({ "prompt": "first" }), &[])]);
    let waiting = daemon.submit_all(&vec![chat("default"); 3]);
    for id in &waiting {
        daemon.until(id, "running");
    }
    all_succeed(&daemon, &daemon.submit_all(&[json!({ "kind": "noop" }), chat("other/m")]));
    for id in &waiting {
        assert_eq!(daemon.state(id), "running");
        daemon.ok(&["cancel", id]);
        daemon.until(id, "cancelled");
    }
    assert_eq!(number(&model.stats(), "/requests"), 1);
}

/// Those who wait for one provider must not wait for a task that cannot start because of them.
#[test]
fn waiting_fallbacks_and_a_full_worker_do_not_wait_for_each_other() {
    let (model, spent) = (quick(0), quick(0));
    let limits = "max_concurrent = 1\nfirst_token_timeout = '2s'";
    let config = [
        "[workers]\nmin = 1\nmax = 1\nconcurrency = 2\n".to_owned(),
        "[models.default]\nchain = ['dead/m', 'sim/m']\n".to_owned(),
        "[models.last]\nchain = ['sim/fault-hang', 'spent/m']\n".to_owned(),
        provider("dead", "http://127.0.0.1:1/v1", "breaker = { failures = 1000 }"),
        provider("sim", &model.url, limits),
        provider("spent", &spent.url, "rpm = 1"),
    ];
    let daemon = Daemon::start(&config.concat());
    all_succeed(&daemon, &daemon.submit_all(&[chat("spent/m")]));
    let hangs = daemon.submit_all(&[chat("last")]);
    eventually_eq(1, || number(&model.stats(), "/open_requests"));
    // Four a slot is the most that a worker holds.
    let fallbacks = daemon.submit_all(&vec![chat("default"); 7]);
    for id in &fallbacks {
        daemon.until(id, "running");
    }
    let urgent =
        daemon.submit("chat", &json!({ "prompt": "x", "model": "sim/m" }), &["--priority", "9"]);
    eventually_eq(0, || number(&model.stats(), "/open_requests"));
    all_succeed(&daemon, &[&fallbacks[..], &[urgent]].concat());
    assert_eq!(daemon.state(&hangs[0]), "running", "its minute is used up");
}

#[test]
fn permits_go_by_priority() {
    let model = quick(100);
    let config = format!("{FOUR_WORKERS}{}", provider("sim", &model.url, "max_concurrent = 1"));
    let daemon = Daemon::start(&config);
    let first = daemon.submit_all(&[chat("sim/m")]);
    eventually_eq(1, || number(&model.stats(), "/requests"));
    let of = |priority: u8| {
        let mut task = chat("sim/m");
        task["priority"] = priority.into();
        task
    };
    let levels = [0, 5, 9, 0, 5, 9];
    let ids = daemon.submit_all(&levels.map(of));
    all_succeed(&daemon, &[first, ids.clone()].concat());
    let mut order: Vec<_> = ids
        .iter()
        .zip(levels)
        .map(|(id, level)| (time(&daemon.task(id), "/started_at"), level))
        .collect();
    order.sort_unstable();
    let order: Vec<_> = order.into_iter().map(|(_, level)| level).collect();
    assert_eq!(order, [9, 9, 5, 5, 0, 0]);
}

#[test]
fn tokens_are_counted_as_they_were_used() {
    let model = quick(30);
    let config = format!("{FOUR_WORKERS}{}", provider("sim", &model.url, "tpm = 2000"));
    let daemon = Daemon::start(&config);
    // Estimated as 800 and more: two at once, and two a minute if nobody put it right.
    let mut task = chat("sim/m");
    task["input"]["max_tokens"] = 800.into();
    let ids = daemon.submit_all(&vec![task; 200]);
    let used = || {
        let done = daemon.json_lines(&["list", "--state", "succeeded", "--limit", "1000"]);
        done.iter().map(|task| number(task, "/usage/total_tokens")).sum::<u64>()
    };
    let used = eventually("the minute is used up but for one more estimate", SOON, || {
        Some(used()).filter(|used| *used > 2000 - 810)
    });
    let first = daemon.task(&ids[0]);
    assert!(used <= 2000, "{used}");
    assert!(number(&first, "/usage/total_tokens") < 100, "{first}");
    assert_eq!(number(&model.stats(), "/open_requests_max"), 2);
    assert_eq!(count(&daemon, "failed"), 0);
}

#[test]
fn calls_of_an_earlier_broker_are_put_right_by_the_next() {
    let model = quick(300);
    let config = format!("{FOUR_WORKERS}{}", provider("sim", &model.url, "tpm = 2000"));
    let daemon = Daemon::start(&config);
    let mut task = chat("sim/m");
    task["input"]["max_tokens"] = 800.into();
    let ids = daemon.submit_all(&vec![task; 6]);
    eventually_eq(2, || number(&model.stats(), "/open_requests"));
    daemon.kill(Role::Broker);
    all_succeed(&daemon, &ids);
    let stats = model.stats();
    assert_eq!((number(&stats, "/requests"), number(&stats, "/open_requests_max")), (6, 2));
}

#[test]
fn a_429_closes_the_door_for_everybody() {
    let model = quick(0);
    let daemon = Daemon::start(&format!("{FOUR_WORKERS}{}", provider("sim", &model.url, "")));
    let refused = daemon.submit_all(&[chat("sim/fault-429-retry-after:1")]);
    daemon.until(&refused[0], "scheduled");
    let others = daemon.submit_all(&vec![chat("sim/m"); 20]);
    all_succeed(&daemon, &[refused, others].concat());
    let times = times_ms(&model.stats());
    assert_eq!(times.len(), 22, "{times:?}");
    // The model's clock is cut to milliseconds.
    assert!(times[1] >= times[0] + 999, "{times:?}");
}

#[test]
fn a_failing_provider_is_left_alone_and_tried_once() {
    let model = Model::start(&["--first-token-ms", "0", "--fault", "500:6"]);
    let settings = "max_concurrent = 1\nbreaker = { failures = 5, cooldown = '1s' }";
    let queue = "[queue]\nmax_attempts = 10\nretry_backoff = '10ms'\n";
    let daemon = Daemon::start(&format!("{queue}{}", provider("sim", &model.url, settings)));
    let ids = daemon.submit_all(&vec![chat("sim/m"); 10]);
    all_succeed(&daemon, &ids);
    let times = times_ms(&model.stats());
    assert_eq!(times.len(), 16, "{times:?}");
    assert!(times[5] >= times[4] + 999, "five failures open it: {times:?}");
    assert!(times[6] >= times[5] + 999, "the probe failed: {times:?}");
    let ended: Vec<_> = ids.iter().flat_map(|id| outcomes(&daemon.task(id))).collect();
    assert_eq!(ended.iter().filter(|outcome| *outcome == "failed").count(), 6, "{ended:?}");
}

#[test]
fn a_dead_provider_costs_five_connections_and_no_task() {
    let model = quick(0);
    let (dead, connections) = hangs_up();
    let settings = "max_concurrent = 1\nbreaker = { failures = 5, cooldown = '10m' }";
    let config = [
        FOUR_WORKERS.to_owned(),
        "[models.default]\nchain = ['dead/m', 'sim/m']\n".to_owned(),
        provider("dead", &dead, settings),
        provider("sim", &model.url, ""),
    ];
    let daemon = Daemon::start(&config.concat());
    let ids = daemon.submit_all(&vec![chat("default"); 50]);
    all_succeed(&daemon, &ids);
    assert_eq!(connections.load(Ordering::SeqCst), 5);
    assert_eq!(number(&model.stats(), "/requests"), 50);
    // The next broker knows of it.
    daemon.kill(Role::Broker);
    all_succeed(&daemon, &daemon.submit_all(&vec![chat("default"); 10]));
    assert_eq!(connections.load(Ordering::SeqCst), 5);
    let tasks: Vec<_> = ids.iter().map(|id| daemon.task(id)).collect();
    let fell = tasks.iter().filter(|task| !task["output"]["fallbacks"].is_null()).count();
    assert_eq!(fell, 5);
    assert!(tasks.iter().all(|task| outcomes(task) == ["succeeded"]));
}

/// A server that takes connections and says nothing before it closes them; how many there were.
fn hangs_up() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (url, connections)
}

#[test]
fn no_limit_is_passed_when_brokers_die() {
    const KILLS: u32 = 12;
    const RPM: usize = 60;
    let model = quick(150);
    let limits = format!("max_concurrent = 4\nrpm = {RPM}");
    let daemon = Daemon::start(&format!("{FOUR_WORKERS}{}", provider("sim", &model.url, &limits)));
    let tasks: Vec<_> = (0..80).map(|number| chat(&format!("sim/m-{number}"))).collect();
    daemon.submit_all(&tasks);
    let mut broker = daemon.all_up().broker;
    for _ in 0..KILLS {
        daemon.strike(Role::Broker);
        broker = eventually("another broker", SOON, || {
            let now = daemon.pids()?.broker;
            (now != broker).then_some(now)
        });
        // A few calls end and begin under each.
        let before = number(&model.stats(), "/requests");
        eventually("it grants calls, or the minute is used up", SOON, || {
            let now = number(&model.stats(), "/requests");
            (now > before + 1 || count(&daemon, "running") == 0).then_some(())
        });
    }
    eventually_eq(0, || count(&daemon, "running"));
    let stats = model.stats();
    assert!(number(&stats, "/open_requests_max") <= 4, "{stats}");
    let calls = stats["by_model"].as_object().unwrap();
    // A permit that died with its broker before the worker heard of it counts as spent.
    assert!((RPM / 2..=RPM).contains(&calls.len()), "{} calls", calls.len());
    assert!(calls.values().all(|count| *count == 1), "called twice: {calls:?}");
    assert_eq!(count(&daemon, "failed"), 0);
    assert_eq!(count(&daemon, "succeeded"), calls.len());
}

#[test]
fn fallbacks_get_their_permits_whoever_dies() {
    let model = quick(60);
    let config = [
        FOUR_WORKERS.to_owned(),
        "[queue]\nmax_attempts = 20\n[models.default]\nchain = ['dead/m', 'sim/m']\n".to_owned(),
        provider("dead", "http://127.0.0.1:1/v1", "breaker = { failures = 1_000_000 }"),
        provider("sim", &model.url, "max_concurrent = 3"),
    ];
    let daemon = Daemon::start(&config.concat());
    let ids = daemon.submit_all(&vec![chat("default"); 150]);
    for role in [Role::Broker, Role::Worker(1), Role::Broker, Role::Broker, Role::Worker(2)] {
        let before = number(&model.stats(), "/requests");
        eventually("some more calls", SOON, || {
            (number(&model.stats(), "/requests") > before + 9).then_some(())
        });
        daemon.strike(role);
    }
    all_succeed(&daemon, &ids);
    let stats = model.stats();
    assert_eq!(number(&stats, "/open_requests_max"), 3);
    // Only what a killed worker was calling is called again.
    assert!(number(&stats, "/requests") <= 150 + 2 * 3, "{stats}");
}

#[test]
fn a_dead_workers_permits_come_back() {
    let model = quick(0);
    let limits = "max_concurrent = 2";
    let config = format!("[workers]\nmin = 1\nmax = 1\n{}", provider("sim", &model.url, limits));
    let daemon = Daemon::start(&config);
    let mut ids = daemon.submit_all(&vec![chat("sim/fault-hang:2"); 2]);
    eventually_eq(2, || number(&model.stats(), "/open_requests"));
    ids.extend(daemon.submit_all(&vec![chat("sim/m"); 10]));
    assert_eq!(count(&daemon, "queued"), 10);
    daemon.kill(Role::Worker(1));
    all_succeed(&daemon, &ids);
    let stats = model.stats();
    assert_eq!((number(&stats, "/open_requests_max"), number(&stats, "/requests")), (2, 14));
}

/// How long a call may outlive the wish for it.
const CLOSED_WITHIN: Duration = Duration::from_millis(100);

#[test]
fn a_call_that_nobody_wants_is_closed_at_once() {
    let model = quick(0);
    let daemon = Daemon::start(&provider("sim", &model.url, ""));
    for fault in ["hang", "hang-mid-stream", "endless"] {
        let name = format!("sim/fault-{fault}");
        let calls = |options: &[&str]| {
            let id = daemon.submit("chat", &json!({ "prompt": "x", "model": name }), options);
            eventually_eq(1, || number(&model.stats(), "/open_requests"));
            id
        };
        let cancelled = calls(&[]);
        daemon.ok(&["cancel", &cancelled]);
        closes(&model, "a cancel");
        daemon.until(&cancelled, "cancelled");

        let late = calls(&["--timeout", "500ms", "--max-attempts", "1"]);
        let task = daemon.until(&late, "failed");
        closes(&model, "a timeout");
        assert_eq!(text(&task, "/error/kind"), "timeout", "{task}");
        assert!(number(&task, "/run_ms") < 600, "{task}");
    }
    daemon.submit("chat", &json!({ "prompt": "x", "model": "sim/fault-hang" }), &[]);
    eventually_eq(1, || number(&model.stats(), "/open_requests"));
    daemon.ok(&["stop", "--now"]);
    closes(&model, "a stop");

    let run = ["run", "chat", r#"{"prompt":"x"}"#, "--provider-url", &model.url];
    let mut run_command = command();
    run_command.args(run).args(["--model", "fault-hang"]).stderr(Stdio::null());
    let mut run = run_command.spawn().unwrap();
    eventually_eq(1, || number(&model.stats(), "/open_requests"));
    let pid = Pid::from_raw(i32::try_from(run.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    closes(&model, "an interrupt");
    assert_eq!(run.wait().unwrap().code(), Some(130));
}

#[track_caller]
fn closes(model: &Model, by: &str) {
    eventually(&format!("{by} closes the call"), CLOSED_WITHIN, || {
        (number(&model.stats(), "/open_requests") == 0).then_some(())
    });
}

/// The server saw them, and counts them: whoever cuts calls short gets no more of them.
#[test]
fn calls_that_are_cut_short_count() {
    let model = quick(0);
    let daemon = Daemon::start(&provider("sim", &model.url, "rpm = 3"));
    let task = json!({ "kind": "chat", "input": { "prompt": "a", "model": "sim/fault-hang" },
        "timeout": "200ms", "max_attempts": 1 });
    let ids = daemon.submit_all(&vec![task; 6]);
    eventually_eq(3, || count(&daemon, "failed"));
    for id in ids.iter().filter(|id| daemon.state(id) == "queued") {
        daemon.ok(&["cancel", id]);
    }
    let cancelled = daemon.submit("chat", &json!({ "prompt": "b", "model": "sim/m" }), &[]);
    let waits = daemon.task(&cancelled);
    assert_eq!(waits["waiting_reason"], "sim: its 3 requests a minute are used up", "{waits}");
    assert_eq!(waits["position"], 1, "those before it were cancelled: {waits}");
    assert_eq!(number(&model.stats(), "/requests"), 3);
    assert_eq!(number(&daemon.json(&["info"])["providers"][0], "/rpm_used"), 3);
}
