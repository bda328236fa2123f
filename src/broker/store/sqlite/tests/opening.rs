//! Files that are opened: old ones, newer ones, damaged ones, and what is none of ours.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{DEFAULTS, new_task, submit};
use crate::broker::store::schema::SCHEMA_VERSION;
use crate::broker::store::sqlite::{Durability, Sqlite};
use crate::broker::store::{
    Claim, Depth, End, Insert, Next, Owner, Refill, Store, StoreError, view,
};
use crate::protocol::control::ListFilter;
use crate::task::{ErrorKind, State, TaskError, TaskId, TaskView, Usage};

/// A database as version 1 of the schema wrote it.
const V1: &[u8] = include_bytes!("../../../../../tests/fixtures/forq-v1.db");

fn open(path: &Path, instance: i64) -> Result<Sqlite, StoreError> {
    Sqlite::open(path, instance, Durability::Fsync)
}

/// Opens what must be refused, and gives the sentence; the file must be as it was.
#[track_caller]
fn refused(path: &Path, instance: i64) -> String {
    let before = std::fs::read(path).unwrap();
    let Err(StoreError::Fatal(sentence)) = open(path, instance) else {
        panic!("{} was opened", path.display());
    };
    assert!(std::fs::read(path).unwrap() == before, "the file was changed");
    assert!(sentence.contains(&path.display().to_string()), "{sentence}");
    assert!(sentence.contains("nothing was changed"), "{sentence}");
    sentence
}

/// A database of some pages, which nobody closed as it should be.
fn left_open(folder: &Path, instance: i64) -> PathBuf {
    let path = folder.join("forq.db");
    let mut store = open(&path, instance).unwrap();
    let tasks = (0..100).map(|_| new_task(&format!("\"{}\"", "x".repeat(3000)))).collect();
    submit(&mut store, tasks, 1000).unwrap();
    path
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = left_open(folder.path(), 1);
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(db);
    for instance in [1, 2] {
        let sentence = refused(&path, instance);
        let newer = format!("(schema {}, this one knows {SCHEMA_VERSION})", SCHEMA_VERSION + 1);
        assert!(sentence.contains(&format!("newer forq {newer}")), "{sentence}");
        assert!(sentence.contains("--state-dir"), "{sentence}");
    }
}

#[test]
fn what_is_no_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    let text = "not a database at all\n".repeat(1000);
    for bytes in [text.as_bytes(), &[0xff; 100], &V1[16..]] {
        std::fs::write(&path, bytes).unwrap();
        let sentence = refused(&path, 1);
        assert!(sentence.contains("is damaged") && sentence.contains("forq backup"), "{sentence}");
    }
}

#[test]
fn somebody_elses_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE tasks (title TEXT); INSERT INTO tasks VALUES ('mine')").unwrap();
    drop(db);
    let sentence = refused(&path, 1);
    assert!(sentence.contains("another program"), "{sentence}");
}

#[test]
fn a_page_that_changed_by_itself_is_found_after_an_unclean_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = left_open(folder.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    assert!(pages > 50, "{pages} pages");
    // Past the first pages, so that opening alone does not come across it.
    bytes[pages / 2 * 4096..][..4096].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    // Again and again, not only the first time.
    for _ in 0..2 {
        let sentence = refused(&path, 2);
        assert!(sentence.contains("is damaged") && sentence.contains("forq backup"), "{sentence}");
    }
}

#[test]
fn a_file_that_was_cut_is_found_after_an_unclean_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = left_open(folder.path(), 1);
    let bytes = std::fs::read(&path).unwrap();
    for kept in [bytes.len() / 2, bytes.len() / 2 + 100, bytes.len() - 4096, 4096, 200] {
        std::fs::write(&path, &bytes[..kept]).unwrap();
        let sentence = refused(&path, 2);
        assert!(sentence.contains("is damaged"), "{kept} bytes: {sentence}");
    }
}

