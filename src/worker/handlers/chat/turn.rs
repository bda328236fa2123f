//! A task's turn in the conversation of its session: what it adds, and what it sees. Pure.

use serde_json::Value;
use serde_json::value::RawValue;

use super::input;
use super::needs::{ANSWER_TOKENS, first_tokens, message_tokens, text_tokens};
use crate::openai::{ChatRequest, Content, Message, ToolCall};

/// What a summary is headed by where a model reads it.
const SUMMARY_LEAD: &str = "Summary of the conversation so far:";
/// What the model is that sums up.
const SUMMARY_SYSTEM: &str = "You keep the notes of a conversation that is too long to be kept \
    whole. Write down what must be known to go on with it: facts, names, numbers, decisions, wishes, \
    promises, open questions. Leave out greetings and wording. Be brief, at most 200 words. Write in \
    the language of the conversation. Answer with the notes alone.";

/// What a task adds to the conversation of its session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// What it said and the answer to it, as a JSON list of messages.
    pub(crate) messages: String,
    /// What they count for, by the same estimate as a call's permit.
    pub(crate) tokens: u64,
    /// It makes no sense without the turn before it, whose calls of tools it answers.
    pub(crate) continues: bool,
}

/// The turn of a chat task with this input and output. `None`: they are none of a chat task.
pub(crate) fn turn_of(input: &str, output: &str) -> Option<Turn> {
    let input = RawValue::from_string(input.to_owned()).ok()?;
    let said = input::read(&input).ok()?.request.messages?;
    let mut messages: Vec<Message> =
        said.into_iter().filter(|message| !instructs(message)).collect();
    let continues = messages.first().is_some_and(|message| message.role == "tool");
    messages.push(answer_of(output)?);
    let tokens = messages.iter().map(message_tokens).fold(0, u64::saturating_add);
    Some(Turn { messages: serde_json::to_string(&messages).ok()?, tokens, continues })
}

fn answer_of(output: &str) -> Option<Message> {
    let mut output: Value = serde_json::from_str(output).ok()?;
    let text = output.get("text")?.as_str()?.to_owned();
    let tool_calls = output.get_mut("tool_calls").map(Value::take).unwrap_or_default();
    let tool_calls: Vec<ToolCall> = serde_json::from_value(tool_calls).unwrap_or_default();
    let mut message = Message { tool_calls, ..Message::text("assistant", text) };
    if !message.tool_calls.is_empty() {
        // As a model says that it only calls.
        message.content =
            message.content.filter(|content| *content != Content::Text(String::new()));
    }
    Some(message)
}

/// Whether a message is the task's own instruction rather than a part of the conversation.
fn instructs(message: &Message) -> bool {
    matches!(message.role.as_str(), "system" | "developer")
}

/// The conversation as a task sees it, a JSON list of messages: `turns` are such lists, oldest
/// first. `None` if there is nothing.
pub(crate) fn history<'a>(
    summary: Option<&str>,
    turns: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let summary = summary.map(|text| Message::text("system", format!("{SUMMARY_LEAD} {text}")));
    // A message of two texts can be written.
    let summary = summary.and_then(|message| serde_json::to_string(&message).ok());
    let turns = turns.filter_map(|list| list.strip_prefix('[')?.strip_suffix(']'));
    let mut json = String::new();
    for part in summary.as_deref().into_iter().chain(turns) {
        json.push(if json.is_empty() { '[' } else { ',' });
        json.push_str(part);
    }
    (!json.is_empty()).then(|| json + "]")
}

/// Puts the conversation so far between a request's instructions and what it says.
pub(super) fn recall(request: &mut ChatRequest, history: &str) -> Result<(), String> {
    let history: Vec<Message> = serde_json::from_str(history)
        .map_err(|error| format!("the session's history cannot be read: {error}"))?;
    let messages = request.messages.get_or_insert_default();
    let place = messages.iter().take_while(|message| instructs(message)).count();
    messages.splice(place..place, history);
    Ok(())
}

/// A task that sums up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SummaryTask {
    /// JSON.
    pub(crate) input: String,
    /// Tokens that its call will probably take.
    pub(crate) tokens: u64,
}

/// The task that sums up an earlier summary and these turns, oldest first. Of very long ones it
/// reads the beginning of each message, `bytes_max` in all.
pub(crate) fn summary_task<'a>(
    model: Option<&str>,
    earlier: Option<&str>,
    turns: impl Iterator<Item = &'a str>,
    bytes_max: usize,
) -> SummaryTask {
    let messages: Vec<Message> = turns
        .filter_map(|list| serde_json::from_str::<Vec<Message>>(list).ok())
        .flatten()
        .collect();
    let share = bytes_max / (messages.len() + usize::from(earlier.is_some())).max(1);
    let mut prompt = String::from("The conversation:\n");
    if let Some(earlier) = earlier {
        prompt.push_str(&format!("\n{SUMMARY_LEAD} {}\n", cut(earlier, share)));
    }
    for message in messages {
        let text = said(&message);
        prompt.push_str(&format!("\n{}: {}\n", message.role, cut(&text, share)));
    }
    let tokens = text_tokens(SUMMARY_SYSTEM) + text_tokens(&prompt) + ANSWER_TOKENS;
    let mut input = serde_json::json!({ "system": SUMMARY_SYSTEM, "prompt": prompt });
    if let Some(model) = model {
        input["model"] = model.into();
    }
    SummaryTask { input: input.to_string(), tokens }
}

