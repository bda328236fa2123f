//! What the processes say to each other, and how it is carried.
//!
//! * [`control`]: clients and broker; length-framed JSON, since a client and a daemon may differ
//!   in age.
//! * [`link`]: broker and workers; length-framed bincode; [`calls`], [`steps`]: what of it is
//!   about calls and workflows.
//! * [`lifeline`]: master and children; bincode, a message a packet.
//! * [`frame`]: the length prefix and its limits.
//! * [`codec`]: bincode, in one place.

pub mod calls;
pub mod codec;
pub mod control;
#[cfg(test)]
mod fixtures;
pub mod frame;
pub mod lifeline;
pub mod link;
pub mod steps;
