//! What is probably not meant, but can be lived with: chains that cannot work as written, limits
//! that nothing reaches, budgets that count nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use super::error::Origin;
use super::key::Key;
use super::kind::split_entry;
use super::layers::Settings;
use super::models::Provider;
use super::tools::{Service, Tool};
use super::units::{format_duration, quote};
use super::{Config, Loaded, Overflow, Schedule, checks};

/// Headers that carry secrets, in lower case.
const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];

/// What is probably not meant, one sentence each, in the order of the layers.
pub(super) fn warnings(config: &Config, settings: &Settings) -> Vec<String> {
    let mut said = Said { settings, warnings: Vec::new() };
    for (origin, key, reason) in checks::unknown_fallbacks(settings) {
        said.at(origin, key, &reason);
    }
    models(config, &mut said);
    timeouts(config, &mut said);
    agents(config, &mut said);
    sessions(config, &mut said);
    budgets(config, &mut said);
    for (name, tool) in &config.tools {
        tool_warnings(config, &section("tools", name), tool, &mut said);
    }
    for (index, schedule) in config.schedule.iter().enumerate() {
        never_fires(index, schedule, &mut said);
    }
    said.warnings.sort_by(|(a, _), (b, _)| a.cmp(b));
    said.warnings.into_iter().map(|(_, warning)| warning).collect()
}

/// What is wrong with the API keys that chains need, as far as it can be seen from here: a
/// variable that is not set, a file that cannot be read. One sentence each; none has a key in it.
///
/// Reads files, so it is for a check that somebody asked for. `env` looks up a variable; without
/// `CREDENTIALS_DIRECTORY` nothing is said about systemd's credentials.
pub fn key_warnings(loaded: &Loaded, env: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let config = &loaded.config;
    let mut faults = Vec::new();
    let can_see = |credential: &Option<String>| {
        credential.is_none() || env("CREDENTIALS_DIRECTORY").is_some()
    };
    for name in called(config) {
        if let Some(provider) = config.providers.get(name)
            && can_see(&provider.api_key_credential)
            && let Err(fault) = provider.api_key(&env)
        {
            faults.push((section("providers", name), fault));
        }
    }
    for (name, tool) in &config.tools {
        for service_name in &tool.chain {
            if let Some(service) = tool.services.get(service_name)
                && can_see(&service.api_key_credential)
                && let Err(fault) = service.api_key(&env)
            {
                let services = section("tools", name).child("services");
                faults.push((services.child(service_name), fault));
            }
        }
    }
    faults.into_iter().map(|(section, fault)| key_warning(loaded, &section, &fault)).collect()
}

/// A fault begins with the setting that it is about.
fn key_warning(loaded: &Loaded, section: &Key, fault: &str) -> String {
    let setting = fault.split(':').next().unwrap_or_default();
    let origin = loaded.origins.get(&section.child(setting).to_string());
    format!("{}: {section}.{fault}", origin.cloned().unwrap_or_default())
}

/// The warnings so far, each with the origin of what it is about.
struct Said<'a> {
    settings: &'a Settings,
    warnings: Vec<(Origin, String)>,
}

impl Said<'_> {
    /// Where somebody wrote `key`, or its section.
    fn origin(&self, key: &Key) -> Option<&Origin> {
        let value = self.settings.get(key).map(|(_, origin)| origin);
        value.or_else(|| self.settings.sections.get(key))
    }

    fn about(&mut self, key: &Key, reason: &str) {
        let origin = self.origin(key).cloned().unwrap_or_default();
        self.at(&origin, key, reason);
    }

    fn at(&mut self, origin: &Origin, key: impl std::fmt::Display, reason: &str) {
        self.warnings.push((origin.clone(), format!("{origin}: {key}: {reason}")));
    }

    /// A key with its value, and where that came from.
    fn quoted(&self, key: &Key, value: Duration) -> String {
        let origin = self.origin(key).cloned().unwrap_or_default();
        format!("{key} = {:?} ({origin})", format_duration(value))
    }
}

fn section(kind: &str, name: &str) -> Key {
    Key::of(vec![kind.to_owned(), name.to_owned()])
}

/// The providers that a chain names, known or not.
fn called(config: &Config) -> BTreeSet<&str> {
    config.models.values().flat_map(|model| providers_of(&model.chain)).collect()
}

fn providers_of(chain: &[String]) -> impl Iterator<Item = &str> {
    chain.iter().filter_map(|entry| split_entry(entry)).map(|(provider, _)| provider)
}

