//! What the store promises, as plain as can be: every task in a list, nothing on disk.

use std::collections::BTreeMap;

use crate::broker::store::{Claim, Counts, End, Next, Owner};
use crate::protocol::link::{Run, Seq};
use crate::task::{NewTask, State, TaskId};

/// One task as the model knows it.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    /// The store's number, told when the task was first ready.
    pub(super) seq: Option<Seq>,
    pub(super) input: String,
    pub(super) queue: String,
    pub(super) priority: u8,
    pub(super) lane: Option<String>,
    pub(super) key: Option<String>,
    pub(super) state: State,
    /// Greater ones became ready, or joined their lane, later.
    pub(super) place: u64,
    pub(super) due_at_ms: Option<i64>,
    pub(super) expires_at_ms: Option<i64>,
    pub(super) attempt: u32,
    pub(super) finished_at_ms: Option<i64>,
    pub(super) owner: Option<Owner>,
    /// It was to be cancelled while it ran.
    cancel_asked: bool,
}

impl Task {
    fn waits(&self) -> bool {
        matches!(self.state, State::Queued | State::Scheduled | State::Blocked)
    }

    /// Whether its key stands for it.
    fn owns_its_key(&self) -> bool {
        !matches!(self.state, State::Failed | State::Cancelled)
    }

    pub(super) fn run(&self) -> Option<Run> {
        Some(Run { seq: self.seq?, attempt: self.attempt })
    }
}

/// Every task, in the order of their submission.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) tasks: Vec<Task>,
    places: u64,
}

/// What came of one task of a submission.
#[derive(Debug, PartialEq)]
pub(super) enum Inserted {
    New(State),
    /// It is this one.
    Same(TaskId),
    Refused,
}

/// What came of a retry.
#[derive(Debug, PartialEq)]
pub(super) enum Retry {
    Back(State),
    /// Nothing is put back from this state.
    Not(State),
    /// This task has its key by now.
    KeyTaken(TaskId),
}

impl Model {
    fn next_place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    fn lane_is_busy(&self, lane: &Option<String>) -> bool {
        lane.is_some() && self.tasks.iter().any(|t| t.lane == *lane && !t.state.is_final())
    }

    pub(super) fn insert(&mut self, new: &NewTask, now_ms: i64) -> Inserted {
        let owner = |t: &&Task| new.key.is_some() && t.key == new.key && t.owns_its_key();
        let by_key = self.tasks.iter().find(owner);
        if let Some(known) = by_key.or_else(|| self.tasks.iter().find(|t| t.id == new.id)) {
            let same = known.input == new.input.get() && known.lane == new.lane;
            return if same { Inserted::Same(known.id) } else { Inserted::Refused };
        }
        let state = if self.lane_is_busy(&new.lane) {
            State::Blocked
        } else if new.due_at_ms.is_some_and(|at| at > now_ms) {
            State::Scheduled
        } else {
            State::Queued
        };
        let place = self.next_place();
        self.tasks.push(Task {
            id: new.id,
            seq: None,
            input: new.input.get().to_owned(),
            queue: new.queue.clone().unwrap_or_else(|| "default".to_owned()),
            priority: new.priority.unwrap_or(5),
            lane: new.lane.clone(),
            key: new.key.clone(),
            state,
            place,
            due_at_ms: new.due_at_ms,
            expires_at_ms: new.expires_at_ms,
            attempt: 0,
            finished_at_ms: None,
            owner: None,
            cancel_asked: false,
        });
        Inserted::New(state)
    }

    pub(super) fn claim(&mut self, claim: &Claim) -> bool {
        let task = self.tasks.iter_mut().find(|t| t.seq == Some(claim.seq));
        let Some(task) = task.filter(|t| {
            t.state == State::Queued && t.expires_at_ms.is_none_or(|at| at > claim.now_ms)
        }) else {
            return false;
        };
        task.state = State::Running;
        task.attempt += 1;
        task.owner = Some(claim.owner);
        // It has started in time.
        task.expires_at_ms = None;
        true
    }

    pub(super) fn end(&mut self, end: &End) -> bool {
        let held = |t: &&mut Task| {
            t.state == State::Running && t.run() == Some(end.run) && t.owner == Some(end.owner)
        };
        let Some(task) = self.tasks.iter_mut().find(held) else { return false };
        task.owner = None;
        if let Next::RetryAt { due_at_ms, .. } = end.next {
            task.due_at_ms = Some(due_at_ms);
        }
        let state = end.next.state();
        let state = if task.cancel_asked && !state.is_final() { State::Cancelled } else { state };
        let index = self.index(end.run.seq);
        self.become_state(index, state, end.now_ms);
        true
    }

    fn index(&self, seq: Seq) -> usize {
        self.tasks.iter().position(|t| t.seq == Some(seq)).unwrap()
    }

