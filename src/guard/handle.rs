//! The worker's end of a guard.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, copy, sink};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::runtime::Handle;

use super::report::{Ended, Report};
use super::{Command, GUARD_ARG, GUARD_TITLE, TERMINATE};

/// Why a guarded command gave no ending.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    /// The folder it was to run in.
    #[error("{0}")]
    Cwd(io::Error),
    /// The program.
    #[error("{0}")]
    Start(io::Error),
    /// The guard itself; what was left of the command has been killed.
    #[error("the guard of the command ended before it")]
    Guard,
}

/// A running command under its guard. Dropping it ends the command: SIGTERM to its group, and
/// SIGKILL to all that it started shortly after. If the worker dies, that is SIGKILL at once.
pub(crate) struct Guarded {
    /// Taken by drop.
    live: Option<Live>,
}

struct Live {
    guard: Child,
    stdout: ChildStdout,
    stderr: ChildStderr,
    lifeline: BufReader<UnixStream>,
    /// The guard has ended.
    over: bool,
}

/// The end of a guarded command, to wait for.
pub(crate) struct Ending<'a> {
    guard: &'a mut Child,
    lifeline: &'a mut BufReader<UnixStream>,
    over: &'a mut bool,
}

impl Guarded {
    /// Starts a guard, which starts the command with `stdin` to read (`None`: nothing).
    ///
    /// Must be called on the worker's main thread, within its runtime.
    pub(crate) fn spawn(command: &Command, stdin: Option<&[u8]>) -> io::Result<Self> {
        // Not by arguments and environment: those of a process are there for all to see, and a
        // variable such as LD_PRELOAD is meant for the command, not for its guard.
        let command = memory_file(&serde_json::to_vec(command)?)?;
        let stdin = stdin.map(memory_file).transpose()?;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let lifeline = BufReader::new(UnixStream::from_std(ours)?);
        let mut guard = tokio::process::Command::new(program())
            .arg0(GUARD_TITLE)
            .arg(GUARD_ARG)
            .arg(command.as_raw_fd().to_string())
            .arg(stdin.as_ref().map_or("-".to_owned(), |file| file.as_raw_fd().to_string()))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(stdout), Some(stderr)) = (guard.stdout.take(), guard.stderr.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self { live: Some(Live { guard, stdout, stderr, lifeline, over: false }) })
    }

    /// Its stdout and stderr, to be read until they end, and its end.
    pub(crate) fn parts(
        &mut self,
    ) -> Result<(&mut ChildStdout, &mut ChildStderr, Ending<'_>), GuardError> {
        let Live { guard, stdout, stderr, lifeline, over } =
            self.live.as_mut().ok_or(GuardError::Guard)?;
        Ok((stdout, stderr, Ending { guard, lifeline, over }))
    }
}

impl Ending<'_> {
    /// Waits until the command and all that it started have ended.
    pub(crate) async fn wait(mut self) -> Result<Ended, GuardError> {
        let ended = self.last_report().await;
        // It ends right after its last report.
        _ = self.guard.wait().await;
        *self.over = true;
        ended
    }

    async fn last_report(&mut self) -> Result<Ended, GuardError> {
        let mut group = None;
        loop {
            let mut line = String::new();
            // Zero bytes, or an error: the guard is gone without a last word.
            _ = self.lifeline.read_line(&mut line).await;
            match line.parse() {
                Ok(Report::Started(leader)) => group = Some(Pid::from_raw(leader)),
                Ok(Report::NoCwd(errno)) => {
                    return Err(GuardError::Cwd(io::Error::from_raw_os_error(errno)));
                }
                Ok(Report::NoStart(errno)) => {
                    return Err(GuardError::Start(io::Error::from_raw_os_error(errno)));
                }
                Ok(Report::Ended(ended)) => return Ok(ended),
                Err(()) => {
                    if let Some(group) = group {
                        _ = killpg(group, Signal::SIGKILL);
                    }
                    return Err(GuardError::Guard);
                }
            }
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Outside of a runtime the lifeline just closes, and the guard kills at once.
        if let (Some(live), Ok(runtime)) = (self.live.take(), Handle::try_current())
            && !live.over
        {
            // Straight to the descriptor: tokio writes only after it has waited once.
            let lifeline = live.lifeline.get_ref().as_raw_fd();
            _ = send(lifeline, &[TERMINATE], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            runtime.spawn(see_off(live));
        }
    }
}

/// Stays with a cancelled command until it is gone: if the lifeline closed, the guard would not
/// wait, and if the pipes did, the first word that the command says would end it.
async fn see_off(mut live: Live) {
    let (mut nowhere, mut nowhere_too) = (sink(), sink());
    _ = tokio::join!(
        live.guard.wait(),
        copy(&mut live.stdout, &mut nowhere),
        copy(&mut live.stderr, &mut nowhere_too),
    );
    drop(live.lifeline);
}

/// Bytes in a file without a name. It is inherited by the guard that is spawned next, and closed
/// right after; a process that another thread starts meanwhile may inherit it too, which costs
/// memory for as long as that process lives and nothing else.
fn memory_file(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("forq", MFdFlags::empty())?);
    file.write_all(bytes)?;
    Ok(file)
}

/// This same binary, even if another one has its path by now.
#[cfg(not(test))]
fn program() -> &'static std::path::Path {
    std::path::Path::new("/proc/self/exe")
}

/// The binary beside the test's, whose own `main` knows nothing of guards.
#[cfg(test)]
fn program() -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    let forq = test.ancestors().nth(2).unwrap().join("forq");
    assert!(forq.exists(), "{} is not built: cargo build", forq.display());
    forq
}