fn models(config: &Config, said: &mut Said<'_>) {
    for (name, model) in &config.models {
        let section = section("models", name);
        let providers: BTreeSet<_> = providers_of(&model.chain).collect();
        if let (Some(only), 1, 2..) = (providers.first(), providers.len(), model.chain.len()) {
            let reason =
                format!("all of it is at {}: nothing answers when that is down", quote(only));
            said.about(&section.child("chain"), &reason);
        }
        uncached(config, &section.child("cache_ttl"), model.cache_ttl, said);
    }
}

/// A time to keep what is not kept.
fn uncached(config: &Config, key: &Key, ttl: Duration, said: &mut Said<'_>) {
    let is_written = said.settings.get(key).is_some();
    if config.cache.bytes_max == 0 && is_written && !ttl.is_zero() {
        said.about(key, "has no effect: cache.bytes_max = 0 keeps no answer");
    }
}

fn timeouts(config: &Config, said: &mut Said<'_>) {
    let called = called(config);
    for (name, provider) in &config.providers {
        let section = section("providers", name);
        let whole = section.child("timeout");
        let parts = [
            ("first_token_timeout", provider.first_token_timeout),
            ("idle_timeout", provider.idle_timeout),
        ];
        for (part, limit) in parts {
            let key = section.child(part);
            // A default that is never reached was nobody's wish.
            if limit > provider.timeout && said.settings.get(&key).is_some() {
                let whole = said.quoted(&whole, provider.timeout);
                let limit = format_duration(limit);
                said.about(&key, &format!("{limit:?} is never reached: {whole} ends the call"));
            }
        }
        if called.contains(name.as_str()) {
            cut_by_task(config, &whole, provider, said);
        }
    }
}

/// A call that hangs takes the whole time of its task, so no fallback has its turn.
fn cut_by_task(config: &Config, key: &Key, provider: &Provider, said: &mut Said<'_>) {
    let task_key = Key::dotted("queue.task_timeout");
    let task_limit = config.queue.task_timeout;
    if provider.timeout <= task_limit {
        return;
    }
    let (blamed, reason) = if said.settings.get(key).is_some() {
        let limit = format_duration(provider.timeout);
        (key, format!("{limit:?} is cut by {}", said.quoted(&task_key, task_limit)))
    } else {
        let limit = format_duration(task_limit);
        (&task_key, format!("{limit:?} cuts {}", said.quoted(key, provider.timeout)))
    };
    said.about(blamed, &format!("{reason}: after a call that hangs no fallback has its turn"));
}

fn agents(config: &Config, said: &mut Said<'_>) {
    for (name, agent) in &config.agents {
        let Some(model) = &agent.model else { continue };
        unknown_model(config, &section("agents", name).child("model"), model, said);
    }
}

fn sessions(config: &Config, said: &mut Said<'_>) {
    let Some(model) = &config.sessions.summary_model else { return };
    let key = Key::dotted("sessions.summary_model");
    unknown_model(config, &key, model, said);
    if config.sessions.overflow == Overflow::Drop {
        said.about(&key, "has no effect: sessions.overflow = \"drop\" sums nothing up");
    }
}

fn unknown_model(config: &Config, key: &Key, model: &str, said: &mut Said<'_>) {
    let is_direct =
        split_entry(model).is_some_and(|(provider, _)| config.providers.contains_key(provider));
    if !config.models.contains_key(model) && !is_direct {
        let reason = format!("there is no [models.NAME] or provider for {}", quote(model));
        said.about(key, &reason);
    }
}

/// Budgets to which a provider adds nothing, whatever it does.
fn budgets(config: &Config, said: &mut Said<'_>) {
    let every: Vec<_> = config.providers.keys().map(String::as_str).collect();
    if config.queue.daily_budget.is_some() {
        unpriced(config, &Key::dotted("queue"), &every, said);
    }
    for (name, _) in config.queues.iter().filter(|(_, queue)| queue.daily_budget.is_some()) {
        unpriced(config, &section("queues", name), &every, said);
    }
    for (name, agent) in config.agents.iter().filter(|(_, agent)| agent.daily_budget.is_some()) {
        let model = agent.model.as_deref().unwrap_or("default");
        let providers: Vec<_> = match config.models.get(model) {
            Some(model) => providers_of(&model.chain).collect(),
            None => split_entry(model).map(|(provider, _)| provider).into_iter().collect(),
        };
        unpriced(config, &section("agents", name), &providers, said);
    }
}

