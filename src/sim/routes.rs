//! The HTTP face of the simulated model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::{Answer, answer};
use super::check::{check, invalid};
use super::draw::{Fate, fate, mix};
use super::stream::{self, Head};
use super::{MODEL, REQUEST_BYTES_MAX, SimOptions};
use crate::openai::{
    ChatCompletion, Choice, ErrorBody, ErrorDetail, FunctionCall, Message, Model, ModelList,
    ToolCall, Usage,
};

/// What a refused client is asked to wait.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

struct Sim {
    options: SimOptions,
    /// Requests so far: the number of the next.
    requests: AtomicU64,
}

pub(super) fn router(options: SimOptions) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{id}", get(show_model))
        .route("/healthz", get(async || json_answer(StatusCode::OK, &json!({"status": "ok"}))))
        .fallback(unknown_path)
        .method_not_allowed_fallback(async || {
            let detail = invalid("This path does not take this method.", None, "bad_method");
            refuse(StatusCode::METHOD_NOT_ALLOWED, detail)
        })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Arc::new(Sim { options, requests: AtomicU64::new(0) }))
}

async fn complete(State(sim): State<Arc<Sim>>, body: Result<Bytes, BytesRejection>) -> Response {
    let number = sim.requests.fetch_add(1, Ordering::Relaxed);
    let mut response = match body {
        Ok(body) => complete_one(&sim, number, &body).await,
        Err(rejection) => refuse(rejection.status(), invalid(body_error(&rejection), None, "body")),
    };
    if let Ok(id) = HeaderValue::try_from(format!("req_sim_{number}")) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

fn body_error(rejection: &BytesRejection) -> String {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        format!("The body is over the limit of {REQUEST_BYTES_MAX} bytes.")
    } else {
        format!("The body could not be read: {rejection}.")
    }
}

async fn complete_one(sim: &Sim, number: u64, body: &[u8]) -> Response {
    let (request, forced) = match check(body) {
        Ok(checked) => checked,
        Err(detail) => return refuse(StatusCode::BAD_REQUEST, detail),
    };
    match fate(&sim.options, number) {
        Fate::Answer => {}
        Fate::Fail => return failure(),
        Fate::RateLimit => return rate_limit(),
    }
    let answer = answer(&request, forced.as_ref(), sim.options.seed);
    let usage = usage(&answer);
    let head = Head {
        id: format!("chatcmpl-sim-{:016x}", mix(sim.options.seed ^ mix(number))),
        created: now_s(),
        include_usage: request.stream_options.is_some_and(|all| all.include_usage == Some(true)),
    };
    if request.stream == Some(true) {
        let body = stream::body(sim.options.clone(), &head, answer, usage);
        return respond(StatusCode::OK, "text/event-stream", body);
    }
    let last_token = answer.tokens.len().saturating_sub(1);
    tokio::time::sleep(stream::due(&sim.options, last_token)).await;
    json_answer(StatusCode::OK, &whole(head, answer, usage))
}

/// The answer in one piece.
fn whole(head: Head, answer: Answer, usage: Usage) -> ChatCompletion {
    let text = answer.tokens.concat();
    let message = match answer.calls {
        None => Message::text("assistant", text),
        Some(name) => {
            let function = FunctionCall { name, arguments: text };
            let (id, kind) = (call_id(&head.id), "function".into());
            let call = ToolCall { id, kind, function, ..ToolCall::default() };
            Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() }
        }
    };
    let finish_reason = Some(answer.finish_reason.into());
    ChatCompletion {
        id: head.id,
        object: "chat.completion".into(),
        created: head.created,
        model: MODEL.into(),
        choices: vec![Choice { message, finish_reason, ..Choice::default() }],
        usage: Some(usage),
        extra: fingerprint(),
    }
}

fn usage(answer: &Answer) -> Usage {
    let (prompt_tokens, completion_tokens) = (answer.prompt_tokens, answer.tokens.len() as u64);
    let total_tokens = prompt_tokens + completion_tokens;
    Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
}

/// Says in each answer once more what it comes from.
pub(super) fn fingerprint() -> Map<String, Value> {
    Map::from_iter([("system_fingerprint".to_owned(), "simulated".into())])
}

/// The id of the one call in a completion.
pub(super) fn call_id(completion_id: &str) -> String {
    completion_id.replacen("chatcmpl-", "call-", 1)
}

async fn list_models() -> Response {
    json_answer(StatusCode::OK, &ModelList { object: "list".into(), data: vec![model()] })
}

async fn show_model(Path(id): Path<String>) -> Response {
    if id == MODEL {
        return json_answer(StatusCode::OK, &model());
    }
    let message = format!("There is no model '{id}': this is a simulation with one, '{MODEL}'.");
    refuse(StatusCode::NOT_FOUND, invalid(message, Some("model"), "model_not_found"))
}

async fn unknown_path(uri: Uri) -> Response {
    let message = format!("There is nothing at {}.", uri.path());
    refuse(StatusCode::NOT_FOUND, invalid(message, None, "unknown_url"))
}

fn model() -> Model {
    Model { id: MODEL.into(), object: "model".into(), created: 0, owned_by: "simulated".into() }
}

fn failure() -> Response {
    let detail = ErrorDetail {
        message: "The simulated model failed, as it was asked to.".into(),
        kind: Some("server_error".into()),
        ..ErrorDetail::default()
    };
    refuse(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

fn rate_limit() -> Response {
    let detail = ErrorDetail {
        message: "The simulated rate limit is reached, as it was asked to be.".into(),
        kind: Some("requests".into()),
        code: Some("rate_limit_exceeded".into()),
        ..ErrorDetail::default()
    };
    let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, detail);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
    response
}

fn refuse(status: StatusCode, error: ErrorDetail) -> Response {
    json_answer(status, &ErrorBody { error })
}

fn json_answer(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => respond(status, "application/json", Body::from(json)),
        Err(error) => {
            tracing::error!(%error, "an answer that is not JSON");
            respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Body::empty())
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
