//! The writer over a store that can be told to be full.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::broker::budget::Spent;
use crate::broker::store::StoreError;
use crate::broker::store::{Defaults, Next, OpenClaim, Owner};
use crate::protocol::control::RefusalKind;
use crate::protocol::link::Run;
use crate::task::{NewTask, State, empty_object};

/// How much room the fake's disk has.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Room {
    #[default]
    Plenty,
    /// For commits of one step: what the reserve leaves.
    OneStep,
    None,
}

/// What the fake remembers, and how it is told what to do.
#[derive(Default)]
struct Disk {
    room: Room,
    /// The steps of each transaction that was committed.
    committed: Vec<Vec<String>>,
    open: Vec<String>,
    /// Commits that were tried in vain.
    in_vain: usize,
    broken: bool,
    closed: bool,
}

struct Fake(Arc<Mutex<Disk>>);

impl Fake {
    fn step(&mut self, what: String) -> Result<(), StoreError> {
        let mut disk = self.0.lock().unwrap();
        if disk.broken {
            return Err(StoreError::Fatal("the database is damaged".to_owned()));
        }
        disk.open.push(what);
        Ok(())
    }
}

impl Store for Fake {
    fn begin(&mut self, _durable: bool) -> Result<(), StoreError> {
        assert!(self.0.lock().unwrap().open.is_empty(), "a transaction is open already");
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let mut disk = self.0.lock().unwrap();
        let fits = match disk.room {
            Room::Plenty => true,
            Room::OneStep => disk.open.len() <= 1,
            Room::None => disk.open.is_empty(),
        };
        if !fits {
            disk.in_vain += 1;
            return Err(StoreError::Full);
        }
        let steps = std::mem::take(&mut disk.open);
        disk.committed.push(steps);
        Ok(())
    }

    fn rollback(&mut self) {
        self.0.lock().unwrap().open.clear();
    }

    fn insert(&mut self, insert: &Insert) -> Result<Result<Vec<Accepted>, Refusal>, StoreError> {
        self.step("insert".to_owned())?;
        let accepted = insert.tasks.iter().map(|task| Accepted {
            id: task.id,
            state: State::Queued,
            ready: None,
            due_at_ms: None,
            expires_at_ms: None,
        });
        Ok(Ok(accepted.collect()))
    }

    fn claim(&mut self, claim: &Claim) -> Result<Option<Claimed>, StoreError> {
        self.step(format!("claim {}", claim.seq)).map(|()| None)
    }

    fn end(&mut self, end: &End) -> Result<Option<Moved>, StoreError> {
        self.step(format!("end {}", end.run.seq))?;
        let (id, state) = (id_of(end.run.seq), end.next.state());
        Ok(Some(Moved::of(0, id, state)))
    }

    fn cancel(&mut self, _id: TaskId, _now_ms: i64) -> Result<Option<Cancelled>, StoreError> {
        self.step("cancel".to_owned()).map(|()| None)
    }

    fn clear(&mut self, _clear: &Clear) -> Result<Vec<Moved>, StoreError> {
        self.step("clear".to_owned()).map(|()| Vec::new())
    }

    fn retry(&mut self, _retry: &Retry) -> Result<Option<Retried>, StoreError> {
        self.step("retry".to_owned()).map(|()| None)
    }

    fn promote(&mut self, _now_ms: i64, _limit: u32) -> Result<Due, StoreError> {
        self.step("promote".to_owned()).map(|()| Due::default())
    }

    fn expire(&mut self, _now_ms: i64, _limit: u32) -> Result<Due, StoreError> {
        self.step("expire".to_owned()).map(|()| Due::default())
    }

    fn prune(&mut self, _finished_before_ms: i64, _limit: u32) -> Result<u32, StoreError> {
        self.step("prune".to_owned()).map(|()| 1)
    }

    fn forget_session(&mut self, _: &str, _: i64) -> Result<Option<Forgotten>, StoreError> {
        self.step("forget".to_owned()).map(|()| None)
    }

    fn prune_sessions(&mut self, _: i64, _: u32) -> Result<u32, StoreError> {
        self.step("prune".to_owned()).map(|()| 0)
    }

