//! Arguments that several verbs share.

use clap::Args;

use super::when;
use crate::config;
use crate::task::{NewTask, TaskId};

#[derive(Debug, Args)]
pub(crate) struct OneTask {
    /// The task's id
    #[arg(value_name = "ID", value_parser = task_id)]
    pub(crate) id: TaskId,
}

#[derive(Debug, Args)]
pub(crate) struct SomeTasks {
    /// The tasks' ids
    #[arg(value_name = "ID", required = true, value_parser = task_id)]
    pub(crate) ids: Vec<TaskId>,
}

/// How a task is to be run.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TaskOptions {
    /// 9 first, 0 last [default: 5]
    #[arg(long, value_name = "0-9", value_parser = priority, allow_hyphen_values = true)]
    pub(crate) priority: Option<u8>,
    /// The queue [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// Run one at a time, in order, with the lane's other tasks
    #[arg(long, value_name = "NAME")]
    pub(crate) lane: Option<String>,
    /// A lane that also carries the conversation: a chat sees what was said in it before
    #[arg(long, value_name = "NAME", conflicts_with = "lane")]
    pub(crate) session: Option<String>,
    /// While a task with this key exists and did not fail, give its id instead of a new task
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Do not start for this long (10s, 1h30m)
    #[arg(long, value_name = "TIME", value_parser = when::duration_ms,
          allow_hyphen_values = true, conflicts_with = "at")]
    pub(crate) delay: Option<u64>,
    /// Do not start before this moment (2030-01-31T08:00:00Z)
    #[arg(long, value_name = "MOMENT", value_parser = when::moment_ms)]
    pub(crate) at: Option<i64>,
    /// Cancel it if it has not started after this long
    #[arg(long, value_name = "TIME", value_parser = when::duration_ms, allow_hyphen_values = true)]
    pub(crate) expires: Option<u64>,
    /// Time limit of one attempt
    #[arg(long, value_name = "TIME", value_parser = when::duration_ms, allow_hyphen_values = true)]
    pub(crate) timeout: Option<u64>,
    /// Attempts before it fails
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(crate) max_attempts: Option<u32>,
}

impl TaskOptions {
    /// Fills in what the task does not say itself.
    pub(crate) fn complete(&self, task: &mut NewTask, now_ms: i64) {
        task.priority = task.priority.or(self.priority);
        task.queue = task.queue.take().or_else(|| self.queue.clone());
        task.key = task.key.take().or_else(|| self.key.clone());
        if task.lane.is_none() && task.session.is_none() {
            task.lane.clone_from(&self.lane);
            task.session.clone_from(&self.session);
        }
        let delayed = self.delay.map(|delay_ms| when::after(now_ms, delay_ms));
        task.due_at_ms = task.due_at_ms.or(self.at).or(delayed);
        let expires = self.expires.map(|expires_ms| when::after(now_ms, expires_ms));
        task.expires_at_ms = task.expires_at_ms.or(expires);
        task.timeout_ms = task.timeout_ms.or(self.timeout);
        task.max_attempts = task.max_attempts.or(self.max_attempts);
    }
}

pub(crate) fn task_id(text: &str) -> Result<TaskId, String> {
    text.parse().map_err(|_| "not a task id: `forq list` shows them".to_owned())
}

pub(crate) fn at_least_one(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a number from 1".into())
}

/// A queue that a task may name: a misspelt one would be steered in vain.
pub(crate) fn queue_name(text: &str) -> Result<String, String> {
    if config::is_queue_name(text) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 64 letters, digits or any of _ . : -".to_owned())
}

fn priority(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|priority| *priority <= 9).ok_or_else(|| outside(text))
}

/// Why a priority is refused.
pub(crate) fn outside(priority: impl std::fmt::Display) -> String {
    format!("priority {priority}: must be 0 to 9")
}
