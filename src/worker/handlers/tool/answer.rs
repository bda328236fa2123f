//! What a tool gives back: an answer of now, one of before, or the one that stands in for all. Pure.

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::handler::{HandlerError, Output, to_output};
use crate::worker::handlers::http::json_of;

/// In place of a service's name, where none has answered.
const CACHE: &str = "cache";
const DEFAULT: &str = "default";

/// The output of a task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ToolOutput {
    /// Who answered.
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    json: Option<Box<RawValue>>,
    /// In place of `json`, if the answer does not say that it is JSON, or is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// No service has answered.
    degraded: bool,
    /// It was given before.
    cached: bool,
    /// Who was asked in vain.
    failures: Vec<Failed>,
}

/// A service that did not answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) service: String,
    pub(super) error: String,
}

fn present<'de, D: Deserializer<'de>>(json: D) -> Result<Option<Box<RawValue>>, D::Error> {
    // `null` is an answer, too.
    Box::<RawValue>::deserialize(json).map(Some)
}

impl ToolOutput {
    /// A whole answer of a service, with a good status.
    pub(super) fn answered(
        service: &str,
        status: StatusCode,
        headers: &HeaderMap,
        body: Vec<u8>,
    ) -> Self {
        let json = json_of(headers, &body);
        let text = json.is_none().then(|| String::from_utf8_lossy(&body).into_owned());
        let (service, status) = (service.to_owned(), Some(status.as_u16()));
        Self { service, status, json, text, degraded: false, cached: false, failures: Vec::new() }
    }

    /// What stands in when nothing else is left.
    pub(super) fn stated(json: &RawValue) -> Self {
        let (service, json) = (DEFAULT.to_owned(), Some(json.to_owned()));
        let (status, text, failures) = (None, None, Vec::new());
        Self { service, status, json, text, degraded: true, cached: false, failures }
    }

    /// The output of an equal call; none if `json` is no such thing, and then somebody must be
    /// asked. Who had failed then has not failed now.
    pub(super) fn again(json: &str) -> Option<Self> {
        let output: Self = serde_json::from_str(json).ok()?;
        Some(Self { cached: true, failures: Vec::new(), ..output })
    }

    /// The same, past its time: it stands in for all who failed.
    pub(super) fn stale(json: &str) -> Option<Self> {
        let output = Self::again(json)?;
        Some(Self { service: CACHE.to_owned(), degraded: true, ..output })
    }

    /// As the task's output.
    pub(super) fn into_output(self, failures: Vec<Failed>) -> Result<Output, HandlerError> {
        to_output(&Self { failures, ..self })
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{CONTENT_TYPE, HeaderValue};
    use serde_json::{Value, json};

    use super::*;
    use crate::worker::handlers::testing::raw;

    fn answered(content_type: &'static str, body: &str) -> ToolOutput {
        let headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        ToolOutput::answered("main", StatusCode::CREATED, &headers, body.as_bytes().to_vec())
    }

    fn failures() -> Vec<Failed> {
        vec![Failed { service: "first".to_owned(), error: "was down".to_owned() }]
    }

    fn shown(output: ToolOutput, failures: Vec<Failed>) -> Value {
        let output = output.into_output(failures).unwrap();
        serde_json::from_str(output.json.get()).unwrap()
    }

    #[test]
    fn an_answer_is_json_or_text() {
        for (kind, body, name, content) in [
            ("application/json", "{\n\"a\": 1}", "json", json!({"a": 1})),
            ("application/json", "null", "json", Value::Null),
            ("application/json", "{", "text", json!("{")),
            ("text/html", "1", "text", json!("1")),
        ] {
            let expected = json!({
                "service": "main", "status": 201, name: content, "degraded": false,
                "cached": false, "failures": [{"service": "first", "error": "was down"}],
            });
            assert_eq!(shown(answered(kind, body), failures()), expected, "{body}");
        }
    }

    #[test]
    fn it_is_given_again_as_it_was() {
        for body in ["null", "[1.50]", "{\"n\":12345678901234567890123}"] {
            let first = answered("application/json", body).into_output(failures()).unwrap();
            let again = ToolOutput::again(first.json.get()).unwrap().into_output(Vec::new());
            let again = again.unwrap();
            let was = first.json.get().replace("\"cached\":false", "\"cached\":true");
            assert_eq!(
                again.json.get(),
                was.replace(r#"{"service":"first","error":"was down"}"#, "")
            );
            let stale = shown(ToolOutput::stale(first.json.get()).unwrap(), failures());
            assert_eq!((&stale["service"], &stale["degraded"]), (&json!("cache"), &json!(true)));
            assert_eq!(stale["failures"][0]["service"], "first");
        }
        for other in ["", "[]", "{}", r#"{"service":5}"#] {
            assert!(ToolOutput::again(other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_default_stands_in() {
        let expected = json!({
            "service": "default", "json": {"results": []}, "degraded": true, "cached": false,
            "failures": [{"service": "first", "error": "was down"}],
        });
        let default = ToolOutput::stated(&raw(r#"{"results":[]}"#));
        assert_eq!(shown(default, failures()), expected);
    }
}
