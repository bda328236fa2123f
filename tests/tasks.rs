//! What becomes of one task: when it starts, how often it is tried, how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::time::Duration;

use support::commands::{append, family, shell};
use support::{
    Daemon, SOON, Value, eventually, eventually_eq, json, number, outcomes, processes, text, time,
};

/// Retries without a wait to speak of.
const IMPATIENT: &str = "[queue]\nretry_backoff = \"50ms\"\nretry_backoff_max = \"1s\"\n";

fn fails() -> Value {
    shell("echo tried; echo no >&2; exit 3", &[])
}

#[test]
fn a_task_is_told_whole() {
    let daemon = Daemon::start("");
    let options = ["--priority", "7", "--queue", "q", "--lane", "l", "--key", "k"];
    let input = json!({ "argv": ["echo", "hello"] });
    let id = daemon.submit("exec", &input, &options);
    let task = daemon.until(&id, "succeeded");
    let expected = json!({
        "id": id, "kind": "exec", "state": "succeeded", "waiting_for": null, "priority": 7,
        "queue": "q", "lane": "l", "session": null, "key": "k", "attempt": 1, "max_attempts": 3,
        "input": input, "output": { "exit_code": 0, "stdout": "hello\n", "stderr": "" },
        "usage": null, "error": null, "parent": null, "steps": [],
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(task.get(field), Some(value), "{field} in {task}");
    }
    let (created, started) = (time(&task, "/created_at"), time(&task, "/started_at"));
    let finished = time(&task, "/finished_at");
    assert!(created <= started && started <= finished, "{task}");
    for field in ["/created_at", "/started_at", "/finished_at"] {
        assert_eq!(text(&task, field).len(), "2030-01-31T08:00:00.000Z".len(), "{task}");
    }
    let ms = |from: jiff::Timestamp, to| to - from.as_millisecond();
    assert_eq!(number(&task, "/wait_ms") as i64, ms(created, started.as_millisecond()));
    assert_eq!(number(&task, "/run_ms") as i64, ms(started, finished.as_millisecond()));
    let attempt = &task["attempts"][0];
    assert_eq!(attempt["worker_pid"], task["worker_pid"], "{task}");
    assert_eq!(attempt["started_at"], task["started_at"], "{task}");
    assert_eq!(attempt["ended_at"], task["finished_at"], "{task}");
    let session = daemon.submit("noop", &json!({}), &["--session", "s"]);
    let session = daemon.task(&session);
    assert_eq!((&session["session"], &session["lane"]), (&json!("s"), &Value::Null), "{session}");
}

#[test]
fn a_delayed_task_waits_for_its_time() {
    let daemon = Daemon::start("");
    let then = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(700);
    let delayed = daemon.submit("noop", &json!({}), &["--delay", "700ms"]);
    let dated = daemon.submit("noop", &json!({}), &["--at", &then.to_string()]);
    let past = daemon.submit("noop", &json!({}), &["--at", "2001-01-01T00:00:00Z"]);
    for id in [&delayed, &dated] {
        let task = daemon.task(id);
        assert_eq!(task["state"], "scheduled", "{task}");
        assert_eq!(task["waiting_for"], "delay", "{task}");
    }
    daemon.until(&past, "succeeded");
    for id in [&delayed, &dated] {
        let started = time(&daemon.until(id, "succeeded"), "/started_at");
        assert!(started.as_millisecond() >= then.as_millisecond(), "{started} before {then}");
    }
}

#[test]
fn a_task_that_cannot_start_in_time_expires() {
    let daemon = Daemon::start("");
    daemon.ok(&["queue", "pause"]);
    let waits = daemon.submit("noop", &json!({}), &["--expires", "300ms"]);
    let delayed = daemon.submit("noop", &json!({}), &["--expires", "300ms", "--delay", "1h"]);
    let head = daemon.submit("noop", &json!({}), &["--expires", "300ms", "--lane", "l"]);
    let behind = daemon.submit("noop", &json!({}), &["--lane", "l"]);
    assert_eq!(daemon.state(&behind), "blocked");
    for id in [waits, delayed, head] {
        let task = daemon.until(&id, "cancelled");
        assert_eq!(task["error"]["kind"], "cancelled", "{task}");
        assert!(text(&task, "/error/message").contains("expired"), "{task}");
        assert_eq!((&task["attempt"], outcomes(&task).len()), (&json!(0), 0), "{task}");
    }
    assert_eq!(daemon.state(&behind), "queued", "the expired head gave its turn");
    let started = daemon.submit("sleep", &json!({ "seconds": 0.8 }), &["--expires", "500ms"]);
    daemon.ok(&["queue", "resume"]);
    daemon.until(&started, "succeeded");
}

#[test]
fn a_failing_task_is_tried_again_and_kept_as_a_dead_letter() {
    let daemon = Daemon::start(IMPATIENT);
    let id = daemon.submit("exec", &fails(), &["--max-attempts", "4"]);
    let task = daemon.until(&id, "failed");
    assert_eq!(task["attempt"], 4, "{task}");
    assert_eq!(outcomes(&task), ["failed"; 4]);
    assert_eq!(task["error"]["kind"], "handler", "{task}");
    assert_eq!(task["error"]["cause"]["exit_code"], 3, "{task}");
    assert!(text(&task, "/error/message").contains("no"), "{task}");
    // Pauses of 50, 100 and 200 ms, each cut by half at most.
    let times: Vec<jiff::Timestamp> = task["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| time(attempt, "/started_at"))
        .collect();
    for (pair, least_ms) in times.windows(2).zip([25, 50, 100]) {
        let between_ms = pair[1].as_millisecond() - pair[0].as_millisecond();
        assert!(between_ms >= least_ms, "{between_ms} of {least_ms} ms: {task}");
    }
    let told = daemon.fails(1, &["wait", &id]);
    assert!(told.contains("1 of 1"), "{told}");
    assert!(daemon.fails(1, &["result", &id]).contains("exit code 3"));

    daemon.ok(&["retry", &id]);
    let again = eventually("it fails again", SOON, || {
        Some(daemon.task(&id)).filter(|task| task["state"] == "failed" && task["attempt"] == 8)
    });
    assert_eq!(outcomes(&again).len(), 8, "retry gives it all its attempts anew: {again}");
}

#[test]
fn a_retry_that_helps() {
    let daemon = Daemon::start(IMPATIENT);
    let file = daemon.file("there");
    let script = r#"[ -e "$1" ]"#;
    let options = ["--max-attempts", "1"];
    let id = daemon.submit("exec", &shell(script, &[&file.to_string_lossy()]), &options);
    daemon.until(&id, "failed");
    std::fs::write(&file, "").unwrap();
    daemon.ok(&["retry", &id]);
    let task = daemon.until(&id, "succeeded");
    assert_eq!(outcomes(&task), ["failed", "succeeded"]);
    assert!(task["error"].is_null(), "{task}");
    assert!(daemon.fails(7, &["retry", &id]).contains("succeeded"));
    daemon.fails(6, &["retry", "0190c0de-0000-7000-8000-000000000000"]);
}

#[test]
fn a_task_that_waits_for_its_retry_says_so() {
    let daemon = Daemon::start("[queue]\nretry_backoff = \"1h\"\nretry_backoff_max = \"1h\"\n");
    let id = daemon.submit("exec", &fails(), &[]);
    let task = daemon.until(&id, "scheduled");
    assert_eq!(task["waiting_for"], "retry", "{task}");
    assert_eq!(task["error"]["kind"], "handler", "{task}");
    daemon.ok(&["cancel", &id]);
    let task = daemon.task(&id);
    assert_eq!(task["state"], "cancelled", "{task}");
    assert_eq!(outcomes(&task), ["failed"], "{task}");
}

#[test]
fn a_task_ends_at_its_time_limit() {
    let daemon = Daemon::start(IMPATIENT);
    let file = daemon.file("leader");
    let options = ["--timeout", "400ms", "--max-attempts", "2"];
    let sleep = daemon.submit("sleep", &json!({ "seconds": 60 }), &options);
    let command = daemon.submit("exec", &family(&file), &options);
    for id in [&sleep, &command] {
        let task = daemon.until(id, "failed");
        assert_eq!(outcomes(&task), ["timeout", "timeout"], "{task}");
        assert_eq!(task["error"]["kind"], "timeout", "{task}");
        assert!((400..5_000).contains(&number(&task, "/run_ms")), "{task}");
    }
    eventually_eq(0, || daemon.tree().iter().filter(|process| process.name() == "sleep").count());
    assert_eq!(number(&daemon.json(&["stats"]), "/timed_out"), 4);
}

#[test]
fn what_waits_is_cancelled_at_once() {
    let daemon = Daemon::start("");
    daemon.ok(&["queue", "pause"]);
    let queued = daemon.submit("noop", &json!({}), &["--lane", "l"]);
    let blocked = daemon.submit("noop", &json!({}), &["--lane", "l"]);
    let scheduled = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    for (id, state) in [(&blocked, "blocked"), (&queued, "queued"), (&scheduled, "scheduled")] {
        assert_eq!(daemon.state(id), state);
        let changed = daemon.json(&["cancel", id]);
        assert_eq!((&changed["state"], &changed["changed"]), (&json!("cancelled"), &json!(true)));
        let task = daemon.task(id);
        assert_eq!(task["state"], "cancelled", "{task}");
        assert_eq!(task["error"]["kind"], "cancelled", "{task}");
    }
    assert!(daemon.ok(&["cancel", &queued]).contains("already cancelled"));
    assert!(daemon.fails(1, &["result", &queued]).contains("cancelled"));
    daemon.fails(6, &["cancel", "0190c0de-0000-7000-8000-000000000000"]);
    daemon.ok(&["queue", "resume"]);
    let done = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&done, "succeeded");
    assert!(daemon.ok(&["cancel", &done]).contains("already succeeded"));
    assert_eq!(daemon.state(&done), "succeeded");
}

#[test]
fn what_runs_is_cancelled_with_all_that_it_started() {
    let daemon = Daemon::start("");
    let file = daemon.file("leader");
    let sleep = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
    let command = daemon.submit("exec", &family(&file), &[]);
    eventually("the command runs", SOON, || file.exists().then_some(()));
    daemon.until(&sleep, "running");
    let leader: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    eventually_eq(3, || processes::tree(leader).len());
    let family = processes::tree(leader);
    daemon.ok(&["cancel", &sleep, &command]);
    for id in [&sleep, &command] {
        let task = daemon.until(id, "cancelled");
        assert_eq!(outcomes(&task), ["cancelled"], "{task}");
        assert_eq!(task["error"]["kind"], "cancelled", "{task}");
    }
    eventually("its group is gone", SOON, || {
        family.iter().all(|process| !process.is_there()).then_some(())
    });
    // The workers have gone on.
    assert_eq!(number(&daemon.json(&["stats"]), "/worker_lost"), 0);
}

#[test]
fn a_key_stands_for_one_task() {
    let daemon = Daemon::start("");
    let file = daemon.file("traces");
    let input = append(&file, "once", 0.0);
    let id = daemon.submit("exec", &input, &["--key", "k"]);
    assert_eq!(daemon.submit("exec", &input, &["--key", "k"]), id);
    daemon.until(&id, "succeeded");
    assert_eq!(daemon.submit("exec", &input, &["--key", "k"]), id, "also when it is done");
    let other = daemon.fails(2, &["submit", "noop", "--key", "k"]);
    assert!(other.contains('k') && other.contains(&id), "{other}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "once\n");
    let last = daemon.submit("noop", &json!({}), &["--wait"]);
    assert_eq!(last, "{}");
    assert_eq!(daemon.json_lines(&["list"]).len(), 2);
}

#[test]
fn a_key_is_free_after_a_failure() {
    let daemon = Daemon::start("");
    let options = ["--key", "k", "--max-attempts", "1"];
    let failed = daemon.submit("exec", &fails(), &options);
    daemon.until(&failed, "failed");
    let new = daemon.submit("noop", &json!({}), &options);
    assert_ne!(new, failed);
    daemon.until(&new, "succeeded");
    // The failed one would be a second task with this key.
    let refused = daemon.forq(&["retry", &failed]);
    let states = [daemon.state(&new), daemon.state(&failed)];
    assert_eq!(states, ["succeeded", "failed"], "{}", support::shown(&refused));
    assert_eq!(refused.status.code(), Some(7), "{}", support::shown(&refused));
}

#[test]
fn a_wait_ends_at_its_timeout() {
    let daemon = Daemon::start("");
    let id = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
    let done = daemon.submit("noop", &json!({}), &[]);
    let began = std::time::Instant::now();
    let told = daemon.fails(4, &["wait", "--timeout", "500ms", &id, &done]);
    assert!(told.contains("1 of 2"), "{told}");
    assert!(began.elapsed() >= Duration::from_millis(500));
    daemon.fails(4, &["result", &id]);
    daemon.fails(6, &["wait", "0190c0de-0000-7000-8000-000000000000"]);
}
