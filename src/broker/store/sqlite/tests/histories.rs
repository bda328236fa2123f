//! Random histories: each step is done to the store and to the model, and then they are compared.
//! proptest prints the history that fails, and the seed that makes it again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::sample::Index;

use super::model::{Inserted, Model, Retry};
use super::{DEFAULTS, new_task};
use crate::broker::store::sqlite::{Durability, Sqlite};
use crate::broker::store::{
    Cancelled, Claim, Clear, Due, End, Insert, Moved, Next, Owner, Ready, Refill, Retried, Store,
    view,
};
use crate::protocol::link::{Run, Seq};
use crate::task::{ErrorKind, NewTask, State, TaskError, TaskId};

const INSTANCE: i64 = 1;
/// More than any history has.
const ALL: u32 = 10_000;

#[derive(Clone, Debug)]
struct Spec {
    queue: usize,
    priority: u8,
    lane: Option<usize>,
    key: Option<usize>,
    input: usize,
    delay_ms: Option<i64>,
    expires_ms: Option<i64>,
    /// As the id of a task that is there already.
    resend: Option<Index>,
}

#[derive(Clone, Debug)]
enum Op {
    Submit(Vec<Spec>),
    Claim { ready: Index, serial: u64 },
    End { run: Index, how: usize, as_another: bool, old_attempt: bool },
    Cancel(Index),
    Retry(Index),
    Clear { queue: Option<usize> },
    Promote,
    Expire,
    Prune { age_ms: i64 },
    Wait { ms: i64 },
    Reopen,
}

fn spec() -> impl Strategy<Value = Spec> {
    let maybe = |range: std::ops::Range<usize>| prop::option::weighted(0.4, range);
    let time = || prop::option::weighted(0.25, -10i64..60);
    (
        (0usize..2, prop_oneof![Just(1u8), Just(5)], maybe(0..2), 0usize..2),
        prop::option::weighted(0.2, 0usize..3),
        (time(), time()),
        prop::option::weighted(0.1, any::<Index>()),
    )
        .prop_map(|((queue, priority, lane, input), key, (delay_ms, expires_ms), resend)| {
            Spec { queue, priority, lane, key, input, delay_ms, expires_ms, resend }
        })
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    prop_oneof![
        6 => prop::collection::vec(spec(), 1..4).prop_map(Op::Submit),
        8 => (index(), 0u64..3).prop_map(|(ready, serial)| Op::Claim { ready, serial }),
        8 => (index(), 0usize..6, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
            |(run, how, as_another, old_attempt)| Op::End { run, how, as_another, old_attempt },
        ),
        2 => index().prop_map(Op::Cancel),
        2 => index().prop_map(Op::Retry),
        1 => prop::option::of(0usize..2).prop_map(|queue| Op::Clear { queue }),
        3 => Just(Op::Promote),
        2 => Just(Op::Expire),
        1 => (0i64..80).prop_map(|age_ms| Op::Prune { age_ms }),
        4 => (1i64..30).prop_map(|ms| Op::Wait { ms }),
        1 => Just(Op::Reopen),
    ]
}

fn queue_name(queue: usize) -> String {
    format!("q{queue}")
}

fn error(kind: ErrorKind) -> TaskError {
    TaskError { kind, message: "no".to_owned(), retryable: true, cause: None }
}

fn next_of(how: usize, now_ms: i64) -> Next {
    match how {
        0 => Next::Succeeded { output: "{}".to_owned(), usage: None },
        1 => Next::Failed { error: error(ErrorKind::Handler) },
        2 => Next::Cancelled { error: error(ErrorKind::Cancelled) },
        3 => {
            let error = error(ErrorKind::Timeout);
            Next::RetryAt { due_at_ms: now_ms + 20, charged: 1, error }
        }
        4 => Next::Lost { charged: 0, suspect: 1, error: error(ErrorKind::WorkerLost) },
        _ => Next::PutBack,
    }
}

/// The store, the model, and what a broker would remember of the store's answers.
struct Both {
    path: PathBuf,
    store: Sqlite,
    model: Model,
    now_ms: i64,
    /// Ready tasks that the store told of: what a broker can dispatch without asking.
    told: BTreeSet<Seq>,
    told_due_ms: Option<i64>,
    told_expiry_ms: Option<i64>,
    states: BTreeMap<TaskId, State>,
}

impl Both {
    fn new(folder: &tempfile::TempDir) -> Self {
        let path = folder.path().join("forq.db");
        Self {
            store: Sqlite::open(&path, INSTANCE, Durability::None).unwrap(),
            path,
            model: Model::default(),
            now_ms: 1000,
            told: BTreeSet::new(),
            told_due_ms: None,
            told_expiry_ms: None,
            states: BTreeMap::new(),
        }
    }

