//! What calls take and cost, and the budgets: through the real binary, to a simulated model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use support::model::Model;
use support::{Daemon, Role, Value, eventually_eq, json, number, text};

/// What a million tokens cost here, in and out: so much that each call is seen.
const PRICE: (f64, f64) = (1000.0, 2000.0);

/// A model that answers at once, whatever else is said of it.
fn model(options: &[&str]) -> Model {
    Model::start(&[&["--first-token-ms", "0", "--tokens-per-second", "0"], options].concat())
}

/// A provider, one line of a configuration.
fn provider(name: &str, model: &Model, more: &str) -> String {
    let (url, (input, output)) = (&model.url, PRICE);
    let price = format!("{{ input_per_mtok = {input}, output_per_mtok = {output} }}");
    format!("providers.{name} = {{ base_url = '{url}', price = {price}{more} }}\n")
}

/// One provider that costs money, and `more` above it.
fn config(model: &Model, more: &str) -> String {
    let provider = provider("sim", model, "");
    format!("{more}\n{provider}models.default.chain = ['sim/sim-1']\n")
}

fn chats(count: usize, more: &Value) -> Vec<Value> {
    let task = |n: usize| {
        let mut task = json!({
            "kind": "chat", "input": { "prompt": format!("Tell me about the number {n}.") },
        });
        for (key, value) in more.as_object().unwrap() {
            task[key] = value.clone();
        }
        task
    };
    (0..count).map(task).collect()
}

/// Runs these to their good end; the sums of what they say that they took: tokens in and out.
#[track_caller]
fn run_all(daemon: &Daemon, tasks: &[Value]) -> (u64, u64) {
    let ids = daemon.submit_all(tasks);
    daemon.wait_for_all(&ids, "60s");
    ids.iter().fold((0, 0), |sum, id| {
        let task = daemon.task(id);
        assert_eq!(task["state"], "succeeded", "{task}");
        let tokens = |name: &str| number(&task, &format!("/usage/{name}"));
        (sum.0 + tokens("prompt_tokens"), sum.1 + tokens("completion_tokens"))
    })
}

/// So many calls that were answered took these tokens, at our price.
#[track_caller]
fn assert_sums(row: &Value, calls: u64, tokens: (u64, u64)) {
    assert_eq!((number(row, "/calls"), number(row, "/failed")), (calls, 0), "{row}");
    assert_eq!((number(row, "/tokens_in"), number(row, "/tokens_out")), tokens, "{row}");
    let cost = (tokens.0 as f64 * PRICE.0 + tokens.1 as f64 * PRICE.1) / 1e6;
    assert!((row["cost"].as_f64().unwrap() - cost).abs() < 1e-6, "{row} is not {cost}");
}

/// The row in which `column` is `name`.
#[track_caller]
fn row<'a>(usage: &'a Value, column: &str, name: &str) -> &'a Value {
    let rows = usage["rows"].as_array().unwrap();
    rows.iter().find(|row| row[column] == name).unwrap_or_else(|| panic!("no {name} in {usage}"))
}

/// What was spent of the budget with this key.
#[track_caller]
fn spent(daemon: &Daemon, key: &str) -> f64 {
    let usage = daemon.json(&["usage"]);
    let budgets = usage["budgets"].as_array().unwrap();
    let budget = budgets.iter().find(|budget| budget["key"] == key);
    budget.unwrap_or_else(|| panic!("no {key} in {usage}"))["spent"].as_f64().unwrap()
}

fn today() -> String {
    jiff::Timestamp::now().to_string()[..10].to_owned()
}

