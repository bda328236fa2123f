//! The worker: runs tasks on its own event loop.

pub(crate) mod handlers;
//! The worker process: runs tasks on an event loop of one thread.

pub mod handlers;
