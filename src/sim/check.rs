//! Which requests the simulated model refuses, as OpenAI does: with the parameter's name.

use serde_json::{Value, json};

use crate::openai::{ChatRequest, ErrorDetail};

/// A tool that the model must call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Forced {
    pub(super) name: String,
    /// The JSON Schema of its arguments.
    pub(super) parameters: Value,
}

/// An error that the client is to blame for.
pub(super) fn invalid(message: impl Into<String>, param: Option<&str>, code: &str) -> ErrorDetail {
    ErrorDetail {
        message: message.into(),
        kind: Some("invalid_request_error".into()),
        param: param.map(str::to_owned),
        code: Some(code.into()),
    }
}

/// Reads and checks the body of a chat completion; with the tool that must be called, if any.
pub(super) fn check(body: &[u8]) -> Result<(ChatRequest, Option<Forced>), ErrorDetail> {
    let request = parse(body)?;
    let bad = |param: &str, message: &str| Err(invalid(message, Some(param), "invalid_value"));
    let missing = |param: &str| {
        let message = format!("Missing required parameter: '{param}'.");
        Err(invalid(message, Some(param), "missing_required_parameter"))
    };
    if request.model.is_none() {
        return missing("model");
    }
    match request.messages.as_deref() {
        None => return missing("messages"),
        Some([]) => return bad("messages", "'messages' must have at least one message."),
        Some(_) => {}
    }
    if request.n.is_some_and(|n| n != 1) {
        return bad("n", "The simulated model gives one answer: 'n' must be 1.");
    }
    for (param, limit) in [
        ("max_tokens", request.max_tokens),
        ("max_completion_tokens", request.max_completion_tokens),
    ] {
        if limit == Some(0) {
            return bad(param, &format!("'{param}' must be at least 1."));
        }
    }
    if request.stream_options.is_some() && request.stream != Some(true) {
        return bad("stream_options", "'stream_options' is only allowed when 'stream' is true.");
    }
    let forced = forced(&request)?;
    Ok((request, forced))
}

fn parse(body: &[u8]) -> Result<ChatRequest, ErrorDetail> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let request = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() && path != "." {
            let message = format!("Invalid value for '{path}': {inner}.");
            invalid(message, Some(&path), "invalid_type")
        } else {
            invalid(format!("The body is not a JSON request: {inner}."), None, "invalid_json")
        }
    })?;
    json.end().map_err(|error| {
        invalid(format!("The body is not a JSON request: {error}."), None, "invalid_json")
    })?;
    Ok(request)
}

fn forced(request: &ChatRequest) -> Result<Option<Forced>, ErrorDetail> {
    let bad = |message: String| Err(invalid(message, Some("tool_choice"), "invalid_value"));
    let tools = request.tools.as_deref().unwrap_or_default();
    let tool = match request.tool_choice.as_ref() {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" | "auto" => return Ok(None),
            "required" => tools.first(),
            other => return bad(format!("'{other}' is no tool choice.")),
        },
        Some(choice) => {
            let name = choice.pointer("/function/name");
            tools.iter().find(|tool| name.is_some() && tool.pointer("/function/name") == name)
        }
    };
    let name = tool.and_then(|tool| tool.pointer("/function/name")?.as_str());
    let (Some(tool), Some(name)) = (tool, name) else {
        return bad("'tool_choice' asks for a function that is not among 'tools'.".into());
    };
    let parameters = tool.pointer("/function/parameters").cloned();
    Ok(Some(Forced { name: name.into(), parameters: parameters.unwrap_or_else(|| json!({})) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: Value) -> ErrorDetail {
        check(body.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn refusals_name_the_parameter() {
        let messages = json!([{"role": "user", "content": "a"}]);
        let cases = [
            (json!({"model": "m"}), "messages"),
            (json!({"messages": messages}), "model"),
            (json!({"model": "m", "messages": []}), "messages"),
            (json!({"model": "m", "messages": [{"content": "a"}]}), "messages[0]"),
            (json!({"model": "m", "messages": messages, "temperature": "x"}), "temperature"),
            (json!({"model": "m", "messages": messages, "max_tokens": -1}), "max_tokens"),
            (json!({"model": "m", "messages": messages, "max_tokens": 0}), "max_tokens"),
            (json!({"model": "m", "messages": messages, "n": 2}), "n"),
            (json!({"model": "m", "messages": messages, "stream_options": {}}), "stream_options"),
            (json!({"model": "m", "messages": messages, "tool_choice": "required"}), "tool_choice"),
            (json!({"model": "m", "messages": messages, "tool_choice": "x"}), "tool_choice"),
        ];
        for (body, param) in cases {
            assert_eq!(refused(body.clone()).param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn what_is_no_json_is_said_to_be_none() {
        for body in ["", "{", "[]", "{} x", "\"a\"", "\u{1}"] {
            let error = check(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, Some("invalid_json".into()), "{body:?}");
        }
    }

    #[test]
    fn a_tool_is_forced_by_name_or_as_any() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        for (choice, name) in [
            (json!("required"), Some("a")),
            (tool("b"), Some("b")),
            (json!("auto"), None),
            (Value::Null, None),
        ] {
            let body = json!({
                "model": "m", "messages": [{"role": "user", "content": "x"}],
                "tools": [tool("a"), tool("b")], "tool_choice": choice,
            });
            let (_, forced) = check(body.to_string().as_bytes()).unwrap();
            assert_eq!(forced.map(|tool| tool.name).as_deref(), name, "{choice}");
        }
    }
}
