use super::*;
use crate::config::{Config, Sources, load};
use crate::protocol::link::Run;
use crate::task::Usage;

fn config(text: &str) -> Config {
    let sources =
        Sources { file: Some(("forq.toml".into(), text.to_owned())), ..Sources::default() };
    load(&sources).unwrap().config
}

fn permits(text: &str) -> Permits {
    let mut permits = Permits::default();
    permits.configure(&config(text));
    permits
}

const TWO: &str = "
[providers.a]
base_url = \"http://a\"
max_concurrent = 2
rpm = 3
tpm = 1000
[providers.b]
base_url = \"http://b\"
[models.default]
chain = [\"a/x\", \"b/y\"]
";

fn settled(grant: &Grant, outcome: CallOutcome, tokens: Option<u64>) -> Settled {
    let usage = tokens.map(|total_tokens| Usage {
        prompt_tokens: total_tokens,
        completion_tokens: 0,
        total_tokens,
    });
    let run = Run { seq: 1, attempt: 1 };
    let (grant, model) = (grant.clone(), "x".to_owned());
    Settled { run, grant, model, outcome, usage, closed_ms: None, late_ms: 0 }
}

fn fail(permits: &mut Permits, times: usize, now_ms: i64) {
    for _ in 0..times {
        let grant = permits.grant("m:default", 0, now_ms).unwrap();
        permits.settle(&settled(&grant, CallOutcome::Failed, None), now_ms);
    }
}

#[test]
fn a_limit_is_waited_for_and_trouble_is_not() {
    let mut permits = permits(TWO);
    let first = permits.grant("m:default", 0, 0).unwrap();
    let _second = permits.grant("m:default", 0, 0).unwrap();
    assert_eq!(first.server, "a");
    assert!(permits.grant("m:default", 0, 0).is_none(), "two at once, and no fallback for that");
    assert!(!permits.admits("m:default", 0, 0, 0));
    permits.settle(
        &Settled { closed_ms: Some(5000), ..settled(&first, CallOutcome::Failed, None) },
        10,
    );
    assert_eq!(permits.grant("m:default", 0, 10).unwrap().server, "b");
    let why = permits.grant_one_of(&["a".to_owned()], 0, 10).unwrap_err();
    assert_eq!(why, ["a asked to be left alone for 5 s more"]);
    assert_eq!(permits.next_change(10), Some(5010));
    assert!(permits.grant_one_of(&["a".to_owned()], 0, 5010).unwrap().is_some());
}

#[test]
fn the_whole_pool_shares_what_a_minute_has() {
    let mut permits = permits(TWO);
    for _ in 0..3 {
        let grant = permits.grant("p:a", 0, 0).unwrap();
        permits.settle(&settled(&grant, CallOutcome::Succeeded, None), 0);
    }
    assert_eq!(permits.room("p:a", 60_999), 0);
    assert!(!permits.admits("p:a", 0, 0, 60_999) && permits.admits("p:a", 0, 0, 61_000));
    assert_eq!(permits.room("p:a", 61_000), 2, "by the calls at once");
}

#[test]
fn tokens_are_settled_with_what_was_used() {
    let mut permits = permits(TWO);
    let grant = permits.grant("p:a", 900, 0).unwrap();
    assert!(!permits.admits("p:a", 200, 0, 0));
    permits.settle(&settled(&grant, CallOutcome::Succeeded, Some(100)), 50);
    assert!(permits.admits("p:a", 900, 0, 50) && !permits.admits("p:a", 901, 0, 50));
    let memos = permits.take_memos();
    let spent = |requests, tokens| Memo::Spent { meter: "a".into(), slot: 0, requests, tokens };
    assert_eq!(memos, [spent(1, 900), spent(0, -800)]);
}

#[test]
fn the_minute_of_a_late_call_runs_from_the_call() {
    let mut permits = permits(TWO);
    let calls: Vec<Grant> = (0..2).map(|_| permits.grant("p:a", 10, 0).unwrap()).collect();
    let third = Settled { late_ms: 400, ..settled(&calls[1], CallOutcome::Succeeded, None) };
    permits.settle(&third, 0);
    let late = Settled { late_ms: 5000, ..settled(&calls[0], CallOutcome::Succeeded, Some(30)) };
    permits.settle(&late, 6000);
    permits.take_memos();
    let used = |permits: &Permits, now_ms| {
        let look = permits.look("a", now_ms).unwrap();
        (look.rpm_used, look.tpm_used)
    };
    assert_eq!(used(&permits, 60_000), (2, 40));
    assert_eq!(used(&permits, 61_000), (1, 30));
    assert_eq!(used(&permits, 66_000), (0, 0));
}

#[test]
fn tokens_are_kept_for_who_is_first_in_line() {
    let mut permits = permits(&TWO.replace("rpm = 3\n", ""));
    let grant = permits.grant("p:a", 800, 0).unwrap();
    permits.settle(&settled(&grant, CallOutcome::Succeeded, Some(800)), 0);
    let a = ["a".to_owned()];
    let keep = |permits: &mut Permits, heads: &[(i64, u64)]| {
        permits.keep_tokens(heads.iter().map(|(place, tokens)| (&a[..], *place, *tokens)), 1);
    };
    keep(&mut permits, &[(5, 100), (7, 500), (9, 900)]);
    assert!(permits.admits("p:a", 100, 5, 1), "before it");
    assert!(!permits.admits("p:a", 100, 8, 1) && permits.admits("p:b", 100, 8, 1));
    keep(&mut permits, &[(5, 100)]);
    assert!(permits.admits("p:a", 100, 8, 1), "nobody is short of them");
    assert!(permits.counts_tokens());
}

#[test]
fn a_call_that_was_never_made_costs_nothing() {
    let permits = permits(TWO);
    for (way, costs) in [(0, false), (1, false), (2, true), (3, true)] {
        let mut permits = permits.clone();
        let grant = permits.grant("p:a", 900, 0).unwrap();
        match way {
            0 => permits.withdraw(grant.permit, 0),
            1 => permits.settle(&settled(&grant, CallOutcome::NotMade, None), 0),
            // The server may have seen these.
            2 => permits.settle(&settled(&grant, CallOutcome::Abandoned, None), 0),
            _ => permits.release(grant.permit, 0),
        }
        assert_eq!(permits.admits("p:a", 900, 0, 0), !costs, "{way}");
    }
}

#[test]
fn a_breaker_opens_the_way_to_the_next_and_comes_back() {
    let mut permits = permits(&TWO.replace("rpm = 3\n", ""));
    fail(&mut permits, 5, 0);
    assert_eq!(permits.grant("m:default", 0, 0).unwrap().server, "b");
    let why = permits.grant_one_of(&["a".to_owned(), "c".to_owned()], 0, 1).unwrap_err();
    assert_eq!(why[0], "a is left alone for 60 s more after 5 failures in a row");
    assert_eq!(why[1], "c is not configured");
    let probe = permits.grant("m:default", 0, 60_000).unwrap();
    assert_eq!(probe.server, "a");
    assert_eq!(permits.grant("m:default", 0, 60_000).unwrap().server, "b", "one probe");
    permits.settle(&settled(&probe, CallOutcome::Succeeded, None), 60_000);
    assert_eq!(permits.grant("m:default", 0, 60_000).unwrap().server, "a");
}

#[test]
fn a_brokers_death_loosens_nothing() {
    let mut before = permits(TWO);
    let held = before.grant("p:a", 400, 0).unwrap();
    let done = before.grant("p:a", 400, 0).unwrap();
    let failed = Settled { closed_ms: Some(90_000), ..settled(&done, CallOutcome::Failed, None) };
    before.settle(&failed, 0);
    let mut after = permits(TWO);
    after.await_worker(7);
    after.restore(before.take_memos());
    assert!(!after.admits("p:b", 0, 0, 1), "nothing until the worker has spoken");
    after.hold(&held);
    after.hold(&held);
    after.heard(7);
    assert!(after.admits("p:b", 0, 0, 1) && !after.admits("p:a", 0, 0, 1));
    assert_eq!(after.room("p:a", 90_000), 1, "one is under way");
    after.settle(&settled(&held, CallOutcome::Succeeded, Some(9)), 2);
    assert_eq!(after.room("p:a", 90_000), 2);
}

#[test]
fn a_spent_budget_opens_the_way_to_the_next_until_midnight() {
    let mut permits = permits(TWO);
    let until = |spent: &'static [&str]| move |name: &str| spent.contains(&name).then_some(9_000);
    permits.spent(until(&["a"]));
    assert_eq!(permits.grant("m:default", 0, 0).unwrap().server, "b");
    let closed = |permits: &Permits, gate| permits.why_closed(gate, 0, 0).is_some();
    assert!(closed(&permits, "p:a") && !closed(&permits, "m:default"));
    let why = permits.grant_one_of(&["a".to_owned()], 0, 0).unwrap_err();
    assert_eq!(why, ["a: the daily budget is spent for 9 s more"]);
    permits.spent(until(&["a", "b"]));
    assert!(permits.grant("m:default", 0, 8_999).is_none());
    assert!(["m:default", "p:a", "p:b"].into_iter().all(|gate| closed(&permits, gate)));
    assert_eq!(permits.next_change(0), Some(9_000));
    assert_eq!(permits.chain("m:default"), ["a", "b"]);
    assert!(permits.chain("m:none").is_empty());
    permits.configure(&config(TWO));
    assert!(!permits.admits("m:default", 0, 0, 0), "a reload makes no budget whole");
    assert_eq!(permits.grant("m:default", 0, 9_000).unwrap().server, "a");
    permits.spent(until(&[]));
    assert_eq!(permits.grant("m:default", 0, 1).unwrap().server, "a");
}

#[test]
fn tokens_are_put_right_by_a_later_broker_too() {
    let now_ms = 1_700_000_000_050;
    for (used, fits) in [(100, 900), (950, 50)] {
        let mut before = permits(TWO);
        let grant = before.grant("p:a", 400, now_ms).unwrap();
        let mut after = permits(TWO);
        after.restore(before.take_memos());
        after.hold(&grant);
        after.settle(&settled(&grant, CallOutcome::Succeeded, Some(used)), now_ms + 500);
        let now_ms = now_ms + 500;
        assert!(after.admits("p:a", fits, 0, now_ms) && !after.admits("p:a", fits + 1, 0, now_ms));
        let (meter, tokens) = ("a".to_owned(), used as i64 - 400);
        let spent = Memo::Spent { meter, slot: 17_000_000_000, requests: 0, tokens };
        assert_eq!(after.take_memos(), [spent]);
    }
}

#[test]
fn a_reload_keeps_what_was_counted() {
    let mut permits = permits(TWO);
    let grant = permits.grant("p:a", 0, 0).unwrap();
    permits.configure(&config(&TWO.replace("max_concurrent = 2", "max_concurrent = 1")));
    assert!(!permits.admits("p:a", 0, 0, 0));
    permits.configure(&config("[providers.c]\nbase_url = \"http://c\""));
    assert!(permits.admits("p:a", 0, 0, 0), "a gate of before holds nobody up");
    permits.settle(&settled(&grant, CallOutcome::Succeeded, None), 0);
    assert!(permits.grant("m:default", 0, 0).is_none());
}

#[test]
fn gates_compete_for_one_server() {
    let permits = permits(TWO);
    let a = ["a".to_owned()];
    assert!(permits.competes("m:default", &a, 0) && permits.competes("p:a", &a, 0));
    assert!(!permits.competes("p:b", &a, 0) && !permits.competes("m:none", &a, 0));
}

const SEARCH: &str = "
[tools.search]
chain = [\"main\", \"backup\"]
max_concurrent = 3
rpm = 4
breaker = { failures = 1, cooldown = \"9s\" }
services.main.url = \"http://main\"
services.backup.url = \"http://backup\"
[providers.search]
base_url = \"http://search\"
";

#[test]
fn the_services_of_a_tool_share_its_limits_and_not_its_troubles() {
    let mut permits = permits(SEARCH);
    let first = permits.grant("t:search", 0, 0).unwrap();
    assert_eq!(first.server, "search/main");
    permits.settle(&settled(&first, CallOutcome::Failed, None), 0);
    let backup = permits.grant("t:search", 0, 0).unwrap();
    assert_eq!(backup.server, "search/backup");
    assert_eq!(permits.room("t:search", 0), 2, "of the calls at once and of the minute");
    assert_eq!(permits.room("p:search", 0), u64::MAX, "a provider of that name is another");
    permits.settle(&settled(&backup, CallOutcome::Failed, None), 0);
    assert!(!permits.admits("t:search", 0, 0, 0) && permits.admits("t:search", 0, 0, 9000));
    let why = permits.grant_one_of(&["search/main".to_owned()], 0, 0).unwrap_err();
    assert_eq!(why, ["search/main is left alone for 9 s more after 1 failures in a row"]);
}

#[test]
fn a_task_that_has_an_answer_of_its_own_waits_for_a_limit_alone() {
    let with_default = SEARCH.replace("rpm = 4", "rpm = 4\ndefault = \"[]\"");
    let mut permits = permits(&with_default);
    for _ in 0..2 {
        let grant = permits.grant("t:search", 0, 0).unwrap();
        permits.settle(&settled(&grant, CallOutcome::Failed, None), 0);
    }
    assert!(permits.admits("t:search", 0, 0, 0) && permits.grant("t:search", 0, 0).is_none());
    assert_eq!(permits.room("t:search", 0), u64::MAX);
    for _ in 0..2 {
        let grant = permits.grant("t:search", 0, 10_000).unwrap();
        permits.settle(&settled(&grant, CallOutcome::Succeeded, None), 10_000);
    }
    assert!(!permits.admits("t:search", 0, 0, 10_000), "the minute is used up");
}
