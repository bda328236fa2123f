//! `forq sim-llm` as a server that misbehaves as it is asked to: what is on the network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::time::{Duration, Instant};

use support::http::{Exchange, Response};
use support::model::Model;
use support::{SOON, Value, eventually, json, number, shown};

const STREAM: [bool; 2] = [true, false];

fn start(model: &Model, name: &str, stream: bool) -> Exchange {
    let messages = json!([{ "role": "user", "content": "Say a word. A short word." }]);
    let body = json!({ "model": name, "messages": messages, "stream": stream });
    Exchange::start(&format!("{}/chat/completions", model.url), Some(&body))
}

fn ask(model: &Model, name: &str, stream: bool) -> Response {
    start(model, name, stream).finish()
}

fn fast(options: &[&str]) -> Model {
    Model::start(&[&["--first-token-ms", "0", "--tokens-per-second", "0"], options].concat())
}

/// The data of a stream's events.
fn events(response: &Response) -> Vec<&str> {
    response.text().split_terminator("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect()
}

fn text_of(events: &[&str]) -> String {
    let chunks = events.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|c| Some(c["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

/// Waits until the server sees that all its clients but the asker have gone.
#[track_caller]
fn until_quiet(model: &Model) -> Value {
    eventually("no call and no connection is left", SOON, || {
        let stats = model.stats();
        (stats["open_requests"] == 0 && stats["open_connections"] == 1).then_some(stats)
    })
}

#[test]
fn refusals_have_their_status_and_headers() {
    let model = fast(&[]);
    let cases = [
        ("429", 429, None),
        ("429-retry-after", 429, Some(("retry-after", "1"))),
        ("500", 500, None),
        ("400", 400, None),
        ("401", 401, None),
        ("wrong-content-type", 200, Some(("content-type", "text/html"))),
        ("redirect", 302, Some(("location", "/sim/elsewhere"))),
        ("no-such", 404, None),
    ];
    for (name, status, header) in cases {
        for stream in STREAM {
            let response = ask(&model, &format!("fault-{name}"), stream);
            assert_eq!(response.head.status, status, "{name}");
            let retry_after = response.head.headers.get("retry-after");
            assert_eq!(retry_after.is_some(), name == "429-retry-after");
            if let Some((header, value)) = header {
                assert_eq!(response.head.headers[header], value);
            } else {
                assert!(response.json()["error"]["message"].is_string());
            }
        }
    }
    let stats = until_quiet(&model);
    assert_eq!((number(&stats, "/requests"), number(&stats, "/aborted")), (16, 0));
}

#[test]
fn only_the_first_requests_for_a_model_fail() {
    let model = fast(&[]);
    let statuses =
        |name: &str| -> Vec<u16> { (0..4).map(|_| ask(&model, name, false).head.status).collect() };
    assert_eq!(statuses("fault-500:2"), [500, 500, 200, 200]);
    assert_eq!(statuses("fault-500:3"), [500, 500, 500, 200]);
    assert_eq!(statuses("default"), [200; 4]);
    let by_model = json!({ "fault-500:2": 4, "fault-500:3": 4, "default": 4 });
    assert_eq!(model.stats()["by_model"], by_model);
}

#[test]
fn the_option_is_for_all_models_that_name_no_fault() {
    let model = fast(&["--fault", "429:3"]);
    let asked = ["a", "b", "fault-401", "c"];
    let statuses = asked.map(|name| ask(&model, name, true).head.status);
    assert_eq!(statuses, [429, 429, 401, 200]);
    let refused = support::command().args(["sim-llm", "--fault", "none"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", shown(&refused));
    let help = support::command().args(["sim-llm", "--help"]).output().unwrap();
    assert!(shown(&help).contains("cut-mid-stream"), "{}", shown(&help));
}

#[test]
fn a_client_that_leaves_is_seen_to_have_left() {
    let model = fast(&[]);
    let faults = ["hang", "hang-mid-stream", "endless", "slow-drip"];
    for (before, name) in faults.iter().enumerate() {
        let mut exchanges = STREAM.map(|stream| start(&model, &format!("fault-{name}"), stream));
        if *name != "hang" {
            for exchange in &mut exchanges {
                assert_eq!(exchange.head().status, 200);
                assert!(!exchange.piece().is_empty());
            }
        }
        eventually("both are under way", SOON, || {
            let stats = model.stats();
            (stats["open_requests"] == 2 && stats["open_connections"] == 3).then_some(())
        });
        assert_eq!(number(&model.stats(), "/aborted"), 2 * before as u64);
        drop(exchanges);
        assert_eq!(number(&until_quiet(&model), "/aborted"), 2 * before as u64 + 2, "{name}");
    }
    assert_eq!(model.stats()["open_requests_max"], 2);
}

#[test]
fn a_cut_answer_is_half_of_one() {
    let model = fast(&[]);
    let healthy = ask(&model, "any", true);
    let whole_text = text_of(&events(&healthy));
    assert!(healthy.is_whole && events(&healthy).last() == Some(&"[DONE]"));
    let cut = ask(&model, "fault-cut-mid-stream", true);
    let text = text_of(&events(&cut));
    assert!(!cut.is_whole && !cut.text().contains("[DONE]"));
    assert!(!text.is_empty() && whole_text.starts_with(&text) && text != whole_text, "{text}");
    let cut = ask(&model, "fault-cut-mid-stream", false);
    let length: usize = cut.head.headers["content-length"].parse().unwrap();
    assert!(!cut.is_whole && cut.body.len() == length / 2);
    // It was the server that ended them.
    assert_eq!(number(&until_quiet(&model), "/aborted"), 0);
}

#[test]
fn writes_end_inside_characters_of_a_right_answer() {
    let model = fast(&[]);
    let response = ask(&model, "fault-split-utf8", true);
    let text = text_of(&events(&response));
    assert!(response.is_whole && text.starts_with("[simulated]"), "{text}");
    assert!(["é", "漢", "🦀"].iter().all(|wide| text.contains(wide)), "{text}");
    let whole = ask(&model, "fault-split-utf8", false);
    assert_eq!(whole.json()["choices"][0]["message"]["content"], text);
    let mut exchange = start(&model, "fault-split-utf8", true);
    exchange.head();
    let pieces = std::iter::from_fn(|| Some(exchange.piece()).filter(|piece| !piece.is_empty()));
    let cut = pieces.filter(|piece| std::str::from_utf8(piece).is_err()).count();
    assert!(cut > 0, "no piece ended inside a character");
}

#[test]
fn what_is_no_json_is_none() {
    let model = fast(&[]);
    let response = ask(&model, "fault-garbage-json", true);
    let events = events(&response);
    let bad = events.iter().filter(|data| serde_json::from_str::<Value>(data).is_err());
    assert_eq!(bad.count(), 2, "the garbage and [DONE]: {events:?}");
    assert_eq!(events.last(), Some(&"[DONE]"));
    let whole = ask(&model, "fault-garbage-json", false);
    assert!(whole.is_whole && serde_json::from_slice::<Value>(&whole.body).is_err());
    assert_eq!(
        (whole.head.status, &*whole.head.headers["content-type"]),
        (200, "application/json")
    );
}

#[test]
fn a_big_chunk_is_whole() {
    let model = fast(&[]);
    let response = ask(&model, "fault-big-chunk", true);
    assert_eq!(text_of(&events(&response)).len(), 10_000_000);
    assert!(events(&response).iter().any(|event| event.len() > 10_000_000));
    let whole = ask(&model, "fault-big-chunk", false).json();
    assert_eq!(whole["choices"][0]["message"]["content"].as_str().unwrap().len(), 10_000_000);
}

#[test]
fn a_drip_is_slow() {
    let model = fast(&[]);
    let mut exchange = start(&model, "fault-slow-drip", true);
    exchange.head();
    let began = Instant::now();
    let mut bytes = Vec::new();
    // Each byte is a chunk of its own: its length, itself.
    while bytes.iter().filter(|byte| **byte == b'\n').count() < 20 {
        bytes.extend(exchange.piece());
    }
    assert!(bytes.starts_with(b"1\r\nd\r\n1\r\na\r\n1\r\nt\r\n"), "{bytes:?}");
    assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
}

#[test]
fn endless_text_comes_as_fast_as_it_is_read() {
    let model = fast(&[]);
    for stream in STREAM {
        let mut exchange = start(&model, "fault-endless", stream);
        exchange.head();
        let mut read_bytes = 0;
        while read_bytes < 20_000_000 {
            let piece = exchange.piece();
            assert!(!piece.is_empty(), "it ended");
            read_bytes += piece.len();
        }
    }
    assert_eq!(number(&until_quiet(&model), "/aborted"), 2);
}

#[test]
fn stats_tell_what_arrived_when() {
    let model = fast(&[]);
    for _ in 0..3 {
        ask(&model, "any", false);
    }
    let redirected = model.url.replace("/v1", "/sim/elsewhere");
    assert_eq!(Exchange::start(&redirected, None).finish().head.status, 404);
    let stats = until_quiet(&model);
    let times = stats["request_times_ms"].as_array().unwrap();
    let times: Vec<u64> = times.iter().map(|time| time.as_u64().unwrap()).collect();
    assert!(times.len() == 3 && times.is_sorted(), "{times:?}");
    assert_eq!((number(&stats, "/unknown_paths"), number(&stats, "/requests")), (1, 3));
}
