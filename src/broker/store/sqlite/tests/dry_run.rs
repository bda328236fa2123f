//! A dry run finds what the submission would meet, and leaves nothing.

use super::{DEFAULTS, Sqlite, new_task, submit};
use crate::broker::store::sqlite::Durability;
use crate::broker::store::{Insert, Store};
use crate::protocol::control::{Refusal, RefusalKind};
use crate::task::NewTask;

fn dry_run(store: &mut Sqlite, tasks: Vec<NewTask>, of: u64) -> Result<usize, Refusal> {
    let insert = Insert {
        tasks,
        defaults: DEFAULTS,
        now_ms: 0,
        over_budget: Default::default(),
        dry_run: Some(of),
    };
    store.begin(true).unwrap();
    let inserted = store.insert(&insert).unwrap();
    store.commit().unwrap();
    Ok(inserted?.len())
}

fn keyed(input: &str) -> NewTask {
    NewTask { key: Some("k".to_owned()), ..new_task(input) }
}

#[test]
fn nothing_of_a_dry_run_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    let mut store = Sqlite::open(&path, 1, Durability::Fsync).unwrap();
    let before = store.depth().unwrap();
    assert_eq!(dry_run(&mut store, vec![new_task("{}"), keyed("{}")], 2), Ok(2));
    assert_eq!(store.depth().unwrap(), before);
    assert_eq!(store.look().unwrap(), before);
    submit(&mut store, vec![keyed("[1]")], 0).unwrap();
}

#[test]
fn a_key_that_is_taken_and_a_file_that_is_too_long_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    let mut store = Sqlite::open(&path, 1, Durability::Fsync).unwrap();
    submit(&mut store, vec![keyed("[1]")], 0).unwrap();
    assert_eq!(dry_run(&mut store, vec![new_task("{}"), keyed("[ 1 ]")], 2), Ok(2));
    let taken = dry_run(&mut store, vec![new_task("{}"), keyed("[2]")], 2).unwrap_err();
    assert_eq!(taken.index, Some(1));
    let long = dry_run(&mut store, vec![new_task("{}")], DEFAULTS.max_queued).unwrap_err();
    assert!(long.message.contains("max_queued"), "{long}");
}

#[test]
fn a_spent_budget_refuses_what_is_new_and_not_what_is_resent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forq.db");
    let mut store = Sqlite::open(&path, 1, Durability::Fsync).unwrap();
    let known = new_task("{}");
    let key = keyed("[1]");
    submit(&mut store, vec![known.clone(), key.clone()], 0).unwrap();
    let mut insert = |tasks: Vec<NewTask>, over_budget: &[usize]| {
        let over_budget = over_budget.iter().map(|index| (*index, "it is spent".into())).collect();
        let insert = Insert { tasks, defaults: DEFAULTS, now_ms: 0, over_budget, dry_run: None };
        store.begin(true).unwrap();
        let inserted = store.insert(&insert).unwrap();
        store.commit().unwrap();
        inserted.map(|accepted| accepted.len())
    };
    assert_eq!(insert(vec![known.clone(), keyed("[1]")], &[0, 1]), Ok(2));
    let refusal = insert(vec![known, new_task("{}"), new_task("{}")], &[0, 2]).unwrap_err();
    assert_eq!((refusal.kind, refusal.index), (RefusalKind::Forbidden, Some(2)));
    assert_eq!(refusal.message, "it is spent");
    assert_eq!(store.depth().unwrap().queues["default"].queued, 2, "nothing of it stays");
}
