//! Many tasks: which runs next, and who waits for whom.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeMap;

use support::commands::shell;
use support::daemon::jsonl;
use support::{
    Daemon, SOON, Value, eventually, eventually_eq, json, number, outcomes, shown, text, time,
};

/// One task after the other.
const ONE_BY_ONE: &str = "[workers]\nmin = 1\nmax = 1\nconcurrency = 1\n";
/// Longer than the clock's grain, so that the times of two starts tell which was first.
const NAP_S: f64 = 0.02;

fn nap(more: Value) -> Value {
    let mut task = json!({ "kind": "sleep", "input": { "seconds": NAP_S } });
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    task
}

/// The numbers of these tasks in the order in which they started, once all have ended.
#[track_caller]
fn order(daemon: &Daemon, ids: &[String]) -> Vec<usize> {
    daemon.wait_for_all(ids, "60s");
    let mut starts = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let task = daemon.task(id);
        assert_eq!(outcomes(&task), ["succeeded"], "{task}");
        starts.push((time(&task, "/started_at"), number));
    }
    starts.sort();
    starts.into_iter().map(|(_, number)| number).collect()
}

#[test]
fn higher_priorities_start_first_and_equals_in_order() {
    let daemon = Daemon::start(ONE_BY_ONE);
    daemon.ok(&["queue", "pause"]);
    let priorities = [5, 0, 9, 5, 3, 9];
    let tasks: Vec<Value> =
        priorities.iter().map(|priority| nap(json!({ "priority": priority }))).collect();
    let ids = daemon.submit_all(&tasks);
    daemon.ok(&["queue", "resume"]);
    assert_eq!(order(&daemon, &ids), [2, 5, 0, 3, 4, 1]);
}

#[test]
fn queues_take_turns_by_weight() {
    let config = format!("{ONE_BY_ONE}[queues.heavy]\nweight = 3\n");
    let daemon = Daemon::start(&config);
    daemon.ok(&["queue", "pause"]);
    let tasks: Vec<Value> = (0..24)
        .map(|number| nap(json!({ "queue": if number < 12 { "heavy" } else { "light" } })))
        .collect();
    let ids = daemon.submit_all(&tasks);
    daemon.ok(&["queue", "resume"]);
    let order = order(&daemon, &ids);
    // While both have tasks, three of one for each of the other.
    for turns in order[..16].chunks(4) {
        let heavy = turns.iter().filter(|number| **number < 12).count();
        assert_eq!(heavy, 3, "{order:?}");
    }
}

#[test]
fn a_queue_runs_no_more_than_it_may() {
    let daemon = Daemon::start("[queues.narrow]\nmax_running = 2\n");
    let task = json!({ "kind": "sleep", "input": { "seconds": 0.3 }, "queue": "narrow" });
    let ids = daemon.submit_all(&vec![task; 6]);
    let other = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&other, "succeeded");
    daemon.wait_for_all(&ids, "30s");
    let tasks: Vec<Value> = ids.iter().map(|id| daemon.task(id)).collect();
    let spans: Vec<_> =
        tasks.iter().map(|task| (time(task, "/started_at"), time(task, "/finished_at"))).collect();
    for (start, _) in &spans {
        let running = spans.iter().filter(|(from, to)| from <= start && start < to).count();
        assert!(running <= 2, "{spans:?}");
    }
    let narrow = &daemon.json_lines(&["queue", "status", "--queue", "narrow"])[0];
    assert_eq!(narrow["max_running"], 2, "{narrow}");
}

#[test]
fn a_lane_runs_one_at_a_time_in_order() {
    let daemon = Daemon::start("");
    let file = daemon.file("traces");
    let script = r#"echo "$2 begins" >> "$1"; sleep 0.05; echo "$2 ends" >> "$1""#;
    let tasks: Vec<Value> = (0..6)
        .map(|number| {
            let input = shell(script, &[&file.to_string_lossy(), &number.to_string()]);
            // Not even a priority changes a lane's order.
            json!({ "kind": "exec", "input": input, "lane": "l", "priority": number })
        })
        .collect();
    let ids = daemon.submit_all(&tasks);
    let last = daemon.task(&ids[5]);
    assert_eq!(last["state"], "blocked", "{last}");
    assert_eq!(last["waiting_for"], "lane", "{last}");
    daemon.wait_for_all(&ids, "30s");
    let expected: String = (0..6).map(|n| format!("{n} begins\n{n} ends\n")).collect();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
}

