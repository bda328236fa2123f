//! What the store answers, and what follows from it.

use crate::protocol::control::{Change, Refusal, Reply};
use crate::protocol::link::ToWorker;
use crate::task::{State, TaskId};

use super::clients::ReplyTo;
use super::pending::Pending;
use super::requests::Changes;
use super::runs::RunState;
use super::store::writer::{Answer, Op};
use super::store::{self, Accepted, Due, Moved};
use super::{Core, now_ms};

impl Core {
    /// Takes in the answer of an op, by its number.
    pub(super) fn answered(&mut self, number: u64, answer: Answer) {
        let Some(pending) = self.pending.take(number) else {
            tracing::error!("an answer of the store that nobody waits for");
            return;
        };
        match (pending, answer) {
            (Pending::Insert { to, wait }, Answer::Inserted(result)) => {
                self.inserts_pending -= 1;
                match result {
                    Ok(accepted) => self.inserted(&to, accepted, wait),
                    Err(refusal) => to.refuse(refusal),
                }
            }
            (Pending::Run { name, at_ms }, Answer::Inserted(result)) => {
                self.run_inserted(&name, at_ms, result);
            }
            (Pending::DryRun { to }, Answer::Inserted(result)) => match result {
                Ok(accepted) => {
                    let ids = accepted.iter().map(|one| one.id).collect();
                    to.send(&Reply::Submitted { ids });
                }
                Err(refusal) => to.refuse(refusal),
            },
            (Pending::Claim { serial, ready, grant, answer }, Answer::Claimed(result)) => {
                match result {
                    Ok(Some(claimed)) => self.claimed(serial, claimed, ready, grant, answer),
                    Ok(None) => self.claim_failed(serial, &ready, grant, false),
                    Err(_) => self.claim_failed(serial, &ready, grant, true),
                }
            }
            (Pending::End { run, serial, advance }, Answer::Ended(moved)) => {
                self.ended(run, serial, advance, moved);
            }
            (Pending::Cancel { id, changes }, Answer::Cancelled(result)) => {
                self.cancelled(id, &changes, result);
            }
            (Pending::Retry { id, changes }, Answer::Retried(result)) => {
                self.retried(id, &changes, result);
            }
            (Pending::Clear { to, queue, cleared }, Answer::Cleared(result)) => match result {
                Ok(moved) => self.cleared(to, queue, cleared, moved),
                Err(refusal) => to.refuse(refusal),
            },
            (Pending::Promote, Answer::Promoted(due)) => self.promoted(due),
            (Pending::Expire, Answer::Expired(due)) => self.expired(due),
            (Pending::Prune, Answer::Pruned(count)) => {
                self.clock.pruned(count, self.sessions_idle_ms(), now_ms());
            }
            (Pending::ForgetSession { to, name }, Answer::SessionForgotten(result)) => {
                self.session_forgotten(&to, &name, result);
            }
            (Pending::Refill(need), Answer::Refilled(found)) => self.queues.refilled(&need, &found),
            (Pending::Pause { to, queue, paused }, Answer::Paused(result)) => match result {
                Ok(()) => {
                    self.queues.pause(queue.as_deref(), paused);
                    to.send(&Reply::Done { count: 0 });
                }
                Err(refusal) => to.refuse(refusal),
            },
            (Pending::ExitSeen { serial }, Answer::Synced) => self.exit_seen(serial),
            (Pending::Queues { to, queue }, Answer::Depth(depth)) => {
                self.tell_queues(&to, queue.as_deref(), &depth);
            }
            (Pending::Document { to, write }, Answer::Depth(depth)) => write(self, to, depth),
            (Pending::Sync, Answer::Synced) | (Pending::Remember, Answer::Remembered) => {}
            (Pending::Answered { serial, answered }, Answer::Nothing) => {
                self.tell_answer(serial, answered);
            }
            (Pending::Read(read), Answer::Synced) => read(self),
            (Pending::Drained, Answer::Synced) => self.drained(),
            (_, answer) => tracing::error!("the store's answers are out of order: {answer:?}"),
        }
    }

    fn inserted(&mut self, to: &ReplyTo, accepted: Vec<Accepted>, wait: bool) {
        let ids: Vec<TaskId> = accepted.iter().map(|one| one.id).collect();
        to.send(&Reply::Submitted { ids });
        if wait {
            self.wait_for_accepted(to, &accepted);
        }
        self.take_in_accepted(&accepted);
    }

    /// Tasks that the store has accepted wait for their turn, or for their time.
    pub(super) fn take_in_accepted(&mut self, accepted: &[Accepted]) {
        for one in accepted {
            if let Some(ready) = &one.ready {
                self.make_ready(ready);
            }
            self.clock.due(one.due_at_ms);
            self.clock.expires(one.expires_at_ms);
        }
    }

