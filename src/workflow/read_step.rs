//! Reading one step: when it runs, how many tasks it is, and what becomes of it when it fails.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::definition::{Fan, Form, OnFailure, Planned, Step};
use super::draft::{Draft, Names, StepNames, no_step};
use super::limits::{ITEMS_DEFAULT, ITEMS_MAX, ROUNDS_MAX};
use super::read::check_name;
use super::read_action::{ACTION_KEYS, read_action};
use super::set::StepSet;
use super::shape::Shape;
use super::table::Table;

const STEP_KEYS: [&str; 11] = [
    "needs",
    "when",
    "key",
    "on_failure",
    "for_each",
    "concurrency",
    "max",
    "repeat",
    "plan",
    "order",
    "actions",
];

/// Reads the step with this number; `names` are those of all.
pub(super) fn read_step(
    i: usize,
    raw: &RawValue,
    names: &[&str],
    depth: usize,
    draft: &mut Draft,
) -> Step {
    let name = names.get(i).copied().unwrap_or_default();
    let path = format!("steps.{name}");
    let known = [&ACTION_KEYS[..], &STEP_KEYS[..]].concat();
    let table = Table::read(&path, raw, &known, &mut draft.problems);
    let before = Names { steps: StepNames::Before(i), own: &[] };
    let needs = read_needs(&table, names, draft);
    let when = read_expression(&table, "when", before, draft);
    let form = read_form(&table, before, depth, draft);
    let scope = Names { own: own_names(&form), ..before };
    let whole = if matches!(form, Form::Plan { .. }) { before } else { scope };
    let key = table.text("key", &mut draft.problems);
    let key = key.and_then(|source| draft.template(&table.at("key"), &source, scope));
    let action = match form {
        Form::Plan { .. } => {
            let why = "belongs into an action: a plan has no task of its own";
            table.refuse(&ACTION_KEYS, why, &mut draft.problems);
            None
        }
        _ => Some(read_action(&table, scope, depth, draft)),
    };
    Step {
        name: name.to_owned(),
        action: action.unwrap_or_default(),
        needs,
        needed_by: Vec::new(),
        rescues: None,
        sees: StepSet::default(),
        when,
        key,
        on_failure: read_on_failure(&table, whole.and_itself(), names, draft),
        form,
    }
}

/// What templates of a task may name because of how the step has many.
fn own_names(form: &Form) -> &'static [&'static str] {
    match form {
        Form::Once => &[],
        Form::ForEach(_) => &["item", "index"],
        Form::Repeat { .. } => &["round", "rounds"],
        Form::Plan { in_order, .. } => planned_names(*in_order),
    }
}

fn planned_names(in_order: bool) -> &'static [&'static str] {
    if in_order { &["task", "index", "done"] } else { &["task", "index"] }
}

fn read_needs(table: &Table<'_>, names: &[&str], draft: &mut Draft) -> Vec<usize> {
    let needs = table.names("needs", "a list of texts", &mut draft.problems).unwrap_or_default();
    let mut found = Vec::new();
    for (i, need) in needs.iter().enumerate() {
        let path = format!("{}[{i}]", table.at("needs"));
        match names.iter().position(|name| name == need) {
            Some(step) if found.contains(&step) => draft.problem(path, "is given twice"),
            Some(step) => found.push(step),
            None => draft.problem(path, no_step(need, names.iter().copied())),
        }
    }
    found
}

fn read_expression(
    table: &Table<'_>,
    key: &str,
    scope: Names,
    draft: &mut Draft,
) -> Option<super::template::Template> {
    let source = table.text(key, &mut draft.problems)?;
    draft.expression(&table.at(key), &source, scope)
}

fn read_form(table: &Table<'_>, before: Names, depth: usize, draft: &mut Draft) -> Form {
    let given: Vec<&str> =
        ["for_each", "repeat", "plan"].into_iter().filter(|key| table.has(key)).collect();
    if let [first, second, ..] = given.as_slice() {
        let why = format!("is there besides {first}: a step has one of for_each, repeat and plan");
        draft.problem(table.at(second), why);
    }
    let not_of = |keys: &[&str], why: &str, draft: &mut Draft| {
        table.refuse(keys, why, &mut draft.problems);
    };
    match given.first() {
        Some(&"for_each") => {
            not_of(&["order", "actions"], "is for steps with plan", draft);
            read_fan(table, "for_each", before, draft).map_or(Form::Once, Form::ForEach)
        }
        Some(&"plan") => read_plan(table, before, depth, draft),
        repeat => {
            not_of(&["order", "actions"], "is for steps with plan", draft);
            not_of(&["concurrency", "max"], "is for steps with for_each or plan", draft);
            repeat.map_or(Form::Once, |_| read_repeat(table, before, draft))
        }
    }
}

