//! Answers that are given again, by a real daemon with a simulated model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use serde_json::{Value, json};
use support::model::Model;
use support::{Daemon, Role, eventually_eq, number, text};

fn config(model: &Model, more: &str) -> String {
    format!(
        "[workers]\nmin = 2\nmax = 2\n[providers.sim]\nbase_url = '{}'\n{more}\n\
         [models.default]\nchain = ['sim/sim-1']\ncache_ttl = '10m'\n\
         [models.short]\nchain = ['sim/sim-1']\ncache_ttl = '300ms'\n\
         [models.never]\nchain = ['sim/sim-1']\n\
         [queue]\nretry_backoff = '50ms'\n",
        model.url
    )
}

fn calls(model: &Model) -> u64 {
    number(&model.stats(), "/requests")
}

fn done(daemon: &Daemon, input: &Value) -> Value {
    let id = daemon.submit("chat", input, &[]);
    daemon.until(&id, "succeeded")
}

#[test]
fn equal_requests_share_one_call_over_all_workers() {
    let model = Model::start(&["--first-token-ms", "300"]);
    let daemon = Daemon::start(&config(&model, ""));
    let task = json!({"kind": "chat", "input": {"prompt": "the same", "temperature": 0}});
    let ids = daemon.submit_all(&vec![task; 50]);
    daemon.wait_for_all(&ids, "20s");
    assert_eq!(calls(&model), 1);
    let tasks: Vec<Value> = ids.iter().map(|id| daemon.task(id)).collect();
    let cached = tasks.iter().filter(|task| task["output"]["cached"] == true).count();
    assert_eq!(cached, 49);
    let said = text(&tasks[0], "/output/text");
    assert!(said.contains("the same"), "{said}");
    for task in &tasks {
        assert_eq!(text(task, "/output/text"), said);
        assert_eq!(task["usage"].is_null(), task["output"]["cached"] == true, "{task}");
    }
    let cache = daemon.json(&["info"])["cache"].clone();
    assert_eq!((&cache["hits"], &cache["misses"]), (&json!(49), &json!(1)), "{cache}");
}

#[test]
fn what_may_differ_is_asked_again() {
    let model = Model::start(&["--first-token-ms", "0"]);
    let daemon = Daemon::start(&config(&model, ""));
    let mut expected = 0;
    for (input, again) in [
        (json!({"prompt": "a", "temperature": 0}), false),
        (json!({"prompt": "a"}), true),
        (json!({"prompt": "a", "temperature": 0.7}), true),
        (json!({"prompt": "b", "cache": true}), false),
        (json!({"prompt": "c", "temperature": 0, "cache": false}), true),
        (json!({"prompt": "d", "temperature": 0, "model": "never"}), true),
        (json!({"prompt": "e", "temperature": 0, "model": "sim/sim-1"}), true),
        (json!({"prompt": "a", "temperature": 0, "cache": "refresh"}), true),
    ] {
        for round in 0..2 {
            let task = done(&daemon, &input);
            expected += u64::from(round == 0 || again);
            if round == 0 && again {
                assert_eq!(task["output"]["cached"], false, "{input}");
            }
        }
        let first_is_known = input == json!({"prompt": "a", "temperature": 0});
        assert!(calls(&model) == expected || first_is_known, "{input}: {}", calls(&model));
    }
    // Another order and white space are the same request; another parameter is not.
    let same = r#"{ "temperature":0,  "prompt":"a" }"#;
    let id = daemon.ok(&["submit", "chat", same]);
    assert_eq!(daemon.until(id.trim(), "succeeded")["output"]["cached"], true);
    let other = done(&daemon, &json!({"prompt": "a", "temperature": 0, "max_tokens": 50}));
    assert_eq!(other["output"]["cached"], false);
}

#[test]
fn an_answer_grows_old() {
    let model = Model::start(&["--first-token-ms", "0"]);
    let daemon = Daemon::start(&config(&model, ""));
    let input = json!({"prompt": "a", "temperature": 0, "model": "short"});
    done(&daemon, &input);
    support::eventually("it is asked again", support::SOON, || {
        done(&daemon, &input);
        (calls(&model) >= 2).then_some(())
    });
}

#[test]
fn an_answer_that_is_there_waits_at_no_gate_and_streams() {
    let model = Model::start(&["--first-token-ms", "0"]);
    let daemon = Daemon::start(&config(&model, "rpm = 1"));
    let words = "one two three four five six seven eight nine ten ".repeat(10);
    let input = json!({"prompt": words, "temperature": 0});
    let first = done(&daemon, &input);
    // Whether it was there when the task came, or the task stood at the gate when it came.
    assert_eq!(done(&daemon, &input)["output"]["cached"], true);
    let (id, events) = daemon.run_followed("chat", &input);
    let waits = daemon.submit("chat", &json!({"prompt": "another"}), &[]);
    let pieces: Vec<&str> = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(pieces.concat(), text(&first, "/output/text"));
    assert_eq!(daemon.task(&id)["output"]["cached"], true);
    let waiting = daemon.task(&waits);
    assert_eq!((&waiting["state"], &waiting["waiting_for"]), (&json!("queued"), &json!("permit")));
    assert_eq!(calls(&model), 1);
}

#[test]
fn those_who_wait_for_a_lost_one_go_on() {
    let model = Model::start(&["--first-token-ms", "1000"]);
    let daemon = Daemon::start(&config(&model, "breaker = { failures = 1000 }"));
    let task = json!({"kind": "chat", "input": {"prompt": "the same", "temperature": 0}});
    let ids = daemon.submit_all(&vec![task; 10]);
    eventually_eq(1, || calls(&model));
    for slot in 1..=2 {
        daemon.strike(Role::Worker(slot));
    }
    daemon.wait_for_all(&ids, "20s");
    // The second may have been lost as well, with the other worker.
    let calls = calls(&model);
    assert!((2..=3).contains(&calls), "{calls}");
    let model_gone = model;
    drop(model_gone);
    let failing = json!({"prompt": "of nobody", "temperature": 0});
    let ids: Vec<String> = (0..3).map(|_| daemon.submit("chat", &failing, &[])).collect();
    for id in &ids {
        assert_eq!(daemon.until(id, "failed")["error"]["kind"], "provider");
    }
}
