//! Every kind of task end to end: through the real binary, to real servers and commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::channel;

use support::model::{self, Model};
use support::{Daemon, SOON, Value, json, number, outcomes, text};

/// The pieces of text of a follower's events.
fn texts(events: &[Value]) -> Vec<String> {
    let texts = events.iter().filter(|event| event["type"] == "text");
    texts.map(|event| text(event, "/text")).collect()
}

#[test]
fn a_chat_streams_its_text_and_counts_its_tokens() {
    let model = Model::start(&["--first-token-ms", "20", "--tokens-per-second", "200"]);
    let daemon = Daemon::start(&model.config());
    let prompt = "Forks are cheap. Threads are not. Sockets carry tasks to workers.";
    let input = json!({ "prompt": prompt, "system": "Be brief." });
    let (id, events) = daemon.run_followed("chat", &input);
    let pieces = texts(&events);
    assert!(pieces.len() > 1, "one piece only: {events:?}");
    let task = daemon.task(&id);
    assert_eq!(pieces.concat(), text(&task, "/output/text"));
    assert_eq!(events.last().unwrap()["type"], "finished");
    let numbers: Vec<u64> =
        events.iter().filter(|e| e["type"] == "text").map(|e| number(e, "/n")).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert_eq!(task["output"]["provider"], "sim");
    assert_eq!(task["output"]["finish_reason"], "stop");
    let usage = &task["usage"];
    let sum = number(usage, "/prompt_tokens") + number(usage, "/completion_tokens");
    assert!(number(usage, "/completion_tokens") > 0 && number(usage, "/total_tokens") == sum);
    assert_eq!(&task["output"]["usage"], usage);
    // People see the text as it comes, once.
    let shown = daemon.ok(&["chat", prompt]);
    let again = daemon.json_lines(&["list", "--limit", "1"]).remove(0);
    assert_eq!(shown, text(&daemon.task(&text(&again, "/id")), "/output/text").trim_end());
}

#[test]
fn a_call_of_a_tool_is_passed_on_whole() {
    let model = Model::start(&["--first-token-ms", "0", "--tokens-per-second", "0"]);
    let daemon = Daemon::start(&model.config());
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "type": "string" }, "days": { "type": "integer" } },
        "required": ["city", "days"],
    });
    let function =
        json!({ "name": "weather", "description": "Tells it", "parameters": parameters });
    for stream in [true, false] {
        let input = json!({
            "messages": [{ "role": "user", "content": "What is the weather in Lisbon?" }],
            "tools": [{ "type": "function", "function": function }],
            "tool_choice": { "type": "function", "function": { "name": "weather" } },
            "stream": stream,
        });
        let id = daemon.submit("chat", &input, &[]);
        let task = daemon.until(&id, "succeeded");
        let call = task.pointer("/output/tool_calls/0").expect("a call");
        assert_eq!(text(call, "/function/name"), "weather");
        let arguments: Value = serde_json::from_str(&text(call, "/function/arguments")).unwrap();
        assert!(arguments["city"].is_string() && arguments["days"].is_i64(), "{arguments}");
        assert_eq!(task["output"]["finish_reason"], "tool_calls");
    }
}

/// Asks for a score from 0 to 100.
fn rating() -> Value {
    let score = json!({ "type": "integer", "minimum": 0, "maximum": 100 });
    let schema = json!({
        "type": "object",
        "properties": { "score": score, "why": { "type": "string" } },
        "required": ["score", "why"],
        "additionalProperties": false,
    });
    json!({ "prompt": "Rate this sentence.", "expect": { "schema": schema } })
}

#[test]
fn a_model_that_answers_in_words_is_asked_again_for_json() {
    let model = Model::start(&["--tokens-per-second", "0", "--prose-rate", "1"]);
    let daemon = Daemon::start(&model.config());
    let printed = daemon.ok(&["submit", "chat", &rating().to_string(), "--wait"]);
    let task = daemon.json_lines(&["list", "--limit", "1"]).remove(0);
    let task = daemon.task(&text(&task, "/id"));
    let said = text(&task, "/output/text");
    assert_eq!(printed.trim_end(), said);
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert!(number(&answer, "/score") <= 100, "{answer}");
    assert!(text(&answer, "/why").starts_with("[simulated] "), "{answer}");
    // One call more, in the same attempt, and both are paid for.
    assert_eq!(number(&model.stats(), "/requests"), 2);
    assert_eq!((&task["attempt"], &task["output"]["asked"]), (&json!(1), &json!(2)));
    let usage = daemon.json(&["usage"]);
    assert_eq!(number(&usage, "/total/calls"), 2, "{usage}");
    assert_eq!(number(&usage, "/total/failed"), 0, "{usage}");
    let tokens = |field: &str| number(&task["usage"], field);
    assert_eq!(number(&usage, "/total/tokens_in"), tokens("/prompt_tokens"));
    assert_eq!(number(&usage, "/total/tokens_out"), tokens("/completion_tokens"));

    // Who follows it is told that the words do not count.
    let (_, events) = daemon.run_followed("chat", &rating());
    let at = events.iter().position(|event| event["data"]["restarted"].is_object());
    let (words, json) = events.split_at(at.expect("a restart"));
    assert_eq!(texts(words).concat(), "[simulated] Of course! Here it is, in words.");
    assert_eq!(texts(json).concat(), said);
    let reason = text(&json[0], "/data/restarted/reason");
    let expected = "the answer is not as expected: the answer is not JSON: expected value at line ";
    assert!(reason.starts_with(expected), "{reason}");
}