fn unpriced(config: &Config, section: &Key, providers: &[&str], said: &mut Said<'_>) {
    let is_free = |name: &&&str| config.providers.get(**name).is_some_and(|it| it.price.is_none());
    let free: BTreeSet<_> = providers.iter().filter(is_free).map(|name| quote(name)).collect();
    if !free.is_empty() {
        let names = free.into_iter().collect::<Vec<_>>().join(", ");
        let reason = format!("counts no call to {names}: a provider without price is free");
        said.about(&section.child("daily_budget"), &reason);
    }
}

fn tool_warnings(config: &Config, section: &Key, tool: &Tool, said: &mut Said<'_>) {
    uncached(config, &section.child("cache_ttl"), tool.cache_ttl, said);
    uncached(config, &section.child("stale_ttl"), tool.stale_ttl, said);
    for (name, service) in &tool.services {
        let key = section.child("services").child(name);
        if !tool.chain.contains(name) {
            said.about(&key, &format!("is never called: {section}.chain does not name it"));
        }
        service_warnings(&key, service, said);
    }
}

fn service_warnings(section: &Key, service: &Service, said: &mut Said<'_>) {
    let has_key = service.api_key_env.is_some()
        || service.api_key_file.is_some()
        || service.api_key_credential.is_some();
    if service.api_key_header.is_some() && !has_key {
        said.about(&section.child("api_key_header"), "has nothing to send: set an api_key_*");
    }
    if service.body.is_some() && service.method == "GET" {
        said.about(
            &section.child("body"),
            "few servers read the body of a GET: method = \"POST\"?",
        );
    }
    for name in service.headers.keys() {
        if SECRET_HEADERS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) {
            let reason =
                "anybody who reads the configuration sees it: use api_key_header and an api_key_*";
            said.about(&section.child("headers").child(name), reason);
        }
    }
}

