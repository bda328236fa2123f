//! One run: what has begun, what has ended, and so what comes next. Pure, and the same whenever it
//! is worked out: whoever has lost it gives a new one the same beginnings and ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::Map;
use serde_json::value::RawValue;

use super::Workflow;
use super::definition::{Action, Form, Step};
use super::fan::{self, FanRun};
use super::graph;
use super::key;
use super::limits::{KEY_BYTES_MAX, TASKS_MAX};
use super::outcome::{List, Outcome, State};
use super::problem::Problem;
use super::scope::{Results, Scope};
use super::set::StepSet;
use super::shape::{push_json, raw};
use super::words::{Advance, Ended, NewStep};

/// A run's state in memory.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(super) workflow: Arc<Workflow>,
    inputs: Value,
    pub(super) results: Arc<Results>,
    pub(super) runs: Vec<StepRun>,
    /// Steps to look at: what they wait for has happened.
    pub(super) due: BTreeSet<usize>,
    /// Steps that have not ended.
    pub(super) left: usize,
    /// Tasks that have begun.
    begun: usize,
    /// Tasks to begin, in this advance.
    pub(super) new: Vec<NewStep>,
    /// What these take, and may take.
    new_bytes: u64,
    bytes_max: u64,
    /// Failures that end the run, by step and number of its task.
    pub(super) fatal: BTreeMap<(usize, usize), Fatal>,
}

#[derive(Debug)]
pub(super) struct Fatal {
    pub(super) message: String,
    pub(super) key: Option<String>,
}

/// How a step is coming along.
#[derive(Debug)]
pub(super) struct StepRun {
    pub(super) phase: Phase,
    /// What it still waits for.
    pub(super) unmet: usize,
    /// Its tasks, by number.
    pub(super) tasks: Vec<TaskRun>,
    /// The numbers of tasks that have ended and were not looked at yet.
    pub(super) fresh: Vec<usize>,
}

#[derive(Debug)]
pub(super) enum Phase {
    Waiting,
    Open(Open),
    /// It has failed, and another step does its work.
    Rescued,
    Ended,
}

/// A step whose tasks run.
#[derive(Debug)]
pub(super) enum Open {
    Once,
    Fan(FanRun),
    Rounds(Arc<List>),
}

#[derive(Clone, Debug, Default)]
pub(super) struct TaskRun {
    pub(super) begun: bool,
    pub(super) ended: bool,
    /// How it ended, until that is used.
    pub(super) end: Option<Result<Value, String>>,
}

impl Progress {
    /// A run that begins, with inputs that [`Workflow::check_inputs`] gave.
    pub(crate) fn new(workflow: Arc<Workflow>, inputs: Map<String, serde_json::Value>) -> Self {
        let run = |step: &Step| StepRun {
            phase: Phase::Waiting,
            unmet: step.needs.len() + usize::from(step.rescues.is_some()),
            tasks: Vec::new(),
            fresh: Vec::new(),
        };
        let runs: Vec<StepRun> = workflow.steps.iter().map(run).collect();
        let ready = runs.iter().enumerate().filter(|(_, run)| run.unmet == 0);
        Self {
            inputs: Value::from(Serde(inputs)),
            results: Arc::new(Results::new(Arc::clone(&workflow.by_name))),
            due: ready.map(|(i, _)| i).collect(),
            left: runs.len(),
            begun: 0,
            new: Vec::new(),
            new_bytes: 0,
            bytes_max: u64::MAX,
            fatal: BTreeMap::new(),
            runs,
            workflow,
        }
    }

    /// Says that a task with this key exists. Keys that the workflow cannot have are ignored.
    pub(crate) fn began(&mut self, key: &str) {
        if let Some((step, number)) = key::find(&self.workflow, key) {
            self.mark(step, number);
        }
    }

