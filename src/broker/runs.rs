//! What runs: from the claim to the end of it.

use std::sync::Arc;

use crate::handler::Needs;
use crate::protocol::calls::{Begin, CallOutcome, Grant, Settled};
use crate::protocol::link::{Done, Outcome, Run, Seq, Start, TaskEvent, ToWorker};
use crate::protocol::steps::BeginWith;
use crate::task::{ErrorKind, TaskError, TaskId};

use super::cache::Answer;
use super::events::EventLog;
use super::pending::Pending;
use super::rules::{self, Backoff};
use super::store::writer::Op;
use super::store::{Claimed, End, Facts, Moved, Next, Owner, Ready};
use super::{Core, now_ms};

/// One attempt that was claimed and has not ended.
pub(crate) struct RunState {
    pub(crate) facts: Facts,
    /// The worker's serial.
    pub(crate) serial: u64,
    /// Its end is on its way to the store; whatever comes now is too late.
    pub(crate) ending: bool,
    pub(crate) events: EventLog,
    pub(crate) priority: u8,
    /// The permits that it holds.
    pub(crate) permits: Vec<u64>,
    /// Its calls that have ended.
    pub(crate) calls: Vec<Settled>,
    /// What it needed; absent if it was given an answer, or began under an earlier broker.
    pub(crate) needs: Option<Needs>,
    /// The answer that it was given.
    pub(crate) reused: Option<Arc<Answer>>,
    /// Its own answer, for others.
    pub(crate) answer: Option<Answer>,
}

impl RunState {
    pub(crate) fn new(facts: Facts, serial: u64, priority: u8) -> Self {
        let (events, permits, calls) = (EventLog::default(), Vec::new(), Vec::new());
        let (needs, reused, answer) = (None, None, None);
        let ending = false;
        Self { facts, serial, ending, events, priority, permits, calls, needs, reused, answer }
    }
}

/// The end of a claim that is committed.
pub(crate) struct Ended {
    run: Run,
    pub(super) serial: u64,
    moved: Option<Moved>,
    state: Option<RunState>,
}

impl Core {
    /// A claim is in the store: the worker may start.
    pub(super) fn claimed(
        &mut self,
        serial: u64,
        claimed: Claimed,
        ready: Ready,
        grant: Option<Grant>,
        answer: Option<Arc<Answer>>,
    ) {
        let facts = claimed.facts;
        let run = facts.run;
        let calls_max = facts.max_attempts.saturating_sub(facts.charged).max(1);
        let mut state = RunState::new(facts, serial, ready.priority);
        let stale = match &answer {
            None => ready.needs.cache_key.and_then(|key| self.answers.stale(key)),
            Some(_) => None,
        };
        self.answers.counts.hits += u64::from(answer.is_some());
        state.needs = (answer.is_none() && !state.facts.is_run).then_some(ready.needs);
        state.reused.clone_from(&answer);
        state.permits.extend(grant.as_ref().map(|grant| grant.permit));
        self.run_ids.insert(claimed.id, run.seq);
        self.runs.insert(run.seq, state);
        let Claimed { id, kind, input, timeout_ms, expect, steps, history, .. } = claimed;
        let start = Start { run, id, kind, input, timeout_ms };
        if let Some(steps) = steps {
            return self.send_advance(serial, start, steps);
        }
        let linked = self.workers.get(&serial).and_then(|worker| worker.link.as_ref());
        let Some(link) = linked else {
            // It died, or lost its connection, between the claim and this moment.
            self.put_back(run);
            return;
        };
        let with = expect.is_some() || history.is_some();
        if with && link.protocol < 3 {
            return self.put_off(run);
        }
        link.outbox.put(&if link.protocol < 2 {
            ToWorker::Run(start)
        } else {
            let cached = answer.map(|answer| answer.output.clone());
            let stale = stale.map(|answer| answer.output.clone());
            let begin = Begin { start, grant, calls_max, cached, stale };
            match with {
                false => ToWorker::Begin(begin),
                true => ToWorker::BeginWith(BeginWith { begin, expect, history }),
            }
        });
        self.tell_started(id);
        if let Some(parent) = self.runs.get(&run.seq).and_then(|state| state.facts.parent) {
            self.run_moved(parent);
        }
    }

