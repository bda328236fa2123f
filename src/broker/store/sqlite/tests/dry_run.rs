//! A dry run finds what the submission would meet, and leaves nothing.

use super::{DEFAULTS, Sqlite, new_task, submit};
use crate::broker::store::sqlite::Durability;
use crate::broker::store::{Insert, Store};
use crate::protocol::control::Refusal;
use crate::task::NewTask;

fn dry_run(store: &mut Sqlite, tasks: Vec<NewTask>, of: u64) -> Result<usize, Refusal> {
    let insert = Insert { tasks, defaults: DEFAULTS, now_ms: 0, dry_run: Some(of) };
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
