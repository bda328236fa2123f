//! Clients that wait for tasks to end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use tokio::task::spawn_local;

use crate::protocol::control::{Ended, Refusal, RefusalKind, Reply};
use crate::task::{State, TaskId};

use super::clients::ReplyTo;
use super::runs::RunState;
use super::store::{Accepted, view};
use super::{Core, Input};

/// One client's wait for some tasks, shared by all of them.
#[derive(Clone)]
pub(crate) struct Wait {
    to: ReplyTo,
    full: bool,
    remaining: Rc<RefCell<BTreeSet<TaskId>>>,
}

impl Wait {
    /// Whether this is the last task that it waited for; `None` if it was told of it before.
    fn take(&self, id: TaskId) -> Option<bool> {
        let mut remaining = self.remaining.borrow_mut();
        remaining.remove(&id).then(|| remaining.is_empty())
    }
}

impl Core {
    /// `Submit` with `wait`: the tasks that this submission made or found.
    pub(super) fn wait_for_accepted(&mut self, to: &ReplyTo, accepted: &[Accepted]) {
        let ids: BTreeSet<TaskId> = accepted.iter().map(|one| one.id).collect();
        let wait = self.register(to.clone(), false, ids);
        for one in accepted.iter().filter(|one| one.state.is_final()) {
            self.tell_wait(&wait, one.id, one.state);
        }
    }

    fn register(&mut self, to: ReplyTo, full: bool, ids: BTreeSet<TaskId>) -> Wait {
        let wait = Wait { to, full, remaining: Rc::new(RefCell::new(ids)) };
        for id in wait.remaining.borrow().iter() {
            self.waits.entry(*id).or_default().push(wait.clone());
        }
        wait
    }

    /// `Wait`: listens first and looks second, so that no end falls between.
    pub(super) fn wait(&mut self, to: ReplyTo, ids: Vec<TaskId>, full: bool) {
        if ids.is_empty() {
            to.send(&Reply::End);
            return;
        }
        let wait = self.register(to, full, ids.iter().copied().collect());
        self.read(move |core| core.look_for_ends(wait, ids));
    }

    fn look_for_ends(&self, wait: Wait, ids: Vec<TaskId>) {
        let (reader, inputs) = (self.reader.clone(), self.inputs.clone());
        spawn_local(async move {
            let states = reader.ask(move |db| view::states(db, &ids)).await;
            let then = move |core: &mut Core| core.looked(&wait, states);
            let _ = inputs.send(Input::Then(Box::new(then)));
        });
    }

    fn looked(&mut self, wait: &Wait, states: Result<Vec<(TaskId, Option<State>)>, Refusal>) {
        let states = match states {
            Ok(states) => states,
            Err(refusal) => return self.refuse_wait(wait, refusal),
        };
        if let Some((id, _)) = states.iter().find(|(_, state)| state.is_none()) {
            return self.refuse_wait(wait, no_such_task(*id));
        }
        for (id, state) in states {
            if let Some(state) = state.filter(|state| state.is_final()) {
                self.tell_wait(wait, id, state);
            }
        }
    }

    fn refuse_wait(&mut self, wait: &Wait, refusal: Refusal) {
        let ids = std::mem::take(&mut *wait.remaining.borrow_mut());
        self.forget_waits(&ids);
        wait.to.refuse(refusal);
    }

    fn forget_waits(&mut self, ids: &BTreeSet<TaskId>) {
        for id in ids {
            if let Some(waits) = self.waits.get_mut(id) {
                waits.retain(|wait| !wait.to.is_closed() && wait.remaining.borrow().contains(id));
                if waits.is_empty() {
                    self.waits.remove(id);
                }
            }
        }
    }

    /// A task ended: those who wait for it and those who follow it are told.
    pub(super) fn tell_final(&mut self, id: TaskId, state: State, run: Option<&RunState>) {
        for wait in self.waits.remove(&id).unwrap_or_default() {
            self.tell_wait(&wait, id, state);
        }
        self.tell_finished(id, run);
    }

    fn tell_wait(&mut self, wait: &Wait, id: TaskId, state: State) {
        let Some(last) = wait.take(id) else { return };
        if !wait.full {
            wait.to.send(&Reply::Finished { tasks: vec![Ended { id, state, task: None }] });
            if last {
                wait.to.send(&Reply::End);
            }
            return;
        }
        let (reader, to) = (self.reader.clone(), wait.to.clone());
        spawn_local(async move {
            match reader.ask(move |db| view::task(db, id)).await {
                Ok(task) => {
                    let task = task.map(Box::new);
                    to.send(&Reply::Finished { tasks: vec![Ended { id, state, task }] });
                }
                Err(refusal) => to.refuse(refusal),
            }
            if last {
                to.send(&Reply::End);
            }
        });
    }

    /// A client is gone: nobody waits or follows for it any more.
    pub(super) fn client_gone(&mut self, client: u64) {
        self.waits.retain(|_, waits| {
            waits.retain(|wait| wait.to.client != client);
            !waits.is_empty()
        });
        self.run_followers.forget(client);
        self.followers.retain(|_, followers| {
            followers.retain(|follower| follower.to.client != client);
            !followers.is_empty()
        });
    }
}

pub(super) fn no_such_task(id: TaskId) -> Refusal {
    let message = format!("no task {id}: it never was, or its result_ttl is over");
    Refusal::new(RefusalKind::NoSuchTask, message)
}
