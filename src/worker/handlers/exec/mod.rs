//! `exec` {argv, stdin, env, cwd} → {exit_code, stdout, stderr}: a command, without a shell.
//!
//! Any language serves through it: the input on stdin, events as lines on stdout. Each line is
//! told as it comes: a JSON object as data, anything else as text.

mod input;
mod output;

use std::io;

use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::guard::{Command, Ended, GuardError, Guarded};
use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Output, to_output};
use crate::task::Cause;
use input::Input;
use output::{Lines, Tail, event_of};

/// The most that a command may print on stdout, in bytes; more fails the task.
const STDOUT_BYTES_MAX: usize = 8 << 20;
/// How much of stderr is kept, from its end, in bytes.
const STDERR_TAIL_BYTES_MAX: usize = 64 << 10;
/// How much of stderr goes into an error's message, in characters.
const MESSAGE_CHARS_MAX: usize = 500;
/// What one read takes from a pipe at most, in bytes: as much as a pipe holds.
const READ_BYTES_MAX: usize = 64 << 10;

/// The kind `exec`.
#[derive(Default)]
pub(crate) struct Exec {
    /// Variables that commands do not inherit.
    without: Vec<String>,
}

impl Exec {
    /// Whose commands inherit everything but these variables.
    pub(crate) fn new(without: Vec<String>) -> Self {
        Self { without }
    }
}

#[derive(Serialize)]
struct Printed {
    exit_code: i32,
    stdout: String,
    stderr: String,
}

impl Handler for Exec {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        Input::read(input).map(drop)
    }

    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture {
        let without = self.without.clone();
        Box::pin(async move {
            let mut input = Input::read(&input).map_err(HandlerError::input)?;
            input.command.without = without;
            let stdin = input.stdin_bytes();
            attempt(&context, input.command, stdin.as_deref()).await
        })
    }
}

/// Runs the command to its end. Dropping this future ends the command.
async fn attempt(
    context: &Context,
    command: Command,
    stdin: Option<&[u8]>,
) -> Result<Output, HandlerError> {
    let mut guarded = Guarded::spawn(&command, stdin).map_err(|error| {
        HandlerError::retryable(format!("no guard can be started for the command: {error}"))
    })?;
    let (stdout, stderr, ending) = match guarded.parts() {
        Ok(parts) => parts,
        Err(error) => return Err(refusal(error, &command, "")),
    };
    let ended = async {
        match ending.wait().await {
            // What a killed guard left behind may hold the pipes for ever.
            Err(error @ GuardError::Guard) => Err(refusal(error, &command, "")),
            ended => Ok(ended),
        }
    };
    // Too much stdout ends all three at once, and with them the command.
    let (stdout, stderr, ended) =
        tokio::try_join!(read_stdout(stdout, context), read_tail(stderr), ended)?;
    match ended {
        Ok(Ended::Exit(0)) => to_output(&Printed { exit_code: 0, stdout, stderr }),
        Ok(ended) => Err(failure(ended, &stderr)),
        Err(error) => Err(refusal(error, &command, &stderr)),
    }
}

/// All of stdout, whose lines are told as they come.
async fn read_stdout(
    mut stdout: impl AsyncRead + Unpin,
    context: &Context,
) -> Result<String, HandlerError> {
    let mut lines = Lines::default();
    let mut chunk = vec![0; READ_BYTES_MAX];
    loop {
        // A pipe that breaks is a pipe that ends; how the command ended is told elsewhere.
        let count = stdout.read(&mut chunk).await.unwrap_or(0);
        if count == 0 {
            break;
        }
        let total = lines.len() + count;
        if total > STDOUT_BYTES_MAX {
            return Err(HandlerError::fatal(format!(
                "stdout is too large: at least {total} bytes, {STDOUT_BYTES_MAX} are allowed"
            )));
        }
        lines.push(&chunk[..count]);
        while let Some(line) = lines.next_line() {
            context.sink.emit(event_of(line));
        }
    }
    if let Some(line) = lines.last_line() {
        context.sink.emit(event_of(line));
    }
    Ok(lines.into_text())
}

/// The end of stderr.
async fn read_tail(mut stderr: impl AsyncRead + Unpin) -> Result<String, HandlerError> {
    let mut tail = Tail::new(STDERR_TAIL_BYTES_MAX);
    let mut chunk = vec![0; READ_BYTES_MAX];
    loop {
        match stderr.read(&mut chunk).await.unwrap_or(0) {
            0 => return Ok(tail.into_text()),
            count => tail.push(&chunk[..count]),
        }
    }
}

/// The command ran and failed.
fn failure(ended: Ended, stderr: &str) -> HandlerError {
    let (how, cause) = match ended {
        Ended::Exit(code) => (
            format!("the command ended with exit code {code}"),
            Cause { exit_code: Some(code), ..Cause::default() },
        ),
        Ended::Signal(number) => {
            let name = Signal::try_from(number)
                .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
            (
                format!("the command was ended by {name}"),
                Cause { signal: Some(name), ..Cause::default() },
            )
        }
    };
    let message = match last_line(stderr) {
        Some(line) => format!("{how}: {line}"),
        None => how,
    };
    HandlerError { cause: Some(cause), ..HandlerError::retryable(message) }
}

/// The command did not run, or nobody knows how it ended.
fn refusal(error: GuardError, command: &Command, stderr: &str) -> HandlerError {
    let program = command.argv.first().map_or("", String::as_str);
    let cwd = command.cwd.as_deref().unwrap_or(".");
    match error {
        GuardError::Start(error) if error.kind() == io::ErrorKind::NotFound => {
            HandlerError::fatal(format!(
                "input.argv[0]: there is no program '{program}' (or its interpreter is missing)"
            ))
        }
        GuardError::Start(error) if is_passing(&error) => {
            HandlerError::retryable(format!("'{program}' cannot be started now: {error}"))
        }
        GuardError::Start(error) => {
            HandlerError::fatal(format!("input.argv[0]: '{program}' cannot be started: {error}"))
        }
        GuardError::Cwd(error) => {
            HandlerError::fatal(format!("input.cwd: '{cwd}' cannot be entered: {error}"))
        }
        GuardError::Guard => HandlerError::retryable(match last_line(stderr) {
            Some(line) => format!("{error}: {line}"),
            None => error.to_string(),
        }),
    }
}

/// Whether the machine is short of something that it may have again later.
fn is_passing(error: &io::Error) -> bool {
    use nix::errno::Errno::{EAGAIN, EMFILE, ENFILE, ENOMEM, ETXTBSY};
    let passing = [EAGAIN, EMFILE, ENFILE, ENOMEM, ETXTBSY];
    passing.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// What a person looks at first: programs say last what ended them.
fn last_line(stderr: &str) -> Option<String> {
    let line = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().take(MESSAGE_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests;