#[test]
fn a_head_that_is_retried_keeps_its_turn() {
    let daemon = Daemon::start("[queue]\nretry_backoff = \"300ms\"\n");
    let file = daemon.file("traces");
    let path = file.to_string_lossy();
    // Fails at the first attempt, and not at the second.
    let stumbles = shell(r#"echo head >> "$1"; [ "$(wc -l < "$1")" = 2 ]"#, &[&path]);
    let head = daemon.submit("exec", &stumbles, &["--lane", "l"]);
    let next = shell(r#"echo next >> "$1""#, &[&path]);
    let next = daemon.submit("exec", &next, &["--lane", "l"]);
    daemon.until(&head, "scheduled");
    assert_eq!(daemon.state(&next), "blocked");
    daemon.until(&next, "succeeded");
    assert_eq!(daemon.task(&head)["attempt"], 2);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "head\nhead\nnext\n");
}

#[test]
fn a_head_that_fails_or_is_cancelled_releases_its_lane() {
    let daemon = Daemon::start("");
    let lane = ["--lane", "l", "--max-attempts", "1"];
    let fails = daemon.submit("exec", &shell("sleep 0.2; exit 1", &[]), &lane);
    let runs = daemon.submit("sleep", &json!({ "seconds": 60 }), &lane);
    let third = daemon.submit("sleep", &json!({ "seconds": 0.2 }), &lane);
    daemon.until(&fails, "failed");
    daemon.until(&runs, "running");
    assert_eq!(daemon.state(&third), "blocked");
    // Back at the lane's tail.
    daemon.ok(&["retry", &fails]);
    assert_eq!(daemon.state(&fails), "blocked");
    daemon.ok(&["cancel", &runs]);
    let third = daemon.until(&third, "succeeded");
    let again = daemon.until(&fails, "failed");
    assert!(time(&again, "/started_at") >= time(&third, "/finished_at"), "{again}");
    let other = daemon.submit("noop", &json!({}), &lane);
    daemon.until(&other, "succeeded");
}

#[test]
fn a_lane_keeps_its_order_over_kills() {
    let mut daemon = Daemon::start("");
    let file = daemon.file("traces");
    let script = r#"sleep 0.1; echo "$2" >> "$1""#;
    let tasks: Vec<Value> = (0..8)
        .map(|number| {
            let input = shell(script, &[&file.to_string_lossy(), &number.to_string()]);
            json!({ "kind": "exec", "input": input, "lane": "l" })
        })
        .collect();
    let ids = daemon.submit_all(&tasks);
    daemon.until(&ids[2], "running");
    daemon.strike(support::Role::Broker);
    daemon.until(&ids[5], "running");
    daemon.kill_everything();
    daemon.start_again();
    daemon.wait_for_all(&ids, "30s");
    let traces = std::fs::read_to_string(&file).unwrap();
    let mut order: Vec<usize> = traces.lines().map(|line| line.parse().unwrap()).collect();
    // The one that the master's death hit may have left its trace before.
    order.dedup();
    assert_eq!(order, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_full_queue_refuses_for_now() {
    let daemon = Daemon::start("[queue]\nmax_queued = 5\n");
    daemon.ok(&["queue", "pause"]);
    let too_many =
        daemon.forq_with(&["submit", "--jsonl", "-"], &jsonl(&vec![json!({ "kind": "noop" }); 6]));
    assert_eq!(too_many.status.code(), Some(5), "{}", shown(&too_many));
    assert_eq!(daemon.json_lines(&["list"]).len(), 0, "all or nothing");
    let ids = daemon.submit_all(&vec![json!({ "kind": "noop" }); 5]);
    let told = daemon.fails(5, &["submit", "noop"]);
    assert!(told.contains("max_queued = 5"), "{told}");
    daemon.ok(&["cancel", &ids[0]]);
    let id = daemon.submit("noop", &json!({}), &[]);
    daemon.fails(5, &["submit", "noop", "--delay", "1h"]);
    daemon.ok(&["queue", "resume"]);
    daemon.until(&id, "succeeded");
    daemon.submit("noop", &json!({}), &["--wait"]);
}

#[test]
fn a_paused_queue_starts_nothing_and_stays_paused() {
    let mut daemon = Daemon::start("");
    daemon.ok(&["queue", "pause", "--queue", "a"]);
    let paused = daemon.submit("noop", &json!({}), &["--queue", "a"]);
    let open = daemon.submit("noop", &json!({}), &["--queue", "b"]);
    daemon.until(&open, "succeeded");
    let task = daemon.task(&paused);
    assert_eq!(task["state"], "queued", "{task}");
    assert_eq!(task["waiting_for"], "paused", "{task}");
    daemon.ok(&["stop"]);
    daemon.gone(SOON);
    daemon.start_again();
    let status = daemon.json_lines(&["queue", "status", "--queue", "a"]);
    assert_eq!(status[0]["paused"], true, "{status:?}");
    let open = daemon.submit("noop", &json!({}), &["--queue", "b"]);
    daemon.until(&open, "succeeded");
    assert_eq!(daemon.state(&paused), "queued");
    daemon.ok(&["queue", "resume", "--queue", "a"]);
    daemon.until(&paused, "succeeded");
}

#[test]
fn clear_cancels_what_waits_and_nothing_that_runs() {
    let daemon = Daemon::start("");
    let running = daemon.submit("sleep", &json!({ "seconds": 60 }), &["--queue", "a"]);
    daemon.until(&running, "running");
    daemon.ok(&["queue", "pause"]);
    let tasks: Vec<Value> = (0..1_200)
        .map(|number| {
            let lane = format!("lane-{}", number % 7);
            json!({ "kind": "noop", "queue": "a", "lane": lane })
        })
        .chain([json!({ "kind": "noop", "queue": "b" })])
        .collect();
    let ids = daemon.submit_all(&tasks);
    assert_eq!(daemon.json(&["queue", "clear", "--queue", "a"])["count"], 1_200);
    assert_eq!(daemon.state(&ids[0]), "cancelled");
    assert_eq!(daemon.state(&ids[1_199]), "cancelled");
    assert_eq!(daemon.state(&ids[1_200]), "queued");
    assert_eq!(daemon.json(&["queue", "clear"])["count"], 1);
    assert_eq!(daemon.state(&running), "running");
    daemon.ok(&["cancel", &running]);
    daemon.until(&running, "cancelled");
    let queue = &daemon.json(&["info"])["queue"];
    let counts = ["queued", "running", "scheduled", "blocked"].map(|name| queue[name].clone());
    assert_eq!(counts, [0, 0, 0, 0], "{queue}");
}

#[test]
fn a_queue_is_shown_in_numbers_and_items() {
    let daemon = Daemon::start("");
    let running = daemon.submit("sleep", &json!({ "seconds": 60 }), &["--queue", "a"]);
    daemon.until(&running, "running");
    daemon.ok(&["queue", "pause"]);
    let queued = daemon.submit("noop", &json!({}), &["--queue", "a", "--lane", "l"]);
    let blocked = daemon.submit("noop", &json!({}), &["--queue", "a", "--lane", "l"]);
    let scheduled = daemon.submit("noop", &json!({}), &["--queue", "a", "--delay", "1h"]);
    let other = daemon.submit("noop", &json!({}), &["--queue", "b"]);
    let counts = daemon.json_lines(&["queue", "status", "--queue", "a"]);
    let expected = json!({
        "queue": "a", "queued": 1, "running": 1, "scheduled": 1, "blocked": 1, "paused": true,
        "weight": 1, "max_running": null,
    });
    assert_eq!(counts, [expected]);
    let items = daemon.json_lines(&["queue", "items", "--queue", "a"]);
    let states: BTreeMap<String, String> =
        items.iter().map(|task| (text(task, "/id"), text(task, "/state"))).collect();
    let expected =
        [(running, "running"), (queued, "queued"), (blocked, "blocked"), (scheduled, "scheduled")];
    assert_eq!(states, expected.map(|(id, state)| (id, state.to_owned())).into());
    assert_eq!(daemon.json_lines(&["queue", "items"]).len(), 5);
    assert_eq!(daemon.state(&other), "queued");
    assert_eq!(daemon.json(&["info"])["queue"]["paused"], true);
}

#[test]
fn a_tenant_with_many_tasks_delays_another_by_its_share_only() {
    let daemon = Daemon::start(ONE_BY_ONE);
    daemon.ok(&["queue", "pause"]);
    let flood: Vec<Value> = (0..10_000).map(|_| nap(json!({ "queue": "flood" }))).collect();
    daemon.submit_all(&flood);
    let ids = daemon.submit_all(&vec![nap(json!({ "queue": "small" })); 10]);
    daemon.ok(&["queue", "resume"]);
    daemon.wait_for_all(&ids, "30s");
    let flooded = || {
        let counts = daemon.json_lines(&["queue", "status", "--queue", "flood"]);
        10_000 - number(&counts[0], "/queued")
    };
    // Turn and turn about; some more may have run until this question was answered.
    let ran = flooded();
    assert!((8..100).contains(&ran), "{ran} of the flood ran beside 10 others");
    daemon.ok(&["queue", "clear"]);
    eventually_eq(0, || number(&daemon.json(&["info"]), "/queue/running"));
    eventually("nothing waits", SOON, || {
        (number(&daemon.json(&["info"]), "/queue/queued") == 0).then_some(())
    });
}

/// More messages in one turn of the broker's loop than it takes in at once: a turn that was full
/// used to drop its last two, and a task here and there never ended.
#[test]
fn thousands_of_tasks_at_once_all_end() {
    let daemon = Daemon::start("[workers]\nconcurrency = 10000\n");
    let count = "8000";
    let bench = ["--json", "bench", "sleep", "--seconds", "0.5", "--count", count];
    let mut child = daemon.background(&bench);
    let status = support::daemon::eventually_ended(&mut child, support::SOON * 3);
    assert!(status.is_some_and(|status| status.success()), "{}", daemon.ok(&["stats"]));
    assert_eq!(daemon.json(&["stats"])["succeeded"], 8000);
    assert_eq!(daemon.json(&["stats"])["running"], 0);
}
