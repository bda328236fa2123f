//! A child that checks something for the master and says one thing.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lifeline::Lifeline;
use super::requests::Askers;
use crate::protocol::lifeline::FromChecker;
use crate::task::Cause;

/// How long a check may take.
const CHECK_MAX: Duration = Duration::from_secs(10);

/// A check that is under way.
pub(super) struct Check {
    pid: Pid,
    pub(super) lifeline: Lifeline,
    pub(super) askers: Askers,
    pub(super) until: Instant,
}

impl Check {
    pub(super) fn new(pid: Pid, lifeline: Lifeline, askers: Askers, now: Instant) -> Self {
        Self { pid, lifeline, askers, until: now + CHECK_MAX }
    }

    /// What it says; `Err` is why not.
    pub(super) fn hear(&self) -> Option<Result<(), String>> {
        Some(match self.lifeline.receive()? {
            FromChecker::Good => Ok(()),
            FromChecker::Bad { errors } => Err(errors),
        })
    }

    /// Whether it is the one that died. It has said nothing then, and that is an error.
    pub(super) fn is(&self, pid: Pid) -> bool {
        self.pid == pid
    }

    /// How a check that said nothing ended.
    pub(super) fn how(cause: &Cause) -> String {
        match (&cause.signal, cause.exit_code) {
            (Some(signal), _) => format!("the check ended by {signal}"),
            (None, code) => format!("the check ended with exit code {}", code.unwrap_or(0)),
        }
    }

    /// Ends it if it takes too long; its death says the rest.
    pub(super) fn keep_deadline(&mut self, now: Instant) {
        if now >= self.until {
            let _ = kill(self.pid, Signal::SIGKILL);
            self.until = now + CHECK_MAX;
        }
    }
}
