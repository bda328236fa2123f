//! Conversations: what a model sees of them, over whatever dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeSet;

use support::listener::Listener;
use support::{Daemon, Role, SOON, Value, eventually, json, number, text, time};

fn config(model: &Listener, more: &str) -> String {
    format!(
        "[workers]\nmin = 2\nmax = 2\n[providers.sim]\nbase_url = '{}'\n\
         breaker = {{ failures = 1000 }}\n[models.default]\nchain = ['sim/m']\ncache_ttl = '1h'\n\
         [queue]\nretry_backoff = '50ms'\n{more}\n",
        model.url
    )
}

/// Says something in a session, and waits for the answer; the task.
#[track_caller]
fn say(daemon: &Daemon, session: &str, prompt: &str) -> Value {
    let id = submit(daemon, session, prompt);
    daemon.until(&id, "succeeded")
}

#[track_caller]
fn submit(daemon: &Daemon, session: &str, prompt: &str) -> String {
    daemon.submit("chat", &json!({ "prompt": prompt }), &["--session", session])
}

/// The prompts of a session's conversation, in order.
#[track_caller]
fn prompts(daemon: &Daemon, session: &str) -> Vec<String> {
    let shown = daemon.json(&["session", "show", session]);
    let turns = shown["conversation"].as_array().unwrap().clone();
    turns.iter().map(|turn| text(turn, "/messages/0/content")).collect()
}

fn contents(messages: &Value) -> Vec<String> {
    messages.as_array().unwrap().iter().map(|message| text(message, "/content")).collect()
}

#[test]
fn a_model_sees_what_was_said_before() {
    let model = Listener::start();
    let daemon = Daemon::start(&config(&model, ""));
    assert_eq!(daemon.ok(&["chat", "--session", "a", "one"]), "echo one");
    let input = json!({ "prompt": "two", "system": "be brief", "temperature": 0 });
    let id = daemon.submit("chat", &input, &["--session", "a"]);
    daemon.until(&id, "succeeded");
    say(&daemon, "b", "one");
    assert_eq!(contents(&model.request(1)), ["be brief", "one", "echo one", "two"]);
    assert_eq!(contents(&model.request(2)), ["one"]);
    // The same words again are not the same question.
    let id = daemon.submit("chat", &input, &["--session", "a"]);
    let again = daemon.until(&id, "succeeded");
    assert_eq!(again["output"]["cached"], false, "{again}");
    assert_eq!(contents(&model.request(3)).len(), 6);
    let shown = daemon.ok(&["session", "show", "a"]);
    let expected = "user: one\nassistant: echo one\nuser: two\nassistant: echo two\n\
                    user: two\nassistant: echo two";
    assert_eq!(shown, expected);
    let listed = daemon.json_lines(&["session", "list"]);
    let names: BTreeSet<String> = listed.iter().map(|session| text(session, "/name")).collect();
    assert_eq!(names, ["a", "b"].map(str::to_owned).into());
    // Workflows and other kinds have no part in it.
    let id = daemon.submit("noop", &json!({}), &["--session", "a"]);
    daemon.until(&id, "succeeded");
    assert_eq!(prompts(&daemon, "a").len(), 3);
}

#[test]
fn an_attempt_that_fails_adds_nothing() {
    let model = Listener::start();
    let daemon = Daemon::start(&config(&model, ""));
    say(&daemon, "a", "one");
    let fails = submit(&daemon, "a", "refuse");
    daemon.until(&fails, "failed");
    let stumbles = say(&daemon, "a", "stumble");
    assert_eq!(number(&stumbles, "/attempt"), 2);
    let seen = ["one", "echo one", "stumble"];
    assert_eq!(contents(&model.request(2)), seen);
    assert_eq!(contents(&model.request(3)), seen);
    let cancelled = submit(&daemon, "a", "hang");
    daemon.until(&cancelled, "running");
    daemon.ok(&["cancel", &cancelled]);
    daemon.until(&cancelled, "cancelled");
    assert_eq!(prompts(&daemon, "a"), ["one", "stumble"]);
}

#[test]
fn old_turns_are_dropped() {
    let model = Listener::start();
    let daemon = Daemon::start(&config(&model, "[sessions]\nturns_max = 2"));
    for prompt in ["one", "two", "three", "four"] {
        say(&daemon, "a", prompt);
    }
    assert_eq!(contents(&model.request(3)), ["two", "echo two", "three", "echo three", "four"]);
    assert_eq!(prompts(&daemon, "a"), ["three", "four"]);
}

#[test]
fn old_turns_are_summed_up() {
    let model = Listener::start();
    let sessions = "[sessions]\nturns_max = 2\noverflow = 'summarise'\nsummary_model = 'sim/short'";
    let daemon = Daemon::start(&config(&model, sessions));
    daemon.ok(&["queue", "pause"]);
    let ids: Vec<String> =
        ["one", "two", "three", "four"].map(|prompt| submit(&daemon, "a", prompt)).into();
    daemon.ok(&["queue", "resume"]);
    daemon.wait_for_all(&ids, "20s");
    let lead = "Summary of the conversation so far: echo The conversation:";
    let last = contents(&model.request(4));
    assert!(last[0].starts_with(lead) && last[0].contains("user: two"), "{last:?}");
    assert_eq!(last[1..], ["three", "echo three", "four"]);
    assert_eq!((model.asked_for(3).as_str(), model.asked_for(4).as_str()), ("short", "m"));
    let listed = daemon.json_lines(&["list", "--kind", "chat"]);
    let summaries: Vec<&Value> = listed.iter().filter(|task| task["step"] == "summary").collect();
    assert_eq!(summaries.len(), 1);
    assert_eq!(summaries[0]["session"], "a");
}

