//! The kinds that this build knows, under one configuration.

use std::rc::Rc;

use super::handlers::chat::{Agent, Agents, ChatHandler, Provider, Routes};
use super::handlers::tool::{Tool, ToolHandler};
use super::handlers::workflow::{self, WorkflowHandler};
use super::handlers::{exec::Exec, http::Http, noop::Noop, sleep::Sleep};
use crate::config::{Config, Service, Streaming};
use crate::handler::Registry;

/// Adds the built-in kinds to those of a user's binary, which go before them.
///
/// `with_keys`: read the API keys. Only a worker calls providers; the broker, which checks inputs,
/// has no business with them.
pub(crate) fn with_built_in(
    users: &Registry,
    config: &Config,
    with_keys: bool,
) -> Result<Registry, String> {
    let chat = ChatHandler::new(routes(config, with_keys)?, agents(config));
    let mut registry = Registry::default();
    registry.insert("chat", Rc::new(chat));
    registry.insert("exec", Rc::new(Exec::new(secrets(config))));
    registry.insert("http", Rc::new(Http::default()));
    registry.insert("noop", Rc::new(Noop::new()));
    registry.insert("sleep", Rc::new(Sleep));
    registry.insert("tool", Rc::new(ToolHandler::new(tools(config, with_keys)?)));
    registry.add(users);
    let workflow = WorkflowHandler::new(registry.clone());
    registry.insert(workflow::KIND, Rc::new(workflow));
    Ok(registry)
}

/// Whether every template of every tool can be read; the error begins with the key of the first that
/// cannot. Not for the master, as [`ToolHandler::check_templates`] says: it leaves this to its
/// children.
pub(crate) fn check_templates(config: &Config) -> Result<(), String> {
    ToolHandler::new(tools(config, false)?).check_templates()
}

fn tools(config: &Config, with_keys: bool) -> Result<Vec<Tool>, String> {
    let key = |service: &Service| match with_keys {
        true => service.api_key(|variable| std::env::var(variable).ok()),
        false => Ok(None),
    };
    config.tools.iter().map(|(name, tool)| Tool::new(name, tool, key)).collect()
}

fn routes(config: &Config, with_keys: bool) -> Result<Routes, String> {
    let mut routes = Routes::default();
    for (name, provider) in &config.providers {
        let api_key = if with_keys {
            provider
                .api_key(|variable| std::env::var(variable).ok())
                .map_err(|error| format!("provider {name}: {error}"))?
        } else {
            None
        };
        routes.add_provider(Provider {
            name: name.clone(),
            base_url: provider.base_url.clone(),
            api_key,
            timeout: provider.timeout,
            first_token_timeout: provider.first_token_timeout,
            idle_timeout: provider.idle_timeout,
        });
    }
    for (name, model) in &config.models {
        // The configuration was checked: the first of the chain has its provider.
        let buffer_first = model.streaming == Streaming::BufferFirst;
        routes.add_model(name, &model.chain, buffer_first)?;
    }
    Ok(routes)
}

/// The variables that hold API keys, or say where they are.
fn secrets(config: &Config) -> Vec<String> {
    let providers = config.providers.values().filter_map(|provider| provider.api_key_env.clone());
    let services = config.tools.values().flat_map(|tool| tool.services.values());
    let services = services.filter_map(|service| service.api_key_env.clone());
    let folder = "CREDENTIALS_DIRECTORY".to_owned();
    providers.chain(services).chain([folder]).collect()
}

fn agents(config: &Config) -> Agents {
    let mut agents = Agents::default();
    for (name, agent) in &config.agents {
        agents.add(name, Agent { model: agent.model.clone(), prompt: agent.prompt.clone() });
    }
    agents
}
