//! What the processes say to each other, and how it is carried.
//!
//! * [`control`]: clients and broker; length-framed JSON, since a client and a daemon may differ
//!   in age.
//! * [`frame`]: the length prefix and its limits, for both kinds of socket.

pub mod control;
pub mod frame;
