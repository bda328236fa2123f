//! Runs of workflows: which worker makes an advance, and what it is told.

use std::collections::BTreeSet;

use tokio::task::spawn_local;

use crate::protocol::control::{Change, Refusal};
use crate::protocol::link::{Run, Start, ToWorker};
use crate::protocol::steps::{Advance, StepEnd, StepNews, StepTask};
use crate::task::{ErrorKind, TaskError, TaskId, TaskView};
use crate::worker::handlers::workflow::{self, RunInput};
use crate::workflow::Workflow;

use super::requests::Changes;
use super::runs::RunState;
use super::store::view;
use super::store::{AdvanceBy, Claimed, Facts, Next, Ord, Owner, Steps};
use super::{Core, Input, now_ms, rules};

/// What a step takes in a run's state besides its output, at most: its key, and how it ended.
const STEP_OVERHEAD_BYTES: u64 = 128;

/// The worker that made a run's last advance, and has it in its memory.
pub(crate) struct Home {
    serial: u64,
    /// It has heard of the run's steps up to this place in the order of their ends.
    heard: Ord,
}

impl Core {
    /// Who advances the run that this end wakes: the worker that knows it, or else the one that has
    /// just ended its step. It has a slot for it, since an advance takes no time; nothing is taken
    /// from the queue for it. Counts it as given.
    pub(super) fn advance_by(&mut self, run: Run, serial: u64, next: &Next) -> Option<AdvanceBy> {
        let facts = &self.runs.get(&run.seq)?.facts;
        let woken = match next {
            Next::Advanced { .. } => run.seq,
            next if next.state().is_final() => facts.parent?,
            _ => return None,
        };
        if !self.phase.dispatches() {
            return None;
        }
        let home = self.homes.get(&woken).filter(|home| self.advances(home.serial));
        let (serial, heard) = match home {
            Some(home) => (home.serial, Some(home.heard)),
            None => (serial, None),
        };
        if !self.advances(serial) {
            return None;
        }
        let worker = self.workers.get_mut(&serial)?;
        worker.in_flight += 1;
        let owner = Owner { instance: self.instance, serial };
        Some(AdvanceBy { owner, worker_pid: worker.pid, heard })
    }

    fn advances(&self, serial: u64) -> bool {
        let worker = self.workers.get(&serial).filter(|worker| worker.takes_tasks());
        let link = worker.filter(|worker| !worker.solo).and_then(|worker| worker.link.as_ref());
        link.is_some_and(|link| link.protocol >= 3 && link.reads())
    }

    /// An end is committed that was to wake a run for this worker.
    pub(super) fn advance(&mut self, serial: u64, claimed: Option<Box<Claimed>>) {
        // It was awake already, or it has ended.
        let Some(claimed) = claimed else { return self.free_slot(serial) };
        let Claimed { id, kind, input, timeout_ms, facts, steps, .. } = *claimed;
        let run = facts.run;
        self.queues.runs(&facts.queue);
        self.run_ids.insert(id, run.seq);
        self.runs.insert(run.seq, RunState::new(facts, serial, 0));
        if let Some(steps) = steps {
            self.send_advance(serial, Start { run, id, kind, input, timeout_ms }, steps);
        }
    }

    /// Tells a worker to advance a run that it has been given.
    pub(super) fn send_advance(&mut self, serial: u64, start: Start, steps: Steps) {
        let run = start.run;
        for ready in &steps.resumed {
            self.make_ready(ready);
        }
        let bytes = start.input.len() as u64 + steps.news.iter().map(bytes_of).sum::<u64>();
        let limit = self.config.queue.input_bytes_max;
        if bytes > limit {
            self.free_slot(serial);
            return self.end(run, serial, too_large(bytes, limit));
        }
        let linked = self.workers.get(&serial).and_then(|worker| worker.link.as_ref());
        match linked {
            None => self.put_back(run),
            Some(link) if link.protocol < 3 => self.put_off(run),
            Some(link) => {
                let Steps { known, news, heard, .. } = steps;
                link.outbox.put(&ToWorker::Advance(Advance { start, known, steps: news }));
                self.homes.insert(run.seq, Home { serial, heard });
            }
        }
    }

