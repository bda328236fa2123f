//! forq runs LLM-agent work the way Gunicorn runs web requests.

pub mod cli;
pub mod config;
mod app;
#[allow(dead_code, reason = "the binary's main comes next")]
#[doc(hidden)]
pub mod guard;
pub mod handler;
pub mod openai;
pub mod protocol;
pub mod sim;
pub mod task;

mod broker;
mod worker;

pub use app::App;