    fn tell_ready(&mut self, ready: Option<&Ready>) {
        self.told.extend(ready.map(|ready| ready.seq));
    }

    fn tell_due(&mut self, at_ms: Option<i64>) {
        self.told_due_ms = self.told_due_ms.into_iter().chain(at_ms).min();
    }

    fn tell_moved(&mut self, moved: &Moved) {
        self.tell_ready(moved.ready.as_ref());
        moved.released.iter().for_each(|ready| self.tell_ready(Some(ready)));
        self.tell_due(moved.due_at_ms);
    }

    fn step(&mut self, op: &Op, rolled_back: bool) {
        if matches!(op, Op::Reopen) {
            return self.reopen();
        }
        let before = rolled_back.then(|| {
            let clock = (self.told_due_ms, self.told_expiry_ms);
            (self.model.clone(), self.told.clone(), clock)
        });
        self.store.begin(false).unwrap();
        self.apply(op);
        match before {
            Some((model, told, (due_ms, expiry_ms))) => {
                self.store.rollback();
                (self.model, self.told) = (model, told);
                (self.told_due_ms, self.told_expiry_ms) = (due_ms, expiry_ms);
            }
            None => self.store.commit().unwrap(),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Submit(specs) => self.submit(specs),
            Op::Claim { ready, serial } => self.claim(ready, *serial),
            Op::End { run, how, as_another, old_attempt } => {
                self.end(run, *how, *as_another, *old_attempt);
            }
            Op::Cancel(index) => self.cancel(index),
            Op::Retry(index) => self.retry(index),
            Op::Clear { queue } => {
                let queue = queue.map(queue_name);
                let expected = self.model.clear(queue.as_deref(), self.now_ms);
                let clear = Clear { queue, now_ms: self.now_ms, limit: ALL };
                let moved = self.store.clear(&clear).unwrap();
                assert_eq!(moved.len(), expected);
                moved.iter().for_each(|moved| self.tell_moved(moved));
            }
            Op::Promote => {
                let Due { moved, next_at_ms } = self.store.promote(self.now_ms, ALL).unwrap();
                assert_eq!(moved.len(), self.model.promote(self.now_ms));
                self.told_due_ms = next_at_ms;
                moved.iter().for_each(|moved| self.tell_moved(moved));
            }
            Op::Expire => {
                let Due { moved, next_at_ms } = self.store.expire(self.now_ms, ALL).unwrap();
                assert_eq!(moved.len(), self.model.expire(self.now_ms));
                self.told_expiry_ms = next_at_ms;
                moved.iter().for_each(|moved| self.tell_moved(moved));
            }
            Op::Prune { age_ms } => {
                let before_ms = self.now_ms - age_ms;
                let pruned = self.store.prune(before_ms, ALL).unwrap();
                assert_eq!(pruned as usize, self.model.prune(before_ms));
            }
            Op::Wait { ms } => self.now_ms += ms,
            Op::Reopen => {}
        }
    }

    fn task_of(&self, spec: &Spec) -> NewTask {
        let mut task = new_task(&format!("{{\"input\": {}}}", spec.input));
        task.queue = Some(queue_name(spec.queue));
        task.priority = Some(spec.priority);
        task.lane = spec.lane.map(|lane| format!("lane {lane}"));
        task.key = spec.key.map(|key| format!("key {key}"));
        task.due_at_ms = spec.delay_ms.map(|ms| self.now_ms + ms);
        task.expires_at_ms = spec.expires_ms.map(|ms| self.now_ms + ms);
        if let Some(index) = &spec.resend
            && !self.model.tasks.is_empty()
        {
            task.id = index.get(&self.model.tasks).id;
        }
        task
    }

    fn submit(&mut self, specs: &[Spec]) {
        let tasks: Vec<NewTask> = specs.iter().map(|spec| self.task_of(spec)).collect();
        let mut model = self.model.clone();
        let expected: Vec<Inserted> =
            tasks.iter().map(|task| model.insert(task, self.now_ms)).collect();
        let insert = Insert {
            tasks,
            defaults: DEFAULTS,
            now_ms: self.now_ms,
            over_budget: Default::default(),
            dry_run: None,
        };
        let accepted = match self.store.insert(&insert).unwrap() {
            Ok(accepted) => accepted,
            Err(refusal) => {
                let first = expected.iter().position(|one| *one == Inserted::Refused);
                assert_eq!(refusal.index, first, "{refusal}");
                assert!(first.is_some());
                return;
            }
        };
        assert_eq!(accepted.len(), expected.len());
        self.model = model;
        for (accepted, expected) in accepted.iter().zip(expected) {
            match expected {
                Inserted::New(state) => assert_eq!(accepted.state, state),
                Inserted::Same(id) => assert_eq!(accepted.id, id),
                Inserted::Refused => panic!("{accepted:?} should have been refused"),
            }
            self.tell_ready(accepted.ready.as_ref());
            self.tell_due(accepted.due_at_ms);
            let expiry_ms = self.told_expiry_ms.into_iter().chain(accepted.expires_at_ms).min();
            self.told_expiry_ms = expiry_ms;
        }
        self.learn_seqs();
    }

