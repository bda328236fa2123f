//! The guard's own process: starts the command, watches over it, ends what is left of it.
//!
//! It has one thread and no runtime, and is ready in about a millisecond.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use nix::sys::prctl;
use nix::sys::signal::SigSet;
use signal_hook::consts::signal;

use super::family::Family;
use super::report::{Ended, Report};
use super::{Command, GRACE, SWEEP, TERMINATE};

/// Signals that end a process or may have been ignored by whoever started us. The guard must
/// outlive the first, and the command must not inherit the second: a signal that is caught here
/// is at its default again in the command.
const CAUGHT: [i32; 13] = [
    signal::SIGHUP,
    signal::SIGINT,
    signal::SIGQUIT,
    signal::SIGPIPE,
    signal::SIGALRM,
    signal::SIGTERM,
    signal::SIGUSR1,
    signal::SIGUSR2,
    signal::SIGTSTP,
    signal::SIGTTIN,
    signal::SIGTTOU,
    signal::SIGXCPU,
    signal::SIGXFSZ,
];

/// The guard's `main`. Its arguments are the descriptors of the command and of its stdin (`-`:
/// none); its stdin is the lifeline, its stdout and stderr are the command's.
pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match guard(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The worker finds this in the command's stderr.
            _ = writeln!(io::stderr(), "forq: guard: {error}");
            ExitCode::FAILURE
        }
    }
}

fn guard(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let mut command = open(arguments.next())?.ok_or(io::ErrorKind::InvalidInput)?;
    let stdin = open(arguments.next())?;
    close_inherited(&[Some(&command), stdin.as_ref()])?;
    let lifeline = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let deaths = prepare()?;
    let mut json = String::new();
    command.read_to_string(&mut json)?;
    let command: Command = serde_json::from_str(&json)?;
    let stdin = stdin.map_or_else(Stdio::null, Stdio::from);
    match start(&command, stdin) {
        Ok(leader) => {
            let mut family = Family::new(leader, deaths);
            say(&lifeline, Report::Started(family.group()));
            let ended = watch(&mut family, &lifeline)?;
            family.end(Instant::now() + SWEEP)?;
            if let Some(ended) = ended {
                say(&lifeline, Report::Ended(ended));
            }
        }
        Err(report) => say(&lifeline, report),
    }
    Ok(())
}

/// Sets up this process; returns what is readable after SIGCHLD.
fn prepare() -> io::Result<UnixStream> {
    prctl::set_name(c"forq: guard")?;
    prctl::set_child_subreaper(true)?;
    for signal in CAUGHT {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let (deaths, wake) = UnixStream::pair()?;
    deaths.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal::SIGCHLD, wake)?;
    // The mask is inherited, and the command must get an empty one.
    SigSet::empty().thread_set_mask()?;
    Ok(deaths)
}

/// Opens an inherited descriptor anew, by its number: a number cannot be owned without `unsafe`,
/// a path can. `None` for `-`.
fn open(argument: Option<OsString>) -> io::Result<Option<File>> {
    let argument = argument.ok_or(io::ErrorKind::InvalidInput)?;
    if argument == "-" {
        return Ok(None);
    }
    let number: Option<RawFd> = argument.to_str().and_then(|number| number.parse().ok());
    let number = number.ok_or(io::ErrorKind::InvalidInput)?;
    File::open(format!("/proc/self/fd/{number}")).map(Some)
}

/// Closes every descriptor but the first three and `kept`, so that a command gets nothing of the
/// daemon's, nor of whoever started the daemon.
fn close_inherited(kept: &[Option<&File>]) -> io::Result<()> {
    let kept: Vec<RawFd> = kept.iter().flatten().map(|file| file.as_raw_fd()).collect();
    let all = std::fs::read_dir("/proc/self/fd")?;
    let all: Vec<RawFd> =
        all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for number in all.into_iter().filter(|number| *number > 2 && !kept.contains(number)) {
        // One of them is that of the listing, closed by now.
        _ = nix::unistd::close(number);
    }
    Ok(())
}

fn start(command: &Command, stdin: Stdio) -> Result<Child, Report> {
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(nix::libc::EINVAL);
    if let Some(cwd) = &command.cwd {
        // The guard goes there itself, so that this failure is not taken for the program's.
        std::env::set_current_dir(cwd).map_err(|error| Report::NoCwd(errno(error)))?;
    }
    let (program, arguments) =
        command.argv.split_first().ok_or(Report::NoStart(nix::libc::EINVAL))?;
    let mut process = std::process::Command::new(program);
    // Meant for the daemon: a command that starts one of its own has nothing to do with them.
    for variable in crate::master::DAEMON_VARIABLES {
        process.env_remove(variable);
    }
    for variable in &command.without {
        process.env_remove(variable);
    }
    process
        .args(arguments)
        .envs(&command.env)
        .stdin(stdin)
        .process_group(0)
        .spawn()
        .map_err(|error| Report::NoStart(errno(error)))
}

/// Waits until the command ends or is no longer wanted (`None`).
fn watch(family: &mut Family, mut lifeline: &UnixStream) -> io::Result<Option<Ended>> {
    loop {
        if let Some(ended) = family.ended()? {
            return Ok(Some(ended));
        }
        if family.rest(lifeline, None)? {
            let mut word = [0];
            if matches!(lifeline.read(&mut word), Ok(1)) && word == [TERMINATE] {
                family.ask(lifeline, Instant::now() + GRACE)?;
            } else {
                family.kill_group();
            }
            return Ok(None);
        }
    }
}

/// Tells the worker. If the worker is gone there is nobody to tell.
fn say(mut lifeline: &UnixStream, report: Report) {
    _ = lifeline.write_all(report.to_string().as_bytes());
}
