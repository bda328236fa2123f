//! The children of `forq run`: a daemon, and the simulated model. Neither outlives it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::provider::Server;
use crate::cli::{CliError, Exit, Instance};

/// The daemon's log, in its state folder.
const LOG: &str = "run.log";
/// How much of the log's end is told when the daemon ends by itself.
const LOG_TAIL_BYTES: u64 = 2048;
/// The simulated model's first line comes within this, or never.
const SIM_BOOT_MS_MAX: u16 = 10_000;
/// What stands before the address in that line.
const SIM_GREETING: &str = "listening on ";

/// A child that is ended and reaped when its owner goes, however that comes.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // Fails for one that has gone already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program under another verb, out of reach of the terminal's Ctrl-C: who stops it, and how
/// gently, is for `run` to say.
fn ourselves() -> Result<Command, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::internal(format!("cannot find this program: {error}")))?;
    let mut command = Command::new(program);
    command
        .env(crate::master::PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .process_group(0);
    Ok(command)
}

fn spawn(command: &mut Command) -> Result<Kept, CliError> {
    let child = command.spawn().map_err(|error| {
        CliError::new(Exit::Unavailable, format!("cannot start a process: {error}"))
    })?;
    Ok(Kept(child))
}

/// The simulated model.
pub(super) struct Simulated {
    _child: Kept,
    // Open for as long as it runs, or its next line would end it.
    _stdout: BufReader<ChildStdout>,
    /// How to ask it.
    pub(super) server: Server,
}

impl Simulated {
    /// Starts it on a free port, and waits until it listens.
    pub(super) fn start() -> Result<Self, CliError> {
        let mut command = ourselves()?;
        command.args(["sim-llm", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = spawn(&mut command)?;
        let Some(stdout) = child.0.stdout.take() else {
            return Err(CliError::internal("the simulated model has no stdout"));
        };
        let mut stdout = BufReader::new(stdout);
        let line = first_line(&mut stdout)
            .map_err(|error| CliError::internal(format!("the simulated model: {error}")))?;
        let Some(base_url) = line.trim().strip_prefix(SIM_GREETING) else {
            return Err(CliError::internal(format!("the simulated model said: {line:?}")));
        };
        let (base_url, model) = (base_url.to_owned(), crate::sim::MODEL.to_owned());
        let server = Server { base_url, model, has_key: false };
        Ok(Self { _child: child, _stdout: stdout, server })
    }
}

fn first_line(stdout: &mut BufReader<ChildStdout>) -> io::Result<String> {
    let mut ready = [PollFd::new(stdout.get_ref().as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(SIM_BOOT_MS_MAX))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    Ok(line)
}

/// The daemon.
pub(super) struct Daemon {
    child: Kept,
    log: PathBuf,
    /// Where its log began: a folder that is kept has older runs in it.
    log_start: u64,
}

impl Daemon {
    /// Starts it. `settings` are configuration, as environment variables.
    pub(super) fn start(
        instance: &Instance,
        settings: &[(&str, String)],
    ) -> Result<Self, CliError> {
        let cannot = |error| {
            let folder = instance.state_dir.display();
            CliError::invalid(format!("cannot write the state folder {folder}: {error}"))
        };
        // Created here, not by the daemon, since the log is opened before it.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&instance.state_dir)
            .map_err(cannot)?;
        let log = instance.state_dir.join(LOG);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
        let file = file.map_err(cannot)?;
        let log_start = file.metadata().map_err(cannot)?.len();
        let mut command = ourselves()?;
        command.arg("serve").arg("--state-dir").arg(&instance.state_dir);
        if let Some(config) = &instance.named_config {
            command.arg("--config").arg(config);
        }
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::null()).stderr(file);
        Ok(Self { child: spawn(&mut command)?, log, log_start })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.0.try_wait().ok().flatten()
    }

    /// Asks it to end.
    pub(super) fn signal(&mut self, signal: Signal) {
        // Once it is reaped its pid may be somebody else's.
        if self.ended().is_some() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.0.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Why it ended by itself: the last that it said.
    pub(super) fn obituary(&self, status: ExitStatus) -> CliError {
        let last = self.last_words().unwrap_or_default();
        let exit = match status.code() {
            Some(code) if code == Exit::Invalid as i32 => Exit::Invalid,
            Some(code) if code == Exit::Forbidden as i32 => Exit::Forbidden,
            Some(code) if code == Exit::Internal as i32 => Exit::Internal,
            _ => Exit::Unavailable,
        };
        let said = if last.is_empty() { String::new() } else { format!("; it said:\n{last}") };
        CliError::new(exit, format!("the daemon ended ({status}){said}"))
    }

    fn last_words(&self) -> io::Result<String> {
        let mut file = File::open(&self.log)?;
        let tail = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES).max(self.log_start);
        file.seek(SeekFrom::Start(tail))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

/// How long a daemon may take to stop before it is killed.
pub(super) const STOP_MAX: Duration = Duration::from_secs(10);
