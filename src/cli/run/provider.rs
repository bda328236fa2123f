//! Which model `forq run` asks: a decision without I/O.

use crate::cli::CliError;

/// OpenAI's own server, which needs no name where its key is set.
const OPENAI_URL: &str = "https://api.openai.com/v1";
/// The model of OpenAI's own server, where none is named.
const OPENAI_MODEL: &str = "gpt-4o-mini";
/// Where an API key is looked for.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";
/// As many as a configuration takes: the breaker stays closed.
const BREAKER_FAILURES: &str = "1000000";

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// Whoever the instance's configuration names.
    Configured,
    /// This server.
    Server(Server),
    /// The simulated model, which is still to be started.
    Simulated,
}

/// An OpenAI-compatible server, and the model to ask it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) base_url: String,
    pub(super) model: String,
    /// Whether [`KEY_VARIABLE`] holds a key to send.
    pub(super) has_key: bool,
}

/// What the decision rests on.
pub(super) struct Wishes<'a> {
    /// `--provider-url`
    pub(super) url: Option<&'a str>,
    /// `--model`
    pub(super) model: Option<&'a str>,
    /// Whether the configuration has a provider.
    pub(super) is_configured: bool,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
}

impl Wishes<'_> {
    /// An option comes before the configuration, and that before the environment.
    pub(super) fn choose(&self) -> Result<Provider, CliError> {
        if let Some(url) = self.url {
            return self.server(url);
        }
        if self.is_configured {
            return match self.model {
                None => Ok(Provider::Configured),
                Some(_) => Err(CliError::invalid("the configuration says which models there are")
                    .hint("name another server for --model with --provider-url")),
            };
        }
        match (self.env("OPENAI_BASE_URL"), self.env(KEY_VARIABLE), self.model) {
            (Some(url), ..) => self.server(&url),
            (None, Some(_), _) => self.server(OPENAI_URL),
            (None, None, None) => Ok(Provider::Simulated),
            (None, None, Some(model)) => {
                Err(CliError::invalid(format!("nobody is named to ask for the model {model}"))
                    .hint(format!("give --provider-url, or set OPENAI_BASE_URL or {KEY_VARIABLE}")))
            }
        }
    }

    fn server(&self, url: &str) -> Result<Provider, CliError> {
        if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(CliError::invalid(format!("'{url}' is no address of a server"))
                .hint("an address looks like http://127.0.0.1:8080/v1"));
        }
        let base_url = url.trim_end_matches('/').to_owned();
        let model = match self.model {
            Some(model) => model,
            None if base_url == OPENAI_URL => OPENAI_MODEL,
            None => {
                return Err(CliError::invalid(format!("which model of {base_url}?"))
                    .hint("name it with --model"));
            }
        };
        let has_key = self.env(KEY_VARIABLE).is_some();
        Ok(Provider::Server(Server { base_url, model: model.to_owned(), has_key }))
    }

    /// A variable that is set to nothing counts as not set.
    fn env(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }
}

impl Server {
    /// The configuration of a daemon that asks this server, as the environment carries it.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let chain = serde_json::json!([format!("run/{}", self.model)]).to_string();
        let mut settings = vec![
            ("FORQ_PROVIDERS__RUN__BASE_URL", self.base_url.clone()),
            ("FORQ_MODELS__DEFAULT__CHAIN", chain),
            // Somebody waits for this one run: a failure says more than a long wait.
            ("FORQ_PROVIDERS__RUN__BREAKER__FAILURES", BREAKER_FAILURES.to_owned()),
            // And the machine is theirs.
            ("FORQ_QUEUE__MEMORY_HIGH", "1.0".to_owned()),
        ];
        if self.has_key {
            settings.push(("FORQ_PROVIDERS__RUN__API_KEY_ENV", KEY_VARIABLE.to_owned()));
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(
        options: [Option<&str>; 2],
        is_configured: bool,
        env: &[(&str, &str)],
    ) -> Result<Provider, String> {
        let env = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let [url, model] = options;
        Wishes { url, model, is_configured, env: &env }.choose().map_err(|error| error.message)
    }

    fn server(base_url: &str, model: &str, has_key: bool) -> Result<Provider, String> {
        let (base_url, model) = (base_url.to_owned(), model.to_owned());
        Ok(Provider::Server(Server { base_url, model, has_key }))
    }

    #[test]
    fn the_nearest_wish_wins() {
        let (url, model) = (Some("http://a/v1/"), Some("m"));
        let key = ("OPENAI_API_KEY", "k");
        let base = ("OPENAI_BASE_URL", "http://b/v1");
        assert_eq!(choose([None, None], false, &[]), Ok(Provider::Simulated));
        assert_eq!(choose([None, None], false, &[("OPENAI_API_KEY", "")]), Ok(Provider::Simulated));
        assert_eq!(choose([None, None], true, &[key, base]), Ok(Provider::Configured));
        assert_eq!(choose([url, model], true, &[base]), server("http://a/v1", "m", false));
        assert_eq!(choose([url, model], false, &[key]), server("http://a/v1", "m", true));
        assert_eq!(choose([None, model], false, &[base, key]), server("http://b/v1", "m", true));
        assert_eq!(choose([None, None], false, &[key]), server(OPENAI_URL, OPENAI_MODEL, true));
    }

    #[test]
    fn half_a_wish_is_refused() {
        assert!(choose([Some("http://a"), None], false, &[]).unwrap_err().contains("http://a"));
        assert!(choose([Some("ftp://a"), Some("m")], false, &[]).unwrap_err().contains("ftp://a"));
        let base = ("OPENAI_BASE_URL", "http://b/v1");
        assert!(choose([None, None], false, &[base]).unwrap_err().contains("http://b/v1"));
        assert!(choose([None, Some("m")], false, &[]).unwrap_err().contains("model m"));
        assert!(choose([None, Some("m")], true, &[]).is_err());
    }

    #[test]
    fn settings_name_the_model_as_the_only_one() {
        let server = Server {
            base_url: "http://a/v1".to_owned(),
            model: "org/model \"x\"".to_owned(),
            has_key: false,
        };
        assert_eq!(
            server.settings()[..2],
            [
                ("FORQ_PROVIDERS__RUN__BASE_URL", "http://a/v1".to_owned()),
                ("FORQ_MODELS__DEFAULT__CHAIN", r#"["run/org/model \"x\""]"#.to_owned()),
            ]
        );
        let keyed = Server { has_key: true, ..server };
        assert!(keyed.settings().iter().any(|(name, value)| {
            *name == "FORQ_PROVIDERS__RUN__API_KEY_ENV" && value == "OPENAI_API_KEY"
        }));
    }
}
