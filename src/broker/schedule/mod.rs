//! Tasks that the clock submits.
//!
//! * `rhythm`: when their times are, pure; `plan`: which is due, pure.
//!
//! A run is a task like any other, with a key of its schedule and its time: however often brokers
//! die over it, a time runs once. The time is remembered in the step that stores the task. A run
//! expires at the next time, and its lane holds one at a time: so nothing piles up.

mod plan;
mod rhythm;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::pending::Pending;
use super::store::view::rfc3339;
use super::store::writer::Op;
use super::store::{Accepted, LastRun};
use super::{Core, now_ms};
use crate::protocol::control::{Refusal, RefusalKind};
use crate::task::NewTask;

pub(crate) use plan::{DueRun, Plans, Ran};

impl Core {
    /// Finds out which schedules never run, since their tasks are no good, and says so.
    pub(super) fn check_schedules(&mut self) {
        let mut faults = BTreeMap::new();
        for plan in self.schedules.iter() {
            let name = &plan.schedule.name;
            let (schedule, at_ms, next_at_ms) = (plan.schedule.clone(), 0, None);
            let task = task_of(&DueRun { schedule, at_ms, next_at_ms });
            if let Err(reason) = task.and_then(|mut task| self.accept(&mut task)) {
                tracing::error!("the schedule '{name}' never runs: {reason}");
                faults.insert(name.clone(), reason);
            }
        }
        self.schedules.set_faults(faults);
    }

    /// A new configuration is in force.
    pub(super) fn reschedule(&mut self) {
        for name in self.schedules.configure(&self.config.schedule, now_ms()) {
            self.forget_schedule(name);
        }
        self.check_schedules();
    }

    /// Should it come back one day, it has missed nothing.
    pub(super) fn forget_schedule(&mut self, name: String) {
        self.store(Op::ForgetRuns { schedule: name }, Pending::Remember);
    }

    /// Submits what is due.
    pub(super) fn run_schedules(&mut self) {
        if self.phase.refusal().is_some() {
            return;
        }
        for due in self.schedules.due(now_ms()) {
            let at_ms = due.at_ms;
            let task = task_of(&due);
            let name = due.schedule.name;
            match task.and_then(|mut task| self.accept(&mut task).map(|()| task)) {
                Ok(task) => {
                    self.inserts_pending += 1;
                    let insert = self.insert_of(vec![task], None);
                    let run = LastRun { schedule: name.clone(), at_ms };
                    self.store(Op::InsertRun { insert, run }, Pending::Run { name, at_ms });
                }
                Err(reason) => {
                    tracing::error!("a run of the schedule '{name}' is skipped: {reason}");
                    self.schedules.ran(&name, at_ms, Ran::Never, now_ms());
                }
            }
        }
    }

    /// What became of a run.
    pub(super) fn run_inserted(
        &mut self,
        name: &str,
        at_ms: i64,
        result: Result<Vec<Accepted>, Refusal>,
    ) {
        self.inserts_pending -= 1;
        let ran = match &result {
            Ok(_) => Ran::Accepted,
            Err(refusal) if refusal.kind == RefusalKind::Unavailable => Ran::Later,
            Err(_) => Ran::Never,
        };
        let is_news = self.schedules.ran(name, at_ms, ran, now_ms());
        match result {
            Ok(accepted) => self.take_in_accepted(&accepted),
            Err(Refusal { message, .. }) if is_news => {
                tracing::warn!("the schedule '{name}' was refused a run: {message}");
            }
            Err(_) => {}
        }
    }

    /// When the clock has something to submit.
    pub(super) fn schedules_wake_at(&self) -> Option<i64> {
        self.schedules.wakes_at().filter(|_| self.phase.refusal().is_none())
    }

    /// The schedules, for `forq info`.
    pub(super) fn tell_schedules(&self) -> Vec<Value> {
        let told = self.schedules.iter().map(|plan| {
            let next_at_ms = plan.next_at_ms.filter(|_| plan.fault.is_none());
            json!({
                "name": plan.schedule.name,
                "next_at": next_at_ms.map(rfc3339),
                "last_at": plan.last_at_ms.map(rfc3339),
                "error": plan.fault,
            })
        });
        told.collect()
    }
}

/// The task of a run.
fn task_of(due: &DueRun) -> Result<NewTask, String> {
    let schedule = &due.schedule;
    let input = serde_json::value::to_raw_value(&schedule.input)
        .map_err(|error| format!("its input is no JSON: {error}"))?;
    let name = format!("schedule:{}", schedule.name);
    Ok(NewTask {
        key: Some(format!("{name}:{}", rfc3339(due.at_ms))),
        lane: Some(name),
        queue: schedule.queue.clone(),
        priority: schedule.priority,
        expires_at_ms: due.next_at_ms,
        ..NewTask::new(schedule.kind.clone(), input)
    })
}
