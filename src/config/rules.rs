//! Every key and what it may hold: one table, which the checks, the JSON Schema and the errors
//! share. A `*` stands for a name that the user chooses.

use std::time::Duration;

use super::key::Key;
use super::kind::Kind;
use super::pool::INPUT_BYTES_MAX;
use super::units::DURATION_MAX;

/// What one key may hold.
pub(super) struct Rule {
    /// The key, with `*` for a name.
    pub(super) pattern: &'static str,
    /// The values that it takes.
    pub(super) kind: Kind,
    /// Whether the section must have it.
    pub(super) required: bool,
}

const ZERO: Duration = Duration::ZERO;
const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// An amount of money; 0: nothing is spent.
const MONEY: Kind = Kind::Number(0.0, 1e9);

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
    optional("queue.daily_budget", MONEY),
    optional("queues.*.weight", Kind::Count(1, 1000)),
    optional("queues.*.max_running", Kind::Count(1, 1_000_000)),
    optional("queues.*.daily_budget", MONEY),
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
    required("providers.*.price.input_per_mtok", MONEY),
    required("providers.*.price.output_per_mtok", MONEY),
    optional("providers.*.daily_budget", MONEY),
    optional("providers.*.breaker.failures", Kind::Count(1, 1_000_000)),
    optional("providers.*.breaker.cooldown", Kind::Duration(MILLI, DAY)),
    required("models.*.chain", Kind::Chain),
    optional("models.*.cache_ttl", Kind::Duration(ZERO, DURATION_MAX)),
    optional("models.*.streaming", Kind::OneOf(&["restart", "buffer_first"])),
    required("tools.*.chain", Kind::Names),
    optional("tools.*.max_concurrent", Kind::Count(1, 1_000_000)),
    optional("tools.*.rpm", Kind::Count(1, 1_000_000_000)),
    optional("tools.*.timeout", Kind::Duration(MILLI, DAY)),
    optional("tools.*.cache_ttl", Kind::Duration(ZERO, DURATION_MAX)),
    optional("tools.*.stale_ttl", Kind::Duration(ZERO, DURATION_MAX)),
    optional("tools.*.default", Kind::Json),
    optional("tools.*.breaker.failures", Kind::Count(1, 1_000_000)),
    optional("tools.*.breaker.cooldown", Kind::Duration(MILLI, DAY)),
    required("tools.*.services.*.url", Kind::CallUrl),
    optional("tools.*.services.*.method", Kind::OneOf(&["GET", "POST", "PUT"])),
    optional("tools.*.services.*.headers.*", Kind::HeaderValue),
    optional("tools.*.services.*.body", Kind::Text),
    optional("tools.*.services.*.api_key_env", Kind::EnvName),
    optional("tools.*.services.*.api_key_file", Kind::Text),
    optional("tools.*.services.*.api_key_credential", Kind::FileName),
    optional("tools.*.services.*.api_key_header", Kind::HeaderName),
    optional("cache.bytes_max", Kind::Size(0, 16 << 30)),
    optional("sessions.turns_max", Kind::Count(1, 1000)),
    optional("sessions.tokens_max", Kind::Count(1, 100_000_000)),
    optional("sessions.overflow", Kind::OneOf(&["drop", "summarise"])),
    optional("sessions.idle_timeout", Kind::Duration(ZERO, DURATION_MAX)),
    optional("sessions.summary_model", Kind::Text),
    optional("http.listen", Kind::Address),
    optional("agents.*.priority", Kind::Count(0, 9)),
    optional("agents.*.model", Kind::Text),
    optional("agents.*.prompt", Kind::Text),
    optional("agents.*.daily_budget", MONEY),
    optional("schedule", Kind::Items(SCHEDULE_RULES)),
];

/// Every key of one `[[schedule]]`.
pub(super) const SCHEDULE_RULES: &[Rule] = &[
    required("name", Kind::Name),
    optional("cron", Kind::Cron),
    optional("timezone", Kind::Zone),
    optional("every", Kind::Duration(SECOND, YEAR)),
    optional("kind", Kind::Text),
    required("input", Kind::Object),
    optional("queue", Kind::QueueName),
    optional("priority", Kind::Count(0, 9)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_key_once() {
        let mut patterns: Vec<_> = RULES.iter().map(|rule| rule.pattern).collect();
        patterns.sort_unstable();
        patterns.dedup();
        assert_eq!(patterns.len(), RULES.len());
    }
}
