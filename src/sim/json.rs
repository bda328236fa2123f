//! Whether JSON is asked for, in the words in which forq asks for it. Pure.

use serde_json::{Value, json};

use super::draw::mix_text;
use super::instance::instance;
use crate::expect::{COMPLAINT, JSON_ONLY, SCHEMA_FOLLOWS};

/// A conversation that is to end with JSON.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JsonAsked<'a> {
    /// The prompt without the words about JSON.
    pub(super) prompt: &'a str,
    schema: Option<Value>,
    /// Whether an earlier answer was complained of.
    pub(super) is_mending: bool,
}

impl<'a> JsonAsked<'a> {
    /// What the user's messages ask for, in order; `None`: any text.
    pub(super) fn find(messages: &[&'a str]) -> Option<Self> {
        let asks = messages.iter().rposition(|text| !text.starts_with(COMPLAINT))?;
        let (prompt, after) = messages[asks].rsplit_once(JSON_ONLY)?;
        let schema = match after.strip_prefix(SCHEMA_FOLLOWS) {
            Some(schema) => Some(serde_json::from_str(schema.trim_end()).ok()?),
            None if after.trim().is_empty() => None,
            None => return None,
        };
        Some(Self { prompt: prompt.trim_end(), schema, is_mending: asks + 1 < messages.len() })
    }

    /// A value that fits, whose strings are made of these sentences.
    pub(super) fn answer(&self, sentences: &[&str], seed: u64) -> Value {
        let seed = mix_text(seed, self.prompt);
        match &self.schema {
            Some(schema) => instance(schema, sentences, seed),
            None => {
                let string = json!({"type": "string"});
                let properties = json!({"simulated": {"const": true}, "text": string});
                let schema = json!({"type": "object", "properties": properties});
                instance(&schema, sentences, seed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::{Expect, complaint};

    #[test]
    fn json_is_asked_for_in_our_words() {
        let told = |expect: Value| Expect::read(&expect).unwrap().instruction().unwrap();
        let any = format!("Rate it.\n\n{}", told(json!({"json": true})));
        let schema = json!({"type": "integer"});
        let fits = format!("Rate it.\n\n{}", told(json!({"schema": schema})));
        let wrong = complaint("it is not");
        let asked = |schema: Option<&Value>, is_mending| {
            Some(JsonAsked { prompt: "Rate it.", schema: schema.cloned(), is_mending })
        };
        for (messages, expected) in [
            (vec!["Rate it."], None),
            (vec![], None),
            (vec![&*any], asked(None, false)),
            (vec![&*fits], asked(Some(&schema), false)),
            (vec!["before", &*fits], asked(Some(&schema), false)),
            (vec![&*fits, &*wrong, &*wrong], asked(Some(&schema), true)),
            // It was asked for then, not now.
            (vec![&*fits, "Now in words."], None),
            (vec![&*wrong], None),
            (vec!["Answer with one JSON value and nothing else. Or so."], None),
        ] {
            assert_eq!(JsonAsked::find(&messages), expected, "{messages:?}");
        }
    }

    #[test]
    fn without_a_schema_it_is_a_small_object() {
        let asked = JsonAsked { prompt: "p", schema: None, is_mending: false };
        let expected = json!({"simulated": true, "text": "[simulated] Birds sing."});
        assert_eq!(asked.answer(&["Birds sing."], 1), expected);
    }
}
