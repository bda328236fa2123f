//! What a request needs before it is sent: tokens, counted in advance, and a key under which an
//! equal request finds its answer. Pure.

use serde::Serialize;
use serde_json::Value;

use super::input::{Asked, CacheWish};
use super::route::Chain;
use crate::handler::Needs;
use crate::openai::{ChatRequest, Content, Message};
use crate::protocol::calls::CALL_TOKENS_MAX;
use crate::worker::handlers::key::{half_digest, write_in_order};

/// Tokens of an answer whose request sets no limit.
pub(super) const ANSWER_TOKENS: u64 = 512;
/// Tokens around one message: its role and its ends.
const MESSAGE_TOKENS: u64 = 4;
/// ASCII characters to a token; of others each is one.
const TOKEN_ASCII: u64 = 4;
/// Most tokens of a part that is no text: an image has as many however long its data is.
const PART_TOKENS_MAX: u64 = 1024;
/// Changes with what the key is made of.
const KEY_VERSION: &str = "chat 1";

/// What the broker must know of a request.
pub(super) fn of(asked: &Asked, chain: &Chain) -> Needs {
    let keeps = match asked.cache {
        CacheWish::Unsaid => is_deterministic(&asked.request),
        CacheWish::Use | CacheWish::Refresh => true,
        CacheWish::Never => false,
    };
    Needs {
        gate: chain.gate.clone(),
        tokens: tokens(&asked.request),
        cache_key: keeps.then(|| key(asked, chain)),
        cache_refresh: asked.cache == CacheWish::Refresh,
        agent: asked.agent.clone(),
    }
}

fn is_deterministic(request: &ChatRequest) -> bool {
    request.temperature.as_ref().and_then(serde_json::Number::as_f64) == Some(0.0)
}

/// Tokens that a call will probably take, its answer included: an estimate without a tokeniser.
pub(super) fn tokens(request: &ChatRequest) -> u64 {
    let limit = request.max_completion_tokens.or(request.max_tokens);
    let messages = request.messages.as_deref().unwrap_or_default();
    let tools = request.tools.as_ref().map_or(0, json_tokens);
    messages
        .iter()
        .map(message_tokens)
        .fold(tools, u64::saturating_add)
        .saturating_add(limit.unwrap_or(ANSWER_TOKENS))
        .min(CALL_TOKENS_MAX)
}

pub(super) fn message_tokens(message: &Message) -> u64 {
    let content = match &message.content {
        None => 0,
        Some(Content::Text(text)) => text_tokens(text),
        Some(Content::Parts(parts)) => parts.iter().map(part_tokens).sum(),
    };
    let calls = if message.tool_calls.is_empty() { 0 } else { json_tokens(&message.tool_calls) };
    let rest = if message.extra.is_empty() { 0 } else { json_tokens(&message.extra) };
    MESSAGE_TOKENS + content + calls + rest
}

fn part_tokens(part: &Value) -> u64 {
    match part.get("text").and_then(Value::as_str) {
        Some(text) => text_tokens(text),
        None => json_tokens(part).min(PART_TOKENS_MAX),
    }
}

fn json_tokens(value: &impl Serialize) -> u64 {
    // What cannot be written is not sent either.
    serde_json::to_string(value).map_or(0, |json| text_tokens(&json))
}

pub(super) fn text_tokens(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
    let others = text.chars().count() as u64 - ascii;
    ascii.div_ceil(TOKEN_ASCII) + others
}

/// So many tokens of a text, or all of it.
pub(super) fn first_tokens(text: &str, tokens_max: u64) -> &str {
    let mut left = tokens_max.saturating_mul(TOKEN_ASCII);
    for (at, char) in text.char_indices() {
        match left.checked_sub(if char.is_ascii() { 1 } else { TOKEN_ASCII }) {
            Some(less) => left = less,
            None => return &text[..at],
        }
    }
    text
}

