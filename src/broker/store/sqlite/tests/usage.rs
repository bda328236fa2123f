//! The accounts: every call once, under its day, provider, model, agent and queue.

use serde_json::{Value, json};

use super::{Sqlite, new_task, submit};
use crate::broker::budget::{DAY_MS, Spent};
use crate::broker::store::sqlite::Durability;
use crate::broker::store::{Claim, End, Next, Owner, Paid, Refill, Store, usage};
use crate::protocol::control::UsageBy;
use crate::task::{NewTask, Usage};

const OWNER: Owner = Owner { instance: 1, serial: 7 };

fn open(folder: &tempfile::TempDir) -> Sqlite {
    Sqlite::open(&folder.path().join("forq.db"), 1, Durability::Os).unwrap()
}

fn paid(server: &str, tokens: u64, cost: f64) -> Paid {
    let usage =
        Usage { prompt_tokens: tokens, completion_tokens: 2 * tokens, total_tokens: 3 * tokens };
    let (server, model) = (server.to_owned(), "m".to_owned());
    Paid { server, model, usage: Some(usage), cost, ..Paid::default() }
}

fn failed(server: &str) -> Paid {
    Paid { usage: None, failed: true, ..paid(server, 0, 0.0) }
}

/// Submits a task and starts it; the end of that attempt.
fn running(store: &mut Sqlite, agent: Option<&str>, queue: &str, now_ms: i64) -> End {
    let mut task = NewTask { queue: Some(queue.to_owned()), ..new_task("{}") };
    task.needs.agent = agent.map(str::to_owned);
    submit(store, vec![task], now_ms).unwrap();
    let (queue, gate) = (queue.to_owned(), String::new());
    let refill = Refill { queue, priority: 5, gate, after: i64::MIN, limit: 1 };
    let seq = store.refill(&refill).unwrap()[0].seq;
    store.begin(true).unwrap();
    let claim = Claim { seq, owner: OWNER, worker_pid: 1, now_ms, sees: None };
    let claimed = store.claim(&claim).unwrap().unwrap();
    store.commit().unwrap();
    assert_eq!(claimed.facts.agent.as_deref(), agent);
    assert_eq!(store.claims().unwrap()[0].facts.agent.as_deref(), agent);
    let next = Next::Succeeded { output: "{}".to_owned(), usage: None };
    End {
        run: claimed.facts.run,
        owner: OWNER,
        now_ms,
        next,
        awaited: true,
        calls: Vec::new(),
        advance: None,
        keep: None,
    }
}

fn end(store: &mut Sqlite, end: &End) -> bool {
    store.begin(true).unwrap();
    let moved = store.end(end).unwrap().is_some();
    store.commit().unwrap();
    moved
}

fn document(store: &Sqlite, since_day: i64, by: &[UsageBy]) -> Value {
    usage::document(&store.db, since_day, by).unwrap().into()
}

#[test]
fn calls_add_up_by_what_they_have_in_common() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    for (agent, queue, day, calls) in [
        (None, "default", 3, vec![paid("a", 10, 0.1), paid("a", 1, 0.2)]),
        (Some("host"), "default", 4, vec![failed("a"), paid("b", 5, 1.0)]),
        (Some("host"), "q", 4, vec![Paid { cached: true, ..paid("a", 100, 9.0) }]),
        (Some("host"), "q", 4, vec![]),
    ] {
        let ended = End { calls, ..running(&mut store, agent, queue, day * DAY_MS + 5) };
        assert!(end(&mut store, &ended));
    }
    let row = |calls: u64, failed: u64, cached: u64, tokens: u64, cost: f64| {
        json!({ "calls": calls, "failed": failed, "cached": cached, "tokens_in": tokens,
                "tokens_out": 2 * tokens, "cost": cost })
    };
    let with = |mut row: Value, names: &[(&str, &str)]| {
        for (column, name) in names {
            row[*column] = json!(name);
        }
        row
    };
    let by_provider = document(&store, 0, &[UsageBy::Provider, UsageBy::Model, UsageBy::Model]);
    let expected = [
        with(row(3, 1, 1, 11, 0.3), &[("provider", "a"), ("model", "m")]),
        with(row(1, 0, 0, 5, 1.0), &[("provider", "b"), ("model", "m")]),
    ];
    assert_eq!(by_provider["rows"], json!(expected));
    assert_eq!(by_provider["total"], row(4, 1, 1, 16, 1.3));
    assert_eq!(
        (&by_provider["since"], &by_provider["more"]),
        (&json!("1970-01-01"), &json!(false))
    );
    let since = document(&store, 4, &[UsageBy::Day, UsageBy::Agent, UsageBy::Queue]);
    let day = ("day", "1970-01-05");
    let expected = [
        with(row(2, 1, 0, 5, 1.0), &[day, ("agent", "host"), ("queue", "default")]),
        with(row(0, 0, 1, 0, 0.0), &[day, ("agent", "host"), ("queue", "q")]),
    ];
    assert_eq!(since["rows"], json!(expected));
    assert_eq!(document(&store, 5, &[])["total"], row(0, 0, 0, 0, 0.0));
}

#[test]
fn a_call_counts_once_with_the_end_that_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let ended = End { calls: vec![paid("a", 1, 0.5)], ..running(&mut store, None, "q", 0) };
    let calls = |store: &Sqlite| document(store, 0, &[])["total"]["calls"].clone();

    let another = Owner { serial: 8, ..OWNER };
    assert!(!end(&mut store, &End { owner: another, ..ended.clone() }));
    assert_eq!(calls(&store), 0, "another worker's end is none");
    store.begin(true).unwrap();
    store.end(&ended).unwrap().unwrap();
    store.rollback();
    assert_eq!(calls(&store), 0, "nor is one that was never committed");
    drop(store);
    let mut store = open(&folder);
    assert!(end(&mut store, &ended));
    assert!(!end(&mut store, &ended));
    assert_eq!(calls(&store), 1, "and a second one moves nothing");

    // An attempt that is lost has paid all the same.
    let lost = End { calls: vec![paid("a", 1, 0.5)], ..running(&mut store, None, "q", 0) };
    assert!(end(&mut store, &End { next: Next::PutBack, ..lost }));
    assert_eq!(calls(&store), 2);
}

#[test]
fn a_starting_broker_knows_what_the_day_has_cost() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let mut expected = Spent::on(2);
    for (agent, day, cost) in [(Some("host"), 1, 5.0), (Some("host"), 2, 0.5), (None, 2, 0.25)] {
        let calls = vec![paid("a", 1, cost)];
        let ended = End { calls, ..running(&mut store, agent, "q", day * DAY_MS) };
        end(&mut store, &ended);
        if day == 2 {
            expected.add("a", agent, "q", cost);
        }
    }
    assert_eq!(store.spent_on(2).unwrap(), expected);
    assert_eq!(store.spent_on(3).unwrap(), Spent::on(3));
}

#[test]
fn accounts_of_long_ago_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let today = super::super::now_us() / 1000 / DAY_MS;
    for days_ago in [0, 399, 402] {
        let now_ms = (today - days_ago) * DAY_MS;
        let calls = vec![paid("a", 1, 1.0)];
        let ended = End { calls, ..running(&mut store, None, "q", now_ms) };
        end(&mut store, &ended);
    }
    store.begin(true).unwrap();
    store.prune(0, 10).unwrap();
    store.commit().unwrap();
    let rows = document(&store, 0, &[UsageBy::Day]);
    assert_eq!(rows["rows"].as_array().unwrap().len(), 2, "{rows}");
}
