//! An answer in OpenAI's shapes: in one piece, or as the events of a stream.

use serde_json::{Map, Value};

use super::MODEL;
use super::answer::Answer;
use crate::openai::{
    ChatChunk, ChatCompletion, Choice, ChunkChoice, Content, Delta, FunctionCall, FunctionDelta,
    Message, ToolCall, ToolCallDelta, Usage,
};

/// What all parts of one answer share.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) include_usage: bool,
}

impl Head {
    /// The id of the one call in the completion.
    fn call_id(&self) -> String {
        self.id.replacen("chatcmpl-", "call-", 1)
    }
}

/// The answer in one piece.
pub(super) fn whole(head: Head, answer: Answer) -> ChatCompletion {
    let usage = usage(&answer);
    let text = answer.tokens.concat();
    let message = match answer.calls {
        None => Message::text("assistant", text),
        Some(name) => {
            let function = FunctionCall { name, arguments: text };
            let (id, kind) = (head.call_id(), "function".into());
            let call = ToolCall { id, kind, function, ..ToolCall::default() };
            Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() }
        }
    };
    let finish_reason = Some(answer.finish_reason.into());
    ChatCompletion {
        id: head.id,
        object: "chat.completion".into(),
        created: head.created,
        model: MODEL.into(),
        choices: vec![Choice { message, finish_reason, ..Choice::default() }],
        usage: Some(usage),
        extra: fingerprint(),
    }
}

/// The chunks of an answer in order, each with the token whose time it goes at.
pub(super) fn chunks(head: &Head, answer: Answer) -> Vec<(usize, ChatChunk)> {
    let chunk = |choices| ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk".into(),
        created: head.created,
        model: MODEL.into(),
        choices,
        usage: head.include_usage.then_some(None),
        extra: fingerprint(),
    };
    let news = |delta, finish_reason| {
        chunk(vec![ChunkChoice { delta, finish_reason, ..ChunkChoice::default() }])
    };
    let usage = usage(&answer);
    let last = answer.tokens.len().saturating_sub(1);
    let mut chunks = vec![(0, news(first_delta(head, answer.calls.as_deref()), None))];
    for (index, token) in answer.tokens.into_iter().enumerate() {
        let delta = match answer.calls {
            None => Delta { content: Some(Content::Text(token)), ..Delta::default() },
            Some(_) => call_delta(None, None, token),
        };
        chunks.push((index, news(delta, None)));
    }
    chunks.push((last, news(Delta::default(), Some(answer.finish_reason.into()))));
    if head.include_usage {
        chunks.push((last, ChatChunk { usage: Some(Some(usage)), ..chunk(Vec::new()) }));
    }
    chunks
}

fn first_delta(head: &Head, calls: Option<&str>) -> Delta {
    let role = Some("assistant".into());
    match calls {
        None => Delta { role, content: Some(Content::Text(String::new())), ..Delta::default() },
        Some(name) => {
            Delta { role, ..call_delta(Some(head.call_id()), Some(name.into()), String::new()) }
        }
    }
}

fn call_delta(id: Option<String>, name: Option<String>, arguments: String) -> Delta {
    let kind = id.is_some().then(|| "function".into());
    let function = FunctionDelta { name, arguments: Some(arguments) };
    let call = ToolCallDelta { index: Some(0), id, kind, function, ..ToolCallDelta::default() };
    Delta { tool_calls: vec![call], ..Delta::default() }
}

fn usage(answer: &Answer) -> Usage {
    let (prompt_tokens, completion_tokens) = (answer.prompt_tokens, answer.tokens.len() as u64);
    let total_tokens = prompt_tokens + completion_tokens;
    Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
}

/// Says in each answer once more what it comes from.
fn fingerprint() -> Map<String, Value> {
    Map::from_iter([("system_fingerprint".to_owned(), "simulated".into())])
}
