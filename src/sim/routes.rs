//! The HTTP face of the simulated model.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::json;

use super::answer::answer;
use super::check::{Forced, check, invalid};
use super::draw::{fate, mix};
use super::fault::{self, Fault};
use super::refuse::{json_answer, not_json, refusal, refuse, respond};
use super::script::{Script, due};
use super::spoil::{spoil_answer, spoil_script};
use super::stats::{Call, Stats};
use super::wire::{self, Head};
use super::{MODEL, REQUEST_BYTES_MAX, SimOptions, play};
use crate::openai::{ChatRequest, Model, ModelList};

struct Sim {
    options: SimOptions,
    stats: Arc<Stats>,
}

pub(super) fn router(options: SimOptions, stats: Arc<Stats>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(complete))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{id}", get(show_model))
        .route("/healthz", get(async || json_answer(StatusCode::OK, &json!({"status": "ok"}))))
        .route("/sim/stats", get(show_stats))
        .fallback(unknown_path)
        .method_not_allowed_fallback(async || {
            let detail = invalid("This path does not take this method.", None, "bad_method");
            refuse(StatusCode::METHOD_NOT_ALLOWED, detail)
        })
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Arc::new(Sim { options, stats }))
}

async fn complete(State(sim): State<Arc<Sim>>, body: Result<Bytes, BytesRejection>) -> Response {
    let call = sim.stats.arrive();
    let number = call.number;
    let mut response = match read(&sim, &call, body) {
        Ok((request, forced, fault)) => {
            if fault == Some(Fault::Hang) {
                std::future::pending::<()>().await;
            }
            match fault.and_then(refusal) {
                Some(response) => finished(call, response),
                None => tell(&sim, call, &request, forced.as_ref(), fault).await,
            }
        }
        Err(response) => finished(call, *response),
    };
    if let Ok(id) = HeaderValue::try_from(format!("req_sim_{number}")) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

fn finished(mut call: Call, response: Response) -> Response {
    call.finish();
    response
}

type Asked = (ChatRequest, Option<Forced>, Option<Fault>);

/// What is asked, and the fault that it meets; the error is the response. Boxed, as it is large.
fn read(
    sim: &Sim,
    call: &Call,
    body: Result<Bytes, BytesRejection>,
) -> Result<Asked, Box<Response>> {
    let body = body.map_err(|rejection| {
        refuse(rejection.status(), invalid(body_error(&rejection), None, "body"))
    })?;
    let (request, forced) =
        check(&body).map_err(|detail| refuse(StatusCode::BAD_REQUEST, detail))?;
    let model = request.model.as_deref().unwrap_or_default();
    let earlier = call.is_for(model);
    let fault = fault::choose(sim.options.fault, call.number, model, earlier).map_err(|error| {
        let detail = invalid(error.to_string(), Some("model"), "model_not_found");
        refuse(StatusCode::NOT_FOUND, detail)
    })?;
    Ok((request, forced, fault.or_else(|| fate(&sim.options, call.number))))
}

fn body_error(rejection: &BytesRejection) -> String {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        format!("The body is over the limit of {REQUEST_BYTES_MAX} bytes.")
    } else {
        format!("The body could not be read: {rejection}.")
    }
}

/// The model's answer, right or spoilt.
async fn tell(
    sim: &Sim,
    call: Call,
    request: &ChatRequest,
    forced: Option<&Forced>,
    fault: Option<Fault>,
) -> Response {
    let seed = sim.options.seed;
    let mut answer = answer(request, forced, seed);
    if let Some(fault) = fault {
        answer = spoil_answer(fault, answer);
    }
    let asked = request.stream_options.as_ref();
    let head = Head {
        id: format!("chatcmpl-sim-{:016x}", mix(seed ^ mix(call.number))),
        created: now_s(),
        include_usage: asked.is_some_and(|all| all.include_usage == Some(true)),
    };
    let is_stream = request.stream == Some(true);
    let script = if is_stream {
        Script::stream(&sim.options, &head, answer)
    } else {
        let last_token = answer.tokens.len().saturating_sub(1);
        tokio::time::sleep(due(&sim.options, last_token)).await;
        serde_json::to_vec(&wire::whole(head, answer)).map(Script::whole)
    };
    let script = match script {
        Ok(script) => fault.into_iter().fold(script, |script, fault| spoil_script(fault, script)),
        Err(error) => return not_json(&error),
    };
    let content_type = if is_stream { "text/event-stream" } else { "application/json" };
    let length = script.content_length;
    let mut response = respond(StatusCode::OK, content_type, play::body(script, call));
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

async fn show_stats(State(sim): State<Arc<Sim>>) -> Response {
    json_answer(StatusCode::OK, &sim.stats.show())
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

async fn unknown_path(State(sim): State<Arc<Sim>>, uri: Uri) -> Response {
    sim.stats.stray();
    let message = format!("There is nothing at {}.", uri.path());
    refuse(StatusCode::NOT_FOUND, invalid(message, None, "unknown_url"))
}

fn model() -> Model {
    Model { id: MODEL.into(), object: "model".into(), created: 0, owned_by: "simulated".into() }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
