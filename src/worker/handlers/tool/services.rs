//! What the configuration says of a tool, as its calls need it.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderName};
use secrecy::SecretString;
use serde_json::value::RawValue;

use crate::config;
use crate::worker::handlers::http::read_json;

/// A tool as tasks call it.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// Under which the broker grants its first call.
    pub(super) gate: String,
    /// In the order in which they are called.
    pub(super) services: Vec<Service>,
    /// Longest time for one call.
    pub(super) timeout: Duration,
    /// Its answers may be given again.
    pub(super) is_cached: bool,
    /// The answer when nothing else is left.
    pub(super) default: Option<Box<RawValue>>,
}

/// One service that can answer for it. Its address, headers and body are templates.
#[derive(Debug)]
pub(crate) struct Service {
    pub(super) name: String,
    /// As the broker knows it: `TOOL/SERVICE`.
    pub(super) server: String,
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Option<String>,
    /// Whether an API key goes with each call.
    pub(super) has_key: bool,
    /// Absent where no calls are made.
    pub(super) api_key: Option<SecretString>,
    /// Where the key goes; as a bearer token if that is `Authorization`.
    pub(super) key_header: HeaderName,
}

impl Tool {
    /// The tool of this name. `key` reads the API key of a service, where there are to be calls.
    /// The error is one sentence.
    pub(crate) fn new(
        name: &str,
        tool: &config::Tool,
        key: impl Fn(&config::Service) -> Result<Option<SecretString>, String>,
    ) -> Result<Self, String> {
        let mut services = Vec::new();
        for service_name in &tool.chain {
            let place = format!("tools.{name}.services.{service_name}");
            let service = tool
                .services
                .get(service_name)
                .ok_or_else(|| format!("{place} is missing: tools.{name}.chain names it"))?;
            let api_key = key(service).map_err(|error| format!("{place}: {error}"))?;
            let service = Service::new(name, service_name, service, api_key)
                .map_err(|error| format!("{place}: {error}"))?;
            services.push(service);
        }
        let default = match &tool.default {
            None => None,
            Some(text) => Some(
                read_json(text.as_bytes())
                    .ok_or_else(|| format!("tools.{name}.default is not JSON"))?,
            ),
        };
        Ok(Self {
            name: name.to_owned(),
            gate: format!("t:{name}"),
            services,
            timeout: tool.timeout,
            is_cached: !tool.cache_ttl.is_zero(),
            default,
        })
    }
}

impl Service {
    fn new(
        tool: &str,
        name: &str,
        service: &config::Service,
        api_key: Option<SecretString>,
    ) -> Result<Self, String> {
        let method = Method::from_bytes(service.method.as_bytes())
            .map_err(|_| format!("{:?} is not a method", service.method))?;
        let key_header = match &service.api_key_header {
            None => AUTHORIZATION,
            Some(header) => HeaderName::from_bytes(header.as_bytes())
                .map_err(|_| format!("api_key_header: {header:?} is not a header's name"))?,
        };
        Ok(Self {
            name: name.to_owned(),
            server: format!("{tool}/{name}"),
            method,
            url: service.url.clone(),
            headers: service.headers.clone(),
            body: service.body.clone(),
            has_key: service.api_key_env.is_some()
                || service.api_key_file.is_some()
                || service.api_key_credential.is_some(),
            api_key,
            key_header,
        })
    }

    /// Its templates, each with the key that it has in the configuration.
    pub(super) fn templates(&self, tool: &str) -> Vec<(String, &str)> {
        let place = format!("tools.{tool}.services.{}", self.name);
        let headers =
            self.headers.iter().map(|(name, text)| (format!("{place}.headers.{name}"), &**text));
        let body = self.body.iter().map(|text| (format!("{place}.body"), &**text));
        std::iter::once((format!("{place}.url"), &*self.url)).chain(headers).chain(body).collect()
    }
}
