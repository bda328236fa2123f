//! What a model is told that is to answer as expected, beforehand and when it did not. Pure.

use super::answer::{Answer, ChatOutput};
use crate::expect::{Expect, complaint, unexpected};
use crate::handler::HandlerError;
use crate::openai::{ChatRequest, Content, Message, Usage};

/// Most times that one attempt asks, however many calls its task has left: the conversation grows
/// with each.
const ASKS_MAX: u32 = 20;

/// The answers of one attempt.
pub(super) struct Asks<'a> {
    expect: Option<&'a Expect>,
    answers: u32,
    usage: Option<Usage>,
}

impl<'a> Asks<'a> {
    pub(super) fn new(expect: Option<&'a Expect>) -> Self {
        Self { expect, answers: 0, usage: None }
    }

    /// Counts an answer; the error is what is wrong with it.
    pub(super) fn judge(&mut self, answer: &Answer) -> Result<(), String> {
        self.answers += 1;
        if let Some(usage) = answer.counted() {
            self.usage.get_or_insert_default().add(usage);
        }
        self.expect.map_or(Ok(()), |expect| expect.check(answer.text()).map(drop))
    }

    /// Whether there may be another.
    pub(super) fn may_ask_again(&self) -> bool {
        self.answers < ASKS_MAX
    }

    /// The output that the last answer is, with what all of them took.
    pub(super) fn complete(self, mut output: ChatOutput) -> ChatOutput {
        output.usage = self.usage;
        output.asked = (self.answers > 1).then_some(self.answers);
        output
    }

    /// The error of an attempt whose last answer was not as expected either.
    pub(super) fn into_error(self, provider: &str, mistake: &str) -> HandlerError {
        let times = match self.answers {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        let what = unexpected(mistake);
        HandlerError::fatal(format!("{what} (asked {times}, at last provider '{provider}')"))
    }
}

/// Says in the last user message what the answer must be: every server reads that, few know
/// `response_format`.
pub(super) fn instruct(request: &mut ChatRequest, expect: &Expect) {
    let Some(instruction) = expect.instruction() else { return };
    let messages = request.messages.get_or_insert_default();
    let Some(last) = messages.iter_mut().rfind(|message| message.role == "user") else {
        return messages.push(Message::text("user", instruction));
    };
    let more = format!("\n\n{instruction}");
    match &mut last.content {
        Some(Content::Text(text)) => text.push_str(&more),
        Some(Content::Parts(parts)) => {
            parts.push(serde_json::json!({"type": "text", "text": more}));
        }
        None => last.content = Some(Content::Text(instruction)),
    }
}

/// Goes on with the conversation: what the model said, and what is wrong with that.
pub(super) fn complain(request: &mut ChatRequest, answer: &Answer, mistake: &str) {
    let messages = request.messages.get_or_insert_default();
    // Some servers refuse a message without a word.
    if !answer.text().is_empty() {
        messages.push(Message::text("assistant", answer.text()));
    }
    messages.push(Message::text("user", complaint(mistake)));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::expect::JSON_ONLY;

    fn request(messages: Value) -> ChatRequest {
        serde_json::from_value(json!({ "messages": messages })).unwrap()
    }

    fn messages(request: ChatRequest) -> Value {
        serde_json::to_value(request.messages).unwrap()
    }

    #[test]
    fn the_last_user_message_says_what_is_expected() {
        let json = Expect::read(&json!({"json": true})).unwrap();
        let user = |content: Value| json!({"role": "user", "content": content});
        let other = json!({"role": "assistant", "content": "b"});
        let more = format!("\n\n{JSON_ONLY}");
        let part = |text: &str| json!({"type": "text", "text": text});
        for (given, told) in [
            (json!([user("a".into())]), json!([user(format!("a{more}").into())])),
            (
                json!([user("a".into()), other, user("c".into()), other]),
                json!([user("a".into()), other, user(format!("c{more}").into()), other]),
            ),
            (json!([user(json!([part("a")]))]), json!([user(json!([part("a"), part(&more)]))])),
            (json!([user(Value::Null)]), json!([user(JSON_ONLY.into())])),
            (json!([other]), json!([other, user(JSON_ONLY.into())])),
        ] {
            let mut request = request(given);
            instruct(&mut request, &json);
            assert_eq!(messages(request), told);
        }
        let regex = Expect::read(&json!({"regex": "a"})).unwrap();
        let mut untold = request(json!([other]));
        instruct(&mut untold, &regex);
        assert_eq!(messages(untold), json!([other]));
    }

    #[test]
    fn a_complaint_follows_what_was_said() {
        let completion = |text: &str| {
            let choices = json!([{"message": {"role": "assistant", "content": text}}]);
            let completion = serde_json::from_value(json!({ "choices": choices })).unwrap();
            Answer::whole(completion).unwrap()
        };
        let mut request = request(json!([{"role": "user", "content": "a"}]));
        complain(&mut request, &completion("b"), "it is too short");
        complain(&mut request, &completion(""), "it is empty");
        let said = |what: &str| {
            let end = "Give the corrected answer and nothing else.";
            format!("That answer is not as expected: {what}\n{end}")
        };
        let expected = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": said("it is too short")},
            {"role": "user", "content": said("it is empty")},
        ]);
        assert_eq!(messages(request), expected);
    }
}
