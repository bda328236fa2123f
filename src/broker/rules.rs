//! What becomes of a task whose attempt did not succeed: pure.
//!
//! * A handler's failure is charged to the task, and tried again after a pause while attempts are
//!   left and a retry may help.
//! * A worker's death is charged to the task only if it ran alone there. In company it makes the
//!   task a suspect; after [`SUSPECT_LOSSES_MAX`] such losses it runs alone, where the next death
//!   is its own.
//! * Stops, reloads and runs that never began are nobody's fault.
//! * Behind all of this stands [`STARTS_MAX`].
//!
//! [`SUSPECT_LOSSES_MAX`]: crate::task::SUSPECT_LOSSES_MAX

use std::time::Duration;

use super::store::{Facts, Next};
use crate::task::{Cause, ErrorKind, LossReason, STARTS_MAX, TaskError, TaskId};

/// How long a task waits for workers of this build.
const PUT_OFF_MS: i64 = 1000;

/// How long failed attempts wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// Before the second attempt; doubles from there.
    pub(crate) first: Duration,
    /// And no longer than this.
    pub(crate) max: Duration,
}

/// After a failure that the handler reported (or its time limit), which counts as so many.
pub(crate) fn after_failure(
    facts: &Facts,
    charge: u32,
    error: TaskError,
    retry_after: Option<Duration>,
    backoff: Backoff,
    now_ms: i64,
) -> Next {
    let charged = facts.charged.saturating_add(charge);
    if !error.retryable || charged >= facts.max_attempts || facts.starts >= STARTS_MAX {
        return Next::Failed { error };
    }
    let jitter = if error.kind == ErrorKind::Provider { Jitter::Full } else { Jitter::Half };
    let pause = pause(facts.id, charged, backoff, jitter).max(retry_after.unwrap_or_default());
    let due_at_ms = now_ms.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX));
    Next::RetryAt { due_at_ms, charged, error }
}

/// After the worker died. `alone`: it held no other task.
pub(crate) fn after_loss(facts: &Facts, cause: Cause, alone: bool) -> Next {
    let charged = facts.charged + u32::from(alone);
    let suspect = facts.suspect + u32::from(!alone);
    let mut error = TaskError {
        kind: ErrorKind::WorkerLost,
        message: loss_message(&cause),
        retryable: true,
        cause: Some(cause),
    };
    if charged >= facts.max_attempts || facts.starts >= STARTS_MAX {
        error.retryable = false;
        return Next::Failed { error };
    }
    Next::Lost { charged, suspect, error }
}

/// After nobody's fault.
pub(crate) fn after_put_back(facts: &Facts) -> Next {
    if facts.starts < STARTS_MAX {
        return Next::PutBack;
    }
    let error = TaskError {
        kind: ErrorKind::WorkerLost,
        message: format!("started {STARTS_MAX} times and never ended"),
        retryable: false,
        cause: None,
    };
    Next::Failed { error }
}

/// After it came to a worker of an earlier build, which does not know such tasks: it is about to be
/// replaced.
pub(crate) fn after_put_off(facts: &Facts, now_ms: i64) -> Next {
    let error = TaskError {
        kind: ErrorKind::Handler,
        message: "its worker is of an earlier build: it waits for one of this build".to_owned(),
        retryable: true,
        cause: None,
    };
    let charged = facts.charged;
    Next::RetryAt { due_at_ms: now_ms.saturating_add(PUT_OFF_MS), charged, error }
}

/// How its worker was lost, for people.
pub(crate) fn loss_message(cause: &Cause) -> String {
    let how = match (&cause.signal, cause.exit_code) {
        (Some(signal), _) => format!("its worker was ended by {signal}"),
        (None, Some(code)) => format!("its worker ended with exit code {code}"),
        (None, None) => "its worker is gone".to_owned(),
    };
    match cause.reason {
        Some(LossReason::Heartbeat) => format!("{how}, since its event loop stood still"),
        Some(LossReason::Memory) => format!("{how}, since it held more than its max_memory"),
        Some(LossReason::Oom) => format!("{how}, probably because the machine was out of memory"),
        Some(LossReason::Crash) | None => how,
    }
}

