//! The sections about tools: `[tools.NAME]` and `[tools.NAME.services.NAME]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::models::Breaker;
use super::units::DurationText;

/// A tool as tasks call it: services that can stand in for each other, then an old answer, then a
/// stated one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tool {
    /// Its services, in the order in which they are called until one answers: the primary, then
    /// its backups. Each is a `[tools.NAME.services.X]`.
    pub chain: Vec<String>,
    /// Calls at once over the whole pool; absent: no limit.
    #[schemars(with = "u32")]
    pub max_concurrent: Option<u32>,
    /// Calls a minute over the whole pool; absent: no limit.
    #[schemars(with = "u32")]
    pub rpm: Option<u32>,
    /// Time limit of one call to one service.
    #[serde(with = "DurationText")]
    pub timeout: Duration,
    /// How long an answer is given again to an equal call; 0s: never.
    #[serde(with = "DurationText")]
    pub cache_ttl: Duration,
    /// How long an old answer may stand in when every service fails; 0s: never.
    #[serde(with = "DurationText")]
    pub stale_ttl: Duration,
    /// The answer, as JSON text, when nothing else is left; absent: the call fails.
    #[schemars(with = "String")]
    pub default: Option<String>,
    /// When to leave a failing service alone.
    pub breaker: Breaker,
    /// What can answer, by name.
    pub services: BTreeMap<String, Service>,
}

impl Default for Tool {
    fn default() -> Self {
        Self {
            chain: Vec::new(),
            max_concurrent: None,
            rpm: None,
            timeout: Duration::from_secs(30),
            cache_ttl: Duration::ZERO,
            stale_ttl: Duration::from_secs(24 * 60 * 60),
            default: None,
            breaker: Breaker::default(),
            services: BTreeMap::new(),
        }
    }
}

/// One service that can answer for a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// What is called: http or https. It may be a template over the task's input.
    pub url: String,
    /// The HTTP method.
    pub method: String,
    /// Headers of each call, by name. No place for an API key: see `api_key_*`.
    pub headers: BTreeMap<String, String>,
    /// What is sent; absent: nothing. It may be a template over the task's input.
    #[schemars(with = "String")]
    pub body: Option<String>,
    /// The environment variable that holds its API key. At most one `api_key_*` of these three
    /// may be set; with none, no key is sent.
    #[schemars(with = "String")]
    pub api_key_env: Option<String>,
    /// The file that holds its API key; white space at both ends is dropped.
    #[schemars(with = "PathBuf")]
    pub api_key_file: Option<PathBuf>,
    /// The systemd credential that holds its API key: a file in `$CREDENTIALS_DIRECTORY`.
    #[schemars(with = "String")]
    pub api_key_credential: Option<String>,
    /// The header that holds nothing but the API key; absent: it is sent as `Authorization:
    /// Bearer`.
    #[schemars(with = "String")]
    pub api_key_header: Option<String>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            url: String::new(),
            method: "GET".to_owned(),
            headers: BTreeMap::new(),
            body: None,
            api_key_env: None,
            api_key_file: None,
            api_key_credential: None,
            api_key_header: None,
        }
    }
}