    /// The numbers that the store gave to new tasks.
    fn learn_seqs(&mut self) {
        let mut query =
            self.store.db.prepare_cached("SELECT seq FROM tasks WHERE id = ?1").unwrap();
        for task in self.model.tasks.iter_mut().filter(|task| task.seq.is_none()) {
            task.seq = Some(query.query_row([task.id.0.as_bytes()], |row| row.get(0)).unwrap());
        }
    }

    /// Any task that was ever told to be ready, as a broker does that has not heard otherwise.
    fn claim(&mut self, index: &Index, serial: u64) {
        let told: Vec<Seq> = self.told.iter().copied().collect();
        if told.is_empty() {
            return;
        }
        let seq = *index.get(&told);
        let owner = Owner { instance: INSTANCE, serial };
        let claim = Claim { seq, owner, worker_pid: 7, now_ms: self.now_ms, sees: None };
        let expected = self.model.claim(&claim);
        let claimed = self.store.claim(&claim).unwrap();
        assert_eq!(claimed.is_some(), expected);
        let Some(claimed) = claimed else { return };
        let task = self.model.tasks.iter().find(|task| task.seq == Some(seq)).unwrap();
        assert_eq!((claimed.id, &claimed.input), (task.id, &task.input));
        assert_eq!(claimed.facts.run, task.run().unwrap());
    }

    fn end(&mut self, index: &Index, how: usize, as_another: bool, old_attempt: bool) {
        let running: Vec<(Run, Owner)> =
            self.model.tasks.iter().filter_map(|task| Some((task.run()?, task.owner?))).collect();
        if running.is_empty() {
            return;
        }
        let (mut run, mut owner) = *index.get(&running);
        owner.serial += u64::from(as_another);
        run.attempt -= u32::from(old_attempt);
        let next = next_of(how, self.now_ms);
        let end = End {
            run,
            owner,
            now_ms: self.now_ms,
            next,
            awaited: true,
            calls: Vec::new(),
            advance: None,
            keep: None,
        };
        let expected = self.model.end(&end);
        let moved = self.store.end(&end).unwrap();
        assert_eq!(moved.is_some(), expected);
        if let Some(moved) = moved {
            self.tell_moved(&moved);
        }
    }

    fn cancel(&mut self, index: &Index) {
        let id = self.any_id(index);
        let before = self.model.cancel(id, self.now_ms);
        match (self.store.cancel(id, self.now_ms).unwrap(), before) {
            (None, None) => {}
            (Some(Cancelled::Running { .. }), Some(State::Running)) => {}
            (Some(Cancelled::Final(state)), Some(before)) => assert_eq!(state, before),
            (Some(Cancelled::Now(moved)), Some(before)) => {
                assert!(!before.is_final() && before != State::Running);
                self.tell_moved(&moved);
            }
            (cancelled, before) => panic!("{cancelled:?} from {before:?}"),
        }
    }

    fn retry(&mut self, index: &Index) {
        let id = self.any_id(index);
        let expected = self.model.retry(id);
        match (self.store.retry(&crate::broker::store::Retry { id, redo: None }).unwrap(), expected)
        {
            (None, None) => {}
            (Some(Retried::Not(state)), Some(Retry::Not(before))) => assert_eq!(state, before),
            (Some(Retried::KeyTaken(heir)), Some(Retry::KeyTaken(id))) => assert_eq!(heir, id),
            (Some(Retried::Back(moved)), Some(Retry::Back(state))) => {
                assert_eq!(moved.state, state);
                self.tell_moved(&moved);
            }
            (retried, expected) => panic!("{retried:?}, and not {expected:?}"),
        }
    }

    /// A task's id, or now and then one of no task.
    fn any_id(&self, index: &Index) -> TaskId {
        let index = index.index(self.model.tasks.len() + 1);
        self.model.tasks.get(index).map_or_else(TaskId::new, |task| task.id)
    }

    /// As after a broker's death: what it remembered is gone, what it had committed is not.
    fn reopen(&mut self) {
        self.store = Sqlite::open(&self.path, INSTANCE, Durability::None).unwrap();
        let depth = self.store.look().unwrap();
        self.told.clear();
        for (queue, priority, gate, _) in depth.groups {
            let refill = Refill { queue, priority, gate, after: i64::MIN, limit: ALL };
            self.told.extend(self.store.refill(&refill).unwrap().iter().map(|ready| ready.seq));
        }
        (self.told_due_ms, self.told_expiry_ms) = (depth.next_due_at_ms, depth.next_expiry_at_ms);
        let claims: BTreeSet<Run> =
            self.store.claims().unwrap().iter().map(|claim| claim.facts.run).collect();
        let running = self.model.tasks.iter().filter(|task| task.state == State::Running);
        assert_eq!(claims, running.filter_map(|task| task.run()).collect());
    }

