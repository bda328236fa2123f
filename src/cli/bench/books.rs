//! The books of one benchmark client: what it has sent, what came back, and when. No I/O and no
//! clock inside.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::client::BenchError;
use crate::cli::samples::Samples;
use crate::protocol::control::{Ended, Reply, Request};
use crate::task::{NewTask, State, TaskId};

/// Tasks under way at once when nothing is waited for: under the default `max_queued`, so that
/// a long run is not refused.
const TASKS_UNDER_WAY_MAX: u64 = 50_000;

/// When the next submission goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once, up to [`TASKS_UNDER_WAY_MAX`].
    Pipelined,
    /// When the one before is acknowledged.
    Acknowledged,
    /// When every task of the one before has ended.
    Finished,
}

/// What one client submits.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) kind: &'static str,
    pub(super) input: Box<RawValue>,
    pub(super) tasks: u64,
    /// In one submission.
    pub(super) batch: u64,
    pub(super) pace: Pace,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// From the start to the last acknowledgement, without the yardstick's time.
    pub(super) submitting: Duration,
    /// From the start to the last task's end, without the yardstick's time.
    pub(super) running: Duration,
    pub(super) submitted: u64,
    pub(super) succeeded: u64,
    /// A submission, sent to acknowledged.
    pub(super) submit: Samples,
    /// A task, sent to ended.
    pub(super) result: Samples,
    /// Two bare commits, taken between two submissions.
    pub(super) commits: Samples,
}

impl Outcome {
    /// Adds another client's, who ran at the same time.
    pub(super) fn merge(&mut self, other: Self) {
        self.submitting = self.submitting.max(other.submitting);
        self.running = self.running.max(other.running);
        self.submitted += other.submitted;
        self.succeeded += other.succeeded;
        self.submit.append(other.submit);
        self.result.append(other.result);
        self.commits.append(other.commits);
    }
}

/// Who was sent when, and what is still to come: pure.
pub(super) struct Books {
    plan: Plan,
    left: u64,
    began: Instant,
    /// The yardstick's share of the time since.
    paused: Duration,
    unacknowledged: VecDeque<Instant>,
    /// Submissions whose stream of replies has not ended.
    open: usize,
    under_way: BTreeMap<TaskId, Instant>,
    outcome: Outcome,
}

impl Books {
    /// All times count from `began`.
    pub(super) fn new(plan: Plan, began: Instant) -> Self {
        Self {
            left: plan.tasks,
            plan,
            began,
            paused: Duration::ZERO,
            unacknowledged: VecDeque::new(),
            open: 0,
            under_way: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.left == 0 && self.open == 0
    }

    pub(super) fn may_submit(&self) -> bool {
        self.left > 0
            && match self.plan.pace {
                Pace::Pipelined => {
                    self.open == 0
                        || self.under_way.len() as u64 + self.plan.batch <= TASKS_UNDER_WAY_MAX
                }
                Pace::Acknowledged => self.unacknowledged.is_empty(),
                Pace::Finished => self.open == 0,
            }
    }

    pub(super) fn note_commits(&mut self, took: Duration) {
        self.outcome.commits.push(took);
        self.paused += took;
    }

    pub(super) fn next_submission(&mut self, now: Instant) -> Request {
        let count = self.plan.batch.min(self.left);
        let tasks: Vec<_> =
            (0..count).map(|_| NewTask::new(self.plan.kind, self.plan.input.clone())).collect();
        self.left -= count;
        self.open += 1;
        self.unacknowledged.push_back(now);
        self.under_way.extend(tasks.iter().map(|task| (task.id, now)));
        Request::Submit { tasks, dry_run: false, room_for: 0, wait: true }
    }

    pub(super) fn take(&mut self, reply: Reply, now: Instant) -> Result<(), BenchError> {
        match reply {
            Reply::Submitted { ids } => {
                let Some(sent) = self.unacknowledged.pop_front() else {
                    return Err(BenchError::Garbled("an acknowledgement of nothing".to_owned()));
                };
                self.outcome.submit.push(now - sent);
                self.outcome.submitted += ids.len() as u64;
                self.outcome.submitting = self.elapsed(now);
            }
            Reply::Finished { tasks } => {
                for ended in tasks {
                    self.end(&ended, now);
                }
                self.outcome.running = self.elapsed(now);
            }
            Reply::End => self.open = self.open.saturating_sub(1),
            Reply::Error(refusal) => return Err(refusal.into()),
            other => {
                return Err(BenchError::Garbled(format!("{:?}", std::mem::discriminant(&other))));
            }
        }
        Ok(())
    }

    fn end(&mut self, ended: &Ended, now: Instant) {
        if let Some(sent) = self.under_way.remove(&ended.id) {
            self.outcome.result.push(now - sent);
            self.outcome.succeeded += u64::from(ended.state == State::Succeeded);
        }
    }

    fn elapsed(&self, now: Instant) -> Duration {
        (now - self.began).saturating_sub(self.paused)
    }

    /// What came of it all.
    pub(super) fn close(self) -> Outcome {
        self.outcome
    }
}
