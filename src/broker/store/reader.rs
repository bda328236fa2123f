//! The thread for people's reads (`status`, `list`, `stats`, `backup`): a read-only connection,
//! so that no question, however slow, holds up the queue.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Sender;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::protocol::control::{Refusal, RefusalKind};

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// The broker's end of the reader. The thread ends when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Reader {
    jobs: Sender<Job>,
}

impl Reader {
    /// Opens the database, which the writer has made by now, and starts the thread.
    pub(crate) fn start(path: &Path) -> std::io::Result<Self> {
        let (jobs, inbox) = crossbeam_channel::unbounded::<Job>();
        let path: PathBuf = path.to_owned();
        std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let opened = Connection::open_with_flags(&path, flags).and_then(|db| {
                db.busy_timeout(Duration::from_secs(5))?;
                db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
                Ok(db)
            });
            match opened {
                Ok(db) => inbox.iter().for_each(|job| job(&db)),
                Err(error) => tracing::error!("cannot read {}: {error}", path.display()),
            }
        })?;
        Ok(Self { jobs })
    }

    /// Asks a question and waits for its answer without blocking the loop.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (answer, told) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let _ = answer.send(question(db));
        });
        let _ = self.jobs.send(job);
        match told.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(internal(&error.to_string())),
            Err(_) => Err(internal("its reader is gone")),
        }
    }
}

fn internal(what: &str) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("the database cannot be read: {what}"))
}
