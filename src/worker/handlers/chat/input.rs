//! A task's input: an OpenAI request, with `prompt` and `system` as shorthands for messages, and
//! with `cache`, `agent` and `expect`, which are for forq alone.

use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::expect::Expect;
use crate::handler::parse_input;
use crate::openai::{ChatRequest, Message, StreamOptions};

/// What a task asks for.
#[derive(Debug)]
pub(super) struct Asked {
    /// What goes to a provider.
    pub(super) request: ChatRequest,
    /// Whose task it is; what that adds is not in `request` yet.
    pub(super) agent: Option<String>,
    /// What the input says about the cache.
    pub(super) cache: CacheWish,
    /// What the answer must be; what a model is told of that is not in `request` yet.
    pub(super) expect: Option<Arc<Expect>>,
}

/// What a task says about answers that were given before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheWish {
    /// Nothing: an answer may be given again if the request is deterministic.
    Unsaid,
    /// `true`: an answer may be given again.
    Use,
    /// `"refresh"`: a new answer, which may be given again.
    Refresh,
    /// `false`: neither take one nor keep one.
    Never,
}

/// Reads an input into what it means; the error names the field.
pub(super) fn read(input: &RawValue) -> Result<Asked, String> {
    let mut request: ChatRequest = parse_input(input)?;
    let cache = take_cache(&mut request)?;
    let expect = take_expect(&mut request)?;
    let agent = take_text(&mut request, "agent")?;
    let prompt = take_text(&mut request, "prompt")?;
    let system = take_text(&mut request, "system")?;
    let given = match (prompt, request.messages.take()) {
        (Some(prompt), None) => vec![Message::text("user", prompt)],
        (None, Some(messages)) if messages.is_empty() => {
            return Err("input.messages: give at least one message".into());
        }
        (None, Some(messages)) => messages,
        (Some(_), Some(_)) => {
            return Err("input.prompt: give `prompt` or `messages`, not both".into());
        }
        (None, None) => return Err("input: give `prompt` or `messages`".into()),
    };
    let system = system.map(|text| Message::text("system", text));
    request.messages = Some(system.into_iter().chain(given).collect());
    if request.n.is_some_and(|n| n != 1) {
        return Err("input.n: a task has one answer: submit a task for each".into());
    }
    for (name, limit) in [
        ("max_tokens", request.max_tokens),
        ("max_completion_tokens", request.max_completion_tokens),
    ] {
        if limit == Some(0) {
            return Err(format!("input.{name}: give at least 1"));
        }
    }
    Ok(Asked { request, agent, cache, expect })
}

fn take_cache(request: &mut ChatRequest) -> Result<CacheWish, String> {
    match request.extra.remove("cache") {
        None | Some(Value::Null) => Ok(CacheWish::Unsaid),
        Some(Value::Bool(true)) => Ok(CacheWish::Use),
        Some(Value::Bool(false)) => Ok(CacheWish::Never),
        Some(Value::String(word)) if word == "refresh" => Ok(CacheWish::Refresh),
        Some(_) => Err("input.cache: give true, false or \"refresh\"".into()),
    }
}

fn take_expect(request: &mut ChatRequest) -> Result<Option<Arc<Expect>>, String> {
    match request.extra.remove("expect") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match Expect::read(&value) {
            Ok(expect) => Ok(Some(Arc::new(expect))),
            Err(error) => Err(format!("input.expect: {error}")),
        },
    }
}

fn take_text(request: &mut ChatRequest, name: &str) -> Result<Option<String>, String> {
    match request.extra.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("input.{name}: expected a string, found {}", sort_of(&other))),
    }
}

fn sort_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Asks for a stream unless the input says otherwise, and for the usage at its end; true if it
/// was this that asked for the usage, and [`withdraw_usage`] must undo it for another provider.
pub(super) fn prepare(request: &mut ChatRequest, model: &str, with_usage: bool) -> bool {
    request.model = Some(model.to_owned());
    let stream = *request.stream.get_or_insert(true);
    if !(stream && with_usage) {
        return false;
    }
    let options = request.stream_options.get_or_insert_with(StreamOptions::default);
    let asks = options.include_usage.is_none();
    options.include_usage.get_or_insert(true);
    asks
}

