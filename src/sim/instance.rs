//! JSON that fits a schema: what the simulated model answers with when it is told one. Pure.

use serde_json::{Map, Number, Value};

use super::draw::{mix, mix_text, unit};

/// Below this depth only what is required is filled in, and of arrays only as much as must be.
const FULL_DEPTH: usize = 6;
/// Where a schema that refers to itself ends.
const DEPTH_MAX: usize = 24;
/// About the most bytes that one answer is filled with; what is then missing is null.
const BYTES_MAX: usize = 256 << 10;
/// What a value that is no string counts for.
const VALUE_BYTES: usize = 8;
/// Longest string that a schema can ask for.
const STRING_CHARS_MAX: u64 = 10_000;
/// Most items of an array that need not have more.
const ITEMS_MAX: u64 = 3;
/// Most keywords that are followed from one schema to the next: `$ref`, `anyOf`, `oneOf`.
const HOPS_MAX: usize = 8;
/// How far behind the lower end of a range its numbers begin, and how wide they spread.
const RANGE_FROM: f64 = 0.6;
const RANGE_SPREAD: f64 = 0.35;
/// Range of a number whose schema leaves an end open.
const OPEN_RANGE: f64 = 10.0;

/// A value that fits `schema`: the same for the same schema, seed and sentences, of which its
/// strings are made. As far as the schema is in these words: `type`, `properties`, `required`,
/// `items`, `prefixItems`, `enum`, `const`, `anyOf`, `oneOf`, `allOf`, local `$ref`, and the bounds
/// of numbers, strings and arrays.
pub(super) fn instance(schema: &Value, sentences: &[&str], seed: u64) -> Value {
    Maker { root: schema, sentences, bytes_left: BYTES_MAX }.value(schema, seed, 0)
}

struct Maker<'a> {
    root: &'a Value,
    sentences: &'a [&'a str],
    bytes_left: usize,
}

