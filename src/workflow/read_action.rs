//! Reading what a step or an action of a plan does.

use std::rc::Rc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::definition::{Action, UsedKind};
use super::draft::{Draft, Names, is_plain};
use super::limits::{ATTEMPTS_MAX, PATTERNS_MAX};
use super::problem::Problem;
use super::read::read;
use super::shape::Shape;
use super::table::Table;
use crate::config::parse_duration;
use crate::expect::{Expect, patterns_in};
use crate::task::PRIORITIES;

pub(super) const ACTION_KEYS: [&str; 12] = [
    "kind", "agent", "model", "prompt", "system", "input", "priority", "timeout", "attempts",
    "expect", "workflow", "set",
];

/// What is written beside `input` and goes into it.
const SHORTHANDS: [&str; 4] = ["agent", "model", "prompt", "system"];
const KIND_DEFAULT: &str = "chat";
/// The kind whose tasks are runs.
const KIND_WORKFLOW: &str = "workflow";
const KIND_BYTES_MAX: usize = 64;

pub(super) fn read_action(
    table: &Table<'_>,
    scope: Names,
    depth: usize,
    draft: &mut Draft,
) -> Action {
    let kind = read_kind(table, draft);
    let nested = kind == KIND_WORKFLOW;
    let input = if nested {
        read_nested(table, scope, depth, draft)
    } else {
        let why = "is for kind = \"workflow\"";
        table.refuse(&["workflow", "set"], why, &mut draft.problems);
        read_input(table, scope, draft)
    };
    let constant = |key: &str| {
        let text = table.get(key).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        text.filter(|text| is_plain(text))
    };
    let used = UsedKind {
        path: table.path.clone(),
        kind: kind.clone(),
        agent: constant("agent"),
        model: constant("model"),
    };
    draft.kinds.push(used);
    let whole = |key: &str, bounds: (u64, u64), draft: &mut Draft| {
        table.whole(key, bounds, &mut draft.problems)
    };
    let priority = whole("priority", (0, PRIORITIES as u64 - 1), draft);
    let attempts = whole("attempts", (1, ATTEMPTS_MAX), draft);
    let (expect, expects_json) = read_expect(table, draft);
    Action {
        kind,
        input,
        priority: priority.and_then(|it| u8::try_from(it).ok()),
        timeout_ms: read_timeout(table, draft),
        attempts: attempts.and_then(|it| u32::try_from(it).ok()),
        expect,
        expects_json,
    }
}

fn read_kind(table: &Table<'_>, draft: &mut Draft) -> String {
    let kind = table.text("kind", &mut draft.problems);
    let kind = kind.unwrap_or_else(|| KIND_DEFAULT.to_owned());
    if kind.is_empty() || kind.len() > KIND_BYTES_MAX {
        draft.problem(table.at("kind"), "is no kind of task");
    }
    kind
}

fn read_input(table: &Table<'_>, scope: Names, draft: &mut Draft) -> Shape {
    let mut fields = Vec::new();
    for name in SHORTHANDS {
        if let Some(source) = table.text(name, &mut draft.problems) {
            fields.push((name.to_owned(), draft.text(&table.at(name), &source, scope)));
        }
    }
    let path = table.at("input");
    match table.value("input", &mut draft.problems) {
        None => {}
        Some(Value::Object(input)) => {
            for (name, value) in &input {
                if fields.iter().any(|(given, _)| given == name) {
                    draft.problem(format!("{path}.{name}"), "is given twice: beside input, too");
                }
                if name == "expect" && table.has("expect") {
                    let why = "is given twice: the step has its own";
                    draft.problem(format!("{path}.{name}"), why);
                }
                fields.push((name.clone(), draft.shape(&format!("{path}.{name}"), value, scope)));
            }
        }
        Some(_) => draft.problem(path, "must be a table"),
    }
    Shape::table(fields)
}

fn read_timeout(table: &Table<'_>, draft: &mut Draft) -> Option<u64> {
    let text = table.text("timeout", &mut draft.problems)?;
    match parse_duration(&text) {
        Ok(time) if time.as_millis() > 0 => u64::try_from(time.as_millis()).ok(),
        Ok(_) => {
            draft.problem(table.at("timeout"), "must be at least 1ms");
            None
        }
        Err(why) => {
            draft.problem(table.at("timeout"), why);
            None
        }
    }
}

fn read_expect(table: &Table<'_>, draft: &mut Draft) -> (Option<Box<RawValue>>, bool) {
    let Some(raw) = table.get("expect") else { return (None, false) };
    let Some(value) = table.value("expect", &mut draft.problems) else { return (None, false) };
    let Some(left) = draft.patterns.get().checked_sub(patterns_in(&value)) else {
        let why = format!("a workflow has at most {PATTERNS_MAX} patterns in its schemas");
        draft.problem(table.at("expect"), why);
        return (None, false);
    };
    draft.patterns.set(left);
    if let Err(why) = Expect::read(&value) {
        draft.problem(table.at("expect"), why);
    }
    let json = value.get("json") == Some(&Value::Bool(true)) || value.get("schema").is_some();
    (Some(raw.to_owned()), json)
}

/// The input of a run: `{"workflow": …, "inputs": {…}}`.
fn read_nested(table: &Table<'_>, scope: Names, depth: usize, draft: &mut Draft) -> Shape {
    let why = "is for other kinds: the inputs of a workflow are in set";
    table.refuse(&["agent", "model", "prompt", "system", "input"], why, &mut draft.problems);
    let path = table.at("set");
    let set =
        table.value("set", &mut draft.problems).unwrap_or_else(|| Value::Object(<_>::default()));
    let Value::Object(set) = set else {
        draft.problem(path, "must be a table of inputs");
        return Shape::table(Vec::new());
    };
    let mut given = Vec::new();
    for (name, value) in &set {
        given.push((name.clone(), draft.shape(&format!("{path}.{name}"), value, scope)));
    }
    let Some(raw) = table.get("workflow") else {
        draft.problem(table.at("workflow"), "is missing: which workflow?");
        return Shape::table(given);
    };
    let at = table.at("workflow");
    match read(raw, depth + 1, Rc::clone(&draft.patterns)) {
        Ok(nested) => {
            for (name, value) in &set {
                let path = format!("{path}.{name}");
                if !nested.inputs.names().contains(&name.as_str()) {
                    draft.problem(path, nested.inputs.unknown(name));
                } else if let Some(why) = refused(&nested.inputs, name, value) {
                    draft.problem(path, why);
                }
            }
            if let Some(name) = nested.inputs.missing(|name| set.contains_key(name)) {
                draft.problem(&path, format!("the input {name} is missing: it is required"));
            }
            let inside = |used: UsedKind| UsedKind { path: format!("{at}.{}", used.path), ..used };
            draft.kinds.extend(nested.kinds.into_iter().map(inside));
        }
        Err(problems) => {
            let inside = |problem: Problem| Problem {
                path: [at.as_str(), &problem.path].join(if problem.path.is_empty() {
                    ""
                } else {
                    "."
                }),
                ..problem
            };
            draft.problems.extend(problems.into_iter().map(inside));
        }
    }
    Shape::table(vec![
        ("workflow".to_owned(), Shape::Fixed(raw.get().into())),
        ("inputs".to_owned(), Shape::table(given)),
    ])
}

/// Why a value without templates is not taken.
fn refused(inputs: &super::inputs::Inputs, name: &str, value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !is_plain(text) => None,
        value => inputs.refuses(name, value),
    }
}
