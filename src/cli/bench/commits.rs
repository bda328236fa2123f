//! The yardstick of a latency: what the same disk takes, at the same moment, for the least that
//! a durable task can cost. That is two commits, one to accept it and one to keep its result.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tempfile::TempDir;

/// Why there is no yardstick.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommitError {
    #[error("{0}")]
    Folder(#[from] std::io::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// A scratch database, set up as the daemon's.
pub(super) struct BareCommits {
    // Before the folder, so that it is closed before its files go.
    connection: Connection,
    _folder: TempDir,
}

impl BareCommits {
    /// In a folder of its own in `state_dir`, since another file system has another fsync.
    pub(super) fn open(state_dir: &Path) -> Result<Self, CommitError> {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(state_dir)?;
        let connection = Connection::open(folder.path().join("commits.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection
            .execute_batch("CREATE TABLE bare (id INTEGER PRIMARY KEY, state TEXT NOT NULL)")?;
        Ok(Self { connection, _folder: folder })
    }

    /// How long two commits take, one after the other. Blocks for as long.
    pub(super) fn time_two(&mut self) -> Result<Duration, CommitError> {
        let began = Instant::now();
        self.connection.execute("INSERT INTO bare (state) VALUES ('queued')", ())?;
        let id = self.connection.last_insert_rowid();
        self.connection.execute("UPDATE bare SET state = 'succeeded' WHERE id = ?1", [id])?;
        Ok(began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leaves_nothing_in_the_state_folder() {
        let state_dir = tempfile::tempdir().unwrap();
        let mut commits = BareCommits::open(state_dir.path()).unwrap();
        assert!(commits.time_two().unwrap() > Duration::ZERO);
        drop(commits);
        assert_eq!(std::fs::read_dir(state_dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        assert!(BareCommits::open(Path::new("/proc/nowhere")).is_err());
    }
}
