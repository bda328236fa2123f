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
// Until runs use it.
#[allow(dead_code)]
mod expect;
mod guard;
mod master;
mod worker;
// Until runs use it.
#[allow(dead_code, unused_imports)]
mod workflow;

pub use app::App;
