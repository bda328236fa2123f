//! Where the log goes. Set up once, before the first fork; children inherit it.
//!
//! Every process of an instance appends to one file, a line with one `write`, so that lines stay
//! whole. After a rotation (`mv log log.1`, then USR1) each of them opens the path again; what it
//! writes before that lands in the file that was moved, so no line is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use super::systemd::journal::{self, JournalFormat};
use crate::config::{Log, LogFormat, LogLevel};

/// The level in force; a change of it takes effect with the next line.
type Level = reload::Handle<LevelFilter, Registry>;

static LEVEL: OnceLock<Level> = OnceLock::new();
/// Empty when the log goes to standard error.
static FILE: OnceLock<Arc<LogFile>> = OnceLock::new();

/// Starts logging. The error is one sentence.
pub(super) fn start(log: &Log) -> Result<(), String> {
    let writer = match &log.file {
        None => BoxMakeWriter::new(io::stderr),
        Some(path) => {
            let file = LogFile::open(path).map_err(|error| cannot_open(path, &error))?;
            BoxMakeWriter::new(Arc::clone(FILE.get_or_init(|| Arc::new(file))))
        }
    };
    let (subscriber, level) = subscriber(log, writer);
    subscriber.try_init().map_err(|error| format!("cannot start the log: {error}"))?;
    LEVEL.get_or_init(|| level);
    Ok(())
}

/// As [`start`], in an image that must not fail: without its file it writes to standard error.
pub(super) fn start_anyhow(log: &Log) {
    if let Err(error) = start(log) {
        let _ = start(&Log { file: None, ..log.clone() });
        tracing::error!("{error}: the log goes to standard error");
    }
}

/// Whether the log could be started. The error is one sentence.
pub(super) fn check(log: &Log) -> Result<(), String> {
    let open = |path: &PathBuf| append_to(path).map(drop).map_err(|e| cannot_open(path, &e));
    log.file.as_ref().map_or(Ok(()), open)
}

/// Opens the log's path again, in this process: the file there may be another one by now. If that
/// fails the old file is written on.
pub(crate) fn reopen() {
    let Some(file) = FILE.get() else { return };
    if let Err(error) = file.reopen() {
        tracing::error!("{}: the old file is written on", cannot_open(&file.path, &error));
    }
}

/// Takes the level, and nothing else, of a new configuration, in this process.
pub(crate) fn set_level(log: &Log) {
    // It fails when no log was started, as in tests.
    let _ = LEVEL.get().map(|level| level.reload(filter(log.level)));
}

fn subscriber(log: &Log, writer: BoxMakeWriter) -> (impl Subscriber + Send + Sync, Level) {
    let colour =
        log.file.is_none() && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt::layer().with_target(false).with_ansi(colour).with_writer(writer);
    let to_journal = log.file.is_none() && journal::is_stderr();
    let lines = match log.format {
        LogFormat::Text if to_journal => lines.event_format(JournalFormat::new()).boxed(),
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let (filter, level) = reload::Layer::new(filter(log.level));
    (tracing_subscriber::registry().with(filter).with(lines), level)
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    format!("cannot open the log {}: {error}", path.display())
}

/// The file that is appended to, and the path that it was found at.
struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        // Whoever changes folders must find the same one.
        let path = std::path::absolute(path)?;
        let file = Mutex::new(append_to(&path)?);
        Ok(Self { path, file })
    }

    fn reopen(&self) -> io::Result<()> {
        let new = append_to(&self.path)?;
        *self.lock() = new;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    /// A line, with one call if the disk takes it; threads of this process wait for its end.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.lock().write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_rotated_log_is_written_on_until_it_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let file = LogFile::open(&path).unwrap();
        writeln!(&file, "one").unwrap();
        std::fs::rename(&path, &old).unwrap();
        writeln!(&file, "two").unwrap();
        file.reopen().unwrap();
        writeln!(&file, "three").unwrap();
        assert_eq!((read(&old).as_str(), read(&path).as_str()), ("before\none\ntwo\n", "three\n"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // Nothing was rotated: nothing changes.
        file.reopen().unwrap();
        writeln!(&file, "four").unwrap();
        assert_eq!(read(&path), "three\nfour\n");
    }

    #[test]
    fn a_path_that_cannot_be_opened_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, moved) = (folder.path().join("logs"), folder.path().join("moved"));
        std::fs::create_dir(&inner).unwrap();
        let file = LogFile::open(&inner.join("log")).unwrap();
        std::fs::rename(&inner, &moved).unwrap();
        assert_eq!(file.reopen().unwrap_err().kind(), io::ErrorKind::NotFound);
        writeln!(&file, "still here").unwrap();
        assert_eq!(read(&moved.join("log")), "still here\n");
    }

    #[test]
    fn many_writers_and_rotations_lose_and_break_no_line() {
        const WRITERS: usize = 4;
        const LINES: usize = 2000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        // Two descriptors, as two processes have.
        let files = [LogFile::open(&path).unwrap(), LogFile::open(&path).unwrap()];
        let rotated = |number: usize| folder.path().join(format!("log.{number}"));
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let mut file = &files[writer % 2];
                scope.spawn(move || {
                    for line in 0..LINES {
                        let text = format!("{writer} {line} {}\n", "x".repeat(line % 200));
                        file.write_all(text.as_bytes()).unwrap();
                    }
                });
            }
            for number in 0..20 {
                std::fs::rename(&path, rotated(number)).unwrap();
                files.iter().for_each(|file| file.reopen().unwrap());
            }
        });
        let mut seen = BTreeSet::new();
        for path in (0..20).map(rotated).chain([path.clone()]) {
            for line in read(&path).lines() {
                let fields: Vec<_> = line.split(' ').collect();
                let [writer, number, tail] = fields[..] else { panic!("a broken line: {line}") };
                let number: usize = number.parse().unwrap();
                assert_eq!(tail.len(), number % 200, "{line}");
                assert!(seen.insert((writer.to_owned(), number)), "twice: {line}");
            }
        }
        assert_eq!(seen.len(), WRITERS * LINES);
    }

    #[test]
    fn a_change_of_the_level_takes_effect_with_the_next_line() {
        let folder = tempfile::tempdir().unwrap();
        for format in [LogFormat::Text, LogFormat::Json] {
            let path = folder.path().join(format!("{format:?}"));
            let log = Log { format, level: LogLevel::Warn, file: Some(path.clone()) };
            let writer = BoxMakeWriter::new(Arc::new(LogFile::open(&path).unwrap()));
            let (subscriber, level) = subscriber(&log, writer);
            tracing::subscriber::with_default(subscriber, || {
                let debug = || tracing::debug!("detail");
                debug();
                tracing::warn!("first");
                level.reload(filter(LogLevel::Debug)).unwrap();
                debug();
                level.reload(filter(LogLevel::Error)).unwrap();
                debug();
                tracing::warn!("second");
            });
            let written = read(&path);
            let told: Vec<_> = ["detail", "first", "second"]
                .map(|word| written.matches(word).count())
                .into_iter()
                .collect();
            assert_eq!(told, [1, 1, 0], "{written}");
            assert_eq!(written.lines().count(), 2);
            assert_eq!(written.starts_with('{'), format == LogFormat::Json);
        }
    }
}