/// Over how much of a pause tasks are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jitter {
    /// All of it: what spares a provider most, to which they all return.
    Full,
    /// The upper half.
    Half,
}

/// The pause before the attempt after `failures` failures: doubling, and each task at its own
/// place in it, so that tasks that failed together do not return together. The id is random enough
/// for that, and gives the same pause to a broker that has to ask again.
fn pause(id: TaskId, failures: u32, backoff: Backoff, jitter: Jitter) -> Duration {
    let doubled = backoff.first.saturating_mul(1 << (failures - 1).min(20)).min(backoff.max);
    let random = id.0.as_u64_pair().1.rotate_left(failures) % 1024;
    doubled.mul_f64(match jitter {
        Jitter::Full => random as f64 / 1024.0,
        Jitter::Half => 0.5 + random as f64 / 2048.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::link::Run;

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };

    fn facts(starts: u32, charged: u32, suspect: u32) -> Facts {
        Facts {
            id: TaskId::new(),
            queue: "default".to_owned(),
            run: Run { seq: 1, attempt: starts },
            starts,
            charged,
            suspect,
            max_attempts: 3,
            cancel_asked: false,
            agent: None,
            parent: None,
            is_run: false,
            session: None,
        }
    }

    fn failure(retryable: bool) -> TaskError {
        TaskError { kind: ErrorKind::Handler, message: "no".into(), retryable, cause: None }
    }

    #[test]
    fn a_failure_is_tried_again_until_attempts_are_used_up() {
        let next = |charged, retryable| {
            after_failure(&facts(charged + 1, charged, 0), 1, failure(retryable), None, BACKOFF, 0)
        };
        assert!(matches!(next(0, true), Next::RetryAt { charged: 1, .. }));
        assert!(matches!(next(1, true), Next::RetryAt { charged: 2, .. }));
        assert!(matches!(next(2, true), Next::Failed { .. }));
        assert!(matches!(next(0, false), Next::Failed { .. }));
        let three_calls = after_failure(&facts(1, 0, 0), 3, failure(true), None, BACKOFF, 0);
        assert!(matches!(three_calls, Next::Failed { .. }), "a chain shares the budget");
    }

    #[test]
    fn the_pause_doubles_within_its_bounds() {
        for failures in 1..40 {
            let full = BACKOFF.first.saturating_mul(1 << (failures - 1).min(20)).min(BACKOFF.max);
            let id = TaskId::new();
            let half = pause(id, failures, BACKOFF, Jitter::Half);
            assert!(half >= full / 2 && half < full, "{failures}: {half:?} of {full:?}");
            assert!(pause(id, failures, BACKOFF, Jitter::Full) < full);
        }
    }

    #[test]
    fn the_other_side_may_ask_for_a_longer_pause() {
        let asked = Some(Duration::from_secs(90));
        let next = after_failure(&facts(1, 0, 0), 1, failure(true), asked, BACKOFF, 1000);
        assert!(matches!(next, Next::RetryAt { due_at_ms: 91_000, .. }));
    }

    #[test]
    fn a_poison_task_ends_after_max_attempts_and_two_workers() {
        let (mut facts, mut deaths) = (facts(0, 0, 0), 0);
        loop {
            facts.starts += 1;
            deaths += 1;
            let alone = facts.suspect >= crate::task::SUSPECT_LOSSES_MAX;
            match after_loss(&facts, Cause::default(), alone) {
                Next::Lost { charged, suspect, .. } => {
                    (facts.charged, facts.suspect) = (charged, suspect);
                }
                Next::Failed { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(deaths, facts.max_attempts + 2);
    }

    #[test]
    fn company_is_never_charged() {
        assert!(matches!(
            after_loss(&facts(5, 2, 9), Cause::default(), false),
            Next::Lost { charged: 2, suspect: 10, .. }
        ));
    }

    #[test]
    fn twenty_starts_are_the_end() {
        assert!(matches!(after_put_back(&facts(19, 0, 0)), Next::PutBack));
        assert!(matches!(after_put_back(&facts(20, 0, 0)), Next::Failed { .. }));
        let lost = after_loss(&facts(20, 0, 0), Cause::default(), false);
        assert!(matches!(lost, Next::Failed { .. }));
    }
}
