//! The kinds of task that every forq knows, one file each.

pub(crate) mod chat;
pub(crate) mod exec;
pub(crate) mod http;
mod key;
pub(crate) mod noop;
pub(crate) mod sleep;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tool;
pub(crate) mod workflow;
