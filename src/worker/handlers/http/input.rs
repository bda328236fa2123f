//! What an `http` task asks for.

use std::collections::BTreeMap;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::handler::parse_input;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    method: Option<String>,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
    json: Option<Box<RawValue>>,
}

/// A checked input.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Request {
    /// The error names the field.
    pub(super) fn read(input: &RawValue) -> Result<Self, String> {
        let Fields { method, url, headers, body, json } = parse_input(input)?;
        let method = method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
            .map_err(|_| format!("input.method: {method:?} is not a method"))?;
        let url = read_url(&url)?;
        let mut headers = read_headers(headers)?;
        let body = match (body, json) {
            (Some(_), Some(_)) => return Err("input: either body or json, not both".into()),
            (None, Some(json)) => {
                let default = HeaderValue::from_static("application/json");
                headers.entry(CONTENT_TYPE).or_insert(default);
                json.get().to_owned()
            }
            (body, None) => body.unwrap_or_default(),
        };
        Ok(Self { method, url, headers, body })
    }
}

fn read_url(url: &str) -> Result<Url, String> {
    let parsed = Url::parse(url).map_err(|error| format!("input.url: {url:?}: {error}"))?;
    match parsed.scheme() {
        "http" | "https" => Ok(parsed),
        scheme => Err(format!("input.url: '{scheme}' is not http or https")),
    }
}

fn read_headers(headers: BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let read = |(name, value): (String, String)| {
        let key = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("input.headers: {name:?} is not a header's name"))?;
        // Its value may be a secret, so it is not repeated.
        let value = HeaderValue::from_str(&value)
            .map_err(|_| format!("input.headers.{name}: only printable ASCII may be sent"))?;
        Ok((key, value))
    };
    headers.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handlers::testing::raw;

    #[test]
    fn errors_name_the_field() {
        for (input, reason) in [
            ("{}", "missing field `url`"),
            (r#"{"url":7}"#, "input.url: invalid type: integer `7`"),
            (r#"{"url":"nowhere"}"#, "input.url: \"nowhere\": relative URL without a base"),
            (r#"{"url":"http://"}"#, "input.url: \"http://\": empty host"),
            (r#"{"url":"ftp://a/b"}"#, "input.url: 'ftp' is not http or https"),
            (r#"{"url":"http://a","method":"G T"}"#, "input.method: \"G T\" is not a method"),
            (r#"{"url":"http://a","method":""}"#, "input.method: \"\" is not a method"),
            (
                r#"{"url":"http://a","headers":{"a b":""}}"#,
                "input.headers: \"a b\" is not a header",
            ),
            (r#"{"url":"http://a","headers":{"a":"\n"}}"#, "input.headers.a: only printable ASCII"),
            (r#"{"url":"http://a","headers":{"a":1}}"#, "input.headers.a: invalid type"),
            (r#"{"url":"http://a","body":"","json":1}"#, "either body or json"),
            (r#"{"url":"http://a","timeout":1}"#, "unknown field `timeout`"),
        ] {
            let error = Request::read(&raw(input)).unwrap_err();
            assert!(error.contains(reason), "{input}: {error}");
        }
    }

    #[test]
    fn fills_in_what_is_left_out() {
        let read = |input: &str| Request::read(&raw(input)).unwrap();
        let request = read(r#"{"url":"http://a"}"#);
        assert_eq!((request.method, request.body.as_str()), (Method::GET, ""));
        assert!(request.headers.is_empty());
        let request = read(r#"{"url":"http://a","method":"post","json":{"n": 1.50}}"#);
        assert_eq!((request.method, request.body.as_str()), (Method::POST, r#"{"n": 1.50}"#));
        assert_eq!(request.headers[CONTENT_TYPE], "application/json");
        let headers = r#"{"Content-Type":"application/ld+json"}"#;
        let request = read(&format!(r#"{{"url":"http://a","json":[],"headers":{headers}}}"#));
        assert_eq!(request.headers[CONTENT_TYPE], "application/ld+json");
    }
}