    /// A task that came to a worker which does not know such tasks.
    pub(super) fn put_off(&mut self, run: Run) {
        let Some(state) = self.runs.get(&run.seq).filter(|state| !state.ending) else { return };
        let (serial, next) = (state.serial, rules::after_put_off(&state.facts, now_ms()));
        self.free_slot(serial);
        self.end(run, serial, next);
    }

    pub(super) fn after_run_failed(
        &self,
        facts: &Facts,
        error: TaskError,
        blamed: Vec<String>,
    ) -> Next {
        let heard = self.homes.get(&facts.run.seq).map_or(Ord::MAX, |home| home.heard);
        Next::RunFailed { error, blamed, heard }
    }

    /// What an advance brought forth goes to the store.
    pub(super) fn after_advance(&self, mut steps: Vec<StepTask>) -> Next {
        for step in &mut steps {
            if !super::reuse::keeps(&self.config, &step.needs.gate) {
                step.needs.cache_key = None;
            }
            let agent = step.needs.agent.as_ref().and_then(|agent| self.config.agents.get(agent));
            step.priority = step.priority.or(agent.and_then(|agent| agent.priority));
        }
        Next::Advanced { steps, defaults: self.defaults() }
    }
}

impl Core {
    /// Puts a run back to a step: that and all that comes of it is run again.
    pub(super) fn retry_from(&mut self, id: TaskId, step: String, changes: Changes) {
        self.read(move |core| {
            let (reader, inputs) = (core.reader.clone(), core.inputs.clone());
            spawn_local(async move {
                let task = reader.ask(move |db| view::task(db, id)).await;
                let then = move |core: &mut Core| core.looked_to_retry(id, &step, changes, task);
                let _ = inputs.send(Input::Then(Box::new(then)));
            });
        });
    }

    fn looked_to_retry(
        &mut self,
        id: TaskId,
        step: &str,
        changes: Changes,
        task: Result<Option<TaskView>, Refusal>,
    ) {
        let task = match task {
            Ok(Some(task)) => task,
            Ok(None) => {
                return changes.add(Change { id, state: None, changed: false, reason: None });
            }
            Err(refusal) => return changes.refuse(refusal),
        };
        match steps_from(&task, step) {
            Ok(redo) => self.put_back_by_hand(id, Some(redo), changes),
            Err(reason) => {
                let (state, reason) = (Some(task.state), Some(reason));
                changes.add(Change { id, state, changed: false, reason });
            }
        }
    }
}

/// The names of the steps that are run again from this one on.
fn steps_from(task: &TaskView, step: &str) -> Result<BTreeSet<String>, String> {
    let input = task.input.as_deref().filter(|_| task.kind == workflow::KIND);
    let input = input.ok_or("it is no workflow: it has no steps")?;
    let run: RunInput<'_> = serde_json::from_str(input.get()).map_err(|e| e.to_string())?;
    let workflow = Workflow::read(run.workflow).map_err(|_| "its definition cannot be read")?;
    workflow.downstream(step).ok_or_else(|| format!("it has no step '{step}'"))
}

fn bytes_of(step: &StepNews) -> u64 {
    let bytes = match &step.end {
        Some(StepEnd::Succeeded(text) | StepEnd::Failed(text)) => text.len(),
        None => 0,
    };
    bytes as u64 + STEP_OVERHEAD_BYTES
}

fn too_large(bytes: u64, limit: u64) -> Next {
    let message = format!(
        "the run's definition, inputs and outputs have {bytes} bytes together, more than \
         input_bytes_max = {limit}"
    );
    let error = TaskError { kind: ErrorKind::Input, message, retryable: false, cause: None };
    Next::RunFailed { error, blamed: Vec::new(), heard: Ord::MAX }
}
