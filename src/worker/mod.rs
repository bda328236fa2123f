//! The worker: runs tasks on its own event loop.

pub(crate) mod handlers;
