//! What a failed call means: one sentence, and whether another attempt may help.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use secrecy::ExposeSecret;

use super::route::Provider;
use crate::handler::HandlerError;
use crate::openai::ErrorDetail;
use crate::task::ErrorKind;

/// Most characters of what a provider said that an error repeats.
const REPEATED_CHARS_MAX: usize = 300;
/// Longest wait that a provider may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn failed(provider: &Provider, what: &str, retryable: bool) -> HandlerError {
    let message = format!("provider '{}' {what}", provider.name);
    HandlerError::of(ErrorKind::Provider, message, retryable)
}

/// An answer with an error status.
pub(super) fn refused(
    provider: &Provider,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> HandlerError {
    let detail = serde_json::from_slice(body).ok().and_then(|body| ErrorDetail::find(&body));
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
    let retryable = header(headers, "x-should-retry")
        .and_then(|should| should.parse().ok())
        .unwrap_or_else(|| may_pass(status.as_u16()));
    HandlerError {
        retry_after: retry_after(headers, now),
        ..failed(provider, &format!("answered {}: {said}", status.as_u16()), retryable)
    }
}

fn said_by(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or("no reason given").to_owned()
}

/// An error inside an answer that had begun well.
pub(super) fn broke_off(provider: &Provider, detail: &ErrorDetail) -> HandlerError {
    let ours = detail.kind.as_deref() == Some("invalid_request_error");
    let retryable = detail.status().map_or(!ours, may_pass);
    let said = clean(provider, &detail.message);
    failed(provider, &format!("broke off with an error: {said}"), retryable)
}

/// Whether the same request may be answered later.
fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 409 | 429 | 500..)
}

/// No answer, or the rest of one did not come.
pub(super) fn transport(provider: &Provider, error: &reqwest::Error) -> HandlerError {
    if error.is_builder() {
        let what = format!("cannot be asked: {}; check its base_url", root_cause(provider, error));
        return failed(provider, &what, false);
    }
    let what = if error.is_connect() {
        format!("could not be reached{}", address(error).unwrap_or_default())
    } else {
        "broke off the answer".to_owned()
    };
    failed(provider, &format!("{what}: {}", root_cause(provider, error)), true)
}

/// Where it was looked for. Of its address no more than that: the rest may hold a secret.
fn address(error: &reqwest::Error) -> Option<String> {
    let url = error.url()?;
    let port = url.port_or_known_default()?;
    Some(format!(" at {}:{port}", url.host_str()?))
}

/// There is no client to ask with: this machine has no certificates, say.
pub(super) fn no_client(provider: &Provider, error: &reqwest::Error) -> HandlerError {
    failed(provider, &format!("cannot be asked from here: {}", root_cause(provider, error)), false)
}

fn root_cause(provider: &Provider, error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    clean(provider, &cause.to_string())
}

/// One of the provider's time limits passed.
pub(super) fn timed_out(provider: &Provider, limit: &str, after: Duration) -> HandlerError {
    let what = format!("did not answer in time: {limit} of {} s passed", after.as_secs_f64());
    failed(provider, &what, true)
}

/// The stream ended before the answer did.
pub(super) fn cut(provider: &Provider) -> HandlerError {
    failed(provider, "cut the answer off before its end", true)
}

/// The answer is not what the protocol says.
pub(super) fn garbage(provider: &Provider, what: &str) -> HandlerError {
    failed(provider, &format!("sent {}", clean(provider, what)), true)
}

/// The server is something else than what the configuration takes it for.
pub(super) fn misconfigured(provider: &Provider, what: &str) -> HandlerError {
    failed(provider, &clean(provider, what), false)
}

/// The answer is too long: the next one would be, too.
pub(super) fn too_long(provider: &Provider, what: &impl std::fmt::Display) -> HandlerError {
    failed(provider, &format!("said too much: {what}"), false)
}

