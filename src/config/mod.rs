//! The configuration: a file, the environment and the command line become one checked
//! [`Config`].
//!
//! ```text
//! defaults < forq.toml < FORQ_SECTION__KEY < options
//! ```
//!
//! # Layout
//! - [`read`](read_sources): the edge, which reads the file and the environment
//! - `layers`, `key`: from text to settings, each with its origin
//! - `rules`: every key; `kind`: what it may hold; `checks`: what keys may not say together;
//!   `items`: arrays of sections; `warnings`; `suggest`
//! - `pool`, `models`, `tools`, `sessions`, `schedule`: the types, and the defaults
//! - `secret`: reading an API key, at the moment that it is needed
//! - `show`, `schema`, `starter.toml`: the verbs of `forq config`
//!
//! [`load`] is pure, and neither it nor the edge starts a thread, draws a random number or uses
//! a hash map: the master calls them before it forks.

mod checks;
mod error;
mod items;
mod key;
mod kind;
mod layers;
mod models;
mod pool;
mod read;
mod rules;
mod schedule;
mod schema;
mod secret;
mod sessions;
mod show;
pub(crate) mod suggest;
#[cfg(test)]
mod tests;
mod tools;
mod units;
mod warnings;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use error::{ConfigError, ConfigErrors, Origin};
pub use kind::is_queue_name;
pub use layers::Override;
pub use models::{Agent, Breaker, Model, Price, Provider, Streaming};
pub use pool::{
    Cache, Durability, HEARTBEAT, Http, INPUT_BYTES_MAX, Log, LogFormat, LogLevel, NamedQueue,
    Queue, Workers,
};
pub use read::read_sources;
pub use schedule::Schedule;
pub(crate) use schedule::{cron_of, zone_of};
pub use schema::schema;
pub use sessions::{Overflow, Sessions};
pub use show::{Shown, show, starter};
pub use tools::{Service, Tool};
pub use units::{DURATION_MAX, format_duration, parse_duration};
pub use warnings::key_warnings;

use key::Key;
use layers::Settings;

/// The checked configuration: every value is in its range and contradicts no other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The pool of worker processes.
    pub workers: Workers,
    /// The queue as a whole, and what its tasks get when they do not say.
    pub queue: Queue,
    /// Queues with a weight or a limit of their own, by name.
    pub queues: BTreeMap<String, NamedQueue>,
    /// What is logged, how and where.
    pub log: Log,
    /// OpenAI-compatible servers, by name.
    pub providers: BTreeMap<String, Provider>,
    /// Models as tasks ask for them, by name.
    pub models: BTreeMap<String, Model>,
    /// Tools as tasks call them, by name.
    pub tools: BTreeMap<String, Tool>,
    /// The answers that are kept for equal requests.
    pub cache: Cache,
    /// What chat tasks of one session see of their conversation, and how long it is kept.
    pub sessions: Sessions,
    /// The HTTP edge. Reserved: takes effect with the HTTP edge.
    pub http: Http,
    /// Prompts, models, priorities and budgets of agents, by name.
    pub agents: BTreeMap<String, Agent>,
    /// Tasks that are submitted by the clock.
    pub schedule: Vec<Schedule>,
}

/// Everything that a configuration is made of, read but not yet understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// The file's path, for messages, and its text; absent: there is no file.
    pub file: Option<(PathBuf, String)>,
    /// The environment: `FORQ_SECTION__KEY` is taken, anything else is ignored.
    pub env: Vec<(String, String)>,
    /// Options on the command line, over everything else.
    pub flags: Vec<Override>,
    /// The CPUs of the machine, from which `workers.max` gets its default.
    pub cpus: u32,
}

/// A configuration that may be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Where each value that somebody set came from, by dotted key; the rest are defaults.
    pub origins: BTreeMap<String, Origin>,
    /// What is probably not meant, one sentence each.
    pub warnings: Vec<String>,
}

/// Reads and checks a configuration: no I/O, and the same result for the same sources. Finds
/// everything that is wrong, not only the first.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut errors = Vec::new();
    let mut settings = Settings::default();
    if let Some((path, text)) = &sources.file {
        settings.add_file(path, text, &mut errors);
    }
    settings.add_env(&sources.env, &mut errors);
    settings.add_flags(&sources.flags, &mut errors);
    checks::missing(&settings, &mut errors);
    checks::contradictions(&settings, &mut errors);
    if !errors.is_empty() {
        return Err(ConfigErrors { errors });
    }
    let mut config = config_of(&settings)?;
    follow_bounds(&mut config.workers, &settings, sources.cpus);
    let warnings = warnings::warnings(&config, &settings);
    let origins =
        settings.values.into_iter().map(|(key, (_, origin))| (key.to_string(), origin)).collect();
    Ok(Loaded { config, origins, warnings })
}

/// The bound of the pool that nobody set follows the one that somebody did.
fn follow_bounds(workers: &mut Workers, settings: &Settings, cpus: u32) {
    let is_set = |key| settings.get(&Key::dotted(key)).is_some();
    if !is_set("workers.max") {
        let default = Workers::default().max;
        workers.max = default.max(cpus).max(workers.min);
    }
    if !is_set("workers.min") {
        workers.min = workers.min.min(workers.max);
    }
}

/// The settings as one typed value. Rules and checks have passed, so a type that does not fit is
/// a mistake of ours; it is told, not hidden.
fn config_of(settings: &Settings) -> Result<Config, ConfigError> {
    let mut root = Table::new();
    for section in settings.sections.keys() {
        table_at(&mut root, section.parts());
    }
    for (key, (value, _)) in &settings.values {
        if let Some(table) = table_at(&mut root, key.parent().parts()) {
            table.insert(key.last().to_owned(), value.clone());
        }
    }
    root.try_into().map_err(|error: toml::de::Error| {
        let reason = format!("forq's rules and types disagree: {}", error.message());
        ConfigError::key(&Origin::Default, reason)
    })
}

/// The table at a path, made if there is none.
fn table_at<'a>(root: &'a mut Table, path: &[String]) -> Option<&'a mut Table> {
    path.iter().try_fold(root, |table, part| {
        table.entry(part).or_insert_with(|| Value::Table(Table::new())).as_table_mut()
    })
}
