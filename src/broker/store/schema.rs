//! The database's shape, its migrations, and what is refused at the door.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::StoreError;

/// The schema's version, kept in `user_version`.
pub(crate) const SCHEMA_VERSION: i64 = 3;

/// Inputs up to this size live in the task's own row, which every change of state writes anew;
/// larger ones lie apart and are written once.
pub(crate) const INLINE_INPUT_BYTES_MAX: usize = 2048;

/// How many unread pages the log may have before they are copied into the database.
const CHECKPOINT_PAGES: u32 = 2000;
/// The log's size at which that happens: pages of 4 KiB with a header of 24 bytes each.
const LOG_BYTES: u64 = 32 + CHECKPOINT_PAGES as u64 * (4096 + 24);

/// Each migration brings the version before it to its own; the first makes everything.
const MIGRATIONS: [&str; SCHEMA_VERSION as usize] = [
    r"
CREATE TABLE tasks (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  queue TEXT NOT NULL,
  priority INTEGER NOT NULL,
  state INTEGER NOT NULL,          -- 0 queued 1 running 2 scheduled 3 blocked 4 succeeded 5 failed 6 cancelled
  lane TEXT,                       -- 'l:NAME', or 's:NAME' for a session
  key TEXT,
  ord INTEGER NOT NULL,            -- place among the ready ones, microseconds
  due_at INTEGER,                  -- times are milliseconds since 1970
  expires_at INTEGER,
  timeout_ms INTEGER NOT NULL,
  max_attempts INTEGER NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 0,
  attempt_at_retry INTEGER NOT NULL DEFAULT 0,
  charged INTEGER NOT NULL DEFAULT 0,
  suspect INTEGER NOT NULL DEFAULT 0,
  cancel_asked INTEGER NOT NULL DEFAULT 0,
  instance INTEGER,
  serial INTEGER,
  worker_pid INTEGER,
  created_at INTEGER NOT NULL,
  first_started_at INTEGER,
  started_at INTEGER,
  finished_at INTEGER,
  usage_in INTEGER,
  usage_out INTEGER,
  input TEXT,                      -- absent if it is in `inputs`
  output TEXT,
  error TEXT                       -- JSON of the last attempt's error
) STRICT;
CREATE INDEX tasks_ready ON tasks (queue, priority, ord) WHERE state = 0;
CREATE INDEX tasks_running ON tasks (seq) WHERE state = 1;
CREATE INDEX tasks_due ON tasks (due_at) WHERE state = 2;
CREATE INDEX tasks_expiry ON tasks (expires_at) WHERE expires_at IS NOT NULL AND state IN (0, 2, 3);
CREATE INDEX tasks_lane ON tasks (lane, ord) WHERE lane IS NOT NULL AND state < 4;
CREATE INDEX tasks_key ON tasks (key) WHERE key IS NOT NULL AND state < 5;
CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE inputs (seq INTEGER PRIMARY KEY, input TEXT NOT NULL) STRICT;
CREATE TABLE attempts (
  seq INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  ended_at INTEGER NOT NULL,
  worker_pid INTEGER,
  outcome TEXT NOT NULL,
  error TEXT,
  PRIMARY KEY (seq, attempt)
) STRICT, WITHOUT ROWID;
CREATE TABLE paused (queue TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE totals (name TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    r"
ALTER TABLE tasks ADD COLUMN gate TEXT NOT NULL DEFAULT '';      -- the chain of servers that it calls
ALTER TABLE tasks ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;  -- that a call will probably take
ALTER TABLE tasks ADD COLUMN cache_key BLOB;
ALTER TABLE tasks ADD COLUMN cache_refresh INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN agent TEXT;
DROP INDEX tasks_ready;
CREATE INDEX tasks_ready ON tasks (queue, priority, gate, ord) WHERE state = 0;
CREATE TABLE spent (               -- of requests and tokens a minute, by a tenth of a second
  meter TEXT NOT NULL,
  slot INTEGER NOT NULL,
  requests INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  PRIMARY KEY (meter, slot)
) STRICT, WITHOUT ROWID;
CREATE TABLE servers (             -- that are not called for a while
  name TEXT PRIMARY KEY,
  failures INTEGER NOT NULL,
  open_until INTEGER,
  probe INTEGER,                   -- the permit of the call that finds out
  closed_until INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE usage (
  day INTEGER NOT NULL,            -- since 1970, UTC
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  agent TEXT NOT NULL,
  queue TEXT NOT NULL,
  calls INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  cached INTEGER NOT NULL,         -- answers that took no call
  tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL,
  cost REAL NOT NULL,
  PRIMARY KEY (day, provider, model, agent, queue)
) STRICT, WITHOUT ROWID;
CREATE TABLE schedules (name TEXT PRIMARY KEY, last_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    r"
ALTER TABLE tasks ADD COLUMN parent INTEGER;                       -- the run whose step it is
ALTER TABLE tasks ADD COLUMN step TEXT;                            -- its key there
ALTER TABLE tasks ADD COLUMN ended INTEGER;                        -- of a step: its place in the order of ends
ALTER TABLE tasks ADD COLUMN blamed INTEGER NOT NULL DEFAULT 0;    -- of a step: a retry of the run runs it again
ALTER TABLE tasks ADD COLUMN twin INTEGER;                         -- of a step: the task with its key, whose end it waits for
ALTER TABLE tasks ADD COLUMN expect TEXT;                          -- what the answer must be like
ALTER TABLE tasks ADD COLUMN stepping INTEGER NOT NULL DEFAULT 0;  -- of a run: 1 it has steps, 2 they are to be resumed
ALTER TABLE tasks ADD COLUMN wakes INTEGER NOT NULL DEFAULT 0;     -- of a run: steps that ended during its advance
ALTER TABLE tasks ADD COLUMN advances INTEGER NOT NULL DEFAULT 0;  -- of a run: starts that were no attempts
ALTER TABLE tasks ADD COLUMN cost REAL;
ALTER TABLE tasks ADD COLUMN sums_up INTEGER;                      -- of a session's summary: the last turn that it stands for
CREATE INDEX tasks_steps ON tasks (parent, ended) WHERE parent IS NOT NULL;
CREATE INDEX tasks_twins ON tasks (twin) WHERE twin IS NOT NULL;
CREATE INDEX tasks_blocked ON tasks (queue) WHERE state = 3;
CREATE TABLE sessions (            -- that have a conversation
  name TEXT PRIMARY KEY,
  touched_at INTEGER NOT NULL,     -- when its last task ended
  tokens INTEGER NOT NULL DEFAULT 0,           -- of the summary and all turns
  summary TEXT,                    -- of what was before the turns
  summary_tokens INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_touched ON sessions (touched_at);
CREATE TABLE turns (
  session TEXT NOT NULL,
  n INTEGER NOT NULL,              -- their order; never given twice
  at INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  continues INTEGER NOT NULL,      -- it answers calls of tools in the turn before it
  messages TEXT NOT NULL,          -- JSON: what the task said, and its answer
  PRIMARY KEY (session, n)
) STRICT;
",
];

/// Makes a connection ready to write: write-ahead log, checked version, checked pages after an
/// unclean end. A database that is damaged or newer is refused and left as it is.
pub(crate) fn prepare(db: &mut Connection, path: &str, instance: i64) -> Result<(), StoreError> {
    let refuse = |error: rusqlite::Error| match StoreError::from(error) {
        StoreError::Full => StoreError::Full,
        StoreError::Sqlite(error) if error.sqlite_error_code().is_none() => {
            StoreError::Sqlite(error)
        }
        other => StoreError::Fatal(damaged(path, &other.to_string())),
    };
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(refuse)?;
    if version > SCHEMA_VERSION {
        return Err(StoreError::Fatal(newer(path, version)));
    }
    if version == 0 && has_tables(db).map_err(refuse)? {
        return Err(StoreError::Fatal(foreign(path)));
    }
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(refuse)?;
    // Or each query that could use a partial index is planned anew for each value.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(refuse)?;
    db.execute_batch(&format!(
        "PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA cache_size = -4096;
         PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 67108864;"
    ))
    .map_err(refuse)?;
    if version > 0 && opened_by_another_unclean_end(db, instance).map_err(refuse)? {
        quick_check(db, path)?;
    }
    migrate(db, version).map_err(refuse)?;
    mark(db, "clean", 0).map_err(refuse)?;
    mark(db, "instance", instance).map_err(refuse)?;
    Ok(())
}

fn has_tables(db: &Connection) -> rusqlite::Result<bool> {
    db.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
}

/// Brings the write-ahead log to its full size before the first commit. A commit that grows the
/// file makes the file system commit its own journal, too: that takes twice as long as one that
/// overwrites (0.29 against 0.15 ms where it was measured). SQLite stops reading a log at the first frame that is
/// not its own, so zeros at its end say nothing. Without room for it, commits are only slower.
pub(crate) fn presize_log(database: &Path) {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let presized = OpenOptions::new().write(true).open(&log).and_then(|mut file| {
        let size = file.seek(SeekFrom::End(0))?;
        std::io::copy(&mut std::io::repeat(0).take(LOG_BYTES.saturating_sub(size)), &mut file)?;
        file.sync_all()
    });
    if let Err(error) = presized {
        tracing::debug!("the log stays at its size: {error}");
    }
}

/// Whether the last user of the database was another start of the instance, and did not close it:
/// a broker's death needs no check, since the kernel kept every page it had written.
fn opened_by_another_unclean_end(db: &Connection, instance: i64) -> rusqlite::Result<bool> {
    Ok(read_mark(db, "clean")? != Some(1) && read_mark(db, "instance")? != Some(instance))
}

fn quick_check(db: &Connection, path: &str) -> Result<(), StoreError> {
    let verdict: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| StoreError::Fatal(damaged(path, &error.to_string())))?;
    if verdict == "ok" { Ok(()) } else { Err(StoreError::Fatal(damaged(path, &verdict))) }
}

/// Whether a broker of this build would change the schema of the database that is there.
pub(crate) fn will_migrate(path: &Path) -> bool {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let version = Connection::open_with_flags(path, flags)
        .and_then(|db| db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)));
    version.is_ok_and(|version| version > 0 && version < SCHEMA_VERSION)
}

fn migrate(db: &mut Connection, version: i64) -> rusqlite::Result<()> {
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(version as usize) {
        let step = db.transaction()?;
        step.execute_batch(migration)?;
        step.pragma_update(None, "user_version", index as i64 + 1)?;
        step.commit()?;
    }
    Ok(())
}

/// Notes a fact about the database itself.
pub(crate) fn mark(db: &Connection, name: &str, value: i64) -> rusqlite::Result<()> {
    db.execute("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", (name, value)).map(|_| ())
}

fn read_mark(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
}

fn damaged(path: &str, what: &str) -> String {
    format!(
        "the database {path} is damaged ({what}); nothing was changed: restore a copy made with \
         `forq backup`, or move the file away to start with an empty queue"
    )
}

fn foreign(path: &str) -> String {
    format!(
        "the database {path} belongs to another program; nothing was changed: name another \
         --state-dir"
    )
}

fn newer(path: &str, version: i64) -> String {
    format!(
        "the database {path} was written by a newer forq (schema {version}, this one knows \
         {SCHEMA_VERSION}); nothing was changed: start the newer forq, or name another --state-dir"
    )
}
