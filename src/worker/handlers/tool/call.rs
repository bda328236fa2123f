//! One call of a service: asks, judges the status, and reads the answer.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Response;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::answer::ToolOutput;
use super::failure::{self, Failure};
use super::input::Request;
use super::services::Service;
use crate::worker::handlers::chat::{Clients, closed_for};
use crate::worker::handlers::http;

/// Most bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 4 << 10;
/// Longest wait for them.
const ERROR_WAIT_MAX: Duration = Duration::from_secs(5);

/// How a call ended.
pub(super) struct Ended {
    pub(super) result: Result<ToolOutput, Failure>,
    /// How long the service asked everybody to stay away, in whatever it answered.
    pub(super) closed_for: Option<Duration>,
}

/// Calls a service within the time limit of its tool. Dropping the future closes the call.
pub(super) async fn call(
    clients: &Clients,
    service: &Service,
    request: &Request,
    limit: Duration,
) -> Ended {
    let mut closed = None;
    let exchange = async {
        let response = send(clients, service, request).await?;
        closed = closed_for(response.status(), response.headers(), Timestamp::now());
        read(service, response).await
    };
    let result = timeout(limit, exchange).await.unwrap_or_else(|_| Err(failure::timed_out(limit)));
    Ended { result, closed_for: closed }
}

async fn send(
    clients: &Clients,
    service: &Service,
    request: &Request,
) -> Result<Response, Failure> {
    let key = service.api_key.as_ref();
    let client =
        clients.get(request.url.as_str()).map_err(|error| failure::not_called(key, error))?;
    let mut headers = request.headers.clone();
    if let Some(value) = key_value(service)? {
        headers.insert(service.key_header.clone(), value);
    }
    let call = client.request(service.method.clone(), request.url.clone()).headers(headers);
    let sent = call.body(request.body.clone()).send().await;
    sent.map_err(|error| failure::transport(key, error))
}

fn key_value(service: &Service) -> Result<Option<HeaderValue>, Failure> {
    let Some(key) = &service.api_key else { return Ok(None) };
    let key = key.expose_secret();
    let is_bearer = service.key_header == AUTHORIZATION;
    let value = if is_bearer { format!("Bearer {key}") } else { key.to_owned() };
    let mut value = HeaderValue::try_from(value).map_err(|_| failure::bad_key())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

async fn read(service: &Service, mut response: Response) -> Result<ToolOutput, Failure> {
    let key = service.api_key.as_ref();
    let (status, headers) = (response.status(), response.headers().clone());
    if !status.is_success() {
        let body = beginning(response).await;
        return Err(failure::refused(key, status, &headers, &body, Timestamp::now()));
    }
    match http::read(&mut response).await {
        Ok(Ok(body)) => Ok(ToolOutput::answered(&service.name, status, &headers, body)),
        Ok(Err(bytes)) => Err(failure::too_large(bytes)),
        Err(error) => Err(failure::transport(key, error)),
    }
}

/// The first words of an error, as far as they come soon.
async fn beginning(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while body.len() < ERROR_BYTES_MAX
            && let Ok(Some(piece)) = response.chunk().await
        {
            body.extend_from_slice(&piece[..piece.len().min(ERROR_BYTES_MAX - body.len())]);
        }
    };
    let _ = timeout(ERROR_WAIT_MAX, read).await;
    body
}
