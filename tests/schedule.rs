//! Tasks that the clock submits: each time once, whatever dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::{Daemon, Role, SOON, Value, eventually, json, pause, text, time};

const EVERY_SECOND: &str = "[[schedule]]\nname = 'tick'\nevery = '1s'\nkind = 'noop'\ninput = {}\n";

/// The runs of a schedule, newest first.
fn runs(daemon: &Daemon) -> Vec<Value> {
    let listed = daemon.json_lines(&["list", "--limit", "1000"]);
    let prefix = "schedule:tick:";
    listed
        .into_iter()
        .filter(|task| task["key"].as_str().is_some_and(|key| key.starts_with(prefix)))
        .collect()
}

/// For which second each run is.
fn seconds(runs: &[Value]) -> Vec<i64> {
    let second = |run: &Value| {
        let key = text(run, "/key");
        let at = key.strip_prefix("schedule:tick:").unwrap();
        let at: jiff::Timestamp = at.parse().unwrap();
        assert_eq!(at.subsec_nanosecond(), 0, "{key}");
        at.as_second()
    };
    runs.iter().map(second).collect()
}

#[track_caller]
fn until_runs(daemon: &Daemon, count: usize) -> Vec<Value> {
    eventually("so many runs", SOON, || {
        Some(runs(daemon))
            .filter(|runs| runs.len() >= count && runs.iter().all(|run| run["state"] != "queued"))
    })
}

#[test]
fn it_runs_each_second() {
    let daemon = Daemon::start(EVERY_SECOND);
    let runs = until_runs(&daemon, 4);
    let seconds = seconds(&runs);
    let (last, first) = (seconds[0], seconds[seconds.len() - 1]);
    assert!(last - first <= seconds.len() as i64, "about one a second: {seconds:?}");
    for (run, second) in runs.iter().zip(seconds) {
        assert_eq!(run["lane"], "schedule:tick");
        assert!(time(run, "/created_at").as_second() >= second, "before its time: {run}");
    }
    let info = daemon.json(&["info"]);
    let schedule = &info["schedules"][0];
    assert_eq!((&schedule["name"], &schedule["error"]), (&json!("tick"), &Value::Null));
    assert!(time(schedule, "/next_at") > time(schedule, "/last_at"), "{schedule}");
    let shown = daemon.ok(&["info"]);
    assert!(shown.contains("SCHEDULE") && shown.contains("tick"), "{shown}");
}

#[test]
fn no_time_runs_twice_while_brokers_die() {
    let daemon = Daemon::start(EVERY_SECOND);
    let deaths = 6;
    for death in 1..=deaths {
        until_runs(&daemon, death);
        // Around a time: before it, at it, after it.
        pause(Duration::from_millis(170 * death as u64));
        daemon.strike(Role::Broker);
        daemon.all_up();
    }
    let runs = until_runs(&daemon, deaths + 1);
    let seconds = seconds(&runs);
    assert_eq!(seconds.iter().collect::<BTreeSet<_>>().len(), seconds.len(), "{seconds:?}");
    assert!(runs.iter().all(|run| run["attempt"].as_u64().unwrap() <= 1), "{runs:?}");
}

#[test]
fn what_was_missed_is_made_up_for_once() {
    // The next time is far off, but for the one that was missed.
    let yearly = EVERY_SECOND.replace("1s", "365d");
    let mut daemon = Daemon::start(EVERY_SECOND);
    until_runs(&daemon, 1);
    daemon.kill_everything();
    let before = {
        let db = rusqlite::Connection::open(daemon.state_dir().join("forq.db")).unwrap();
        // As if it had last run some years ago.
        db.execute("UPDATE schedules SET last_at = last_at - 1000 * 86400000", []).unwrap();
        let count: i64 = db.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0)).unwrap();
        usize::try_from(count).unwrap()
    };
    let new = "[[schedule]]\nname = 'new'\nevery = '365d'\nkind = 'noop'\ninput = {}\n";
    daemon.configure(&format!("{yearly}{new}"));
    daemon.start_again();
    until_runs(&daemon, before + 1);
    // A new broker finds nothing more to make up for, and a new schedule waits.
    daemon.kill(Role::Broker);
    daemon.all_up();
    let other = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&other, "succeeded");
    let all = daemon.json_lines(&["list", "--limit", "1000"]);
    assert_eq!(all.len(), before + 2, "{all:?}");
}

#[test]
fn a_schedule_that_cannot_run_is_told_and_cured_by_a_reload() {
    let bad = EVERY_SECOND.replace("noop", "nope");
    let daemon = Daemon::start(&format!(
        "{bad}[[schedule]]\nname = 'other'\nevery = '1s'\nkind = 'noop'\ninput = {{}}\n"
    ));
    let info = daemon.json(&["info"]);
    let error = text(&info, "/schedules/0/error");
    assert!(error.starts_with("unknown kind 'nope': this daemon knows chat, "), "{error}");
    assert_eq!(info["schedules"][0]["next_at"], Value::Null);
    assert_eq!(info["schedules"][1]["error"], Value::Null);
    assert!(daemon.log().contains("the schedule 'tick' never runs: unknown kind 'nope'"));
    let file = daemon.file("forq.toml");
    let checked = daemon.forq(&["config", "check", &file.to_string_lossy()]);
    let warned = String::from_utf8(checked.stderr).unwrap();
    assert!(warned.contains("schedule[0] (tick) never runs: unknown kind 'nope'"), "{warned}");
    daemon.configure(EVERY_SECOND);
    daemon.ok(&["reload", "--wait"]);
    until_runs(&daemon, 1);
    let info = daemon.json(&["info"]);
    assert_eq!(info["schedules"].as_array().unwrap().len(), 1, "{info}");
}

#[test]
fn nothing_piles_up_behind_a_run_that_takes_long() {
    let slow = EVERY_SECOND.replace("noop", "sleep").replace("{}", "{ seconds = 60 }");
    let daemon = Daemon::start(&slow);
    let runs = eventually("runs that expired", SOON, || {
        Some(runs(&daemon))
            .filter(|runs| runs.iter().filter(|run| run["state"] == "cancelled").count() >= 2)
    });
    let states = |state: &str| runs.iter().filter(|run| run["state"] == state).count();
    assert_eq!(states("running"), 1, "{runs:?}");
    assert!(states("blocked") <= 2, "{runs:?}");
}