    /// A worker says how an attempt ended.
    pub(super) fn done(&mut self, serial: u64, done: Done) {
        let run = done.run;
        let known = self
            .runs
            .get_mut(&run.seq)
            .filter(|state| state.serial == serial && state.facts.run == run);
        let Some(state) = known else {
            // Somebody else's task by now: nobody wants this result.
            self.ack(serial, run);
            return;
        };
        if std::mem::replace(&mut state.ending, true) {
            return;
        }
        let facts = state.facts.clone();
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
            worker.tasks_done += u64::from(!facts.is_run);
        }
        if matches!(done.outcome, Outcome::Forgotten) {
            self.homes.remove(&run.seq);
        }
        let failed = self.failed_calls(run);
        self.note_answer(run, &done.outcome);
        if let Some(needs) = self.runs.get(&run.seq).and_then(|state| state.needs.as_ref()) {
            self.paces.ran(&needs.gate, done.run_ms);
        }
        let next = self.after(&facts, done.outcome, failed);
        self.end(run, serial, next);
    }

    /// How many calls of an attempt came to nothing: each is charged like an attempt.
    fn failed_calls(&self, run: Run) -> u32 {
        let calls = self.runs.get(&run.seq).map_or(&[][..], |state| &state.calls);
        let failed =
            |call: &&Settled| matches!(call.outcome, CallOutcome::Failed | CallOutcome::Refused);
        calls.iter().filter(failed).count() as u32
    }

    fn after(&self, facts: &Facts, outcome: Outcome, failed_calls: u32) -> Next {
        match outcome {
            Outcome::Succeeded { output, usage } => self.within_limit(output, usage),
            Outcome::Cancelled
            | Outcome::Failed { .. }
            | Outcome::Advanced { .. }
            | Outcome::Forgotten
            | Outcome::RunFailed { .. }
                if facts.cancel_asked =>
            {
                Next::Cancelled { error: super::store::sqlite::cancelled("cancelled by request") }
            }
            Outcome::Cancelled | Outcome::Forgotten => rules::after_put_back(facts),
            Outcome::Advanced { steps } => self.after_advance(steps),
            Outcome::RunFailed { error, blamed } => self.after_run_failed(facts, error, blamed),
            Outcome::Failed { error, retry_after_ms } => {
                let queue = &self.config.queue;
                let backoff = Backoff { first: queue.retry_backoff, max: queue.retry_backoff_max };
                let asked = retry_after_ms.map(std::time::Duration::from_millis);
                let charge = failed_calls.max(1);
                rules::after_failure(facts, charge, error, asked, backoff, now_ms())
            }
        }
    }

    fn within_limit(&self, output: String, usage: Option<crate::task::Usage>) -> Next {
        let (bytes, limit) = (output.len() as u64, self.config.queue.input_bytes_max);
        if bytes <= limit {
            return Next::Succeeded { output, usage };
        }
        let message = format!("the output has {bytes} bytes, more than input_bytes_max = {limit}");
        let error = TaskError { kind: ErrorKind::Handler, message, retryable: false, cause: None };
        Next::Failed { error }
    }

    /// Ends a claim in the store; the worker is told after the commit.
    pub(super) fn end(&mut self, run: Run, serial: u64, next: Next) {
        if let Some(state) = self.runs.get_mut(&run.seq) {
            state.ending = true;
        }
        self.forget_calls(run, serial);
        let calls = self.paid(run);
        self.spend(run, &calls);
        let owner = Owner { instance: self.instance, serial };
        // While submissions come in, the next one's commit is near, and carries this along.
        let awaited = self.inserts_pending == 0
            && next.state().is_final()
            && self.runs.get(&run.seq).is_some_and(|state| self.is_awaited(state.facts.id));
        let advance = self.advance_by(run, serial, &next);
        let to = advance.as_ref().map(|by| by.owner.serial);
        let keep = self.keep_of(run, &next);
        let end = End { run, owner, now_ms: now_ms(), next, awaited, calls, advance, keep };
        self.store(Op::End(end), Pending::End { run, serial, advance: to });
    }

    /// Gives a task back that was claimed and never started, or is taken from its worker by a
    /// stop.
    pub(super) fn put_back(&mut self, run: Run) {
        let Some(state) = self.runs.get(&run.seq).filter(|state| !state.ending) else { return };
        let (serial, next) =
            (state.serial, self.after(&state.facts.clone(), Outcome::Cancelled, 0));
        self.free_slot(serial);
        self.end(run, serial, next);
    }

    /// A worker holds one claim less.
    pub(super) fn free_slot(&mut self, serial: u64) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
        }
    }

    fn is_awaited(&self, id: TaskId) -> bool {
        self.waits.contains_key(&id) || self.followers.contains_key(&id)
    }

    /// The end of a claim is committed: its slot and its lane are free.
    pub(super) fn ended(
        &mut self,
        run: Run,
        serial: u64,
        advance: Option<u64>,
        mut moved: Option<Moved>,
    ) {
        let mut state = self.runs.remove(&run.seq);
        if let Some(state) = &mut state {
            let answer = state.answer.take();
            if let Some(key) = state.needs.as_ref().and_then(|needs| needs.cache_key) {
                self.land(key, run.seq, answer);
            }
            self.run_ids.remove(&state.facts.id);
            self.queues.ended(&state.facts.queue);
            if moved.is_none() {
                self.homes.remove(&run.seq);
                tracing::error!("the claim on task {} was not held", state.facts.id);
            }
        }
        if let Some(worker) = self.workers.get_mut(&serial)
            && worker.in_flight == 0
        {
            worker.solo = false;
        }
        if let Some(moved) = &moved {
            self.requeue(moved);
        }
        let claimed = moved.as_mut().and_then(|moved| moved.advance.take());
        if let Some(serial) = advance {
            self.advance(serial, claimed);
        }
        self.unsynced.push(Ended { run, serial, moved, state });
    }

    /// Everything committed so far holds: those who wait are told, and workers forget.
    pub(super) fn synced(&mut self) {
        for Ended { run, serial, moved, state } in std::mem::take(&mut self.unsynced) {
            self.ack(serial, run);
            if let Some(state) = state.as_ref().filter(|_| !self.run_followers.is_empty()) {
                self.tell_last_step_events(state);
                self.run_moved(state.facts.parent.unwrap_or(run.seq));
            }
            if let Some(moved) = moved {
                self.tell_moved(&moved, state.as_ref());
            }
        }
    }

    fn ack(&mut self, serial: u64, run: Run) {
        let worker = self.workers.get(&serial);
        if let Some(link) = worker.and_then(|worker| worker.link.as_ref()) {
            link.outbox.put(&ToWorker::Ack { runs: vec![run] });
        }
    }

    /// Events of a worker's tasks.
    pub(super) fn events(&mut self, serial: u64, events: Vec<TaskEvent>) {
        for event in events {
            let Some(state) = self.runs.get_mut(&event.run.seq) else { continue };
            if state.serial != serial || state.facts.run != event.run {
                continue;
            }
            if state.events.push(event.n, event.body) {
                let (id, seq) = (state.facts.id, event.run.seq);
                match state.facts.parent {
                    Some(_) => self.tell_step_events(seq),
                    None => self.tell_events(id),
                }
            }
        }
    }

    /// Has a running task cancelled.
    pub(super) fn cancel_seq(&mut self, seq: Seq) {
        if let Some(state) = self.runs.get_mut(&seq) {
            state.facts.cancel_asked = true;
            let run = state.facts.run;
            self.cancel_run(run);
        }
    }

    /// Tells the worker to drop an attempt; its `Cancelled` ends the claim.
    pub(super) fn cancel_run(&mut self, run: Run) {
        let Some(state) = self.runs.get(&run.seq).filter(|state| !state.ending) else { return };
        let worker = self.workers.get(&state.serial);
        if let Some(link) = worker.and_then(|worker| worker.link.as_ref()) {
            link.outbox.put(&ToWorker::Cancel(run));
        }
    }
}