#[test]
fn a_task_whose_answer_is_never_as_expected_fails_within_its_attempts() {
    let model = Model::start(&["--first-token-ms", "0"]);
    let daemon = Daemon::start(&model.config());
    let input = json!({ "prompt": "Say yes or no.", "expect": { "regex": "^(yes|no)$" } });
    let id = daemon.submit("chat", &input, &["--max-attempts", "3"]);
    let task = daemon.until(&id, "failed");
    assert_eq!((number(&model.stats(), "/requests"), number(&task, "/attempt")), (3, 1));
    let said = "the answer is not as expected: the answer does not match the regular expression \
         ^(yes|no)$ (asked 3 times, at last provider 'sim')";
    assert_eq!(text(&task, "/error/message"), said);
    let bad = json!({ "prompt": "a", "expect": { "schema": { "type": "intger" } } });
    let refused = daemon.fails(2, &["submit", "chat", &bad.to_string()]);
    assert!(refused.contains("input.expect: schema: at /type: "), "{refused}");
}

#[test]
fn a_provider_that_fails_now_and_then_is_asked_again() {
    let model = Model::start(&[
        "--first-token-ms",
        "0",
        "--tokens-per-second",
        "0",
        "--failure-rate",
        "0.4",
        "--seed",
        "3",
    ]);
    let daemon = Daemon::start(&model.config());
    let tasks: Vec<Value> = (0..30)
        .map(|n| {
            let input = json!({ "prompt": format!("Tell me about the number {n}.") });
            json!({ "kind": "chat", "input": input, "max_attempts": 20 })
        })
        .collect();
    let ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, "60s");
    let tasks: Vec<Value> = ids.iter().map(|id| daemon.task(id)).collect();
    assert!(tasks.iter().all(|task| task["state"] == "succeeded"));
    let retried: Vec<&Value> = tasks.iter().filter(|task| number(task, "/attempt") > 1).collect();
    assert!(!retried.is_empty(), "nothing failed");
    for task in retried {
        let ends = outcomes(task);
        assert_eq!(ends.len() as u64, number(task, "/attempt"));
        assert!(ends[..ends.len() - 1].iter().all(|end| end == "failed"), "{ends:?}");
        assert_eq!(task["attempts"][0]["error"]["kind"], "provider");
    }
}

#[test]
fn a_provider_that_is_not_there_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Daemon::start(&model::config(&format!("http://{closed}/v1")));
    let id = daemon.submit("chat", &json!({ "prompt": "hi" }), &["--max-attempts", "2"]);
    let task = daemon.until(&id, "failed");
    assert_eq!(number(&task, "/attempt"), 2);
    assert_eq!(task["error"]["kind"], "provider");
    assert!(text(&task, "/error/message").contains("sim"), "{task}");
}