fn read_fan(table: &Table<'_>, key: &str, before: Names, draft: &mut Draft) -> Option<Fan> {
    let bounds = (1, ITEMS_MAX as u64);
    let whole = |name, draft: &mut Draft| {
        let number = table.whole(name, bounds, &mut draft.problems)?;
        usize::try_from(number).ok()
    };
    let concurrency = whole("concurrency", draft).unwrap_or(ITEMS_MAX);
    let max = whole("max", draft).unwrap_or(ITEMS_DEFAULT);
    let list = read_expression(table, key, before, draft)?;
    Some(Fan { list, concurrency, max })
}

fn read_repeat(table: &Table<'_>, before: Names, draft: &mut Draft) -> Form {
    let Some(raw) = table.get("repeat") else { return Form::Once };
    let repeat = Table::read(&table.at("repeat"), raw, &["until", "max"], &mut draft.problems);
    let scope = Names { own: &["round", "rounds"], ..before }.and_itself();
    let until = read_expression(&repeat, "until", scope, draft);
    let max = repeat.whole("max", (1, ROUNDS_MAX as u64), &mut draft.problems);
    if !repeat.has("max") {
        draft.problem(repeat.at("max"), "is missing: how many rounds are there at most?");
    }
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(1);
    Form::Repeat { until, max }
}

fn read_plan(table: &Table<'_>, before: Names, depth: usize, draft: &mut Draft) -> Form {
    let order = table.text("order", &mut draft.problems);
    let in_order = match order.as_deref() {
        None | Some("sequence") => true,
        Some("parallel") => false,
        Some(_) => {
            draft.problem(table.at("order"), "must be \"sequence\" or \"parallel\"");
            true
        }
    };
    if in_order {
        let why = "is for order = \"parallel\": in sequence there is one task at once";
        table.refuse(&["concurrency"], why, &mut draft.problems);
    }
    let fan = read_fan(table, "plan", before, draft);
    let mut actions = BTreeMap::new();
    let listed = table.get("actions");
    let listed = listed.map(|raw| Table::named(&table.at("actions"), raw, &mut draft.problems));
    let own = planned_names(in_order);
    for (name, raw) in listed.iter().flat_map(Table::entries) {
        let path = format!("{}.{name}", table.at("actions"));
        check_name(&path, name, &mut draft.problems);
        actions.insert(
            name.to_owned(),
            read_planned(&path, raw, Names { own, ..before }, depth, draft),
        );
    }
    if actions.is_empty() {
        draft.problem(table.at("actions"), "is empty: what may the tasks of the plan do?");
    }
    match fan {
        Some(fan) if in_order => {
            Form::Plan { fan: Fan { concurrency: 1, ..fan }, actions, in_order }
        }
        Some(fan) => Form::Plan { fan, actions, in_order },
        None => Form::Once,
    }
}

fn read_planned(
    path: &str,
    raw: &RawValue,
    scope: Names,
    depth: usize,
    draft: &mut Draft,
) -> Planned {
    let known = [&ACTION_KEYS[..], &["on_failure"]].concat();
    let table = Table::read(path, raw, &known, &mut draft.problems);
    let action = read_action(&table, scope, depth, draft);
    let fallback = match read_on_failure(&table, scope, &[], draft) {
        OnFailure::Output(shape) => Some(shape),
        OnFailure::Fail => None,
        OnFailure::Step(_) => None,
    };
    Planned { action, fallback }
}

fn read_on_failure(
    table: &Table<'_>,
    scope: Names,
    names: &[&str],
    draft: &mut Draft,
) -> OnFailure {
    let Some(raw) = table.get("on_failure") else { return OnFailure::Fail };
    if raw.get() == "\"fail\"" {
        return OnFailure::Fail;
    }
    let path = table.at("on_failure");
    if !raw.get().starts_with('{') {
        draft.problem(path, "must be \"fail\", { output = … } or { step = \"NAME\" }");
        return OnFailure::Fail;
    }
    let table = Table::read(&path, raw, &["output", "step"], &mut draft.problems);
    match (table.value("output", &mut draft.problems), table.text("step", &mut draft.problems)) {
        (Some(output), None) => match output {
            Value::String(source) => {
                let text = draft.text(&table.at("output"), &source, scope);
                OnFailure::Output(Shape::table(vec![("text".to_owned(), text)]))
            }
            Value::Object(_) => OnFailure::Output(draft.shape(&table.at("output"), &output, scope)),
            _ => {
                draft.problem(table.at("output"), "must be a template, or a table of templates");
                OnFailure::Fail
            }
        },
        (None, Some(step)) => match names.iter().position(|name| *name == step) {
            Some(step) => OnFailure::Step(step),
            None => {
                draft.problem(table.at("step"), no_step(&step, names.iter().copied()));
                OnFailure::Fail
            }
        },
        (None, None) if table.has("output") || table.has("step") => OnFailure::Fail,
        _ => {
            draft.problem(path, "must have one of output and step");
            OnFailure::Fail
        }
    }
}