/// Takes back what [`prepare`] asked for.
pub(super) fn withdraw_usage(request: &mut ChatRequest) {
    request.stream_options = request
        .stream_options
        .take()
        .map(|options| StreamOptions { include_usage: None, ..options })
        .filter(|options| !options.extra.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(input: Value) -> Result<ChatRequest, String> {
        read(&RawValue::from_string(input.to_string()).unwrap()).map(|asked| asked.request)
    }

    #[test]
    fn errors_name_the_field() {
        let user = json!([{"role": "user", "content": "a"}]);
        let cases = [
            (json!({}), "input: "),
            (json!([]), "input: "),
            (json!({"promt": "a"}), "input: "),
            (json!({"prompt": 5}), "input.prompt: expected a string, found a number"),
            (json!({"prompt": "a", "messages": user}), "input.prompt: "),
            (json!({"prompt": "a", "system": []}), "input.system: "),
            (json!({"messages": []}), "input.messages: "),
            (json!({"messages": "a"}), "input.messages: "),
            (json!({"messages": [{"content": "a"}]}), "input.messages[0]: missing field `role`"),
            (json!({"messages": [{"role": "user", "content": 5}]}), "input.messages[0].content: "),
            (json!({"prompt": "a", "temperature": "hot"}), "input.temperature: "),
            (json!({"prompt": "a", "max_tokens": -1}), "input.max_tokens: "),
            (json!({"prompt": "a", "max_tokens": 0}), "input.max_tokens: "),
            (json!({"prompt": "a", "n": 2}), "input.n: "),
            (json!({"prompt": "a", "model": 5}), "input.model: "),
            (json!({"prompt": "a", "stream": "yes"}), "input.stream: "),
            (json!({"prompt": "a", "cache": "yes"}), "input.cache: give true, false or"),
            (json!({"prompt": "a", "agent": 5}), "input.agent: expected a string"),
            (json!({"prompt": "a", "expect": {"json": 1}}), "input.expect: json: invalid type: "),
        ];
        for (input, start) in cases {
            let error = request(input.clone()).unwrap_err();
            assert!(error.starts_with(start), "{input}: {error}");
        }
    }

    #[test]
    fn shorthands_become_messages_and_parameters_pass() {
        let mut request = request(json!({
            "prompt": "p", "system": "s", "temperature": 0.5, "seed": 7, "model": "x",
        }))
        .unwrap();
        assert!(prepare(&mut request, "up", true));
        let expected = json!({
            "model": "up", "stream": true, "stream_options": {"include_usage": true},
            "temperature": 0.5, "seed": 7,
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "p"},
            ],
        });
        assert_eq!(serde_json::to_value(request).unwrap(), expected);
    }

    #[test]
    fn what_is_meant_for_us_goes_no_further() {
        for (cache, wish) in [
            (Value::Null, CacheWish::Unsaid),
            (json!(true), CacheWish::Use),
            (json!(false), CacheWish::Never),
            (json!("refresh"), CacheWish::Refresh),
        ] {
            let expect = json!({"json": true});
            let input = json!({"prompt": "p", "cache": cache, "agent": "host", "expect": expect});
            let asked = read(&RawValue::from_string(input.to_string()).unwrap()).unwrap();
            assert_eq!(asked.expect.unwrap().source(), expect.to_string());
            assert_eq!((asked.cache, asked.agent.as_deref()), (wish, Some("host")));
            assert!(asked.request.extra.is_empty());
        }
    }

    #[test]
    fn what_the_input_says_about_streams_stands() {
        let mut whole = request(json!({"prompt": "p", "stream": false})).unwrap();
        assert!(!prepare(&mut whole, "m", true));
        assert_eq!((whole.stream, whole.stream_options), (Some(false), None));
        let asked = json!({"prompt": "p", "stream_options": {"include_usage": false, "x": 1}});
        let mut asked = request(asked).unwrap();
        assert!(!prepare(&mut asked, "m", true));
        assert_eq!(asked.stream_options.unwrap().include_usage, Some(false));
        let mut asked = request(json!({"prompt": "p", "stream_options": {"x": 1}})).unwrap();
        let before = asked.clone();
        assert!(prepare(&mut asked, "m", true));
        withdraw_usage(&mut asked);
        assert_eq!(asked.stream_options, before.stream_options);
        let mut without = request(json!({"prompt": "p"})).unwrap();
        assert!(!prepare(&mut without, "m", false));
        assert_eq!((without.stream, without.stream_options), (Some(true), None));
    }
}
