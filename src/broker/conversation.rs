//! How much of a session's conversation its next task sees, and what becomes of the rest: pure.

use std::num::NonZeroU64;

use super::store::{Defaults, Ord};
use crate::config::{Overflow, Sessions};

/// Bytes of a conversation that a task sees at most: tokens say little of images.
const HISTORY_BYTES_MAX: u64 = 16 << 20;
/// A summary may take this part of the tokens that a task sees.
const SUMMARY_PART: u64 = 4;
/// Bytes of the text that is summed up, for each token that a task sees: that much is seen already,
/// and the turn that has gone past it may be any length.
const SUMMARY_BYTES_PER_TOKEN: u64 = 8;

/// What a task sees at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) turns_max: u32,
    pub(crate) tokens_max: u64,
}

/// A turn as the bounds see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weight {
    /// Its place in the order of turns.
    pub(crate) n: Ord,
    pub(crate) tokens: u64,
    pub(crate) bytes: u64,
    /// It makes no sense without the turn before it.
    pub(crate) continues: bool,
}

/// What is done with the turn of a task that ends, and with what goes past the bounds by it.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    pub(crate) bounds: Bounds,
    /// `None`: it is forgotten.
    pub(crate) summary: Option<SummaryBy>,
}

/// Who sums up.
#[derive(Clone, Debug)]
pub(crate) struct SummaryBy {
    /// The model, and its gate; otherwise those of the task after which it is needed.
    pub(crate) model: Option<(String, String)>,
    /// The model of that task's agent, which is its own if it names none.
    pub(crate) agents_model: Option<String>,
    pub(crate) defaults: Defaults,
}

impl Bounds {
    pub(crate) fn of(sessions: &Sessions) -> Self {
        Self { turns_max: sessions.turns_max, tokens_max: sessions.tokens_max }
    }

    /// How many of these turns, newest first, a task sees beside a summary of so many tokens.
    pub(crate) fn fit(self, newest_first: &[Weight], summary_tokens: u64) -> usize {
        let mut tokens_left = self.tokens_max.saturating_sub(summary_tokens);
        let mut bytes_left = HISTORY_BYTES_MAX;
        let mut count = 0;
        for turn in newest_first.iter().take(self.turns_max as usize) {
            let left = tokens_left.checked_sub(turn.tokens).zip(bytes_left.checked_sub(turn.bytes));
            let Some(left) = left else { break };
            (tokens_left, bytes_left) = left;
            count += 1;
        }
        while count > 0 && newest_first[count - 1].continues {
            count -= 1;
        }
        count
    }

    /// What is left whole when something must be summed up: so that not every turn needs a summary.
    pub(crate) fn after_summary(self) -> Self {
        Self { turns_max: self.turns_max / 2, tokens_max: self.tokens_max / 2 }
    }

    /// Tokens that a summary has at most.
    pub(crate) fn summary_tokens_max(self) -> u64 {
        (self.tokens_max / SUMMARY_PART).max(1)
    }

    /// Bytes of the text that is summed up at most.
    pub(crate) fn summed_up_bytes_max(self) -> usize {
        let bytes = self.tokens_max.saturating_mul(SUMMARY_BYTES_PER_TOKEN).min(HISTORY_BYTES_MAX);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

impl Keep {
    /// What the configuration says. `gate_of` finds a model's gate.
    pub(crate) fn of(
        sessions: &Sessions,
        agents_model: Option<&String>,
        defaults: Defaults,
        gate_of: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let summary = (sessions.overflow == Overflow::Summarise).then(|| SummaryBy {
            // One that there is not leaves it to the task's own.
            model: sessions
                .summary_model
                .clone()
                .and_then(|it| gate_of(&it).map(|gate| (it, gate))),
            agents_model: agents_model.cloned(),
            defaults,
        });
        Self { bounds: Bounds::of(sessions), summary }
    }
}

/// A session's number in the broker's memory. Two that share one share a warm worker at worst.
pub(crate) type SessionHash = NonZeroU64;

/// The prefix of a session's lane.
pub(crate) const LANE_PREFIX: &str = "s:";

/// The session whose lane this is.
pub(crate) fn session_of(lane: &str) -> Option<&str> {
    lane.strip_prefix(LANE_PREFIX)
}

/// The number of the session whose lane this is: FNV-1a of its name.
pub(crate) fn hash_of(lane: &str) -> Option<SessionHash> {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = session_of(lane)?.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    NonZeroU64::new(hash.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(tokens: &[u64]) -> Vec<Weight> {
        let weight = |tokens: &u64| Weight { n: 0, tokens: *tokens, bytes: 1, continues: false };
        tokens.iter().map(weight).collect()
    }

    #[test]
    fn a_task_sees_the_latest_turns_within_both_bounds() {
        let bounds = Bounds { turns_max: 3, tokens_max: 100 };
        for (tokens, summary_tokens, count) in [
            (&[][..], 0, 0),
            (&[10, 10, 10, 10], 0, 3),
            (&[50, 50, 1], 0, 2),
            (&[50, 51, 1], 0, 1),
            (&[101, 1], 0, 0),
            (&[50, 40], 20, 1),
            (&[1], 200, 0),
        ] {
            assert_eq!(bounds.fit(&turns(tokens), summary_tokens), count, "{tokens:?}");
        }
        let mut large = turns(&[1, 1, 1]);
        large[1].bytes = HISTORY_BYTES_MAX;
        assert_eq!(bounds.fit(&large, 0), 1);
    }

    #[test]
    fn no_answer_of_a_tool_comes_first() {
        let bounds = Bounds { turns_max: 3, tokens_max: 100 };
        let mut list = turns(&[1, 1, 1, 1]);
        (list[1].continues, list[2].continues) = (true, true);
        assert_eq!(bounds.fit(&list, 0), 1);
        assert_eq!(Bounds { turns_max: 4, ..bounds }.fit(&list, 0), 4);
    }

    #[test]
    fn a_session_has_a_number_and_a_lane_has_none() {
        assert_eq!((hash_of("l:a"), session_of("l:a")), (None, None));
        assert_eq!(session_of("s:s:a"), Some("s:a"));
        assert!(hash_of("s:a").is_some() && hash_of("s:a") != hash_of("s:b"));
        assert!(hash_of("s:").is_some());
    }
}
