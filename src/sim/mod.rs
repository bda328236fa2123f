//! The simulated model that `forq sim-llm` serves: an OpenAI-compatible server whose answers are
//! made from the prompt's own words, the same for the same prompt and seed, and say that they are
//! simulated. It is there to start on without an account, and to test against. To who asks for JSON as
//! forq does ([`crate::expect`]) it answers with an instance of the schema.
//!
//! # Faults
//! It also misbehaves in every way that is known of real servers. A request for the model
//! `fault-NAME` meets the fault NAME, one for `fault-NAME:N` only if fewer than N requests for
//! exactly that model came before it; `--fault NAME[:N]` is for all other models. The names are in
//! `forq sim-llm --help`. `GET /sim/stats` tells what it saw of its clients, above all whether they
//! let go.
//!
//! # Layout
//! - `answer`: what it says, pure; `json`, `instance`: what it says to who asks for JSON
//! - `check`: which requests it refuses, pure
//! - `draw`, `fault`: when it fails, and how, pure
//! - `wire`: an answer in OpenAI's shapes, pure
//! - `script`: an answer's bytes, and which go when; `spoil`: what a fault makes of it; pure
//! - `routes`, `refuse`: its HTTP face
//! - `play`: a script as a response's body
//! - `stats`, `connections`: what it counts

mod answer;
mod check;
mod connections;
mod draw;
mod fault;
mod instance;
mod json;
mod play;
mod refuse;
mod routes;
mod script;
mod spoil;
mod stats;
#[cfg(test)]
mod tests;
mod wire;

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use self::connections::CountingListener;
pub(crate) use self::fault::list as list_of_faults;
pub use self::fault::{BadRule, Fault, FaultRule};
use self::stats::Stats;

/// The one model's name.
pub const MODEL: &str = "sim-1-simulated";
/// Longest request body.
pub const REQUEST_BYTES_MAX: usize = 32 << 20;

/// How the simulated model behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOptions {
    /// Where `forq sim-llm` listens.
    pub listen: SocketAddr,
    /// Time to the first token, in milliseconds.
    pub first_token_ms: u64,
    /// Pace of the tokens after it; 0 for all at once.
    pub tokens_per_second: f64,
    /// Share of requests, 0 to 1, that fail with status 500.
    pub failure_rate: f64,
    /// Share of requests, 0 to 1, that are refused with status 429 and `Retry-After`.
    pub rate_limit_rate: f64,
    /// Share of requests for JSON, 0 to 1, that are answered in words, unless they say that an
    /// earlier answer was.
    pub prose_rate: f64,
    /// A fault that requests meet whose model names none.
    pub fault: Option<FaultRule>,
    /// Varies the answers and the order of failures.
    pub seed: u64,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8399)),
            first_token_ms: 0,
            tokens_per_second: 0.0,
            failure_rate: 0.0,
            rate_limit_rate: 0.0,
            prose_rate: 0.0,
            fault: None,
            seed: 0,
        }
    }
}

impl SimOptions {
    /// Checks what types cannot; the error is one sentence that names the option.
    pub fn check(&self) -> Result<(), String> {
        for (name, rate) in [
            ("failure_rate", self.failure_rate),
            ("rate_limit_rate", self.rate_limit_rate),
            ("prose_rate", self.prose_rate),
        ] {
            if !(0.0..=1.0).contains(&rate) {
                return Err(format!("{name} is {rate}: give a share from 0 to 1"));
            }
        }
        let pace = self.tokens_per_second;
        if !(pace.is_finite() && pace >= 0.0) {
            return Err(format!("tokens_per_second is {pace}: give 0 (no delay) or more"));
        }
        Ok(())
    }
}

/// Serves the simulated model until `shutdown` is ready. Answers that are under way then are
/// ended with their connections when the runtime ends.
pub async fn serve(
    listener: tokio::net::TcpListener,
    options: SimOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let stats = Stats::new();
    let listener = CountingListener { listener, stats: Arc::clone(&stats) };
    tokio::select! {
        result = axum::serve(listener, routes::router(options, stats)) => result,
        () = shutdown => Ok(()),
    }
}