/// Under the configuration of `examples/agents.toml`, but for the address and with one call at once.
#[test]
fn who_calls_next_is_said_by_its_agent() {
    let model = Model::start(&["--first-token-ms", "20", "--tokens-per-second", "0"]);
    let mut daemon = Daemon::prepare("state", include_str!("../examples/agents.toml"));
    let mut serve = daemon.serve_command();
    serve.env("FORQ_PROVIDERS__SIM__BASE_URL", &model.url);
    serve.env("FORQ_PROVIDERS__SIM__MAX_CONCURRENT", "1");
    daemon.start_by(serve);
    daemon.ok(&["queue", "pause"]);
    let submit = |agent: &str, options: &[&str]| {
        daemon.submit("chat", &json!({ "agent": agent, "prompt": "Hello there." }), options)
    };
    let mut ids = Vec::new();
    for agent in ["reporter", "critic", "planner", "host"] {
        ids.extend([submit(agent, &[]), submit(agent, &[])]);
    }
    // A task's own priority goes before its agent's.
    ids.push(submit("reporter", &["--priority", "8"]));
    daemon.ok(&["queue", "resume"]);
    daemon.wait_for_all(&ids, "20s");
    let mut tasks: Vec<Value> = ids.iter().map(|id| daemon.task(id)).collect();
    tasks.sort_by_key(|task| support::time(task, "/started_at"));
    let who = |task| format!("{} {}", number(task, "/priority"), text(task, "/input/agent"));
    let order: Vec<String> = tasks.iter().map(who).collect();
    let expected = "9 host, 9 host, 8 reporter, 7 planner, 7 planner, 5 critic, 5 critic, \
                    3 reporter, 3 reporter";
    assert_eq!(order.join(", "), expected);
    assert_eq!(number(&model.stats(), "/open_requests_max"), 1);
    let unknown = daemon.fails(2, &["chat", "hi", "--agent", "hots"]);
    let known = "there is no agent 'hots': give one of critic, host, planner, reporter";
    assert!(unknown.contains(known), "{unknown}");
    // Its prompt went with it.
    daemon.ok(&["chat", "Hello there.", "--agent", "host"]);
    let asked = daemon.json_lines(&["list", "--limit", "1"]).remove(0);
    let with_prompt = number(&daemon.task(&text(&asked, "/id")), "/usage/prompt_tokens");
    daemon.ok(&["chat", "Hello there."]);
    let asked = daemon.json_lines(&["list", "--limit", "1"]).remove(0);
    let without = number(&daemon.task(&text(&asked, "/id")), "/usage/prompt_tokens");
    assert!(with_prompt > without + 10, "{with_prompt} and {without}");
}

/// A model that says a word and then nothing more; the channel tells when its caller hangs up.
fn stalling_model() -> (String, std::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (closed, is_closed) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let chunk = json!({
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{ "index": 0, "delta": { "content": "Well" }, "finish_reason": null }],
        });
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        stream.write_all(format!("{head}data: {chunk}\n\n").as_bytes()).unwrap();
        while stream.read(&mut request).is_ok_and(|count| count > 0) {}
        closed.send(()).unwrap();
    });
    (url, is_closed)
}

#[test]
fn a_cancel_closes_the_call_upstream() {
    let (url, is_closed) = stalling_model();
    let daemon = Daemon::start(&model::config(&url));
    let id = daemon.submit("chat", &json!({ "prompt": "hi" }), &[]);
    let mut follow = daemon.background(&["follow", &id]);
    let mut word = [0; 4];
    follow.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    assert_eq!(&word, b"Well");
    daemon.ok(&["cancel", &id]);
    is_closed.recv_timeout(SOON).expect("the call is closed");
    let task = daemon.until(&id, "cancelled");
    assert_eq!((&task["error"]["kind"], number(&task, "/attempt")), (&json!("cancelled"), 1));
    assert_eq!(follow.wait().unwrap().code(), Some(1));
}

#[test]
fn a_time_limit_closes_the_call_upstream() {
    let (url, is_closed) = stalling_model();
    let daemon = Daemon::start(&model::config(&url));
    let limits = &["--timeout", "500ms", "--max-attempts", "1"];
    let id = daemon.submit("chat", &json!({ "prompt": "hi" }), limits);
    is_closed.recv_timeout(SOON).expect("the call is closed");
    let task = daemon.until(&id, "failed");
    assert_eq!(task["error"]["kind"], "timeout");
}

#[test]
fn a_prompt_of_8_mib_goes_all_the_way() {
    let model = Model::start(&["--first-token-ms", "0", "--tokens-per-second", "0"]);
    let daemon = Daemon::start(&model.config());
    let file = daemon.file("prompt.json");
    let prompt = "A long story about forks and queues. ".repeat((8 << 20) / 37 + 1);
    std::fs::write(&file, json!({ "prompt": prompt }).to_string()).unwrap();
    let id = daemon.ok(&["submit", "chat", &format!("@{}", file.display())]);
    let task = daemon.until(&id, "succeeded");
    assert_eq!(task["input"]["prompt"], prompt, "kept as it was submitted");
    assert!(number(&task, "/usage/prompt_tokens") > 1_000_000, "{}", task["usage"]);
}

