//! Every key and what it may hold: one table, which the checks, the JSON Schema and the errors
//! share. A `*` stands for a name that the user chooses.

use std::net::SocketAddr;
use std::time::Duration;

use toml::Value;

use super::key::Key;
use super::pool::INPUT_BYTES_MAX;
use super::units::{DURATION_MAX, bytes_of, duration_of, format_bytes, format_duration, quote};

/// What one key may hold.
pub(super) struct Rule {
    /// The key, with `*` for a name.
    pub(super) pattern: &'static str,
    /// The values that it takes.
    pub(super) kind: Kind,
    /// Whether the section must have it.
    pub(super) required: bool,
}

/// The values that a key takes; all bounds are inclusive.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A whole number.
    Count(u64, u64),
    /// Any number.
    Number(f64, f64),
    /// A duration, as text.
    Duration(Duration, Duration),
    /// A size, as text or as a number of bytes.
    Size(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text that is not empty.
    Text,
    /// The name of an environment variable.
    EnvName,
    /// The name of a systemd credential.
    FileName,
    /// Where an API begins.
    Url,
    /// An IP address and a port.
    Address,
    /// A list of `provider/model`.
    Chain,
}

const ZERO: Duration = Duration::ZERO;
const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Entries of a chain at most.
const CHAIN_MAX: usize = 32;
/// Bytes of a user's name for a queue, provider, model or agent at most.
const NAME_BYTES_MAX: usize = 64;

const fn optional(pattern: &'static str, kind: Kind) -> Rule {
    Rule { pattern, kind, required: false }
}

const fn required(pattern: &'static str, kind: Kind) -> Rule {
    Rule { pattern, kind, required: true }
}

/// Every key there is.
pub(super) const RULES: &[Rule] = &[
    optional("workers.min", Kind::Count(0, 1024)),
    optional("workers.max", Kind::Count(1, 1024)),
    optional("workers.scale_down_after", Kind::Duration(SECOND, DAY)),
    optional("workers.concurrency", Kind::Count(1, 100_000)),
    optional("workers.heartbeat_timeout", Kind::Duration(MILLI, DAY)),
    optional("workers.boot_timeout", Kind::Duration(MILLI, DAY)),
    optional("workers.drain_timeout", Kind::Duration(ZERO, DAY)),
    optional("workers.max_tasks", Kind::Count(0, 1_000_000_000)),
    optional("workers.max_tasks_jitter", Kind::Count(0, 1_000_000_000)),
    optional("workers.max_memory", Kind::Size(16 << 20, 16 << 40)),
    optional("workers.max_surge", Kind::Count(1, 64)),
    optional("queue.max_queued", Kind::Count(1, 1_000_000_000)),
    optional("queue.durability", Kind::OneOf(&["fsync", "os", "none"])),
    optional("queue.max_attempts", Kind::Count(1, 100)),
    optional("queue.task_timeout", Kind::Duration(MILLI, DURATION_MAX)),
    optional("queue.input_bytes_max", Kind::Size(1 << 10, INPUT_BYTES_MAX)),
    optional("queue.retry_backoff", Kind::Duration(ZERO, DAY)),
    optional("queue.retry_backoff_max", Kind::Duration(ZERO, DAY)),
    optional("queue.result_ttl", Kind::Duration(SECOND, DURATION_MAX)),
    optional("queue.memory_high", Kind::Number(0.05, 1.0)),
    optional("queues.*.weight", Kind::Count(1, 1000)),
    optional("queues.*.max_running", Kind::Count(1, 1_000_000)),
    optional("log.format", Kind::OneOf(&["text", "json"])),
    optional("log.level", Kind::OneOf(&["error", "warn", "info", "debug", "trace"])),
    optional("log.file", Kind::Text),
    required("providers.*.base_url", Kind::Url),
    optional("providers.*.api_key_env", Kind::EnvName),
    optional("providers.*.api_key_file", Kind::Text),
    optional("providers.*.api_key_credential", Kind::FileName),
    optional("providers.*.max_concurrent", Kind::Count(1, 1_000_000)),
    optional("providers.*.rpm", Kind::Count(1, 1_000_000_000)),
    optional("providers.*.tpm", Kind::Count(1, 1_000_000_000_000)),
    optional("providers.*.timeout", Kind::Duration(MILLI, DAY)),
    optional("providers.*.first_token_timeout", Kind::Duration(MILLI, DAY)),
    optional("providers.*.idle_timeout", Kind::Duration(MILLI, DAY)),
    required("providers.*.price.input_per_mtok", Kind::Number(0.0, 1e9)),
    required("providers.*.price.output_per_mtok", Kind::Number(0.0, 1e9)),
    optional("providers.*.breaker.failures", Kind::Count(1, 1_000_000)),
    optional("providers.*.breaker.cooldown", Kind::Duration(MILLI, DAY)),
    required("models.*.chain", Kind::Chain),
    optional("models.*.cache_ttl", Kind::Duration(ZERO, DURATION_MAX)),
    optional("http.listen", Kind::Address),
    optional("agents.*.priority", Kind::Count(0, 9)),
    optional("agents.*.model", Kind::Text),
    optional("agents.*.prompt", Kind::Text),
];

