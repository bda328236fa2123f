//! One attempt: calls the services of a tool, one after the other, until one answers.

use super::answer::ToolOutput;
use super::call::{Ended, call};
use super::input::Asked;
use super::walk::Walk;
use crate::handler::{Context, HandlerError, Output};
use crate::protocol::calls::CallOutcome;
use crate::worker::calls::Report;
use crate::worker::handlers::chat::Clients;

/// Calls one service after the other, each with a permit, until one answers. When none is left, an
/// old answer stands in, or the one that the configuration states.
pub(super) async fn answer(
    clients: &Clients,
    asked: Asked,
    context: &Context,
) -> Result<Output, HandlerError> {
    let (tool, calls) = (&*asked.tool, &context.calls);
    let mut walk = Walk::new(tool, context.attempt, calls.calls_max());
    let closed = loop {
        let servers = walk.servers();
        if servers.is_empty() {
            break None;
        }
        let permit = match calls.permit(&servers, 0).await {
            Ok(permit) => permit,
            Err(closed) => break Some(closed),
        };
        // One that was granted is one of those asked for.
        let Some(place) = walk.take(permit.server()) else { break Some(Vec::new()) };
        let service = &tool.services[place];
        let ended = call(clients, service, &asked.requests[place], tool.timeout).await;
        let Ended { result, closed_for } = ended;
        let report = Report { closed_for, ..Report::default() };
        match result {
            Ok(output) => {
                permit.settle(CallOutcome::Succeeded, report);
                return output.into_output(walk.into_failures());
            }
            Err(failure) => {
                permit.settle(failure.outcome, report);
                walk.failed(place, failure);
            }
        }
    };
    let (failures, error) = walk.into_end(closed);
    let stands_in = calls
        .stale()
        .and_then(ToolOutput::stale)
        .or_else(|| tool.default.as_deref().map(ToolOutput::stated));
    match stands_in {
        Some(output) => output.into_output(failures),
        None => Err(error),
    }
}
