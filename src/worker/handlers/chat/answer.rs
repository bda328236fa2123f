//! An answer, put together from chunks or read in one piece: pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::route::Route;
use super::walk::Fallback;
use crate::openai::{
    ChatChunk, ChatCompletion, Choice, Content, Delta, ToolCall, ToolCallDelta, Usage,
};

/// Most bytes of text and calls that one answer may have.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What a call of a tool counts for on top of its text, so that empty ones are bounded too.
const CALL_BYTES: usize = 128;

/// An answer that is over [`ANSWER_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is over the limit of {ANSWER_BYTES_MAX} bytes")]
pub(super) struct AnswerTooLong;

/// What is there of an answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    model: String,
    text: String,
    calls: BTreeMap<u64, ToolCall>,
    calls_bytes: usize,
    finish_reason: Option<String>,
    usage: Option<Usage>,
    begun: bool,
}

/// A chat task's output.
#[derive(Debug, Serialize)]
pub(super) struct ChatOutput {
    text: String,
    model: String,
    provider: String,
    pub(super) usage: Option<Usage>,
    finish_reason: Option<String>,
    cached: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// Who was asked before in this attempt, and why that did not help.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fallbacks: Vec<Fallback>,
    /// How many times a model was asked until its answer was as expected, if more than once;
    /// `usage` is that of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) asked: Option<u32>,
}

impl Answer {
    /// Whether the model has said anything yet: a role alone is nothing, reasoning is something.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the model has said its last word; only the usage may still follow.
    pub(super) fn has_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Adds a chunk; gives the text that is new.
    pub(super) fn add(&mut self, chunk: ChatChunk) -> Result<String, AnswerTooLong> {
        if self.model.is_empty() {
            self.model = chunk.model;
        }
        if let Some(usage) = chunk.usage.flatten() {
            self.usage = Some(usage);
        }
        let Some(choice) = chunk.choices.into_iter().find(|choice| choice.index == 0) else {
            return Ok(String::new());
        };
        self.begun |= says_something(&choice.delta) || choice.finish_reason.is_some();
        if choice.finish_reason.is_some() {
            self.finish_reason = choice.finish_reason;
        }
        for piece in choice.delta.tool_calls {
            self.add_to_call(piece);
        }
        let news = choice.delta.content.map(Content::into_text).unwrap_or_default();
        self.text.push_str(&news);
        self.check_size()?;
        Ok(news)
    }

    fn add_to_call(&mut self, piece: ToolCallDelta) {
        let last = self.calls.last_key_value().map(|(index, _)| *index);
        // Servers that send no index send each call whole, or one after the other.
        let index = piece.index.unwrap_or_else(|| match (last, &piece.id) {
            (Some(last), Some(_)) => last.saturating_add(1),
            (last, _) => last.unwrap_or(0),
        });
        let call = self.calls.entry(index).or_insert_with(|| {
            self.calls_bytes += CALL_BYTES;
            ToolCall { kind: "function".into(), ..ToolCall::default() }
        });
        let id = piece.id.unwrap_or_default();
        let name = piece.function.name.unwrap_or_default();
        let arguments = piece.function.arguments.unwrap_or_default();
        self.calls_bytes += id.len() + name.len() + arguments.len();
        // Some servers repeat the id and the name in every piece.
        if !id.is_empty() {
            call.id = id;
        }
        if !name.is_empty() {
            call.function.name = name;
        }
        call.function.arguments.push_str(&arguments);
        for (key, value) in piece.extra {
            self.calls_bytes += key.len() + value.to_string().len();
            call.extra.insert(key, value);
        }
    }

    fn check_size(&self) -> Result<(), AnswerTooLong> {
        if self.text.len() + self.calls_bytes > ANSWER_BYTES_MAX {
            return Err(AnswerTooLong);
        }
        Ok(())
    }

    /// Tokens, if the server said how many.
    pub(super) fn usage(&self) -> Option<crate::task::Usage> {
        self.usage.as_ref().map(Into::into)
    }

    /// What is kept of the answer that came by `route`, after others had failed.
    pub(super) fn into_output(self, route: &Route, fallbacks: Vec<Fallback>) -> ChatOutput {
        ChatOutput {
            text: self.text,
            // A server may leave its name out.
            model: if self.model.is_empty() { route.model.clone() } else { self.model },
            provider: route.provider.name.clone(),
            usage: self.usage,
            finish_reason: self.finish_reason,
            cached: false,
            tool_calls: self.calls.into_values().collect(),
            fallbacks,
            asked: None,
        }
    }

    /// The same, as the server counts them.
    pub(super) fn counted(&self) -> Option<&Usage> {
        self.usage.as_ref()
    }

