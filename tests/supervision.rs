//! What the master does about workers: reloads, hangs, growth, boots that fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::processes::Process;
use support::{Daemon, Role, SOON, Value, eventually, json, number, outcomes, pause, text};

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it is there");
}

fn workers_of(info: &Value) -> Vec<i64> {
    info["workers"].as_array().unwrap().iter().filter_map(|one| one["pid"].as_i64()).collect()
}

/// The task was lost once for this reason, without being blamed, and has succeeded since.
#[track_caller]
fn assert_lost_once(task: &Value, reason: &str) {
    assert_eq!(outcomes(task), ["worker_lost", "succeeded"], "{task}");
    assert_eq!(text(task, "/attempts/0/error/cause/reason"), reason, "{task}");
}

#[test]
fn a_reload_replaces_every_worker_and_takes_new_limits() {
    let daemon = Daemon::start("[workers]\nmin = 3\nmax = 3\n");
    let before = daemon.all_up();
    let long = daemon.submit("sleep", &json!({ "seconds": 1.5 }), &[]);
    daemon.until(&long, "running");
    daemon.configure("[workers]\nmin = 2\nmax = 2\nconcurrency = 7\n[queue]\nmax_queued = 1\n");
    let said = daemon.ok(&["reload", "--wait"]);
    assert!(said.starts_with("reloaded: ") && said.contains("generation 2"), "{said}");
    let info = daemon.json(&["info"]);
    assert_eq!((number(&info, "/generation"), &info["rolled"]), (2, &json!(true)));
    assert_eq!((number(&info, "/scale/min"), number(&info, "/scale/max")), (2, 2));
    // Limits hold at once, for the broker that was there before.
    daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    daemon.fails(5, &["submit", "noop", "--delay", "1h"]);
    // What ran was not hurried.
    let task = daemon.until(&long, "succeeded");
    assert_eq!(outcomes(&task), ["succeeded"], "{task}");
    let after = daemon.all_up();
    assert_eq!((after.master, after.broker), (before.master, before.broker));
    assert_eq!(after.workers.len(), 2);
    assert!(after.workers.iter().all(|pid| !before.workers.contains(pid)));
    assert!(info["workers"].as_array().unwrap().iter().all(|one| one["capacity"] == 7));
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_with_line_and_key() {
    let daemon = Daemon::start("[workers]\nmin = 2\n");
    let before = daemon.all_up();
    daemon.configure("[workers]\nmin = 2\nmux = 3\n");
    let told = daemon.fails(2, &["reload", "--wait"]);
    assert!(told.contains("line 3") && told.contains("mux"), "{told}");
    // The same by signal: it stands in the log.
    daemon.signal(Signal::SIGHUP);
    eventually("the log tells", SOON, || {
        (daemon.log().matches("not reloaded: ").count() == 2).then_some(())
    });
    // A key that cannot be read is found before it is in force, too.
    daemon.configure(
        "[providers.p]\nbase_url = \"http://127.0.0.1:1/v1\"\napi_key_file = \"/nowhere\"\n",
    );
    assert!(daemon.fails(2, &["reload"]).contains("/nowhere"));
    fs::remove_file(daemon.file("forq.toml")).unwrap();
    assert!(daemon.fails(2, &["reload"]).contains("no such file"));
    assert_eq!(daemon.all_up(), before);
    assert_eq!(number(&daemon.json(&["info"]), "/generation"), 1);
}

/// What an editor, a full disk or a wrong copy may leave where the file was.
#[test]
fn a_file_that_is_no_configuration_changes_nothing() {
    let daemon = Daemon::start("[workers]\nmin = 2\nmax = 2\n");
    let before = daemon.all_up();
    let file = daemon.file("forq.toml");
    let refused = |what: &str| {
        let began = Instant::now();
        let told = daemon.fails(2, &["reload", "--wait"]);
        assert!(told.contains(what) && told.contains("forq.toml"), "{what}: {told}");
        assert!(told.len() < 8 << 10, "{} bytes of error", told.len());
        assert!(began.elapsed() < SOON / 2, "{what}: {:?}", began.elapsed());
        // By signal as well, and whoever asks meanwhile is answered.
        let so_far = daemon.log().matches("not reloaded: ").count();
        daemon.signal(Signal::SIGHUP);
        eventually("the log tells", SOON, || {
            (daemon.log().matches("not reloaded: ").count() > so_far).then_some(())
        });
        assert_eq!(daemon.all_up(), before);
        assert_eq!(number(&daemon.json(&["info"]), "/generation"), 1);
    };
    let contents: &[(&[u8], &str)] = &[
        (b"[workers]\nmin = \xff\xfe\n", "UTF-8"),
        (b"\0\0\0\0", "line 1"),
        (b"\x7fELF\x02\x01\x01", "line 1"),
        (b"[workers]\nmin = ", "line 2"),
        (&vec![b'#'; (1 << 20) + 1], "larger than"),
        (&vec![b'['; 1 << 20], "line 1"),
        (&[b"a = ".as_slice(), &vec![b'['; 1 << 19]].concat(), "line 1"),
        (&b"x".repeat(1 << 20), "line 1"),
        (&b"a = 1\n".repeat(1 << 17), "line 2"),
        (&[b"a".as_slice(), &b".a".repeat(1 << 18), b" = 1"].concat(), "line 1"),
    ];
    for (content, what) in contents {
        fs::write(&file, content).unwrap();
        refused(what);
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused("cannot be read");
    fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    refused("cannot be read");
    fs::remove_file(&file).unwrap();
    // It would be waited for until somebody writes.
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused("is a pipe");
    fs::remove_file(&file).unwrap();

    daemon.configure("[workers]\nmin = 2\nmax = 2\n");
    daemon.ok(&["reload", "--wait"]);
    let after = daemon.all_up();
    assert!(after.workers.iter().all(|pid| !before.workers.contains(pid)));
    assert_eq!((after.master, after.broker), (before.master, before.broker));
}

#[test]
fn a_worker_that_stands_still_does_not_hold_up_a_reload() {
    let daemon = Daemon::start("[workers]\nmin = 2\nmax = 2\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    // It has no task: it is told to end, and does not hear it.
    signal(before.workers[0], Signal::SIGSTOP);
    daemon.ok(&["reload", "--wait"]);
    let info = daemon.info_when("it is gone", |info| workers_of(info).len() == 2);
    assert!(
        workers_of(&info)
            .iter()
            .all(|pid| before.workers.iter().all(|old| i64::from(*old) != *pid))
    );
}

/// Issue-sized: ten reloads while work goes on.
#[test]
fn ten_reloads_under_load_cost_no_task_an_attempt() {
    let daemon = Daemon::start("[workers]\nmin = 3\nmax = 3\n");
    let first = daemon.all_up();
    let mut ids = Vec::new();
    let mut most = 0;
    for round in 0..10 {
        let tasks: Vec<Value> = (0..60)
            .map(|n| json!({ "kind": "sleep", "input": { "seconds": 0.01 * f64::from(n % 30) } }))
            .collect();
        ids.extend(daemon.submit_all(&tasks));
        if round % 2 == 0 {
            daemon.ok(&["reload"]);
        } else {
            daemon.signal(Signal::SIGHUP);
        }
        let children = |daemon: &Daemon| {
            let tree = daemon.tree();
            tree.iter().filter(|process| process.name().starts_with("forq: worker")).count()
        };
        let until = Instant::now() + Duration::from_millis(120);
        while Instant::now() < until {
            most = most.max(children(&daemon));
            pause(Duration::from_millis(3));
        }
    }
    daemon.wait_for_all(&ids, "20s");
    daemon.ok(&["reload", "--wait"]);
    assert!(most <= 4, "{most} workers at once: more than max and surge");
    for id in &ids {
        let task = daemon.task(id);
        assert_eq!(outcomes(&task), ["succeeded"], "{task}");
    }
    let last = daemon.info_when("old ones are gone", |info| workers_of(info).len() == 3);
    let old: BTreeSet<i64> = first.workers.iter().map(|pid| i64::from(*pid)).collect();
    assert!(workers_of(&last).iter().all(|pid| !old.contains(pid)));
    assert_eq!(number(&daemon.json(&["stats"]), "/worker_lost"), 0);
}

#[test]
fn a_worker_that_stands_still_is_replaced_and_its_tasks_run_again() {
    let daemon = Daemon::start("[workers]\nmin = 2\nmax = 2\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    // Tasks in both, two at least in the one that stops: nobody is to blame.
    let tasks = vec![json!({ "kind": "sleep", "input": { "seconds": 4 } }); 6];
    let ids = daemon.submit_all(&tasks);
    ids.iter().for_each(|id| drop(daemon.until(id, "running")));
    signal(before.workers[0], Signal::SIGSTOP);
    let info = daemon.info_when("it is replaced", |info| {
        let worker = &info["workers"][0];
        worker["state"] == "ready" && worker["pid"] != before.workers[0]
    });
    let exit = text(&info, "/workers/0/last_exit");
    assert!(exit.contains("its event loop stood still"), "{exit}");
    daemon.wait_for_all(&ids, "20s");
    let tasks: Vec<Value> = ids.iter().map(|id| daemon.task(id)).collect();
    let lost: Vec<&Value> = tasks.iter().filter(|task| outcomes(task).len() > 1).collect();
    assert_eq!(lost.len(), 3, "{lost:?}");
    lost.iter().for_each(|task| assert_lost_once(task, "heartbeat"));
    // The other one slept for twice the timeout in its tasks, and was left alone.
    assert_eq!(daemon.all_up().workers[1], before.workers[1]);
}

#[test]
fn a_broker_that_stands_still_is_replaced_and_no_task_notices() {
    let daemon = Daemon::start("[workers]\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    let id = daemon.submit("sleep", &json!({ "seconds": 3 }), &[]);
    daemon.until(&id, "running");
    signal(before.broker, Signal::SIGSTOP);
    let task = daemon.until(&id, "succeeded");
    assert_eq!(outcomes(&task), ["succeeded"], "{task}");
    let after = daemon.all_up();
    assert_ne!(after.broker, before.broker);
    assert_eq!(after.workers, before.workers);
}

#[test]
fn a_master_that_slept_kills_nobody() {
    let daemon = Daemon::start("[workers]\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    signal(before.master, Signal::SIGSTOP);
    let id = daemon.submit("sleep", &json!({ "seconds": 4 }), &[]);
    daemon.until(&id, "succeeded");
    signal(before.master, Signal::SIGCONT);
    // It has looked at everybody once it can say so.
    daemon.ok(&["reload", "--wait"]);
    let restarts = |info: &Value| {
        let of = |worker: &Value| number(worker, "/restarts");
        info["workers"].as_array().unwrap().iter().map(of).sum::<u64>()
    };
    assert_eq!(restarts(&daemon.json(&["info"])), 0);
    assert!(!daemon.log().contains("aborted"), "{}", daemon.log());
}

#[test]
fn everybody_may_sleep_at_once() {
    let daemon = Daemon::start("[workers]\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    let tree = daemon.tree();
    for process in &tree {
        signal(process.pid, Signal::SIGSTOP);
    }
    let sleep_began = Instant::now();
    eventually("the night is over", SOON, || {
        (sleep_began.elapsed() > Duration::from_secs(4)).then_some(())
    });
    // The master wakes first, which is the worst of all orders.
    for process in &tree {
        signal(process.pid, Signal::SIGCONT);
    }
    daemon.ok(&["submit", "noop", "--wait"]);
    assert_eq!(daemon.all_up(), before);
}

#[test]
fn workers_are_replaced_after_their_tasks_and_none_is_lost() {
    let daemon =
        Daemon::start("[workers]\nmin = 2\nmax = 2\nmax_tasks = 20\nmax_tasks_jitter = 10\n");
    let before = daemon.all_up();
    let tasks = vec![json!({ "kind": "noop", "input": {} }); 200];
    let ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, "20s");
    let info = daemon.info_when("both are replaced", |info| {
        let pids = workers_of(info);
        info["rolled"] == true
            && pids.len() == 2
            && pids.iter().all(|pid| before.workers.iter().all(|old| i64::from(*old) != *pid))
    });
    assert!(info["workers"].as_array().unwrap().iter().all(|one| one["restarts"] == 0), "{info}");
    for id in &ids {
        assert_eq!(outcomes(&daemon.task(id)), ["succeeded"]);
    }
}

#[test]
fn a_pool_that_cannot_boot_is_degraded_until_its_cause_is_gone() {
    let mut daemon = Daemon::prepare("state", "");
    let key = daemon.file("key");
    fs::write(&key, "secret").unwrap();
    daemon.configure(&format!(
        "[workers]\nmin = 2\nmax = 2\n[providers.p]\nbase_url = \"http://127.0.0.1:1/v1\"\n\
         api_key_file = {key:?}\n"
    ));
    daemon.start_again();
    let before = daemon.all_up();
    fs::remove_file(&key).unwrap();
    // Their places cannot be taken any more.
    signal(before.workers[0], Signal::SIGKILL);
    signal(before.workers[1], Signal::SIGKILL);
    let info = daemon.info_when("it is degraded", |info| info["phase"] == "degraded");
    let reason = text(&info, "/reason");
    assert!(reason.contains("workers do not start: exit code 1"), "{reason}");
    // It answers, takes work, and says little.
    let began = Instant::now();
    let id = daemon.submit("noop", &json!({}), &[]);
    assert!(began.elapsed() < Duration::from_secs(1));
    fs::write(&key, "secret").unwrap();
    daemon.until(&id, "succeeded");
    daemon.info_when("it is well again", |info| info["phase"] == "running");
    assert!(daemon.log().contains("workers start again"));
    assert_eq!(daemon.all_up().broker, before.broker);
}

#[test]
fn a_broker_that_does_not_stay_up_is_a_trouble_until_it_does() {
    let daemon = Daemon::start("");
    eventually("the master has seen enough", SOON, || {
        daemon.strike(Role::Broker);
        let status = fs::read_to_string(daemon.state_dir().join("status.json")).ok()?;
        let status: Value = serde_json::from_str(&status).ok()?;
        let reason = status["reason"].as_str()?.to_owned();
        (status["phase"] == "degraded").then_some(())?;
        assert!(reason.contains("the broker does not stay up: ended by SIGKILL"), "{reason}");
        Some(())
    });
    daemon.ok(&["submit", "noop", "--wait"]);
    daemon.info_when("it is well again", |info| info["phase"] == "running");
}

#[test]
fn a_stop_in_the_middle_of_a_reload_is_a_stop() {
    let mut daemon = Daemon::start("[workers]\nmin = 3\nmax = 3\ndrain_timeout = \"1s\"\n");
    let id = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
    daemon.until(&id, "running");
    // All at once, several times each.
    for _ in 0..5 {
        for sent in [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGUSR1, Signal::SIGTTOU] {
            daemon.signal(sent);
        }
    }
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGHUP);
    let status = daemon.gone(SOON);
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    daemon.start_again();
    assert_eq!(outcomes(&daemon.until(&id, "running")), ["requeued", "running"]);
}

#[test]
fn signals_at_boot_are_heeded() {
    let mut daemon = Daemon::prepare("state", "[workers]\nmin = 2\nmax = 4\n");
    daemon.spawn();
    eventually("the master has its name", SOON, || {
        (daemon.tree().first()?.name() == "forq: master").then_some(())
    });
    for sent in [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGHUP] {
        daemon.signal(sent);
    }
    let info = daemon.info_when("the pool has settled", |info| {
        info["phase"] == "running" && info["rolled"] == true && number(info, "/generation") >= 2
    });
    assert!(workers_of(&info).len() >= 2, "{info}");
    daemon.strike(Role::Worker(1));
    daemon.ok(&["submit", "noop", "--wait"]);
}

/// It has been replaced, so it is told to end; it hears nothing, and is no reason to wait.
#[test]
fn a_retired_worker_that_stands_still_holds_up_no_reload() {
    let daemon = Daemon::start("[workers]\nmin = 2\nmax = 2\nheartbeat_timeout = \"2s\"\n");
    let before = daemon.all_up();
    signal(before.workers[0], Signal::SIGSTOP);
    daemon.ok(&["reload"]);
    daemon.info_when("all are replaced", |info| info["rolled"] == true);
    eventually("the old one is gone", SOON, || {
        Process::of(before.workers[0]).is_none().then_some(())
    });
    let now = daemon.all_up();
    assert!(now.workers.iter().all(|pid| !before.workers.contains(pid)), "{now:?}");
}
