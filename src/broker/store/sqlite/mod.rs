//! The embedded store: one SQLite database in write-ahead mode.
//!
//! * `insert`: submissions.
//! * `moves`: claims and their ends, cancel, clear.
//! * `steps`: runs of workflows and their steps.
//! * `retry`: failed tasks that are put back, runs that are resumed.
//! * `sessions`: turns of conversations.
//! * `clock`: what time moves: promotion, expiry, pruning.
//! * `memos`: what permits and schedules must not forget.
//! * `usage`: the accounts.
//! * `look`: what a starting broker and the queue's window read.

mod clock;
mod insert;
mod look;
mod memos;
mod moves;
mod retry;
mod sessions;
mod steps;
mod usage;

pub(crate) use look::{id_of, state_of};
pub(crate) use moves::cancelled;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags, Row};

use super::{
    Accepted, Cancelled, Claim, Claimed, Clear, Depth, Due, End, Forgotten, Insert, Moved,
    OpenClaim, Ord, Ready, Refill, Retried, Retry, Store, StoreError, schema,
};
use crate::broker::budget::Spent;
use crate::broker::conversation::{SessionHash, hash_of};
use crate::broker::permits::Memo;
use crate::handler::Needs;
use crate::protocol::control::Refusal;
use crate::protocol::link::Seq;
use crate::task::{SUSPECT_LOSSES_MAX, State, TaskId};

/// How hard a commit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Through a power cut: fsync before anything is told.
    Fsync,
    /// Through the death of every process: the kernel writes when it likes.
    Os,
    /// Like `Os`, and the database may be damaged by a power cut.
    None,
}

/// The embedded store.
pub(crate) struct Sqlite {
    db: Connection,
    durability: Durability,
    /// Whether `synchronous` is set to wait for the disk now.
    syncing: bool,
    /// There are commits that did not wait for the disk.
    unsynced: bool,
    /// Rows that this connection had changed when the transaction began.
    changes_before: u64,
    last_seq: Seq,
    last_ord: Ord,
    /// Depth by queue as of this step; read again from disk after a rollback.
    depth: Depth,
    totals: Totals,
}

/// Counters of this transaction, added to the `totals` table by its commit.
#[derive(Clone, Copy, Default)]
struct Totals {
    succeeded: i64,
    failed: i64,
    cancelled: i64,
    timed_out: i64,
    retried: i64,
    worker_lost: i64,
}

