//! Real calls to a real server on the loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method as ServerMethod, StatusCode};
use axum::response::Redirect;
use axum::routing::{any, get};
use serde_json::{Value, json};

use super::*;
use crate::worker::handlers::testing::{context, raw, run};

async fn call(input: Value) -> Result<Value, HandlerError> {
    run(&Http::default(), input.to_string()).await
}

/// Serves on a free port; returns its base URL.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn echo(method: ServerMethod, headers: HeaderMap, body: String) -> axum::Json<Value> {
    let header = |name| headers.get(name).map(|value| value.to_str().unwrap());
    axum::Json(json!({
        "method": method.as_str(),
        "body": body,
        "type": header("content-type"),
        "agent": header("user-agent"),
        "x": header("x"),
    }))
}

#[tokio::test]
async fn a_call_and_its_answer() {
    let base = serve(Router::new().route("/echo", any(echo))).await;
    let input = json!({
        "method": "PUT",
        "url": format!("{base}/echo"),
        "headers": { "X": "y" },
        "json": { "a": 1 },
    });
    let output = call(input).await.unwrap();
    assert_eq!(output["status"], 200);
    assert_eq!(output["headers"]["content-type"], "application/json");
    let expected = json!({
        "method": "PUT",
        "body": "{\"a\":1}",
        "type": "application/json",
        "agent": concat!("forq/", env!("CARGO_PKG_VERSION")),
        "x": "y",
    });
    assert_eq!(output["json"], expected);
    assert_eq!(output.get("body"), None);
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let base = serve(Router::new()).await;
    let output = call(json!({ "url": format!("{base}/nothing") })).await.unwrap();
    assert_eq!((&output["status"], &output["body"]), (&json!(404), &json!("")));
}

#[tokio::test]
async fn later_is_a_failure_to_retry() {
    let busy = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")], "slow\ndown");
    let base = serve(Router::new().route("/busy", get(move || async move { busy }))).await;
    let error = call(json!({ "url": format!("{base}/busy?key=secret") })).await.unwrap_err();
    let expected = format!("GET {base}/busy: 429 Too Many Requests: slow down");
    assert_eq!(error.message, expected);
    assert!(error.retryable);
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn nobody_there_is_a_failure_to_retry() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a?key=secret", listener.local_addr().unwrap());
    drop(listener);
    let error = call(json!({ "url": url })).await.unwrap_err();
    assert!(error.retryable);
    assert!(error.message.contains("Connection refused"), "{}", error.message);
    assert!(!error.message.contains("secret"), "{}", error.message);
}

#[tokio::test]
async fn a_few_redirects_are_followed() {
    let router = Router::new()
        .route("/once", get(|| async { Redirect::to("/end") }))
        .route("/end", get(|| async { "here" }))
        .route("/loop", get(|| async { Redirect::to("/loop") }));
    let base = serve(router).await;
    assert_eq!(call(json!({ "url": format!("{base}/once") })).await.unwrap()["body"], "here");
    let error = call(json!({ "url": format!("{base}/loop") })).await.unwrap_err();
    assert!(error.message.contains("too many redirects"), "{}", error.message);
    assert!(!error.retryable);
}

#[tokio::test]
async fn a_huge_response_fails_with_both_numbers() {
    let bytes = || vec![b'x'; RESPONSE_BYTES_MAX + 1];
    let piecewise = move || async move {
        Body::from_stream(futures_util::stream::iter(
            [bytes(), bytes()].map(Ok::<_, std::io::Error>),
        ))
    };
    let router = Router::new()
        .route("/announced", get(move || async move { bytes() }))
        .route("/piecewise", get(piecewise));
    let base = serve(router).await;
    for path in ["announced", "piecewise"] {
        let error = call(json!({ "url": format!("{base}/{path}") })).await.unwrap_err();
        assert!(error.message.contains("at least 83"), "{}", error.message);
        assert!(error.message.contains(&RESPONSE_BYTES_MAX.to_string()), "{}", error.message);
        assert!(!error.retryable);
    }
}

/// Sets its flag when it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn cancelling_closes_the_connection() {
    let (came, gone) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let (server_came, server_gone) = (came.clone(), gone.clone());
    let hang = move || async move {
        let _flag = Flag(server_gone);
        server_came.store(true, Ordering::SeqCst);
        std::future::pending::<()>().await;
    };
    let base = serve(Router::new().route("/hang", get(hang))).await;
    let input = raw(json!({ "url": format!("{base}/hang") }).to_string());
    let mut future = Http::default().run(context(&Arc::default()), input);
    tokio::select! {
        _ = &mut future => panic!("it must hang"),
        () = set(&came) => {}
    }
    drop(future);
    set(&gone).await;
}

async fn set(flag: &AtomicBool) {
    let wait = async {
        while !flag.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}
