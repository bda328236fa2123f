//! What the simulated model says: the prompt's own most telling sentences and words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::check::Forced;
use super::draw::{mix, mix_text};
use super::json::JsonAsked;
use crate::openai::{ChatRequest, Message};

/// How much of a prompt is read for the answer; its tokens are counted to the end.
const READ_CHARS_MAX: usize = 64 << 10;
/// Longest sentence that is quoted.
const QUOTE_CHARS_MAX: usize = 240;
/// Longest piece that counts as one token.
const TOKEN_CHARS_MAX: usize = 8;
/// Letters from which on a word may be a telling one.
const WORD_CHARS_MIN: usize = 4;
/// How deep the arguments of a tool are filled in.
const ARGUMENTS_DEPTH_MAX: usize = 8;

const MARK: &str = "[simulated] ";
const FREQUENT: &str = "Most frequent: ";
const OPENINGS: [&str; 4] = ["In short:", "The gist:", "What stands out:", "To sum up:"];

/// What the model answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// The name of the function that it calls with `tokens` as arguments; `None`: it speaks.
    pub(super) calls: Option<String>,
    /// The text, or the arguments of the call, a token each.
    pub(super) tokens: Vec<String>,
    /// `stop`, `length` or `tool_calls`.
    pub(super) finish_reason: &'static str,
    /// Tokens of the whole prompt.
    pub(super) prompt_tokens: u64,
    /// Whether it is the JSON that was asked for, and the first try at it.
    pub(super) is_first_json: bool,
}

/// The answer to a request: the same for the same messages and seed.
pub(super) fn answer(request: &ChatRequest, forced: Option<&Forced>, seed: u64) -> Answer {
    let messages = request.messages.as_deref().unwrap_or_default();
    let texts: Vec<String> = messages.iter().map(text_of).collect();
    let user = messages.iter().zip(&texts).filter(|(message, _)| message.role == "user");
    let asked: Vec<&str> = user.map(|(_, text)| text.as_str()).collect();
    let json = JsonAsked::find(&asked).filter(|_| forced.is_none());
    let prompt = json.as_ref().map_or(asked.last().copied(), |json| Some(json.prompt));
    let prompt: String = prompt.unwrap_or_default().chars().take(READ_CHARS_MAX).collect();
    let (text, complete) = match (forced, &json) {
        (Some(tool), _) => (arguments(&tool.parameters, &prompt, 0).to_string(), "tool_calls"),
        (None, Some(json)) => (json.answer(&short_sentences(&prompt), seed).to_string(), "stop"),
        (None, None) => (speak(&prompt, seed), "stop"),
    };
    let mut tokens: Vec<String> = tokens(&text).map(str::to_owned).collect();
    let limit = [request.max_tokens, request.max_completion_tokens].into_iter().flatten().min();
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let finish_reason = if tokens.len() > limit { "length" } else { complete };
    tokens.truncate(limit);
    Answer {
        calls: forced.map(|tool| tool.name.clone()),
        tokens,
        finish_reason,
        prompt_tokens: texts.iter().map(|text| tokens_in(text)).sum(),
        is_first_json: json.is_some_and(|json| !json.is_mending),
    }
}

fn text_of(message: &Message) -> String {
    message.content.clone().map(crate::openai::Content::into_text).unwrap_or_default()
}

fn tokens_in(text: &str) -> u64 {
    tokens(text).count() as u64
}

/// A token is a word, or a part of a long one, with the white space before it.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let word_at = rest.len() - rest.trim_start().len();
        let end = rest[word_at..]
            .char_indices()
            .enumerate()
            .find(|(count, (_, char))| char.is_whitespace() || *count == TOKEN_CHARS_MAX)
            .map_or(rest.len(), |(_, (at, _))| word_at + at);
        let (token, tail) = rest.split_at(end);
        rest = tail;
        (!token.is_empty()).then_some(token)
    })
}

fn speak(prompt: &str, seed: u64) -> String {
    let hash = mix_text(seed, prompt);
    let counts = word_counts(prompt);
    let quotes = telling_sentences(prompt, &counts, 2 + (mix(hash) % 2) as usize);
    if quotes.is_empty() {
        return "[simulated] There are no words in the prompt to answer with.".into();
    }
    let opening = OPENINGS[(hash % OPENINGS.len() as u64) as usize];
    let mut text = format!("{MARK}{opening} {}", quotes.join(" "));
    let words = telling_words(&counts, 5);
    if !words.is_empty() {
        text.push(' ');
        text.push_str(FREQUENT);
        text.push_str(&words.join(", "));
        text.push('.');
    }
    text
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|char: char| !char.is_alphanumeric() && char != '_')
        .filter(|word| word.chars().count() >= WORD_CHARS_MIN)
        .map(str::to_lowercase)
}

