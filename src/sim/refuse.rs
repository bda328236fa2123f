//! Responses that are no answer, and how JSON is sent.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use super::check::invalid;
use super::fault::Fault;
use crate::openai::{ErrorBody, ErrorDetail};

/// What a refused client is asked to wait.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");
/// Where [`Fault::Redirect`] leads: to nothing.
const ELSEWHERE: HeaderValue = HeaderValue::from_static("/sim/elsewhere");
/// What a proxy in front of a model may say.
const PAGE: &str = "<!doctype html>\n<title>Sign in</title>\n<h1>[simulated] Please sign in</h1>\n";

/// The response to a request that meets this fault, where it is not an answer gone wrong.
pub(super) fn refusal(fault: Fault) -> Option<Response> {
    Some(match fault {
        Fault::RateLimit => rate_limit(),
        Fault::RateLimitRetryAfter => {
            let mut response = rate_limit();
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
            response
        }
        Fault::ServerError => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, "model failed")
        }
        Fault::BadRequest => {
            let detail = invalid(
                "The simulated request is bad, as it was asked to be.",
                None,
                "invalid_value",
            );
            refuse(StatusCode::BAD_REQUEST, detail)
        }
        Fault::Unauthorized => {
            let (kind, code) = ("invalid_request_error", Some("invalid_api_key"));
            error(StatusCode::UNAUTHORIZED, kind, code, "key is wrong")
        }
        Fault::WrongContentType => respond(StatusCode::OK, "text/html", Body::from(PAGE)),
        Fault::Redirect => {
            let mut response = respond(StatusCode::FOUND, "text/plain", Body::empty());
            response.headers_mut().insert(header::LOCATION, ELSEWHERE);
            response
        }
        Fault::Hang
        | Fault::HangMidStream
        | Fault::CutMidStream
        | Fault::SplitUtf8
        | Fault::GarbageJson
        | Fault::BigChunk
        | Fault::SlowDrip
        | Fault::Endless
        | Fault::ProseForJson => return None,
    })
}

fn rate_limit() -> Response {
    let (kind, code) = ("requests", Some("rate_limit_exceeded"));
    error(StatusCode::TOO_MANY_REQUESTS, kind, code, "rate limit is reached")
}

fn error(status: StatusCode, kind: &str, code: Option<&str>, what: &str) -> Response {
    let detail = ErrorDetail {
        message: format!("The simulated {what}, as it was asked to be."),
        kind: Some(kind.into()),
        code: code.map(Into::into),
        ..ErrorDetail::default()
    };
    refuse(status, detail)
}

pub(super) fn refuse(status: StatusCode, error: ErrorDetail) -> Response {
    json_answer(status, &ErrorBody { error })
}

pub(super) fn json_answer(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => respond(status, "application/json", Body::from(json)),
        Err(error) => not_json(&error),
    }
}

/// Never seen: all that is sent has a form in JSON.
pub(super) fn not_json(error: &serde_json::Error) -> Response {
    tracing::error!(%error, "an answer that is not JSON");
    respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Body::empty())
}

pub(super) fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