impl<'a> Maker<'a> {
    fn value(&mut self, schema: &'a Value, seed: u64, depth: usize) -> Value {
        self.spend(VALUE_BYTES);
        if depth >= DEPTH_MAX || self.is_full() {
            return Value::Null;
        }
        let schemas = self.together(schema, seed);
        let choice = || find(&schemas, "enum").and_then(|all| pick(all.as_array()?, seed));
        if let Some(given) = find(&schemas, "const").or_else(choice) {
            self.spend(given.to_string().len());
            return given.clone();
        }
        match sort_of(&schemas) {
            "object" => self.object(&schemas, seed, depth),
            "array" => self.array(&schemas, seed, depth),
            "string" => self.string(&schemas, seed).into(),
            "integer" => number(&schemas, seed, true),
            "number" => number(&schemas, seed, false),
            "boolean" => (mix(seed) % 2 == 1).into(),
            _ => Value::Null,
        }
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    fn is_full(&self) -> bool {
        self.bytes_left == 0
    }

    /// The schema and all that it refers to, of which alternatives are chosen.
    fn together(&self, schema: &'a Value, seed: u64) -> Vec<&'a Value> {
        let mut schemas = vec![schema];
        let mut next = 0;
        while next < schemas.len() && next <= HOPS_MAX {
            let schema = schemas[next];
            let refers = schema.get("$ref").and_then(Value::as_str);
            schemas.extend(refers.and_then(|to| self.root.pointer(to.strip_prefix('#')?)));
            let list = |name: &str| schema.get(name).and_then(Value::as_array);
            schemas.extend(list("allOf").into_iter().flatten());
            for name in ["anyOf", "oneOf"] {
                schemas.extend(list(name).and_then(|all| pick(all, seed)));
            }
            next += 1;
        }
        schemas
    }

    fn object(&mut self, schemas: &[&'a Value], seed: u64, depth: usize) -> Value {
        let all = |name: &'static str| schemas.iter().filter_map(move |schema| schema.get(name));
        let required: Vec<&'a str> = all("required")
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut filled = Map::new();
        for (name, schema) in all("properties").filter_map(Value::as_object).flatten() {
            if depth < FULL_DEPTH || required.contains(&name.as_str()) {
                let value = self.value(schema, mix_text(seed, name), depth + 1);
                filled.entry(name.as_str()).or_insert(value);
            }
        }
        for name in required {
            if !filled.contains_key(name) && !self.is_full() {
                let text = self.string(&[], mix_text(seed, name));
                filled.insert(name.to_owned(), text.into());
            }
        }
        Value::Object(filled)
    }

    fn array(&mut self, schemas: &[&'a Value], seed: u64, depth: usize) -> Value {
        let bound = |name| find(schemas, name).and_then(Value::as_u64);
        let least = bound("minItems").unwrap_or(0);
        let most = bound("maxItems").unwrap_or(u64::MAX).min(ITEMS_MAX).max(least);
        let least = least.max(1).min(most);
        let count = match depth < FULL_DEPTH {
            true => least + mix(seed) % (most - least + 1),
            false => bound("minItems").unwrap_or(0),
        };
        let first = find(schemas, "prefixItems").and_then(Value::as_array);
        let rest = find(schemas, "items");
        let mut items = Vec::new();
        for index in 0..count {
            if self.is_full() {
                break;
            }
            let place = usize::try_from(index).unwrap_or(usize::MAX);
            let seed = mix(seed ^ mix(index));
            items.push(match first.and_then(|first| first.get(place)).or(rest) {
                Some(schema) => self.value(schema, seed, depth + 1),
                None => self.string(&[], seed).into(),
            });
        }
        Value::Array(items)
    }

    fn string(&mut self, schemas: &[&Value], seed: u64) -> String {
        let bound = |name| find(schemas, name).and_then(Value::as_u64);
        let chars = |length: u64| usize::try_from(length.min(STRING_CHARS_MAX)).unwrap_or(0);
        let most = bound("maxLength").map_or(usize::MAX, chars);
        let least = bound("minLength").map_or(0, chars);
        let text = self.sentence(seed);
        let padding = std::iter::repeat_n('.', least.saturating_sub(text.chars().count()));
        let text: String = text.chars().chain(padding).take(most).collect();
        self.spend(text.len());
        text
    }

    /// One of the prompt's, that says what it is.
    fn sentence(&self, seed: u64) -> String {
        let quoted = pick(self.sentences, seed).copied().unwrap_or("There is nothing to quote.");
        format!("[simulated] {quoted}")
    }
}

/// The first of the schemas that has the keyword says what it is.
fn find<'a>(schemas: &[&'a Value], keyword: &str) -> Option<&'a Value> {
    schemas.iter().find_map(|schema| schema.get(keyword))
}

fn pick<T>(all: &[T], seed: u64) -> Option<&T> {
    let count = u64::try_from(all.len()).ok().filter(|count| *count > 0)?;
    usize::try_from(mix(seed) % count).ok().and_then(|index| all.get(index))
}

/// The type that a schema names, or that its keywords are for.
fn sort_of<'a>(schemas: &[&'a Value]) -> &'a str {
    let named = match find(schemas, "type") {
        Some(Value::String(name)) => Some(name.as_str()),
        // `["null", "string"]`: rather something than nothing.
        Some(Value::Array(names)) => {
            let mut names = names.iter().filter_map(Value::as_str);
            names.find(|name| *name != "null")
        }
        _ => None,
    };
    let has = |keywords: &[&str]| keywords.iter().any(|word| find(schemas, word).is_some());
    named.unwrap_or_else(|| match () {
        () if has(&["properties", "required"]) => "object",
        () if has(&["items", "prefixItems", "minItems", "maxItems"]) => "array",
        () if has(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]) => "number",
        () => "string",
    })
}