/// What a message says, for people and for who sums it up.
pub(crate) fn said(message: &Message) -> String {
    let text = message.content.clone().map(Content::into_text).unwrap_or_default();
    let calls = message.tool_calls.iter().map(|call| &call.function);
    let calls = calls.map(|call| format!("[calls {}({})]", call.name, call.arguments));
    let parts: Vec<String> =
        std::iter::once(text).filter(|text| !text.is_empty()).chain(calls).collect();
    parts.join(" ")
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// The text of an answer that sums up, so many tokens of it at most, and how many they are. `None`
/// if it says nothing.
pub(crate) fn summary_of(output: &str, tokens_max: u64) -> Option<(String, u64)> {
    let text = answer_of(output)?.content?.into_text();
    let text = first_tokens(text.trim(), tokens_max);
    (!text.is_empty()).then(|| (text.to_owned(), text_tokens(text)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn output(text: &str) -> String {
        json!({"text": text, "model": "m", "usage": {"completion_tokens": 9000}}).to_string()
    }

    fn messages(turn: &Turn) -> Value {
        serde_json::from_str(&turn.messages).unwrap()
    }

    #[test]
    fn a_turn_is_what_was_said_without_its_instructions() {
        let input = json!({"prompt": "12345678", "system": "s", "agent": "x", "seed": 1});
        let turn = turn_of(&input.to_string(), &output("1234")).unwrap();
        let expected = json!([
            {"role": "user", "content": "12345678"}, {"role": "assistant", "content": "1234"},
        ]);
        assert_eq!(messages(&turn), expected);
        assert_eq!((turn.tokens, turn.continues), (4 + 2 + 4 + 1, false));
        let input = json!({"messages": [
            {"role": "system", "content": "s"},
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
        ]});
        let turn = turn_of(&input.to_string(), &output("b")).unwrap();
        assert_eq!(messages(&turn)[0], input["messages"][2]);
        assert_eq!(messages(&turn).as_array().unwrap().len(), 2);
    }

    #[test]
    fn calls_of_tools_are_part_of_a_turn() {
        let calls = json!([
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ]);
        let output = json!({"text": "", "tool_calls": calls});
        let turn = turn_of(r#"{"prompt":"a"}"#, &output.to_string()).unwrap();
        let expected = json!({"role": "assistant", "content": null, "tool_calls": calls});
        assert_eq!(messages(&turn)[1], expected);
        let input = r#"{"messages":[{"role":"tool","content":"r","tool_call_id":"c"}]}"#;
        assert!(turn_of(input, r#"{"text":"done"}"#).unwrap().continues);
        let list: Vec<Message> = serde_json::from_str(&turn.messages).unwrap();
        assert_eq!(said(&list[1]), "[calls f({})]");
    }

    #[test]
    fn what_is_no_chat_adds_nothing() {
        for (input, output) in [
            ("{}", r#"{"text":"a"}"#),
            (r#"{"prompt":"a"}"#, "{}"),
            (r#"{"prompt":"a"}"#, r#"{"text":5}"#),
            ("", ""),
        ] {
            assert_eq!(turn_of(input, output), None, "{input} {output}");
        }
    }

    #[test]
    fn a_task_sees_the_conversation_behind_its_instructions() {
        let turn = |text: &str| {
            turn_of(&json!({ "prompt": text }).to_string(), &output("yes")).unwrap().messages
        };
        let turns = [turn("a"), turn("b")];
        let seen = history(Some("they met"), turns.iter().map(String::as_str)).unwrap();
        let input = RawValue::from_string(r#"{"prompt":"c","system":"s"}"#.to_owned()).unwrap();
        let mut request = input::read(&input).unwrap().request;
        recall(&mut request, &seen).unwrap();
        let seen: Vec<(String, String)> = request
            .messages
            .unwrap()
            .iter()
            .map(|message| (message.role.clone(), said(message)))
            .collect();
        let expected = [
            ("system", "s"),
            ("system", "Summary of the conversation so far: they met"),
            ("user", "a"),
            ("assistant", "yes"),
            ("user", "b"),
            ("assistant", "yes"),
            ("user", "c"),
        ];
        assert_eq!(seen, expected.map(|(role, text)| (role.to_owned(), text.to_owned())));
        assert_eq!(history(None, std::iter::empty()), None);
        assert!(recall(&mut ChatRequest::default(), "{").is_err());
    }

    #[test]
    fn a_summary_is_asked_for_in_plain_text_and_bounded() {
        let turns = [turn_of(r#"{"prompt":"What is a fork?"}"#, &output("A process.")).unwrap()];
        let lists = || turns.iter().map(|turn| turn.messages.as_str());
        let task = summary_task(Some("m"), Some("They met."), lists(), 1000);
        let input: Value = serde_json::from_str(&task.input).unwrap();
        assert_eq!(
            input["prompt"],
            "The conversation:\n\nSummary of the conversation so far: They met.\n\n\
             user: What is a fork?\n\nassistant: A process.\n"
        );
        assert_eq!(input["model"], "m");
        let short = summary_task(None, None, lists(), 8);
        let input: Value = serde_json::from_str(&short.input).unwrap();
        assert_eq!(input["prompt"], "The conversation:\n\nuser: What\n\nassistant: A pr\n");
        assert!(short.tokens < task.tokens && input.get("model").is_none());
        assert_eq!(summary_of(&output(" 12345678\n"), 9), Some(("12345678".to_owned(), 2)));
        assert_eq!(summary_of(&output("12345678"), 1), Some(("1234".to_owned(), 1)));
        assert_eq!(summary_of(&output(" "), 9), None);
    }
}
