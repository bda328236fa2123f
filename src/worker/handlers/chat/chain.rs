//! One attempt: calls the providers of a chain, one after the other, until one answers as expected.

use super::answer::ChatOutput;
use super::asks::{self, Asks};
use super::call::{Caller, Ended};
use super::needs;
use super::route::Chain;
use super::tell::Teller;
use super::walk::Walk;
use crate::expect::{Expect, unexpected};
use crate::handler::{Context, HandlerError};
use crate::openai::ChatRequest;
use crate::protocol::calls::CallOutcome;
use crate::worker::calls::Report;

/// Calls one provider after the other, each with a permit, until one answers or none is left to
/// help. One whose answer is not as expected is told what is wrong with it and asked again, as long
/// as the task has calls left.
pub(super) async fn answer(
    caller: &Caller,
    chain: &Chain,
    mut request: ChatRequest,
    expect: Option<&Expect>,
    context: &Context,
) -> Result<ChatOutput, HandlerError> {
    let calls = &context.calls;
    let mut asks = Asks::new(expect);
    let mut walk = Walk::new(chain, context.attempt, calls.calls_max());
    let mut teller = Teller::new(context, chain.buffer_first);
    loop {
        let servers = walk.servers();
        if servers.is_empty() {
            return Err(walk.into_error(None));
        }
        let permit = match calls.permit(&servers, needs::tokens(&request)).await {
            Ok(permit) => permit,
            Err(closed) => return Err(walk.into_error(Some(closed))),
        };
        // One that was granted is one of those asked for.
        let Some(route) = walk.take(permit.server()) else {
            return Err(walk.into_error(Some(Vec::new())));
        };
        teller.begin(&route.provider.name);
        let Ended { result, closed_for } = caller.call(route, &mut request, &mut teller).await;
        let model = route.model.clone();
        match result {
            Ok(answer) => {
                let report = Report { model, usage: answer.usage(), closed_for };
                permit.settle(CallOutcome::Succeeded, report);
                let Err(mistake) = asks.judge(&answer) else {
                    teller.succeeded();
                    return Ok(asks.complete(answer.into_output(route, walk.into_fallbacks())));
                };
                if !(walk.again(route) && asks.may_ask_again()) {
                    return Err(asks.into_error(&route.provider.name, &mistake));
                }
                teller.voided(unexpected(&mistake));
                asks::complain(&mut request, &answer, &mistake);
            }
            Err(failure) => {
                let report = Report { model, usage: None, closed_for };
                permit.settle(failure.verdict.outcome, report);
                teller.failed(&failure.what);
                walk.failed(route, failure);
            }
        }
    }
}