    /// Takes in a task's move that holds.
    pub(super) fn moved(&mut self, moved: &Moved) {
        if let Some(gone) = &moved.gone {
            self.queues.remove(gone);
            if let Some(key) = gone.needs.cache_key {
                self.land(key, gone.seq, None);
            }
        }
        self.requeue(moved);
        self.tell_moved(moved, None);
    }

    /// What a move makes ready, now or later.
    pub(super) fn requeue(&mut self, moved: &Moved) {
        for ready in moved.ready.iter().chain(&moved.released) {
            self.make_ready(ready);
        }
        self.clock.due(moved.due_at_ms);
        if moved.state.is_final() {
            self.homes.remove(&moved.seq);
        }
        for seq in &moved.running {
            self.cancel_seq(*seq);
        }
        for also in &moved.also {
            if let Some(gone) = &also.gone {
                self.queues.remove(gone);
            }
            self.requeue(also);
        }
    }

    /// Tells a move to those who wait for the task and those who follow it.
    pub(super) fn tell_moved(&mut self, moved: &Moved, run: Option<&RunState>) {
        for also in &moved.also {
            self.tell_moved(also, None);
        }
        if let Some(ready) = &moved.ready {
            self.note_waits(moved.id, ready);
        }
        self.followed_moved(moved.id);
        if moved.state.is_final() {
            self.tell_final(moved.id, moved.state, run);
        } else if run.is_some_and(|run| !run.facts.is_run) {
            self.tell_again(moved.id);
        }
    }

    fn promoted(&mut self, due: Due) {
        self.clock.promoted(due.next_at_ms);
        for moved in due.moved {
            self.moved(&moved);
        }
    }

    fn expired(&mut self, due: Due) {
        self.clock.expired(due.next_at_ms);
        for moved in due.moved {
            self.moved(&moved);
        }
    }

    fn cancelled(
        &mut self,
        id: TaskId,
        changes: &Changes,
        result: Result<Option<store::Cancelled>, Refusal>,
    ) {
        let change = |state, changed| Change { id, state, changed, reason: None };
        match result {
            Err(refusal) => changes.refuse(refusal),
            Ok(None) => changes.add(change(None, false)),
            Ok(Some(store::Cancelled::Final(state))) => changes.add(change(Some(state), false)),
            Ok(Some(store::Cancelled::Now(moved))) => {
                self.moved(&moved);
                changes.add(change(Some(State::Cancelled), true));
            }
            Ok(Some(store::Cancelled::Running { seq })) => {
                self.cancel_seq(seq);
                changes.add(change(Some(State::Running), true));
            }
        }
    }

    fn retried(
        &mut self,
        id: TaskId,
        changes: &Changes,
        result: Result<Option<store::Retried>, Refusal>,
    ) {
        let change = |state, changed| Change { id, state, changed, reason: None };
        match result {
            Err(refusal) => changes.refuse(refusal),
            Ok(None) => changes.add(change(None, false)),
            Ok(Some(store::Retried::Not(state))) => changes.add(change(Some(state), false)),
            Ok(Some(store::Retried::KeyTaken(heir))) => {
                let reason = Some(format!("its key stands for task {heir} by now"));
                changes.add(Change { reason, ..change(Some(State::Failed), false) });
            }
            Ok(Some(store::Retried::StepOf(run))) => {
                let reason = Some(format!("it is a step: `forq retry {run}` resumes its run"));
                changes.add(Change { reason, ..change(Some(State::Failed), false) });
            }
            Ok(Some(store::Retried::StillRuns(step))) => {
                let reason = Some(format!("its step {step} still runs: cancel it, or wait"));
                changes.add(Change { reason, ..change(Some(State::Failed), false) });
            }
            Ok(Some(store::Retried::Back(moved))) => {
                let state = Some(moved.state);
                self.moved(&moved);
                changes.add(change(state, true));
            }
        }
    }

    fn cleared(&mut self, to: ReplyTo, queue: Option<String>, before: u64, moved: Vec<Moved>) {
        let cleared = before + moved.len() as u64;
        let more = moved.len() == super::requests::CLEAR_TASKS as usize;
        for moved in moved {
            self.moved(&moved);
        }
        if more {
            self.clear(to, queue, cleared);
        } else {
            to.send(&Reply::Done { count: cleared });
        }
    }

    /// Reads the database once everything in it holds.
    pub(super) fn read(&mut self, read: impl FnOnce(&mut Core) + 'static) {
        if self.unsynced.is_empty() {
            read(self);
        } else {
            self.store(Op::Sync, Pending::Read(Box::new(read)));
        }
    }

    pub(super) fn tell_drain(&self, serial: u64) {
        let worker = self.workers.get(&serial);
        if let Some(link) = worker.and_then(|worker| worker.link.as_ref()) {
            link.outbox.put(&ToWorker::Drain);
        }
    }
}