    fn compare(&mut self) {
        assert_eq!(self.store.depth().unwrap().queues, self.model.depth(), "counted as it goes");
        assert_eq!(self.store.read_depth().unwrap().queues, self.model.depth(), "counted anew");
        let states = self.read_states();
        let expected = self.model.tasks.iter().map(|task| (task.id, task.state)).collect();
        assert_eq!(states, expected);
        for (id, state) in &states {
            let before = self.states.get(id).copied().unwrap_or(*state);
            assert!(before == *state || reaches(before, *state), "{before} became {state}");
        }
        self.states = states;
        self.compare_order();
        self.compare_lanes();
        self.compare_keys();
        self.nothing_is_forgotten();
    }

    fn read_states(&self) -> BTreeMap<TaskId, State> {
        let ids: Vec<TaskId> = self.model.tasks.iter().map(|task| task.id).collect();
        let states = view::states(&self.store.db, &ids).unwrap();
        let count: i64 =
            self.store.db.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0)).unwrap();
        assert_eq!(count, ids.len() as i64);
        states.into_iter().map(|(id, state)| (id, state.unwrap())).collect()
    }

    fn compare_order(&mut self) {
        for queue in 0..2 {
            for priority in [1, 5] {
                let queue = queue_name(queue);
                let expected = self.model.ready(&queue, priority);
                let gate = String::new();
                let refill = Refill { queue, priority, gate, after: i64::MIN, limit: ALL };
                let ready = self.store.refill(&refill).unwrap();
                let id_of = |ready: &Ready| {
                    self.model.tasks.iter().find(|task| task.seq == Some(ready.seq)).unwrap().id
                };
                assert_eq!(ready.iter().map(id_of).collect::<Vec<_>>(), expected);
            }
        }
    }

    /// In each lane at most one is at work or may be; while one waits behind it, exactly one.
    fn compare_lanes(&self) {
        let lanes: BTreeSet<_> = self.model.tasks.iter().filter_map(|t| t.lane.clone()).collect();
        for lane in lanes {
            let live = || {
                let in_lane = |t: &&super::model::Task| t.lane.as_ref() == Some(&lane);
                self.model.tasks.iter().filter(in_lane).filter(|t| !t.state.is_final())
            };
            let heads = live().filter(|task| task.state != State::Blocked).count();
            assert!(heads <= 1, "{lane} has {heads} heads");
            assert!(heads == 1 || live().count() == 0, "{lane} has nobody at its head");
        }
    }

    /// No key stands for two tasks.
    fn compare_keys(&self) {
        let mut taken = BTreeSet::new();
        let gone = |state: State| matches!(state, State::Failed | State::Cancelled);
        for task in self.model.tasks.iter().filter(|task| !gone(task.state)) {
            assert!(task.key.as_ref().is_none_or(|key| taken.insert(key)), "{task:?}");
        }
    }

    /// A broker that only listens to the store's answers misses no task.
    fn nothing_is_forgotten(&self) {
        for task in &self.model.tasks {
            let at = |told_ms: Option<i64>, at_ms: i64| told_ms.is_some_and(|told| told <= at_ms);
            match task.state {
                State::Queued => assert!(self.told.contains(&task.seq.unwrap()), "{task:?}"),
                State::Scheduled => {
                    assert!(at(self.told_due_ms, task.due_at_ms.unwrap()), "{task:?}");
                }
                _ => {}
            }
            let waits = matches!(task.state, State::Queued | State::Scheduled | State::Blocked);
            if let Some(expires_ms) = task.expires_at_ms.filter(|_| waits) {
                assert!(at(self.told_expiry_ms, expires_ms), "{task:?}");
            }
        }
    }
}

/// Whether legal moves lead from one state to another within one step of a history: a release
/// and a promotion may follow each other, and so on.
fn reaches(from: State, to: State) -> bool {
    let between = |middle: &State| from.may_become(*middle) && middle.may_become(to);
    from.may_become(to)
        || State::ALL.iter().any(|middle| *middle != State::Running && between(middle))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_store_does_as_the_model(
        history in prop::collection::vec((op(), prop::bool::weighted(0.08)), 1..120),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut both = Both::new(&folder);
        for (op, rolled_back) in &history {
            both.step(op, *rolled_back);
            both.compare();
        }
        both.reopen();
        both.compare();
    }
}
