//! What a task expects of its answer, and what a model is told of that. Pure.

use std::fmt;

use jsonschema::{PatternOptions, ValidationError, Validator};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::handler::in_words;

/// Largest schema: it goes into the request.
const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Most regular expressions in a schema: each is compiled.
const SCHEMA_PATTERNS_MAX: usize = 100;
/// Longest regular expression.
const PATTERN_BYTES_MAX: usize = 4 << 10;
/// Memory of one that is compiled.
const PATTERN_COMPILED_BYTES_MAX: usize = 1 << 20;
/// Most that is said about one answer.
const COMPLAINT_BYTES_MAX: usize = 2 << 10;
/// Most mistakes that are named.
const MISTAKES_MAX: usize = 5;
/// Of a longer answer only the first mistake is looked for: it could have as many as letters.
const ALL_MISTAKES_BYTES_MAX: usize = 64 << 10;
/// Longest value that is repeated in what is said of it.
const VALUE_BYTES_MAX: usize = 200;
/// How much of an answer that is no JSON is shown.
const BEGINNING_CHARS: usize = 60;

/// What a model is told that is to answer with JSON.
pub(crate) const JSON_ONLY: &str = "Answer with one JSON value and nothing else.";
/// What stands between that and the schema, if there is one.
pub(crate) const SCHEMA_FOLLOWS: &str = "\nIt must fit this JSON Schema:\n";
/// How a [`complaint`] begins.
pub(crate) const COMPLAINT: &str = "That answer is not as expected: ";

/// What an answer must be: JSON, JSON that fits a schema, text that has a match of a regular
/// expression, or several of these.
pub(crate) struct Expect {
    is_json: bool,
    schema: Option<Schema>,
    regex: Option<Regex>,
    source: String,
}

struct Schema {
    text: String,
    validator: Validator,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    json: Option<bool>,
    schema: Option<Map<String, Value>>,
    regex: Option<String>,
}

impl Expect {
    /// Reads `{"json": bool, "schema": object, "regex": string}`, at least one of them. A schema
    /// implies JSON; it may refer to itself, and nothing is fetched. The error names the field.
    pub(crate) fn read(value: &Value) -> Result<Self, String> {
        let given: Given = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let reason = in_words(&error.into_inner().to_string());
            if path == "." { reason } else { format!("{path}: {reason}") }
        })?;
        let schema = given.schema.map(Schema::read).transpose();
        let schema = schema.map_err(|error| format!("schema: {error}"))?;
        let regex = given.regex.as_deref().map(compile).transpose();
        let regex = regex.map_err(|error| format!("regex: {error}"))?;
        let is_json = given.json == Some(true) || schema.is_some();
        if !is_json && regex.is_none() {
            return Err("give json = true, a schema or a regex".into());
        }
        Ok(Self { is_json, schema, regex, source: value.to_string() })
    }

    /// What it was read from, as JSON.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// What a model is told beforehand, if that helps it.
    pub(crate) fn instruction(&self) -> Option<String> {
        let schema = self.schema.as_ref();
        let schema = schema.map(|schema| format!("{SCHEMA_FOLLOWS}{}", schema.text));
        self.is_json.then(|| format!("{JSON_ONLY}{}", schema.unwrap_or_default()))
    }

    /// Checks an answer; gives its value if it is to be JSON, which may stand in a code fence. The
    /// error says what is wrong, so that a model can mend it, in at most 2 KiB.
    pub(crate) fn check(&self, text: &str) -> Result<Option<Value>, String> {
        self.find_mistake(text).map_err(|mut mistake| {
            mistake.truncate(mistake.floor_char_boundary(COMPLAINT_BYTES_MAX));
            mistake
        })
    }

    fn find_mistake(&self, text: &str) -> Result<Option<Value>, String> {
        if let Some(regex) = self.regex.as_ref().filter(|regex| !regex.is_match(text.trim())) {
            return Err(format!("the answer does not match the regular expression {regex}"));
        }
        if !self.is_json {
            return Ok(None);
        }
        let value = read_json(text)?;
        if let Some(schema) = &self.schema {
            schema.check(&value, text.len())?;
        }
        Ok(Some(value))
    }
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expect").field(&self.source).finish()
    }
}

