//! The loop: take in what has gathered, decide, hand the store one batch.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::drain::Phase;
use super::store::writer::Told;
use super::{Core, Input, now_ms, steady_ms};
use crate::protocol::lifeline;
use crate::protocol::link::ToBroker;

/// Inputs that one turn takes in at most, so that no side waits long for its answer.
const INPUTS_MAX: usize = 1024;

/// How the loop ended.
pub(crate) enum End {
    /// As told.
    Terminated,
    /// The store is of no use; one sentence.
    Broken(String),
}

fn gone() -> Told {
    Told::Broken("the store's thread is gone".to_owned())
}

impl Core {
    /// Turns until told to end.
    pub(super) async fn run(
        &mut self,
        mut inputs: UnboundedReceiver<Input>,
        mut told: UnboundedReceiver<Told>,
    ) -> End {
        loop {
            let sleep = self.sleep();
            let first = async {
                tokio::select! {
                    biased;
                    answer = told.recv() => (Some(answer.unwrap_or_else(gone)), None),
                    input = inputs.recv() => (None, input),
                }
            };
            let (mut answer, mut input) = timeout(sleep, first).await.unwrap_or((None, None));
            let mut inputs_left = INPUTS_MAX;
            while answer.is_some() || input.is_some() {
                if let Some(end) = self.take_in(answer.take(), input.take()) {
                    return end;
                }
                inputs_left -= 1;
                // What is taken off a channel must be taken in: never look and leave.
                if inputs_left > 0 {
                    answer = told.try_recv().ok();
                    input = inputs.try_recv().ok();
                }
            }
            self.finish_turn();
            if self.is_closed(Instant::now()) {
                return End::Terminated;
            }
        }
    }

    /// Takes in what there is; `Some` if it is the end.
    fn take_in(&mut self, answer: Option<Told>, input: Option<Input>) -> Option<End> {
        match answer {
            Some(Told::Broken(reason)) => return Some(End::Broken(reason)),
            Some(told) => self.told(told),
            None => {}
        }
        match input {
            Some(Input::Terminate) => self.close(Instant::now()),
            // Whoever says something now says it again to the next broker.
            Some(_) if matches!(self.phase, Phase::Closing { .. }) => {}
            Some(input) => self.enter(input),
            None => {}
        }
        None
    }

    fn sleep(&self) -> std::time::Duration {
        let mut sleep = self.clock.sleep(now_ms());
        if self.gated
            && let Some(at_ms) = self.permits.next_change(steady_ms())
        {
            let left_ms = at_ms.saturating_sub(steady_ms()).clamp(1, i64::MAX);
            sleep = sleep.min(std::time::Duration::from_millis(left_ms.unsigned_abs()));
        }
        if let Some(at_ms) = self.schedules_wake_at() {
            let left_ms = at_ms.saturating_sub(now_ms()).max(0);
            sleep = sleep.min(std::time::Duration::from_millis(left_ms.unsigned_abs()));
        }
        match self.drain_at() {
            Some(at) => sleep.min(at.saturating_duration_since(Instant::now())),
            None => sleep,
        }
    }

    fn finish_turn(&mut self) {
        let now = Instant::now();
        self.overdue_exits(now);
        self.clock.unsynced(!self.unsynced.is_empty(), now_ms());
        self.look_at_the_clock();
        self.look_at_memory(steady_ms());
        self.run_schedules();
        self.drain(now);
        self.answer_asks();
        self.dispatch();
        self.tell_prospects();
        self.tell_progress();
        self.tell_what_is_urgent();
        if !self.batch.is_empty() {
            self.writer.send(std::mem::take(&mut self.batch));
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Answers { first, answers, holds } => {
                // Read answers may look at the database: what holds is told first.
                if holds {
                    self.synced();
                }
                for (number, answer) in (first..).zip(answers) {
                    self.answered(number, answer);
                }
                if holds {
                    self.synced();
                }
            }
            Told::DiskFull(full) => self.disk_full = full,
            Told::Broken(_) => {}
        }
    }

    fn enter(&mut self, input: Input) {
        match input {
            Input::Asked { to, request } => self.asked(to, request),
            Input::ClientGone { client } => self.client_gone(client),
            Input::Knocked(knock) => self.knocked(knock),
            Input::WorkerCame { connection, serial, hello, outbox } => {
                self.worker_came(connection, serial, hello, outbox);
            }
            Input::WorkerSaid { serial, message } => match message {
                ToBroker::Done(done) => self.done(serial, done),
                ToBroker::Events { events } => self.events(serial, events),
                ToBroker::Credits { capacity } => {
                    if let Some(worker) = self.workers.get_mut(&serial) {
                        worker.capacity = capacity;
                    }
                }
                ToBroker::Permits { held } => self.holds_permits(serial, held),
                ToBroker::Ask(ask) => self.asks_to_call(serial, ask),
                ToBroker::Settled(settled) => self.settled(serial, settled),
                ToBroker::Hello(_) => {}
            },
            Input::WorkerGone { connection, serial } => self.worker_gone(connection, serial),
            Input::Master(message) => self.master_said(message),
            Input::Beat => self.beat(),
            Input::Then(then) => then(self),
            Input::Terminate => {}
        }
    }

    fn master_said(&mut self, message: lifeline::ToBroker) {
        match message {
            lifeline::ToBroker::Pool(pool) => self.pool_changed(pool),
            lifeline::ToBroker::Exited(exit) => self.exited(exit),
            lifeline::ToBroker::Stop { drain_ms } => {
                let drain = std::time::Duration::from_millis(drain_ms);
                self.stop(drain, Instant::now());
            }
            lifeline::ToBroker::Config { piece, last } => self.new_config(&piece, last),
            lifeline::ToBroker::Answer { asker, result } => self.master_answered(asker, result),
            lifeline::ToBroker::ReopenLog => crate::master::reopen_log(),
        }
    }
}
