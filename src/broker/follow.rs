//! Clients that follow a task's events.

use tokio::task::spawn_local;

use crate::protocol::control::{
    EventPosition, FollowBody, FollowEvent, Refusal, RefusalKind, Reply,
};
use crate::protocol::link::EventBody;
use crate::task::{State, TaskId, TaskView, Waits};

use super::clients::ReplyTo;
use super::runs::RunState;
use super::store::{Ready, view};
use super::waits::no_such_task;
use super::{Core, Input};
use crate::worker::handlers::workflow;

/// One client that follows one task.
pub(crate) struct Follower {
    pub(crate) to: ReplyTo,
    id: TaskId,
    /// The last event that it was told of, here or on an earlier connection.
    at: EventPosition,
    /// It has seen an attempt before this one.
    resumed: bool,
    /// Where the task waits and with which priority, if it does.
    pub(crate) waits: Option<(Waits, u8)>,
    /// What it wants if the task is a run.
    of_run: OfRun,
}

/// What a client asks for that follows a run.
#[derive(Clone, Default)]
pub(super) struct OfRun {
    /// The event behind which it goes on.
    pub(super) from: Option<String>,
    /// The text of every step.
    pub(super) all: bool,
}

impl Follower {
    pub(super) fn tell(&self, body: FollowBody) {
        let (id, event) = (self.id, self.at.to_string());
        let event = FollowEvent { id, event, position: self.at, step: None, body };
        self.to.send(&Reply::Event(event));
    }

    /// Tells of the attempt that runs: its begin if that is news, then its events.
    fn catch_up(&mut self, run: &RunState, worker_pid: i32) {
        let attempt = run.facts.run.attempt;
        if attempt > self.at.attempt {
            self.at = EventPosition { attempt, n: 0 };
            if std::mem::replace(&mut self.resumed, true) {
                self.tell(FollowBody::Restarted);
            }
            self.tell(FollowBody::Started { worker_pid });
        }
        let (gap, events) = run.events.after(self.at.n);
        if gap {
            self.tell(FollowBody::Gap);
        }
        for (n, body) in events {
            self.at.n = *n;
            self.tell(match body {
                EventBody::Text(text) => FollowBody::Text { text: text.clone() },
                EventBody::Data(json) => {
                    FollowBody::Data { data: serde_json::from_str(json).unwrap_or_default() }
                }
            });
        }
    }
}

impl Core {
    /// `Follow`: listens first and looks second, so that nothing falls between.
    pub(super) fn follow(
        &mut self,
        to: ReplyTo,
        id: TaskId,
        after: Option<EventPosition>,
        from: Option<String>,
        all: bool,
    ) {
        let from_here = from.as_deref().map(str::parse::<EventPosition>).transpose();
        let of_run = OfRun { from, all };
        let at = match from_here {
            Ok(from_here) => from_here.or(after).unwrap_or_default(),
            // It is a run's, or no event at all.
            Err(message) => return self.follow_only_run(to, id, of_run, message),
        };
        let follower = Follower { to, id, at, resumed: at.attempt > 0, waits: None, of_run };
        let client = follower.to.client;
        self.followers.entry(id).or_default().push(follower);
        self.tell_events(id);
        self.read(move |core| core.look_to_follow(id, client));
    }

    /// Anything else than a run is refused with this message.
    fn follow_only_run(&mut self, to: ReplyTo, id: TaskId, of_run: OfRun, message: String) {
        self.read(move |core| {
            let (reader, inputs) = (core.reader.clone(), core.inputs.clone());
            spawn_local(async move {
                let task = reader.ask(move |db| view::task(db, id)).await;
                let then = move |core: &mut Core| match task {
                    Ok(Some(task)) if task.kind == workflow::KIND => {
                        core.follow_run(to, of_run, &task)
                    }
                    Ok(Some(_)) => to.refuse(Refusal::new(RefusalKind::Invalid, message)),
                    Ok(None) => to.refuse(no_such_task(id)),
                    Err(refusal) => to.refuse(refusal),
                };
                let _ = inputs.send(Input::Then(Box::new(then)));
            });
        });
    }

    fn look_to_follow(&self, id: TaskId, client: u64) {
        let (reader, inputs) = (self.reader.clone(), self.inputs.clone());
        spawn_local(async move {
            let task = reader.ask(move |db| view::task(db, id)).await;
            let then = move |core: &mut Core| core.looked_to_follow(id, client, task);
            let _ = inputs.send(Input::Then(Box::new(then)));
        });
    }