    /// The text so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// An answer that came in one piece; `None` if it has no choice.
    pub(super) fn whole(completion: ChatCompletion) -> Option<Self> {
        let Choice { message, finish_reason, .. } = completion.choices.into_iter().next()?;
        Some(Self {
            model: completion.model,
            text: message.content.map(Content::into_text).unwrap_or_default(),
            calls: (0..).zip(message.tool_calls).collect(),
            finish_reason,
            usage: completion.usage,
            begun: true,
            ..Self::default()
        })
    }
}

fn says_something(delta: &Delta) -> bool {
    let content = match &delta.content {
        None => false,
        Some(Content::Text(text)) => !text.is_empty(),
        Some(Content::Parts(parts)) => !parts.is_empty(),
    };
    let empty = |value: &Value| value.is_null() || value == "";
    content || !delta.tool_calls.is_empty() || !delta.extra.values().all(empty)
}

#[cfg(test)]
mod tests {
    use super::super::tests::provider_named;
    use super::*;
    use serde_json::json;

    fn output(answer: Answer) -> Value {
        let route = Route { provider: provider_named("p").into(), model: "asked".into() };
        serde_json::to_value(answer.into_output(&route, Vec::new())).unwrap()
    }

    fn chunk(delta: Value, finish_reason: Value) -> ChatChunk {
        let choice = json!({"delta": delta, "finish_reason": finish_reason});
        serde_json::from_value(json!({"model": "m", "choices": [choice]})).unwrap()
    }

    fn answer(deltas: &[Value]) -> Answer {
        let mut answer = Answer::default();
        for delta in deltas {
            answer.add(chunk(delta.clone(), Value::Null)).unwrap();
        }
        answer
    }

    #[test]
    fn an_answer_begins_with_its_first_token() {
        for (delta, begun) in [
            (json!({"role": "assistant", "content": ""}), false),
            (json!({"role": "assistant", "content": null, "refusal": null}), false),
            (json!({"reasoning_content": ""}), false),
            (json!({"reasoning_content": "hm"}), true),
            (json!({"content": "a"}), true),
            (json!({"tool_calls": [{"index": 0}]}), true),
        ] {
            assert_eq!(answer(std::slice::from_ref(&delta)).has_begun(), begun, "{delta}");
        }
    }

    #[test]
    fn chunks_become_an_output() {
        let mut answer = answer(&[json!({"content": "a"}), json!({"content": "é"})]);
        assert!(!answer.has_finished());
        answer.add(chunk(json!({}), json!("stop"))).unwrap();
        assert!(answer.has_finished());
        let usage = json!({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "x": 3}});
        answer.add(serde_json::from_value(usage).unwrap()).unwrap();
        let expected = json!({
            "text": "aé", "model": "m", "provider": "p", "finish_reason": "stop",
            "cached": false,
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 0, "x": 3},
        });
        assert_eq!(output(answer), expected);
    }

    fn calls(pieces: &[Value]) -> Value {
        let deltas: Vec<_> = pieces.iter().map(|piece| json!({"tool_calls": [piece]})).collect();
        output(answer(&deltas))["tool_calls"].take()
    }

    #[test]
    fn calls_are_put_together_by_index() {
        let pieces = [
            json!({"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}),
            json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{\"x\""}}),
            json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": ":1}"}}),
            json!({"index": 1, "function": {"arguments": "{}"}, "signature": "s"}),
        ];
        let expected = json!([
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"},
             "signature": "s"},
        ]);
        assert_eq!(calls(&pieces), expected);
    }

    #[test]
    fn calls_without_an_index_are_told_apart_by_id() {
        let pieces = [
            json!({"id": "a", "function": {"name": "f", "arguments": "1"}}),
            json!({"function": {"arguments": "2"}}),
            json!({"id": "b", "function": {"name": "g", "arguments": "3"}}),
        ];
        let calls = calls(&pieces);
        assert_eq!(calls[0]["function"]["arguments"], "12");
        assert_eq!(calls[1]["id"], "b");
    }

    #[test]
    fn an_endless_answer_is_refused() {
        let piece = json!({"content": "a".repeat(ANSWER_BYTES_MAX)});
        let mut long = answer(&[piece]);
        assert_eq!(long.add(chunk(json!({"content": "a"}), Value::Null)), Err(AnswerTooLong));
        let mut answer = Answer::default();
        let refused = (0..).find(|index| {
            let call = json!({"tool_calls": [{"index": index}]});
            answer.add(chunk(call, Value::Null)).is_err()
        });
        assert!(refused.unwrap() <= ANSWER_BYTES_MAX / CALL_BYTES);
    }
}