    /// Says how the task with this key has ended. What was said before stands.
    pub(crate) fn ended(&mut self, key: &str, end: Ended) {
        let Some((step, number)) = key::find(&self.workflow, key) else { return };
        self.mark(step, number);
        let Some(run) = self.runs.get_mut(step) else { return };
        let Some(task) = run.tasks.get_mut(number).filter(|task| !task.ended) else { return };
        task.ended = true;
        task.end = Some(match end {
            Ended::Succeeded(output) => serde_json::from_str(output.get())
                .map_err(|error| format!("its output cannot be read: {error}")),
            Ended::Failed(message) => Err(message),
        });
        if matches!(run.phase, Phase::Waiting | Phase::Open(_)) {
            run.fresh.push(number);
        }
        if matches!(run.phase, Phase::Open(_)) {
            self.due.insert(step);
        }
    }

    /// Notes that a task has begun; whether it is new.
    fn mark(&mut self, step: usize, number: usize) {
        let Some(run) = self.runs.get_mut(step) else { return };
        if run.tasks.len() <= number {
            run.tasks.resize(number + 1, TaskRun::default());
        }
        let Some(task) = run.tasks.get_mut(number).filter(|task| !task.begun) else { return };
        task.begun = true;
        self.begun += 1;
        if let Phase::Open(Open::Fan(fan)) = &mut run.phase {
            fan.began(number);
        }
    }

    /// Works out what comes next. The tasks that it gives count as begun. Takes time for what has
    /// changed since the last time, not for how large the run is. The run fails if the tasks take
    /// more than `bytes_max`, before they do.
    pub(crate) fn advance(&mut self, bytes_max: u64) -> Advance {
        (self.new_bytes, self.bytes_max) = (0, bytes_max);
        while let Some(step) = self.due.pop_first() {
            if let Err(problem) = self.turn(step) {
                let message = self.workflow.problem_at(&problem);
                self.fatal.insert((step, 0), Fatal { message, key: None });
            }
        }
        let new = std::mem::take(&mut self.new);
        if let Some(first) = self.fatal.values().next() {
            let message = first.message.clone();
            let blamed = self.fatal.values().filter_map(|fatal| fatal.key.clone()).collect();
            return Advance::Failed { message, blamed };
        }
        if self.left > 0 {
            return Advance::Go(new);
        }
        match self.output() {
            Ok(output) => Advance::Done { output },
            Err(problem) => {
                let message = self.workflow.problem_at(&problem);
                Advance::Failed { message, blamed: Vec::new() }
            }
        }
    }

    fn turn(&mut self, i: usize) -> Result<(), Problem> {
        let workflow = Arc::clone(&self.workflow);
        let (Some(step), Some(run)) = (workflow.steps.get(i), self.runs.get(i)) else {
            return Ok(());
        };
        if matches!(run.phase, Phase::Waiting) {
            self.open(i, step)?;
        }
        match self.runs.get(i).map(|run| &run.phase) {
            Some(Phase::Open(Open::Once)) => self.once(i, step),
            Some(Phase::Open(Open::Fan(_))) => self.fan(i, step),
            Some(Phase::Open(Open::Rounds(_))) => self.rounds(i, step),
            _ => Ok(()),
        }
    }

    /// Begins a step that waits for nothing more, or skips it.
    fn open(&mut self, i: usize, step: &Step) -> Result<(), Problem> {
        if step.rescues.is_some_and(|of| !self.is_rescued(of)) {
            self.end(i, Outcome::default());
            return Ok(());
        }
        let scope = self.scope(step, Vec::new()).value();
        if let Some(when) = &step.when
            && !self.workflow.templates.value(when, &scope)?.is_true()
        {
            self.end(i, Outcome::default());
            return Ok(());
        }
        let open = match &step.form {
            Form::Once => Open::Once,
            Form::Repeat { .. } => Open::Rounds(Arc::default()),
            Form::ForEach(fan) | Form::Plan { fan, .. } => {
                let list = self.workflow.templates.value(&fan.list, &scope)?;
                match fan::tasks(&list, step, fan.max) {
                    Ok(list) => Open::Fan(self.open_fan(i, list)),
                    Err(why) => {
                        return self.fail(i, (0, None), &why, &self.scope(step, Vec::new()));
                    }
                }
            }
        };
        if let Some(run) = self.runs.get_mut(i) {
            run.phase = Phase::Open(open);
        }
        Ok(())
    }

