//! The sections about forq itself: `[workers]`, `[queue]`, `[queues.NAME]`, `[cache]`,
//! `[log]`, `[http]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{DurationText, SizeText};

/// How often the event loop of a worker or the broker beats.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// The least `heartbeat_timeout`: four beats, since one or two may be late on a busy machine.
pub(super) const HEARTBEAT_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// The largest `input_bytes_max`. A worker may still have the limit of an earlier generation, so
/// this, and not the limit of now, bounds what it sends.
pub const INPUT_BYTES_MAX: u64 = 256 << 20;

/// The pool of worker processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    /// Worker processes that are always there; with 0 the first task that comes forks one.
    /// Default: 2, or `max` when only that is set and is less.
    pub min: u32,
    /// Worker processes at most; between `min` and this the pool follows the load. Default: the
    /// number of CPUs, at least 4, at least `min`.
    pub max: u32,
    /// How long a smaller pool must have been enough before a worker more than `min` is let go:
    /// it ends when its tasks have. A load that comes and goes lengthens this by itself, at most
    /// ten times.
    #[serde(with = "DurationText")]
    pub scale_down_after: Duration,
    /// Tasks that one worker runs at once.
    pub concurrency: u32,
    /// A worker whose event loop has not beaten for this long is dead: ABRT, then KILL, and its
    /// tasks run again. At least 2s. It is no limit on a task: that is `queue.task_timeout`. The
    /// broker is watched in the same way.
    #[serde(with = "DurationText")]
    pub heartbeat_timeout: Duration,
    /// A worker or broker that is not ready after this long is killed and forked again.
    #[serde(with = "DurationText")]
    pub boot_timeout: Duration,
    /// What a graceful stop leaves running tasks; the rest goes back to the queue. For a stop
    /// alone: a reload, an upgrade, scaling and recycling wait for the tasks.
    #[serde(with = "DurationText")]
    pub drain_timeout: Duration,
    /// Replace a worker after this many tasks; 0: never. Its successor is ready before it drains.
    pub max_tasks: u32,
    /// Up to this many tasks more, so that workers are not replaced all at once.
    pub max_tasks_jitter: u32,
    /// Resident memory of one worker without its commands, in bytes: past it the worker is
    /// replaced and drains, past twice this it is killed and its tasks run again.
    #[serde(with = "SizeText")]
    pub max_memory: u64,
    /// Workers above what there should be while old ones are replaced; those that drain count.
    /// More is faster, and needs more memory.
    pub max_surge: u32,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            min: 2,
            max: 4,
            scale_down_after: Duration::from_secs(60),
            concurrency: 32,
            heartbeat_timeout: Duration::from_secs(30),
            boot_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            max_tasks: 0,
            max_tasks_jitter: 0,
            max_memory: 512 << 20,
            max_surge: 1,
        }
    }
}

/// The queue as a whole, and what its tasks get when they do not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// Tasks that wait at most; more are refused for now (exit 5).
    pub max_queued: u32,
    /// What has happened to a commit before anybody is told of it. A change needs a restart or an
    /// upgrade.
    pub durability: Durability,
    /// Attempts of a task before it fails, unless it says otherwise.
    pub max_attempts: u32,
    /// Time limit of one attempt, unless the task says otherwise.
    #[serde(with = "DurationText")]
    pub task_timeout: Duration,
    /// Bytes of an input or an output at most; more is refused with both numbers.
    #[serde(with = "SizeText")]
    pub input_bytes_max: u64,
    /// Pause before the second attempt; it doubles with each further one, with jitter. 0s: none.
    #[serde(with = "DurationText")]
    pub retry_backoff: Duration,
    /// The longest such pause.
    #[serde(with = "DurationText")]
    pub retry_backoff_max: Duration,
    /// How long a finished task and its result are kept.
    #[serde(with = "DurationText")]
    pub result_ttl: Duration,
    /// The part of the memory of the machine or cgroup past which caches are shed, then new work
    /// refused (exit 5).
    pub memory_high: f64,
    /// Spent by all tasks in one UTC day at most, in the currency of the providers' `price`; then,
    /// until midnight UTC, tasks that call somebody are refused (exit 7), and those that are queued
    /// wait. Calls count when their attempt has ended: those under way go past it. Absent: no
    /// limit.
    #[schemars(with = "f64")]
    pub daily_budget: Option<f64>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_queued: 100_000,
            durability: Durability::Fsync,
            max_attempts: 3,
            task_timeout: Duration::from_secs(600),
            input_bytes_max: 16 << 20,
            retry_backoff: Duration::from_secs(1),
            retry_backoff_max: Duration::from_secs(60),
            result_ttl: Duration::from_secs(24 * 60 * 60),
            memory_high: 0.8,
            daily_budget: None,
        }
    }
}

/// What has happened to a commit before anybody is told of it. The order never changes: first
/// the commit, then the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It is on the disk: it survives a power cut.
    Fsync,
    /// The kernel has it: it survives the death of every process of ours.
    Os,
    /// Nothing is promised: for benchmarks and throw-away work.
    None,
}

/// One queue that a section names. A queue without a section has the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NamedQueue {
    /// Its turns in proportion to other queues', within a priority.
    pub weight: u32,
    /// Tasks of it that run at once; absent: no limit of its own.
    #[schemars(with = "u32")]
    pub max_running: Option<u32>,
    /// Spent by its tasks in one UTC day at most, in the currency of the providers' `price`; then,
    /// until midnight UTC, more that call somebody are refused (exit 7). Those that are queued by
    /// then still run. Absent: no limit of its own.
    #[schemars(with = "f64")]
    pub daily_budget: Option<f64>,
}

impl Default for NamedQueue {
    fn default() -> Self {
        Self { weight: 1, max_running: None, daily_budget: None }
    }
}

/// The answers that are kept for equal requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Bytes of the kept answers at most; 0: no cache.
    #[serde(with = "SizeText")]
    pub bytes_max: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { bytes_max: 64 << 20 }
    }
}

/// What is logged, how and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// For people or for programs. A change needs a restart or an upgrade.
    pub format: LogFormat,
    /// The least severe lines that are written. A reload changes it.
    pub level: LogLevel,
    /// The file that is appended to; absent: standard error. USR1 opens it again after a
    /// rotation; another one needs a restart or an upgrade.
    #[schemars(with = "PathBuf")]
    pub file: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LogLevel::Info, file: None }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How severe a log line is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Somebody must act.
    Error,
    /// Somebody should look.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// The HTTP edge. Reserved: takes effect with the HTTP edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The address and port to listen on; absent: no HTTP. Reserved: takes effect with the HTTP
    /// edge.
    #[schemars(with = "String")]
    pub listen: Option<SocketAddr>,
}
