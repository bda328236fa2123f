//! The simulated model over a real socket.

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{MODEL, REQUEST_BYTES_MAX, SimOptions, serve};

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Asks a fresh simulated model; no body means GET.
async fn ask(options: SimOptions, path: &str, body: Option<String>) -> Answer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{path}", listener.local_addr().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let request = match body {
        Some(body) => client.post(url).body(body),
        None => client.get(url),
    };
    let ask = async {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.text().await.unwrap() }
    };
    tokio::select! {
        answer = ask => answer,
        ended = serve(listener, options, std::future::pending()) => panic!("{ended:?}"),
    }
}

async fn complete(options: SimOptions, extra: Value) -> Answer {
    let mut body =
        json!({"model": "any", "messages": [{"role": "user", "content": "Say a word."}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    ask(options, "/v1/chat/completions", Some(body.to_string())).await
}

fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let mut parser = crate::openai::sse::Parser::new(1 << 20);
    parser.push(answer.body.as_bytes());
    let mut data: Vec<String> =
        std::iter::from_fn(|| parser.next_event().unwrap()).map(|event| event.data).collect();
    assert_eq!(data.pop().as_deref(), Some("[DONE]"));
    data.iter().map(|json| serde_json::from_str(json).unwrap()).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn a_stream_has_the_shape_of_openai() {
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let options = SimOptions { first_token_ms: 5, tokens_per_second: 500.0, ..Default::default() };
    let chunks = events(&complete(options, asked).await);
    let first = &chunks[0];
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(first["usage"].is_null() && first.as_object().unwrap().contains_key("usage"));
    for chunk in &chunks {
        assert_eq!((&chunk["id"], &chunk["model"]), (&first["id"], &json!(MODEL)));
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    let [.., finish, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(finish["choices"][0]["delta"], json!({}));
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], chunks.len() - 3);
}

#[tokio::test(flavor = "current_thread")]
async fn a_stream_and_a_whole_answer_agree() {
    let chunks = events(&complete(SimOptions::default(), json!({"stream": true})).await);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    let whole = complete(SimOptions::default(), json!({})).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(whole["object"], "chat.completion");
    assert!(text.contains("[simulated]"), "{text}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_forced_tool_is_called() {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"x": {"type": "integer"}}}}});
    let asked = json!({"tools": [tool], "tool_choice": "required"});
    let whole = complete(SimOptions::default(), asked.clone()).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert!(choice["message"]["content"].is_null());
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], r#"{"x":1}"#);
    let mut asked = asked;
    asked["stream"] = true.into();
    let chunks = events(&complete(SimOptions::default(), asked).await);
    let call = |chunk: &Value| chunk["choices"][0]["delta"]["tool_calls"][0].clone();
    assert_eq!(call(&chunks[0])["function"], json!({"name": "f", "arguments": ""}));
    assert!(call(&chunks[1]).get("id").is_none());
    let joined: String = chunks
        .iter()
        .filter_map(|chunk| call(chunk)["function"]["arguments"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(joined, r#"{"x":1}"#);
}

#[tokio::test(flavor = "current_thread")]
async fn errors_have_openais_body_and_status() {
    let fails = SimOptions { failure_rate: 1.0, ..SimOptions::default() };
    let refuses = SimOptions { rate_limit_rate: 1.0, ..SimOptions::default() };
    let none = SimOptions::default();
    let chat = "/v1/chat/completions";
    let no_messages = r#"{"model":"m"}"#.to_owned();
    let good = r#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#.to_owned();
    let huge = " ".repeat(REQUEST_BYTES_MAX + 1);
    let cases = [
        (none.clone(), chat, Some("{".to_owned()), 400, "invalid_request_error"),
        (none.clone(), chat, Some(no_messages), 400, "invalid_request_error"),
        (none.clone(), chat, Some(huge), 413, "invalid_request_error"),
        (none.clone(), chat, None, 405, "invalid_request_error"),
        (none.clone(), "/v2", None, 404, "invalid_request_error"),
        (none.clone(), "/v1/models/gpt-4", None, 404, "invalid_request_error"),
        (fails, chat, Some(good.clone()), 500, "server_error"),
        (refuses, chat, Some(good), 429, "requests"),
    ];
    for (options, path, body, status, kind) in cases {
        let answer = ask(options, path, body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["type"], kind);
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert!(error.as_object().unwrap().contains_key("param"));
        assert_eq!(answer.headers.contains_key("retry-after"), status == 429);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn models_are_listed() {
    let list = ask(SimOptions::default(), "/v1/models", None).await.json();
    assert_eq!(list["data"][0]["id"], MODEL);
    let one = ask(SimOptions::default(), &format!("/v1/models/{MODEL}"), None).await.json();
    assert_eq!(one, list["data"][0]);
    assert_eq!(ask(SimOptions::default(), "/healthz", None).await.status, 200);
}

#[test]
fn options_out_of_range_are_named() {
    let bad = SimOptions { failure_rate: 1.5, ..SimOptions::default() };
    assert!(bad.check().unwrap_err().starts_with("failure_rate is 1.5"));
    let bad = SimOptions { tokens_per_second: f64::NAN, ..SimOptions::default() };
    assert!(bad.check().unwrap_err().starts_with("tokens_per_second"));
    assert_eq!(SimOptions::default().check(), Ok(()));
}
