//! Which provider a task's model means.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use secrecy::SecretString;

/// The entry that a task without `model` means.
const MODEL_DEFAULT: &str = "default";
/// Most names that an error lists.
const LISTED_MAX: usize = 20;

/// An OpenAI-compatible server.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Where its API begins, with the version: `https://api.example.com/v1`.
    pub(crate) base_url: String,
    /// Sent as a bearer token.
    pub(crate) api_key: Option<SecretString>,
    /// Longest time for one call.
    pub(crate) timeout: Duration,
    /// Longest wait for the first token of a stream.
    pub(crate) first_token_timeout: Duration,
    /// Longest wait between two chunks of a stream.
    pub(crate) idle_timeout: Duration,
}

/// Where one call goes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The server.
    pub(crate) provider: Rc<Provider>,
    /// The model's name there.
    pub(crate) model: String,
}

/// What tasks may name as their model: an entry, or `PROVIDER/MODEL`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    providers: BTreeMap<String, Rc<Provider>>,
    models: BTreeMap<String, Route>,
}

impl Routes {
    /// Adds a provider.
    pub(crate) fn add_provider(&mut self, provider: Provider) {
        self.providers.insert(provider.name.clone(), Rc::new(provider));
    }

    /// Adds an entry that means `target`, a `PROVIDER/MODEL`. The error is one sentence.
    pub(crate) fn add_model(&mut self, name: &str, target: &str) -> Result<(), String> {
        let Some(route) = self.direct(target) else {
            return Err(format!(
                "'{target}' is no PROVIDER/MODEL: the providers are {}",
                listed(self.providers.keys())
            ));
        };
        self.models.insert(name.to_owned(), route);
        Ok(())
    }

    /// The route of a task's model. The error is one sentence with the cure.
    pub(super) fn find(&self, model: Option<&str>) -> Result<Route, String> {
        let name = model.unwrap_or(MODEL_DEFAULT);
        if let Some(route) = self.models.get(name) {
            return Ok(route.clone());
        }
        if let Some(route) = self.direct(name) {
            return Ok(route);
        }
        if self.providers.is_empty() {
            return Err(
                "no model is configured: add a [providers.NAME] and a [models.default]".to_owned()
            );
        }
        let known = match self.models.is_empty() {
            true => format!("PROVIDER/MODEL of {}", listed(self.providers.keys())),
            false => format!("{}, or PROVIDER/MODEL", listed(self.models.keys())),
        };
        Err(match model {
            Some(name) => format!("input.model: there is no model '{name}': give {known}"),
            None => format!("input.model: missing, and there is no [models.default]: give {known}"),
        })
    }

    /// Split at the first slash: models' names have slashes of their own.
    fn direct(&self, target: &str) -> Option<Route> {
        let (provider, model) = target.split_once('/')?;
        let provider = self.providers.get(provider).filter(|_| !model.is_empty())?;
        Some(Route { provider: Rc::clone(provider), model: model.to_owned() })
    }
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = if names.len() > LISTED_MAX { ", …" } else { "" };
    let names: Vec<_> = names.take(LISTED_MAX).map(String::as_str).collect();
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(name: &str) -> Provider {
        Provider {
            name: name.into(),
            base_url: String::new(),
            api_key: Some("sk-secret".into()),
            timeout: Duration::ZERO,
            first_token_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
        }
    }

    fn routes() -> Routes {
        let mut routes = Routes::default();
        routes.add_provider(provider("a"));
        routes.add_provider(provider("b"));
        routes
    }

    #[test]
    fn models_are_found_by_entry_or_directly() {
        let mut routes = routes();
        routes.add_model("default", "a/m").unwrap();
        routes.add_model("a/odd", "b/org/model:1").unwrap();
        for (asked, provider, model) in [
            (None, "a", "m"),
            (Some("default"), "a", "m"),
            (Some("b/x/y"), "b", "x/y"),
            // An entry goes before a provider.
            (Some("a/odd"), "b", "org/model:1"),
        ] {
            let route = routes.find(asked).unwrap();
            assert_eq!((route.provider.name.as_str(), route.model.as_str()), (provider, model));
        }
    }

    #[test]
    fn errors_say_what_there_is() {
        let mut routes = routes();
        assert!(Routes::default().find(None).unwrap_err().contains("[providers.NAME]"));
        assert!(routes.find(None).unwrap_err().contains("PROVIDER/MODEL of a, b"));
        assert!(routes.add_model("x", "c/m").unwrap_err().contains("'c/m'"));
        assert!(routes.add_model("x", "a/").is_err());
        routes.add_model("x", "a/m").unwrap();
        for asked in [None, Some("y"), Some("c/m"), Some("a/"), Some("")] {
            let error = routes.find(asked).unwrap_err();
            assert!(error.starts_with("input.model: ") && error.contains("give x, or"), "{error}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        assert!(!format!("{:?}", provider("a")).contains("sk-secret"));
    }
}
