//! Runs of workflows that are cancelled, retried and forgotten while some of their steps are open.

use std::collections::BTreeSet;

use super::{DEFAULTS, Sqlite, new_task, submit};
use crate::broker::store::sqlite::{Durability, cancelled};
use crate::broker::store::{
    Cancelled, Claim, End, Moved, Next, Owner, Retried, Retry, Steps, Store,
};
use crate::handler::Needs;
use crate::protocol::calls::CALL_TOKENS_MAX;
use crate::protocol::link::{Run, Seq};
use crate::protocol::steps::{StepEnd, StepTask};
use crate::task::{NewTask, State, TaskId, Usage};

const OWNER: Owner = Owner { instance: 1, serial: 7 };

struct Played {
    store: Sqlite,
    now_ms: i64,
    _folder: tempfile::TempDir,
}

impl Played {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("a.db"), 1, Durability::Os).unwrap();
        Self { store, now_ms: 1000, _folder: folder }
    }

    fn submit(&mut self) -> TaskId {
        let task = NewTask { kind: "workflow".to_owned(), ..new_task("{}") };
        submit(&mut self.store, vec![task], self.now_ms).unwrap()[0]
    }

    fn within<T>(&mut self, step: impl FnOnce(&mut Sqlite) -> T) -> T {
        self.now_ms += 1;
        self.store.begin(false).unwrap();
        let done = step(&mut self.store);
        self.store.commit().unwrap();
        done
    }

    /// Claims a run, or the step of a run with this key; what a run is told of its steps.
    fn claim(&mut self, seq: Seq) -> (Run, Option<Steps>) {
        let now_ms = self.now_ms;
        let claim = Claim { seq, owner: OWNER, worker_pid: 1, now_ms, sees: None };
        let claimed = self.within(|store| store.claim(&claim)).unwrap().expect("it was queued");
        (claimed.facts.run, claimed.steps)
    }

    fn end(&mut self, run: Run, next: Next) -> Moved {
        let (now_ms, calls) = (self.now_ms, Vec::new());
        let end = End {
            run,
            owner: OWNER,
            now_ms,
            next,
            awaited: false,
            calls,
            advance: None,
            keep: None,
        };
        self.within(|store| store.end(&end)).unwrap().expect("it was held")
    }

    /// Has a run begin these steps, and claims them.
    fn begin(&mut self, run: Run, steps: &[(&str, &str)]) -> Vec<Run> {
        let tasks = steps.iter().map(|(key, kind)| step(key, kind)).collect();
        self.end(run, Next::Advanced { steps: tasks, defaults: DEFAULTS });
        steps.iter().map(|(key, _)| self.claim(self.seq_of(run.seq, key)).0).collect()
    }

    fn seq(&self, id: TaskId) -> Seq {
        let sql = "SELECT seq FROM tasks WHERE id = ?1";
        self.store.db.query_row(sql, [id.0.as_bytes()], |row| row.get(0)).unwrap()
    }

    fn seq_of(&self, run: Seq, key: &str) -> Seq {
        let sql = "SELECT seq FROM tasks WHERE parent = ?1 AND step = ?2";
        self.store.db.query_row(sql, (run, key), |row| row.get(0)).unwrap()
    }

    fn state(&self, seq: Seq) -> State {
        let sql = "SELECT state FROM tasks WHERE seq = ?1";
        self.store.db.query_row(sql, [seq], |row| super::super::state_of(row, 0)).unwrap()
    }

    fn cancel(&mut self, id: TaskId) -> Cancelled {
        let now_ms = self.now_ms;
        self.within(|store| store.cancel(id, now_ms)).unwrap().unwrap()
    }

    fn retry(&mut self, id: TaskId, redo: Option<&[&str]>) -> Retried {
        let redo = redo.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let redo: Option<BTreeSet<String>> = redo;
        self.within(|store| store.retry(&Retry { id, redo })).unwrap().unwrap()
    }

    /// A run whose first step has failed, and whose second one runs.
    fn half_failed(&mut self, kind: &str) -> (TaskId, Run, [Run; 2]) {
        let id = self.submit();
        let (run, _) = self.claim(self.seq(id));
        let steps = self.begin(run, &[("a", "noop"), ("b", kind)]);
        self.end(steps[0], failed());
        let (run, told) = self.claim(run.seq);
        self.end(run, run_failed(&["a"], told));
        (id, run, [steps[0], steps[1]])
    }

    /// The depth as it is counted is the depth as it is.
    fn check(&mut self) {
        let counted = self.store.depth().unwrap().queues;
        assert_eq!(counted, self.store.read_depth().unwrap().queues, "the depth");
    }
}