    fn refill(&mut self, _refill: &Refill) -> Result<Vec<Ready>, StoreError> {
        Ok(Vec::new())
    }

    fn pause(&mut self, _queue: Option<&str>, _paused: bool) -> Result<(), StoreError> {
        self.step("pause".to_owned())
    }

    fn remember(&mut self, _: &Memo) -> Result<(), StoreError> {
        Ok(())
    }
    fn memos(&mut self, _: i64) -> Result<Vec<Memo>, StoreError> {
        Ok(Vec::new())
    }
    fn spent_on(&mut self, day: i64) -> Result<Spent, StoreError> {
        Ok(Spent::on(day))
    }
    fn remember_run(&mut self, schedule: &str, at_ms: Option<i64>) -> Result<(), StoreError> {
        self.step(format!("run of {schedule} at {at_ms:?}"))
    }

    fn last_runs(&mut self) -> Result<BTreeMap<String, i64>, StoreError> {
        Ok(BTreeMap::new())
    }

    fn claims(&mut self) -> Result<Vec<OpenClaim>, StoreError> {
        Ok(Vec::new())
    }

    fn depth(&mut self) -> Result<Depth, StoreError> {
        Ok(Depth::default())
    }

    fn close(&mut self) {
        self.0.lock().unwrap().closed = true;
    }
}

/// A writer under test, and both of its ends.
struct Bench {
    disk: Arc<Mutex<Disk>>,
    writer: Writer,
    told: UnboundedReceiver<Told>,
    /// Ops whose answers have been seen.
    seen: u64,
    folder: tempfile::TempDir,
}

impl Bench {
    /// The reserve lies in a folder that is not there: no room is found before it is.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(reserve_folder(folder.path()).join("forq.reserve"));
        let disk = Arc::new(Mutex::new(Disk::default()));
        let (sender, told) = unbounded_channel();
        let writer = Writer::start(Box::new(Fake(Arc::clone(&disk))), reserve, sender).unwrap();
        Self { disk, writer, told, seen: 0, folder }
    }

    fn set_room(&self, room: Room) {
        self.disk.lock().unwrap().room = room;
    }

    /// Room for the reserve again, too.
    fn make_room(&self) {
        self.set_room(Room::Plenty);
        std::fs::create_dir(reserve_folder(self.folder.path())).unwrap();
    }

    fn next(&mut self) -> Told {
        self.told.blocking_recv().expect("the writer is there")
    }

    fn answers(&mut self) -> Vec<Answer> {
        self.answers_that_hold(true)
    }

    /// The answers of one transaction.
    fn answers_that_hold(&mut self, expected: bool) -> Vec<Answer> {
        match self.next() {
            Told::Answers { first, answers, holds } if holds == expected => {
                assert_eq!(first, self.seen);
                self.seen += answers.len() as u64;
                answers
            }
            other => panic!("{other:?}"),
        }
    }

    /// The answers of the next ops in the order of the ops, and the order in which they came.
    fn answers_of(&mut self, count: usize) -> (Vec<Answer>, Vec<usize>) {
        let mut came = Vec::new();
        while came.len() < count {
            let Told::Answers { first, answers, .. } = self.next() else { continue };
            came.extend((first..).zip(answers));
        }
        let order = came.iter().map(|(number, _)| (number - self.seen) as usize).collect();
        came.sort_by_key(|(number, _)| *number);
        assert!(came.iter().map(|(number, _)| *number).eq(self.seen..self.seen + count as u64));
        self.seen += count as u64;
        (came.into_iter().map(|(_, answer)| answer).collect(), order)
    }

    /// One submission that finds the disk full.
    fn fill(&mut self, room: Room) {
        self.set_room(room);
        self.writer.send(vec![insert(&[TaskId::new(), TaskId::new()]), Op::Depth, end(0)]);
        assert!(matches!(self.next(), Told::DiskFull(true)));
    }
}

fn reserve_folder(folder: &Path) -> PathBuf {
    folder.join("room")
}

fn id_of(seq: i64) -> TaskId {
    TaskId(uuid::Uuid::from_u128(seq.unsigned_abs().into()))
}