#[test]
fn tokens_and_cost_add_up() {
    let model = model(&[]);
    let daemon = Daemon::start(&config(&model, ""));
    let nothing = daemon.json(&["usage"]);
    assert_sums(&nothing["total"], 0, (0, 0));
    assert_eq!((&nothing["rows"], &nothing["budgets"]), (&json!([]), &json!([])));

    let before = today();
    let ours = run_all(&daemon, &chats(5, &json!({})));
    let theirs = run_all(&daemon, &chats(3, &json!({ "queue": "theirs" })));
    run_all_of_other_kinds(&daemon);
    let all = (ours.0 + theirs.0, ours.1 + theirs.1);
    let usage = daemon.json(&["usage"]);
    assert_sums(&usage["total"], 8, all);
    assert_sums(row(&usage, "model", "sim-1"), 8, all);
    assert_eq!(row(&usage, "model", "sim-1")["provider"], "sim");
    let by_queue = daemon.json(&["usage", "--by", "queue"]);
    assert_sums(row(&by_queue, "queue", "default"), 5, ours);
    assert_sums(row(&by_queue, "queue", "theirs"), 3, theirs);
    let by_day = daemon.json(&["usage", "--by", "day", "--since", &before]);
    assert_eq!(by_day["since"], before);
    assert_sums(&by_day["total"], 8, all);
    let days: u64 =
        by_day["rows"].as_array().unwrap().iter().map(|row| number(row, "/calls")).sum();
    assert_eq!(days, 8);
    assert_sums(&daemon.json(&["usage", "--since", "2999-12-31"])["total"], 0, (0, 0));
    let table = daemon.ok(&["usage", "--by", "queue,provider"]);
    assert!(table.starts_with("QUEUE") && table.contains("theirs") && table.contains("total"));
}

/// What calls nobody costs nothing.
fn run_all_of_other_kinds(daemon: &Daemon) {
    let noops = daemon.submit_all(&vec![json!({ "kind": "noop" }); 3]);
    daemon.wait_for_all(&noops, "20s");
}

#[test]
fn an_agents_calls_are_charged_to_it() {
    let model = model(&[]);
    let agent = "agents.host = { priority = 9, daily_budget = 1e-6 }";
    let daemon = Daemon::start(&config(&model, agent));
    let input = json!({ "input": { "prompt": "Hello, host.", "agent": "host" } });
    let tokens = run_all(&daemon, &chats(1, &input));
    run_all(&daemon, &chats(2, &json!({})));
    let usage = daemon.json(&["usage", "--by", "agent"]);
    assert_sums(row(&usage, "agent", "host"), 1, tokens);
    assert_eq!(number(row(&usage, "agent", ""), "/calls"), 2);
    let refused = daemon.fails(7, &["submit", "chat", &input["input"].to_string()]);
    assert!(refused.contains("agents.host.daily_budget = 0.000001, spent "), "{refused}");
}

#[test]
fn failed_calls_are_counted_with_those_who_failed() {
    let (bad, good) = (model(&["--failure-rate", "1"]), model(&[]));
    let providers = [provider("bad", &bad, ""), provider("good", &good, "")].concat();
    let daemon =
        Daemon::start(&format!("{providers}models.default.chain = ['bad/sim-1', 'good/sim-1']\n"));
    let tokens = run_all(&daemon, &chats(3, &json!({})));
    let usage = daemon.json(&["usage"]);
    assert_sums(row(&usage, "provider", "good"), 3, tokens);
    let bad = row(&usage, "provider", "bad");
    assert_eq!((number(bad, "/calls"), number(bad, "/failed")), (3, 3), "{usage}");
    assert_eq!(bad["cost"], 0.0);
}

#[test]
fn a_brokers_death_counts_no_call_twice_and_forgets_none() {
    let model = Model::start(&["--first-token-ms", "100", "--tokens-per-second", "100"]);
    let daemon =
        Daemon::start(&config(&model, "workers.concurrency = 4\nqueue.daily_budget = 1e9"));
    let ids = daemon.submit_all(&chats(60, &json!({})));
    for kills in 0..3 {
        let done = (kills + 1) * 8;
        eventually_eq(true, || number(&daemon.json(&["stats"]), "/succeeded") >= done);
        daemon.kill(Role::Broker);
        eventually_eq(kills + 1, || number(&daemon.json(&["info"]), "/broker/restarts"));
    }
    daemon.wait_for_all(&ids, "60s");
    let mut tokens = (0, 0);
    for id in &ids {
        let task = daemon.task(id);
        assert_eq!(task["state"], "succeeded", "{task}");
        tokens.0 += number(&task, "/usage/prompt_tokens");
        tokens.1 += number(&task, "/usage/completion_tokens");
    }
    let total = daemon.json(&["usage"])["total"].clone();
    assert_sums(&total, 60, tokens);
    let difference = total["cost"].as_f64().unwrap() - spent(&daemon, "queue.daily_budget");
    assert!(difference.abs() < 1e-6, "the broker's own sum is off by {difference}");
}

