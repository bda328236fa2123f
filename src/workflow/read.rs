//! Reading a definition, and checking it whole.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::Workflow;
use super::definition::Voice;
use super::draft::{Draft, Names, StepNames, no_step};
use super::graph;
use super::inputs::Inputs;
use super::limits::{DEFINITION_BYTES_MAX, NAME_BYTES_MAX, NESTING_MAX, PROBLEMS_MAX};
use super::problem::{Problem, Source};
use super::read_step::read_step;
use super::shape::Shape;
use super::table::Table;
use super::template::Template;

const KEYS: [&str; 8] =
    ["name", "description", "output", "voice", "key", "inputs", "steps", "source"];

/// Reads a definition that has `depth` others around it, and may have as many `patterns`.
pub(super) fn read(
    definition: &RawValue,
    depth: usize,
    patterns: Rc<Cell<usize>>,
) -> Result<Workflow, Vec<Problem>> {
    let bytes = definition.get().len();
    if bytes > DEFINITION_BYTES_MAX {
        let why = format!("has {bytes} bytes: at most {DEFINITION_BYTES_MAX} are allowed");
        return Err(vec![Problem::new("", why)]);
    }
    if depth >= NESTING_MAX {
        let why = format!("is nested too deeply: at most {NESTING_MAX} workflows are");
        return Err(vec![Problem::new("", why)]);
    }
    let mut draft = Draft::new(patterns);
    let table = Table::read("", definition, &KEYS, &mut draft.problems);
    let source = read_source(&table, &mut draft);
    let name = read_name(&table, &mut draft);
    table.text("description", &mut draft.problems);
    let inputs = match table.get("inputs") {
        Some(raw) => Inputs::read("inputs", raw, &mut draft.problems),
        None => Inputs::default(),
    };
    let steps_table = read_steps_table(&table, &mut draft);
    let names: Vec<&str> = steps_table.iter().flat_map(Table::entries).map(|e| e.0).collect();
    let mut steps = Vec::new();
    for (i, (_, raw)) in steps_table.iter().flat_map(Table::entries).enumerate() {
        steps.push(read_step(i, raw, &names, depth, &mut draft));
    }
    graph::tie(&mut steps, &mut draft.problems);
    let key = read_key(&table, &mut draft);
    let output = read_output(&table, &mut draft);
    draft.check_names(&steps, &inputs);
    let last = graph::last_leaf(&steps, |_| true).and_then(|leaf| names.get(leaf).copied());
    let voice = read_voice(&table, &names, last, &mut draft);
    if !draft.problems.is_empty() {
        return Err(told(draft.problems, &source));
    }
    let by_name: BTreeMap<String, usize> =
        names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), i)).collect();
    Ok(Workflow {
        name,
        inputs,
        by_name: Arc::new(by_name),
        steps,
        output,
        voice,
        key,
        source,
        kinds: draft.kinds,
        templates: draft.templates,
    })
}

/// The mistakes with their places, the first ones if there are many.
fn told(mut problems: Vec<Problem>, source: &Source) -> Vec<Problem> {
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    if more > 0 {
        problems.truncate(PROBLEMS_MAX);
        problems.push(Problem::new("", format!("has {more} mistakes more")));
    }
    problems.into_iter().map(|problem| source.locate(problem)).collect()
}

/// Notes a name that templates could not write, as in `steps.NAME`.
pub(super) fn check_name(path: &str, name: &str, problems: &mut Vec<Problem>) {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let digit = |c: char| c.is_ascii_digit();
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.starts_with(digit)
        || !name.chars().all(good)
    {
        let why = format!(
            "is no name: 1 to {NAME_BYTES_MAX} of A-Z, a-z, 0-9 and _, with no digit in front"
        );
        problems.push(Problem::new(path, why));
    }
}

fn read_name(table: &Table<'_>, draft: &mut Draft) -> String {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    match table.text("name", &mut draft.problems) {
        Some(name) if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(good) => {
            return name;
        }
        Some(_) => {
            let why = format!("is no name: 1 to {NAME_BYTES_MAX} of a-z, 0-9, _ and -");
            draft.problem("name", why);
        }
        None if table.has("name") => {}
        None => draft.problem("name", "is missing: what is the workflow called?"),
    }
    String::new()
}

fn read_steps_table<'a>(table: &Table<'a>, draft: &mut Draft) -> Option<Table<'a>> {
    let Some(raw) = table.get("steps") else {
        draft.problem("steps", "is missing: a workflow has at least one step");
        return None;
    };
    let steps = Table::named("steps", raw, &mut draft.problems);
    if steps.entries().next().is_none() {
        draft.problem("steps", "is empty: a workflow has at least one step");
    }
    for (name, _) in steps.entries() {
        check_name(&steps.at(name), name, &mut draft.problems);
    }
    Some(steps)
}

fn read_source(table: &Table<'_>, draft: &mut Draft) -> Source {
    let Some(raw) = table.get("source") else { return Source::default() };
    let source = Table::read("source", raw, &["file", "lines"], &mut draft.problems);
    Source {
        file: source.text("file", &mut draft.problems),
        lines: source
            .typed("lines", "a table of line numbers", &mut draft.problems)
            .unwrap_or_default(),
    }
}

fn read_key(table: &Table<'_>, draft: &mut Draft) -> Option<Template> {
    let source = table.text("key", &mut draft.problems)?;
    draft.template("key", &source, Names { steps: StepNames::None, own: &[] })
}

/// A template becomes `{"text": …}`, a table `{"json": …}`.
fn read_output(table: &Table<'_>, draft: &mut Draft) -> Option<Shape> {
    let scope = Names { steps: StepNames::All, own: &[] };
    let (name, shape) = match table.value("output", &mut draft.problems)? {
        Value::String(source) => ("text", draft.text("output", &source, scope)),
        fields @ Value::Object(_) => ("json", draft.shape("output", &fields, scope)),
        _ => {
            draft.problem("output", "must be a template, or a table of templates");
            return None;
        }
    };
    Some(Shape::table(vec![(name.to_owned(), shape)]))
}

fn read_voice(
    table: &Table<'_>,
    names: &[&str],
    last_leaf: Option<&str>,
    draft: &mut Draft,
) -> Voice {
    let voices = match table.value("voice", &mut draft.problems) {
        None => return Voice::Steps(last_leaf.map(str::to_owned).into_iter().collect()),
        Some(Value::String(all)) if all == "*" => return Voice::All,
        Some(Value::String(name)) => vec![name],
        Some(_) => {
            let what = "the name of a step, a list of names, or \"*\" for all";
            table.names("voice", what, &mut draft.problems).unwrap_or_default()
        }
    };
    for name in voices.iter().filter(|name| !names.contains(&name.as_str())) {
        draft.problem("voice", no_step(name, names.iter().copied()));
    }
    Voice::Steps(voices)
}
