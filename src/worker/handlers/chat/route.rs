//! Which providers a task's model means.

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

/// What a task's model means: who is called, in this order, until one answers.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// As tasks ask for it.
    pub(super) name: String,
    /// Under which the broker grants its first call: `m:NAME` for an entry, `p:PROVIDER` for a
    /// `PROVIDER/MODEL`.
    pub(super) gate: String,
    /// At least one.
    pub(super) routes: Vec<Route>,
    /// Text is held back until its provider has proved itself.
    pub(super) buffer_first: bool,
}

/// What tasks may name as their model: an entry, or `PROVIDER/MODEL`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    providers: BTreeMap<String, Rc<Provider>>,
    models: BTreeMap<String, Rc<Chain>>,
}

impl Routes {
    /// Adds a provider.
    pub(crate) fn add_provider(&mut self, provider: Provider) {
        self.providers.insert(provider.name.clone(), Rc::new(provider));
    }

    /// Adds an entry that means `targets`, each a `PROVIDER/MODEL`. Those after the first whose
    /// provider is not there are skipped. The error is one sentence.
    pub(crate) fn add_model(
        &mut self,
        name: &str,
        targets: &[String],
        buffer_first: bool,
    ) -> Result<(), String> {
        let first = targets.first().map_or("", String::as_str);
        if self.direct(first).is_none() {
            return Err(format!(
                "'{first}' is no PROVIDER/MODEL: the providers are {}",
                listed(self.providers.keys())
            ));
        }
        let routes = targets.iter().filter_map(|target| self.direct(target)).collect();
        let (name, gate) = (name.to_owned(), format!("m:{name}"));
        self.models.insert(name.clone(), Rc::new(Chain { name, gate, routes, buffer_first }));
        Ok(())
    }

    /// What a task's model means. The error is what is wrong with it, and the cure.
    pub(super) fn find(&self, model: Option<&str>) -> Result<Rc<Chain>, String> {
        let name = model.unwrap_or(MODEL_DEFAULT);
        if let Some(chain) = self.models.get(name) {
            return Ok(Rc::clone(chain));
        }
        if let Some(route) = self.direct(name) {
            let (name, gate) = (name.to_owned(), format!("p:{}", route.provider.name));
            let routes = vec![route];
            return Ok(Rc::new(Chain { name, gate, routes, buffer_first: false }));
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
            Some(name) => format!("there is no model '{name}': give {known}"),
            None => format!("missing, and there is no [models.default]: give {known}"),
        })
    }

    /// Split at the first slash: models' names have slashes of their own.
    fn direct(&self, target: &str) -> Option<Route> {
        let (provider, model) = target.split_once('/')?;
        let provider = self.providers.get(provider).filter(|_| !model.is_empty())?;
        Some(Route { provider: Rc::clone(provider), model: model.to_owned() })
    }
}

impl Chain {
    /// A route's name in a list of those of this chain: its provider's, unless that stands there
    /// more than once.
    pub(super) fn label(&self, route: &Route) -> String {
        let provider = &route.provider.name;
        match self.routes.iter().filter(|other| other.provider.name == *provider).count() {
            0 | 1 => provider.clone(),
            _ => format!("{provider}/{}", route.model),
        }
    }
}

/// Names in an error: not all of them if there are many.
pub(super) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = if names.len() > LISTED_MAX { ", …" } else { "" };
    let names: Vec<_> = names.take(LISTED_MAX).map(String::as_str).collect();
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::tests::provider_named as provider;
    use super::*;

    fn routes() -> Routes {
        let mut routes = Routes::default();
        routes.add_provider(provider("a"));
        routes.add_provider(provider("b"));
        routes
    }

    fn add(routes: &mut Routes, name: &str, targets: &[&str]) -> Result<(), String> {
        let targets: Vec<_> = targets.iter().map(|target| (*target).to_owned()).collect();
        routes.add_model(name, &targets, false)
    }

    fn targets(chain: &Chain) -> Vec<String> {
        let target = |route: &Route| format!("{}/{}", route.provider.name, route.model);
        chain.routes.iter().map(target).collect()
    }

    #[test]
    fn models_are_found_by_entry_or_directly() {
        let mut routes = routes();
        add(&mut routes, "default", &["a/m", "gone/x", "b/n", "a/o"]).unwrap();
        add(&mut routes, "a/odd", &["b/org/model:1"]).unwrap();
        for (asked, gate, expected) in [
            (None, "m:default", &["a/m", "b/n", "a/o"][..]),
            (Some("default"), "m:default", &["a/m", "b/n", "a/o"]),
            (Some("b/x/y"), "p:b", &["b/x/y"]),
            // An entry goes before a provider.
            (Some("a/odd"), "m:a/odd", &["b/org/model:1"]),
        ] {
            let chain = routes.find(asked).unwrap();
            assert_eq!(chain.gate, gate);
            assert_eq!(targets(&chain), expected);
        }
    }

    #[test]
    fn labels_tell_routes_apart() {
        let mut routes = routes();
        add(&mut routes, "x", &["a/m", "b/n", "a/o"]).unwrap();
        let chain = routes.find(Some("x")).unwrap();
        let labels: Vec<_> = chain.routes.iter().map(|route| chain.label(route)).collect();
        assert_eq!(labels, ["a/m", "b", "a/o"]);
    }

    #[test]
    fn errors_say_what_there_is() {
        let mut routes = routes();
        assert!(Routes::default().find(None).unwrap_err().contains("[providers.NAME]"));
        assert!(routes.find(None).unwrap_err().contains("PROVIDER/MODEL of a, b"));
        assert!(add(&mut routes, "x", &["c/m", "a/m"]).unwrap_err().contains("'c/m'"));
        assert!(add(&mut routes, "x", &["a/"]).is_err());
        assert!(add(&mut routes, "x", &[]).is_err());
        add(&mut routes, "x", &["a/m"]).unwrap();
        for asked in [None, Some("y"), Some("c/m"), Some("a/"), Some("")] {
            let error = routes.find(asked).unwrap_err();
            assert!(error.contains("give x, or"), "{error}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        assert!(!format!("{:?}", provider("a")).contains("sk-"));
    }
}
