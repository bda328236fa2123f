//! What no single value shows: keys that are missing, and keys that contradict each other.

use std::collections::BTreeSet;
use std::time::Duration;

use toml::Value;

use super::error::{ConfigError, Origin};
use super::key::Key;
use super::kind::split_entry;
use super::layers::Settings;
use super::pool::{HEARTBEAT, HEARTBEAT_TIMEOUT_MIN, Queue};
use super::rules::{RULES, Rule};
use super::units::{duration_of, format_duration, quote};

/// The places of an API key, of which a section has one at most.
const API_KEYS: [&str; 3] = ["api_key_env", "api_key_file", "api_key_credential"];

/// Keys that a section which was written must have.
pub(super) fn missing(settings: &Settings, errors: &mut Vec<ConfigError>) {
    for rule in RULES.iter().filter(|rule| rule.required) {
        let name = rule.parts().last().unwrap_or_default();
        for (section, origin) in &settings.sections {
            let key = section.child(name);
            let is_its_section = Rule::of(&key).is_some_and(|of| of.pattern == rule.pattern);
            let told = settings.values.contains_key(&key) || settings.refused.contains(&key);
            if is_its_section && !told {
                let reason = format!("{key} is missing: it must be {}", rule.kind.allowed());
                errors.push(ConfigError::key(origin, reason));
            }
        }
    }
}

/// Keys that contradict each other.
pub(super) fn contradictions(settings: &Settings, errors: &mut Vec<ConfigError>) {
    errors.extend(pool_bounds(settings));
    errors.extend(heartbeat(settings));
    errors.extend(backoff(settings));
    for section in settings.sections.keys() {
        errors.extend(api_keys(settings, section));
        errors.extend(budget_without_price(settings, section));
        errors.extend(headers(settings, section));
    }
    errors.extend(services(settings));
    errors.extend(schedules(settings));
    errors.extend(
        chains(settings, true)
            .into_iter()
            .map(|(origin, key, value, reason)| ConfigError::value(origin, key, value, reason)),
    );
}

/// Fallbacks that name no configured provider, with what there is to say.
pub(super) fn unknown_fallbacks(
    settings: &Settings,
) -> impl Iterator<Item = (&Origin, &Key, String)> {
    chains(settings, false).into_iter().map(|(origin, key, _, reason)| (origin, key, reason))
}

/// Both bounds were set, the wrong way round. If only one was, the other follows it.
fn pool_bounds(settings: &Settings) -> Option<ConfigError> {
    let (min_key, max_key) = (Key::dotted("workers.min"), Key::dotted("workers.max"));
    let (min, origin) = settings.get(&min_key)?;
    let (max, max_origin) = settings.get(&max_key)?;
    (min.as_integer() > max.as_integer()).then(|| {
        let reason = format!("is above workers.max = {max} ({max_origin}): raise max or lower min");
        ConfigError::value(origin, &min_key, min, reason)
    })
}

fn heartbeat(settings: &Settings) -> Option<ConfigError> {
    let key = Key::dotted("workers.heartbeat_timeout");
    let (value, origin) = settings.get(&key)?;
    (duration(value)? < HEARTBEAT_TIMEOUT_MIN).then(|| {
        let [beat, min] = [HEARTBEAT, HEARTBEAT_TIMEOUT_MIN].map(format_duration);
        let reason = format!(
            "is too close to the beat of {beat}, so that a busy worker would look dead: must be at least {min:?}"
        );
        ConfigError::value(origin, &key, value, reason)
    })
}

fn backoff(settings: &Settings) -> Option<ConfigError> {
    let (key, max_key) =
        (Key::dotted("queue.retry_backoff"), Key::dotted("queue.retry_backoff_max"));
    let defaults = Queue::default();
    let said = |key: &Key, default: Duration| match settings.get(key) {
        Some((value, origin)) => (duration(value).unwrap_or(default), origin.clone()),
        None => (default, Origin::Default),
    };
    let (first, origin) = said(&key, defaults.retry_backoff);
    let (max, max_origin) = said(&max_key, defaults.retry_backoff_max);
    let told = settings.refused.contains(&key) || settings.refused.contains(&max_key);
    (first > max && !told).then(|| {
        let [first, max] = [first, max].map(format_duration);
        // Blame the one that somebody wrote.
        if origin == Origin::Default {
            let reason =
                format!("is below queue.retry_backoff = {first:?} ({origin}): raise this or lower that");
            ConfigError::value(&max_origin, &max_key, &Value::String(max), reason)
        } else {
            let reason = format!(
                "is above queue.retry_backoff_max = {max:?} ({max_origin}): raise that or lower this"
            );
            ConfigError::value(&origin, &key, &Value::String(first), reason)
        }
    })
}

/// Two places for one API key.
fn api_keys(settings: &Settings, section: &Key) -> Option<ConfigError> {
    let mut set = API_KEYS
        .map(|name| section.child(name))
        .into_iter()
        .filter_map(|key| settings.get(&key).map(|(_, origin)| (key, origin)));
    let (first, first_origin) = set.next()?;
    let (second, origin) = set.next()?;
    let reason = format!("{second} contradicts {first} ({first_origin}): keep one of them");
    Some(ConfigError::key(origin, reason))
}

