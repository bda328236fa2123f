//! The body of an answer before it is sent: its bytes, and which are written when. Pure.

use std::time::Duration;

use bytes::Bytes;

use super::SimOptions;
use super::answer::Answer;
use super::wire::{self, Head};
use crate::openai::sse;

/// Longest that one answer is drawn out, so that no option overflows a clock.
const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What is sent, and when.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Script {
    pub(super) bytes: Bytes,
    /// Where each write ends in `bytes`, in order.
    pub(super) writes: Vec<Write>,
    /// Whether writes that are due at once may go as one.
    pub(super) may_join: bool,
    pub(super) ending: Ending,
    /// What the header says, for a body in one piece.
    pub(super) content_length: Option<usize>,
}

/// One write to the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Write {
    /// From the start of the answer.
    pub(super) due: Duration,
    pub(super) end: usize,
}

/// What comes after the last write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending {
    /// The proper end of the body.
    Done,
    /// Nothing, for as long as the client stays.
    Silence,
    /// The connection is closed in the middle of the body.
    Cut,
    /// These bytes, again and again.
    Endless(Bytes),
}

impl Script {
    /// A body in one piece, at once.
    pub(super) fn whole(body: Vec<u8>) -> Self {
        let length = body.len();
        Self {
            bytes: body.into(),
            writes: vec![Write { due: Duration::ZERO, end: length }],
            may_join: true,
            ending: Ending::Done,
            content_length: Some(length),
        }
    }

    /// A stream, an event a write, at the pace of a model.
    pub(super) fn stream(
        options: &SimOptions,
        head: &Head,
        answer: Answer,
    ) -> serde_json::Result<Self> {
        let chunks = wire::chunks(head, answer);
        let mut writes = Vec::with_capacity(chunks.len() + 1);
        let mut bytes = Vec::new();
        let mut last_due = Duration::ZERO;
        for (token, chunk) in chunks {
            sse::write_event(&mut bytes, &serde_json::to_vec(&chunk)?);
            last_due = due(options, token);
            writes.push(Write { due: last_due, end: bytes.len() });
        }
        sse::write_event(&mut bytes, sse::DONE.as_bytes());
        writes.push(Write { due: last_due, end: bytes.len() });
        let (may_join, ending) = (true, Ending::Done);
        Ok(Self { bytes: bytes.into(), writes, may_join, ending, content_length: None })
    }
}

/// When token `index` of an answer is due, from the start of the request.
pub(super) fn due(options: &SimOptions, index: usize) -> Duration {
    let first = Duration::from_millis(options.first_token_ms);
    let after = if options.tokens_per_second > 0.0 {
        // Beyond what a duration holds: DELAY_MAX, below.
        Duration::try_from_secs_f64(index as f64 / options.tokens_per_second)
            .unwrap_or(Duration::MAX)
    } else {
        Duration::ZERO
    };
    first.saturating_add(after).min(DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_the_pace() {
        let options =
            SimOptions { first_token_ms: 200, tokens_per_second: 50.0, ..SimOptions::default() };
        assert_eq!(due(&options, 0), Duration::from_millis(200));
        assert_eq!(due(&options, 50), Duration::from_millis(1200));
        let at_once = SimOptions { tokens_per_second: 0.0, ..options.clone() };
        assert_eq!(due(&at_once, 50), Duration::from_millis(200));
        for odd in [f64::NAN, f64::MIN_POSITIVE, -1.0, f64::INFINITY] {
            let options = SimOptions { tokens_per_second: odd, ..options.clone() };
            assert!(due(&options, 1000) <= DELAY_MAX);
        }
    }
}
