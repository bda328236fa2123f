//! What a kind of task is made of: the [`Handler`] trait, its [`Context`], and the registry
//! that maps names to handlers. Built-in kinds live in `worker/handlers`, a user's in their own
//! binary through [`crate::App`].

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::expect::Expect;
use crate::task::{Cause, ErrorKind, TaskError, TaskId, Usage};
use crate::worker::calls::Calls;

/// What a running handler tells the people who follow its task.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A piece of text, in order: what the model says, or what a command prints.
    Text {
        /// The piece.
        text: String,
    },
    /// Anything else, as JSON.
    Data {
        /// The value.
        data: Box<serde_json::Value>,
    },
}

/// Where a handler's events go. It never blocks and never grows without bound: the owner keeps
/// what fits and tells followers of a gap.
pub trait EventSink: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: Event);
}

/// What one attempt knows about itself. Cheap to clone, and may cross threads.
#[derive(Clone)]
pub struct Context {
    /// The task.
    pub task: TaskId,
    /// 1 for the first start.
    pub attempt: u32,
    /// Where events go; use [`Context::text`] and [`Context::data`].
    pub sink: Arc<dyn EventSink>,
    /// What it may call.
    pub(crate) calls: Calls,
    /// What its answer must be.
    pub(crate) expect: Option<Arc<Expect>>,
    /// The conversation so far, a JSON list of messages, if it is of a session.
    pub(crate) history: Option<Arc<str>>,
}

impl Context {
    /// The context of an attempt that runs without a daemon, as in a test of a handler: its calls
    /// are limited by nobody.
    pub fn new(task: TaskId, attempt: u32, sink: Arc<dyn EventSink>) -> Self {
        let (calls, expect, history) = (Calls::free(u32::MAX), None, None);
        Self { task, attempt, sink, calls, expect, history }
    }

    /// The same, with an answer that must be as expected.
    #[cfg(test)]
    pub(crate) fn with_expect(self, expect: Option<Arc<Expect>>) -> Self {
        Self { expect, ..self }
    }

    /// Tells followers a piece of text.
    pub fn text(&self, text: impl Into<String>) {
        self.sink.emit(Event::Text { text: text.into() });
    }

    /// Tells followers anything else.
    pub fn data(&self, data: serde_json::Value) {
        self.sink.emit(Event::Data { data: Box::new(data) });
    }
}

/// What a task needs besides a free slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Needs {
    /// The chain of servers that its first call goes through; empty: it calls nobody that is
    /// limited.
    pub gate: String,
    /// Tokens that a call will probably take.
    pub tokens: u64,
    /// Stands for everything in the request that its answer depends on, if an answer may be given
    /// again to an equal one.
    pub cache_key: Option<u128>,
    /// Its answer goes into the cache and is not taken from there.
    pub cache_refresh: bool,
    /// Who asks, for its priority and its budget.
    pub agent: Option<String>,
}

/// What a handler gives back.
#[derive(Debug)]
pub struct Output {
    /// The output, as JSON.
    pub json: Box<RawValue>,
    /// Tokens, for kinds that count them.
    pub usage: Option<Usage>,
}

/// Why a handler gave nothing back: who is to blame, and whether another attempt may help.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct HandlerError {
    /// Who is to blame.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
    /// Whether another attempt may help.
    pub retryable: bool,
    /// How long the other side asked us to wait before it.
    pub retry_after: Option<Duration>,
    /// The evidence.
    pub cause: Option<Cause>,
}

impl HandlerError {
    /// The handler's own failure, which another attempt may mend.
    pub fn retryable(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Handler, message, true)
    }

    /// The handler's own failure, which no retry mends.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Handler, message, false)
    }

    /// An input that cannot be worked on.
    pub fn input(message: impl Into<String>) -> Self {
        Self::of(ErrorKind::Input, message, false)
    }

    /// An error of any kind.
    pub fn of(kind: ErrorKind, message: impl Into<String>, retryable: bool) -> Self {
        Self { kind, message: message.into(), retryable, retry_after: None, cause: None }
    }

    /// What is kept on the task.
    pub fn into_task_error(self) -> TaskError {
        TaskError {
            kind: self.kind,
            message: self.message,
            retryable: self.retryable,
            cause: self.cause,
        }
    }
}

/// The future of one attempt. Dropping it cancels the attempt: whatever it holds (a process
/// group, an upstream call) must end with it.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Output, HandlerError>>>>;

