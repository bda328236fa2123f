//! How steps end, and what that is to others.

use std::sync::Arc;

use super::definition::OnFailure;
use super::outcome::Outcome;
use super::problem::Problem;
use super::progress::{Fatal, Phase, Progress};
use super::scope::Scope;

impl Progress {
    /// A step has failed: what becomes of it. `task` is the number of the task that failed, and its
    /// key if another attempt could help.
    pub(super) fn fail(
        &mut self,
        i: usize,
        (number, key): (usize, Option<String>),
        why: &str,
        scope: &Scope,
    ) -> Result<(), Problem> {
        let workflow = Arc::clone(&self.workflow);
        let Some(step) = workflow.steps.get(i) else { return Ok(()) };
        match &step.on_failure {
            OnFailure::Fail => self.blame(i, number, key, why),
            OnFailure::Output(shape) => {
                let failed = Outcome::failed(why);
                let error = failed.error.clone();
                let rounds = scope.own("rounds").cloned();
                let scope = scope.and(i, failed).value();
                let output = shape.value(&workflow.templates, &scope)?;
                let outcome = Outcome::of(output, step.action.expects_json).instead_of(error);
                self.end(i, Outcome { rounds, ..outcome });
            }
            OnFailure::Step(by) => {
                Arc::make_mut(&mut self.results).set(i, Arc::new(Outcome::failed(why)));
                if let Some(run) = self.runs.get_mut(i) {
                    run.phase = Phase::Rescued;
                }
                self.met(*by);
            }
        }
        Ok(())
    }

    /// The run has failed.
    pub(super) fn blame(&mut self, i: usize, number: usize, key: Option<String>, why: &str) {
        let message = match (&key, self.workflow.steps.get(i)) {
            (Some(key), _) => format!("steps.{key}: {why}"),
            // No task has failed: the file has to be looked at.
            (None, step) => self.problem_at(step.map_or("", |step| &step.name), why),
        };
        self.fatal.insert((i, number), Fatal { message, key });
    }

    /// A step has ended, one way or the other: those that wait for it come nearer.
    pub(super) fn end(&mut self, i: usize, outcome: Outcome) {
        let workflow = Arc::clone(&self.workflow);
        let mut next = Some((i, outcome));
        while let Some((i, outcome)) = next.take() {
            let (Some(step), Some(run)) = (workflow.steps.get(i), self.runs.get_mut(i)) else {
                return;
            };
            let before = std::mem::replace(&mut run.phase, Phase::Ended);
            run.fresh = Vec::new();
            run.tasks.iter_mut().for_each(|task| task.end = None);
            self.left -= 1;
            if let OnFailure::Step(by) = &step.on_failure
                && !matches!(before, Phase::Rescued)
            {
                self.met(*by);
            }
            for waiting in &step.needed_by {
                self.met(*waiting);
            }
            if let Some(of) = step.rescues.filter(|of| self.is_rescued(*of)) {
                let error = self.results.get(of).and_then(|failed| failed.error.clone());
                next = Some((of, outcome.clone().instead_of(error)));
            }
            Arc::make_mut(&mut self.results).set(i, Arc::new(outcome));
        }
    }

    pub(super) fn is_rescued(&self, i: usize) -> bool {
        self.runs.get(i).is_some_and(|run| matches!(run.phase, Phase::Rescued))
    }

    /// One thing that a step waits for has happened.
    fn met(&mut self, i: usize) {
        let Some(run) = self.runs.get_mut(i) else { return };
        run.unmet = run.unmet.saturating_sub(1);
        if run.unmet == 0 {
            self.due.insert(i);
        }
    }
}