#[test]
fn a_spent_budget_refuses_until_midnight_or_more_money() {
    let model = model(&[]);
    let cases = [
        ("queue.daily_budget", "queue.daily_budget = 1e-6"),
        ("queues.default.daily_budget", "queues.default.daily_budget = 1e-6"),
        ("providers.sim.daily_budget", ""),
    ];
    for (key, line) in cases {
        let budget = if line.is_empty() { ", daily_budget = 1e-6" } else { "" };
        let provider = provider("sim", &model, budget);
        let text = format!("{line}\n{provider}models.default.chain = ['sim/sim-1']\n");
        let mut daemon = Daemon::start(&text);
        let id = daemon.submit("chat", &json!({ "prompt": "a" }), &["--key", "first"]);
        daemon.until(&id, "succeeded");
        let chat = ["submit", "chat", "{\"prompt\":\"b\"}"];
        let refused = daemon.fails(7, &chat);
        assert!(refused.contains(&format!("{key} = 0.000001, spent 0.0")), "{refused}");
        assert!(refused.contains("00:00 UTC"), "{refused}");
        assert!(spent(&daemon, key) > 1e-6);
        // What was accepted before is known, and what calls nobody costs nothing.
        assert_eq!(daemon.submit("chat", &json!({ "prompt": "a" }), &["--key", "first"]), id);
        run_all_of_other_kinds(&daemon);
        // A run of a workflow may call: whom, nobody knows yet.
        let run = r#"{"name": "x", "steps": {"a": {"kind": "noop"}}}"#;
        match key.starts_with("queue") {
            true => drop(daemon.fails(7, &["submit", "workflow", run])),
            false => drop(daemon.ok(&["submit", "workflow", run, "--wait"])),
        }
        // It outlives the broker and the daemon, and ends with a greater one.
        daemon.kill(Role::Broker);
        daemon.all_up();
        daemon.fails(7, &chat);
        daemon.kill_everything();
        daemon.start_again();
        daemon.fails(7, &chat);
        daemon.configure(&text.replace("1e-6", "1e6"));
        daemon.ok(&["reload", "--wait"]);
        let id = daemon.ok(&chat);
        daemon.until(&id, "succeeded");
    }
}

#[test]
fn a_provider_whose_budget_is_spent_is_passed_over() {
    let (dear, cheap) = (model(&[]), model(&[]));
    let dear = provider("dear", &dear, ", daily_budget = 1e-6");
    let cheap = provider("cheap", &cheap, "");
    let chain = "models.default.chain = ['dear/sim-1', 'cheap/sim-1']";
    let daemon = Daemon::start(&format!("{dear}{cheap}{chain}\n"));
    let answered_by = |prompt: &str| {
        let id = daemon.submit("chat", &json!({ "prompt": prompt }), &[]);
        text(&daemon.until(&id, "succeeded"), "/output/provider")
    };
    assert_eq!(answered_by("one"), "dear");
    assert_eq!([answered_by("two"), answered_by("three")], ["cheap", "cheap"]);
    let usage = daemon.json(&["usage", "--by", "provider"]);
    assert_eq!(number(row(&usage, "provider", "dear"), "/calls"), 1);
    assert_eq!(number(row(&usage, "provider", "cheap"), "/calls"), 2);
    // Who asks for that provider alone is told.
    let refused = daemon.fails(7, &["submit", "chat", "{\"prompt\":\"x\",\"model\":\"dear/m\"}"]);
    assert!(refused.contains("providers.dear.daily_budget"), "{refused}");
}

#[test]
fn what_is_queued_when_the_budget_is_spent_waits_for_more() {
    let model = model(&[]);
    let text = config(&model, "queue.daily_budget = 1e-6\nqueues.default.max_running = 1");
    let daemon = Daemon::start(&text);
    daemon.ok(&["queue", "pause"]);
    let ids = daemon.submit_all(&chats(2, &json!({})));
    daemon.ok(&["queue", "resume"]);
    daemon.until(&ids[0], "succeeded");
    let waits = daemon.task(&ids[1]);
    assert_eq!((&waits["state"], &waits["waiting_for"]), (&json!("queued"), &json!("permit")));
    let listed = daemon.json_lines(&["list", "--state", "queued"]);
    assert_eq!((listed.len(), &listed[0]["waiting_for"]), (1, &json!("permit")));
    daemon.configure(&text.replace("1e-6", "1e6"));
    daemon.ok(&["reload", "--wait"]);
    daemon.until(&ids[1], "succeeded");
}
