//! What a template sees: the inputs, the results so far, and what is there for it alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::Object;

use super::outcome::Outcome;
use super::set::StepSet;

/// The results of the steps that have ended. A template borrows it; nothing is copied unless one
/// is still being rendered when the next step ends.
#[derive(Clone, Debug)]
pub(super) struct Results {
    by_name: Arc<BTreeMap<String, usize>>,
    outcomes: Vec<Option<Arc<Outcome>>>,
}

impl Results {
    pub(super) fn new(by_name: Arc<BTreeMap<String, usize>>) -> Self {
        let outcomes = vec![None; by_name.len()];
        Self { by_name, outcomes }
    }

    pub(super) fn get(&self, step: usize) -> Option<&Arc<Outcome>> {
        self.outcomes.get(step)?.as_ref()
    }

    pub(super) fn set(&mut self, step: usize, outcome: Arc<Outcome>) {
        if let Some(place) = self.outcomes.get_mut(step) {
            *place = Some(outcome);
        }
    }
}

/// What one template is rendered with.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) inputs: Value,
    pub(super) results: Arc<Results>,
    /// The steps that are shown. Others may have ended, too: but sooner or later than another time.
    pub(super) sees: StepSet,
    /// The step itself with its latest result.
    pub(super) itself: Option<(usize, Arc<Outcome>)>,
    /// Such as `item`.
    pub(super) own: Vec<(&'static str, Value)>,
}

impl Scope {
    /// The same with the step's own result.
    pub(super) fn and(&self, step: usize, outcome: Outcome) -> Self {
        Self { itself: Some((step, Arc::new(outcome))), ..self.clone() }
    }

    pub(super) fn own(&self, name: &str) -> Option<&Value> {
        self.own.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    pub(super) fn value(self) -> Value {
        Value::from_object(Root(Arc::new(self)))
    }
}

/// The names of the outermost level.
#[derive(Debug)]
struct Root(Arc<Scope>);

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        match key {
            "inputs" => Some(self.0.inputs.clone()),
            "steps" => Some(Value::from_object(Shown(Arc::clone(&self.0)))),
            _ => self.0.own(key).cloned(),
        }
    }
}

/// The variable `steps`.
#[derive(Debug)]
struct Shown(Arc<Scope>);

impl Object for Shown {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let scope = &self.0;
        let step = *scope.results.by_name.get(key)?;
        let outcome = match &scope.itself {
            Some((itself, outcome)) if *itself == step => outcome,
            _ if scope.sees.contains(step) => scope.results.get(step)?,
            _ => return None,
        };
        Some(Value::from_dyn_object(Arc::clone(outcome)))
    }
}