/// What a model is told of an answer that did not fit.
pub(crate) fn complaint(mistake: &str) -> String {
    format!("{COMPLAINT}{mistake}\nGive the corrected answer and nothing else.")
}

/// What everybody else is told of it.
pub(crate) fn unexpected(mistake: &str) -> String {
    format!("the answer is not as expected: {mistake}")
}

impl Schema {
    fn read(schema: Map<String, Value>) -> Result<Self, String> {
        let schema = Value::Object(schema);
        let text = schema.to_string();
        if text.len() > SCHEMA_BYTES_MAX {
            return Err(format!("it has {} bytes, more than {SCHEMA_BYTES_MAX}", text.len()));
        }
        let patterns = patterns_in(&schema);
        if patterns > SCHEMA_PATTERNS_MAX {
            return Err(format!("it has {patterns} patterns, more than {SCHEMA_PATTERNS_MAX}"));
        }
        // Not fancy_regex: its time is not linear, and answers are strangers' text.
        let patterns = PatternOptions::regex().size_limit(PATTERN_COMPILED_BYTES_MAX);
        let options = jsonschema::options().offline().with_pattern_options(patterns);
        let validator = options.build(&schema).map_err(|error| describe(&error))?;
        Ok(Self { text, validator })
    }

    fn check(&self, value: &Value, answer_bytes: usize) -> Result<(), String> {
        if answer_bytes > ALL_MISTAKES_BYTES_MAX {
            return self.validator.validate(value).map_err(|error| describe(&error));
        }
        let mut errors = self.validator.iter_errors(value);
        let named: Vec<_> = errors.by_ref().take(MISTAKES_MAX).map(|one| describe(&one)).collect();
        match (named.is_empty(), errors.count()) {
            (true, _) => Ok(()),
            (false, 0) => Err(named.join("; ")),
            (false, more) => Err(format!("{}; and {more} more", named.join("; "))),
        }
    }
}

