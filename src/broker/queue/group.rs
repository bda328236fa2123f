//! The ready tasks of one priority and gate of one queue, as far as memory holds them.

use std::collections::BTreeMap;

use crate::broker::conversation::SessionHash;
use crate::broker::store::{Ord, Ready};
use crate::handler::Needs;
use crate::protocol::link::Seq;

/// The ready tasks of one priority and gate of one queue.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) window: BTreeMap<Ord, Slot>,
    /// `Some`: there are more on disk, after this place.
    pub(super) horizon: Option<Ord>,
    /// About how many those are.
    pub(super) beyond: u64,
    pub(super) asked: bool,
}

/// One of them, as the queue needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(super) seq: Seq,
    pub(super) solo: bool,
    pub(super) cache_refresh: bool,
    pub(super) cache_key: Option<u128>,
    /// That a call will probably take.
    pub(crate) tokens: u64,
    pub(super) session: Option<SessionHash>,
}

impl Slot {
    pub(super) fn of(ready: &Ready) -> Self {
        let Needs { tokens, cache_key, cache_refresh, .. } = ready.needs;
        let Ready { seq, solo, session, .. } = *ready;
        Self { seq, solo, cache_refresh, cache_key, tokens, session }
    }

    /// Under which an answer may be found that it can use.
    pub(crate) fn key(&self) -> Option<u128> {
        self.cache_key.filter(|_| !self.cache_refresh && !self.solo)
    }
}

impl Group {
    pub(super) fn first(&self) -> Option<Ord> {
        self.window.first_key_value().map(|(ord, _)| *ord)
    }
}
