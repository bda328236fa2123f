//! What an `http` task gives back. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde::Serialize;
use serde_json::value::RawValue;

/// How much of a refusal's body goes into the error's message, in characters.
const EXCERPT_CHARS_MAX: usize = 200;

#[derive(Serialize)]
pub(super) struct Answer {
    status: u16,
    /// Names in lower case; a header that comes more than once is joined with `, `.
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// In place of `body`, if the answer says that it is JSON, and is.
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
}

impl Answer {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> Self {
        let json = json_of(headers, &body);
        let body = match json {
            Some(_) => None,
            None => Some(String::from_utf8_lossy(&body).into_owned()),
        };
        Self { status: status.as_u16(), headers: joined(headers), body, json }
    }
}

/// A body as JSON, if it says that it is, and is.
pub(in crate::worker::handlers) fn json_of(
    headers: &HeaderMap,
    body: &[u8],
) -> Option<Box<RawValue>> {
    if is_json(headers) { read_json(body) } else { None }
}

/// Whether the same call may be answered otherwise a little later.
pub(in crate::worker::handlers) fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// How long the server asks us to wait: in seconds, or until a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// The first words of a refusal, which often say what is wrong; empty if there are none.
pub(super) fn excerpt(body: &[u8]) -> String {
    // A character has four bytes at most.
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * EXCERPT_CHARS_MAX)]);
    let words: Vec<_> = text.split_whitespace().collect();
    let text: String = words.join(" ").chars().take(EXCERPT_CHARS_MAX).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}

/// On one line, since outputs are printed one a line. JSON has no line ends but between its
/// tokens, where they mean nothing.
pub(in crate::worker::handlers) fn read_json(body: &[u8]) -> Option<Box<RawValue>> {
    let line: Vec<u8> = body.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect();
    // Of the body as it came: without its line ends `1\n2` would read as 12.
    serde_json::from_slice::<&RawValue>(body).ok()?;
    serde_json::from_slice(&line).ok()
}

fn joined(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut joined = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        joined
            .entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.to_string());
    }
    joined
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    fn answer(content_type: &'static str, body: &[u8]) -> Value {
        let headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let answer = Answer::new(StatusCode::OK, &headers, body.to_vec());
        let mut value: Value =
            serde_json::from_str(&serde_json::to_string(&answer).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("headers");
        value
    }

    #[test]
    fn json_is_json_if_it_is_called_so() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"] {
            let expected = json!({ "status": 200, "json": { "a": [1, 2] } });
            assert_eq!(answer(kind, b"{\"a\":\r\n [1,\n 2]}\n"), expected, "{kind}");
        }
        assert_eq!(answer("text/plain", b"{}"), json!({ "status": 200, "body": "{}" }));
        for broken in ["", "{", "1\n2"] {
            let expected = json!({ "status": 200, "body": broken });
            assert_eq!(answer("application/json", broken.as_bytes()), expected);
        }
        assert_eq!(answer("text/plain", b"a\xffb"), json!({ "status": 200, "body": "a\u{fffd}b" }));
    }

    #[test]
    fn json_comes_on_one_line() {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
        let answer = Answer::new(StatusCode::OK, &headers, b"{\n\"a\\n\":\n1e400\n}".to_vec());
        assert_eq!(answer.json.unwrap().get(), r#"{"a\n":1e400}"#);
    }

    #[test]
    fn headers_of_one_name_are_joined() {
        let mut headers = HeaderMap::new();
        for value in ["a", "b"] {
            headers.append("Vary", HeaderValue::from_static(value));
        }
        assert_eq!(joined(&headers), BTreeMap::from([("vary".into(), "a, b".into())]));
    }

    #[test]
    fn waits_as_long_as_it_is_told() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (value, seconds) in [
            ("3", Some(3)),
            (" 120 ", Some(120)),
            ("Thu, 01 Jan 2026 00:00:30 GMT", Some(30)),
            ("Wed, 31 Dec 2025 23:59:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn only_some_refusals_pass() {
        for (status, passing) in [
            (200, false),
            (301, false),
            (400, false),
            (404, false),
            (408, true),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
            (599, true),
        ] {
            assert_eq!(is_passing(StatusCode::from_u16(status).unwrap()), passing, "{status}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_on_one_line() {
        assert_eq!(excerpt(b"  \n"), "");
        assert_eq!(excerpt(b"{\n  \"error\": 1\n}"), ": { \"error\": 1 }");
        assert_eq!(excerpt("ü".repeat(5000).as_bytes()).chars().count(), EXCERPT_CHARS_MAX + 2);
    }
}
