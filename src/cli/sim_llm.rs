//! `forq sim-llm`: the simulated model as a server.

use std::net::SocketAddr;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::error::{CliError, Exit};
use super::out::Out;
use crate::sim::{self, FaultRule, SimOptions};

/// What `forq sim-llm` takes.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct SimLlmArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8399")]
    listen: SocketAddr,
    /// Milliseconds until the first token
    #[arg(long, value_name = "MS", default_value_t = 50)]
    first_token_ms: u64,
    /// Tokens a second of one answer; 0: all at once
    #[arg(long, value_name = "N", default_value_t = 200.0)]
    tokens_per_second: f64,
    /// Share of requests that fail with status 500, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    failure_rate: f64,
    /// Share of requests that are told to come back later (429), 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    rate_limit_rate: f64,
    /// Share of requests for JSON that are answered in words at first, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    prose_rate: f64,
    /// A fault that the requests meet, or only the first N of them
    #[arg(long, value_name = "NAME[:N]")]
    fault: Option<FaultRule>,
    /// Other answers for another seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn after_help() -> String {
    format!(
        "Faults:\n{}\n\
         A request for the model 'fault-NAME' meets that fault whatever --fault says. One for\n\
         'fault-NAME:N' does if fewer than N requests for exactly that model came before it,\n\
         and is answered otherwise.\n\n\
         GET /sim/stats shows what was seen of the clients: requests, those under way\n\
         (open_requests), those whose client went away (aborted), connections, arrival times.",
        sim::list_of_faults()
    )
}

/// Serves until INT or TERM.
pub(crate) fn run(args: SimLlmArgs, out: &mut Out) -> Result<u8, CliError> {
    crate::master::follow_parent();
    let options = SimOptions {
        listen: args.listen,
        first_token_ms: args.first_token_ms,
        tokens_per_second: args.tokens_per_second,
        failure_rate: args.failure_rate,
        rate_limit_rate: args.rate_limit_rate,
        prose_rate: args.prose_rate,
        fault: args.fault,
        seed: args.seed,
    };
    options.check().map_err(|error| CliError::new(Exit::Invalid, error))?;
    let cannot = |error| CliError::new(Exit::Invalid, format!("cannot listen: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(options.listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        out.line(format_args!("listening on http://{address}/v1"))?;
        out.flush()?;
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let asked_to_end = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        sim::serve(listener, options, asked_to_end).await.map_err(cannot)
    })?;
    Ok(Exit::Done as u8)
}
