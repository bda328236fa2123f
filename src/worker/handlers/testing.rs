//! What the tests of the handlers share.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::handler::{Context, Event, EventSink, Handler, HandlerError};
use crate::task::TaskId;

/// Keeps every event.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Event>>);

impl Events {
    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }
}

impl EventSink for Events {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

pub(crate) fn raw(json: impl AsRef<str>) -> Box<RawValue> {
    RawValue::from_string(json.as_ref().to_owned()).unwrap()
}

/// A first attempt whose events go to `events`.
pub(crate) fn context(events: &Arc<Events>) -> Context {
    Context::new(TaskId::new(), 1, events.clone())
}

pub(crate) fn check(handler: &dyn Handler, input: impl AsRef<str>) -> Result<(), String> {
    handler.check(&raw(input))
}

/// Runs one attempt to its end and parses its output.
pub(crate) async fn run(
    handler: &dyn Handler,
    input: impl AsRef<str>,
) -> Result<Value, HandlerError> {
    let output = handler.run(context(&Arc::default()), raw(input)).await?;
    Ok(serde_json::from_str(output.json.get()).unwrap())
}