impl Sqlite {
    /// Opens or makes the database; see [`schema::prepare`] for what is refused.
    pub(crate) fn open(
        path: &Path,
        instance: i64,
        durability: Durability,
    ) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags).map_err(|error| {
            StoreError::Fatal(format!("cannot open the database {}: {error}", path.display()))
        })?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.set_prepared_statement_cache_capacity(128);
        schema::prepare(&mut db, &path.display().to_string(), instance)?;
        schema::presize_log(path);
        let now_us = now_us();
        let last = |column: &str| -> rusqlite::Result<i64> {
            db.query_row(&format!("SELECT max({column}) FROM tasks"), [], |row| {
                Ok(row.get::<_, Option<i64>>(0)?.unwrap_or(0))
            })
        };
        let last_seq = last("seq")?.max(now_us);
        let mut store = Self {
            durability,
            syncing: true,
            unsynced: false,
            changes_before: 0,
            last_seq,
            last_ord: last_seq,
            depth: Depth::default(),
            totals: Totals::default(),
            db,
        };
        store.set_syncing(durability == Durability::Fsync)?;
        store.depth = store.read_depth()?;
        Ok(store)
    }

    /// Counts everything anew, for a broker that starts.
    pub(crate) fn look(&mut self) -> Result<Depth, StoreError> {
        self.depth = self.read_depth()?;
        Ok(self.depth.clone())
    }

    fn set_syncing(&mut self, syncing: bool) -> Result<(), StoreError> {
        let level = match (syncing, self.durability) {
            (true, _) => "FULL",
            (false, Durability::None) => "OFF",
            (false, _) => "NORMAL",
        };
        self.db.pragma_update(None, "synchronous", level)?;
        self.syncing = syncing;
        Ok(())
    }

    /// The next place in the order of ready tasks.
    fn next_ord(&mut self) -> Ord {
        self.last_ord = now_us().max(self.last_ord + 1);
        self.last_ord
    }

    /// Counts one task's move in the depth and the totals.
    fn count(&mut self, queue: &str, from: Option<State>, to: State) {
        if let Some(counts) = self.depth.queues.get_mut(queue) {
            if let Some(from) = from {
                counts.count(from, -1);
            }
            counts.count(to, 1);
            if counts.is_empty() {
                self.depth.queues.remove(queue);
            }
        } else if !to.is_final() {
            self.depth.queues.entry(queue.to_owned()).or_default().count(to, 1);
        }
        match to {
            State::Succeeded => self.totals.succeeded += 1,
            State::Failed => self.totals.failed += 1,
            State::Cancelled => self.totals.cancelled += 1,
            _ => {}
        }
    }

    fn flush_totals(&mut self) -> Result<(), StoreError> {
        let totals = std::mem::take(&mut self.totals);
        let named = [
            ("succeeded", totals.succeeded),
            ("failed", totals.failed),
            ("cancelled", totals.cancelled),
            ("timed_out", totals.timed_out),
            ("retried", totals.retried),
            ("worker_lost", totals.worker_lost),
        ];
        for (name, count) in named.into_iter().filter(|(_, count)| *count != 0) {
            self.db
                .prepare_cached(
                    "INSERT INTO totals VALUES (?1, ?2)
                     ON CONFLICT (name) DO UPDATE SET count = count + excluded.count",
                )?
                .execute((name, count))?;
        }
        Ok(())
    }
}

impl Store for Sqlite {
    fn begin(&mut self, durable: bool) -> Result<(), StoreError> {
        let syncing = durable && self.durability == Durability::Fsync;
        if syncing != self.syncing {
            self.set_syncing(syncing)?;
        }
        self.changes_before = self.db.total_changes();
        Ok(self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(|_| ())?)
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.flush_totals()?;
        let changed = self.db.total_changes() != self.changes_before;
        if self.syncing && self.unsynced && !changed {
            // SQLite syncs nothing for a transaction that changes nothing.
            schema::mark(&self.db, "synced", now_us())?;
        }
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.unsynced = !self.syncing && (self.unsynced || changed);
        Ok(())
    }

    fn rollback(&mut self) {
        // SQLite may have rolled back by itself when the disk was full.
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        self.totals = Totals::default();
        if let Ok(depth) = self.read_depth() {
            self.depth = depth;
        }
    }

    fn insert(&mut self, insert: &Insert) -> Result<Result<Vec<Accepted>, Refusal>, StoreError> {
        self.insert_all(insert)
    }

    fn claim(&mut self, claim: &Claim) -> Result<Option<Claimed>, StoreError> {
        self.claim_one(claim)
    }

    fn end(&mut self, end: &End) -> Result<Option<Moved>, StoreError> {
        self.end_claim(end)
    }

    fn cancel(&mut self, id: TaskId, now_ms: i64) -> Result<Option<Cancelled>, StoreError> {
        self.cancel_one(id, now_ms)
    }

    fn clear(&mut self, clear: &Clear) -> Result<Vec<Moved>, StoreError> {
        self.clear_some(clear)
    }

    fn retry(&mut self, retry: &Retry) -> Result<Option<Retried>, StoreError> {
        self.retry_one(retry)
    }

    fn promote(&mut self, now_ms: i64, limit: u32) -> Result<Due, StoreError> {
        self.promote_due(now_ms, limit)
    }

    fn expire(&mut self, now_ms: i64, limit: u32) -> Result<Due, StoreError> {
        self.expire_due(now_ms, limit)
    }

