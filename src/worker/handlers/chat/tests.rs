//! Chat tasks against the simulated model, and against servers that misbehave.

mod bounds;
mod chain;
mod expect;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{Agent, Agents, ChatHandler, Provider, Routes};
use crate::handler::{Context, Event, EventSink, Handler, HandlerError, Output};
use crate::sim::{MODEL, SimOptions};
use crate::task::{ErrorKind, TaskId};
use crate::worker::handlers::testing::raw;

pub(super) const KEY: &str = "sk-very-secret";
/// A limit that must pass in a test.
const SHORT: Duration = Duration::from_millis(60);
/// One that must not.
const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Told(Mutex<String>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        if let Event::Text { text } = event {
            self.0.lock().unwrap().push_str(&text);
        }
    }
}

/// For tests of what makes no call.
pub(super) fn provider_named(name: &str) -> Provider {
    Provider { name: name.into(), ..provider(String::new()) }
}

pub(super) fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let header = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    pairs.iter().map(header).collect()
}

fn provider(base_url: String) -> Provider {
    Provider {
        name: "p".into(),
        base_url,
        api_key: Some(KEY.into()),
        timeout: LONG,
        first_token_timeout: LONG,
        idle_timeout: LONG,
    }
}

struct Client {
    handler: ChatHandler,
    told: Arc<Told>,
}

impl Client {
    fn new(provider: Provider) -> Self {
        let mut routes = Routes::default();
        routes.add_provider(provider);
        routes.add_model("default", &["p/m".to_owned()], false).unwrap();
        Self { handler: ChatHandler::new(routes, Agents::default()), told: Arc::default() }
    }

    async fn run(&self, input: Value) -> Result<Output, HandlerError> {
        let sink = Arc::clone(&self.told) as Arc<dyn EventSink>;
        let context = Context::new(TaskId::new(), 1, sink);
        let input = RawValue::from_string(input.to_string()).unwrap();
        self.handler.check(&input).unwrap();
        tokio::time::timeout(LONG, self.handler.run(context, input)).await.expect("it hangs")
    }

    async fn chat(&self) -> Result<Value, HandlerError> {
        let output = self.run(json!({"prompt": "hello"})).await?;
        Ok(serde_json::from_str(output.json.get()).unwrap())
    }

    fn told(&self) -> String {
        self.told.0.lock().unwrap().clone()
    }
}

// ---- the simulated model -------------------------------------------------------------------

