//! The broker: owns the queue, the store and every client connection.
#![allow(dead_code)]

mod queue;
mod rules;
pub(crate) mod store;
