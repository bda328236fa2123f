//! Errors on the wire.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The body of an answer with an error status; also an event of a stream that breaks off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// The family, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The parameter to blame.
    pub param: Option<String>,
    /// The exact error: a word, or from some servers an HTTP status.
    pub code: Option<Value>,
}

impl ErrorDetail {
    /// Finds the error in a body. Next to OpenAI's shape this knows what other servers send:
    /// `{"error": "…"}`, `{"message": "…"}`, `{"detail": "…"}`, `{"detail": […]}`.
    pub fn find(body: &Value) -> Option<Self> {
        let source = ["error", "detail", "message"]
            .into_iter()
            .find_map(|key| body.get(key).filter(|value| !value.is_null()))?;
        let text = |key: &str| source.get(key).and_then(Value::as_str).map(str::to_owned);
        let message = match source {
            Value::String(message) => message.clone(),
            // A shape that we do not know is still shown: it is all that the reader has.
            _ => text("message").unwrap_or_else(|| source.to_string()),
        };
        let code = source.get("code").filter(|code| !code.is_null()).cloned();
        Some(Self { message, kind: text("type"), param: text("param"), code })
    }

    /// The HTTP status that the code names, if it does.
    pub fn status(&self) -> Option<u16> {
        let code = self.code.as_ref()?;
        let status = match code {
            Value::String(code) => code.parse().ok()?,
            code => u16::try_from(code.as_u64()?).ok()?,
        };
        (400..600).contains(&status).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_error_is_found_in_every_shape() {
        let cases = [
            (json!({"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}), "m"),
            (json!({"error": "m"}), "m"),
            (json!({"error": null, "message": "m"}), "m"),
            (json!({"detail": "m"}), "m"),
            (json!({"detail": [{"loc": ["body"]}]}), r#"[{"loc":["body"]}]"#),
            (json!({"error": {"code": 5}}), r#"{"code":5}"#),
        ];
        for (body, message) in cases {
            assert_eq!(ErrorDetail::find(&body).unwrap().message, message, "{body}");
        }
        for body in [json!({}), json!([]), json!("x"), json!({"choices": []})] {
            assert_eq!(ErrorDetail::find(&body), None);
        }
    }

    #[test]
    fn a_code_may_be_a_status() {
        let status = |code| ErrorDetail { code: Some(code), ..Default::default() }.status();
        assert_eq!(status(json!(502)), Some(502));
        assert_eq!(status(json!("429")), Some(429));
        assert_eq!(status(json!("rate_limit_exceeded")), None);
        assert_eq!(status(json!(7)), None);
    }
}
