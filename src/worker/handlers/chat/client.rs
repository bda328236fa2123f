//! The HTTP clients of one worker, built on first use: never before a fork, and never in the
//! broker, which only checks inputs.

use std::cell::OnceCell;
use std::time::Duration;

use reqwest::{Client, ClientBuilder};

/// Longest time for a connection to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("forq/", env!("CARGO_PKG_VERSION"));

#[derive(Default)]
pub(in crate::worker::handlers) struct Clients {
    plain: OnceCell<Client>,
    tls: OnceCell<Client>,
}

impl Clients {
    /// The client for a provider's address. One without TLS is kept apart, since the other reads
    /// the machine's certificates, which takes a while and fails where there are none.
    pub(in crate::worker::handlers) fn get(
        &self,
        base_url: &str,
    ) -> Result<&Client, reqwest::Error> {
        let tls = base_url.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("https:"));
        let (cell, builder) = match tls {
            true => (&self.tls, Client::builder()),
            false => (&self.plain, Client::builder().tls_certs_only([])),
        };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let client = build(builder)?;
        Ok(cell.get_or_init(|| client))
    }
}

fn build(builder: ClientBuilder) -> Result<Client, reqwest::Error> {
    // An error only means that somebody in this process has installed one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    builder
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        // A key goes to the server that it is meant for, and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .build()
}
