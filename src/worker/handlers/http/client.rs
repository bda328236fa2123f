//! The HTTP client of one worker.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Method, RequestBuilder, Url};

use crate::handler::HandlerError;

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// For name, connection and TLS; the rest of a call has the task's own time limit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections that are kept for one host.
const IDLE_CONNECTIONS_MAX: usize = 32;

pub(super) struct Client {
    client: reqwest::Client,
    /// Whether the machine has certificates of authorities, without which there is no https.
    has_roots: bool,
}

impl Client {
    pub(super) fn new() -> reqwest::Result<Self> {
        // Fails if another client has installed it already, and then all is well.
        _ = rustls::crypto::ring::default_provider().install_default();
        if let Ok(client) = builder().build() {
            return Ok(Self { client, has_roots: true });
        }
        // No authority on this machine: that must not keep a task from a plain http server.
        Ok(Self { client: builder().tls_certs_only([]).build()?, has_roots: false })
    }

    pub(super) fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, HandlerError> {
        if url.scheme() == "https" && !self.has_roots {
            return Err(HandlerError::fatal(
                "https needs certificates of authorities, and this machine has none: \
                 install ca-certificates",
            ));
        }
        Ok(self.client.request(method, url))
    }
}

fn builder() -> ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("forq/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::limited(REDIRECTS_MAX))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
}
