//! `forq sim-llm`, for as long as a test needs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use super::http::Exchange;
use super::{Value, command, json};

/// A simulated model on a free port. It ends with this value.
pub(crate) struct Model {
    child: Child,
    /// Where its API begins: `http://…/v1`.
    pub(crate) url: String,
}

impl Model {
    #[track_caller]
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut child = command()
            .args(["sim-llm", "--listen", "127.0.0.1:0"])
            .args(options)
            // Should the test itself be killed, the model follows it.
            .env("FORQ_PARENT", std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("forq sim-llm starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let url = line.trim_end().strip_prefix("listening on ").expect("its address").to_owned();
        Self { child, url }
    }

    /// What it saw of its clients.
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        let root = self.url.strip_suffix("/v1").expect("where the API begins");
        Exchange::start(&format!("{root}/sim/stats"), None).finish().json()
    }

    /// A configuration that has it as its only provider.
    pub(crate) fn config(&self) -> String {
        config(&self.url)
    }
}

/// A configuration whose only provider is this server.
pub(crate) fn config(url: &str) -> String {
    format!(
        "[providers.sim]\nbase_url = '{url}'\n[models.default]\nchain = ['sim/sim-1']\n\
         [queue]\nretry_backoff = '50ms'\n"
    )
}

/// A section for a provider, with these lines besides its address.
pub(crate) fn provider(name: &str, url: &str, settings: &str) -> String {
    format!("[providers.{name}]\nbase_url = '{url}'\n{settings}\n")
}

/// A task that asks this model.
pub(crate) fn chat(model: &str) -> Value {
    json!({ "kind": "chat", "input": { "prompt": "Say a word. A short word.", "model": model } })
}

/// When the requests of a model's stats arrived, by its clock.
#[track_caller]
pub(crate) fn times_ms(stats: &Value) -> Vec<u64> {
    let times = stats["request_times_ms"].as_array().expect("times");
    times.iter().map(|time| time.as_u64().expect("a time")).collect()
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