async fn with_sim<T>(options: SimOptions, test: impl AsyncFnOnce(Client) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(provider(format!("http://{}/v1", listener.local_addr().unwrap())));
    tokio::select! {
        value = test(client) => value,
        ended = crate::sim::serve(listener, options, std::future::pending()) => panic!("{ended:?}"),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_stream_is_told_as_it_comes_and_put_together() {
    let options =
        SimOptions { first_token_ms: 5, tokens_per_second: 1000.0, ..SimOptions::default() };
    with_sim(options, async |client| {
        let output = client.run(json!({"prompt": "Name a bird. Any bird."})).await.unwrap();
        let usage = output.usage.unwrap();
        assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
        let output: Value = serde_json::from_str(output.json.get()).unwrap();
        assert_eq!(output["text"], client.told());
        assert!(client.told().starts_with("[simulated]"));
        assert_eq!(output["model"], MODEL);
        assert_eq!(output["provider"], "p");
        assert_eq!(output["finish_reason"], "stop");
        assert_eq!(output["cached"], false);
        assert_eq!(output["usage"]["total_tokens"], usage.total_tokens);
        let whole = client.run(json!({"prompt": "Name a bird. Any bird.", "stream": false}));
        let whole: Value = serde_json::from_str(whole.await.unwrap().json.get()).unwrap();
        assert_eq!(whole, output);
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn parameters_reach_the_model_and_calls_come_back() {
    with_sim(SimOptions::default(), async |client| {
        let cut = client.run(json!({"prompt": "One two three.", "max_tokens": 2})).await.unwrap();
        assert_eq!(cut.usage.unwrap().completion_tokens, 2);
        assert!(cut.json.get().contains(r#""finish_reason":"length""#));
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"type": "integer"}}}}});
        for stream in [true, false] {
            let input = json!({
                "messages": [{"role": "user", "content": "x"}], "stream": stream,
                "tools": [tool], "tool_choice": "required",
            });
            let output = client.run(input).await.unwrap();
            let output: Value = serde_json::from_str(output.json.get()).unwrap();
            let function = &output["tool_calls"][0]["function"];
            assert_eq!(*function, json!({"name": "f", "arguments": "{\"x\":1}"}));
            assert_eq!(output["finish_reason"], "tool_calls");
        }
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn refusals_say_whether_and_when_to_ask_again() {
    let limited = SimOptions { rate_limit_rate: 1.0, ..SimOptions::default() };
    let error = with_sim(limited, async |client| client.chat().await.unwrap_err()).await;
    assert_eq!(error.kind, ErrorKind::Provider);
    assert!(error.retryable);
    assert_eq!(error.retry_after, Some(Duration::from_secs(1)));
    assert!(error.message.starts_with("provider 'p' answered 429: The simulated"), "{error}");
    let failing = SimOptions { failure_rate: 1.0, ..SimOptions::default() };
    let error = with_sim(failing, async |client| client.chat().await.unwrap_err()).await;
    assert!(error.retryable && error.message.contains(" 500: "), "{error}");
    let bad = json!({"prompt": "a", "tool_choice": "required"});
    let error =
        with_sim(SimOptions::default(), async |client| client.run(bad).await.unwrap_err()).await;
    assert!(!error.retryable && error.message.contains(" 400: 'tool_choice'"), "{error}");
}

// ---- servers that misbehave ----------------------------------------------------------------

#[derive(Clone)]
enum Step {
    Send(Vec<u8>),
    /// Until the client closes.
    Hang,
    /// The same, with a comment now and then.
    Ping,
    /// The same, with this again and again.
    Flood(String),
}

/// A server that answers its n-th connection with the n-th script, and then closes it.
struct Fake {
    base_url: String,
    /// What each connection asked; once more, empty, when a hung one was closed by the client.
    seen: mpsc::UnboundedReceiver<String>,
}

async fn fake(scripts: Vec<Vec<Step>>) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for script in scripts {
            let (stream, _) = listener.accept().await.unwrap();
            play(stream, script, &sender).await;
        }
    });
    Fake { base_url, seen }
}

async fn play(mut stream: TcpStream, script: Vec<Step>, seen: &mpsc::UnboundedSender<String>) {
    let mut request = Vec::new();
    // Our requests end with the brace of their JSON, and have no brace in their head.
    while !(request.ends_with(b"}") && request.windows(4).any(|bytes| bytes == b"\r\n\r\n")) {
        if stream.read_buf(&mut request).await.unwrap() == 0 {
            break;
        }
    }
    let _ = seen.send(String::from_utf8(request).unwrap());
    for step in script {
        match step {
            // The client may have had enough.
            Step::Send(bytes) => drop(stream.write_all(&bytes).await),
            Step::Ping => {
                let mut beat = tokio::time::interval(SHORT / 6);
                while stream.write_all(b": ping\n\n").await.is_ok() {
                    beat.tick().await;
                }
            }
            Step::Flood(text) => while stream.write_all(text.as_bytes()).await.is_ok() {},
            Step::Hang => {
                while matches!(stream.read_buf(&mut Vec::new()).await, Ok(1..)) {}
                let _ = seen.send(String::new());
            }
        }
    }
}

fn head(status: &str, headers: &str) -> Step {
    Step::Send(format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n").into_bytes())
}

fn sse_head() -> Step {
    head("200 OK", "content-type: text/event-stream; charset=utf-8\r\n")
}

fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

fn text_event(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"delta": {"content": text}}]}))
}

const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// One chat with a server that plays one script; the client must end it by itself.
async fn chat_with(script: Vec<Step>) -> (Result<Value, HandlerError>, String) {
    let fake = fake(vec![script]).await;
    let client = Client::new(provider(fake.base_url));
    (client.chat().await, client.told())
}

async fn error_of(script: Vec<Step>) -> HandlerError {
    let error = chat_with(script).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Provider);
    assert!(error.message.starts_with("provider 'p' "), "{error}");
    assert!(!error.message.contains(KEY));
    error
}

