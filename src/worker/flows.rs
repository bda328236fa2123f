//! Runs of workflows that this worker knows, and their advances.
//!
//! An advance is a short piece of work: take in which steps have ended, render those that are next.
//! What it needs to know of a run stays in memory from one advance to the next, as long as there is
//! room; what was dropped is told again by the broker.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;

use super::handlers::workflow::{Definitions, RunInput};
use super::runner::{outcome_of, panicked};
use crate::handler::{HandlerError, Registry};
use crate::protocol::link::{Done, Outcome, Seq};
use crate::protocol::steps::{Advance, StepEnd, StepNews, StepTask};
use crate::task::{ErrorKind, TaskError, TaskId};
use crate::workflow::{self, Ended, NewStep, Progress};

/// What the runs in memory may take together, by the size of what they were told.
const KNOWN_BYTES_MAX: u64 = 64 << 20;
/// What a run counts for on top of that.
const RUN_OVERHEAD_BYTES: u64 = 4096;

/// The runs in this worker's memory.
#[derive(Default)]
pub(super) struct Flows {
    runs: BTreeMap<Seq, Flow>,
    bytes: u64,
    /// Counts advances, to tell which run was used least lately.
    tick: u64,
    definitions: Definitions,
}

struct Flow {
    progress: Progress,
    bytes: u64,
    used: u64,
    /// Steps that began and have not ended.
    open: usize,
}

impl Flows {
    /// Makes an advance, whatever comes of it. A run may hold no more than `bytes_max`.
    pub(super) fn advance(
        &mut self,
        registry: &Registry,
        advance: Advance,
        bytes_max: u64,
    ) -> Done {
        let (run, began) = (advance.start.run, Instant::now());
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.take_in(advance).and_then(|()| self.go_on(run.seq, registry, bytes_max))
        }));
        let outcome = match outcome {
            Ok(Ok(outcome) | Err(outcome)) => outcome,
            Err(panic) => outcome_of(Err(panicked(panic.as_ref()))),
        };
        if !matches!(outcome, Outcome::Advanced { .. }) {
            self.forget(run.seq);
        }
        self.make_room(run.seq);
        let run_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Done { run, run_ms, outcome }
    }

    fn take_in(&mut self, advance: Advance) -> Result<(), Outcome> {
        let Advance { start, known, steps } = advance;
        let seq = start.run.seq;
        if !known {
            self.forget(seq);
            let flow = self.read(&start.input)?;
            self.bytes += flow.bytes;
            self.runs.insert(seq, flow);
        }
        let Some(flow) = self.runs.get_mut(&seq) else { return Err(Outcome::Forgotten) };
        let before = flow.bytes;
        let ended = steps.iter().filter(|step| step.end.is_some()).count();
        // Of a run that is told whole, those that have ended were never counted.
        flow.open = match known {
            true => flow.open.saturating_sub(ended),
            false => steps.len() - ended,
        };
        steps.into_iter().for_each(|step| flow.heard(step));
        self.bytes += flow.bytes - before;
        self.tick += 1;
        flow.used = self.tick;
        Ok(())
    }

    fn read(&mut self, input: &str) -> Result<Flow, Outcome> {
        let failed = |message: String| run_failed(message, Vec::new());
        let parsed: RunInput<'_> =
            serde_json::from_str(input).map_err(|error| failed(format!("input: {error}")))?;
        let workflow = self.definitions.read(parsed.workflow).map_err(failed)?;
        let inputs = workflow.check_inputs(&parsed.inputs).map_err(failed)?;
        let progress = Progress::new(Arc::clone(&workflow), inputs);
        let bytes = input.len() as u64 + RUN_OVERHEAD_BYTES;
        Ok(Flow { progress, bytes, used: 0, open: 0 })
    }

    fn go_on(&mut self, seq: Seq, registry: &Registry, bytes_max: u64) -> Result<Outcome, Outcome> {
        let Some(flow) = self.runs.get_mut(&seq) else { return Err(Outcome::Forgotten) };
        if flow.bytes > bytes_max {
            return Err(run_failed(
                format!(
                    "the run's definition, inputs and outputs have {} bytes together, more than \
                     input_bytes_max = {bytes_max}",
                    flow.bytes
                ),
                Vec::new(),
            ));
        }
        match flow.progress.advance(bytes_max) {
            workflow::Advance::Go(steps) => {
                let steps: Vec<StepTask> = steps
                    .into_iter()
                    .map(|step| task_of(step, &flow.progress, registry))
                    .collect::<Result<_, _>>()?;
                flow.open += steps.len();
                if flow.open == 0 {
                    let message = "it waits for nothing: a bug in forq".to_owned();
                    return Err(run_failed(message, Vec::new()));
                }
                Ok(Outcome::Advanced { steps })
            }
            workflow::Advance::Done { output } => Ok(Outcome::Succeeded {
                output: Box::<str>::from(output).into_string(),
                usage: None,
            }),
            workflow::Advance::Failed { message, blamed } => Err(run_failed(message, blamed)),
        }
    }

    fn forget(&mut self, seq: Seq) {
        if let Some(flow) = self.runs.remove(&seq) {
            self.bytes -= flow.bytes;
        }
    }

    /// Drops what was used least lately, but never the run of this advance.
    fn make_room(&mut self, but: Seq) {
        while self.bytes > KNOWN_BYTES_MAX {
            let others = self.runs.iter().filter(|(seq, _)| **seq != but);
            let Some(oldest) = others.min_by_key(|(_, flow)| flow.used).map(|(seq, _)| *seq) else {
                return;
            };
            self.forget(oldest);
        }
    }
}

