//! What is shown of an instance: lists, numbers, copies; and what is forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use rusqlite::{Connection, OpenFlags};
use support::commands::shell;
use support::{Daemon, SOON, Value, eventually, json, number, pause, text};

fn ids(tasks: &[Value]) -> Vec<String> {
    tasks.iter().map(|task| text(task, "/id")).collect()
}

/// Every field of `names` is there, whatever it is.
#[track_caller]
fn assert_has(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "no {name} in {value}");
    }
}

#[test]
fn a_list_is_filtered_and_paged() {
    let daemon = Daemon::start("");
    let noops = daemon.submit_all(&vec![json!({ "kind": "noop" }); 7]);
    let fails = json!({
        "kind": "exec", "input": shell("exit 1", &[]), "queue": "q", "max_attempts": 1,
    });
    let failed = daemon.submit_all(&vec![fails; 3]);
    daemon.wait_for_all(&noops, "20s");
    daemon.wait_for_all(&failed, "20s");
    let newest_first: Vec<String> = noops.iter().chain(&failed).rev().cloned().collect();

    let listed = |args: &[&str]| ids(&daemon.json_lines(&[&["list"], args].concat()));
    assert_eq!(listed(&[]), newest_first);
    assert_eq!(listed(&["--state", "failed"]), newest_first[..3]);
    assert_eq!(listed(&["--kind", "noop"]), newest_first[3..]);
    assert_eq!(listed(&["--queue", "q"]), newest_first[..3]);
    assert_eq!(listed(&["--queue", "q", "--state", "succeeded"]), [""; 0]);
    assert_eq!(listed(&["--state", "failed", "--state", "succeeded"]), newest_first);
    assert_eq!(listed(&["--limit", "4"]), newest_first[..4]);
    let mut paged: Vec<String> = Vec::new();
    loop {
        let page = match paged.last() {
            None => listed(&["--limit", "4"]),
            Some(last) => listed(&["--limit", "4", "--after", last]),
        };
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, newest_first);
    assert!(daemon.fails(2, &["list", "--state", "done"]).contains("succeeded"));
    let table = daemon.ok(&["list", "--limit", "1"]);
    assert!(table.contains(&newest_first[0]) && table.contains("failed"), "{table}");
}

#[test]
fn info_tells_every_field() {
    let config = "[workers]\nmin = 2\nmax = 3\nconcurrency = 5\n\
                  [providers.sim]\nbase_url = \"http://127.0.0.1:1/v1\"\n";
    let daemon = Daemon::start(config);
    let running = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
    daemon.until(&running, "running");
    let info = daemon.json(&["info"]);
    assert_has(
        &info,
        &[
            "version",
            "phase",
            "uptime_s",
            "master",
            "broker",
            "workers",
            "scale",
            "queue",
            "providers",
        ],
    );
    assert_eq!(number(&info, "/master/pid"), daemon.master() as u64);
    assert!(number(&info, "/master/rss_bytes") > 0 && number(&info, "/broker/rss_bytes") > 0);
    assert_eq!(number(&info, "/broker/restarts"), 0);
    let workers = info["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for worker in workers {
        assert_has(
            worker,
            &[
                "slot",
                "pid",
                "generation",
                "state",
                "in_flight",
                "capacity",
                "rss_bytes",
                "tasks_done",
                "restarts",
                "last_exit",
            ],
        );
        assert_eq!(worker["capacity"], 5, "{worker}");
        assert_eq!(worker["state"], "ready", "{worker}");
    }
    assert_eq!(workers.iter().map(|worker| number(worker, "/in_flight")).sum::<u64>(), 1);
    assert_eq!((&info["scale"]["min"], &info["scale"]["max"]), (&json!(2), &json!(3)), "{info}");
    assert_has(&info["scale"], &["want", "reason"]);
    let waiting = json!({ "queued": 0, "running": 1, "scheduled": 0, "blocked": 0 });
    for (name, count) in waiting.as_object().unwrap() {
        assert_eq!(&info["queue"][name], count, "{info}");
    }
    assert_has(&info["queue"], &["paused"]);
    assert_eq!(info["providers"][0]["name"], "sim", "{info}");
}