/// The same for equal requests in each process and build. Whether it streams makes no difference to
/// an answer.
fn key(asked: &Asked, chain: &Chain) -> u128 {
    let mut text = format!("{KEY_VERSION}\n{}\n", chain.gate);
    for route in &chain.routes {
        text.push_str(&format!("{}/{}\n", route.provider.name, route.model));
    }
    if let Some(expect) = &asked.expect {
        text.push_str(&format!("expect {}\n", expect.source()));
    }
    // Only what a JSON text was read from is written here, and that can be.
    let mut request = serde_json::to_value(&asked.request).unwrap_or_default();
    if let Value::Object(fields) = &mut request {
        for name in ["model", "stream", "stream_options"] {
            fields.remove(name);
        }
    }
    write_in_order(&request, &mut text);
    half_digest(&text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::provider_named;
    use super::super::{Routes, input};
    use super::*;
    use crate::worker::handlers::testing::raw;

    fn needs(input: Value) -> Needs {
        let mut routes = Routes::default();
        routes.add_provider(provider_named("a"));
        routes.add_provider(provider_named("b"));
        routes.add_model("default", &["a/m".to_owned(), "b/n".to_owned()], false).unwrap();
        routes.add_model("other", &["a/m".to_owned(), "b/n".to_owned()], false).unwrap();
        let asked = input::read(&raw(input.to_string())).unwrap();
        let chain = routes.find(asked.request.model.as_deref()).unwrap();
        of(&asked, &chain)
    }

    #[test]
    fn tokens_are_estimated() {
        let tools = json!([{"a": "bcd"}]); // 13 characters of JSON
        let image = json!({"type": "image_url", "image_url": {"url": "x".repeat(1 << 20)}});
        for (input, tokens) in [
            (json!({"prompt": "12345"}), 4 + 2 + 512),
            (json!({"prompt": "漢é12345"}), 4 + 4 + 512),
            (json!({"prompt": "", "system": "1234"}), 4 + 5 + 512),
            (json!({"prompt": "1", "max_tokens": 9}), 4 + 1 + 9),
            (json!({"prompt": "1", "max_completion_tokens": 7, "max_tokens": 9}), 4 + 1 + 7),
            (json!({"prompt": "1", "max_tokens": u64::MAX}), CALL_TOKENS_MAX),
            (json!({"prompt": "1", "tools": tools}), 4 + 1 + 512 + 4),
            (
                json!({"messages": [{"role": "user", "content": [
                    {"type": "text", "text": "12345678"}, image]}]}),
                4 + 2 + 1024 + 512,
            ),
            // {"name":"n"} has 12 characters.
            (json!({"messages": [{"role": "user", "content": "", "name": "n"}]}), 4 + 3 + 512),
        ] {
            assert_eq!(needs(input.clone()).tokens, tokens, "{input}");
        }
    }

    #[test]
    fn the_gate_is_the_entry_or_the_provider() {
        assert_eq!(needs(json!({"prompt": "a"})).gate, "m:default");
        assert_eq!(needs(json!({"prompt": "a", "model": "b/x"})).gate, "p:b");
    }

    #[test]
    fn answers_are_kept_for_what_is_deterministic_or_says_so() {
        for (input, keeps, refreshes) in [
            (json!({"prompt": "a"}), false, false),
            (json!({"prompt": "a", "temperature": 0.1}), false, false),
            (json!({"prompt": "a", "temperature": 0}), true, false),
            (json!({"prompt": "a", "temperature": 0.0}), true, false),
            (json!({"prompt": "a", "temperature": 0, "cache": false}), false, false),
            (json!({"prompt": "a", "cache": true}), true, false),
            (json!({"prompt": "a", "cache": "refresh"}), true, true),
        ] {
            let needs = needs(input.clone());
            assert_eq!((needs.cache_key.is_some(), needs.cache_refresh), (keeps, refreshes));
        }
    }

    #[test]
    fn equal_requests_have_one_key() {
        let key = |input: &str| {
            let mut input: Value = serde_json::from_str(input).unwrap();
            input["cache"] = true.into();
            needs(input).cache_key.unwrap()
        };
        let plain = key(r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2}}"#);
        for equal in [
            r#"{"stop":{"y":2,"x":1},"seed":1,"prompt":"a"}"#,
            r#"{"messages":[{"content":"a","role":"user"}],"seed":1,"stop":{"x":1,"y":2}}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"stream":false,"agent":"x"}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"model":"default"}"#,
        ] {
            assert_eq!(key(equal), plain, "{equal}");
        }
        for other in [
            r#"{"prompt":"b","seed":1,"stop":{"x":1,"y":2}}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":2,"y":2}}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"model":"other"}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"model":"a/m"}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"max_tokens":1}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"expect":{"regex":"b"}}"#,
            r#"{"prompt":"a","seed":1,"stop":{"x":1,"y":2},"expect":{"json":true}}"#,
        ] {
            assert_ne!(key(other), plain, "{other}");
        }
        assert_ne!(key(r#"{"prompt":"a","model":"a/m"}"#), key(r#"{"prompt":"a","model":"a/n"}"#));
    }

    #[test]
    fn keys_are_the_same_for_ever() {
        let key = needs(json!({"prompt": "hello", "temperature": 0})).cache_key.unwrap();
        assert_eq!(format!("{key:032x}"), "cecd75006e7216549f9d37d9aa93fc37");
    }
}
