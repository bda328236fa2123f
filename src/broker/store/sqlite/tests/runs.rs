//! Runs of workflows under random histories: whatever happens in whatever order, no run is forgotten.

use std::collections::BTreeSet;

use super::{DEFAULTS, Sqlite, new_task, submit};
use crate::broker::store::sqlite::{Durability, cancelled};
use crate::broker::store::{
    AdvanceBy, Cancelled, Claim, Claimed, End, Moved, Next, Owner, Retried, Retry, Store,
};
use crate::handler::Needs;
use crate::protocol::link::{Run, Seq};
use crate::protocol::steps::StepTask;
use crate::task::{NewTask, TaskId};

const OWNER: Owner = Owner { instance: 1, serial: 7 };
/// Steps that the runs of one history may have in all, so that it ends.
const STEPS_MAX: u32 = 400;

/// A generator of its own, so that a seed means the same for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

struct History {
    store: Sqlite,
    random: Random,
    runs: Vec<TaskId>,
    /// What is claimed, and whether it is a run.
    open: Vec<(Run, bool)>,
    steps: u32,
    now_ms: i64,
}

impl History {
    fn new(folder: &tempfile::TempDir, seed: u64) -> Self {
        let path = folder.path().join(format!("{seed}.db"));
        let store = Sqlite::open(&path, 1, Durability::Os).unwrap();
        let random = Random(seed);
        Self { store, random, runs: Vec::new(), open: Vec::new(), steps: 0, now_ms: 1000 }
    }

    fn step(&mut self) {
        self.now_ms += 1;
        match self.random.below(10) {
            0 => self.submit(),
            1..=3 => self.claim(),
            4..=7 => self.end(),
            8 => self.cancel(),
            _ => self.retry(),
        }
        self.check();
    }

    fn submit(&mut self) {
        let lane = (self.random.below(3) == 0).then(|| "lane".to_owned());
        let task = NewTask { kind: "workflow".to_owned(), lane, ..new_task("{}") };
        let ids = submit(&mut self.store, vec![task], self.now_ms).unwrap();
        self.runs.extend(ids);
    }