/// One kind of task.
pub trait Handler {
    /// Whether `input` can be worked on; asked at submission, before anything is accepted. The
    /// error names the field.
    fn check(&self, input: &RawValue) -> Result<(), String>;

    /// Checks like [`check`](Handler::check), and says what the task needs. Asked in its place.
    fn needs(&self, input: &RawValue) -> Result<Needs, String> {
        self.check(input).map(|()| Needs::default())
    }

    /// Runs one attempt. Called on the worker's event loop: it must not block.
    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture;
}

/// The handlers of one process, by kind.
#[derive(Clone, Default)]
pub struct Registry {
    handlers: BTreeMap<String, Rc<dyn Handler>>,
}

impl Registry {
    /// Adds a kind, in place of one with the same name.
    pub fn insert(&mut self, kind: &str, handler: Rc<dyn Handler>) {
        self.handlers.insert(kind.to_owned(), handler);
    }

    /// Adds all kinds of `other`, in place of those with the same names.
    pub(crate) fn add(&mut self, other: &Registry) {
        for (kind, handler) in &other.handlers {
            self.insert(kind, Rc::clone(handler));
        }
    }

    /// The handler of a kind.
    pub fn get(&self, kind: &str) -> Option<&Rc<dyn Handler>> {
        self.handlers.get(kind)
    }

    /// The names of all kinds, in order.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = &str> {
        self.handlers.keys().map(String::as_str)
    }

    /// Checks a task's kind and input; the error is one sentence with the cure.
    pub fn check(&self, kind: &str, input: &RawValue) -> Result<(), String> {
        self.needs(kind, input).map(drop)
    }

    /// Checks a task's kind and input, and says what it needs to run.
    pub fn needs(&self, kind: &str, input: &RawValue) -> Result<Needs, String> {
        match self.get(kind) {
            Some(handler) => handler.needs(input).map_err(|error| format!("{kind}: {error}")),
            None => {
                let known: Vec<_> = self.kinds().collect();
                Err(format!("unknown kind '{kind}': this daemon knows {}", known.join(", ")))
            }
        }
    }
}

/// Reads an input into its type; the error names the field (`input.messages[0].role`).
pub fn parse_input<I: DeserializeOwned>(input: &RawValue) -> Result<I, String> {
    let mut json = serde_json::Deserializer::from_str(input.get());
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner().to_string();
        // serde_json's " at line 1 column 7" counts inside the input: no help to anybody.
        let reason = in_words(inner.split(" at line ").next().unwrap_or(&inner));
        if path == "." { format!("input: {reason}") } else { format!("input.{path}: {reason}") }
    })
}

/// What serde says of a wrong type, with JSON's names of types for Rust's.
pub(crate) fn in_words(reason: &str) -> String {
    let Some((found, expected)) = reason.rsplit_once(", expected ") else {
        return reason.to_owned();
    };
    let expected = match expected {
        "f32" | "f64" => "a number",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// Writes an output as raw JSON.
pub fn to_output<O: Serialize>(output: &O) -> Result<Output, HandlerError> {
    match serde_json::value::to_raw_value(output) {
        Ok(json) => Ok(Output { json, usage: None }),
        Err(error) => Err(HandlerError::fatal(format!("the output is not JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        #[allow(dead_code)]
        seconds: f64,
    }

    fn error_of(json: &str) -> String {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        parse_input::<Input>(&raw).unwrap_err()
    }

    #[test]
    fn input_errors_name_the_field() {
        assert_eq!(error_of("{}"), "input: missing field `seconds`");
        assert_eq!(
            error_of(r#"{"seconds":"x"}"#),
            "input.seconds: invalid type: string \"x\", expected a number"
        );
        assert!(error_of(r#"{"second":1}"#).contains("unknown field `second`"));
    }

    #[test]
    fn types_have_the_names_that_json_gives_them() {
        for (reason, words) in [
            (
                "invalid type: null, expected u32",
                "invalid type: null, expected a whole number of 0 or more",
            ),
            ("invalid type: map, expected a sequence", "invalid type: map, expected a list"),
            ("unknown field `a`, expected `b`", "unknown field `a`, expected `b`"),
            ("missing field `a`", "missing field `a`"),
        ] {
            assert_eq!(in_words(reason), words);
        }
    }
}
