//! What somebody who waits is told: why, at which place and for about how long; held against what
//! happens then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use jiff::Timestamp;
use support::model::{Model, chat, provider};
use support::{Daemon, SOON, Value, eventually, eventually_eq, json, number, text, time};

/// How long one call of the slow model takes.
const CALL_MS: &str = "300";
/// From a call to the room for another: a minute, and the second that calls may be late by.
const WINDOW: Duration = Duration::from_secs(61);
/// How far an estimate by the clock may be off.
const OFF_MAX: Duration = Duration::from_secs(2);

fn model(first_token_ms: &str) -> Model {
    Model::start(&["--first-token-ms", first_token_ms, "--tokens-per-second", "0"])
}

/// How many tasks are in this state.
#[track_caller]
fn count(daemon: &Daemon, state: &str) -> usize {
    daemon.json_lines(&["list", "--state", state]).len()
}

/// Milliseconds from one moment to another, or none.
fn between_ms(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

/// An estimate is for people: half or twice the truth is as good as it gets under any load.
#[track_caller]
fn assert_foretold(told_ms: u64, waited_ms: u64) {
    let fits = (waited_ms / 2..=waited_ms * 2).contains(&told_ms);
    assert!(fits, "told {told_ms} ms, waited {waited_ms} ms");
}

/// Reads the events of a follower as they come, each with the time at which it came.
fn read_events(follower: &mut Child) -> JoinHandle<Vec<(Timestamp, Value)>> {
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let timed = |line: &str| (Timestamp::now(), serde_json::from_str(line).unwrap());
    spawn(move || lines.map(|line| timed(&line.unwrap())).collect())
}

#[test]
fn calls_at_once_are_shared_by_those_ahead() {
    let model = model(CALL_MS);
    let daemon = Daemon::start(&provider("sim", &model.url, "max_concurrent = 2"));
    let ids = daemon.submit_all(&vec![chat("sim/m"); 20]);
    let mut follower = daemon.background(&["follow", &ids[18], "--json"]);
    let events = read_events(&mut follower);
    eventually("a few have run", SOON, || (count(&daemon, "succeeded") >= 4).then_some(()));
    let (waiting, asked_at) = (daemon.task(&ids[14]), Timestamp::now());
    assert_eq!(waiting["waiting_for"], "permit", "{waiting}");
    let reason = text(&waiting, "/waiting_reason");
    assert_eq!(reason, "sim: all of its 2 calls at once are under way");
    daemon.wait_for_all(&ids, "20s");

    let started_at = time(&daemon.task(&ids[14]), "/started_at");
    assert_foretold(number(&waiting, "/estimated_wait_ms"), between_ms(asked_at, started_at));

    assert!(follower.wait().unwrap().success());
    let events = events.join().unwrap();
    let started_at = time(&daemon.task(&ids[18]), "/started_at");
    let waits: Vec<_> = events.iter().filter(|(_, event)| event["type"] == "waiting").collect();
    let places: Vec<_> = waits.iter().map(|(_, event)| number(event, "/position")).collect();
    assert!(places.is_sorted_by(|a, b| a >= b), "{places:?}");
    assert!(places.first() > places.last(), "{places:?}");
    // Before any had run there was nothing to go by; and just before the start half or twice of
    // nearly nothing is no measure.
    let told: Vec<_> = waits
        .iter()
        .filter_map(|(at, event)| Some((event["estimated_wait_ms"].as_u64()?, *at)))
        .filter(|(_, at)| between_ms(*at, started_at) >= 600)
        .collect();
    assert!(!told.is_empty(), "{waits:?}");
    for (told_ms, at) in told {
        assert_foretold(told_ms, between_ms(at, started_at));
    }
}

#[test]
fn a_used_up_minute_is_foreseen_by_the_clock() {
    let model = model("0");
    let daemon = Daemon::start(&provider("sim", &model.url, "rpm = 2"));
    let first = daemon.submit_all(&vec![chat("sim/m"); 2]);
    daemon.wait_for_all(&first, "20s");
    let called_at: Vec<_> = first.iter().map(|id| time(&daemon.task(id), "/started_at")).collect();
    let ids = daemon.submit_all(&vec![chat("sim/m"); 3]);
    // Two leave the window one after the other, and the third needs the one after that.
    let [one, other] = [0, 1].map(|call| called_at[call]);
    let opens_at = [one + WINDOW, other + WINDOW, other + 2 * WINDOW];
    for (place, (id, opens_at)) in (1..).zip(ids.iter().zip(opens_at)) {
        let (task, now) = (daemon.task(id), Timestamp::now());
        assert_eq!((number(&task, "/position"), &task["waiting_for"]), (place, &json!("permit")));
        assert_eq!(text(&task, "/waiting_reason"), "sim: its 2 requests a minute are used up");
        let told_at = now + Duration::from_millis(number(&task, "/estimated_wait_ms"));
        let off = told_at.duration_since(opens_at).unsigned_abs();
        assert!(off <= OFF_MAX, "{told_at}, not {opens_at}: {task}");
    }
    let urgent = daemon.submit("chat", &chat("sim/m")["input"], &["--priority", "9"]);
    let places = [&urgent, &ids[0], &ids[2]].map(|id| number(&daemon.task(id), "/position"));
    assert_eq!(places, [1, 2, 4], "whoever comes with a higher priority goes first");
}

#[test]
fn a_task_says_what_it_waits_for() {
    let (quick, busy) = (model("0"), model("0"));
    let config = [
        "[queue]\nretry_backoff = '10ms'\n".to_owned(),
        provider("dead", "http://127.0.0.1:1/v1", "breaker = { failures = 1, cooldown = '10m' }"),
        provider("closed", &quick.url, ""),
        provider("tokens", &quick.url, "tpm = 600"),
        provider("busy", &busy.url, "max_concurrent = 1"),
        "[models.none]\nchain = ['dead/m', 'closed/m']\n".to_owned(),
    ];
    let daemon = Daemon::start(&config.concat());
    let failing = daemon.submit_all(&[chat("dead/m"), chat("closed/fault-429-retry-after:1")]);
    let done = daemon.submit_all(&[chat("tokens/m")]);
    daemon.wait_for_all(&done, "20s");
    daemon.submit_all(&[chat("busy/fault-hang")]);
    eventually_eq(1, || number(&busy.stats(), "/open_requests"));
    daemon.until(&failing[1], "scheduled");
    let dead = daemon.until(&failing[0], "queued");
    assert_eq!(dead["attempt"], 1, "it waits the outage out: {dead}");

    let mut large = chat("tokens/m");
    large["input"]["max_tokens"] = 600.into();
    let ids = daemon.submit_all(&[chat("dead/m"), large, chat("busy/m"), chat("none")]);
    let waits = |id: &str| {
        let task = daemon.task(id);
        assert_eq!((&task["state"], &task["waiting_for"]), (&json!("queued"), &json!("permit")));
        (text(&task, "/waiting_reason"), task["estimated_wait_ms"].as_u64())
    };
    let (reason, wait_ms) = waits(&ids[0]);
    assert!(reason.starts_with("dead is left alone for "), "{reason}");
    assert!(reason.ends_with(" s more after 1 failures in a row"), "{reason}");
    assert!((590_000..=600_000).contains(&wait_ms.unwrap()), "the cooldown: {wait_ms:?}");
    let (reason, _) = waits(&ids[1]);
    assert!(reason.starts_with("tokens: ") && reason.contains(" of its 600 tokens"), "{reason}");
    let (reason, wait_ms) = waits(&ids[2]);
    assert_eq!(reason, "busy: all of its 1 calls at once are under way");
    assert_eq!(wait_ms, None, "none has run yet");
}