/// A check reads every page: too dear after each death of a broker, which damages nothing.
#[test]
fn a_database_is_checked_only_when_a_machine_may_have_gone_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = left_open(folder.path(), 1);
    let damage = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 4096 / 2 * 4096;
        bytes[middle..][..4096].fill(0xa5);
        std::fs::write(path, bytes).unwrap();
    };
    let sound = std::fs::read(&path).unwrap();
    damage(&path);
    open(&path, 1).expect("the same start of the instance: not checked");
    std::fs::write(&path, sound).unwrap();
    open(&path, 2).unwrap().close();
    damage(&path);
    open(&path, 3).expect("closed as it should be: not checked");
}

/// SQLite syncs nothing for a transaction that changes nothing.
#[test]
fn a_durable_commit_makes_those_before_it_hold_even_if_it_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    let mut store = open(&path, 1).unwrap();
    store.begin(false).unwrap();
    let insert = Insert {
        tasks: vec![new_task("{}")],
        defaults: DEFAULTS,
        now_ms: 0,
        over_budget: Default::default(),
        dry_run: None,
    };
    store.insert(&insert).unwrap().unwrap();
    store.commit().unwrap();
    // The rows that an empty transaction changes: one if there is something to sync.
    let empty = |store: &mut Sqlite| {
        let before = store.db.total_changes();
        store.begin(true).unwrap();
        store.commit().unwrap();
        store.db.total_changes() - before
    };
    assert_eq!(empty(&mut store), 1, "nothing was written, and so nothing was synced");
    assert_eq!(empty(&mut store), 0, "once is enough");
}

#[test]
fn a_new_file_comes_to_the_newest_schema() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    std::fs::write(&path, b"").unwrap();
    for instance in 1..4 {
        let store = open(&path, instance).unwrap();
        let version: i64 = store.db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, SCHEMA_VERSION);
    }
}

/// Of the tasks in the fixture: a UUIDv7.
const FIRST_ID: u128 = 0x0190_0000_0000_7000_8000_0000_0000_0000;

fn error(kind: ErrorKind, message: &str) -> TaskError {
    TaskError { kind, message: message.to_owned(), retryable: false, cause: None }
}

/// One task in each state, and whatever else a database can hold.
fn fill(store: &mut Sqlite) {
    let mut count = 0;
    let mut add = |store: &mut Sqlite, state: State, lane: Option<&str>, due_at_ms| {
        let mut task = new_task(&format!("{{\"state\": \"{state}\"}}"));
        count += 1;
        task.id = TaskId(uuid::Uuid::from_u128(FIRST_ID + count));
        task.lane = lane.map(str::to_owned);
        task.due_at_ms = due_at_ms;
        task.queue = Some("tenant-a".to_owned());
        task.key = Some(state.to_string());
        submit(store, vec![task], 1000).unwrap();
    };
    for state in [State::Succeeded, State::Failed, State::Cancelled] {
        add(store, state, None, None);
        run_one(store, state);
    }
    add(store, State::Running, Some("lane"), None);
    run_one(store, State::Running);
    add(store, State::Blocked, Some("lane"), None);
    add(store, State::Scheduled, None, Some(i64::MAX / 4));
    add(store, State::Queued, None, None);
    let mut large = new_task(&format!("\"{}\"", "large".repeat(1000)));
    large.queue = Some("inputs".to_owned());
    submit(store, vec![large], 1000).unwrap();
    store.begin(true).unwrap();
    store.pause(Some("tenant-b"), true).unwrap();
    store.commit().unwrap();
}

/// Claims the one ready task of `tenant-a`, and ends it in this state.
fn run_one(store: &mut Sqlite, state: State) {
    let refill = ready_in("tenant-a");
    let ready = store.refill(&refill).unwrap();
    let owner = Owner { instance: 1, serial: 4 };
    let claim = Claim { seq: ready[0].seq, owner, worker_pid: 77, now_ms: 1500, sees: None };
    store.begin(true).unwrap();
    let claimed = store.claim(&claim).unwrap().unwrap();
    let usage = Usage { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 };
    let next = match state {
        State::Succeeded => {
            Next::Succeeded { output: "{\"text\":\"hi\"}".to_owned(), usage: Some(usage) }
        }
        State::Failed => Next::Failed { error: error(ErrorKind::Handler, "it broke") },
        State::Cancelled => Next::Cancelled { error: error(ErrorKind::Cancelled, "stop") },
        _ => return store.commit().unwrap(),
    };
    let end = End {
        run: claimed.facts.run,
        owner,
        now_ms: 2500,
        next,
        awaited: true,
        calls: Vec::new(),
        advance: None,
        keep: None,
    };
    store.end(&end).unwrap().unwrap();
    store.commit().unwrap();
}

