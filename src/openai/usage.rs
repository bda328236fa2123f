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

impl Usage {
    /// Adds the tokens of another completion, and whatever else both count.
    pub(crate) fn add(&mut self, other: &Usage) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
        self.total_tokens = self.total_tokens.saturating_add(other.total_tokens);
        add_counts(&mut self.extra, &other.extra);
    }
}

fn add_counts(sums: &mut Map<String, Value>, counts: &Map<String, Value>) {
    for (name, count) in counts {
        match (sums.get_mut(name), count) {
            (None, _) => drop(sums.insert(name.clone(), count.clone())),
            (Some(Value::Object(sums)), Value::Object(counts)) => add_counts(sums, counts),
            (Some(sum), _) => {
                if let (Some(one), Some(other)) = (sum.as_u64(), count.as_u64()) {
                    *sum = one.saturating_add(other).into();
                }
            }
        }
    }
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
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_are_added_as_deep_as_they_go() {
        let read = |json| serde_json::from_value::<Usage>(json).unwrap();
        let mut sum = read(json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4,
            "details": {"cached": 2, "none": null}, "tier": "x"}));
        sum.add(&read(json!({"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40,
            "details": {"cached": 20, "audio": 5}, "tier": "y"})));
        let expected = read(json!({"prompt_tokens": 33, "completion_tokens": 11,
            "total_tokens": 44, "details": {"cached": 22, "none": null, "audio": 5}, "tier": "x"}));
        assert_eq!(sum, expected);
    }

    #[test]
    fn a_missing_total_is_the_sum() {
        let json = r#"{"prompt_tokens":3,"completion_tokens":null,"x":{"y":1}}"#;
        let usage: Usage = serde_json::from_str(json).unwrap();
        assert_eq!(crate::task::Usage::from(&usage).total_tokens, 3);
        assert_eq!(usage.extra["x"]["y"], 1);
    }
}
