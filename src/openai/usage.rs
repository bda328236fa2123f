//! Tokens, as a server counts them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::null_default;

/// The tokens of one completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens in.
    #[serde(default, deserialize_with = "null_default")]
    pub prompt_tokens: u64,
    /// Tokens out.
    #[serde(default, deserialize_with = "null_default")]
    pub completion_tokens: u64,
    /// Both; some servers leave it out and it reads as 0.
    #[serde(default, deserialize_with = "null_default")]
    pub total_tokens: u64,
    /// The rest, such as `prompt_tokens_details`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl From<&Usage> for crate::task::Usage {
    fn from(usage: &Usage) -> Self {
        let sum = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens.max(sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_total_is_the_sum() {
        let json = r#"{"prompt_tokens":3,"completion_tokens":null,"x":{"y":1}}"#;
        let usage: Usage = serde_json::from_str(json).unwrap();
        assert_eq!(crate::task::Usage::from(&usage).total_tokens, 3);
        assert_eq!(usage.extra["x"]["y"], 1);
    }
}