fn word_counts(text: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for word in words(text) {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts
}

fn telling_words(counts: &BTreeMap<String, usize>, most: usize) -> Vec<&str> {
    let mut ranked: Vec<_> = counts.iter().collect();
    ranked.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    ranked.into_iter().take(most).map(|(word, _)| word.as_str()).collect()
}

/// The sentences whose words are the most frequent, each once, in the order of the text.
fn telling_sentences(text: &str, counts: &BTreeMap<String, usize>, most: usize) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut ranked: Vec<(usize, usize, &str)> = sentences(text)
        .filter(|sentence| seen.insert(*sentence))
        .enumerate()
        .map(|(place, sentence)| {
            let scores: Vec<usize> =
                words(sentence).map(|word| counts.get(&word).copied().unwrap_or(0)).collect();
            // Per word, in thousandths: a long sentence is not better for being long.
            (1000 * scores.iter().sum::<usize>() / scores.len().max(1), place, sentence)
        })
        .collect();
    ranked.sort_by_key(|(score, place, _)| (std::cmp::Reverse(*score), *place));
    ranked.truncate(most);
    ranked.sort_by_key(|(_, place, _)| *place);
    ranked.into_iter().map(|(_, _, sentence)| ended(quote(sentence))).collect()
}

/// Sentences that say something: no headings, and of an earlier answer only what it quoted, unless
/// there is nothing else.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let any_tells = pieces(text).any(tells);
    pieces(text).map(without_own_words).filter(move |piece| tells(piece) || !any_tells)
}

/// The text, cut behind each sentence and each line.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    let cut = std::iter::from_fn(move || {
        let (piece, tail) = rest.split_at(sentence_end(rest));
        rest = tail;
        (!piece.is_empty()).then_some(piece.trim())
    });
    cut.filter(|piece| piece.chars().any(char::is_alphanumeric))
}

/// Where the first sentence ends. A point inside a number or a name is no end.
fn sentence_end(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        let ends = match char {
            '\n' | '。' | '！' | '？' => true,
            '.' | '!' | '?' => chars.peek().is_none_or(|(_, next)| next.is_whitespace()),
            _ => false,
        };
        if ends {
            return at + char.len_utf8();
        }
    }
    text.len()
}

fn tells(piece: &str) -> bool {
    !piece.is_empty() && !piece.ends_with([':', '：']) && !piece.starts_with(FREQUENT.trim_end())
}

/// A piece of an earlier answer without its opening, so that openings do not pile up.
fn without_own_words(piece: &str) -> &str {
    let Some(said) = piece.strip_prefix(MARK) else { return piece };
    OPENINGS.iter().find_map(|opening| said.strip_prefix(opening)).unwrap_or(said).trim_start()
}

/// Those that can be quoted whole, for want of them none.
fn short_sentences(text: &str) -> Vec<&str> {
    sentences(text).filter(|sentence| sentence.chars().count() <= QUOTE_CHARS_MAX).collect()
}

/// With a point, so that what follows is a sentence of its own.
fn ended(mut sentence: String) -> String {
    if sentence.ends_with(char::is_alphanumeric) {
        sentence.push('.');
    }
    sentence
}

fn quote(sentence: &str) -> String {
    match sentence.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", sentence[..end].trim_end()),
        None => sentence.to_owned(),
    }
}

