//! The kind `tool`: a call of a tool that the configuration names.
//!
//! # Layout
//! - `services`: what the configuration says of a tool
//! - `template`: what is sent, with the task's parameters in it
//! - `input`: what a task asks for, and what the broker must know of it
//! - `chain`: one attempt along the tool's services, as `walk` decides (pure)
//! - `call`: asks one service; `failure`: what a failed call says, pure
//! - `answer`: the output, pure

mod answer;
mod call;
mod chain;
mod failure;
mod input;
mod services;
mod template;
#[cfg(test)]
mod tests;
mod walk;

pub(crate) use services::Tool;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::value::RawValue;

use self::answer::ToolOutput;
use self::input::Asked;
use self::template::Templates;
use super::chat::Clients;
use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Needs};

/// The handler of `tool` tasks.
///
/// Input: `tool`, `params` (an object, for the templates of the services' addresses, headers and
/// bodies) and `cache` (true, false or `"refresh"`). Output: `service` (who answered), `status`,
/// `json` or `text`, `degraded`, `cached` and `failures` (`service`, `error`) of those who were
/// asked before. When every service has failed, an old answer (`service` is `cache`) or the tool's
/// `default` (`service` is `default`) stands in, and `degraded` is true.
pub(crate) struct ToolHandler {
    tools: BTreeMap<String, Rc<Tool>>,
    clients: Rc<Clients>,
    templates: OnceCell<Result<Templates, String>>,
}

impl ToolHandler {
    /// A handler for these tools. Makes no connection yet, and reads no template: see
    /// [`ToolHandler::check_templates`].
    pub(crate) fn new(tools: impl IntoIterator<Item = Tool>) -> Self {
        let tools = tools.into_iter().map(|tool| (tool.name.clone(), Rc::new(tool)));
        Self { tools: tools.collect(), clients: Rc::default(), templates: OnceCell::new() }
    }

    /// Whether every template can be read; the error names the first that cannot. Not for the
    /// master: the engine makes hash maps, whose state a fork would copy.
    pub(crate) fn check_templates(&self) -> Result<(), String> {
        self.templates().map(drop)
    }

    fn templates(&self) -> Result<&Templates, String> {
        let templates = self.templates.get_or_init(|| Templates::read(self.tools.values()));
        templates.as_ref().map_err(String::clone)
    }

    fn read(&self, input: &RawValue) -> Result<Asked, String> {
        input::read(input, &self.tools, self.templates()?)
    }
}

impl Handler for ToolHandler {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        self.read(input).map(drop)
    }

    fn needs(&self, input: &RawValue) -> Result<Needs, String> {
        self.read(input).map(|asked| asked.needs())
    }

    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture {
        let asked = self.read(&input);
        let clients = Rc::clone(&self.clients);
        Box::pin(async move {
            let asked = asked.map_err(HandlerError::input)?;
            match context.calls.cached().and_then(ToolOutput::again) {
                Some(output) => output.into_output(Vec::new()),
                None => chain::answer(&clients, asked, &context).await,
            }
        })
    }
}