/// Somewhere in the upper half of its range: most who ask for a number ask for a score.
fn number(schemas: &[&Value], seed: u64, whole: bool) -> Value {
    let bound = |name| find(schemas, name).and_then(Value::as_f64);
    let step = bound("multipleOf").filter(|step| *step > 0.0);
    let step = if whole { Some(step.map_or(1.0, f64::ceil)) } else { step };
    // What is next to an end that is excluded.
    let little = step.unwrap_or(f64::EPSILON);
    let least = bound("minimum").or_else(|| Some(bound("exclusiveMinimum")? + little));
    let most = bound("maximum").or_else(|| Some(bound("exclusiveMaximum")? - little));
    let (least, most) = match (least, most) {
        (Some(least), Some(most)) => (least, most),
        (Some(least), None) => (least, least + OPEN_RANGE),
        (None, Some(most)) => (most - OPEN_RANGE, most),
        (None, None) => (0.0, OPEN_RANGE),
    };
    let drawn = least + (most - least) * (RANGE_FROM + RANGE_SPREAD * unit(mix(seed)));
    let Some(step) = step else {
        // In hundredths, where the range has room for them.
        let short = (drawn * 100.0).round() / 100.0;
        let value = if (least..=most).contains(&short) { short } else { drawn };
        return Number::from_f64(value).map_or(Value::Null, Value::Number);
    };
    let rounded = (drawn / step).round() * step;
    let fitting = [rounded, rounded - step, rounded + step];
    let value = fitting.into_iter().find(|value| (least..=most).contains(value));
    let value = value.unwrap_or(rounded);
    match whole {
        // As large as a float goes, and no further.
        true => (value as i64).into(),
        false => Number::from_f64(value).map_or(Value::Null, Value::Number),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::expect::Expect;

    const SENTENCES: [&str; 2] = ["The queue keeps tasks.", "Birds sing."];

    fn made(schema: &Value, seed: u64) -> Value {
        let value = instance(schema, &SENTENCES, seed);
        let expect = Expect::read(&json!({ "schema": schema })).unwrap();
        assert_eq!(expect.check(&value.to_string()).map(drop), Ok(()), "{value} for {schema}");
        value
    }

    #[test]
    fn values_fit_their_schema() {
        let scene = json!({"type": "object", "required": ["title", "mood", "other"], "properties": {
            "title": {"type": "string", "maxLength": 30}, "mood": {"enum": ["calm", "tense"]},
            "length": {"type": "integer", "minimum": 100, "maximum": 900},
        }});
        let tree = json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}},
        }});
        for schema in [
            json!({"type": "object", "required": ["scenes"], "additionalProperties": false,
                "properties": {"scenes": {"type": "array", "minItems": 2, "maxItems": 9,
                    "items": {"$ref": "#/$defs/scene"}}}, "$defs": {"scene": scene}}),
            tree,
            json!({"type": "array", "items": {"type": "boolean"}, "minItems": 5}),
            json!({"type": "array", "maxItems": 0}),
            json!({"prefixItems": [{"const": 1}, {"type": "null"}], "minItems": 2}),
            json!({"type": ["null", "string"], "minLength": 90, "maxLength": 91}),
            json!({"anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "integer"}}}]}),
            json!({"oneOf": [{"const": "a"}, {"const": "b"}]}),
            json!({"type": "integer", "minimum": 3, "maximum": 3}),
            json!({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2}),
            json!({"type": "integer", "minimum": 1, "maximum": 10, "multipleOf": 5}),
            json!({"type": "number", "minimum": 0, "maximum": 1}),
            json!({"type": "number", "minimum": 0.001, "maximum": 0.002}),
            json!({"type": "number", "maximum": -5}),
            json!({"type": "null"}),
            json!({}),
        ] {
            for seed in 0..20 {
                assert_eq!(made(&schema, seed), made(&schema, seed));
            }
        }
    }

    #[test]
    fn the_seed_varies_them_and_scores_are_good_ones() {
        let schema = json!({"type": "object", "properties": {
            "score": {"type": "integer", "minimum": 0, "maximum": 100},
            "good": {"type": "boolean"}, "why": {"type": "string"},
        }});
        let answers: Vec<_> = (0..50).map(|seed| made(&schema, seed)).collect();
        let count = |name: &str| {
            let mut seen: Vec<_> = answers.iter().map(|answer| answer[name].to_string()).collect();
            seen.sort();
            seen.dedup();
            seen.len()
        };
        assert!(count("score") > 20 && count("good") == 2 && count("why") == 2);
        for answer in &answers {
            assert!((60..=95).contains(&answer["score"].as_u64().unwrap()), "{answer}");
            assert!(answer["why"].as_str().unwrap().starts_with("[simulated] "), "{answer}");
        }
    }

    #[test]
    fn what_has_no_end_is_given_one() {
        let each = json!({"$ref": "#"});
        let deep = json!({"type": "array", "minItems": 1, "items": each});
        let wide = json!({"type": "array", "minItems": 1u64 << 40, "items": {"type": "integer"}});
        let both = json!({"type": "array", "minItems": 1000, "items": each});
        let long = json!({"minItems": 1000, "items": {"type": "string", "minLength": 1u64 << 40}});
        for schema in [deep, wide, both, long, each.clone(), json!({"anyOf": [each]})] {
            let bytes = instance(&schema, &[], 0).to_string().len();
            assert!(bytes < 2 * BYTES_MAX, "{schema}: {bytes}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_does_no_harm(
            name in "type|items|required|minItems|maxLength|enum|\\$ref|anyOf|minimum|multipleOf",
            other in "type|items|properties|maxItems|minLength|const|allOf|oneOf|maximum",
            number in any::<f64>(),
            text in "object|array|string|integer|#|#/a|x",
            seed in any::<u64>(),
        ) {
            for value in [json!(number), json!(text), json!([text, number]), json!({ &text: {} })] {
                instance(&json!({ &name: value, &other: text }), &[], seed);
                instance(&json!({ &name: value, &other: number }), &[], seed);
            }
        }
    }
}