/// Makes `tests/fixtures/forq-v1.db`; only for the day on which a version of the schema is new.
#[test]
#[ignore = "writes the fixture"]
fn make_the_fixture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/fixtures/forq-v{SCHEMA_VERSION}.db"));
    let _ = std::fs::remove_file(&path);
    let mut store = open(&path, 1).unwrap();
    fill(&mut store);
    store.close();
    drop(store);
}

/// Users upgrade: what an old version wrote is read for ever, with nothing lost.
#[test]
fn a_database_of_version_1_loads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    std::fs::write(&path, V1).unwrap();
    let mut store = open(&path, 2).unwrap();
    let tasks = view::list(&store.db, &ListFilter { limit: 100, ..ListFilter::default() }).unwrap();
    for state in State::ALL {
        let of_state: Vec<&TaskView> =
            tasks.iter().filter(|task| task.state == state && task.queue == "tenant-a").collect();
        assert_eq!(of_state.len(), 1, "{state}");
        let task = view::task(&store.db, of_state[0].id).unwrap().unwrap();
        let input = task.input.unwrap();
        assert_eq!(input.get(), format!("{{\"state\": \"{state}\"}}"));
        assert_eq!(task.key, Some(state.to_string()));
    }
    let Depth { queues, paused, next_due_at_ms, .. } = store.look().unwrap();
    assert_eq!(paused, ["tenant-b"]);
    assert_eq!(next_due_at_ms, Some(i64::MAX / 4));
    let counts = queues["tenant-a"];
    assert_eq!((counts.queued, counts.running, counts.scheduled, counts.blocked), (1, 1, 1, 1));
    assert_eq!(queues["inputs"].queued, 1);
    the_work_of_version_1_goes_on(&mut store, &tasks);
}

fn the_work_of_version_1_goes_on(store: &mut Sqlite, tasks: &[TaskView]) {
    let id_of = |state| tasks.iter().find(|task| task.state == state).unwrap().id;
    let done = view::task(&store.db, id_of(State::Succeeded)).unwrap().unwrap();
    assert_eq!(done.output.unwrap().get(), "{\"text\":\"hi\"}");
    assert_eq!(done.usage.unwrap().total_tokens, 7);
    let failed = view::task(&store.db, id_of(State::Failed)).unwrap().unwrap();
    assert_eq!(failed.error.unwrap().message, "it broke");
    assert_eq!((failed.attempts.len(), failed.attempts[0].worker_pid), (1, Some(77)));
    // The claim of an earlier start ends, and its lane's next task has its turn.
    let claim = store.claims().unwrap().remove(0);
    assert_eq!((claim.facts.id, claim.owner.instance), (id_of(State::Running), 1));
    store.begin(true).unwrap();
    let next = Next::Succeeded { output: "{}".to_owned(), usage: None };
    let (run, owner) = (claim.facts.run, claim.owner);
    let end = End {
        run,
        owner,
        now_ms: 9000,
        next,
        awaited: true,
        calls: Vec::new(),
        advance: None,
        keep: None,
    };
    let moved = store.end(&end).unwrap().unwrap();
    store.commit().unwrap();
    assert!(!moved.released.is_empty());
    let refill = ready_in("inputs");
    let ready = store.refill(&refill).unwrap();
    let owner = Owner { instance: 2, serial: 1 };
    store.begin(true).unwrap();
    let claim = Claim { seq: ready[0].seq, owner, worker_pid: 1, now_ms: 9000, sees: None };
    assert_eq!(store.claim(&claim).unwrap().unwrap().input.len(), 5002);
    store.commit().unwrap();
}

fn ready_in(queue: &str) -> Refill {
    let (queue, gate) = (queue.to_owned(), String::new());
    Refill { queue, priority: 5, gate, after: i64::MIN, limit: 9 }
}
