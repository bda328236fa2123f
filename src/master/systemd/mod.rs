//! The instance as a service of systemd. Without it, nothing here does anything.
//!
//! * [`activation`]: the control socket from systemd; [`journal`]: lines for its journal.
//! * [`notify`]: the master's voice; [`announce`]: what it says when.

pub(crate) mod activation;
pub(crate) mod announce;
pub(crate) mod journal;
pub(crate) mod notify;
