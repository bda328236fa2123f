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
    /// What is called: http or https. A template over the task's parameters:
    /// `https://search.example.com/?q={{ params.query | urlencode }}`.
    pub url: String,
    /// The HTTP method.
    pub method: String,
    /// Headers of each call, by name. Templates over the task's parameters. No place for an API
    /// key: see `api_key_*`.
    pub headers: BTreeMap<String, String>,
    /// What is sent; absent: nothing. A template over the task's parameters:
    /// `{"query": {{ params.query | tojson }}}`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load, show};

    fn sources(text: &str) -> Sources {
        Sources { file: Some(("forq.toml".into(), text.to_owned())), ..Sources::default() }
    }

    /// Two services, then an old answer, then a stated one.
    const SEARCH: &str = r#"[tools.search]
chain = ["main", "backup"]
max_concurrent = 100
rpm = 300
timeout = "10s"
cache_ttl = "10m"
default = '{"results": []}'
breaker.failures = 3
[tools.search.services.main]
url = "https://{{ params.host }}/search?q={{ params.query | urlencode }}"
api_key_credential = "search"
headers = { Accept = "application/json", "x.y" = "" }
[tools.search.services.backup]
url = "http://127.0.0.1:1"
method = "POST"
body = '{"q": {{ params.query | tojson }}}'
api_key_env = "BACKUP_KEY"
api_key_header = "X-API-Key"
"#;

    #[test]
    fn a_tool_is_read() {
        let loaded = load(&sources(SEARCH)).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let tool = &loaded.config.tools["search"];
        assert_eq!(tool.chain, ["main", "backup"]);
        assert_eq!((tool.max_concurrent, tool.rpm), (Some(100), Some(300)));
        assert_eq!(tool.stale_ttl, Duration::from_secs(86_400));
        assert_eq!(tool.breaker, Breaker { failures: 3, ..Breaker::default() });
        let (main, backup) = (&tool.services["main"], &tool.services["backup"]);
        assert_eq!((main.method.as_str(), backup.method.as_str()), ("GET", "POST"));
        assert_eq!(main.headers["Accept"], "application/json");
        assert_eq!(main.headers["x.y"], "");
        assert_eq!(backup.api_key_header.as_deref(), Some("X-API-Key"));
        let shown = show(&loaded);
        let header = shown.iter().find(|shown| shown.key.ends_with("headers.\"x.y\"")).unwrap();
        assert_eq!(header.origin.to_string(), "forq.toml line 12");
        let again: String =
            shown.iter().map(|shown| format!("{} = {}\n", shown.key, shown.value)).collect();
        assert_eq!(load(&sources(&again)).unwrap().config, loaded.config);
    }

    #[test]
    fn a_service_is_set_in_the_environment() {
        let env = [
            ("FORQ_TOOLS__T__CHAIN", "['s']"),
            ("FORQ_TOOLS__T__SERVICES__S__URL", "http://s"),
            ("FORQ_TOOLS__T__SERVICES__S__HEADERS__ACCEPT", "1"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let config = load(&Sources { env, ..Sources::default() }).unwrap().config;
        assert_eq!(config.tools["t"].services["s"].headers["accept"], "1");
    }

    #[test]
    fn bad_tools_are_told_exactly() {
        let table = [
            (
                "[tools.t]",
                "line 1: tools.t.chain is missing: it must be a list of 1 to 32 names, primary first, each once",
            ),
            (
                "[tools.t]\nchain = ['s']",
                "line 2: tools.t.chain = [\"s\"]: \"s\" names an unknown service: add [tools.t.services.s]",
            ),
            (
                "[tools.t]\nchain = ['s', 's']",
                "line 2: tools.t.chain = [\"s\", \"s\"]: \"s\" stands there twice",
            ),
            (
                "[tools.t]\nchain = ['S']",
                "line 2: tools.t.chain = [\"S\"]: \"S\" is not a name of 1 to 64 of a-z, 0-9, _ and -",
            ),
            (
                "[tools.t]\nchain = ['s']\n[tools.t.services.s]\nmethod = 'POST'",
                "line 3: tools.t.services.s.url is missing: it must be text that begins with http:// or https://",
            ),
            (
                "[tools.t]\nchain = ['s']\nservices.s.url = 'ftp://user:secret@s'",
                "line 3: tools.t.services.s.url must be text that begins with http:// or https://",
            ),
            (
                "[tools.t]\nchain = ['s']\nservices.s = { url = 'http://s', method = 'get' }",
                "line 3: tools.t.services.s.method = \"get\": must be one of \"GET\", \"POST\", \"PUT\"",
            ),
            (
                "[tools.t]\nchain = ['s']\nservices.s = { url = 'http://s', headers = { 'a b' = '' } }",
                "line 3: the name tools.t.services.s.headers.\"a b\" must be 1 to 256 of A-Z, a-z, 0-9 and !#$%&'*+-.^_`|~",
            ),
            (
                "[tools.t]\nchain = ['s']\nservices.s = { url = 'http://s', headers = { a = \"sk-1\\nb\" } }",
                "line 3: tools.t.services.s.headers.a must be text of visible ASCII and spaces",
            ),
            (
                "[tools.t]\nchain = ['s']\n[tools.t.services.s]\nurl = 'http://s'\nheaders.A = '1'\nheaders.a = '2'",
                "line 6: tools.t.services.s.headers.a is the same header as tools.t.services.s.headers.A: keep one of them",
            ),
            (
                "[tools.t]\nchain = ['s']\n[tools.t.services.s]\nurl = 'http://s'\nheaders.authorization = '1'\napi_key_env = 'K'",
                "line 5: tools.t.services.s.headers.authorization is where the API key goes: remove it",
            ),
            (
                "[tools.t]\nchain = ['s']\n[tools.t.services.s]\nurl = 'http://s'\napi_key_env = 'K'\napi_key_file = '/k'",
                "line 6: tools.t.services.s.api_key_file contradicts tools.t.services.s.api_key_env (forq.toml line 5): keep one of them",
            ),
            (
                "[tools.t]\nchain = ['s']\nservices.s.url = 'http://s'\ndefault = '{'",
                "line 4: tools.t.default = \"{\": must be JSON as text, such as '{\"results\": []}'",
            ),
            (
                "[tools.t]\nchain = ['s']\nservices.s.url = 'http://s'\nservices.s.x = 1",
                "line 4: unknown key tools.t.services.s.x; allowed here: url, method, headers, body, api_key_env, api_key_file, api_key_credential, api_key_header",
            ),
        ];
        for (text, sentence) in table {
            let said = load(&sources(text)).unwrap_err().to_string();
            assert_eq!(said, format!("forq.toml {sentence}"), "for {text}");
        }
    }
}