/// How many regular expressions a schema has, and what looks like one.
pub(crate) fn patterns_in(schema: &Value) -> usize {
    match schema {
        Value::Array(items) => items.iter().map(patterns_in).sum(),
        Value::Object(fields) => {
            let own = fields.iter().map(|(name, value)| match (name.as_str(), value) {
                ("pattern" | "regex", Value::String(_)) => 1,
                ("patternProperties", Value::Object(by_pattern)) => by_pattern.len(),
                _ => 0,
            });
            own.sum::<usize>() + fields.values().map(patterns_in).sum::<usize>()
        }
        _ => 0,
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("it has {} bytes, more than {PATTERN_BYTES_MAX}", pattern.len()));
    }
    let mut builder = RegexBuilder::new(pattern);
    let built = builder.size_limit(PATTERN_COMPILED_BYTES_MAX).build();
    // The last line says what; those before it point at the place, over several lines.
    built.map_err(|error| {
        let said = error.to_string();
        said.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

fn describe(error: &ValidationError<'_>) -> String {
    let is_long = error.instance().to_string().len() > VALUE_BYTES_MAX;
    let what = if is_long { error.masked_with("the value").to_string() } else { error.to_string() };
    match error.instance_path().as_str() {
        "" => what,
        path => format!("at {path}: {what}"),
    }
}

/// The value that a text is, or that stands in its first code fence.
pub(crate) fn read_json(text: &str) -> Result<Value, String> {
    let whole = serde_json::from_str(text);
    let read = match fenced(text) {
        Some(inner) if whole.is_err() => first_value(inner),
        _ => whole,
    };
    read.map_err(|error| {
        let beginning: String = text.trim().chars().take(BEGINNING_CHARS).collect();
        match beginning.is_empty() {
            true => "the answer is not JSON: it is empty".to_owned(),
            false => format!("the answer is not JSON: {error} (it begins with {beginning:?})"),
        }
    })
}

/// What follows the opening fence and its language.
fn fenced(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("```")?;
    Some(after.trim_start_matches(|char: char| char.is_ascii_alphabetic()))
}

/// The value before the closing fence. A string in it may have fences, too.
fn first_value(inner: &str) -> serde_json::Result<Value> {
    let mut values = serde_json::Deserializer::from_str(inner).into_iter();
    if let Some(Ok(value)) = values.next()
        && inner[values.byte_offset()..].trim_start().starts_with("```")
    {
        return Ok(value);
    }
    // For the error.
    serde_json::from_str(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn expect(value: Value) -> Expect {
        Expect::read(&value).unwrap()
    }

    fn score() -> Value {
        json!({"type": "object", "required": ["score"], "additionalProperties": false,
            "properties": {"score": {"type": "integer", "maximum": 100}}})
    }

    #[test]
    fn what_cannot_be_expected_is_refused() {
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        let many = vec![json!({"pattern": "a"}); SCHEMA_PATTERNS_MAX + 1];
        let large = json!({"description": "a".repeat(SCHEMA_BYTES_MAX)});
        for (value, error) in [
            (json!({}), "give json = true, a schema or a regex"),
            (json!({"json": false}), "give json = true, a schema or a regex"),
            (json!(true), "invalid type: boolean `true`, expected "),
            (json!({"jsn": true}), "jsn: unknown field `jsn`, expected one of `json`, `schema`"),
            (json!({"json": "yes"}), "json: invalid type: string \"yes\", expected a boolean"),
            (json!({"schema": "x"}), "schema: invalid type: string \"x\", expected an object"),
            (json!({"schema": {"type": "intger"}}), "schema: at /type: \"intger\" is not "),
            (json!({"schema": {"$ref": "#/$defs/x"}}), "schema: "),
            (json!({"schema": {"$ref": "https://example.com/a"}}), "schema: "),
            (json!({"schema": {"$ref": "file:///etc/passwd"}}), "schema: "),
            (json!({"schema": {"pattern": "(?=a)b"}}), "schema: "),
            (json!({"schema": {"allOf": many}}), "schema: it has 101 patterns, more than 100"),
            (json!({"schema": large}), "schema: it has 65554 bytes, more than 65536"),
            (json!({"regex": "("}), "regex: unclosed group"),
            (json!({"regex": r"\w{9999}"}), "regex: Compiled regex exceeds size limit"),
            (json!({"regex": long}), "regex: it has 4097 bytes, more than 4096"),
        ] {
            let found = Expect::read(&value).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }

    #[test]
    fn json_is_found_with_and_without_a_fence() {
        let json = expect(json!({"json": true}));
        let one = json!({"a": "``` b"});
        for text in [
            " {\"a\": \"``` b\"}\n",
            "```json\n{\"a\": \"``` b\"}\n```",
            "```\n{\"a\": \"``` b\"}\n```\n",
            "```JSON {\"a\":\"``` b\"}```",
            "Here it is:\n```json\n{\"a\": \"``` b\"}\n```\nAnything else?",
            "```json\n{\"a\": \"``` b\"}",
        ] {
            assert_eq!(json.check(text), Ok(Some(one.clone())), "{text}");
        }
        for (text, mistake) in [
            ("", "it is empty"),
            ("So be it.", "expected value at line 1 column 1 (it begins with \"So be it.\")"),
            ("{\"a\": 1} and so on", "trailing characters at line 1 column 10 (it "),
            ("```json\n{\"a\": }\n```", "expected value at line 2 column 7 (it "),
            ("```json\n{} {}\n```", "trailing characters at line 2 column 4 (it "),
            ("{\"a\": [1, 2", "EOF while parsing a list at line 1 column 11 (it "),
        ] {
            let found = json.check(text).unwrap_err();
            assert!(found.starts_with(&format!("the answer is not JSON: {mistake}")), "{found}");
        }
        assert!(json.check(&"[".repeat(1 << 20)).is_err());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let schema = expect(json!({"schema": score()}));
        assert_eq!(schema.check(r#"{"score": 7}"#), Ok(Some(json!({"score": 7}))));
        let long = "x".repeat(VALUE_BYTES_MAX);
        for (answer, mistake) in [
            (json!({"score": "high"}), "at /score: \"high\" is not of type \"integer\""),
            (json!({"score": long}), "at /score: the value is not of type \"integer\""),
            (json!({"score": 101}), "at /score: 101 is greater than the maximum of 100"),
            (json!({}), "\"score\" is a required property"),
            (
                json!({"score": 0.5, "x": 1}),
                "at /score: 0.5 is not of type \"integer\"; \
                 Additional properties are not allowed ('x' was unexpected)",
            ),
            (json!([]), "[] is not of type \"object\""),
        ] {
            assert_eq!(schema.check(&answer.to_string()).unwrap_err(), mistake);
        }
        let numbers = expect(json!({"schema": {"items": {"type": "number"}}}));
        let mistakes = numbers.check(&json!(vec!["a"; 9]).to_string()).unwrap_err();
        assert!(mistakes.ends_with("at /4: \"a\" is not of type \"number\"; and 4 more"));
        let huge = json!(vec!["a"; ALL_MISTAKES_BYTES_MAX]).to_string();
        assert_eq!(numbers.check(&huge).unwrap_err(), "at /0: \"a\" is not of type \"number\"");
    }

    #[test]
    fn a_schema_that_says_only_what_it_says_itself_allows_everything() {
        let defs = json!({"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}});
        for schema in [
            json!({"$ref": "#"}),
            json!({"anyOf": [{"$ref": "#"}]}),
            json!({"$dynamicAnchor": "x", "$dynamicRef": "#x"}),
            json!({"$ref": "#/$defs/a", "$defs": defs}),
        ] {
            assert!(expect(json!({ "schema": schema })).check("[1]").is_ok(), "{schema}");
        }
    }

    #[test]
    fn a_regular_expression_is_looked_for_in_the_text() {
        let verdict = expect(json!({"regex": "^(yes|no)$"}));
        assert_eq!(verdict.check(" yes\n"), Ok(None));
        let mistake = verdict.check("yes, sir").unwrap_err();
        assert_eq!(mistake, "the answer does not match the regular expression ^(yes|no)$");
        let both = expect(json!({"regex": "score", "json": true}));
        assert!(both.check("{}").is_err() && both.check("score").is_err());
        assert!(both.check(r#"{"score": 1}"#).is_ok());
    }

    #[test]
    fn a_model_is_told_what_helps_it() {
        let told = |value| expect(value).instruction();
        assert_eq!(told(json!({"regex": "a"})), None);
        assert_eq!(told(json!({"json": true})).as_deref(), Some(JSON_ONLY));
        let schema = json!({"type": "object"});
        let said = "Answer with one JSON value and nothing else.\n\
             It must fit this JSON Schema:\n{\"type\":\"object\"}";
        assert_eq!(told(json!({"schema": schema})).as_deref(), Some(said));
    }

    proptest! {
        #[test]
        fn what_is_said_is_bounded(text in any::<String>(), times in 1..3000usize) {
            let expect = expect(json!({"schema": {"type": "object", "additionalProperties": false}}));
            if let Err(mistake) = expect.check(&text) {
                prop_assert!(mistake.len() <= COMPLAINT_BYTES_MAX);
            }
            let strange: Map<_, _> =
                (0..times).map(|number| (format!("{text}{number}"), Value::Null)).collect();
            let mistake = expect.check(&Value::Object(strange).to_string()).unwrap_err();
            prop_assert!(mistake.len() <= COMPLAINT_BYTES_MAX);
        }
    }
}
