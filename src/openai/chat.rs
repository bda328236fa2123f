//! A chat completion: what is asked, and the answer in one piece.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use super::{Usage, null_default};

/// The body of `POST /v1/chat/completions`.
///
/// Typed are the parameters that we act on or check; the rest pass through in `extra`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// Whether the answer comes as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// What a stream carries besides its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// How far the model may stray.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Number>,
    /// The same in another way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<Number>,
    /// Most tokens of the answer (the older name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Most tokens of the answer, reasoning included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u64>,
    /// How many answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The tools that the model may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// Whether it must: `none`, `auto`, `required`, or a named function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a stream carries besides its text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Whether a last chunk tells the tokens used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_usage: Option<bool>,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One message of a conversation, the model's own included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What it says; `null` where a model only calls tools.
    #[serde(default)]
    pub content: Option<Content>,
    /// The tools that the model calls.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The rest: `name`, `tool_call_id`, `refusal`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn text(role: &str, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Content::Text(text.into())), ..Self::default() }
    }
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of content parts")]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, each an object with a `type`: text, images, sound.
    Parts(Vec<Value>),
}

impl Content {
    /// The text alone: that of the parts of type `text`, one after the other.
    pub fn into_text(self) -> String {
        match self {
            Content::Text(text) => text,
            Content::Parts(parts) => {
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
            }
        }
    }
}

/// A call of a tool, as the model asks for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call; the tool's answer repeats it.
    #[serde(default, deserialize_with = "null_default")]
    pub id: String,
    /// `function`.
    #[serde(rename = "type", default = "function_type")]
    pub kind: String,
    /// What is called.
    #[serde(default)]
    pub function: FunctionCall,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The function that a model calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Its name.
    #[serde(default, deserialize_with = "null_default")]
    pub name: String,
    /// Its arguments: JSON in a string, as the model wrote it.
    #[serde(default, deserialize_with = "null_default")]
    pub arguments: String,
}

/// The answer in one piece.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// Names the completion.
    #[serde(default, deserialize_with = "null_default")]
    pub id: String,
    /// `chat.completion`.
    #[serde(default, deserialize_with = "null_default")]
    pub object: String,
    /// When, in seconds since 1970.
    #[serde(default, deserialize_with = "null_default")]
    pub created: u64,
    /// The model that answered.
    #[serde(default, deserialize_with = "null_default")]
    pub model: String,
    /// The answers: one, unless `n` asked for more.
    pub choices: Vec<Choice>,
    /// Tokens used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Its number, from 0.
    #[serde(default, deserialize_with = "null_default")]
    pub index: u64,
    /// What the model says.
    pub message: Message,
    /// Why it ended: `stop`, `length`, `tool_calls`, `content_filter`.
    #[serde(default)]
    pub finish_reason: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

pub(super) fn function_type() -> String {
    "function".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_comes_out_as_it_went_in() {
        let body = json!({
            "model": "m", "temperature": 1, "max_tokens": 5, "seed": 7, "stop": ["\n"],
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ]},
                {"role": "tool", "content": "r", "tool_call_id": "c"},
            ],
            "stream_options": {"include_usage": true},
        });
        let request: ChatRequest = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(serde_json::to_value(&request).unwrap(), body);
    }

    #[test]
    fn answers_of_sparse_servers_are_read() {
        let body = json!({"choices": [{"message": {"role": "assistant", "tool_calls": null}}]});
        let answer: ChatCompletion = serde_json::from_value(body).unwrap();
        assert_eq!(answer.choices[0].message.content, None);
        assert_eq!(answer.usage, None);
    }

    #[test]
    fn the_text_of_parts_is_joined() {
        let parts = vec![json!({"type": "text", "text": "a"}), json!({"type": "image_url"})];
        assert_eq!(Content::Parts(parts).into_text(), "a");
    }
}
