//! Steps of many tasks: `for_each` and `plan`.

use std::sync::Arc;

use minijinja::Value;
use minijinja::value::ValueKind;

use super::definition::{Action, Fan, Form, OnFailure, Step};
use super::key;
use super::outcome::{List, Outcome};
use super::problem::Problem;
use super::progress::{Open, Phase, Progress, TaskRun};
use super::scope::Scope;
use super::shape::Shape;

/// The tasks of one step.
#[derive(Debug)]
pub(super) struct FanRun {
    list: Arc<Vec<Value>>,
    /// Results by number; of those in sequence, there are only the ones so far.
    results: Arc<List>,
    /// All before this one have begun.
    next: usize,
    /// Tasks that have begun and whose end was not looked at.
    open: usize,
    /// Tasks whose end was looked at.
    ended: usize,
    /// The first that failed for good, and why: then nothing more begins.
    failed: Option<(usize, String)>,
}

impl FanRun {
    pub(super) fn began(&mut self, number: usize) {
        self.open += usize::from(number < self.list.len());
    }

    fn put(&mut self, number: usize, outcome: Outcome) {
        let results = &mut Arc::make_mut(&mut self.results).0;
        if results.len() <= number {
            results.resize(number + 1, Value::UNDEFINED);
        }
        if let Some(place) = results.get_mut(number) {
            *place = Value::from_object(outcome);
        }
    }
}

/// The tasks that an expression gives; or why it gives none.
pub(super) fn tasks(list: &Value, step: &Step, max: usize) -> Result<Vec<Value>, String> {
    let what = match &step.form {
        Form::Plan { .. } => "plan",
        _ => "for_each",
    };
    let is_list = matches!(list.kind(), ValueKind::Seq | ValueKind::Iterable);
    let items = list.try_iter().ok().filter(|_| is_list);
    let Some(items) = items else { return Err(format!("{what} gives a {}, no list", list.kind())) };
    let items: Vec<Value> = items.take(max + 1).collect();
    if items.len() > max {
        let count = list.len().map_or_else(|| format!("more than {max}"), |len| len.to_string());
        return Err(format!("{what} gives {count} items, and max is {max}"));
    }
    if let Form::Plan { actions, .. } = &step.form {
        for (i, task) in items.iter().enumerate() {
            let action = action_of(task).ok_or_else(|| {
                format!("task {i} of the plan is no table with an action: {}", short(task))
            })?;
            if !actions.contains_key(&*action) {
                let known: Vec<&str> = actions.keys().map(String::as_str).collect();
                let known = known.join(", ");
                return Err(format!(
                    "task {i} of the plan has the action {action:?}, not one of {known}"
                ));
            }
        }
    }
    Ok(items)
}

fn action_of(task: &Value) -> Option<Arc<str>> {
    let action = task.get_attr("action").ok()?;
    action.to_str()
}

fn short(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    value.to_string().chars().take(CHARS_MAX).collect()
}

impl Progress {
    /// Begins with what is known of tasks that had begun before the list was.
    pub(super) fn open_fan(&mut self, i: usize, list: Vec<Value>) -> FanRun {
        let open = self.runs.get_mut(i).map_or(0, |run| {
            run.tasks.resize(list.len(), TaskRun::default());
            run.fresh.sort_unstable();
            run.tasks.iter().filter(|task| task.begun).count()
        });
        FanRun {
            list: Arc::new(list),
            results: Arc::default(),
            next: 0,
            open,
            ended: 0,
            failed: None,
        }
    }

    fn fan_run(&mut self, i: usize) -> Option<&mut FanRun> {
        match &mut self.runs.get_mut(i)?.phase {
            Phase::Open(Open::Fan(fan)) => Some(fan),
            _ => None,
        }
    }

    /// Looks at the tasks that have ended, and begins as many as there is room for.
    pub(super) fn fan(&mut self, i: usize, step: &Step) -> Result<(), Problem> {
        let (Form::ForEach(bounds) | Form::Plan { fan: bounds, .. }) = &step.form else {
            return Ok(());
        };
        let fresh = self.runs.get_mut(i).map(|run| std::mem::take(&mut run.fresh));
        for number in fresh.unwrap_or_default() {
            self.item_ended(i, step, number)?;
        }
        let Some(fan) = self.fan_run(i) else { return Ok(()) };
        if let Some((number, why)) = &fan.failed {
            // What runs is waited for, so that it is the same failure whoever comes first.
            if fan.open > 0 {
                return Ok(());
            }
            let (number, why) = (*number, why.clone());
            let blamed = (number, Some(key::of(step, number)));
            return self.fail(i, blamed, &why, &self.scope(step, Vec::new()));
        }
        if fan.ended == fan.list.len() {
            let results = Arc::clone(&fan.results);
            self.end(i, Outcome::all(&results.0));
            return Ok(());
        }
        self.fill(i, step, bounds)
    }

