//! A failed call: the end of a sentence about its provider, and what follows from it.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION};
use secrecy::{ExposeSecret, SecretString};

use super::limits::{closed_for, header, retry_after};
use super::route::Provider;
use super::verdict::Verdict;
use crate::handler::HandlerError;
use crate::openai::ErrorDetail;
use crate::task::ErrorKind;

/// Most characters of what a provider said that an error repeats.
const REPEATED_CHARS_MAX: usize = 300;

/// A call that brought no answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// The end of a sentence that begins with the provider: `answered 500: …`.
    pub(super) what: String,
    /// What follows from it.
    pub(super) verdict: Verdict,
    /// How long the provider asked this task to wait.
    pub(super) retry_after: Option<Duration>,
    /// How long it asked everybody to stay away.
    pub(super) closed_for: Option<Duration>,
}

impl Failure {
    fn new(what: String, verdict: Verdict) -> Self {
        Self { what, verdict, retry_after: None, closed_for: None }
    }

    /// The error of a task that asked this provider alone.
    pub(super) fn into_error(self, provider: &str) -> HandlerError {
        let message = format!("provider '{provider}' {}", self.what);
        HandlerError {
            retry_after: self.retry_after,
            ..HandlerError::of(ErrorKind::Provider, message, self.verdict.retryable)
        }
    }
}