fn step(key: &str, kind: &str) -> StepTask {
    StepTask {
        id: TaskId::new(),
        key: key.to_owned(),
        kind: kind.to_owned(),
        input: "{}".to_owned(),
        priority: None,
        timeout_ms: None,
        max_attempts: None,
        task_key: None,
        expect: None,
        needs: Needs::default(),
    }
}

fn succeeded() -> Next {
    Next::Succeeded { output: "{}".to_owned(), usage: None }
}

fn failed() -> Next {
    Next::Failed { error: cancelled("a test") }
}

fn run_failed(blamed: &[&str], told: Option<Steps>) -> Next {
    let blamed = blamed.iter().map(|key| (*key).to_owned()).collect();
    Next::RunFailed { error: cancelled("a test"), blamed, heard: told.unwrap().heard }
}

#[test]
fn whatever_steps_say_that_they_used_their_run_can_end() {
    let mut played = Played::new();
    let id = played.submit();
    let (run, _) = played.claim(played.seq(id));
    for step in played.begin(run, &[("a", "noop"), ("b", "noop"), ("c", "noop")]) {
        let usage = Usage {
            prompt_tokens: i64::MAX.unsigned_abs(),
            completion_tokens: u64::MAX,
            total_tokens: 0,
        };
        played.end(step, Next::Succeeded { output: "{}".to_owned(), usage: Some(usage) });
    }
    let (run, _) = played.claim(run.seq);
    played.end(run, succeeded());
    let view = crate::broker::store::view::task(&played.store.db, id).unwrap().unwrap();
    let used = view.usage.unwrap();
    assert_eq!(used.prompt_tokens, CALL_TOKENS_MAX);
    assert_eq!(used.total_tokens, 2 * CALL_TOKENS_MAX);
}

#[test]
fn a_cancel_that_crosses_an_end_is_not_lost() {
    let mut played = Played::new();
    let id = played.submit();
    let (run, _) = played.claim(played.seq(id));
    assert!(matches!(played.cancel(id), Cancelled::Running { .. }));
    let steps = vec![step("a", "noop")];
    let moved = played.end(run, Next::Advanced { steps, defaults: DEFAULTS });
    assert_eq!(moved.state, State::Cancelled, "the run waits on");
    let ids = submit(&mut played.store, vec![new_task("{}")], 0).unwrap();
    let (task, _) = played.claim(played.seq(ids[0]));
    played.cancel(ids[0]);
    let again = Next::RetryAt { due_at_ms: 9999, charged: 1, error: cancelled("a test") };
    assert_eq!(played.end(task, again).state, State::Cancelled, "a plain task goes on");
    played.check();
}

#[test]
fn a_run_that_is_put_back_and_cancelled_takes_its_steps_along() {
    let mut played = Played::new();
    let (id, _, [_, b]) = played.half_failed("noop");
    assert!(matches!(played.retry(id, None), Retried::Back(_)));
    let Cancelled::Now(moved) = played.cancel(id) else { panic!("it was queued") };
    assert_eq!(moved.running, [b.seq], "its step runs on");
    played.check();
}

#[test]
fn a_retry_also_takes_back_what_failed_after_its_run() {
    for late in [true, false] {
        let mut played = Played::new();
        let id = played.submit();
        let (run, _) = played.claim(played.seq(id));
        let steps = played.begin(run, &[("a", "noop"), ("b", "noop")]);
        played.end(steps[0], failed());
        let (run, told) = played.claim(run.seq);
        if late {
            played.end(run, run_failed(&["a"], told));
            played.end(steps[1], failed());
        } else {
            // During the advance that finds out: it has not heard of it.
            played.end(steps[1], failed());
            played.end(run, run_failed(&["a"], told));
        }
        played.retry(id, None);
        let (_, told) = played.claim(run.seq);
        let told = told.unwrap();
        assert!(told.news.iter().all(|news| news.end.is_none()), "late {late}: {told:?}");
        assert_eq!(told.resumed.len(), 2);
        played.check();
    }
}