impl Flow {
    fn heard(&mut self, step: StepNews) {
        let StepNews { key, end } = step;
        self.bytes += key.len() as u64;
        let Some(end) = end else {
            return self.progress.began(&key);
        };
        let ended = match end {
            StepEnd::Succeeded(output) => {
                self.bytes += output.len() as u64;
                match RawValue::from_string(output) {
                    Ok(output) => Ended::Succeeded(output),
                    Err(error) => Ended::Failed(format!("its output is not JSON: {error}")),
                }
            }
            StepEnd::Failed(message) => Ended::Failed(message),
        };
        self.progress.ended(&key, ended);
    }
}

/// A step as a task: checked by its handler, which says what it needs.
fn task_of(
    mut step: NewStep,
    progress: &Progress,
    registry: &Registry,
) -> Result<StepTask, Outcome> {
    if step.kind == "chat"
        && let Some(expect) = step.expect.take()
    {
        // A chat says so itself, since what it is cached under depends on it.
        step.input = with_expect(&step.input, &expect);
    }
    let needs = registry.needs(&step.kind, &step.input);
    let needs =
        needs.map_err(|error| run_failed(progress.problem_at(&step.key, &error), Vec::new()))?;
    Ok(StepTask {
        id: TaskId::new(),
        key: step.key,
        kind: step.kind,
        input: Box::<str>::from(step.input).into_string(),
        priority: step.priority,
        timeout_ms: step.timeout_ms,
        max_attempts: step.max_attempts,
        task_key: step.task_key,
        expect: step.expect.map(|expect| Box::<str>::from(expect).into_string()),
        needs,
    })
}

fn with_expect(input: &RawValue, expect: &RawValue) -> Box<RawValue> {
    let rest = input.get().trim_start().trim_start_matches('{');
    let text = format!("{{\"expect\":{},{rest}", expect.get());
    RawValue::from_string(text).unwrap_or_else(|_| input.to_owned())
}

fn run_failed(message: String, blamed: Vec<String>) -> Outcome {
    let error = HandlerError::of(ErrorKind::Handler, message, false);
    let error: TaskError = error.into_task_error();
    Outcome::RunFailed { error, blamed }
}
