//! The store against a plain model, and what it does with files that it cannot trust.

mod dry_run;
mod histories;
mod model;
mod opening;
mod resumed;
mod runs;
mod sessions;
mod usage;

use serde_json::value::RawValue;

use crate::broker::store::{Defaults, Insert, Store};
use crate::protocol::control::Refusal;
use crate::task::{NewTask, TaskId};

use super::Sqlite;

/// What tasks get by default here.
const DEFAULTS: Defaults = Defaults { max_attempts: 3, timeout_ms: 1000, max_queued: 1_000_000 };

fn new_task(input: &str) -> NewTask {
    NewTask::new("noop", RawValue::from_string(input.to_owned()).unwrap())
}

/// Submits in a transaction of its own.
fn submit(store: &mut Sqlite, tasks: Vec<NewTask>, now_ms: i64) -> Result<Vec<TaskId>, Refusal> {
    let insert = Insert {
        tasks,
        defaults: DEFAULTS,
        now_ms,
        over_budget: Default::default(),
        dry_run: None,
    };
    store.begin(true).unwrap();
    let inserted = store.insert(&insert).unwrap();
    store.commit().unwrap();
    Ok(inserted?.into_iter().map(|accepted| accepted.id).collect())
}