/// A provider's budget counts in the currency of its price.
fn budget_without_price(settings: &Settings, section: &Key) -> Option<ConfigError> {
    let key = section.child("daily_budget");
    let is_providers = section.parent() == Key::dotted("providers");
    let (value, origin) = settings.get(&key).filter(|_| is_providers)?;
    let price = section.child("price");
    (!settings.sections.contains_key(&price) && !settings.refused.contains(&price)).then(|| {
        let reason = format!("needs {price}: without it nothing that it does costs anything");
        ConfigError::value(origin, &key, value, reason)
    })
}

/// Headers of one service that are one header: their names differ in case alone, or the API key
/// goes there.
fn headers(settings: &Settings, section: &Key) -> Vec<ConfigError> {
    let is_headers = Rule::of(&section.child("x"))
        .is_some_and(|rule| rule.pattern == "tools.*.services.*.headers.*");
    let service = section.parent();
    let key_header = service.child("api_key_header");
    let has_key = API_KEYS.iter().any(|name| settings.get(&service.child(name)).is_some());
    let for_key = match settings.get(&key_header).and_then(|(value, _)| value.as_str()) {
        _ if !has_key => None,
        named => Some(named.unwrap_or("Authorization")),
    };
    let mut errors = Vec::new();
    let mut seen: Vec<Key> = Vec::new();
    let all = settings.values.range(section.clone()..);
    let all = all.take_while(|(key, _)| key.parts().starts_with(section.parts()));
    for (key, (_, origin)) in all.filter(|_| is_headers) {
        let same = |name: &str| name.eq_ignore_ascii_case(key.last());
        if for_key.is_some_and(same) {
            let reason = format!("{key} is where the API key goes: remove it");
            errors.push(ConfigError::key(origin, reason));
        }
        if let Some(earlier) = seen.iter().find(|earlier| same(earlier.last())) {
            let reason = format!("{key} is the same header as {earlier}: keep one of them");
            errors.push(ConfigError::key(origin, reason));
        }
        seen.push(key.clone());
    }
    errors
}

/// Entries of tools' chains that name no service of theirs. Unlike a model's fallback, a service
/// stands in the same section.
fn services(settings: &Settings) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for (key, (value, origin)) in &settings.values {
        let is_chain = Rule::of(key).is_some_and(|rule| rule.pattern == "tools.*.chain");
        let entries = value.as_array().filter(|_| is_chain).map_or(&[][..], Vec::as_slice);
        for name in entries.iter().filter_map(Value::as_str) {
            let service = key.parent().child("services").child(name);
            if !settings.sections.contains_key(&service) {
                let reason = format!("{} names an unknown service: add [{service}]", quote(name));
                errors.push(ConfigError::value(origin, key, value, reason));
            }
        }
    }
    errors
}

/// What the keys of one `[[schedule]]` may not say together, and two with one name.
fn schedules(settings: &Settings) -> Vec<ConfigError> {
    let key = Key::dotted("schedule");
    let Some(items) = settings.get(&key).and_then(|(value, _)| value.as_array()) else {
        return Vec::new();
    };
    let origins = settings.items.get(&key).map_or(&[][..], Vec::as_slice);
    let mut errors = Vec::new();
    for (index, (item, origin)) in items.iter().zip(origins).enumerate() {
        let mut tell = |reason: &str| {
            errors.push(ConfigError::key(origin, format!("{key}[{index}] {reason}")));
        };
        match (item.get("cron"), item.get("every")) {
            (None, None) => tell("says no time: set one of cron and every"),
            (Some(_), Some(_)) => tell("has both cron and every: keep one of them"),
            (None, Some(_)) if item.get("timezone").is_some() => {
                tell("has a timezone, which only cron needs: remove it or use cron");
            }
            _ => {}
        }
        let name = item.get("name");
        if let Some(at) = items.iter().take(index).position(|other| other.get("name") == name) {
            tell(&format!("has the name of {key}[{at}]: give it another"));
        }
    }
    errors
}

type ChainFault<'a> = (&'a Origin, &'a Key, &'a Value, String);

/// Entries of chains that name no configured provider: the primaries, or the others. A shared
/// file may name fallbacks that one machine lacks; without its primary a chain is a mistake.
fn chains(settings: &Settings, primary: bool) -> Vec<ChainFault<'_>> {
    let providers: BTreeSet<_> = settings
        .sections
        .keys()
        .filter(|key| key.parts().len() == 2 && key.parent() == Key::dotted("providers"))
        .map(Key::last)
        .collect();
    let mut faults = Vec::new();
    for (key, (value, origin)) in &settings.values {
        let is_chain = Rule::of(key).is_some_and(|rule| rule.pattern == "models.*.chain");
        let entries = value.as_array().filter(|_| is_chain).map_or(&[][..], Vec::as_slice);
        let (first, rest) = entries.split_at(entries.len().min(1));
        for text in if primary { first } else { rest }.iter().filter_map(Value::as_str) {
            let provider = split_entry(text).map_or(text, |(provider, _)| provider);
            if providers.contains(provider) {
                continue;
            }
            let entry = quote(text);
            let reason = if primary {
                format!("the primary {entry} names an unknown provider: add [providers.{provider}]")
            } else {
                format!("{entry} is skipped until there is a [providers.{provider}]")
            };
            faults.push((origin, key, value, reason));
        }
    }
    faults
}

fn duration(value: &Value) -> Option<Duration> {
    value.as_str().and_then(|text| duration_of(text).ok())
}
