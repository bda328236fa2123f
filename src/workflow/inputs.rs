//! The inputs of a workflow: what it takes, and whether that was given.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::problem::Problem;
use super::read::check_name;
use super::table::Table;
use crate::config::suggest::nearest;

const TYPES: [(&str, Type); 6] = [
    ("string", Type::String),
    ("number", Type::Number),
    ("integer", Type::Integer),
    ("boolean", Type::Boolean),
    ("list", Type::List),
    ("object", Type::Object),
];

/// The inputs, by name.
#[derive(Debug, Default)]
pub(super) struct Inputs(BTreeMap<String, Input>);

#[derive(Debug)]
struct Input {
    takes: Type,
    required: bool,
    default: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    String,
    Number,
    Integer,
    Boolean,
    List,
    Object,
}

impl Type {
    fn takes(self, value: &Value) -> bool {
        match self {
            Type::String => value.is_string(),
            Type::Number => value.is_number(),
            Type::Integer => value.is_i64() || value.is_u64(),
            Type::Boolean => value.is_boolean(),
            Type::List => value.is_array(),
            Type::Object => value.is_object(),
        }
    }

    fn name(self) -> &'static str {
        TYPES.iter().find(|(_, each)| *each == self).map_or("", |(name, _)| name)
    }
}

impl Inputs {
    pub(super) fn read(path: &str, raw: &RawValue, problems: &mut Vec<Problem>) -> Self {
        let table = Table::named(path, raw, problems);
        let read = |(name, raw): (&str, &RawValue), problems: &mut Vec<Problem>| {
            check_name(&table.at(name), name, problems);
            (name.to_owned(), Input::read(&table.at(name), raw, problems))
        };
        Self(table.entries().map(|entry| read(entry, problems)).collect())
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// The sentence about a name that there is no input of.
    pub(super) fn unknown(&self, name: &str) -> String {
        let names = self.names();
        match nearest(name, &names) {
            Some(meant) => format!("there is no input {name}; did you mean {meant}?"),
            None if names.is_empty() => format!("there is no input {name}: inputs declares none"),
            None => format!("there is no input {name}: inputs are {}", names.join(", ")),
        }
    }

    /// Why a value cannot be the input `name`, if so.
    pub(super) fn refuses(&self, name: &str, value: &Value) -> Option<String> {
        let input = self.0.get(name)?;
        let optional_null = value.is_null() && !input.required;
        (!optional_null && !input.takes.takes(value))
            .then(|| format!("must be of type {}", input.takes.name()))
    }

    /// The first required input that `given` leaves out.
    pub(super) fn missing(&self, given: impl Fn(&str) -> bool) -> Option<&str> {
        let mut lacking = self.0.iter().filter(|(name, input)| input.required && !given(name));
        lacking.next().map(|(name, _)| name.as_str())
    }

    /// What a run begins with: what is given, and the defaults of the rest.
    pub(super) fn check(&self, given: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        if let Some(name) = given.keys().find(|name| !self.0.contains_key(*name)) {
            return Err(self.unknown(name));
        }
        if let Some(name) = self.missing(|name| given.get(name).is_some_and(|it| !it.is_null())) {
            return Err(format!("the input {name} is missing: it is required"));
        }
        let mut checked = Map::new();
        for (name, input) in &self.0 {
            let value = given.get(name).filter(|value| !value.is_null());
            if let Some(why) = value.and_then(|value| self.refuses(name, value)) {
                return Err(format!("the input {name} {why}"));
            }
            let value = value.or(input.default.as_ref());
            checked.insert(name.clone(), value.cloned().unwrap_or(Value::Null));
        }
        Ok(checked)
    }
}

impl Input {
    fn read(path: &str, raw: &RawValue, problems: &mut Vec<Problem>) -> Self {
        let known = ["type", "required", "default", "description"];
        let table = Table::read(path, raw, &known, problems);
        let mut takes = Type::String;
        if let Some(word) = table.text("type", problems) {
            match TYPES.iter().find(|(name, _)| *name == word) {
                Some((_, found)) => takes = *found,
                None => {
                    let names: Vec<_> = TYPES.iter().map(|(name, _)| *name).collect();
                    let why = format!("{word:?}: must be one of {}", names.join(", "));
                    problems.push(Problem::new(table.at("type"), why));
                }
            }
        }
        table.text("description", problems);
        let required = table.typed("required", "true or false", problems).unwrap_or(false);
        let default = table.value("default", problems);
        if default.as_ref().is_some_and(|value| !takes.takes(value)) {
            let why = format!("must be of type {}", takes.name());
            problems.push(Problem::new(table.at("default"), why));
        }
        if default.is_some() && required {
            problems.push(Problem::new(table.at("default"), "is never used: it is required"));
        }
        Self { takes, required, default }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn given_inputs_are_checked() {
        let declared = json!({
            "outline": {"required": true}, "tone": {"default": "plain"}, "n": {"type": "integer"},
            "f": {"type": "number"}, "l": {"type": "list"},
        });
        let raw = RawValue::from_string(declared.to_string()).unwrap();
        let mut problems = Vec::new();
        let inputs = Inputs::read("inputs", &raw, &mut problems);
        assert_eq!(problems, []);
        for (given, expected) in [
            (
                json!({"outline": "o", "f": 1, "n": null}),
                Ok(json!({"outline": "o", "tone": "plain", "n": null, "f": 1, "l": null})),
            ),
            (json!({}), Err("the input outline is missing")),
            (json!({"outline": null}), Err("the input outline is missing")),
            (json!({"outlin": "o"}), Err("there is no input outlin; did you mean outline?")),
            (json!({"outline": 5}), Err("the input outline must be of type string")),
            (json!({"outline": "o", "n": 1.5}), Err("the input n must be of type integer")),
            (json!({"outline": "o", "l": {}}), Err("the input l must be of type list")),
        ] {
            let found = inputs.check(given.as_object().unwrap()).map(Value::Object);
            match expected {
                Ok(expected) => assert_eq!(found, Ok(expected)),
                Err(start) => assert!(found.unwrap_err().starts_with(start), "{given}"),
            }
        }
    }
}