#[test]
fn a_command_reads_8_mib_and_tells_what_it_prints() {
    let daemon = Daemon::start("");
    let file = daemon.file("input.json");
    let stdin = "line of a large input\n".repeat((8 << 20) / 22);
    let input = json!({ "argv": ["wc", "-c"], "stdin": stdin });
    std::fs::write(&file, input.to_string()).unwrap();
    let id = daemon.ok(&["submit", "exec", &format!("@{}", file.display())]);
    let task = daemon.until(&id, "succeeded");
    assert_eq!(text(&task, "/output/stdout").trim(), stdin.len().to_string());

    let script = r#"echo plain; echo '{"step": 1}'; echo "$NAME in $PWD"; cat; echo oops >&2"#;
    let folder = daemon.file("");
    let input = json!({
        "argv": ["sh", "-c", script], "stdin": {"a": [1, 2]}, "env": {"NAME": "forq"},
        "cwd": folder,
    });
    let (id, events) = daemon.run_followed("exec", &input);
    let data: Vec<&Value> = events.iter().filter(|event| event["type"] == "data").collect();
    assert!(data.iter().any(|event| event["data"] == json!({ "step": 1 })), "{events:?}");
    assert!(texts(&events).concat().starts_with("plain\n"));
    let output = &daemon.task(&id)["output"];
    let printed = text(output, "/stdout");
    assert!(printed.contains("forq in ") && printed.ends_with(r#"{"a":[1,2]}"#), "{printed}");
    assert_eq!((&output["exit_code"], text(output, "/stderr")), (&json!(0), "oops\n".to_owned()));
}

#[test]
fn a_command_that_fails_says_how() {
    let daemon = Daemon::start("[queue]\nretry_backoff = '50ms'\n");
    let fail = json!({ "argv": ["sh", "-c", "echo why >&2; exit 3"] });
    let task = daemon.until(&daemon.submit("exec", &fail, &[]), "failed");
    assert_eq!(number(&task, "/attempt"), 3);
    assert_eq!(text(&task, "/error/message"), "the command ended with exit code 3: why");
    assert_eq!(number(&task, "/error/cause/exit_code"), 3);
    let killed = json!({ "argv": ["sh", "-c", "kill -9 $$"] });
    let task = daemon.until(&daemon.submit("exec", &killed, &["--max-attempts", "1"]), "failed");
    assert_eq!(text(&task, "/error/cause/signal"), "SIGKILL");
    assert_eq!(task["error"]["kind"], "handler", "the command died, not the worker");
    let nothing = json!({ "argv": ["/no/such/program"] });
    let task = daemon.until(&daemon.submit("exec", &nothing, &[]), "failed");
    assert_eq!(number(&task, "/attempt"), 1, "a retry mends nothing");
}

#[test]
fn an_http_call_and_its_answer() {
    let model = Model::start(&["--first-token-ms", "0", "--tokens-per-second", "0"]);
    let daemon = Daemon::start("[queue]\nretry_backoff = '50ms'\n");
    let models = json!({ "method": "GET", "url": format!("{}/models", model.url) });
    let output = &daemon.until(&daemon.submit("http", &models, &[]), "succeeded")["output"];
    assert_eq!(output["status"], 200);
    assert!(text(output, "/headers/content-type").starts_with("application/json"));
    assert_eq!(output["json"]["object"], "list");
    let ask = json!({
        "method": "POST",
        "url": format!("{}/chat/completions", model.url),
        "headers": { "authorization": "Bearer x" },
        "json": { "model": "m", "messages": [{ "role": "user", "content": "hi there" }] },
    });
    let output = &daemon.until(&daemon.submit("http", &ask, &[]), "succeeded")["output"];
    assert!(!text(output, "/json/choices/0/message/content").is_empty());
    let nothing = json!({ "url": format!("{}/nothing", model.url) });
    let output = &daemon.until(&daemon.submit("http", &nothing, &[]), "succeeded")["output"];
    assert_eq!(output["status"], 404);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = json!({ "url": format!("http://{closed}/") });
    let task = daemon.until(&daemon.submit("http", &nobody, &[]), "failed");
    assert_eq!(number(&task, "/attempt"), 3);
}

/// Talkative commands side by side: all that they say at once is more than one frame carries.
#[test]
fn many_that_talk_at_once_are_heard() {
    let config = "[workers]\nmin = 1\nmax = 1\n[queue]\ninput_bytes_max = '1MiB'\n";
    let daemon = Daemon::start(config);
    let talk = json!({ "argv": ["sh", "-c", "yes '{}' | head -n 250000"] });
    let tasks = vec![json!({ "kind": "exec", "input": talk }); 6];
    let ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, "60s");
    for id in &ids {
        let task = daemon.task(id);
        assert_eq!((&task["state"], number(&task, "/attempt")), (&json!("succeeded"), 1), "{task}");
    }
    assert!(!daemon.log().contains("let go"), "{}", daemon.log());
}
