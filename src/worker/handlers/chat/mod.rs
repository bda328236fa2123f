//! The kind `chat`: a call of an OpenAI-compatible model.
//!
//! # Layout
//! - `input`: what a task asks for, pure
//! - `agent`: what its agent adds, pure
//! - `route`: which chain of providers that means, pure
//! - `needs`: what the broker must know of it, pure
//! - `cached`: an answer that was given before
//! - `turn`: what a task adds to the conversation of its session, and sees of it, pure
//! - `chain`: one attempt along the chain, as `walk` decides (pure)
//! - `asks`: what is said to a model whose answer is not as expected, pure
//! - `call`: asks one provider, through `client`
//! - `read`: reads the answer as it comes
//! - `answer`: puts it together, pure
//! - `tell`: what followers hear of it
//! - `failure`: what a failed call says, pure; `verdict`: what follows from it, pure; `limits`:
//!   how long it closes the provider, pure

mod agent;
mod answer;
mod asks;
mod cached;
mod call;
mod chain;
mod client;
mod failure;
mod input;
mod limits;
mod needs;
mod read;
mod route;
mod tell;
#[cfg(test)]
mod tests;
mod turn;
mod verdict;
mod walk;

pub(crate) use agent::{Agent, Agents};
pub(super) use client::Clients;
pub(super) use failure::repeated;
pub(super) use limits::{closed_for, retry_after};
pub(crate) use route::{Provider, Routes};
pub(crate) use turn::{SummaryTask, Turn, history, said, summary_of, summary_task, turn_of};

use std::rc::Rc;

use serde_json::value::RawValue;

use self::call::Caller;
use self::input::Asked;
use self::route::Chain;
use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Needs, Output, to_output};

/// The handler of `chat` tasks.
///
/// Input: `prompt` or `messages`, `model`, `system`, `agent` (whose model and prompt stand in for
/// those that are missing), `cache` (true, false or `"refresh"`), `expect` (`json`, `schema`,
/// `regex`: what the answer must be), and any parameter of OpenAI's chat completions. Output: `text`,
/// `model` and `provider` (who answered), `usage`, `finish_reason`, `cached`, `tool_calls` if there
/// are any, `fallbacks` (`provider`, `model`, `error`) if others were asked before in this attempt,
/// and `asked` if it took more than one answer. The text is told as it comes; after the event
/// `{"restarted": {"provider", "reason"}}` it begins anew. A task of a session has the conversation
/// so far between its instructions and what it says.
pub(crate) struct ChatHandler {
    routes: Routes,
    agents: Agents,
    caller: Rc<Caller>,
}

impl ChatHandler {
    /// A handler for the given models and agents. Makes no connection yet.
    pub(crate) fn new(routes: Routes, agents: Agents) -> Self {
        Self { routes, agents, caller: Rc::default() }
    }

    fn read(&self, input: &RawValue) -> Result<(Rc<Chain>, Asked), String> {
        let mut asked = input::read(input)?;
        let mut named_by = "input.model".to_owned();
        if let Some(agent) = &asked.agent {
            let says_model = asked.request.model.is_some();
            self.agents.complete(agent, &mut asked.request)?;
            if !says_model && asked.request.model.is_some() {
                named_by = format!("agents.{agent}.model");
            }
        }
        if let Some(expect) = &asked.expect {
            asks::instruct(&mut asked.request, expect);
        }
        match self.routes.find(asked.request.model.as_deref()) {
            Ok(chain) => Ok((chain, asked)),
            Err(error) => Err(format!("{named_by}: {error}")),
        }
    }
}

impl Handler for ChatHandler {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        self.read(input).map(drop)
    }

    fn needs(&self, input: &RawValue) -> Result<Needs, String> {
        self.read(input).map(|(chain, asked)| needs::of(&asked, &chain))
    }

    fn run(&self, context: Context, input: Box<RawValue>) -> HandlerFuture {
        let read = self.read(&input);
        let caller = Rc::clone(&self.caller);
        Box::pin(async move {
            let (chain, Asked { mut request, expect: own, .. }) =
                read.map_err(HandlerError::input)?;
            if let Some(history) = &context.history {
                turn::recall(&mut request, history).map_err(HandlerError::fatal)?;
            }
            let expect = own.as_ref().or(context.expect.as_ref()).map(|expect| &**expect);
            let cached = context.calls.cached();
            if let Some(output) = cached.and_then(|json| cached::replay(json, expect, &context)) {
                return Ok(output);
            }
            if let Some(expect) = expect.filter(|_| own.is_none()) {
                asks::instruct(&mut request, expect);
            }
            let output = chain::answer(&caller, &chain, request, expect, &context).await?;
            let usage = output.usage.as_ref().map(Into::into);
            Ok(Output { usage, ..to_output(&output)? })
        })
    }
}