fn never_fires(index: usize, schedule: &Schedule, said: &mut Said<'_>) {
    let key = Key::dotted("schedule");
    let origin = said.settings.items.get(&key).and_then(|origins| origins.get(index)).cloned();
    if schedule.never_fires() {
        let key = format!("{key}[{index}].cron");
        said.at(&origin.unwrap_or_default(), key, "no date matches it: the task never runs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn loaded(text: &str) -> Loaded {
        let file = Some(("forq.toml".into(), text.to_owned()));
        load(&Sources { file, ..Sources::default() }).unwrap()
    }

    /// Two providers with nothing wrong, and a chain of both.
    const GOOD: &str = "providers.a.base_url = 'http://a'\nproviders.b.base_url = 'http://b'\nmodels.default.chain = ['a/m', 'b/m']\n";

    /// What stands below [`GOOD`], from line 4, and the whole of what is said about it.
    const TABLE: &[(&str, &[&str])] = &[
        ("", &[]),
        (
            "models.x.chain = ['a/m', 'c/m']",
            &["line 4: models.x.chain: \"c/m\" is skipped until there is a [providers.c]"],
        ),
        (
            "models.x.chain = ['a/m', 'a/n']",
            &["line 4: models.x.chain: all of it is at \"a\": nothing answers when that is down"],
        ),
        ("models.x.chain = ['a/m']", &[]),
        (
            "providers.a.timeout = '1m'\nproviders.a.first_token_timeout = '2m'\nproviders.a.idle_timeout = '61s'",
            &[
                "line 5: providers.a.first_token_timeout: \"2m\" is never reached: providers.a.timeout = \"1m\" (forq.toml line 4) ends the call",
                "line 6: providers.a.idle_timeout: \"1m1s\" is never reached: providers.a.timeout = \"1m\" (forq.toml line 4) ends the call",
            ],
        ),
        ("providers.a.timeout = '10s'", &[]),
        (
            "providers.a.timeout = '20m'",
            &[
                "line 4: providers.a.timeout: \"20m\" is cut by queue.task_timeout = \"10m\" (default): after a call that hangs no fallback has its turn",
            ],
        ),
        (
            "queue.task_timeout = '4m'\nproviders.b.timeout = '4m'",
            &[
                "line 4: queue.task_timeout: \"4m\" cuts providers.a.timeout = \"5m\" (default): after a call that hangs no fallback has its turn",
            ],
        ),
        ("providers.c = { base_url = 'http://c', timeout = '20m' }", &[]),
        ("cache.bytes_max = 0", &[]),
        (
            "[sessions]\nsummary_model = 'nosuch'\noverflow = 'summarise'",
            &[
                "line 5: sessions.summary_model: there is no [models.NAME] or provider for \"nosuch\"",
            ],
        ),
        (
            "cache.bytes_max = 0\nmodels.default.cache_ttl = '1m'",
            &[
                "line 5: models.default.cache_ttl: has no effect: cache.bytes_max = 0 keeps no answer",
            ],
        ),
        ("cache.bytes_max = 0\nmodels.default.cache_ttl = '0s'", &[]),
        (
            "cache.bytes_max = 0\n[tools.t]\nchain = ['s']\nstale_ttl = '1h'\nservices.s.url = 'http://s'",
            &["line 7: tools.t.stale_ttl: has no effect: cache.bytes_max = 0 keeps no answer"],
        ),
        (
            "[tools.t]\nchain = ['s']\nservices.s.url = 'http://s'\nservices.old.url = 'http://old'",
            &["line 7: tools.t.services.old: is never called: tools.t.chain does not name it"],
        ),
        (
            "[tools.t]\nchain = ['s']\n[tools.t.services.s]\nurl = 'http://s'\nbody = 'x'\napi_key_header = 'X-Key'\nheaders.Authorization = 'Bearer x'",
            &[
                "line 8: tools.t.services.s.body: few servers read the body of a GET: method = \"POST\"?",
                "line 9: tools.t.services.s.api_key_header: has nothing to send: set an api_key_*",
                "line 10: tools.t.services.s.headers.Authorization: anybody who reads the configuration sees it: use api_key_header and an api_key_*",
            ],
        ),
        (
            "agents.x.model = 'fast'",
            &["line 4: agents.x.model: there is no [models.NAME] or provider for \"fast\""],
        ),
        ("agents.x.model = 'default'\nagents.y.model = 'a/m/n'", &[]),
        (
            "queue.daily_budget = 1\nqueues.q.daily_budget = 1\nproviders.a.price = { input_per_mtok = 1, output_per_mtok = 1 }",
            &[
                "line 4: queue.daily_budget: counts no call to \"b\": a provider without price is free",
                "line 5: queues.q.daily_budget: counts no call to \"b\": a provider without price is free",
            ],
        ),
        (
            "agents.x.daily_budget = 1\nagents.y = { daily_budget = 1, model = 'b/m' }",
            &[
                "line 4: agents.x.daily_budget: counts no call to \"a\", \"b\": a provider without price is free",
                "line 5: agents.y.daily_budget: counts no call to \"b\": a provider without price is free",
            ],
        ),
        (
            "[[schedule]]\nname = 'a'\nevery = '1m'\ninput = {}\n[[schedule]]\nname = 'b'\ncron = '0 0 30 2 *'\ninput = {}",
            &["line 8: schedule[1].cron: no date matches it: the task never runs"],
        ),
        ("[[schedule]]\nname = 'leap'\ncron = '0 0 29 2 1'\ninput = {}", &[]),
    ];

    #[test]
    fn what_is_hardly_meant_is_told_exactly() {
        for (text, warnings) in TABLE {
            let expected: Vec<_> =
                warnings.iter().map(|said| format!("forq.toml {said}")).collect();
            assert_eq!(loaded(&format!("{GOOD}{text}")).warnings, expected, "for {text}");
        }
    }

    #[test]
    fn keys_that_are_not_there_are_told_for_what_is_called() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let file = path.display();
        let loaded = loaded(&format!(
            "{GOOD}providers.a.api_key_env = 'A_KEY'\nproviders.b.api_key_file = '{file}'\n\
             providers.c = {{ base_url = 'http://c', api_key_env = 'NOBODY_CALLS_IT' }}\n\
             [tools.t]\nchain = ['s', 'u']\n\
             services.s = {{ url = 'http://s', api_key_env = 'S_KEY' }}\n\
             services.u = {{ url = 'http://u', api_key_credential = 'u' }}\n"
        ));
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        assert_eq!(
            key_warnings(&loaded, |_| None),
            [
                "forq.toml line 4: providers.a.api_key_env: the environment variable A_KEY is not set"
                    .to_owned(),
                format!(
                    "forq.toml line 5: providers.b.api_key_file: {file} cannot be read: No such file or directory (os error 2)"
                ),
                "forq.toml line 9: tools.t.services.s.api_key_env: the environment variable S_KEY is not set"
                    .to_owned(),
            ]
        );
        std::fs::write(&path, "sk-canary").unwrap();
        let env = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(folder.path().display().to_string()),
            "A_KEY" => Some("sk-canary sk-canary".to_owned()),
            _ => Some("sk-canary".to_owned()),
        };
        let said = key_warnings(&loaded, env);
        assert_eq!(said.len(), 2, "{said:#?}");
        assert!(said[0].contains("A_KEY holds more than a key"), "{said:#?}");
        assert!(said[1].contains("tools.t.services.u.api_key_credential: "), "{said:#?}");
        assert!(!said.concat().contains("canary"), "{said:#?}");
    }
}
