//! Calls of tools against services on the loopback that answer, fail and hang.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request as ServerRequest;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect};
use axum::routing::{any, get};
use serde_json::{Value, json};

use super::*;
use crate::config::{Service, Sources, load};
use crate::handler::Output;
use crate::task::ErrorKind;
use crate::worker::handlers::http::RESPONSE_BYTES_MAX;
use crate::worker::handlers::testing::{context, raw};

const KEY: &str = "sk-secret";

/// The tools of a configuration; every API key that it has is [`KEY`].
pub(super) fn tools(text: &str) -> BTreeMap<String, Rc<Tool>> {
    let file = Some(("forq.toml".into(), text.to_owned()));
    let config = load(&Sources { file, ..Sources::default() }).unwrap().config;
    let key = |service: &Service| Ok(service.api_key_env.as_ref().map(|_| KEY.into()));
    let tool = |(name, tool)| (String::clone(name), Rc::new(Tool::new(name, tool, key).unwrap()));
    config.tools.iter().map(tool).collect()
}

/// Serves what the tests call; its base URL.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// Services that fail in every way, and one that does not.
async fn services() -> String {
    let huge = || async { vec![b'x'; RESPONSE_BYTES_MAX + 1] };
    let busy = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")], "slow\ndown");
    let router = Router::new()
        .route("/good", get(|| async { axum::Json(json!({ "results": [1] })) }))
        .route("/busy", get(move || async move { busy }))
        .route("/broken", get(|| async { (StatusCode::BAD_GATEWAY, "<html>") }))
        .route("/picky", get(|| async { (StatusCode::BAD_REQUEST, format!("not {KEY}")) }))
        .route("/moved", get(|| async { Redirect::to("/good") }))
        .route("/huge", get(huge))
        .route("/hang", get(std::future::pending::<()>));
    serve(router).await
}

/// A tool `t` whose services have the names of their paths.
fn config(base: &str, chain: &[&str], more: &str) -> String {
    let mut text = format!("[tools.t]\nchain = {chain:?}\ntimeout = '1s'\n{more}\n");
    for path in chain {
        text.push_str(&format!("[tools.t.services.{path}]\nurl = '{base}/{path}'\n"));
    }
    text
}

async fn run(config: &str, input: Value) -> Result<(Value, Output), HandlerError> {
    let tools = tools(config).into_values().map(|tool| Rc::try_unwrap(tool).unwrap());
    let handler = ToolHandler::new(tools);
    handler.check_templates().unwrap();
    handler.check(&raw(input.to_string())).unwrap();
    let output = handler.run(context(&Arc::default()), raw(input.to_string())).await?;
    Ok((serde_json::from_str(output.json.get()).unwrap(), output))
}

async fn call(config: &str) -> Result<Value, HandlerError> {
    run(config, json!({ "tool": "t" })).await.map(|(shown, _)| shown)
}

#[tokio::test]
async fn the_next_service_answers_when_one_does_not() {
    let base = services().await;
    for (first, why) in [
        ("busy", "answered 429: slow down"),
        ("broken", "answered 502: Bad Gateway"),
        ("picky", "answered 400: not sk-secret"),
        (
            "moved",
            "answered 303: redirects are not followed; check its url (this one leads to /good)",
        ),
        ("huge", "sent too much: at least 8388609 bytes, 8388608 are allowed"),
        ("hang", "did not answer in time: timeout of 1 s passed"),
    ] {
        let output = call(&config(&base, &[first, "good"], "")).await.unwrap();
        let expected = json!({
            "service": "good", "status": 200, "json": { "results": [1] }, "degraded": false,
            "cached": false, "failures": [{ "service": first, "error": why }],
        });
        assert_eq!(output, expected);
    }
}

#[tokio::test]
async fn nobody_there_is_told_without_the_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error =
        call(&config(&format!("http://{address}/x?q=secret"), &["a"], "")).await.unwrap_err();
    assert!(error.message.starts_with("no service of 't' answered: a: could not be reached"));
    assert!(!error.message.contains("secret"), "{}", error.message);
    assert!(error.retryable);
}

#[tokio::test]
async fn the_end_of_a_chain_names_everybody() {
    let base = services().await;
    let error = call(&config(&base, &["busy", "picky"], "")).await.unwrap_err();
    let said = "no service of 't' answered: busy: answered 429: slow down; picky: answered 400: \
                not sk-secret";
    assert_eq!((error.message.as_str(), error.retryable), (said, true));
    assert_eq!(
        (error.kind, error.retry_after),
        (ErrorKind::Provider, Some(Duration::from_secs(7)))
    );
    let error = call(&config(&base, &["picky"], "")).await.unwrap_err();
    assert!(!error.retryable);
}

#[tokio::test]
async fn the_default_stands_in_and_is_not_kept() {
    let base = services().await;
    let default = "default = '''{\n\"results\": []}'''";
    let config = config(&base, &["busy", "broken"], default);
    let (output, whole) = run(&config, json!({ "tool": "t" })).await.unwrap();
    let expected = json!({
        "service": "default", "json": { "results": [] }, "degraded": true, "cached": false,
        "failures": [
            { "service": "busy", "error": "answered 429: slow down" },
            { "service": "broken", "error": "answered 502: Bad Gateway" },
        ],
    });
    assert_eq!(output, expected);
    assert!(!whole.json.get().contains('\n'));
}

#[tokio::test]
async fn all_of_a_request_is_sent() {
    let seen = Arc::<Mutex<Vec<Value>>>::default();
    let kept = Arc::clone(&seen);
    let echo = move |request: ServerRequest| async move {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let header = |name| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        kept.lock().unwrap().push(json!({
            "method": parts.method.as_str(), "url": parts.uri.to_string(),
            "body": String::from_utf8_lossy(&body), "lang": header("x-lang"),
            "bearer": header("authorization"), "key": header("x-api-key"),
        }));
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    };
    let base = serve(Router::new().fallback(any(echo))).await;
    let config = format!(
        "[tools.t]\nchain = ['a', 'b']\ndefault = 'null'\n[tools.t.services.a]\n\
         url = '{base}/find?q={{{{ params.q | urlencode }}}}'\napi_key_env = 'K'\n\
         headers.X-Lang = '{{{{ params.lang }}}}'\n[tools.t.services.b]\nurl = '{base}/b'\n\
         method = 'POST'\nbody = '{{{{ params | tojson }}}}'\napi_key_env = 'K'\n\
         api_key_header = 'X-API-Key'\n"
    );
    let input = json!({ "tool": "t", "params": { "q": "a b", "lang": "zh" } });
    let (output, _) = run(&config, input).await.unwrap();
    assert_eq!((&output["json"], &output["degraded"]), (&Value::Null, &json!(true)));
    let expected = [
        json!({
            "method": "GET", "url": "/find?q=a%20b", "body": "", "lang": "zh",
            "bearer": "Bearer sk-secret", "key": null,
        }),
        json!({
            "method": "POST", "url": "/b", "body": "{\"lang\": \"zh\", \"q\": \"a b\"}",
            "lang": null, "bearer": null, "key": "sk-secret",
        }),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn the_time_limit_is_for_each_call() {
    let base = services().await;
    let began = Instant::now();
    let error = call(&config(&base, &["hang"], "")).await.unwrap_err();
    assert!(error.retryable && began.elapsed() < Duration::from_secs(10), "{error}");
}
