//! Why a verb did not do what was asked: an exit code, a sentence, and perhaps a hint. Verbs
//! return it; it is told once, at the edge.

use std::io;

use crate::protocol::control::{Refusal, RefusalKind};

/// The exit codes that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// The task failed or was cancelled.
    TaskFailed = 1,
    /// Bad usage, input or configuration.
    Invalid = 2,
    /// No daemon there.
    NoDaemon = 3,
    /// Timed out waiting.
    TimedOut = 4,
    /// Refused for now: try later.
    Unavailable = 5,
    /// No such task.
    NoSuchTask = 6,
    /// Not allowed.
    Forbidden = 7,
    /// A bug of ours.
    Internal = 70,
}

/// An exit code other than 0, and why.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// One sentence.
    pub(crate) message: String,
    /// What to do about it, where the sentence does not say so.
    pub(crate) hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// Bad usage, input or configuration.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Exit::Invalid, message)
    }

    /// A bug of ours.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Writing our output failed. Who closes the pipe has seen enough: that is success, and
    /// there is nobody left to tell.
    pub(crate) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Done, ""),
            io::ErrorKind::StorageFull => {
                Self::new(Exit::Unavailable, format!("cannot write the output: {error}"))
            }
            _ => Self::internal(format!("cannot write the output: {error}")),
        }
    }
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.kind {
            RefusalKind::Invalid => Exit::Invalid,
            RefusalKind::Unavailable => Exit::Unavailable,
            RefusalKind::NoSuchTask => Exit::NoSuchTask,
            RefusalKind::Forbidden => Exit::Forbidden,
            RefusalKind::Internal => Exit::Internal,
        };
        Self::new(exit, refusal.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_their_exit_codes() {
        let table = [
            (RefusalKind::Invalid, 2),
            (RefusalKind::Unavailable, 5),
            (RefusalKind::NoSuchTask, 6),
            (RefusalKind::Forbidden, 7),
            (RefusalKind::Internal, 70),
        ];
        for (kind, exit) in table {
            assert_eq!(CliError::from(Refusal::new(kind, "why")).exit as u8, exit);
        }
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_success() {
        let error = CliError::output(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((error.exit, error.message.as_str()), (Exit::Done, ""));
    }
}
