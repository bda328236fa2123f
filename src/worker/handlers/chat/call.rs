//! One call of a provider: asks, judges the status, and reads the answer.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::Answer;
use super::client::Clients;
use super::failure::{self, Failure};
use super::input::{prepare, withdraw_usage};
use super::limits::closed_for;
use super::read::{Reader, deadline};
use super::route::{Provider, Route};
use super::tell::Teller;
use crate::openai::ChatRequest;

/// Most bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Longest wait for them.
const ERROR_WAIT_MAX: Duration = Duration::from_secs(5);

/// What the calls of one worker share.
#[derive(Default)]
pub(super) struct Caller {
    clients: Clients,
    /// Providers that answered 400 to `stream_options` and well without: not asked again.
    without_usage: RefCell<BTreeSet<String>>,
    /// Providers that took `stream_options`.
    with_usage: RefCell<BTreeSet<String>>,
}

/// How a call ended.
pub(super) struct Ended {
    pub(super) result: Result<Answer, Failure>,
    /// How long the provider asked everybody to stay away, in whatever it answered.
    pub(super) closed_for: Option<Duration>,
}

impl Caller {
    /// Calls the route's provider within its time limits. Dropping the future closes the call.
    /// The request comes back as it was, but for the model and whether it streams.
    pub(super) async fn call(
        &self,
        route: &Route,
        request: &mut ChatRequest,
        teller: &mut Teller<'_>,
    ) -> Ended {
        let provider = &*route.provider;
        let streams = request.stream != Some(false);
        let start = Instant::now();
        let first_token_by = streams.then(|| deadline(start, provider.first_token_timeout));
        let whole_by = deadline(start, provider.timeout);
        let mut closed = None;
        let exchange = async {
            let response = timeout_at(whole_by, self.ask(route, request, first_token_by))
                .await
                .map_err(|_| failure::timed_out("timeout", provider.timeout))??;
            closed = closed_for(response.status(), response.headers(), Timestamp::now());
            let last_event = Instant::now();
            let reader =
                Reader { provider, teller, response, first_token_by, whole_by, last_event };
            reader.read().await
        };
        let result = exchange.await;
        let closed_for = closed.or_else(|| result.as_ref().err()?.closed_for);
        Ended { result, closed_for }
    }

    /// Asks until there is an answer with a good status; a second time only if the first was
    /// refused with an option that the input did not have.
    async fn ask(
        &self,
        route: &Route,
        request: &mut ChatRequest,
        first_token_by: Option<Instant>,
    ) -> Result<Response, Failure> {
        let provider = &*route.provider;
        let with_usage = !self.without_usage.borrow().contains(&provider.name);
        let added = prepare(request, &route.model, with_usage);
        let body = write(request)?;
        if added {
            // At once, since this future may be dropped: the second try and the next provider
            // begin without.
            withdraw_usage(request);
        }
        let response = self.send(provider, body, first_token_by).await?;
        let status = response.status();
        if status.is_success() {
            if added {
                self.with_usage.borrow_mut().insert(provider.name.clone());
            }
            return Ok(response);
        }
        // One that has taken the option before has another reason.
        let added = added && !self.with_usage.borrow().contains(&provider.name);
        let picky = [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY].contains(&status);
        if !(added && picky) {
            return Err(refusal(provider, response).await);
        }
        // Unread, it would hold its connection open beside the second.
        drop(response);
        let response = self.send(provider, write(request)?, first_token_by).await?;
        if !response.status().is_success() {
            return Err(refusal(provider, response).await);
        }
        self.without_usage.borrow_mut().insert(provider.name.clone());
        Ok(response)
    }

    async fn send(
        &self,
        provider: &Provider,
        body: Vec<u8>,
        first_token_by: Option<Instant>,
    ) -> Result<Response, Failure> {
        let url = format!("{}/chat/completions", provider.base_url.trim_end_matches('/'));
        let client = self.clients.get(&provider.base_url);
        let mut call = client
            .map_err(|error| failure::no_client(provider, &error))?
            .post(url)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body);
        if let Some(key) = bearer(provider)? {
            call = call.header(AUTHORIZATION, key);
        }
        let sent = match first_token_by {
            Some(by) => timeout_at(by, call.send()).await.map_err(|_| {
                let limit = provider.first_token_timeout;
                failure::timed_out("first_token_timeout", limit)
            })?,
            None => call.send().await,
        };
        sent.map_err(|error| failure::transport(provider, &error))
    }
}

fn write(request: &ChatRequest) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(request).map_err(|error| failure::unwritable(&error))
}

fn bearer(provider: &Provider) -> Result<Option<HeaderValue>, Failure> {
    let Some(key) = &provider.api_key else { return Ok(None) };
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
        .map_err(|_| failure::bad_key())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Reads what an answer with an error status says, as far as that comes soon.
async fn refusal(provider: &Provider, mut response: Response) -> Failure {
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(piece)) = response.chunk().await {
            body.extend_from_slice(&piece[..piece.len().min(ERROR_BYTES_MAX - body.len())]);
            if body.len() == ERROR_BYTES_MAX {
                break;
            }
        }
    };
    // What has come by then is enough.
    let _ = timeout(ERROR_WAIT_MAX, read).await;
    failure::refused(provider, status, &headers, &body, Timestamp::now())
}
