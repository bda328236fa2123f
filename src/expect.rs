//! What an answer must be like: JSON, JSON of a schema, text that matches a regular expression.

use jsonschema::{PatternOptions, Validator};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

/// Bytes of a compiled regular expression at most, also of each pattern in a schema.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Mistakes of an answer that are told to its writer.
const MISTAKES_MAX: usize = 5;
/// Characters of one such mistake.
const MISTAKE_CHARS_MAX: usize = 300;

/// What is expected of an answer, ready to check many.
#[derive(Debug)]
pub(crate) struct Expect {
    json: bool,
    schema: Option<Validator>,
    regex: Option<Regex>,
}

impl Expect {
    /// Reads `{"json": true, "schema": {…}, "regex": "…"}`, each of them optional. The error is a
    /// sentence that begins with the key.
    pub(crate) fn read(value: &Value) -> Result<Self, String> {
        let Value::Object(fields) = value else {
            return Err("must be a table of json, schema and regex".to_owned());
        };
        let mut expect = Self { json: false, schema: None, regex: None };
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("json", Value::Bool(json)) => expect.json = *json,
                ("json", _) => return Err("json: must be true or false".to_owned()),
                ("schema", schema) => expect.schema = Some(validator(schema)?),
                ("regex", Value::String(pattern)) => expect.regex = Some(compiled(pattern)?),
                ("regex", _) => return Err("regex: must be text".to_owned()),
                _ => return Err(format!("{name}: unknown key; allowed here: json, schema, regex")),
            }
        }
        expect.json |= expect.schema.is_some();
        Ok(expect)
    }

    /// Checks an answer; gives its JSON if JSON is expected. The error is told to the model.
    pub(crate) fn check(&self, text: &str) -> Result<Option<Value>, String> {
        if let Some(regex) = &self.regex
            && !regex.is_match(text)
        {
            return Err(format!("the answer does not match the regular expression {regex}"));
        }
        if !self.json {
            return Ok(None);
        }
        let value = serde_json::from_str(unfenced(text))
            .map_err(|error| format!("the answer is not JSON: {error}"))?;
        if let Some(schema) = &self.schema {
            let mistakes: Vec<_> = schema.iter_errors(&value).take(MISTAKES_MAX).collect();
            if !mistakes.is_empty() {
                let told: Vec<String> = mistakes.iter().map(mistake).collect();
                return Err(told.join("; "));
            }
        }
        Ok(Some(value))
    }
}

/// The text inside of a fence of three backticks, if that is all there is.
pub(crate) fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    match inner.and_then(|inner| inner.split_once('\n')) {
        // What stands behind the opening fence is the name of a language.
        Some((language, body)) if !language.contains(['{', '[', '"']) => body.trim(),
        _ => text,
    }
}

fn validator(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(REGEX_BYTES_MAX))
        .build(schema)
        .map_err(|error| format!("schema: is not a JSON Schema: {}", mistake(&error)))
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|error| format!("regex: {error}"))
}

fn mistake(error: &jsonschema::ValidationError<'_>) -> String {
    let at = error.instance_path().to_string();
    let said: String = error.to_string().chars().take(MISTAKE_CHARS_MAX).collect();
    if at.is_empty() { said } else { format!("at {at}: {said}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_checked() {
        let schema =
            json!({"schema": {"properties": {"score": {"type": "integer"}}, "type": "object"}});
        for (expect, text, good) in [
            (json!({}), "anything", Ok(None)),
            (json!({"json": true}), "[1]", Ok(Some(json!([1])))),
            (json!({"json": true}), "```json\n{\"a\": 1}\n```", Ok(Some(json!({"a": 1})))),
            (json!({"json": true}), "```\n3\n```\n", Ok(Some(json!(3)))),
            (json!({"json": true}), "no", Err("the answer is not JSON: ")),
            (schema.clone(), "{\"score\": 70}", Ok(Some(json!({"score": 70})))),
            (schema.clone(), "{\"score\": \"x\"}", Err("at /score: \"x\" is not of type")),
            (json!({"regex": "^a+$"}), "aaa", Ok(None)),
            (json!({"regex": "^a+$"}), "ab", Err("the answer does not match")),
        ] {
            let found = Expect::read(&expect).unwrap().check(text);
            match good {
                Ok(value) => assert_eq!(found, Ok(value), "{text}"),
                Err(start) => assert!(found.unwrap_err().starts_with(start), "{text}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        for (expect, start) in [
            (json!([]), "must be a table"),
            (json!({"json": 1}), "json: "),
            (json!({"schema": {"type": "strng"}}), "schema: is not a JSON Schema: at /type: "),
            (json!({"schema": {"$ref": "https://example.org/s.json"}}), "schema: "),
            (json!({"regex": "("}), "regex: "),
            (json!({"regex": "(a{1000}){1000}"}), "regex: "),
            (json!({"jsn": true}), "jsn: unknown key"),
        ] {
            let error = Expect::read(&expect).unwrap_err();
            assert!(error.starts_with(start), "{expect}: {error}");
        }
    }
}