fn insert(ids: &[TaskId]) -> Op {
    let task = |id: &TaskId| NewTask { id: *id, ..NewTask::new("noop", empty_object()) };
    let defaults = Defaults { max_attempts: 1, timeout_ms: 1, max_queued: 1 };
    Op::Insert(Insert {
        tasks: ids.iter().map(task).collect(),
        defaults,
        now_ms: 0,
        over_budget: Default::default(),
        dry_run: None,
    })
}

fn end(seq: i64) -> Op {
    end_for(seq, true)
}

fn end_for(seq: i64, awaited: bool) -> Op {
    let next = Next::Succeeded { output: "{}".to_owned(), usage: None };
    let owner = Owner { instance: 1, serial: 1 };
    Op::End(End {
        run: Run { seq, attempt: 1 },
        owner,
        now_ms: 0,
        next,
        awaited,
        calls: Vec::new(),
        advance: None,
        keep: None,
    })
}

fn claim(seq: i64) -> Op {
    let owner = Owner { instance: 1, serial: 1 };
    Op::Claim(Claim { seq, owner, worker_pid: 1, now_ms: 0, sees: None })
}

#[track_caller]
fn assert_kept(answer: &Answer, seq: i64) {
    assert!(matches!(answer, Answer::Ended(Some(moved)) if moved.id == id_of(seq)), "{answer:?}");
}

#[track_caller]
fn assert_refused(answer: &Answer) {
    let (Answer::Inserted(Err(refusal))
    | Answer::Cancelled(Err(refusal))
    | Answer::Cleared(Err(refusal))
    | Answer::SessionForgotten(Err(refusal))
    | Answer::Retried(Err(refusal))
    | Answer::Paused(Err(refusal))) = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(refusal.message.contains("the disk is full: make room"), "{refusal}");
}

#[test]
fn answers_come_in_the_order_of_their_ops() {
    let mut bench = Bench::new();
    for seq in 0..5000 {
        bench.writer.send(vec![insert(&[id_of(seq)]), end(seq), Op::Depth]);
    }
    for seq in 0..5000 {
        let answers = bench.answers();
        let [Answer::Inserted(Ok(accepted)), ended, Answer::Depth(_)] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert_eq!(accepted[0].id, id_of(seq));
        assert_kept(ended, seq);
    }
    bench.writer.close();
    assert!(bench.disk.lock().unwrap().closed);
}

#[test]
fn results_that_nobody_waits_for_hold_with_the_next_commit_that_does() {
    let mut bench = Bench::new();
    bench.writer.send(vec![end_for(1, false)]);
    assert_kept(&bench.answers_that_hold(false)[0], 1);
    bench.writer.send(vec![end_for(2, false), claim(3)]);
    assert_kept(&bench.answers_that_hold(false)[0], 2);
    bench.writer.send(vec![Op::Sync]);
    assert!(matches!(bench.answers_that_hold(true)[..], [Answer::Synced]));
    bench.writer.send(vec![end_for(4, false), insert(&[id_of(5)])]);
    assert_kept(&bench.answers_that_hold(true)[0], 4);
}

#[test]
fn on_a_full_disk_submissions_are_refused_and_results_are_kept() {
    let mut bench = Bench::new();
    bench.fill(Room::OneStep);
    let (answers, _) = bench.answers_of(3);
    assert_refused(&answers[0]);
    assert!(matches!(answers[1], Answer::Depth(_)));
    assert_kept(&answers[2], 0);
    bench.writer.send(vec![end(1), claim(2), insert(&[id_of(3)]), end(4)]);
    bench.writer.send(vec![end(5)]);
    let (answers, order) = bench.answers_of(5);
    assert_kept(&answers[0], 1);
    assert!(matches!(answers[1], Answer::Claimed(Err(DiskFull))));
    assert_refused(&answers[2]);
    assert_kept(&answers[3], 4);
    assert_kept(&answers[4], 5);
    assert_eq!(order, [0, 1, 2, 3, 4]);
    // No result shared its transaction with anything once a commit had failed.
    let disk = bench.disk.lock().unwrap();
    let steps: Vec<_> = disk.committed.iter().filter(|steps| !steps.is_empty()).collect();
    assert_eq!(steps, [&["end 0"], &["end 1"], &["end 4"], &["end 5"]]);
    assert_eq!(disk.in_vain, 1);
}