    fn seqs(&self, condition: &str) -> Vec<Seq> {
        let sql = format!("SELECT seq FROM tasks WHERE {condition} ORDER BY seq");
        let mut query = self.store.db.prepare(&sql).unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn claim(&mut self) {
        let ready = self.seqs("state = 0");
        if ready.is_empty() {
            return;
        }
        let seq = ready[self.random.below(ready.len())];
        let claim = Claim { seq, owner: OWNER, worker_pid: 1, now_ms: self.now_ms, sees: None };
        self.store.begin(true).unwrap();
        let claimed = self.store.claim(&claim).unwrap().unwrap();
        self.store.commit().unwrap();
        self.hold(&claimed);
    }

    fn hold(&mut self, claimed: &Claimed) {
        let facts = &claimed.facts;
        assert_eq!(facts.is_run, claimed.steps.is_some());
        self.open.push((facts.run, facts.is_run));
    }

    fn end(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let (run, is_run) = self.open.swap_remove(self.random.below(self.open.len()));
        let next = if is_run { self.end_of_run(run) } else { self.end_of_step() };
        let heard = (self.random.below(2) == 0).then_some(0);
        let by = AdvanceBy { owner: OWNER, worker_pid: 1, heard };
        let advance = (self.random.below(3) > 0).then_some(by);
        let (now_ms, calls) = (self.now_ms, Vec::new());
        let end =
            End { run, owner: OWNER, now_ms, next, awaited: false, calls, advance, keep: None };
        self.store.begin(false).unwrap();
        let moved = self.store.end(&end).unwrap().expect("it was held");
        self.store.commit().unwrap();
        self.moved(&moved);
    }

    fn moved(&mut self, moved: &Moved) {
        if let Some(claimed) = &moved.advance {
            self.hold(claimed);
        }
        for also in &moved.also {
            assert!(also.advance.is_none());
            self.moved(also);
        }
    }

    /// As a worker would: a run with steps that are open goes on waiting.
    fn end_of_run(&mut self, run: Run) -> Next {
        let open = self.seqs(&format!("parent = {} AND ended IS NULL", run.seq));
        let new = self.random.below(4);
        let new = if self.steps < STEPS_MAX { new } else { 0 };
        match self.random.below(8) {
            0 => Next::PutBack,
            1 => {
                let blamed = vec![format!("s{}", self.random.below(self.steps as usize + 1))];
                Next::RunFailed { error: cancelled("a test"), blamed, heard: i64::MAX }
            }
            _ if open.is_empty() && new == 0 => {
                Next::Succeeded { output: "{}".to_owned(), usage: None }
            }
            _ => {
                let steps = (0..new).map(|_| self.new_step()).collect();
                Next::Advanced { steps, defaults: DEFAULTS }
            }
        }
    }

    fn new_step(&mut self) -> StepTask {
        self.steps += 1;
        let kind = if self.random.below(4) == 0 { "workflow" } else { "noop" };
        StepTask {
            id: TaskId::new(),
            key: format!("s{}", self.steps),
            kind: kind.to_owned(),
            input: "{}".to_owned(),
            priority: None,
            timeout_ms: None,
            max_attempts: None,
            task_key: (self.random.below(3) == 0).then(|| format!("k{}", self.random.below(3))),
            expect: None,
            needs: Needs::default(),
        }
    }

    fn end_of_step(&mut self) -> Next {
        match self.random.below(6) {
            0 => Next::Failed { error: cancelled("a test") },
            1 => Next::PutBack,
            2 => Next::Lost { charged: 0, suspect: 1, error: cancelled("a test") },
            _ => Next::Succeeded { output: "{\"text\":\"x\"}".to_owned(), usage: None },
        }
    }

    fn any_task(&mut self) -> Option<TaskId> {
        let all = self.seqs("1");
        if all.is_empty() {
            return None;
        }
        let seq = all[self.random.below(all.len())];
        let sql = "SELECT id FROM tasks WHERE seq = ?1";
        Some(self.store.db.query_row(sql, [seq], |row| super::super::id_of(row, 0)).unwrap())
    }

    fn cancel(&mut self) {
        let Some(id) = self.any_task() else { return };
        self.store.begin(true).unwrap();
        let done = self.store.cancel(id, self.now_ms).unwrap();
        self.store.commit().unwrap();
        if let Some(Cancelled::Now(moved)) = done {
            self.moved(&moved);
        }
    }

    fn retry(&mut self) {
        let Some(id) = self.any_task() else { return };
        let redo = (self.random.below(2) == 0)
            .then(|| (1..=self.steps).map(|n| format!("s{n}")).collect::<BTreeSet<_>>());
        self.store.begin(true).unwrap();
        let retried = self.store.retry(&Retry { id, redo }).unwrap();
        self.store.commit().unwrap();
        if let Some(Retried::Back(moved)) = retried {
            self.moved(&moved);
        }
    }

    fn check(&mut self) {
        let waits = "kind = 'workflow' AND state = 3 AND stepping = 1";
        let forgotten = self.seqs(&format!(
            "{waits} AND NOT EXISTS
             (SELECT 1 FROM tasks AS s WHERE s.parent = tasks.seq AND s.ended IS NULL)"
        ));
        assert_eq!(forgotten, Vec::<Seq>::new(), "a run that nothing wakes");
        let started = self.seqs(
            "state IN (0, 2, 3) AND parent IN
               (SELECT seq FROM tasks WHERE kind = 'workflow' AND state IN (5, 6))",
        );
        assert_eq!(started, Vec::<Seq>::new(), "a waiting step of a run that has ended");
        let twins = self.seqs(
            "state = 3 AND twin IS NOT NULL AND NOT EXISTS
               (SELECT 1 FROM tasks AS t WHERE t.seq = tasks.twin AND t.state < 4)",
        );
        assert_eq!(twins, Vec::<Seq>::new(), "a step that waits for nobody's answer");
        let ends = self.seqs("parent IS NOT NULL AND (ended IS NOT NULL) <> (state >= 4)");
        assert_eq!(ends, Vec::<Seq>::new(), "an end without its place");
        let counted = self.store.depth().unwrap().queues;
        assert_eq!(counted, self.store.read_depth().unwrap().queues, "the depth");
    }
}

#[test]
fn no_run_is_ever_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 0..25 {
        let mut history = History::new(&folder, seed);
        for turn in 0..300 {
            let step = std::panic::AssertUnwindSafe(|| history.step());
            if let Err(panic) = std::panic::catch_unwind(step) {
                eprintln!("seed {seed}, turn {turn}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
