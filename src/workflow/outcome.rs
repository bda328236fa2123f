//! What came of a step, an item or a round, as templates see it.

use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, Serde};

use crate::expect::read_json;

/// The fields that there may be, in the order in which they are shown.
const FIELDS: [&str; 10] =
    ["state", "output", "text", "json", "error", "items", "rounds", "index", "item", "task"];
/// Between the texts of items.
const TEXT_GAP: &str = "\n\n";

/// A result. What is not there is undefined for templates.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) state: State,
    pub(super) output: Option<Value>,
    pub(super) text: Option<Value>,
    pub(super) json: Option<Value>,
    pub(super) error: Option<Value>,
    pub(super) items: Option<Value>,
    pub(super) rounds: Option<Value>,
    /// Of an item: its number and what it was made of.
    pub(super) index: Option<usize>,
    pub(super) item: Option<Value>,
    pub(super) task: Option<Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    Succeeded,
    Failed,
    #[default]
    Skipped,
}

impl Outcome {
    /// Of a task's output; its text is JSON if that was expected.
    pub(super) fn of(output: Value, expects_json: bool) -> Self {
        let field = |name| output.get_attr(name).ok().filter(|value| !value.is_undefined());
        let text = ["text", "stdout", "body"].into_iter().find_map(field);
        let text = text.filter(|value| value.as_str().is_some());
        let parsed = text
            .as_ref()
            .filter(|_| expects_json)
            .and_then(|text| read_json(text.as_str()?).ok().map(|json| Value::from(Serde(json))));
        let json = parsed.or_else(|| field("json"));
        Self { state: State::Succeeded, output: Some(output), text, json, ..Self::default() }
    }

    pub(super) fn failed(error: &str) -> Self {
        Self { state: State::Failed, error: Some(Value::from(error)), ..Self::default() }
    }

    /// The same after a failure that it makes up for.
    pub(super) fn instead_of(self, error: Option<Value>) -> Self {
        Self { state: State::Failed, error, ..self }
    }

    /// Of a whole list: its texts in one, its JSON and its outputs as lists.
    pub(super) fn all(items: &[Value]) -> Self {
        let each = |name| {
            let found = items.iter().filter_map(move |item| item.get_attr(name).ok());
            found.filter(|value| !value.is_undefined()).collect::<Vec<Value>>()
        };
        let (texts, jsons) = (each("text"), each("json"));
        let parts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
        // With nothing in it, a list is empty text and an empty list.
        let is_there = |found: usize| found > 0 || items.is_empty();
        Self {
            state: State::Succeeded,
            output: Some(list(each("output"))),
            text: is_there(parts.len()).then(|| Value::from(parts.join(TEXT_GAP))),
            json: is_there(jsons.len()).then(|| list(jsons)),
            items: Some(list(items.to_vec())),
            ..Self::default()
        }
    }

    /// The output of a run that says no other: `{"text", "json"?}`.
    pub(super) fn summary(&self) -> Value {
        let fields = [("text", &self.text), ("json", &self.json)];
        Value::from_pairs(
            fields.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))),
        )
    }

    fn field(&self, name: &str) -> Option<Value> {
        match name {
            "state" => Some(Value::from(match self.state {
                State::Succeeded => "succeeded",
                State::Failed => "failed",
                State::Skipped => "skipped",
            })),
            "output" => self.output.clone(),
            "text" => self.text.clone(),
            "json" => self.json.clone(),
            "error" => self.error.clone(),
            "items" => self.items.clone(),
            "rounds" => self.rounds.clone(),
            "index" => self.index.map(Value::from),
            "item" => self.item.clone(),
            "task" => self.task.clone(),
            _ => None,
        }
    }
}

impl Object for Outcome {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.field(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.field(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let there = FIELDS.into_iter().filter(|name| self.field(name).is_some());
        Enumerator::Values(there.map(Value::from).collect())
    }
}

/// Results in a row, which grow while templates are shown them.
#[derive(Clone, Debug, Default)]
pub(super) struct List(pub(super) Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

/// A list for templates.
pub(super) fn list(values: Vec<Value>) -> Value {
    Value::from_object(List(values))
}