#[test]
fn a_summary_comes_first_whatever_dies_meanwhile() {
    let model = Listener::start();
    let sessions = "[sessions]\nturns_max = 1\noverflow = 'summarise'\nsummary_model = 'sim/slow'";
    let mut daemon = Daemon::start(&config(&model, sessions));
    let ids = ["one", "two", "three"].map(|prompt| submit(&daemon, "a", prompt));
    let summary = || {
        let running = daemon.json_lines(&["list", "--state", "running"]);
        running.into_iter().find(|task| task["step"] == "summary")
    };
    let summary = text(&eventually("it is summed up", SOON, summary), "/id");
    assert_eq!(daemon.state(&ids[2]), "blocked");
    daemon.strike(Role::Broker);
    daemon.until(&summary, "running");
    daemon.kill_everything();
    daemon.start_again();
    daemon.until(&ids[2], "succeeded");
    assert_eq!(daemon.state(&summary), "succeeded");
    let last = contents(&model.request(model.requests() - 1));
    assert!(last[0].contains("user: one") && last[0].contains("user: two"), "{last:?}");
    assert_eq!(last[1..], ["three"]);
}

#[test]
fn a_session_is_shown_cleared_and_unknown() {
    let model = Listener::start();
    let daemon = Daemon::start(&config(&model, ""));
    say(&daemon, "a", "one");
    let running = submit(&daemon, "a", "slow");
    daemon.until(&running, "running");
    let waits = submit(&daemon, "a", "two");
    let listed = &daemon.json_lines(&["session", "list"])[0];
    let counts = ["turns", "waiting", "running"].map(|name| number(listed, &format!("/{name}")));
    assert_eq!(counts, [1, 1, 1], "{listed}");
    assert_eq!(daemon.json(&["session", "clear", "a"])["count"], 1);
    daemon.until(&waits, "succeeded");
    assert_eq!(contents(&model.request(2)), ["slow", "echo slow", "two"]);
    for verb in ["show", "clear"] {
        let said = daemon.fails(6, &["session", verb, "nosuch"]);
        assert!(said.contains("no session 'nosuch'"), "{said}");
    }
}

#[test]
fn an_idle_session_is_forgotten_and_a_busy_one_is_not() {
    let model = Listener::start();
    let daemon = Daemon::start(&config(&model, "[sessions]\nidle_timeout = '1s'"));
    let idle = say(&daemon, "idle", "one");
    say(&daemon, "busy", "one");
    let waits = daemon.submit("noop", &json!({}), &["--session", "busy", "--delay", "1h"]);
    eventually("the idle one is forgotten", SOON, || {
        (daemon.forq(&["session", "show", "idle"]).status.code() == Some(6)).then_some(())
    });
    assert_eq!(prompts(&daemon, "busy"), ["one"]);
    assert_eq!(daemon.state(&text(&idle, "/id")), "succeeded", "its tasks stay");
    daemon.ok(&["cancel", &waits]);
    eventually("both are forgotten", SOON, || {
        daemon.json_lines(&["session", "list"]).is_empty().then_some(())
    });
}

#[test]
fn no_turn_is_lost_or_doubled_by_any_death() {
    let model = Listener::start();
    let mut daemon = Daemon::start(&config(&model, ""));
    let sessions = ["a", "b", "c"];
    let said: Vec<String> = (0..12).map(|number| format!("wait {number}")).collect();
    let mut ids = Vec::new();
    for prompt in &said {
        for session in sessions {
            ids.push(submit(&daemon, session, prompt));
        }
    }
    daemon.until(&ids[6], "succeeded");
    daemon.strike(Role::Worker(1));
    daemon.until(&ids[12], "succeeded");
    daemon.strike(Role::Broker);
    daemon.until(&ids[20], "succeeded");
    daemon.kill_everything();
    daemon.start_again();
    daemon.strike(Role::Worker(2));
    daemon.wait_for_all(&ids, "60s");
    for (place, session) in sessions.iter().enumerate() {
        assert_eq!(prompts(&daemon, session), said, "{session}");
        let tasks: Vec<Value> =
            ids.iter().skip(place).step_by(3).map(|id| daemon.task(id)).collect();
        for (before, after) in tasks.iter().zip(&tasks[1..]) {
            assert!(time(after, "/started_at") >= time(before, "/finished_at"), "{before} {after}");
        }
    }
    // Whoever was asked saw all that had been said until then, each once and in order.
    for number in 0..model.requests() {
        let messages = contents(&model.request(number));
        let asked: Vec<&String> = messages.iter().step_by(2).collect();
        assert_eq!(asked, said.iter().take(asked.len()).collect::<Vec<_>>());
    }
}

#[test]
fn a_session_stays_with_its_worker_while_that_is_free() {
    let model = Listener::start();
    let daemon = Daemon::start(&config(&model, ""));
    let pid_of = |task: &Value| number(task, "/worker_pid");
    // Something else keeps both from being equally empty.
    let first = pid_of(&say(&daemon, "a", "one"));
    let hangs = daemon.submit("sleep", &json!({ "seconds": 60 }), &[]);
    let other = pid_of(&daemon.until(&hangs, "running"));
    let mut pids = BTreeSet::new();
    for prompt in ["two", "three", "four", "five"] {
        pids.insert(pid_of(&say(&daemon, "a", prompt)));
    }
    assert_eq!(pids, BTreeSet::from([first]), "the sleeper is in {other}");
    // One that is gone costs nothing but warmth.
    let slot = daemon.all_up().workers.iter().position(|pid| *pid as u64 == first).unwrap() + 1;
    daemon.kill(Role::Worker(slot));
    let next = say(&daemon, "a", "six");
    assert_ne!(pid_of(&next), first);
    assert_eq!(prompts(&daemon, "a").len(), 6);
}