#[test]
fn what_people_ask_is_refused_while_not_even_the_reserve_has_room() {
    let mut bench = Bench::new();
    bench.set_room(Room::None);
    let id = TaskId::new();
    let clear = Clear { queue: None, now_ms: 0, limit: 1 };
    bench.writer.send(vec![
        Op::Cancel { id, now_ms: 0 },
        Op::Clear(clear),
        Op::Retry(Retry { id, redo: None }),
        Op::Pause { queue: None, paused: true },
        Op::ForgetSession { name: "s".to_owned(), now_ms: 0 },
        Op::Promote { now_ms: 7000, limit: 1 },
        Op::Expire { now_ms: 7000, limit: 1 },
        Op::Prune { finished_before_ms: 0, idle_before_ms: None, limit: 1 },
    ]);
    assert!(matches!(bench.next(), Told::DiskFull(true)));
    let (answers, _) = bench.answers_of(8);
    answers[..5].iter().for_each(assert_refused);
    // What time brings is looked at again later.
    for answer in &answers[5..7] {
        let (Answer::Promoted(due) | Answer::Expired(due)) = answer else { panic!("{answer:?}") };
        assert!(due.next_at_ms.is_some_and(|at_ms| at_ms > 7000));
    }
    assert!(matches!(answers[7], Answer::Pruned(0)));
}

#[test]
fn results_wait_for_room_in_their_order_and_hold_up_nobody() {
    let mut bench = Bench::new();
    bench.set_room(Room::None);
    bench.writer.send(vec![end(0), insert(&[id_of(9)]), Op::Sync, end(1)]);
    bench.writer.send(vec![Op::Depth, Op::Pause { queue: None, paused: true }]);
    // Everything else is answered while they wait.
    let others: Vec<u64> = std::iter::repeat_with(|| bench.next())
        .filter_map(|told| match told {
            Told::Answers { first, .. } => Some(first),
            _ => None,
        })
        .take(3)
        .collect();
    assert_eq!(others, [1, 4, 5]);
    bench.make_room();
    assert!(matches!(bench.next(), Told::DiskFull(false)));
    for (number, seq) in [(0, Some(0)), (2, None), (3, Some(1))] {
        let told = bench.next();
        let Told::Answers { first, answers, holds: true } = told else { panic!("{told:?}") };
        assert_eq!(first, number);
        match seq {
            Some(seq) => assert_kept(&answers[0], seq),
            None => assert!(matches!(answers[..], [Answer::Synced])),
        }
    }
}

#[test]
fn results_take_the_last_room_even_if_there_is_none_for_more() {
    let mut bench = Bench::new();
    bench.fill(Room::None);
    // Too little for the reserve.
    bench.set_room(Room::OneStep);
    let (answers, order) = bench.answers_of(3);
    assert_refused(&answers[0]);
    assert_kept(&answers[2], 0);
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn it_recovers_by_itself_and_only_once_there_is_room_for_the_reserve() {
    let mut bench = Bench::new();
    bench.fill(Room::OneStep);
    bench.answers_of(3);
    // The store could write again, but the reserve could not be taken.
    bench.set_room(Room::Plenty);
    bench.writer.send(vec![insert(&[id_of(1)])]);
    assert_refused(&bench.answers_that_hold(false)[0]);
    bench.make_room();
    assert!(matches!(bench.next(), Told::DiskFull(false)), "without being asked");
    let reserve = reserve_folder(bench.folder.path()).join("forq.reserve");
    assert_eq!(std::fs::metadata(reserve).unwrap().len(), 8 << 20);
    bench.writer.send(vec![insert(&[id_of(2)])]);
    assert!(matches!(&bench.answers()[0], Answer::Inserted(Ok(accepted)) if accepted.len() == 1));
}

#[test]
fn a_store_that_breaks_is_told_of_with_its_sentence() {
    let mut bench = Bench::new();
    bench.disk.lock().unwrap().broken = true;
    bench.writer.send(vec![insert(&[id_of(1)])]);
    let told = bench.next();
    assert!(
        matches!(&told, Told::Broken(reason) if reason == "the database is damaged"),
        "{told:?}"
    );
    assert!(bench.told.blocking_recv().is_none(), "and nothing more comes");
}
