//! `forq stop`: through the broker, or by a signal if there is none; done when the master has
//! gone.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::client::{Client, pause, unexpected};
use super::info::{BROKER_PATIENCE, last_status};
use super::out::Out;
use super::{CliError, Exit, Globals};
use crate::instance::Instance;
use crate::protocol::control::{Reply, Request};

/// How often a master that is stopping is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Do not wait for running tasks: they go back to the queue
    #[arg(long)]
    now: bool,
}

pub(crate) fn run(args: StopArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let instance = globals.instance_to_ask()?;
    let master = match ask(&instance, args.now) {
        Ok(master) => master,
        Err(error) if matches!(error.exit, Exit::TimedOut | Exit::Unavailable) => {
            let pid = locked_master(&instance).ok_or(error)?;
            signal(pid, args.now)?;
            Some(pid)
        }
        Err(error) => return Err(error),
    };
    while master.is_some_and(is_there) {
        pause(LOOK_AGAIN);
    }
    if out.json {
        out.value(&serde_json::json!({ "stopped": true, "pid": master }))?;
    } else {
        out.line("stopped")?;
    }
    Ok(Exit::Done as u8)
}

/// Has the broker pass it on; gives the master's pid, if there still is one.
fn ask(instance: &Instance, now: bool) -> Result<Option<i32>, CliError> {
    let deadline = Instant::now() + BROKER_PATIENCE;
    let mut client = Client::connect_until(instance, Some(deadline))?;
    match client.call(&Request::Stop { now }) {
        Ok(Reply::Done { count }) => i32::try_from(count)
            .map(Some)
            .map_err(|_| CliError::internal(format!("the daemon gave {count} as its pid"))),
        Ok(other) => Err(unexpected(&other)),
        // It was there a moment ago: somebody's stop, perhaps ours, was faster than the answer.
        Err(error) if error.exit == Exit::NoDaemon => Ok(locked_master(instance)),
        Err(error) => Err(error),
    }
}

/// The pid that the master wrote, if somebody still holds its lock: an old file names nobody.
fn locked_master(instance: &Instance) -> Option<i32> {
    #[derive(Deserialize)]
    struct Status {
        master_pid: i32,
    }
    let lock = File::open(instance.lock()).ok()?;
    match Flock::lock(lock, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => {}
        _ => return None,
    }
    let status: Status = serde_json::from_str(&last_status(instance)?).ok()?;
    // 0 and -1 would signal groups.
    Some(status.master_pid).filter(|pid| *pid > 1)
}

fn signal(pid: i32, now: bool) -> Result<(), CliError> {
    let signal = if now { Signal::SIGINT } else { Signal::SIGTERM };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(CliError::new(
            Exit::Forbidden,
            format!("cannot signal the master, pid {pid}: {}", errno.desc()),
        )),
    }
}

/// Whether a process runs; one that waits for its parent to see that it has ended does not.
fn is_there(pid: i32) -> bool {
    let stat = Path::new("/proc").join(pid.to_string()).join("stat");
    let Ok(stat) = std::fs::read_to_string(stat) else { return false };
    // "pid (name) S …", where the name may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_there_until_it_has_ended() {
        assert!(is_there(i32::try_from(std::process::id()).unwrap()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // A zombie first, then nothing: neither is there.
        while is_there(pid) {
            pause(LOOK_AGAIN);
        }
        child.wait().unwrap();
        assert!(!is_there(pid));
    }

    #[test]
    fn only_a_locked_instance_has_a_master() {
        let folder = tempfile::tempdir().unwrap();
        let instance = Instance::at(folder.path());
        assert_eq!(locked_master(&instance), None);
        std::fs::write(instance.status(), r#"{"phase":"running","master_pid":4321}"#).unwrap();
        let lock = File::create(instance.lock()).unwrap();
        assert_eq!(locked_master(&instance), None);
        let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(locked_master(&instance), Some(4321));
        drop(held);
        assert_eq!(locked_master(&instance), None);
    }
}
