//! The kind `chat`: a call of an OpenAI-compatible model.
//!
//! # Layout
//! - `input`: what a task asks for, pure
//! - `route`: which provider that means, pure
//! - `call`: asks the provider, through `client`
//! - `read`: reads the answer as it comes
//! - `answer`: puts it together, pure
//! - `failure`: what a failed call means, pure

mod answer;
mod call;
mod client;
mod failure;
mod input;
mod read;
mod route;
#[cfg(test)]
mod tests;

pub(crate) use route::{Provider, Routes};

use std::rc::Rc;

use serde_json::value::RawValue;

use self::call::Caller;
use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Output, to_output};

/// The handler of `chat` tasks.
///
/// Input: `prompt` or `messages`, `model`, `system`, and any parameter of OpenAI's chat
/// completions. Output: `text`, `model`, `provider`, `usage`, `finish_reason`, `cached`, and
/// `tool_calls` if there are any. The text is told as it comes.
pub(crate) struct ChatHandler {
    routes: Routes,
    caller: Rc<Caller>,
}

impl ChatHandler {
    /// A handler for the given models. Makes no connection yet.
    pub(crate) fn new(routes: Routes) -> Self {
        Self { routes, caller: Rc::default() }
    }
}

impl Handler for ChatHandler {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        let request = input::read(input)?;
        self.routes.find(request.model.as_deref()).map(|_| ())
    }

    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture {
        let asked = input::read(&input)
            .and_then(|request| Ok((self.routes.find(request.model.as_deref())?, request)));
        let caller = Rc::clone(&self.caller);
        Box::pin(async move {
            let (route, request) = asked.map_err(HandlerError::input)?;
            let answer = caller.call(&route, request, &context).await?;
            let output = answer.into_output(&route.provider.name, &route.model);
            let usage = output.usage.as_ref().map(Into::into);
            Ok(Output { usage, ..to_output(&output)? })
        })
    }
}