/// What others wrote, fit for a sentence of ours: bounded, on one line, without the key.
fn clean(provider: &Provider, text: &str) -> String {
    let key = provider.api_key.as_ref().map(|key| key.expose_secret()).unwrap_or_default();
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

/// How long the provider asks us to wait, by the headers that OpenAI's own client reads.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let seconds = |text: &str, unit: f64| Some(text.parse::<f64>().ok()? / unit);
    let wait_s = header(headers, "retry-after-ms")
        .and_then(|text| seconds(text, 1000.0))
        .or_else(|| seconds(header(headers, RETRY_AFTER.as_str())?, 1.0))
        .or_else(|| {
            let date = header(headers, RETRY_AFTER.as_str())?;
            let parser = jiff::fmt::rfc2822::DateTimeParser::new();
            let until = parser.parse_timestamp(date).ok()?;
            Some(until.duration_since(now).as_secs_f64())
        })?;
    // Negative, infinite and not-a-number waits are none.
    Some(Duration::try_from_secs_f64(wait_s).ok()?.min(RETRY_AFTER_MAX))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn provider() -> Provider {
        Provider {
            name: "p".into(),
            base_url: String::new(),
            api_key: Some("sk-secret".into()),
            timeout: Duration::ZERO,
            first_token_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn refusal(status: u16, pairs: &[(&'static str, &'static str)], body: &str) -> HandlerError {
        let status = StatusCode::from_u16(status).unwrap();
        refused(&provider(), status, &headers(pairs), body.as_bytes(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn statuses_decide_about_retries() {
        for (status, retryable) in [
            (302, false),
            (400, false),
            (401, false),
            (402, false),
            (403, false),
            (404, false),
            (408, true),
            (409, true),
            (422, false),
            (429, true),
            (500, true),
            (502, true),
            (529, true),
        ] {
            let error = refusal(status, &[], "");
            assert_eq!(error.retryable, retryable, "{status}");
            assert_eq!(error.kind, ErrorKind::Provider);
            assert!(error.message.starts_with(&format!("provider 'p' answered {status}: ")));
        }
        assert!(!refusal(429, &[("x-should-retry", "false")], "").retryable);
        assert!(refusal(400, &[("x-should-retry", "true")], "").retryable);
        assert!(refusal(500, &[("x-should-retry", "perhaps")], "").retryable);
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
            let message = refusal(502, &[], body).message;
            assert_eq!(message, format!("provider 'p' answered 502: {said}"));
        }
        let long = refusal(400, &[], &"x".repeat(1 << 20)).message;
        assert!(long.chars().count() < REPEATED_CHARS_MAX + 40);
    }

    #[test]
    fn the_key_is_never_repeated() {
        let padded = format!("{}sk-secret", "x".repeat(REPEATED_CHARS_MAX - 4));
        for said in ["Incorrect API key provided: sk-secret.", "sk-secretsk-secret", &padded] {
            let body = serde_json::json!({"error": {"message": said}}).to_string();
            let message = refusal(401, &[], &body).message;
            assert!(!message.contains("sk-s"), "{message}");
            let detail = ErrorDetail { message: said.into(), ..ErrorDetail::default() };
            assert!(!broke_off(&provider(), &detail).message.contains("sk-s"));
        }
    }

    #[test]
    fn waits_are_read_in_every_form() {
        for (name, value, wait_s) in [
            ("retry-after", "2", Some(2.0)),
            ("retry-after", "1.5", Some(1.5)),
            ("retry-after", "Thu, 01 Jan 1970 00:00:30 GMT", Some(30.0)),
            ("retry-after", "Wed, 31 Dec 1969 23:59:30 GMT", None),
            ("retry-after-ms", "300", Some(0.3)),
            ("retry-after", "99999999999", Some(86400.0)),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "inf", None),
            ("retry-after", "soon", None),
        ] {
            let wait = refusal(429, &[(name, value)], "").retry_after;
            assert_eq!(wait.map(|wait| wait.as_secs_f64()), wait_s, "{name}: {value}");
        }
        let both = [("retry-after", "9"), ("retry-after-ms", "1000")];
        assert_eq!(refusal(429, &both, "").retry_after, Some(Duration::from_secs(1)));
    }

    #[test]
    fn errors_inside_a_stream_say_whose_they_are() {
        let retryable = |code: Option<serde_json::Value>, kind: Option<&str>| {
            let kind = kind.map(str::to_owned);
            broke_off(&provider(), &ErrorDetail { code, kind, ..ErrorDetail::default() }).retryable
        };
        assert!(retryable(None, None));
        assert!(retryable(Some(502.into()), None));
        assert!(!retryable(Some("400".into()), None));
        assert!(!retryable(None, Some("invalid_request_error")));
        assert!(retryable(Some("overloaded".into()), Some("server_error")));
    }
}
