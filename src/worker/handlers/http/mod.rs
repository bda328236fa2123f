//! `http` {method, url, headers, body|json} → {status, headers, body|json}: a call to a tool or a
//! service.
//!
//! An answer is an answer, whatever its status: only those that say "later" or blame the server
//! (408, 425, 429, 5xx) fail the attempt, and may be tried again.

mod answer;
mod client;
mod input;

use std::cell::OnceCell;
use std::error::Error;
use std::rc::Rc;

use jiff::Timestamp;
use reqwest::{Method, Response, Url};
use serde_json::value::RawValue;

use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Output, to_output};
use answer::{Answer, excerpt, retry_after};
use client::Client;
use input::Request;

pub(super) use answer::{is_passing, json_of, read_json};

/// The most that a response's body may hold, in bytes; more fails the task.
pub(super) const RESPONSE_BYTES_MAX: usize = 8 << 20;

/// The kind `http`.
#[derive(Default)]
pub(crate) struct Http {
    /// Made by the first task: after the fork, and only where it is needed.
    client: OnceCell<Rc<Client>>,
}

impl Http {
    fn client(&self) -> Result<Rc<Client>, HandlerError> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let client = Client::new().map_err(|error| {
            HandlerError::fatal(format!("no HTTP client can be made: {}", sentence(error)))
        })?;
        Ok(self.client.get_or_init(|| Rc::new(client)).clone())
    }
}

impl Handler for Http {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        Request::read(input).map(drop)
    }

    fn run(&self, _context: Context, input: Box<RawValue>) -> HandlerFuture {
        let client = self.client();
        Box::pin(async move {
            let request = Request::read(&input).map_err(HandlerError::input)?;
            call(&*client?, request).await
        })
    }
}

/// Makes one call. Dropping this future closes its connection.
async fn call(client: &Client, request: Request) -> Result<Output, HandlerError> {
    let target = target(&request.method, &request.url);
    let failed = |error: reqwest::Error| {
        let retryable = !error.is_builder() && !error.is_redirect();
        HandlerError { retryable, ..HandlerError::fatal(format!("{target}: {}", sentence(error))) }
    };
    let builder = client.request(request.method, request.url)?;
    let builder = builder.headers(request.headers).body(request.body);
    let mut response = builder.send().await.map_err(failed)?;
    let body = match read(&mut response).await.map_err(failed)? {
        Ok(body) => body,
        Err(bytes) => {
            return Err(HandlerError::fatal(format!(
                "{target}: the response is too large: at least {bytes} bytes, \
                 {RESPONSE_BYTES_MAX} are allowed"
            )));
        }
    };
    let (status, headers) = (response.status(), response.headers());
    if is_passing(status) {
        let error = HandlerError::retryable(format!("{target}: {status}{}", excerpt(&body)));
        return Err(HandlerError { retry_after: retry_after(headers, Timestamp::now()), ..error });
    }
    to_output(&Answer::new(status, headers, body))
}

/// The body, or, if it is too large, the size that is known of it.
pub(super) async fn read(response: &mut Response) -> reqwest::Result<Result<Vec<u8>, u64>> {
    let announced = response.content_length().unwrap_or(0);
    if announced > RESPONSE_BYTES_MAX as u64 {
        return Ok(Err(announced));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let total = body.len() + chunk.len();
        if total > RESPONSE_BYTES_MAX {
            return Ok(Err(total as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Ok(body))
}

/// What was called, for an error's message: without the query and the user, which may be secret.
fn target(method: &Method, url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{method} {}://{host}{port}{}", url.scheme(), url.path())
}

/// An error and its causes in one line; the outermost alone says little.
pub(super) fn sentence(error: reqwest::Error) -> String {
    let error = error.without_url();
    let is_connect = error.is_connect();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
        // The layers that a connection goes through say nothing to who waits for it.
        if is_connect && cause.is_none() {
            return format!("could not be reached: {reason}");
        }
    }
    text
}

#[cfg(test)]
mod tests;
