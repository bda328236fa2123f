//! Chains of providers that misbehave, with a broker that grants and is told.

use std::cell::RefCell;

use super::*;
use crate::expect::Expect;
use crate::protocol::calls::CallOutcome::{Failed, NotMade, Refused, Succeeded};
use crate::protocol::calls::{Answered, Begin, CallOutcome, Grant, Settled};
use crate::protocol::link::{Run, Start, ToBroker};
use crate::worker::calls::Calls;
use crate::worker::handlers::testing::Events;
use crate::worker::held::Wake;

/// A model `default` that is a chain of `a`, `b`, …, each with the model `m`.
pub(super) struct Chained {
    pub(super) handler: ChatHandler,
    /// Providers that the broker grants nothing for.
    pub(super) closed: Vec<&'static str>,
    pub(super) attempt: u32,
    pub(super) calls_max: u32,
    pub(super) cached: Option<String>,
    pub(super) expect: Option<Arc<Expect>>,
}

/// What came of an attempt.
pub(super) struct Came {
    pub(super) result: Result<Value, HandlerError>,
    pub(super) events: Vec<Event>,
    pub(super) settled: Vec<Settled>,
}

impl Chained {
    pub(super) fn new(providers: Vec<Provider>, buffer_first: bool) -> Self {
        let mut routes = Routes::default();
        let mut targets = Vec::new();
        for (name, provider) in ["a", "b", "c"].into_iter().zip(providers) {
            routes.add_provider(Provider { name: name.into(), ..provider });
            targets.push(format!("{name}/m"));
        }
        routes.add_model("default", &targets, buffer_first).unwrap();
        let mut agents = Agents::default();
        let prompt = Some("Be kind.".to_owned());
        agents.add("host", Agent { model: None, prompt });
        let handler = ChatHandler::new(routes, agents);
        Self { handler, closed: Vec::new(), attempt: 1, calls_max: 3, cached: None, expect: None }
    }

    pub(super) async fn run(&self, input: Value) -> Came {
        let input = RawValue::from_string(input.to_string()).unwrap();
        let (wake, events) = (Arc::<Wake>::default(), Arc::new(Events::default()));
        let run = Run { seq: 1, attempt: self.attempt };
        let start = Start {
            run,
            id: TaskId::new(),
            kind: "chat".into(),
            input: String::new(),
            timeout_ms: 1000,
        };
        let (calls_max, cached) = (self.calls_max, self.cached.clone());
        let calls =
            Calls::begin(&mut Begin { start, grant: None, calls_max, cached, stale: None }, &wake);
        let context = Context {
            attempt: self.attempt,
            calls: calls.clone(),
            expect: self.expect.clone(),
            ..Context::new(TaskId::new(), 1, events.clone())
        };
        let settled = RefCell::default();
        let result = tokio::select! {
            result = within(self.handler.run(context, input)) => result,
            () = self.grant(&calls, &wake, &settled) => unreachable!(),
        };
        self.hear(&calls, &settled);
        let result = result.map(|output| serde_json::from_str::<Value>(output.json.get()).unwrap());
        Came { result, events: events.all(), settled: settled.into_inner() }
    }

    async fn grant(&self, calls: &Calls, wake: &Wake, settled: &RefCell<Vec<Settled>>) {
        loop {
            wake.changed.notified().await;
            self.hear(calls, settled);
        }
    }