#[test]
fn info_answers_without_a_broker() {
    let daemon = Daemon::start("");
    let pids = daemon.all_up();
    // Stopped rather than dead: it takes the connection and does not answer.
    let broker = nix::unistd::Pid::from_raw(pids.broker);
    nix::sys::signal::kill(broker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let info = daemon.json(&["info"]);
    nix::sys::signal::kill(broker, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(number(&info, "/master_pid"), pids.master as u64, "{info}");
    assert_eq!(info["phase"], "running", "{info}");
}

#[test]
fn stats_count_what_happened() {
    let daemon = Daemon::start("[queue]\nretry_backoff = \"0s\"\n");
    let mut tasks = vec![json!({ "kind": "sleep", "input": { "seconds": 0.1 } }); 10];
    tasks.push(json!({ "kind": "exec", "input": shell("exit 1", &[]), "max_attempts": 3 }));
    let long = json!({ "kind": "sleep", "input": { "seconds": 60 } });
    let mut limited = long.clone();
    limited["timeout_ms"] = json!(100);
    limited["max_attempts"] = json!(1);
    tasks.push(limited);
    let ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, "20s");
    let cancelled = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    daemon.ok(&["cancel", &cancelled]);
    daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    let running = daemon.submit_all(&[long]);
    daemon.until(&running[0], "running");

    let stats = daemon.json(&["stats"]);
    let expected = json!({
        "queued": 0, "running": 1, "scheduled": 1, "blocked": 0, "succeeded": 10, "failed": 2,
        "cancelled": 1, "timed_out": 1, "retried": 2, "worker_lost": 0, "tasks_per_min": 13,
    });
    for (name, count) in expected.as_object().unwrap() {
        assert_eq!(stats.get(name), Some(count), "{name} in {stats}");
    }
    for times in ["wait_ms", "run_ms"] {
        assert_has(&stats[times], &["avg", "p50", "p95", "p99"]);
    }
    assert!((100..2_000).contains(&number(&stats, "/run_ms/p50")), "{stats}");
    assert!((stats["utilisation"].as_f64().unwrap() - 1.0 / 64.0).abs() < 1e-9, "{stats}");
}

#[test]
fn a_backup_is_a_database_with_every_task() {
    let daemon = Daemon::start("");
    let done = daemon.submit("exec", &json!({ "argv": ["echo", "kept"] }), &[]);
    daemon.until(&done, "succeeded");
    daemon.submit_all(&vec![json!({ "kind": "noop" }); 50]);
    let running = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
    daemon.until(&running, "running");
    let file = daemon.file("copy.db");
    let path = file.to_string_lossy();
    daemon.ok(&["backup", &path]);
    daemon.fails(2, &["backup", &path]);

    let copy = Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let one = |sql: &str| copy.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(one("PRAGMA integrity_check"), "ok");
    assert_eq!(one("SELECT count(*) || '' FROM tasks"), "52");
    assert!(one("SELECT output FROM tasks WHERE kind = 'exec'").contains("kept"));
    drop(copy);

    // And a state folder that starts from it has them all.
    let mut restored = Daemon::prepare("state", "");
    std::fs::create_dir(restored.state_dir()).unwrap();
    std::fs::copy(&file, restored.state_dir().join("forq.db")).unwrap();
    restored.start_again();
    assert_eq!(restored.json_lines(&["list", "--limit", "100"]).len(), 52);
    assert_eq!(restored.json(&["result", &done])["stdout"], "kept\n");
    assert_eq!(support::outcomes(&restored.until(&running, "running")), ["requeued", "running"]);
}

#[test]
fn results_are_forgotten_after_their_time() {
    let mut daemon = Daemon::start("[queue]\nresult_ttl = \"1s\"\n");
    let ended = daemon.submit_all(&vec![json!({ "kind": "noop", "key": null }); 600]);
    daemon.wait_for_all(&ended, "20s");
    let delayed = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    // Old results are looked for at a start, and every half a minute.
    pause(std::time::Duration::from_millis(1_100));
    daemon.kill_everything();
    daemon.start_again();
    eventually("only what waits is left", SOON, || {
        (daemon.json_lines(&["list"]).len() == 1).then_some(())
    });
    daemon.fails(6, &["status", &ended[0]]);
    assert_eq!(daemon.state(&delayed), "scheduled");
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/succeeded"), 600, "what is forgotten still counts: {stats}");
}

#[test]
fn a_damaged_or_newer_database_is_refused_and_left_alone() {
    let mut daemon = Daemon::start("");
    daemon.submit("noop", &json!({}), &["--wait"]);
    daemon.ok(&["stop"]);
    daemon.gone(SOON);
    let file = daemon.state_dir().join("forq.db");
    let database = Connection::open(&file).unwrap();
    database.pragma_update(None, "user_version", 999).unwrap();
    drop(database);
    assert_refused(&mut daemon, "newer");
    std::fs::write(
        &file,
        "no database at all, and longer than a header of a hundred bytes".repeat(9),
    )
    .unwrap();
    assert_refused(&mut daemon, "damaged");
}

/// The start ends with one sentence that has this word in it, and nothing was changed.
#[track_caller]
fn assert_refused(daemon: &mut Daemon, word: &str) {
    let file = daemon.state_dir().join("forq.db");
    let before = std::fs::read(&file).unwrap();
    let logged = daemon.log().len();
    daemon.spawn();
    assert_eq!(daemon.gone(SOON).code(), Some(2));
    let log = &daemon.log()[logged..];
    let told: Vec<&str> = log.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains(word) && told[0].contains("forq.db"), "{log}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
