//! A command and everything that it started: seeing them end, and ending them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::report::Ended;

/// The command and its descendants, of which the guard is the subreaper.
pub(super) struct Family {
    leader: Child,
    group: Pid,
    /// Readable after SIGCHLD.
    deaths: UnixStream,
}

impl Family {
    /// `leader` leads a process group of its own.
    pub(super) fn new(leader: Child, deaths: UnixStream) -> Self {
        let group = Pid::from_raw(leader.id().cast_signed());
        Self { leader, group, deaths }
    }

    /// Number of the leader and of its group.
    pub(super) fn group(&self) -> i32 {
        self.group.as_raw()
    }

    /// Sleeps until a member ends, the lifeline speaks, or `until` passes; true: the lifeline has
    /// something to read.
    pub(super) fn rest(&self, lifeline: &UnixStream, until: Option<Instant>) -> io::Result<bool> {
        let mut wanted = [
            PollFd::new(self.deaths.as_fd(), PollFlags::POLLIN),
            PollFd::new(lifeline.as_fd(), PollFlags::POLLIN),
        ];
        sleep(&mut wanted, until)?;
        let [deaths, lifeline] = wanted;
        if deaths.any().unwrap_or(true) {
            self.hear_deaths();
        }
        Ok(lifeline.any().unwrap_or(true))
    }

    /// How the leader ended, if it has. Reaps the orphans that have ended too.
    pub(super) fn ended(&mut self) -> io::Result<Option<Ended>> {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::All, peek) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
                Ok(status) if status.pid() != Some(self.group) => _ = reap(status.pid()),
                Err(Errno::EINTR) => {}
                // The leader; or somebody's death by a signal that nix has no name for.
                _ => match self.leader.try_wait()? {
                    Some(status) => {
                        let ended = status.signal().map(Ended::Signal);
                        return Ok(ended.or(status.code().map(Ended::Exit)));
                    }
                    None => _ = reap(None),
                },
            }
        }
    }

    /// Asks the command's group to end, and gives it until `until` or until the worker is gone.
    pub(super) fn ask(&self, lifeline: &UnixStream, until: Instant) -> io::Result<()> {
        // Fails only if the whole group is gone.
        _ = killpg(self.group, Signal::SIGTERM);
        while Instant::now() < until && !reap_all() {
            if self.rest(lifeline, Some(until))? {
                break;
            }
        }
        Ok(())
    }

    /// Kills the command's group in one go. Only while the leader has not been reaped: until then
    /// the group's number is nobody else's.
    pub(super) fn kill_group(&self) {
        _ = killpg(self.group, Signal::SIGKILL);
    }

    /// Kills everybody, and returns when nobody is left or `until` has passed.
    ///
    /// It names only its own children: their numbers cannot be given to anybody else before the
    /// guard itself reaps them. The children of a child that it killed become its own, so it goes
    /// on until there is none.
    pub(super) fn end(&self, until: Instant) -> io::Result<()> {
        while !reap_all() && Instant::now() < until {
            for child in children()? {
                // Fails for a set-user-id program; `until` is for that.
                _ = kill(child, Signal::SIGKILL);
            }
            sleep(&mut [PollFd::new(self.deaths.as_fd(), PollFlags::POLLIN)], Some(until))?;
            self.hear_deaths();
        }
        Ok(())
    }

    /// Empties the pipe, so that it sleeps again.
    fn hear_deaths(&self) {
        let mut bytes = [0; 64];
        while matches!(io::Read::read(&mut &self.deaths, &mut bytes), Ok(n) if n == bytes.len()) {}
    }
}

fn sleep(wanted: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let timeout = match until {
        // One more, since poll counts in whole milliseconds and must not wake before `until`.
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(wanted, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reaps one child that has ended: this one, or any.
#[allow(
    clippy::disallowed_methods,
    reason = "the guard is a process of its own, with its own children"
)]
fn reap(child: Option<Pid>) -> nix::Result<WaitStatus> {
    nix::sys::wait::waitpid(child, Some(WaitPidFlag::WNOHANG))
}

/// Reaps all that have ended; true: there is no child left.
fn reap_all() -> bool {
    loop {
        match reap(None) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) => return false,
            // One was reaped (EINVAL: by a signal that nix has no name for), or EINTR.
            _ => {}
        }
    }
}

/// The processes whose parent is this one. (`/proc/…/children` would say it at once, but a kernel
/// may be built without it.)
fn children() -> io::Result<Vec<Pid>> {
    let me = std::process::id();
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_mine = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        stat.as_deref().and_then(parent_of) == Some(me)
    };
    Ok(pids.filter(is_mine).map(Pid::from_raw).collect())
}

/// The parent's number in a line of `/proc/PID/stat`: `pid (name) state parent …`, where the name
/// may hold anything, brackets too.
fn parent_of(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_parent_behind_any_name() {
        assert_eq!(parent_of("12 (sh) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of("12 (a) R 1 (b)) S 42 12"), Some(42));
        assert_eq!(parent_of(""), None);
        assert_eq!(parent_of("12 (sh) S"), None);
    }
}