    fn hear(&self, calls: &Calls, settled: &RefCell<Vec<Settled>>) {
        let mut said = Vec::new();
        calls.take_unsent(&mut said);
        for message in said {
            match message {
                ToBroker::Settled(call) => settled.borrow_mut().push(call),
                ToBroker::Ask(ask) => {
                    let is_closed = |server: &&String| !self.closed.contains(&server.as_str());
                    let why = |server: &String| format!("{server} is left alone until noon");
                    let permit = u64::from(ask.number);
                    let result = match ask.servers.iter().find(is_closed).cloned() {
                        Some(server) => Ok(Grant { permit, server, tokens: ask.tokens }),
                        None => Err(ask.servers.iter().map(why).collect()),
                    };
                    calls.answered(Answered { run: ask.run, number: ask.number, result });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) async fn chat(&self) -> Came {
        self.run(json!({"prompt": "hello"})).await
    }
}

impl Came {
    /// Who was called, and how it ended.
    pub(super) fn outcomes(&self) -> Vec<(&str, CallOutcome)> {
        self.settled.iter().map(|call| (call.grant.server.as_str(), call.outcome)).collect()
    }

    pub(super) fn error(self) -> HandlerError {
        self.result.unwrap_err()
    }
}

/// A provider that plays one script, and once more for a 400, which may have meant the
/// `stream_options`.
pub(super) async fn plays(script: Vec<Step>) -> Provider {
    provider(fake(vec![script.clone(), script]).await.base_url)
}

pub(super) fn says(text: &str) -> Vec<Step> {
    let usage = "data: {\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3}}\n\n";
    vec![sse_head(), send(text_event(text)), send(STOP), send(usage), send(DONE)]
}

pub(super) fn answers(status: &str, body: &str) -> Vec<Step> {
    vec![head(status, ""), send(body)]
}

/// A provider that is not there.
async fn absent() -> Provider {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    provider(format!("http://{}/v1", listener.local_addr().unwrap()))
}

#[tokio::test(flavor = "current_thread")]
async fn what_another_provider_may_mend_goes_on() {
    let json_head = || head("200 OK", "content-type: application/json\r\n");
    let no_model = r#"{"error":{"message":"no","code":"model_not_found"}}"#;
    let no_room = r#"{"error":{"message":"This model's maximum context length is 4096"}}"#;
    let broken = r#"data: {"error":{"message":"overloaded"}}"#.to_owned() + "\n\n";
    let cases = [
        (answers("408 Late", ""), Failed, "answered 408"),
        (answers("429 Slow", ""), Failed, "answered 429"),
        (answers("500 No", "boom"), Failed, "answered 500: boom"),
        (answers("503 No", ""), Failed, "answered 503"),
        (answers("401 No", ""), Refused, "answered 401"),
        (answers("402 Pay", ""), Refused, "answered 402"),
        (answers("403 No", ""), Refused, "answered 403"),
        (answers("404 No", ""), Refused, "answered 404"),
        (answers("400 No", no_model), Refused, "answered 400: no"),
        (answers("400 No", no_room), Refused, "answered 400: This model's"),
        (answers("302 There", ""), Failed, "answered 302: redirects"),
        (vec![head("200 OK", "content-type: text/html\r\n")], Failed, "answered with 'text/html'"),
        (vec![json_head(), send("{")], Failed, "sent an answer that is no completion"),
        (vec![json_head(), send(vec![b' '; 17 << 20])], Failed, "said too much"),
        (vec![sse_head(), send("data: {\n\n")], Failed, "sent an event that is no chunk"),
        (vec![sse_head(), send(broken)], Failed, "broke off with an error: overloaded"),
        (vec![sse_head(), send(vec![b'x'; 10 << 20])], Failed, "said too much"),
        (vec![sse_head()], Failed, "cut the answer off"),
        (vec![], Failed, "broke off the answer"),
        (vec![Step::Hang], Failed, "did not answer in time: first_token_timeout"),
    ];
    for (script, outcome, error) in cases {
        let first = Provider { first_token_timeout: SHORT * 10, ..plays(script).await };
        let came = Chained::new(vec![first, plays(says("well")).await], false).chat().await;
        assert_eq!(came.outcomes(), [("a", outcome), ("b", Succeeded)], "{error}");
        let output = came.result.unwrap();
        assert_eq!((&output["text"], &output["provider"]), (&json!("well"), &json!("b")));
        let fallback = &output["fallbacks"][0];
        assert_eq!((&fallback["provider"], &fallback["model"]), (&json!("a"), &json!("m")));
        assert!(fallback["error"].as_str().unwrap().starts_with(error), "{fallback}");
        assert_eq!(came.events, [Event::Text { text: "well".into() }], "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_called_goes_on() {
    let bad_key = Provider { api_key: Some("a\nb".into()), ..absent().await };
    for (first, outcome) in
        [(absent().await, Failed), (provider("no url".into()), NotMade), (bad_key, NotMade)]
    {
        let came = Chained::new(vec![first, plays(says("well")).await], false).chat().await;
        assert_eq!(came.outcomes(), [("a", outcome), ("b", Succeeded)]);
        assert_eq!(came.result.unwrap()["text"], "well");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_bad_request_is_bad_everywhere() {
    for status in ["400 No", "413 No", "422 No"] {
        let first = plays(answers(status, "no")).await;
        let came = Chained::new(vec![first, absent().await], false).chat().await;
        assert_eq!(came.outcomes(), [("a", Refused)]);
        let error = came.error();
        assert!(!error.retryable);
        assert_eq!(error.message, format!("provider 'a' answered {}: no", &status[..3]));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn each_provider_gets_the_request_as_it_was() {
    let mut second = fake(vec![says("well")]).await;
    let first = Provider { timeout: SHORT, ..plays(vec![Step::Hang]).await };
    let base_url = std::mem::take(&mut second.base_url);
    let chained = Chained::new(vec![first, provider(base_url)], false);
    chained.run(json!({"prompt": "x", "cache": true, "agent": "host"})).await.result.unwrap();
    let request = second.seen.recv().await.unwrap();
    let (_, body) = request.split_once("\r\n\r\n").unwrap();
    let expected = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "x"},
        ],
    });
    assert_eq!(serde_json::from_str::<Value>(body).unwrap(), expected);
}

#[tokio::test(flavor = "current_thread")]
async fn a_broken_stream_begins_anew_and_says_so() {
    let broken = || vec![sse_head(), send(text_event("lost"))];
    let providers = vec![plays(broken()).await, absent().await, plays(says("well")).await];
    let came = Chained::new(providers, false).chat().await;
    assert_eq!(came.outcomes(), [("a", Failed), ("b", Failed), ("c", Succeeded)]);
    let output = came.result.unwrap();
    assert_eq!(output["text"], "well");
    assert_eq!(output["fallbacks"].as_array().unwrap().len(), 2);
    let reason = "provider 'a' cut the answer off before its end";
    let restarted = json!({"restarted": {"provider": "c", "reason": reason}});
    let expected = [
        Event::Text { text: "lost".into() },
        Event::Data { data: restarted.into() },
        Event::Text { text: "well".into() },
    ];
    assert_eq!(came.events, expected);
    // With buffer_first nobody hears of it.
    let providers = vec![plays(broken()).await, plays(says("well")).await];
    let came = Chained::new(providers, true).chat().await;
    assert_eq!(came.result.unwrap()["text"], "well");
    assert_eq!(came.events, [Event::Text { text: "well".into() }]);
}

#[tokio::test(flavor = "current_thread")]
async fn an_error_lists_every_provider() {
    let limited = vec![head("429 Slow", "retry-after: 7\r\n"), send("slow")];
    let providers = vec![plays(limited).await, absent().await, absent().await];
    let port = providers[1].base_url.clone();
    let chained = Chained { closed: vec!["c"], ..Chained::new(providers, false) };
    let came = chained.chat().await;
    assert_eq!(came.outcomes(), [("a", Failed), ("b", Failed)]);
    assert_eq!(came.settled[0].closed_ms, Some(7000));
    let error = came.error();
    let at = port.trim_start_matches("http://").trim_end_matches("/v1");
    let start = format!(
        "all providers of 'default' failed: a: answered 429: slow; b: could not be reached at {at}: "
    );
    assert!(error.message.starts_with(&start), "{error}");
    assert!(error.message.ends_with("; c is left alone until noon"), "{error}");
    assert_eq!((error.retryable, error.retry_after), (true, None));
}

#[tokio::test(flavor = "current_thread")]
async fn later_attempts_have_the_calls_that_are_left() {
    for (attempt, calls_max, called) in [(1, 1, 3), (2, 2, 2), (3, 1, 1)] {
        let providers = vec![absent().await, absent().await, absent().await];
        let chained = Chained { attempt, calls_max, ..Chained::new(providers, false) };
        let came = chained.chat().await;
        assert_eq!(came.settled.len(), called, "attempt {attempt}");
        assert!(came.error().retryable);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_broker_hears_of_tokens_and_of_limits() {
    let spent = "x-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1m1.5s\r\n\
         content-type: text/event-stream\r\n";
    let script = [vec![head("200 OK", spent)], says("well").split_off(1)].concat();
    let came = Chained::new(vec![plays(script).await], false).chat().await;
    let call = &came.settled[0];
    assert_eq!((call.outcome, call.closed_ms, call.model.as_str()), (Succeeded, Some(61_500), "m"));
    assert_eq!(call.usage.unwrap().total_tokens, 5);
    assert_eq!(call.grant.tokens, 4 + 2 + 512);
    // A stream that breaks had headers, too.
    let script = vec![head("200 OK", spent), send(text_event("lost"))];
    let came = Chained::new(vec![plays(script).await], false).chat().await;
    assert_eq!((came.settled[0].outcome, came.settled[0].closed_ms), (Failed, Some(61_500)));
}

#[tokio::test(flavor = "current_thread")]
async fn a_cached_answer_is_told_and_calls_nobody() {
    let text = "word ".repeat(100);
    let cached = json!({"text": text, "model": "m", "provider": "a", "cached": false}).to_string();
    let chained = Chained::new(vec![absent().await], false);
    let came = Chained { cached: Some(cached), ..chained }.chat().await;
    assert!(came.settled.is_empty());
    let output = came.result.unwrap();
    assert_eq!((&output["text"], &output["cached"]), (&json!(text), &json!(true)));
    assert!(came.events.len() > 5);
}
