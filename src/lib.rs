//! forq runs LLM-agent work the way Gunicorn runs web requests.

pub mod config;
pub mod cli;
#[allow(dead_code, reason = "the binary's main comes next")]
#[doc(hidden)]
pub mod guard;
pub mod handler;
pub mod openai;
pub mod protocol;
pub mod sim;
pub mod task;

mod broker;
#[allow(dead_code, reason = "the worker's loop comes next")]
mod worker;
pub mod worker;
