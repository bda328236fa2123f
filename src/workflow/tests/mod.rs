//! Definitions and runs, from the outside.

mod fan;
mod graph;
mod history;
mod hostile;
mod nested;
mod plan;
mod refused;
mod rounds;

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{Advance, Ended, NewStep, Problem, Progress, Workflow};

pub(super) fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

/// JSON of a workflow file, in the file's order.
pub(super) fn json_of(file: &str) -> String {
    table_of(toml::de::DeTable::parse(file).unwrap().get_ref())
}

fn table_of(table: &toml::de::DeTable<'_>) -> String {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    let field = |(name, value): &(&toml::Spanned<_>, &toml::Spanned<_>)| {
        format!("{}:{}", json!(name.get_ref()), value_of(value.get_ref()))
    };
    format!("{{{}}}", entries.iter().map(field).collect::<Vec<_>>().join(","))
}

fn value_of(value: &toml::de::DeValue<'_>) -> String {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => json!(text).to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => json!(time.to_string()).to_string(),
        DeValue::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| value_of(item.get_ref())).collect();
            format!("[{}]", items.join(","))
        }
        DeValue::Table(table) => table_of(table),
    }
}

pub(super) fn read(file: &str) -> Result<Workflow, Vec<Problem>> {
    Workflow::read(&RawValue::from_string(json_of(file)).unwrap())
}

/// What is wrong with a file that has this in it, as it is printed.
pub(super) fn problems(file: &str) -> Vec<String> {
    match read(file) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

/// A run with a memory of what was begun.
pub(super) struct Run {
    pub(super) progress: Progress,
    pub(super) workflow: Arc<Workflow>,
    pub(super) inputs: Map<String, Value>,
}

impl Run {
    pub(super) fn of(file: &str, inputs: Value) -> Self {
        let workflow = read(file).map_err(|problems| {
            problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
        });
        let workflow = Arc::new(workflow.unwrap());
        let inputs = workflow.check_inputs(inputs.as_object().unwrap()).unwrap();
        let progress = Progress::new(Arc::clone(&workflow), inputs.clone());
        Self { progress, workflow, inputs }
    }

    /// The tasks that begin now.
    pub(super) fn go(&mut self) -> Vec<NewStep> {
        match self.progress.advance(u64::MAX) {
            Advance::Go(new) => new,
            other => panic!("{other:?}"),
        }
    }

    /// Their keys.
    pub(super) fn keys(&mut self) -> Vec<String> {
        self.go().into_iter().map(|new| new.key).collect()
    }

    pub(super) fn says(&mut self, key: &str, text: &str) {
        self.gives(key, json!({"text": text}));
    }

    pub(super) fn gives(&mut self, key: &str, output: Value) {
        self.progress.ended(key, Ended::Succeeded(raw(&output)));
    }

    pub(super) fn fails(&mut self, key: &str, why: &str) {
        self.progress.ended(key, Ended::Failed(why.to_owned()));
    }

    pub(super) fn output(&mut self) -> Value {
        match self.progress.advance(u64::MAX) {
            Advance::Done { output } => serde_json::from_str(output.get()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn failure(&mut self) -> (String, Vec<String>) {
        match self.progress.advance(u64::MAX) {
            Advance::Failed { message, blamed } => (message, blamed),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn input(new: &NewStep) -> Value {
    serde_json::from_str(new.input.get()).unwrap()
}
