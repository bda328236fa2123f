//! forq runs LLM-agent work the way Gunicorn runs web requests.

mod app;
#[doc(hidden)]
pub mod bench_support;
pub mod cli;
pub mod config;
pub mod handler;
pub mod instance;
pub mod openai;
pub mod protocol;
pub mod sim;
pub mod task;

mod broker;
mod cgroup;
mod expect;
mod guard;
mod master;
mod templates;
mod worker;
mod workflow;

pub use app::App;