/// An answer with an error status.
pub(super) fn refused(
    provider: &Provider,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Failure {
    let detail = serde_json::from_slice(body).ok().and_then(|body| ErrorDetail::find(&body));
    let should_retry = header(headers, "x-should-retry").and_then(|should| should.parse().ok());
    let verdict = Verdict::of(status.as_u16(), detail.as_ref()).told(should_retry);
    let said = match detail {
        Some(detail) => detail.message,
        None if status.is_redirection() => {
            let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            format!("redirects are not followed; check its base_url (this one leads to {to})")
        }
        None => String::from_utf8_lossy(body).into_owned(),
    };
    let said = clean(provider, &said);
    // A page for browsers says nothing in a sentence.
    let said = if said.is_empty() || said.starts_with('<') { said_by(status) } else { said };
    Failure {
        retry_after: retry_after(headers, now),
        closed_for: closed_for(status, headers, now),
        ..Failure::new(format!("answered {}: {said}", status.as_u16()), verdict)
    }
}

fn said_by(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("no reason given").to_owned()
}

/// An error inside an answer that had begun well.
pub(super) fn broke_off(provider: &Provider, detail: &ErrorDetail) -> Failure {
    let said = clean(provider, &detail.message);
    Failure::new(format!("broke off with an error: {said}"), Verdict::of_broken(detail))
}

/// No answer, or the rest of one did not come.
pub(super) fn transport(provider: &Provider, error: &reqwest::Error) -> Failure {
    let cause = root_cause(provider, error);
    if error.is_builder() {
        let what = format!("cannot be asked: {cause}; check its base_url");
        return Failure::new(what, Verdict::NOT_CALLED);
    }
    let what = if error.is_connect() {
        format!("could not be reached{}", address(error).unwrap_or_default())
    } else {
        "broke off the answer".to_owned()
    };
    Failure::new(format!("{what}: {cause}"), Verdict::TROUBLE)
}

/// Where it was looked for. Of its address no more than that: the rest may hold a secret.
fn address(error: &reqwest::Error) -> Option<String> {
    let url = error.url()?;
    let port = url.port_or_known_default()?;
    Some(format!(" at {}:{port}", url.host_str()?))
}

/// There is no client to ask with: this machine has no certificates, say.
pub(super) fn no_client(provider: &Provider, error: &reqwest::Error) -> Failure {
    let what = format!("cannot be asked from here: {}", root_cause(provider, error));
    Failure::new(what, Verdict::NOT_CALLED)
}

/// Its key cannot be sent.
pub(super) fn bad_key() -> Failure {
    let what = "has an API key that no header can carry".to_owned();
    Failure::new(what, Verdict::NOT_CALLED)
}

/// The request cannot be written.
pub(super) fn unwritable(error: &serde_json::Error) -> Failure {
    let what = format!("cannot be asked this: {error}");
    let verdict = Verdict { goes_on: false, ..Verdict::NOT_CALLED };
    Failure::new(what, verdict)
}

fn root_cause(provider: &Provider, error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    clean(provider, &cause.to_string())
}

/// One of the provider's time limits passed.
pub(super) fn timed_out(limit: &str, after: Duration) -> Failure {
    let what = format!("did not answer in time: {limit} of {} s passed", after.as_secs_f64());
    Failure::new(what, Verdict::TROUBLE)
}

/// The stream ended before the answer did.
pub(super) fn cut() -> Failure {
    Failure::new("cut the answer off before its end".to_owned(), Verdict::TROUBLE)
}

/// The answer is not what the protocol says.
pub(super) fn garbage(provider: &Provider, what: &str) -> Failure {
    Failure::new(format!("sent {}", clean(provider, what)), Verdict::TROUBLE)
}

/// The server is something else than what the configuration takes it for.
pub(super) fn misconfigured(provider: &Provider, what: &str) -> Failure {
    Failure::new(clean(provider, what), Verdict::UNUSABLE)
}

/// The answer is too long: this server's next one would be, too.
pub(super) fn too_long(what: &impl std::fmt::Display) -> Failure {
    Failure::new(format!("said too much: {what}"), Verdict::UNUSABLE)
}

fn clean(provider: &Provider, text: &str) -> String {
    repeated(provider.api_key.as_ref(), text)
}

/// What others wrote, fit for a sentence of ours: bounded, on one line, without the key.
pub(in crate::worker::handlers) fn repeated(key: Option<&SecretString>, text: &str) -> String {
    let key = key.map(|key| key.expose_secret()).unwrap_or_default();
    let text = if key.is_empty() { text.to_owned() } else { text.replace(key, "[key]") };
    let line: String = text
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect::<String>()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    match line.char_indices().nth(REPEATED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{KEY, headers, provider_named};
    use super::*;

    fn refusal(status: u16, pairs: &[(&'static str, &'static str)], body: &str) -> Failure {
        let status = StatusCode::from_u16(status).unwrap();
        let (provider, now) = (provider_named("p"), Timestamp::UNIX_EPOCH);
        refused(&provider, status, &headers(pairs), body.as_bytes(), now)
    }

    #[test]
    fn a_refusal_is_the_providers_and_says_when_to_ask_again() {
        let error = refusal(429, &[("retry-after", "7000")], "").into_error("p");
        assert_eq!(error.kind, ErrorKind::Provider);
        assert_eq!(error.message, "provider 'p' answered 429: Too Many Requests");
        assert!(error.retryable);
        assert_eq!(error.retry_after, Some(Duration::from_secs(7000)));
        let closed = refusal(429, &[("retry-after", "7000")], "").closed_for;
        assert_eq!(closed, Some(Duration::from_secs(3600)));
        assert!(!refusal(429, &[("x-should-retry", "false")], "").verdict.retryable);
        assert!(refusal(500, &[("x-should-retry", "perhaps")], "").verdict.retryable);
    }

    #[test]
    fn messages_repeat_what_the_provider_said() {
        for (body, said) in [
            (r#"{"error":{"message":"no\nsuch  model"}}"#, "no such model"),
            (r#"{"error":"busy"}"#, "busy"),
            ("plain text", "plain text"),
            ("<html><b>502</b>", "Bad Gateway"),
            ("", "Bad Gateway"),
            ("\u{fffd}\u{0}", "\u{fffd}"),
        ] {
            assert_eq!(refusal(502, &[], body).what, format!("answered 502: {said}"));
        }
        let long = refusal(400, &[], &"x".repeat(1 << 20)).what;
        assert!(long.chars().count() < REPEATED_CHARS_MAX + 40);
    }

    #[test]
    fn the_key_is_never_repeated() {
        let padded = format!("{}{KEY}", "x".repeat(REPEATED_CHARS_MAX - 4));
        for said in [&format!("Incorrect API key provided: {KEY}."), &KEY.repeat(2), &padded] {
            let body = serde_json::json!({"error": {"message": said}}).to_string();
            let what = refusal(401, &[], &body).what;
            assert!(!what.contains(&KEY[..4]), "{what}");
            let detail = ErrorDetail { message: said.clone(), ..ErrorDetail::default() };
            assert!(!broke_off(&provider_named("p"), &detail).what.contains(&KEY[..4]));
        }
    }
}
