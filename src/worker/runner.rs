//! One attempt: its handler under its time limit, its panic caught, its cancel obeyed.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::value::RawValue;

use super::calls::Calls;
use super::expected::as_expected;
use super::held::Started;
use crate::expect::Expect;
use crate::handler::{Context, EventSink, Handler, HandlerError, HandlerFuture, Output, Registry};
use crate::protocol::link::{Done, Outcome, Start};
use crate::task::ErrorKind;

/// What is kept of an error's message, which is meant to be a sentence.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Runs one attempt to its end.
pub(super) async fn run(registry: Rc<Registry>, start: Start, started: Started) -> Done {
    let Started { cancel, log, calls, expect, history } = started;
    let (run, timeout_ms, began) = (start.run, start.timeout_ms, Instant::now());
    let outcome = match begin(&registry, start, expect, log, calls, history) {
        Ok(attempt) => {
            let attempt = AssertUnwindSafe(attempt).catch_unwind();
            let limited = tokio::time::timeout(Duration::from_millis(timeout_ms), attempt);
            tokio::select! {
                biased;
                // Dropping the handler's future is the cancel.
                () = cancel.notified() => Outcome::Cancelled,
                ended = limited => match ended {
                    Ok(Ok(result)) => outcome_of(result),
                    Ok(Err(panic)) => outcome_of(Err(panicked(panic.as_ref()))),
                    Err(_) => outcome_of(Err(timed_out(timeout_ms))),
                },
            }
        }
        Err(error) => outcome_of(Err(error)),
    };
    let run_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Done { run, run_ms, outcome }
}

/// A result that its broker can take: what is too large for a frame would be sent in vain for ever.
pub(super) fn within_limits(done: Done, output_bytes_max: u64) -> Done {
    let outcome = match done.outcome {
        Outcome::Succeeded { output, .. } if output.len() as u64 > output_bytes_max => {
            let message = format!(
                "the output has {} bytes, more than input_bytes_max = {output_bytes_max}",
                output.len()
            );
            outcome_of(Err(HandlerError::fatal(message)))
        }
        Outcome::Failed { mut error, retry_after_ms } => {
            shorten(&mut error.message);
            Outcome::Failed { error, retry_after_ms }
        }
        Outcome::RunFailed { mut error, blamed } => {
            shorten(&mut error.message);
            Outcome::RunFailed { error, blamed }
        }
        other => other,
    };
    Done { outcome, ..done }
}

fn shorten(message: &mut String) {
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
}

fn begin(
    registry: &Registry,
    start: Start,
    expect: Option<String>,
    sink: Arc<dyn EventSink>,
    calls: Calls,
    history: Option<Arc<str>>,
) -> Result<HandlerFuture, HandlerError> {
    let Some(handler) = registry.get(&start.kind) else {
        return Err(HandlerError::fatal(format!("no handler for the kind '{}'", start.kind)));
    };
    let input = RawValue::from_string(start.input)
        .map_err(|error| HandlerError::input(format!("the input is not JSON: {error}")))?;
    let expect = expect.as_deref().map(read_expect).transpose()?;
    let (task, number) = (start.id, start.run.attempt);
    let context = Context { task, attempt: number, sink, calls, expect, history };
    attempt(handler.as_ref(), context, input)
}

fn read_expect(json: &str) -> Result<Arc<Expect>, HandlerError> {
    let read = serde_json::from_str(json).map_err(|error| error.to_string());
    let expect = read.and_then(|value| Expect::read(&value));
    expect.map(Arc::new).map_err(|error| HandlerError::input(format!("expect: {error}")))
}

/// A handler's attempt, and the check of what it gives.
fn attempt(
    handler: &dyn Handler,
    context: Context,
    input: Box<RawValue>,
) -> Result<HandlerFuture, HandlerError> {
    let expect = context.expect.clone();
    // A handler may panic before it gives its future.
    let attempt = std::panic::catch_unwind(AssertUnwindSafe(|| handler.run(context, input)))
        .map_err(|panic| panicked(panic.as_ref()))?;
    Ok(match expect {
        None => attempt,
        Some(expect) => Box::pin(async move { as_expected(&expect, attempt.await?) }),
    })
}

pub(super) fn outcome_of(result: Result<Output, HandlerError>) -> Outcome {
    match result {
        Ok(output) => Outcome::Succeeded {
            output: Box::<str>::from(output.json).into_string(),
            usage: output.usage,
        },
        Err(error) => {
            let retry_after_ms =
                error.retry_after.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
            Outcome::Failed { error: error.into_task_error(), retry_after_ms }
        }
    }
}

fn timed_out(timeout_ms: u64) -> HandlerError {
    let message = format!("not done within its timeout of {} s", timeout_ms as f64 / 1000.0);
    HandlerError::of(ErrorKind::Timeout, message, true)
}

pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> HandlerError {
    let what = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    HandlerError::retryable(format!("the handler panicked: {what}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::link::Run;
    use crate::worker::handlers::noop::Noop;
    use crate::worker::handlers::testing::{self, raw};

    fn limited(outcome: Outcome) -> Outcome {
        let run = Run { seq: 1, attempt: 1 };
        within_limits(Done { run, run_ms: 0, outcome }, 1000).outcome
    }

    #[test]
    fn results_are_bounded() {
        let output = |bytes| Outcome::Succeeded { output: "x".repeat(bytes), usage: None };
        assert_eq!(limited(output(1000)), output(1000));
        let Outcome::Failed { error, .. } = limited(output(1001)) else { panic!("it passed") };
        assert_eq!(error.message, "the output has 1001 bytes, more than input_bytes_max = 1000");
        assert!(!error.retryable);
        let long = || HandlerError::retryable("\u{e9}".repeat(MESSAGE_BYTES_MAX));
        let Outcome::Failed { error, .. } = limited(outcome_of(Err(long()))) else {
            unreachable!()
        };
        assert_eq!(error.message.len(), MESSAGE_BYTES_MAX);
        assert!(error.retryable);
        let run = Outcome::RunFailed { error: long().into_task_error(), blamed: Vec::new() };
        let Outcome::RunFailed { error, .. } = limited(run) else { unreachable!() };
        assert_eq!(error.message.len(), MESSAGE_BYTES_MAX);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_any_kind_gives_is_checked() {
        for (expect, mistake) in [
            (None, None),
            (Some(json!({"regex": "^.{2}$"})), None),
            (Some(json!({"schema": {"minProperties": 1}})), Some("{} has less than 1 property")),
        ] {
            let expect = expect.map(|expect| Arc::new(Expect::read(&expect).unwrap()));
            let context = testing::context(&Arc::default()).with_expect(expect);
            let ended = attempt(&Noop::new(), context, raw("{}")).unwrap().await;
            let mistake = mistake.map(crate::expect::unexpected);
            assert_eq!(ended.err().map(|error| error.message), mistake);
        }
    }
}