    /// Begins tasks while fewer than allowed are under way.
    fn fill(&mut self, i: usize, step: &Step, bounds: &Fan) -> Result<(), Problem> {
        loop {
            let Some(run) = self.runs.get_mut(i) else { return Ok(()) };
            let Phase::Open(Open::Fan(fan)) = &mut run.phase else { return Ok(()) };
            while run.tasks.get(fan.next).is_some_and(|task| task.begun) {
                fan.next += 1;
            }
            if fan.open >= bounds.concurrency || fan.next >= fan.list.len() {
                return Ok(());
            }
            let number = fan.next;
            let Some((action, _)) = self.work_of(i, step, number) else { return Ok(()) };
            let scope = self.item_scope(i, step, number);
            self.begin(i, number, action, scope)?;
            if !self.has_begun(i, number) {
                return Ok(());
            }
        }
    }

    fn has_begun(&self, i: usize, number: usize) -> bool {
        self.runs.get(i).and_then(|run| run.tasks.get(number)).is_some_and(|task| task.begun)
    }

    fn item_ended(&mut self, i: usize, step: &Step, number: usize) -> Result<(), Problem> {
        let Some(run) = self.runs.get_mut(i) else { return Ok(()) };
        if matches!(&run.phase, Phase::Open(Open::Fan(fan)) if number >= fan.list.len()) {
            return Ok(());
        }
        let Some(end) = run.tasks.get_mut(number).and_then(|task| task.end.take()) else {
            return Ok(());
        };
        let Some((action, fallback)) = self.work_of(i, step, number) else { return Ok(()) };
        let outcome = match (end, fallback) {
            (Ok(output), _) => Some(Outcome::of(output, action.expects_json)),
            (Err(why), Some(shape)) => {
                let failed = Outcome::failed(&why);
                let error = failed.error.clone();
                let mut scope = self.item_scope(i, step, number);
                if matches!(step.form, Form::ForEach(_)) {
                    scope = scope.and(i, failed);
                }
                let output = shape.value(&self.workflow.templates, &scope.value())?;
                Some(Outcome::of(output, action.expects_json).instead_of(error))
            }
            (Err(why), None) => {
                self.item_failed(i, step, number, why);
                None
            }
        };
        let is_plan = matches!(step.form, Form::Plan { .. });
        let Some(fan) = self.fan_run(i) else { return Ok(()) };
        fan.open = fan.open.saturating_sub(1);
        fan.ended += 1;
        if let Some(outcome) = outcome {
            let made_of = fan.list.get(number).cloned();
            let (item, task) = if is_plan { (None, made_of) } else { (made_of, None) };
            fan.put(number, Outcome { index: Some(number), item, task, ..outcome });
        }
        Ok(())
    }

    fn item_failed(&mut self, i: usize, step: &Step, number: usize, why: String) {
        if matches!(step.on_failure, OnFailure::Fail) {
            self.blame(i, number, Some(key::of(step, number)), &why);
        }
        let Some(fan) = self.fan_run(i) else { return };
        if fan.failed.as_ref().is_none_or(|(first, _)| number < *first) {
            fan.failed = Some((number, why));
        }
    }

    /// What the task with this number does, and its output if it fails.
    fn work_of<'a>(
        &self,
        i: usize,
        step: &'a Step,
        number: usize,
    ) -> Option<(&'a Action, Option<&'a Shape>)> {
        let fallback = match &step.on_failure {
            OnFailure::Output(shape) => Some(shape),
            _ => None,
        };
        let Form::Plan { actions, .. } = &step.form else { return Some((&step.action, fallback)) };
        let Phase::Open(Open::Fan(fan)) = &self.runs.get(i)?.phase else { return None };
        let planned = actions.get(&*action_of(fan.list.get(number)?)?)?;
        Some((&planned.action, planned.fallback.as_ref()))
    }

    fn item_scope(&self, i: usize, step: &Step, number: usize) -> Scope {
        let mut own = vec![("index", Value::from(number))];
        if let Some(Phase::Open(Open::Fan(fan))) = self.runs.get(i).map(|run| &run.phase) {
            let item = fan.list.get(number).cloned().unwrap_or_default();
            match step.form {
                Form::Plan { in_order, .. } => {
                    own.push(("task", item));
                    if in_order {
                        own.push(("done", Value::from_dyn_object(Arc::clone(&fan.results))));
                    }
                }
                _ => own.push(("item", item)),
            }
        }
        self.scope(step, own)
    }
}
