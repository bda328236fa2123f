//! Steps that are repeated until they are content: `repeat`.

use std::sync::Arc;

use minijinja::Value;

use super::definition::{Form, Step};
use super::key;
use super::outcome::{List, Outcome};
use super::problem::Problem;
use super::progress::{Open, Phase, Progress};

impl Progress {
    /// Looks at the rounds that have ended, and begins the next one if there is to be one.
    pub(super) fn rounds(&mut self, i: usize, step: &Step) -> Result<(), Problem> {
        let Form::Repeat { until, max } = &step.form else { return Ok(()) };
        loop {
            let Some(run) = self.runs.get_mut(i) else { return Ok(()) };
            run.fresh.clear();
            let Phase::Open(Open::Rounds(rounds)) = &run.phase else { return Ok(()) };
            let number = rounds.0.len();
            let own = vec![
                ("round", Value::from(number + 1)),
                ("rounds", Value::from_dyn_object(Arc::clone(rounds))),
            ];
            let task = run.tasks.get_mut(number);
            let under_way = task.as_ref().is_some_and(|task| task.begun);
            let end = task.and_then(|task| task.end.take());
            let scope = self.scope(step, own);
            let outcome = match end {
                Some(Ok(output)) => Outcome::of(output, step.action.expects_json),
                Some(Err(why)) => {
                    let blamed = (number, Some(key::of(step, number)));
                    return self.fail(i, blamed, &why, &scope);
                }
                None if under_way => return Ok(()),
                None => return self.begin(i, number, &step.action, scope),
            };
            let scope = scope.and(i, outcome.clone());
            let content = match until {
                Some(until) => self.workflow.templates.value(until, &scope.value())?.is_true(),
                None => false,
            };
            let done = self.add_round(i, outcome.clone());
            if content || number + 1 >= *max {
                let rounds = Some(Value::from_dyn_object(done));
                self.end(i, Outcome { rounds, ..outcome });
                return Ok(());
            }
        }
    }

    fn add_round(&mut self, i: usize, outcome: Outcome) -> Arc<List> {
        match self.runs.get_mut(i).map(|run| &mut run.phase) {
            Some(Phase::Open(Open::Rounds(rounds))) => {
                Arc::make_mut(rounds).0.push(Value::from_object(outcome));
                Arc::clone(rounds)
            }
            _ => Arc::default(),
        }
    }
}