    fn looked_to_follow(
        &mut self,
        id: TaskId,
        client: u64,
        task: Result<Option<TaskView>, Refusal>,
    ) {
        let task = match task {
            Ok(Some(task)) if task.kind == workflow::KIND => {
                let mine = self.take_followers(id, client);
                return self.follow_as_run(mine, &task);
            }
            Ok(Some(mut task)) if !task.state.is_final() => {
                let waits = !self.run_ids.contains_key(&id) && task.state != State::Running;
                self.explain(&mut task);
                let (position, estimated_wait_ms) = (task.position, task.estimated_wait_ms);
                for follower in self.followers.get_mut(&id).into_iter().flatten() {
                    if waits && follower.to.client == client {
                        follower.waits = task.waits.clone().map(|waits| (waits, task.priority));
                        if follower.at.attempt == 0 {
                            follower.tell(FollowBody::Waiting { position, estimated_wait_ms });
                        }
                    }
                }
                return;
            }
            Ok(Some(task)) => Ok(task),
            Ok(None) => Err(no_such_task(id)),
            Err(refusal) => Err(refusal),
        };
        for follower in &mut self.take_followers(id, client) {
            match &task {
                Ok(task) => tell_end(follower, task, true),
                Err(refusal) => follower.to.refuse(refusal.clone()),
            }
        }
    }

    fn follow_as_run(&mut self, followers: Vec<Follower>, task: &TaskView) {
        for follower in followers {
            self.follow_run(follower.to, follower.of_run, task);
        }
    }

    /// Its end may have been told in the meantime: then nobody is left here.
    fn take_followers(&mut self, id: TaskId, client: u64) -> Vec<Follower> {
        let Some(followers) = self.followers.get_mut(&id) else { return Vec::new() };
        let mine = followers.extract_if(.., |follower| follower.to.client == client).collect();
        if followers.is_empty() {
            self.followers.remove(&id);
        }
        mine
    }

    /// A task has news for those who follow it.
    pub(super) fn tell_events(&mut self, id: TaskId) {
        let Some(followers) = self.followers.get_mut(&id) else { return };
        let Some(run) = self.run_ids.get(&id).and_then(|seq| self.runs.get(seq)) else { return };
        if run.facts.is_run {
            // Once it is looked at, it is followed as a run.
            return;
        }
        let pid = self.workers.get(&run.serial).map_or(0, |worker| worker.pid);
        for follower in followers {
            follower.catch_up(run, pid);
        }
    }

    /// An attempt began.
    pub(super) fn tell_started(&mut self, id: TaskId) {
        self.tell_events(id);
    }

    /// An attempt ended, and the task waits for the next one.
    pub(super) fn tell_again(&mut self, id: TaskId) {
        for follower in self.followers.get(&id).into_iter().flatten() {
            follower.tell(FollowBody::Waiting { position: None, estimated_wait_ms: None });
        }
    }

    /// A task is queued: those who follow it will be told how it stands.
    pub(super) fn note_waits(&mut self, id: TaskId, ready: &Ready) {
        for follower in self.followers.get_mut(&id).into_iter().flatten() {
            let (gate, tokens) = (ready.needs.gate.clone(), ready.needs.tokens);
            follower.waits = Some((Waits { gate, tokens, ord: ready.ord }, ready.priority));
        }
    }

    /// A task ended.
    pub(super) fn tell_finished(&mut self, id: TaskId, run: Option<&RunState>) {
        let Some(mut followers) = self.followers.remove(&id) else { return };
        if let Some(run) = run.filter(|run| !run.facts.is_run) {
            let pid = self.workers.get(&run.serial).map_or(0, |worker| worker.pid);
            followers.iter_mut().for_each(|follower| follower.catch_up(run, pid));
        }
        let (reader, inputs) = (self.reader.clone(), self.inputs.clone());
        spawn_local(async move {
            let task = reader.ask(move |db| view::task(db, id)).await;
            if let Ok(Some(task)) = &task
                && task.kind == workflow::KIND
            {
                let task = task.clone();
                let then = move |core: &mut Core| core.follow_as_run(followers, &task);
                let _ = inputs.send(Input::Then(Box::new(then)));
                return;
            }
            for follower in &mut followers {
                match &task {
                    Ok(Some(task)) => tell_end(follower, task, false),
                    Ok(None) => follower.to.refuse(no_such_task(id)),
                    Err(refusal) => follower.to.refuse(refusal.clone()),
                }
            }
        });
    }
}

/// The last events of a task. `late`: it ended before this follower came, and its events are not
/// kept, so its text is told from its output, unless the follower has begun to read it elsewhere.
fn tell_end(follower: &mut Follower, task: &TaskView, late: bool) {
    if late {
        let fresh = follower.at.n == 0;
        follower.at = EventPosition { attempt: task.attempt, n: follower.at.n + 1 };
        match text_of(task) {
            Some(text) if fresh => follower.tell(FollowBody::Text { text }),
            _ if !fresh => follower.tell(FollowBody::Gap),
            _ => {}
        }
    }
    follower.at.n += 1;
    follower.tell(FollowBody::Finished { task: Box::new(task.clone()) });
    follower.to.send(&Reply::End);
}

pub(super) fn text_of(task: &TaskView) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Text {
        text: String,
    }
    serde_json::from_str::<Text>(task.output.as_ref()?.get()).ok().map(|output| output.text)
}
