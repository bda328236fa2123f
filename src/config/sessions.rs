//! The section `[sessions]`: conversations.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::DurationText;

/// What chat tasks of one session see of their conversation, and how long it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// Turns that a task sees at most, the latest ones: a turn is what one task said and the answer
    /// to it.
    pub turns_max: u32,
    /// Tokens, as forq estimates them, that a task sees of its conversation at most.
    pub tokens_max: u64,
    /// What becomes of turns that go past either of those.
    pub overflow: Overflow,
    /// How long a conversation is kept after the end of its last task, whatever `result_ttl`; 0s:
    /// for ever. While a task of it waits or runs, it stays.
    #[serde(with = "DurationText")]
    pub idle_timeout: Duration,
    /// The model that sums up; absent: that of the task after which it is needed.
    #[schemars(with = "String")]
    pub summary_model: Option<String>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            turns_max: 20,
            tokens_max: 8_000,
            overflow: Overflow::Drop,
            idle_timeout: Duration::from_secs(30 * 60),
            summary_model: None,
        }
    }
}

/// What becomes of turns that a task does not see any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// They are forgotten.
    #[default]
    Drop,
    /// A model sums them up, and tasks see the summary. It is a task of its own, which runs before
    /// the session's next one; if it fails, they are forgotten.
    Summarise,
}