/// Arguments that fit a tool's JSON Schema, as far as `type`, `enum` and `properties` say.
fn arguments(schema: &Value, prompt: &str, depth: usize) -> Value {
    if let Some(first) = schema.get("enum").and_then(Value::as_array).and_then(|all| all.first()) {
        return first.clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => {
            format!("[simulated] {}", sentences(prompt).next().map(quote).unwrap_or_default())
                .into()
        }
        Some("integer" | "number") => 1.into(),
        Some("boolean") => true.into(),
        Some("array") => Value::Array(Vec::new()),
        Some("null") => Value::Null,
        _ if depth >= ARGUMENTS_DEPTH_MAX => Value::Null,
        _ => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let filled: Map<String, Value> = properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), arguments(schema, prompt, depth + 1)))
                .collect();
            Value::Object(filled)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const PROMPT: &str = "The queue keeps tasks. A queue is durable! Birds sing.\nTasks leave \
                          the queue in order.";

    fn ask(text: &str, max_tokens: Option<u64>, seed: u64) -> Answer {
        let request = ChatRequest {
            messages: Some(vec![Message::text("user", text)]),
            max_tokens,
            ..ChatRequest::default()
        };
        answer(&request, None, seed)
    }

    #[test]
    fn the_answer_quotes_the_prompt_and_says_what_it_is() {
        let answer = ask(PROMPT, None, 1);
        let text = answer.tokens.concat();
        assert!(text.starts_with("[simulated] "), "{text}");
        assert!(text.contains("A queue is durable!"), "{text}");
        assert!(!text.contains("Birds"), "{text}");
        assert!(text.contains("Most frequent: queue, tasks"), "{text}");
        assert_eq!(answer.finish_reason, "stop");
        assert_eq!(answer, ask(PROMPT, None, 1));
        assert!((2..20).any(|seed| ask(PROMPT, None, seed) != answer));
    }

    #[test]
    fn a_token_limit_cuts_and_says_so() {
        let whole = ask(PROMPT, None, 1).tokens;
        let cut = ask(PROMPT, Some(3), 1);
        assert_eq!(cut.tokens, whole[..3]);
        assert_eq!(cut.finish_reason, "length");
        assert_eq!(ask(PROMPT, Some(whole.len() as u64), 1).finish_reason, "stop");
    }

    #[test]
    fn an_answer_is_quoted_for_what_it_quotes() {
        let first = ask("A ferry of 1.5 t sails at 6.30 today. It sails.", None, 1).tokens.concat();
        let second = ask(&format!("The plan:\n{first}"), None, 2).tokens.concat();
        assert!(second.contains("A ferry of 1.5 t sails at 6.30 today."), "{second}");
        assert_eq!(second.matches("[simulated]").count(), 1, "{second}");
        assert_eq!(second.matches(FREQUENT).count(), 1, "{second}");
        assert!(!second.contains("The plan"), "{second}");
        assert!(ask("Name a bird:", None, 1).tokens.concat().contains("Name a bird:"));
        assert!(ask("渡口关了。船还在？", None, 1).tokens.concat().contains("渡口关了。 船还在？"));
    }

    #[test]
    fn an_empty_prompt_has_an_answer() {
        assert!(ask(" \n…", None, 1).tokens.concat().contains("no words"));
        assert_eq!(ask("", None, 1).prompt_tokens, 0);
    }

    #[test]
    fn json_is_given_to_who_asks_for_it() {
        let schema = json!({"schema": {"type": "object", "required": ["score"], "properties": {
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
            "why": {"type": "string"}}}});
        let expect = crate::expect::Expect::read(&schema).unwrap();
        let prompt = format!("{PROMPT}\n\n{}", expect.instruction().unwrap());
        let answer = ask(&prompt, None, 1);
        let value = expect.check(&answer.tokens.concat()).unwrap().unwrap();
        let why = value["why"].as_str().unwrap().strip_prefix("[simulated] ").unwrap();
        assert!(PROMPT.contains(why), "{value}");
        assert!(answer.is_first_json && answer.tokens.len() > 1);
        assert_eq!(answer, ask(&prompt, None, 1));
        assert!((2..20).any(|seed| ask(&prompt, None, seed) != answer));
        assert!(!ask(PROMPT, None, 1).is_first_json);
    }

    #[test]
    fn arguments_fit_their_schema() {
        let parameters = json!({"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "where": {"type": "object", "properties": {"exact": {"type": "boolean"}}},
        }});
        let forced = Forced { name: "weather".into(), parameters };
        let request = ChatRequest {
            messages: Some(vec![Message::text("user", "Weather in Bergen?")]),
            ..ChatRequest::default()
        };
        let answer = answer(&request, Some(&forced), 0);
        let filled: Value = serde_json::from_str(&answer.tokens.concat()).unwrap();
        let expected = json!({
            "city": "[simulated] Weather in Bergen?", "days": 1, "unit": "c",
            "where": {"exact": true},
        });
        assert_eq!(filled, expected);
        assert_eq!(answer.calls.as_deref(), Some("weather"));
        assert_eq!(answer.finish_reason, "tool_calls");
    }

    proptest! {
        #[test]
        fn tokens_join_to_the_text(text in "[a-zé漢 \n]{0,80}") {
            prop_assert_eq!(tokens(&text).collect::<String>(), text);
        }

        #[test]
        fn any_prompt_is_answered(text in any::<String>(), seed in any::<u64>()) {
            prop_assert!(!ask(&text, None, seed).tokens.is_empty());
        }
    }
}