    fn once(&mut self, i: usize, step: &Step) -> Result<(), Problem> {
        let scope = self.scope(step, Vec::new());
        let Some(run) = self.runs.get_mut(i) else { return Ok(()) };
        run.fresh.clear();
        match run.tasks.get_mut(0) {
            Some(task) if task.ended => match task.end.take() {
                Some(Ok(output)) => {
                    self.end(i, Outcome::of(output, step.action.expects_json));
                    Ok(())
                }
                Some(Err(why)) => self.fail(i, (0, Some(step.name.clone())), &why, &scope),
                None => Ok(()),
            },
            Some(task) if task.begun => Ok(()),
            _ => self.begin(i, 0, &step.action, scope),
        }
    }

    /// Begins a task of a step.
    pub(super) fn begin(
        &mut self,
        i: usize,
        number: usize,
        action: &Action,
        scope: Scope,
    ) -> Result<(), Problem> {
        let workflow = Arc::clone(&self.workflow);
        let Some(step) = workflow.steps.get(i) else { return Ok(()) };
        if self.begun >= TASKS_MAX {
            let why = format!("a run has at most {TASKS_MAX} tasks");
            let message = self.problem_at(&step.name, &why);
            self.fatal.insert((i, number), Fatal { message, key: None });
            return Ok(());
        }
        let scope = scope.value();
        let new = NewStep {
            key: key::of(step, number),
            kind: action.kind.clone(),
            input: action.input.json(&workflow.templates, &scope)?,
            priority: action.priority,
            timeout_ms: action.timeout_ms,
            max_attempts: action.attempts,
            task_key: self.task_key(step, &scope)?,
            expect: action.expect.clone(),
        };
        self.new_bytes += new.bytes();
        if self.new_bytes > self.bytes_max {
            let message = self.too_much();
            self.fatal.insert((i, number), Fatal { message, key: None });
            return Ok(());
        }
        self.new.push(new);
        self.mark(i, number);
        Ok(())
    }

    fn task_key(&self, step: &Step, scope: &Value) -> Result<Option<String>, Problem> {
        let Some(key) = &step.key else { return Ok(None) };
        let key = self.workflow.templates.text(key, scope)?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let message = format!("must have 1 to {KEY_BYTES_MAX} bytes, and has {}", key.len());
            return Err(Problem::new(format!("steps.{}.key", step.name), message));
        }
        Ok(Some(key))
    }

    fn too_much(&self) -> String {
        let steps = self.new.len() + 1;
        format!(
            "its next steps are too large: {steps} of them have {} bytes together, more than \
             input_bytes_max = {}: a lower `concurrency` starts fewer at once",
            self.new_bytes, self.bytes_max
        )
    }

    /// What is wrong with a step or a task of it, by its key, and where that stands in the file.
    pub(crate) fn problem_at(&self, key: &str, message: &str) -> String {
        self.workflow.problem_at(&Problem::new(format!("steps.{key}"), message))
    }

    /// What a step's templates see.
    pub(super) fn scope(&self, step: &Step, own: Vec<(&'static str, Value)>) -> Scope {
        Scope {
            inputs: self.inputs.clone(),
            results: Arc::clone(&self.results),
            sees: step.sees,
            itself: None,
            own,
        }
    }

    fn output(&self) -> Result<Box<RawValue>, Problem> {
        let workflow = &self.workflow;
        if let Some(output) = &workflow.output {
            let scope = Scope {
                inputs: self.inputs.clone(),
                results: Arc::clone(&self.results),
                sees: StepSet::all(),
                itself: None,
                own: Vec::new(),
            };
            return output.json(&workflow.templates, &scope.value());
        }
        let ran = |i| self.results.get(i).is_some_and(|it| it.state != State::Skipped);
        let last = graph::last_leaf(&workflow.steps, ran).and_then(|i| self.results.get(i));
        let summary = last.map(|outcome| outcome.summary());
        let mut text = String::new();
        push_json(&summary.unwrap_or_else(|| Outcome::default().summary()), &mut text)?;
        raw(text)
    }
}
