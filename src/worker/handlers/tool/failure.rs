//! A failed call of a service: the end of a sentence about it, and what follows from it. Pure.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, LOCATION};
use secrecy::SecretString;

use crate::protocol::calls::CallOutcome;
use crate::worker::handlers::chat::{repeated, retry_after};
use crate::worker::handlers::http::{RESPONSE_BYTES_MAX, is_passing, sentence};

/// A call that brought no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    /// The end of a sentence that begins with the service: `answered 500: …`.
    pub(super) what: String,
    /// What it says of the service: only [`CallOutcome::Failed`] counts for its breaker.
    pub(super) outcome: CallOutcome,
    /// Whether the same call may be answered later.
    pub(super) retryable: bool,
    /// How long the service asked this task to wait.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    fn passing(what: String) -> Self {
        Self { what, outcome: CallOutcome::Failed, retryable: true, retry_after: None }
    }
}

/// An answer with another status than a good one.
pub(super) fn refused(
    key: Option<&SecretString>,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Failure {
    let said = if status.is_redirection() {
        let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
        format!("redirects are not followed; check its url (this one leads to {to})")
    } else {
        String::from_utf8_lossy(body).into_owned()
    };
    let said = repeated(key, &said);
    // A page for browsers says nothing in a sentence.
    let said = if said.is_empty() || said.starts_with('<') {
        status.canonical_reason().unwrap_or("no reason given").to_owned()
    } else {
        said
    };
    let failure = Failure::passing(format!("answered {}: {said}", status.as_u16()));
    if is_passing(status) {
        return Failure { retry_after: retry_after(headers, now), ..failure };
    }
    let refused = status.is_client_error();
    let outcome = if refused { CallOutcome::Refused } else { CallOutcome::Failed };
    Failure { outcome, retryable: false, ..failure }
}

/// No answer, or the rest of one did not come.
pub(super) fn transport(key: Option<&SecretString>, error: reqwest::Error) -> Failure {
    if error.is_builder() {
        return not_called(key, error);
    }
    Failure::passing(repeated(key, &sentence(error)))
}

/// The call could not be made: this machine has no certificates, say. It says nothing of the
/// service.
pub(super) fn not_called(key: Option<&SecretString>, error: reqwest::Error) -> Failure {
    let what = format!("cannot be asked from here: {}", repeated(key, &sentence(error)));
    Failure { outcome: CallOutcome::NotMade, retryable: false, ..Failure::passing(what) }
}

/// Its key cannot be sent.
pub(super) fn bad_key() -> Failure {
    let what = "has an API key that no header can carry".to_owned();
    Failure { outcome: CallOutcome::NotMade, retryable: false, ..Failure::passing(what) }
}

/// The tool's time limit passed.
pub(super) fn timed_out(after: Duration) -> Failure {
    let what = format!("did not answer in time: timeout of {} s passed", after.as_secs_f64());
    Failure::passing(what)
}

/// The answer is too large, and its next one would be, too.
pub(super) fn too_large(bytes: u64) -> Failure {
    let what = format!("sent too much: at least {bytes} bytes, {RESPONSE_BYTES_MAX} are allowed");
    Failure { retryable: false, ..Failure::passing(what) }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn refusal(status: u16, pairs: &[(&'static str, &'static str)], body: &str) -> Failure {
        let pair =
            |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers: HeaderMap = pairs.iter().map(pair).collect();
        let (key, status) =
            (SecretString::from("sk-secret"), StatusCode::from_u16(status).unwrap());
        refused(Some(&key), status, &headers, body.as_bytes(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn statuses_decide() {
        use CallOutcome::{Failed, Refused};
        for (status, outcome, retryable) in [
            (302, Failed, false),
            (400, Refused, false),
            (401, Refused, false),
            (404, Refused, false),
            (408, Failed, true),
            (429, Failed, true),
            (500, Failed, true),
            (503, Failed, true),
            (599, Failed, true),
        ] {
            let failure = refusal(status, &[], "");
            assert_eq!((failure.outcome, failure.retryable), (outcome, retryable), "{status}");
        }
        let busy = refusal(429, &[("retry-after", "7")], "slow\ndown");
        assert_eq!(busy.what, "answered 429: slow down");
        assert_eq!(busy.retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_was_said_is_repeated_without_the_key() {
        assert_eq!(refusal(401, &[], "no: sk-secret").what, "answered 401: no: [key]");
        assert_eq!(refusal(502, &[], "<html>").what, "answered 502: Bad Gateway");
        assert_eq!(refusal(404, &[], "").what, "answered 404: Not Found");
        let moved = refusal(301, &[("location", "/there?k=sk-secret")], "gone");
        assert!(moved.what.ends_with("(this one leads to /there?k=[key])"), "{}", moved.what);
    }
}
