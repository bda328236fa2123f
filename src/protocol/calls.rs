//! What worker and broker say about calls to providers and tools: since version 2 of the worker
//! link.
//!
//! A call needs a [`Grant`]. The first travels with the start of an attempt; a handler that falls
//! back asks for another. After the call the worker says with [`Settled`] what came of it.

use serde::{Deserialize, Serialize};

use super::link::{Run, Start};
use crate::task::Usage;

/// Tokens that one call may be counted for: what a request or a server says beyond that is nonsense,
/// and sums of it must stay in their range.
pub const CALL_TOKENS_MAX: u64 = 1 << 40;

/// An attempt to start, with what it may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// The attempt.
    pub start: Start,
    /// The permit for its first call, if its task was queued for one.
    pub grant: Option<Grant>,
    /// Calls that it may make: what its task has left of its attempts.
    pub calls_max: u32,
    /// The output of an equal request, which stands for a call.
    pub cached: Option<String>,
    /// One that is too old for that, and better than none.
    pub stale: Option<String>,
}

/// The permit for one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its number: never given twice.
    pub permit: u64,
    /// Whom to call: a provider, or `TOOL/SERVICE`.
    pub server: String,
    /// The tokens that were counted for it.
    pub tokens: u64,
}

/// What a permit's number has below the time of its grant.
pub const PERMIT_MS_SHIFT: u32 = 20;

impl Grant {
    /// When it was granted, in milliseconds since 1970.
    pub fn at_ms(&self) -> u64 {
        self.permit >> PERMIT_MS_SHIFT
    }
}

/// A running attempt wants to call one of these, the first that is in service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Who asks.
    pub run: Run,
    /// Its number within the attempt.
    pub number: u32,
    /// Whom it would call, best first.
    pub servers: Vec<String>,
    /// Tokens that the call will probably take.
    pub tokens: u64,
}

/// The answer to an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// Who asked.
    pub run: Run,
    /// The ask's number.
    pub number: u32,
    /// The permit, or why none of the servers is in service, one sentence each.
    pub result: Result<Grant, Vec<String>>,
}

/// What came of a call. Kept and sent again until the attempt's result is acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// Who called.
    pub run: Run,
    /// The permit that it used, and whom it called.
    pub grant: Grant,
    /// The model's name there; empty for a tool.
    pub model: String,
    /// How it ended.
    pub outcome: CallOutcome,
    /// Tokens, if the server said how many.
    pub usage: Option<Usage>,
    /// How long the server asked everybody to stay away, in milliseconds.
    pub closed_ms: Option<u64>,
    /// From the grant to the call, in milliseconds: a slow disk or a busy worker lies between.
    pub late_ms: u64,
}

/// How a call ended, as far as the breaker and the accounts care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallOutcome {
    /// With an answer.
    Succeeded,
    /// The server is in trouble: 429, 5xx, no connection, a time limit, a broken answer.
    Failed,
    /// The server is well and the request was not to its liking: any other 4xx.
    Refused,
    /// Nobody waited for the end: a cancel, or the task's own time limit. The server may have done
    /// its work.
    Abandoned,
    /// It was never sent.
    NotMade,
}
