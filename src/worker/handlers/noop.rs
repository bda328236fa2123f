//! `noop` {} → {}: what a task costs when it does nothing. For benchmarks and probes.

use std::future::ready;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::handler::{Context, Handler, HandlerFuture, Output, parse_input};
use crate::task::empty_object;

/// The kind `noop`.
pub(crate) struct Noop {
    /// Made once: a run only copies it.
    output: Box<RawValue>,
}

impl Noop {
    pub(crate) fn new() -> Self {
        Self { output: empty_object() }
    }
}

/// No field at all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {}

impl Handler for Noop {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        parse_input::<Input>(input).map(|Input {}| ())
    }

    /// Does not look at the input again: it was checked when it was submitted.
    fn run(&self, _context: Context, _input: Box<RawValue>) -> HandlerFuture {
        Box::pin(ready(Ok(Output { json: self.output.clone(), usage: None })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handlers::testing::{check, run};

    #[test]
    fn takes_only_an_empty_object() {
        let noop = Noop::new();
        assert_eq!(check(&noop, "{}"), Ok(()));
        assert!(check(&noop, r#"{"a":1}"#).unwrap_err().contains("unknown field `a`"));
        assert!(check(&noop, "3").is_err());
    }

    #[tokio::test]
    async fn gives_an_empty_object() {
        assert_eq!(run(&Noop::new(), "{}").await.unwrap(), serde_json::json!({}));
    }
}