impl Rule {
    /// The parts of its pattern.
    pub(super) fn parts(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.pattern.split('.')
    }

    /// The rule of a key.
    pub(super) fn of(key: &Key) -> Option<&'static Rule> {
        RULES.iter().find(|rule| {
            rule.parts().count() == key.parts().len()
                && rule.parts().zip(key.parts()).all(|(part, name)| part == "*" || part == name)
        })
    }
}

/// What may stand in the section `key` (the empty key: the file): names of keys and sections, or
/// `*`. Empty if there is no such section.
pub(super) fn children(key: &Key) -> Vec<&'static str> {
    let depth = key.parts().len();
    let mut found: Vec<_> = RULES
        .iter()
        .filter(|rule| {
            rule.parts().count() > depth
                && rule.parts().zip(key.parts()).all(|(part, name)| part == "*" || part == name)
        })
        .filter_map(|rule| rule.parts().nth(depth))
        .collect();
    found.dedup();
    found
}

/// Whether `name` may name a queue.
pub fn is_queue_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good)
}

/// Whether `name` may name a provider, a model or an agent.
fn is_model_name(name: &str) -> bool {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good)
}

/// The names that a section of named sections takes, as a regular expression.
pub(super) fn name_pattern(section: &str) -> &'static str {
    match section {
        "queues" => "^[A-Za-z0-9_.:-]{1,64}$",
        _ => "^[a-z0-9_-]{1,64}$",
    }
}

/// Whether `section` takes `name`; the error is what it takes.
pub(super) fn check_name(section: &str, name: &str) -> Result<(), &'static str> {
    match section {
        "queues" if is_queue_name(name) => Ok(()),
        "queues" => Err("must be 1 to 64 of A-Z, a-z, 0-9, _ . : -"),
        _ if is_model_name(name) => Ok(()),
        _ => Err("must be 1 to 64 of a-z, 0-9, _ and -"),
    }
}