#[tokio::test(flavor = "current_thread")]
async fn the_request_is_what_a_provider_expects() {
    let script = vec![sse_head(), send(text_event("a")), send(STOP), send(DONE)];
    let mut fake = fake(vec![script]).await;
    let client = Client::new(provider(std::mem::take(&mut fake.base_url)));
    client.chat().await.unwrap();
    let request = fake.seen.recv().await.unwrap();
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("authorization: Bearer {KEY}\r\n")), "{request}");
    let (_, body) = request.split_once("\r\n\r\n").unwrap();
    let expected = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "hello"}],
    });
    assert_eq!(serde_json::from_str::<Value>(body).unwrap(), expected);
}

#[tokio::test(flavor = "current_thread")]
async fn text_survives_any_cut_of_the_network() {
    let stream = format!(": hi\r\n\r\n{}{STOP}{DONE}", text_event("漢é😀"));
    let bytes = stream.into_bytes().into_iter().map(|byte| send(vec![byte]));
    let (output, told) = chat_with(std::iter::once(sse_head()).chain(bytes).collect()).await;
    assert_eq!(output.unwrap()["text"], "漢é😀");
    assert_eq!(told, "漢é😀");
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_with_a_last_word_is_kept_whatever_follows() {
    let endings = [
        vec![],
        vec![send(DONE)],
        vec![send("data: {\"usage\":{\"prompt_tokens\":1}}\n\n")],
        vec![send("data: garbage\n\n")],
        vec![send("data: {\"error\":{\"message\":\"late\"}}\n\n")],
    ];
    for ending in endings {
        let start = vec![sse_head(), send(text_event("a")), send(STOP)];
        let (output, _) = chat_with([start, ending].concat()).await;
        assert_eq!(output.unwrap()["text"], "a");
    }
    // [DONE] alone is a last word, too.
    let (output, _) = chat_with(vec![sse_head(), send(text_event("a")), send(DONE)]).await;
    assert_eq!(output.unwrap()["finish_reason"], Value::Null);
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_hangs_after_the_last_word_is_not_waited_for() {
    let script = vec![sse_head(), send(text_event("a") + STOP), Step::Hang];
    let fake = fake(vec![script]).await;
    let client = Client::new(Provider { idle_timeout: SHORT, ..provider(fake.base_url) });
    assert_eq!(client.chat().await.unwrap()["text"], "a");
}

#[tokio::test(flavor = "current_thread")]
async fn a_whole_answer_is_taken_though_a_stream_was_asked() {
    let body = json!({
        "model": "up", "choices": [{
            "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"
        }],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    });
    let json_head = head("200 OK", "content-type: application/json\r\n");
    let (output, told) = chat_with(vec![json_head, send(body.to_string())]).await;
    let output = output.unwrap();
    assert_eq!((&output["text"], &output["model"]), (&json!("a"), &json!("up")));
    assert_eq!(told, "a");
}

#[tokio::test(flavor = "current_thread")]
async fn a_cut_answer_is_worth_another_attempt() {
    let chunked = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
    let cuts = [
        vec![],
        vec![send("HTTP/1.1 2")],
        vec![sse_head()],
        vec![sse_head(), send(text_event("a"))],
        vec![sse_head(), send(text_event("a")), send("data: {\"choi")],
        vec![head("200 OK", chunked), send("ff\r\ndata: ")],
        vec![head("200 OK", "content-type: application/json\r\ncontent-length: 99\r\n"), send("{")],
    ];
    for cut in cuts {
        let error = error_of(cut).await;
        assert!(error.retryable, "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_completion_is_said() {
    let html = head("200 OK", "content-type: text/html\r\n");
    let error = error_of(vec![html, send("<html>")]).await;
    assert!(!error.retryable && error.message.contains("'text/html'"), "{error}");
    let error = error_of(vec![sse_head(), send("data: {\"choices\":5}\n\n")]).await;
    assert!(error.retryable && error.message.contains("no chunk"), "{error}");
    for body in ["{", "[]", r#"{"choices":[]}"#, "\u{0}"] {
        let json_head = head("200 OK", "content-type: application/json\r\n");
        let error = error_of(vec![json_head, send(body)]).await;
        assert!(error.retryable && error.message.contains("no completion"), "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_error_inside_an_answer_is_one() {
    let said = json!({"error": {"message": format!("no room for {KEY}"), "code": 502}});
    let error =
        error_of(vec![sse_head(), send(text_event("a")), send(format!("data: {said}\n\n"))]).await;
    assert!(error.retryable && error.message.contains("no room for [key]"), "{error}");
    let json_head = head("200 OK", "content-type: application/json\r\n");
    let said = json!({"error": {"message": "bad", "code": 400}});
    let error = error_of(vec![json_head, send(said.to_string())]).await;
    assert!(!error.retryable && error.message.ends_with("bad"), "{error}");
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it hangs")
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_knows_no_stream_options_is_asked_without_once() {
    let refuses = || vec![head("400 Bad Request", ""), send("unknown field stream_options")];
    let answers = || vec![sse_head(), send(text_event("a")), send(STOP)];
    let mut fake = fake(vec![refuses(), answers(), answers()]).await;
    let client = Client::new(provider(std::mem::take(&mut fake.base_url)));
    for _ in 0..2 {
        assert_eq!(client.chat().await.unwrap()["text"], "a");
    }
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(fake.seen.recv().await.unwrap().contains("stream_options"));
    }
    assert_eq!(asked, [true, false, false]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_bad_request_stays_one_and_its_second_reason_is_told() {
    let script = |said: &str| vec![head("400 Bad Request", ""), send(said)];
    let mut fake = fake(vec![script("first"), script("second")]).await;
    let client = Client::new(provider(std::mem::take(&mut fake.base_url)));
    let error = client.chat().await.unwrap_err();
    assert!(!error.retryable && error.message.ends_with("400: second"), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_is_not_there_may_come_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let error = Client::new(provider(base_url)).chat().await.unwrap_err();
    assert!(
        error.retryable && error.message.contains("could not be reached at 127.0.0.1:"),
        "{error}"
    );
    let error = Client::new(provider("no url".into())).chat().await.unwrap_err();
    assert!(!error.retryable && error.message.contains("base_url"), "{error}");
    let keyed = Provider { api_key: Some("a\nb".into()), ..provider("http://[::1]:1".into()) };
    let error = Client::new(keyed).chat().await.unwrap_err();
    assert!(!error.retryable && error.message.contains("API key"), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_redirect_is_not_followed() {
    let script = vec![head("307 Moved", "location: http://elsewhere.example/\r\n")];
    let error = error_of(script).await;
    assert!(!error.retryable && error.message.contains("elsewhere.example"), "{error}");
}

#[test]
fn check_names_an_unknown_model() {
    let client = Client::new(provider(String::new()));
    let input = RawValue::from_string(r#"{"prompt":"a","model":"x"}"#.into()).unwrap();
    let error = client.handler.check(&input).unwrap_err();
    assert_eq!(error, "input.model: there is no model 'x': give default, or PROVIDER/MODEL");
}

#[test]
fn an_agent_stands_in_for_what_is_missing() {
    let mut client = Client::new(provider(String::new()));
    let model = |name: &str| Some(name.to_owned());
    client.handler.agents.add("direct", Agent { model: model("p/x"), prompt: None });
    client.handler.agents.add("lost", Agent { model: model("fast"), prompt: None });
    let needs = |input: Value| client.handler.needs(&raw(input.to_string()));
    let direct = needs(json!({"prompt": "a", "agent": "direct"})).unwrap();
    assert_eq!((direct.gate.as_str(), direct.agent.as_deref()), ("p:p", Some("direct")));
    let own = needs(json!({"prompt": "a", "agent": "lost", "model": "default"})).unwrap();
    assert_eq!((own.gate.as_str(), own.agent.as_deref()), ("m:default", Some("lost")));
    for (agent, error) in [
        ("lost", "agents.lost.model: there is no model 'fast': give default, or PROVIDER/MODEL"),
        ("x", "input.agent: there is no agent 'x': give one of direct, lost"),
    ] {
        assert_eq!(needs(json!({"prompt": "a", "agent": agent})).unwrap_err(), error);
    }
    let error = needs(json!({"prompt": "a", "agent": "direct", "model": "x"})).unwrap_err();
    assert!(error.starts_with("input.model: "), "{error}");
}
