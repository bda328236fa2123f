//! An answer that was given before.

use serde_json::{Map, Value};

use crate::expect::Expect;
use crate::handler::{Context, Output};

/// Most bytes that are told at once, as if they came from a stream.
const PIECE_BYTES_MAX: usize = 64;

/// Gives the output of an equal request again, and tells its text. It cost no tokens. None if
/// `json` is no output, or not as expected: then a provider must be asked.
pub(super) fn replay(json: &str, expect: Option<&Expect>, context: &Context) -> Option<Output> {
    let mut output: Map<String, Value> = serde_json::from_str(json).ok()?;
    let text = output.get("text")?.as_str()?.to_owned();
    if expect.is_some_and(|expect| expect.check(&text).is_err()) {
        return None;
    }
    output.insert("cached".to_owned(), true.into());
    // They failed then, not now.
    output.remove("fallbacks");
    output.remove("asked");
    let json = serde_json::value::to_raw_value(&output).ok()?;
    pieces(&text).for_each(|piece| context.text(piece));
    Some(Output { json, usage: None })
}

/// Whole words, as many as fit.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let most = text.floor_char_boundary(PIECE_BYTES_MAX);
        let end = match text[..most].rfind(char::is_whitespace) {
            Some(space) if most < text.len() => text.ceil_char_boundary(space + 1),
            _ => most,
        };
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::handler::Event;
    use crate::worker::handlers::testing::{self, Events};

    #[test]
    fn an_answer_is_told_and_given_again() {
        let text = "These are words. ".repeat(20);
        let output = json!({
            "text": text, "model": "m", "provider": "p", "cached": false, "finish_reason": "stop",
            "usage": {"prompt_tokens": 1}, "fallbacks": [{"provider": "q"}],
            "asked": 2,
        });
        let events = Arc::new(Events::default());
        let given = replay(&output.to_string(), None, &testing::context(&events)).unwrap();
        assert_eq!(given.usage, None);
        let expected = json!({
            "text": text, "model": "m", "provider": "p", "cached": true, "finish_reason": "stop",
            "usage": {"prompt_tokens": 1},
        });
        assert_eq!(serde_json::from_str::<Value>(given.json.get()).unwrap(), expected);
        let told = events.all();
        assert!(told.len() > 1);
        let text_of = |event: &Event| match event {
            Event::Text { text } => text.clone(),
            Event::Data { data } => panic!("{data}"),
        };
        assert_eq!(told.iter().map(text_of).collect::<String>(), text);
    }

    #[test]
    fn what_is_no_output_is_not_given() {
        let events = Arc::new(Events::default());
        for json in ["", "[]", "{}", r#"{"text":5}"#] {
            assert!(replay(json, None, &testing::context(&events)).is_none(), "{json}");
        }
        assert!(events.all().is_empty());
    }

    #[test]
    fn what_is_not_as_expected_is_not_given() {
        let events = Arc::new(Events::default());
        let expect = Expect::read(&json!({"json": true})).unwrap();
        for (text, given) in [("{}", true), ("So be it.", false)] {
            let output = json!({"text": text}).to_string();
            let output = replay(&output, Some(&expect), &testing::context(&events));
            assert_eq!(output.is_some(), given);
        }
        assert_eq!(events.all(), [Event::Text { text: "{}".into() }]);
    }

    proptest! {
        #[test]
        fn pieces_are_bounded_and_make_the_text(text in "[a-z é漢😀\n\u{3000}]{0,300}") {
            let pieces: Vec<_> = pieces(&text).collect();
            prop_assert_eq!(pieces.concat(), text.as_str());
            prop_assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES_MAX).contains(&piece.len())));
        }
    }
}
