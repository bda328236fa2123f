//! Handlers that misbehave: who notices, who pays for it, and who is left alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::commands::{append_after, shell};
use support::{Daemon, Value, json, number, outcomes, text};

fn start(config: &str) -> Daemon {
    Daemon::start_program(&support::example("misbehave"), config)
}

fn workers(info: &Value) -> &Vec<Value> {
    info["workers"].as_array().unwrap()
}

/// How the workers that have gone ended, for the slots that say so.
fn last_exits(info: &Value) -> Vec<String> {
    let exits = workers(info).iter().filter_map(|worker| worker["last_exit"].as_str());
    exits.map(str::to_owned).collect()
}

fn restarts(info: &Value) -> u64 {
    workers(info).iter().map(|worker| number(worker, "/restarts")).sum()
}

/// One worker spins, one waits ten times the heartbeat's timeout for a command, one goes on.
#[test]
fn a_worker_that_spins_is_aborted_and_one_that_waits_is_left_alone() {
    let daemon =
        start("[workers]\nmin = 3\nmax = 3\nconcurrency = 1\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    let waits = daemon.submit("exec", &shell("sleep 20", &[]), &[]);
    let waits_at = number(&daemon.until(&waits, "running"), "/worker_pid");
    let spins = daemon.submit("spin", &json!({}), &["--max-attempts", "2"]);
    let spins_at = number(&daemon.until(&spins, "running"), "/worker_pid");
    let others = daemon.submit_all(&vec![json!({ "kind": "noop" }); 50]);
    daemon.wait_for_all(&others, "20s");
    for id in &others {
        let task = daemon.task(id);
        assert_eq!(outcomes(&task), ["succeeded"], "{task}");
        assert_ne!(number(&task, "/worker_pid"), spins_at, "{task}");
    }

    // It was alone: each death is put down to it.
    let task = daemon.until(&spins, "failed");
    assert_eq!(outcomes(&task), ["worker_lost", "worker_lost"], "{task}");
    for error in ["/attempts/0/error", "/attempts/1/error", "/error"] {
        assert_eq!(text(&task, &format!("{error}/kind")), "worker_lost", "{task}");
        assert_eq!(text(&task, &format!("{error}/cause/reason")), "heartbeat", "{task}");
        // So that there is a core to look at.
        assert_eq!(text(&task, &format!("{error}/cause/signal")), "SIGABRT", "{task}");
    }
    let info = daemon.info_when("who died is replaced", |info| {
        restarts(info) == 2 && workers(info).iter().all(|worker| worker["state"] != "starting")
    });
    let exits = last_exits(&info);
    let expected = "ended by SIGABRT: its event loop stood still";
    assert!(!exits.is_empty() && exits.iter().all(|exit| exit == expected), "{info}");

    daemon.wait_for_all(std::slice::from_ref(&waits), "40s");
    let task = daemon.task(&waits);
    assert_eq!(outcomes(&task), ["succeeded"], "{task}");
    assert!(number(&task, "/run_ms") >= 20_000, "{task}");
    let after = daemon.all_up();
    assert!(after.workers.iter().any(|pid| u64::try_from(*pid) == Ok(waits_at)), "{after:?}");
    assert_eq!(after.broker, before.broker);
}

#[test]
fn a_worker_that_aborts_by_itself_is_no_matter_of_its_heartbeat() {
    let daemon = start("[workers]\nmin = 1\nmax = 1\n");
    let id = daemon.submit("abort", &json!({}), &["--max-attempts", "1"]);
    let task = daemon.until(&id, "failed");
    assert_eq!(text(&task, "/error/cause/reason"), "crash", "{task}");
    assert_eq!(text(&task, "/error/cause/signal"), "SIGABRT", "{task}");
    let info = daemon.info_when("its end is told", |info| restarts(info) == 1);
    assert_eq!(last_exits(&info), ["ended by SIGABRT"], "{info}");
}

#[test]
fn a_worker_far_over_its_memory_is_killed_and_its_tasks_run_again() {
    let daemon = start("[workers]\nmin = 1\nmax = 1\nmax_memory = \"64MiB\"\n");
    let before = daemon.all_up();
    let [once, gate, file] = ["once", "gate", "traces"].map(|name| daemon.file(name));
    let company = daemon.submit("exec", &append_after(&gate, &file, "done"), &[]);
    daemon.until(&company, "running");
    let input = json!({ "mib": 400, "once": once, "until": gate });
    let hoard = daemon.submit("hoard", &input, &[]);
    let info = daemon.info_when("it is replaced", |info| restarts(info) == 1);
    assert_eq!(last_exits(&info), ["ended by SIGKILL: over twice workers.max_memory"], "{info}");
    // The second time it finds that it was there before.
    daemon.until(&hoard, "succeeded");
    std::fs::write(&gate, "").unwrap();
    daemon.until(&company, "succeeded");
    for id in [&hoard, &company] {
        let task = daemon.task(id);
        assert_eq!(outcomes(&task), ["worker_lost", "succeeded"], "{task}");
        assert_eq!(text(&task, "/attempts/0/error/cause/reason"), "memory", "{task}");
        assert_eq!(text(&task, "/attempts/0/error/cause/signal"), "SIGKILL", "{task}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "done\n");
    assert_ne!(daemon.all_up().workers, before.workers);
}

#[test]
fn a_worker_over_its_memory_is_replaced_after_its_tasks() {
    let daemon = start("[workers]\nmin = 1\nmax = 1\nmax_memory = \"64MiB\"\n");
    let before = daemon.all_up().workers[0];
    let [once, gate] = ["once", "gate"].map(|name| daemon.file(name));
    let input = json!({ "mib": 70, "once": once, "until": gate });
    let hoard = daemon.submit("hoard", &input, &[]);
    let info = daemon.info_when("another one takes the tasks", |info| {
        let is = |worker: &&Value, state| worker["state"] == state;
        let draining = workers(info).iter().find(|worker| is(worker, "draining"));
        draining.is_some_and(|old| old["pid"] == before)
            && workers(info).iter().any(|worker| is(&worker, "ready"))
    });
    assert_eq!(workers(&info).len(), 2, "{info}");
    let next = daemon.submit("noop", &json!({}), &[]);
    assert_ne!(daemon.until(&next, "succeeded")["worker_pid"], before);
    assert_eq!(daemon.state(&hoard), "running");
    std::fs::write(&gate, "").unwrap();
    let task = daemon.until(&hoard, "succeeded");
    assert_eq!(outcomes(&task), ["succeeded"], "{task}");
    assert_eq!(task["worker_pid"], before, "{task}");
    let info = daemon.info_when("the old one has gone", |info| workers(info).len() == 1);
    assert_ne!(workers(&info)[0]["pid"], before, "{info}");
    assert_eq!(restarts(&info), 0, "{info}");
}

/// Everything that a stopped worker is sent stays with the broker, which waits for nobody.
#[test]
fn a_worker_that_does_not_read_holds_up_nobody() {
    const TASKS: usize = 300;
    const ANSWER_MAX: Duration = Duration::from_secs(1);
    let daemon = start("[workers]\nmin = 2\nmax = 2\nheartbeat_timeout = \"10m\"\n");
    let before = daemon.all_up();
    let stopped = Pid::from_raw(before.workers[0]);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let mut slowest = Duration::ZERO;
    let mut look = || {
        let began = Instant::now();
        daemon.json(&["info"]);
        slowest = slowest.max(began.elapsed());
    };
    let prompt = json!({ "kind": "swallow", "input": { "text": "x".repeat(1_000_000) } });
    let prompts = format!("{prompt}\n").repeat(TASKS);
    let file = daemon.file("prompts.jsonl");
    std::fs::write(&file, prompts).unwrap();
    let mut submit = daemon.background(&["submit", "--jsonl", &file.to_string_lossy()]);
    let is_held = |task: &Value| task["worker_pid"] == stopped.as_raw();
    let deadline = Instant::now() + Duration::from_secs(300);
    // All end but those that the stopped one was given.
    let held = loop {
        look();
        if submit.try_wait().unwrap().is_some() {
            let left = daemon.json_lines(&["list", "--state", "running", "--state", "queued"]);
            if left.iter().all(is_held) {
                break left;
            }
        }
        assert!(Instant::now() < deadline, "{}", daemon.json(&["stats"]));
    };
    look();
    assert!(slowest < ANSWER_MAX, "`forq info` took {slowest:?}");
    let submitted = submit.wait_with_output().unwrap();
    assert!(submitted.status.success(), "{}", support::shown(&submitted));
    let ids: Vec<String> =
        String::from_utf8(submitted.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(ids.len(), TASKS);
    assert!(!held.is_empty(), "it was given nothing");
    assert_eq!(number(&daemon.json(&["stats"]), "/succeeded"), (TASKS - held.len()) as u64);

    kill(stopped, Signal::SIGCONT).unwrap();
    daemon.wait_for_all(&ids, "30s");
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/succeeded"), TASKS as u64, "{stats}");
    assert_eq!((number(&stats, "/retried"), number(&stats, "/worker_lost")), (0, 0), "{stats}");
    for id in held.iter().map(|task| text(task, "/id")) {
        let task = daemon.task(&id);
        assert_eq!(outcomes(&task), ["succeeded"], "{}", task["attempts"]);
        assert_eq!(task["worker_pid"], stopped.as_raw());
        assert_eq!(number(&task, "/output/bytes"), 1_000_000);
    }
    assert_eq!(daemon.all_up(), before);
}

#[test]
fn a_worker_whose_loop_is_late_takes_less() {
    let daemon = start("[workers]\nmin = 1\nmax = 1\nconcurrency = 10\n");
    let until = daemon.file("until");
    let id = daemon.submit("stutter", &json!({ "until": until }), &[]);
    let info =
        daemon.info_when("it takes less", |info| number(&workers(info)[0], "/capacity") < 10);
    assert_eq!(number(&workers(&info)[0], "/capacity"), 8, "{info}");
    std::fs::write(&until, "").unwrap();
    assert_eq!(daemon.until(&id, "succeeded")["attempt"], 1);
}

#[test]
fn when_memory_is_short_new_work_is_refused_and_the_rest_goes_on() {
    let config = |high: f64| format!("[workers]\nmin = 1\n[queue]\nmemory_high = {high}\n");
    let daemon = start(&config(1.0));
    let used = daemon.info_when("memory is looked at", |info| {
        info["memory"]["used"].as_f64().is_some_and(|used| used > 0.0)
    });
    // Hardly any machine is that empty, but then it is filled.
    let missing = (0.07 - used["memory"]["used"].as_f64().unwrap()).max(0.0);
    let total = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total_kib: f64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    let ballast = vec![1_u8; (missing * total_kib * 1024.0) as usize];
    daemon.ok(&["queue", "pause"]);
    let ids: Vec<String> = (0..10).map(|_| daemon.submit("noop", &json!({}), &[])).collect();
    daemon.configure(&config(0.05));
    daemon.ok(&["reload", "--wait"]);
    daemon.info_when("new work is refused", |info| info["memory"]["refusing"] == true);
    let refused = daemon.fails(5, &["submit", "noop"]);
    assert!(refused.contains("queue.memory_high = 5 %") && refused.contains("in 5 s"), "{refused}");
    daemon.ok(&["queue", "resume"]);
    daemon.wait_for_all(&ids, "20s");
    daemon.configure(&config(1.0));
    daemon.ok(&["reload", "--wait"]);
    daemon.info_when("there is room again", |info| info["memory"]["refusing"] == false);
    daemon.submit("noop", &json!({}), &[]);
    drop(ballast);
}
