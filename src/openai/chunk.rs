//! A chat completion as a stream of chunks.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Content, Usage, null_default};

/// The data of one event of a streamed completion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// Names the completion; the same in all its chunks.
    #[serde(default, deserialize_with = "null_default")]
    pub id: String,
    /// `chat.completion.chunk`.
    #[serde(default, deserialize_with = "null_default")]
    pub object: String,
    /// When the completion began, in seconds since 1970.
    #[serde(default, deserialize_with = "null_default")]
    pub created: u64,
    /// The model that answers.
    #[serde(default, deserialize_with = "null_default")]
    pub model: String,
    /// What is new; empty in the chunk that tells the usage.
    #[serde(default, deserialize_with = "null_default")]
    pub choices: Vec<ChunkChoice>,
    /// Tokens used. Written as `null` in all chunks but the last when it was asked for, and left
    /// out when it was not; both read as `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What is new of one answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// The answer's number, from 0.
    #[serde(default, deserialize_with = "null_default")]
    pub index: u64,
    /// What is new.
    #[serde(default, deserialize_with = "null_default")]
    pub delta: Delta,
    /// Why it ended, in its last chunk.
    #[serde(default)]
    pub finish_reason: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What is new of one message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// In the first chunk: `assistant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// A piece of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// Pieces of calls.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// The rest, such as `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A piece of one call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCallDelta {
    /// Which call it belongs to; some servers leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The call's id, in its first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in its first piece.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is new of the function.
    #[serde(default, deserialize_with = "null_default")]
    pub function: FunctionDelta,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What is new of the function that is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionDelta {
    /// Its name, in the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A piece of its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_is_absent_null_or_there() {
        let chunk = ChatChunk::default();
        assert!(serde_json::to_value(&chunk).unwrap().get("usage").is_none());
        let chunk = ChatChunk { usage: Some(None), ..chunk };
        assert!(serde_json::to_value(&chunk).unwrap()["usage"].is_null());
        let chunk: ChatChunk = serde_json::from_value(json!({"usage": null})).unwrap();
        assert_eq!(chunk.usage, None);
        let json = json!({"usage": {"prompt_tokens": 1}, "choices": []});
        let chunk: ChatChunk = serde_json::from_value(json).unwrap();
        assert_eq!(chunk.usage.unwrap().unwrap().prompt_tokens, 1);
    }

    #[test]
    fn chunks_of_sparse_servers_are_read() {
        let json = json!({"choices": [{"delta": {"content": null, "tool_calls": null}}]});
        let chunk: ChatChunk = serde_json::from_value(json).unwrap();
        assert_eq!(chunk.choices[0].delta, Delta::default());
        let json = json!({"choices": [{"delta": null, "finish_reason": "stop"}]});
        let chunk: ChatChunk = serde_json::from_value(json).unwrap();
        assert_eq!(chunk.choices[0].finish_reason.as_deref(), Some("stop"));
    }
}