#[test]
fn what_the_run_took_in_is_kept_by_a_retry() {
    let mut played = Played::new();
    let id = played.submit();
    let (run, _) = played.claim(played.seq(id));
    let steps = played.begin(run, &[("a", "noop"), ("b", "noop"), ("c", "noop")]);
    // The run goes on with a stated output for the first.
    played.end(steps[0], failed());
    let (run, _) = played.claim(run.seq);
    played.end(run, Next::Advanced { steps: Vec::new(), defaults: DEFAULTS });
    played.end(steps[1], failed());
    let (run, told) = played.claim(run.seq);
    played.end(run, run_failed(&["b"], told));
    played.end(steps[2], succeeded());
    played.retry(id, None);
    let told = played.claim(run.seq).1.unwrap();
    let ends: Vec<_> = told.news.iter().map(|news| (news.key.as_str(), &news.end)).collect();
    let (failed, done) =
        (StepEnd::Failed("a test".to_owned()), StepEnd::Succeeded("{}".to_owned()));
    assert_eq!(ends, [("b", &None), ("a", &Some(failed)), ("c", &Some(done))]);
}

#[test]
fn nothing_that_runs_is_forgotten() {
    for prunes in [false, true] {
        let mut played = Played::new();
        let id = played.submit();
        let (run, _) = played.claim(played.seq(id));
        let inner = played.begin(run, &[("inner", "workflow")])[0];
        let steps = played.begin(inner, &[("a", "noop"), ("b", "noop")]);
        played.end(steps[0], failed());
        let (inner, told) = played.claim(inner.seq);
        played.end(inner, run_failed(&["a"], told));
        let (run, told) = played.claim(run.seq);
        played.end(run, run_failed(&["inner"], told));
        let forget = |played: &mut Played| {
            if prunes {
                let before_ms = played.now_ms + 10;
                played.within(|store| store.prune(before_ms, 100)).unwrap();
                return;
            }
            let retried = played.retry(id, Some(&["inner"]));
            assert!(matches!(retried, Retried::StillRuns(_) | Retried::Back(_)), "{retried:?}");
        };
        forget(&mut played);
        assert_eq!(played.state(steps[1].seq), State::Running, "prunes {prunes}");
        played.end(steps[1], succeeded());
        played.check();
        forget(&mut played);
        let left: i64 =
            played.store.db.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0)).unwrap();
        assert_eq!(left, i64::from(!prunes));
    }
}

#[test]
fn a_large_run_is_forgotten_piece_by_piece() {
    const LIMIT: u32 = 10;
    let mut played = Played::new();
    let id = played.submit();
    let (run, _) = played.claim(played.seq(id));
    let inner = played.begin(run, &[("inner", "workflow")])[0];
    let keys: Vec<String> = (0..500).map(|n| format!("s[{n}]")).collect();
    let steps: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "noop")).collect();
    for step in played.begin(inner, &steps) {
        played.end(step, succeeded());
    }
    for run in [inner, run] {
        let (run, _) = played.claim(run.seq);
        played.end(run, succeeded());
    }
    let before_ms = played.now_ms + 1;
    let (mut left, mut looks) = (502, 0);
    while left > 0 {
        let count = played.within(|store| store.prune(before_ms, LIMIT)).unwrap();
        let sql = "SELECT count(*) FROM tasks";
        let now: u32 = played.store.db.query_row(sql, [], |row| row.get(0)).unwrap();
        assert!(left - now <= 8 * LIMIT, "{left} to {now}");
        assert!(now == 0 || count == LIMIT, "it is looked at again at once");
        (left, looks) = (now, looks + 1);
    }
    assert_eq!(looks, 7);
}

