//! The sections about models: `[providers.NAME]`, `[models.NAME]`, `[agents.NAME]`.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::DurationText;

/// One OpenAI-compatible server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// Where its API begins, such as `https://api.deepseek.com/v1`: http or https, without user,
    /// query or fragment.
    pub base_url: String,
    /// The environment variable that holds its API key. At most one `api_key_*` may be set; with
    /// none, no key is sent.
    #[schemars(with = "String")]
    pub api_key_env: Option<String>,
    /// The file that holds its API key; white space at both ends is dropped.
    #[schemars(with = "PathBuf")]
    pub api_key_file: Option<PathBuf>,
    /// The systemd credential that holds its API key: a file in `$CREDENTIALS_DIRECTORY`.
    #[schemars(with = "String")]
    pub api_key_credential: Option<String>,
    /// Calls at once over the whole pool; absent: no limit.
    #[schemars(with = "u32")]
    pub max_concurrent: Option<u32>,
    /// Requests a minute over the whole pool; absent: no limit.
    #[schemars(with = "u32")]
    pub rpm: Option<u32>,
    /// Tokens a minute over the whole pool; absent: no limit.
    #[schemars(with = "u64")]
    pub tpm: Option<u64>,
    /// Time limit of one call.
    #[serde(with = "DurationText")]
    pub timeout: Duration,
    /// Time limit of the wait for the first token of a stream.
    #[serde(with = "DurationText")]
    pub first_token_timeout: Duration,
    /// Time limit of the wait between two tokens of a stream.
    #[serde(with = "DurationText")]
    pub idle_timeout: Duration,
    /// What tokens cost; absent: what it does counts as free.
    #[schemars(with = "Price")]
    pub price: Option<Price>,
    /// Spent on it in one UTC day at most, in the currency of `price`, which it needs; then it is
    /// passed over until midnight UTC: tasks go on to the next of their chain, or wait, and new ones
    /// are refused (exit 7) if all of their chain is spent. Absent: no limit.
    #[schemars(with = "f64")]
    pub daily_budget: Option<f64>,
    /// When to leave a failing provider alone.
    pub breaker: Breaker,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            base_url: String::new(),
            api_key_env: None,
            api_key_file: None,
            api_key_credential: None,
            max_concurrent: None,
            rpm: None,
            tpm: None,
            timeout: Duration::from_secs(300),
            first_token_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            price: None,
            daily_budget: None,
            breaker: Breaker::default(),
        }
    }
}

/// What tokens cost, in the currency that the provider bills in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Price {
    /// A million tokens in.
    pub input_per_mtok: f64,
    /// A million tokens out.
    pub output_per_mtok: f64,
}

/// When to leave a failing provider or service alone, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open before one call is let through.
    #[serde(with = "DurationText")]
    pub cooldown: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, cooldown: Duration::from_secs(60) }
    }
}

/// A model as tasks ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// What to call, in this order, until one answers: the primary, then its fallbacks, each a
    /// `provider/model`, split at the first `/`. The first must name a configured provider; a
    /// later one that does not is a warning, and is skipped.
    pub chain: Vec<String>,
    /// How long an answer is given again to an equal request; 0s: never.
    #[serde(with = "DurationText")]
    pub cache_ttl: Duration,
    /// What a stream does when a provider breaks off in the middle of its answer.
    pub streaming: Streaming,
}

/// What a stream does when a provider breaks off in the middle of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Streaming {
    /// Text is told as it comes; if the provider breaks off, the stream says `restarted` and the
    /// next provider's answer begins.
    #[default]
    Restart,
    /// Text is held back until the provider has proved itself.
    BufferFirst,
}

/// What one agent's tasks are like: a chat task with `agent` takes these unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// 0 to 9, 9 first; absent: the task's own.
    #[schemars(with = "u8")]
    pub priority: Option<u8>,
    /// The model that it asks for; absent: `default`.
    #[schemars(with = "String")]
    pub model: Option<String>,
    /// Its system prompt; absent: none.
    #[schemars(with = "String")]
    pub prompt: Option<String>,
    /// Spent by its tasks in one UTC day at most, in the currency of the providers' `price`; then,
    /// until midnight UTC, more that call somebody are refused (exit 7). Those that are queued by
    /// then still run. Absent: no limit.
    #[schemars(with = "f64")]
    pub daily_budget: Option<f64>,
}
