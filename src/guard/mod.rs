//! The guard: a small process between a worker and one command, so that nothing of a command
//! outlives its attempt.
//!
//! ```text
//! worker ──lifeline──> guard ──> command ──> whatever it starts
//! ```
//!
//! The guard is this same binary under another name, without a runtime. It is the subreaper of
//! everything that the command starts, so a grandchild in a session of its own cannot slip away.
//! The lifeline is a socket pair whose other end only the worker holds:
//!
//! - the command ends: the guard kills what is left of it, then reports how it ended;
//! - the worker says [`TERMINATE`] (the attempt was cancelled): SIGTERM to the command's group,
//!   and SIGKILL for all that is left after [`GRACE`];
//! - the lifeline closes (the worker is dead): SIGKILL at once, for another worker may start the
//!   next attempt in a moment;
//! - the lifeline closes at the other end (the guard was killed): the worker kills the group.
//!
//! PR_SET_PDEATHSIG alone would not do: it reaches the command, and none of its children.

mod family;
mod handle;
mod process;
mod report;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use handle::{GuardError, Guarded};
pub(crate) use report::Ended;

/// The first argument that makes this binary a guard.
const GUARD_ARG: &str = "__forq_guard";
/// Process title of a guard.
const GUARD_TITLE: &str = "forq: guard";
/// What a worker writes to the lifeline to cancel a command.
const TERMINATE: u8 = b't';
/// From SIGTERM to SIGKILL when an attempt is cancelled. Shorter than the shortest pause before
/// a next attempt.
const GRACE: Duration = Duration::from_millis(500);
/// How long the guard tries to kill what is left. What outlives SIGKILL for so long (a
/// set-user-id program, a process stuck in the kernel) cannot be ended by us at all.
const SWEEP: Duration = Duration::from_secs(2);

/// One command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    /// The program and its arguments, without a shell.
    pub(crate) argv: Vec<String>,
    /// Added to the worker's environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Taken out of the worker's environment: the API keys of providers are none of its business.
    pub(crate) without: Vec<String>,
    /// Where it runs; the worker's own folder if absent.
    pub(crate) cwd: Option<String>,
}

/// Becomes the guard if the command line says so, and returns its exit code when all is over.
/// Must come first in `main`: the guard wants no thread, no runtime and no configuration.
pub(crate) fn maybe_main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == GUARD_ARG).then(|| process::main(arguments))
}