    /// Moves one task, and the next one of its lane if that frees it.
    fn become_state(&mut self, index: usize, state: State, now_ms: i64) {
        let before = self.tasks[index].state;
        self.tasks[index].state = state;
        if !state.is_final() {
            return;
        }
        self.tasks[index].finished_at_ms = Some(now_ms);
        let lane = self.tasks[index].lane.clone();
        if lane.is_none() || before == State::Blocked {
            return;
        }
        let place = self.next_place();
        let blocked = |t: &&mut Task| t.lane == lane && t.state == State::Blocked;
        let next = self.tasks.iter_mut().filter(blocked).min_by_key(|t| t.place);
        if let Some(next) = next {
            let waits = next.due_at_ms.is_some_and(|at| at > now_ms);
            next.state = if waits { State::Scheduled } else { State::Queued };
            next.place = place;
        }
    }

    /// The state before, if there is such a task.
    pub(super) fn cancel(&mut self, id: TaskId, now_ms: i64) -> Option<State> {
        let index = self.tasks.iter().position(|t| t.id == id)?;
        let before = self.tasks[index].state;
        self.tasks[index].cancel_asked |= before == State::Running;
        if self.tasks[index].waits() {
            self.become_state(index, State::Cancelled, now_ms);
        }
        Some(before)
    }

    /// Everything that waits in a queue, or in all.
    pub(super) fn clear(&mut self, queue: Option<&str>, now_ms: i64) -> usize {
        let mut count = 0;
        for index in 0..self.tasks.len() {
            let task = &self.tasks[index];
            if task.waits() && queue.is_none_or(|queue| task.queue == queue) {
                self.become_state(index, State::Cancelled, now_ms);
                count += 1;
            }
        }
        count
    }

    pub(super) fn retry(&mut self, id: TaskId) -> Option<Retry> {
        let index = self.tasks.iter().position(|t| t.id == id)?;
        if self.tasks[index].state != State::Failed {
            return Some(Retry::Not(self.tasks[index].state));
        }
        let key = &self.tasks[index].key;
        let heir = self.tasks.iter().find(|t| key.is_some() && t.key == *key && t.owns_its_key());
        if let Some(heir) = heir {
            return Some(Retry::KeyTaken(heir.id));
        }
        let busy = self.lane_is_busy(&self.tasks[index].lane);
        let place = self.next_place();
        let task = &mut self.tasks[index];
        task.state = if busy { State::Blocked } else { State::Queued };
        task.place = place;
        task.cancel_asked = false;
        (task.due_at_ms, task.expires_at_ms, task.finished_at_ms) = (None, None, None);
        Some(Retry::Back(task.state))
    }

    pub(super) fn promote(&mut self, now_ms: i64) -> usize {
        let mut due: Vec<usize> = (0..self.tasks.len())
            .filter(|index| {
                let task = &self.tasks[*index];
                task.state == State::Scheduled && task.due_at_ms.is_some_and(|at| at <= now_ms)
            })
            .collect();
        due.sort_by_key(|index| self.tasks[*index].due_at_ms);
        for index in &due {
            self.tasks[*index].state = State::Queued;
            self.tasks[*index].place = self.next_place();
        }
        due.len()
    }

    /// Also what an expiry frees and is expired itself.
    pub(super) fn expire(&mut self, now_ms: i64) -> usize {
        let expired = |t: &Task| t.waits() && t.expires_at_ms.is_some_and(|at| at <= now_ms);
        let mut all: Vec<usize> =
            (0..self.tasks.len()).filter(|index| expired(&self.tasks[*index])).collect();
        all.sort_by_key(|index| self.tasks[*index].expires_at_ms);
        for index in &all {
            self.become_state(*index, State::Cancelled, now_ms);
        }
        all.len()
    }

    pub(super) fn prune(&mut self, finished_before_ms: i64) -> usize {
        let before = self.tasks.len();
        self.tasks.retain(|t| t.finished_at_ms.is_none_or(|at| at >= finished_before_ms));
        before - self.tasks.len()
    }

    pub(super) fn depth(&self) -> BTreeMap<String, Counts> {
        let mut depth: BTreeMap<String, Counts> = BTreeMap::new();
        for task in self.tasks.iter().filter(|t| !t.state.is_final()) {
            depth.entry(task.queue.clone()).or_default().count(task.state, 1);
        }
        depth
    }

    /// The ready tasks of one queue and priority, in order.
    pub(super) fn ready(&self, queue: &str, priority: u8) -> Vec<TaskId> {
        let mut ready: Vec<&Task> = self
            .tasks
            .iter()
            .filter(|t| t.state == State::Queued && t.queue == queue && t.priority == priority)
            .collect();
        ready.sort_by_key(|t| t.place);
        ready.into_iter().map(|t| t.id).collect()
    }
}