    fn prune(&mut self, finished_before_ms: i64, limit: u32) -> Result<u32, StoreError> {
        self.prune_some(finished_before_ms, limit)
    }

    fn forget_session(&mut self, name: &str, now_ms: i64) -> Result<Option<Forgotten>, StoreError> {
        self.forget_one_session(name, now_ms)
    }

    fn prune_sessions(&mut self, ended_before_ms: i64, limit: u32) -> Result<u32, StoreError> {
        self.forget_idle(ended_before_ms, limit)
    }

    fn refill(&mut self, refill: &Refill) -> Result<Vec<Ready>, StoreError> {
        self.read_ready(refill)
    }

    fn pause(&mut self, queue: Option<&str>, paused: bool) -> Result<(), StoreError> {
        self.set_paused(queue, paused)
    }

    fn remember(&mut self, memo: &Memo) -> Result<(), StoreError> {
        self.keep_memo(memo)
    }

    fn memos(&mut self, oldest_slot: i64) -> Result<Vec<Memo>, StoreError> {
        self.read_memos(oldest_slot)
    }

    fn spent_on(&mut self, day: i64) -> Result<Spent, StoreError> {
        self.read_spent(day)
    }

    fn remember_run(&mut self, schedule: &str, at_ms: Option<i64>) -> Result<(), StoreError> {
        self.keep_run(schedule, at_ms)
    }

    fn last_runs(&mut self) -> Result<BTreeMap<String, i64>, StoreError> {
        self.read_last_runs()
    }

    fn claims(&mut self) -> Result<Vec<OpenClaim>, StoreError> {
        self.read_claims()
    }

    fn depth(&mut self) -> Result<Depth, StoreError> {
        Ok(self.depth.clone())
    }

    fn close(&mut self) {
        let _ = schema::mark(&self.db, "clean", 1);
        let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
}

/// The columns that make a [`Ready`], in [`ready_of`]'s order. A chat sees its session's
/// conversation, and so that counts for its call, too.
const READY_COLUMNS: &str = "queue, priority, ord, seq, suspect, gate, \
     CASE WHEN lane GLOB 's:*' AND kind = 'chat' AND sums_up IS NULL THEN tokens + coalesce( \
       (SELECT sessions.tokens FROM sessions WHERE sessions.name = substr(tasks.lane, 3)), 0) \
     ELSE tokens END, cache_key, cache_refresh, agent, lane";

fn ready_of(row: &Row<'_>) -> rusqlite::Result<Ready> {
    ready_at(row, 0)
}

/// A [`Ready`] whose columns begin at `first`.
fn ready_at(row: &Row<'_>, first: usize) -> rusqlite::Result<Ready> {
    let cache_key: Option<[u8; 16]> = row.get(first + 7)?;
    Ok(Ready {
        queue: row.get(first)?,
        priority: row.get(first + 1)?,
        ord: row.get(first + 2)?,
        seq: row.get(first + 3)?,
        solo: row.get::<_, u32>(first + 4)? >= SUSPECT_LOSSES_MAX,
        needs: Needs {
            gate: row.get(first + 5)?,
            tokens: row.get::<_, i64>(first + 6)?.unsigned_abs(),
            cache_key: cache_key.map(u128::from_be_bytes),
            cache_refresh: row.get(first + 8)?,
            agent: row.get(first + 9)?,
        },
        session: session_at(row, first + 10)?,
    })
}

/// The session whose lane a column has.
fn session_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<SessionHash>> {
    Ok(row.get_ref(column)?.as_str_or_null()?.and_then(hash_of))
}

/// A state as its column has it.
fn code(state: State) -> i64 {
    match state {
        State::Queued => 0,
        State::Running => 1,
        State::Scheduled => 2,
        State::Blocked => 3,
        State::Succeeded => 4,
        State::Failed => 5,
        State::Cancelled => 6,
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
