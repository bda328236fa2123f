//! What a key may hold: the check of a value, and the words about what is allowed.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::IgnoredAny;
use toml::Value;

use super::rules::Rule;
use super::schedule::{cron_of, zone_of};
use super::units::{bytes_of, duration_of, format_bytes, format_duration, quote};

/// Entries of a chain at most.
const CHAIN_MAX: usize = 32;
/// Bytes of a user's name for a queue, provider, model, agent or tool at most.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of a header's name at most.
const HEADER_NAME_BYTES_MAX: usize = 256;

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
    /// A name as of a provider.
    Name,
    /// A list of such names.
    Names,
    /// The name of a queue.
    QueueName,
    /// What is called: it may be a template, so only its beginning is known.
    CallUrl,
    /// The name of an HTTP header.
    HeaderName,
    /// The value of an HTTP header.
    HeaderValue,
    /// JSON, as text.
    Json,
    /// A table that can be a JSON object.
    Object,
    /// A cron pattern.
    Cron,
    /// The name of a time zone.
    Zone,
    /// An array of sections, each with keys of its own.
    Items(&'static [Rule]),
}

/// Whether `name` may name a queue.
pub fn is_queue_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good)
}

/// Whether `name` may name a provider, a model, an agent, a tool, a service or a schedule.
fn is_model_name(name: &str) -> bool {
    let good =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good)
}

/// The names that a section of named sections takes, as a regular expression.
pub(super) fn name_pattern(section: &str) -> &'static str {
    match section {
        "queues" => "^[A-Za-z0-9_.:-]{1,64}$",
        "headers" => "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$",
        _ => "^[a-z0-9_-]{1,64}$",
    }
}

const QUEUE_NAME: &str = "1 to 64 of A-Z, a-z, 0-9, _ . : -";
const HEADER_NAME: &str = "1 to 256 of A-Z, a-z, 0-9 and !#$%&'*+-.^_`|~";
const MODEL_NAME: &str = "1 to 64 of a-z, 0-9, _ and -";

/// Whether `section` takes `name`; the error is what it takes.
pub(super) fn check_name(section: &str, name: &str) -> Result<(), &'static str> {
    match section {
        "queues" => is_queue_name(name).then_some(()).ok_or(QUEUE_NAME),
        "headers" => is_header_name(name).then_some(()).ok_or(HEADER_NAME),
        _ => is_model_name(name).then_some(()).ok_or(MODEL_NAME),
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
            (Kind::Name, Value::String(text)) => is_model_name(text),
            (Kind::Names, Value::Array(entries)) => return check_names(entries),
            (Kind::QueueName, Value::String(text)) => is_queue_name(text),
            (Kind::CallUrl, Value::String(text)) => is_call_url(text),
            (Kind::HeaderName, Value::String(text)) => is_header_name(text),
            (Kind::HeaderValue, Value::String(text)) => is_header_value(text),
            (Kind::Json, Value::String(text)) => serde_json::from_str::<IgnoredAny>(text).is_ok(),
            (Kind::Object, Value::Table(table)) => table.values().all(is_json),
            (Kind::Cron, Value::String(text)) => cron_of(text).is_ok(),
            (Kind::Zone, Value::String(text)) => zone_of(text).is_some(),
            // What is in them has rules of its own.
            (Kind::Items(_), Value::Array(items)) => items.iter().all(Value::is_table),
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
            Kind::Name => format!("a name: {MODEL_NAME}"),
            Kind::Names => format!("a list of 1 to {CHAIN_MAX} names, primary first, each once"),
            Kind::QueueName => format!("the name of a queue: {QUEUE_NAME}"),
            Kind::CallUrl => "text that begins with http:// or https://".to_owned(),
            Kind::HeaderName => format!("the name of a header: {HEADER_NAME}"),
            Kind::HeaderValue => "text of visible ASCII and spaces".to_owned(),
            Kind::Json => "JSON as text, such as '{\"results\": []}'".to_owned(),
            Kind::Object => "a table that JSON can say: no dates, no nan, no inf".to_owned(),
            Kind::Cron => {
                "five fields (minute, hour, day of the month, month, day of the week), such as \"*/5 * * * *\""
                    .to_owned()
            }
            Kind::Zone => "a time zone of the IANA database, such as \"Europe/Berlin\"".to_owned(),
            Kind::Items(_) => "an array of sections, each headed [[schedule]]".to_owned(),
        }
    }

    /// Whether a bad value may be shown: not where people put secrets by mistake.
    pub(super) fn may_show(self) -> bool {
        !matches!(
            self,
            Kind::EnvName | Kind::FileName | Kind::Url | Kind::CallUrl | Kind::HeaderValue
        )
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

/// A list of names; the sections that they name are looked up when everything is read.
fn check_names(entries: &[Value]) -> Result<(), String> {
    let allowed = || format!("must be {}", Kind::Names.allowed());
    if entries.is_empty() || entries.len() > CHAIN_MAX {
        return Err(allowed());
    }
    for (index, entry) in entries.iter().enumerate() {
        let text = entry.as_str().ok_or_else(allowed)?;
        if !is_model_name(text) {
            return Err(format!("{} is not a name of {MODEL_NAME}", quote(text)));
        }
        if entries.iter().take(index).any(|earlier| earlier == entry) {
            return Err(format!("{} stands there twice", quote(text)));
        }
    }
    Ok(())
}

fn is_call_url(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_control))
}

/// Whether it is a token as HTTP defines one.
pub(super) fn is_header_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=HEADER_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good)
}

fn is_header_value(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// Whether JSON can say it.
fn is_json(value: &Value) -> bool {
    match value {
        Value::Datetime(_) => false,
        Value::Float(number) => number.is_finite(),
        Value::Array(values) => values.iter().all(is_json),
        Value::Table(table) => table.values().all(is_json),
        Value::String(_) | Value::Integer(_) | Value::Boolean(_) => true,
    }
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
}