impl Kind {
    /// Checks a value; the error is the end of a sentence that begins with the value.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let good = match (self, value) {
            (Kind::Count(min, max), &Value::Integer(n)) => {
                u64::try_from(n).is_ok_and(|n| (min..=max).contains(&n))
            }
            (Kind::Number(min, max), &Value::Float(n)) => (min..=max).contains(&n),
            (Kind::Number(min, max), &Value::Integer(n)) => (min..=max).contains(&(n as f64)),
            (Kind::Duration(min, max), Value::String(text)) => {
                (min..=max).contains(&duration_of(text)?)
            }
            (Kind::Size(min, max), Value::String(text)) => (min..=max).contains(&bytes_of(text)?),
            (Kind::Size(min, max), &Value::Integer(n)) => {
                u64::try_from(n).is_ok_and(|n| (min..=max).contains(&n))
            }
            (Kind::OneOf(words), Value::String(text)) => words.contains(&text.as_str()),
            (Kind::Text, Value::String(text)) => !text.is_empty(),
            (Kind::EnvName, Value::String(text)) => is_env_name(text),
            (Kind::FileName, Value::String(text)) => is_file_name(text),
            (Kind::Url, Value::String(text)) => is_base_url(text),
            (Kind::Address, Value::String(text)) => text.parse::<SocketAddr>().is_ok(),
            (Kind::Chain, Value::Array(entries)) => return check_chain(entries),
            _ => false,
        };
        if good { Ok(()) } else { Err(format!("must be {}", self.allowed())) }
    }

    /// The values that it takes, in words.
    pub(super) fn allowed(self) -> String {
        match self {
            Kind::Count(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Number(min, max) => format!("a number from {min} to {max}"),
            Kind::Duration(min, max) => {
                format!("a duration from {:?} to {:?}", format_duration(min), format_duration(max))
            }
            Kind::Size(min, max) => {
                format!("a size from {:?} to {:?}", format_bytes(min), format_bytes(max))
            }
            Kind::OneOf(words) => {
                let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Kind::Text => "text that is not empty".to_owned(),
            Kind::EnvName => {
                "the name of an environment variable (A-Z, a-z, 0-9, _), not the API key itself"
                    .to_owned()
            }
            Kind::FileName => "the name of a systemd credential, without a /".to_owned(),
            Kind::Url => "an http:// or https:// URL without user, query or fragment".to_owned(),
            Kind::Address => "an IP address and a port, such as \"127.0.0.1:8321\"".to_owned(),
            Kind::Chain => format!(
                "a list of 1 to {CHAIN_MAX} texts \"provider/model\", primary first, each once"
            ),
        }
    }

    /// Whether a bad value may be shown: not where people put secrets by mistake.
    pub(super) fn may_show(self) -> bool {
        !matches!(self, Kind::EnvName | Kind::FileName | Kind::Url)
    }
}

fn is_env_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_file_name(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains(['/', '\0'])
}

fn is_base_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return false;
    };
    let host = rest.split('/').next().unwrap_or_default();
    !host.is_empty()
        && !host.starts_with(':')
        && !rest.contains(['@', '?', '#', '\\'])
        && rest.chars().all(|c| c.is_ascii_graphic())
}

/// Splits an entry of a chain into provider and model, at the first `/`.
pub(super) fn split_entry(entry: &str) -> Option<(&str, &str)> {
    entry.split_once('/').filter(|(provider, model)| is_model_name(provider) && !model.is_empty())
}

fn check_chain(entries: &[Value]) -> Result<(), String> {
    let allowed = || format!("must be {}", Kind::Chain.allowed());
    if entries.is_empty() || entries.len() > CHAIN_MAX {
        return Err(allowed());
    }
    for (index, entry) in entries.iter().enumerate() {
        let text = entry.as_str().ok_or_else(allowed)?;
        if split_entry(text).is_none() {
            return Err(format!("{} is not \"provider/model\"", quote(text)));
        }
        if entries.iter().take(index).any(|earlier| earlier == entry) {
            return Err(format!("{} stands there twice", quote(text)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        for good in ["http://127.0.0.1:8080", "https://api.example.com/v1", "http://[::1]:80/v1/"] {
            assert!(is_base_url(good), "{good}");
        }
        for bad in [
            "",
            "api.example.com",
            "ftp://x",
            "http://",
            "http:///v1",
            "http://:80",
            "http://u:p@x",
            "http://x?key=1",
            "http://x y",
        ] {
            assert!(!is_base_url(bad), "{bad}");
        }
    }

    #[test]
    fn the_table_names_each_key_once() {
        let mut patterns: Vec<_> = RULES.iter().map(|rule| rule.pattern).collect();
        patterns.sort_unstable();
        patterns.dedup();
        assert_eq!(patterns.len(), RULES.len());
    }
}