#[test]
fn a_key_is_one_task_also_after_a_retry() {
    for heir_has_ended in [false, true] {
        let mut played = Played::new();
        let keyed = |key: &str| StepTask { task_key: Some("k".to_owned()), ..step(key, "noop") };
        let go = |step| Next::Advanced { steps: vec![step], defaults: DEFAULTS };
        let ids = [played.submit(), played.submit()];
        let runs = ids.map(|id| played.claim(played.seq(id)).0);
        played.end(runs[0], go(keyed("a")));
        let (a, _) = played.claim(played.seq_of(runs[0].seq, "a"));
        played.end(a, failed());
        let (run, told) = played.claim(runs[0].seq);
        played.end(run, run_failed(&["a"], told));
        // Its key goes to a step of another run.
        played.end(runs[1], go(keyed("b")));
        let (b, _) = played.claim(played.seq_of(runs[1].seq, "b"));
        if heir_has_ended {
            played.end(b, succeeded());
        }
        played.retry(ids[0], None);
        let told = played.claim(run.seq).1.unwrap();
        assert!(told.resumed.is_empty(), "it runs a second time");
        if !heir_has_ended {
            assert_eq!(played.state(a.seq), State::Blocked);
            played.end(b, succeeded());
        }
        assert_eq!(played.state(a.seq), State::Succeeded);
        played.check();
    }
}

#[test]
fn a_step_that_waited_for_an_answer_waits_again_after_a_retry() {
    let mut played = Played::new();
    let task = NewTask { key: Some("k".to_owned()), ..new_task("{}") };
    let first = submit(&mut played.store, vec![task], 0).unwrap()[0];
    let id = played.submit();
    let (run, _) = played.claim(played.seq(id));
    let twin = StepTask { task_key: Some("k".to_owned()), ..step("b", "noop") };
    let steps = vec![step("a", "noop"), twin];
    played.end(run, Next::Advanced { steps, defaults: DEFAULTS });
    let (a, _) = played.claim(played.seq_of(run.seq, "a"));
    played.end(a, failed());
    let (run, told) = played.claim(run.seq);
    played.end(run, run_failed(&["a"], told));
    let b = played.seq_of(run.seq, "b");
    assert_eq!(played.state(b), State::Cancelled);
    played.retry(id, None);
    let told = played.claim(run.seq).1.unwrap();
    assert_eq!((told.resumed.len(), played.state(b)), (1, State::Blocked));
    let (first, _) = played.claim(played.seq(first));
    played.end(first, failed());
    assert_eq!(played.state(b), State::Queued, "it goes itself");
    played.check();
}

#[test]
fn a_failure_spares_what_runs_within_a_workflow_beside_it() {
    for cancels in [false, true] {
        let mut played = Played::new();
        let id = played.submit();
        let (run, _) = played.claim(played.seq(id));
        let both = played.begin(run, &[("a", "noop"), ("inner", "workflow")]);
        let [c, d] = played.begin(both[1], &[("c", "noop"), ("d", "workflow")])[..] else {
            unreachable!()
        };
        let e = played.begin(d, &[("e", "noop")])[0];
        let running = if cancels {
            let Cancelled::Now(moved) = played.cancel(id) else { panic!("it was waiting") };
            all_running(&moved)
        } else {
            played.end(both[0], failed());
            let (run, told) = played.claim(run.seq);
            all_running(&played.end(run, run_failed(&["a"], told)))
        };
        let expected = if cancels { vec![both[0].seq, c.seq, e.seq] } else { Vec::new() };
        assert_eq!(running, expected, "these are told to end");
        if cancels {
            continue;
        }
        for step in [c, e] {
            assert_eq!(played.end(step, succeeded()).state, State::Succeeded);
        }
        // A retry finds what was paid for.
        played.retry(id, None);
        played.claim(run.seq);
        let told = played.claim(both[1].seq).1.unwrap();
        let done = |told: &Steps| told.news.iter().filter(|news| news.end.is_some()).count();
        assert_eq!((done(&told), told.resumed.len()), (1, 1));
        assert_eq!(done(&played.claim(d.seq).1.unwrap()), 1);
        played.check();
    }
}

fn all_running(moved: &Moved) -> Vec<Seq> {
    let within = moved.also.iter().flat_map(all_running);
    let mut all: Vec<Seq> = moved.running.iter().copied().chain(within).collect();
    all.sort_unstable();
    all
}
