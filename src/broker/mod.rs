//! The broker: owns the queue, the store and every client connection.
//!
//! One loop ([`turn`]) owns all state ([`Core`]). Connections are small tasks that turn bytes into
//! [`Input`]s; the store's threads answer over a channel. A turn takes in everything that has
//! gathered, decides, and hands the store one batch: so work is batched exactly when there is
//! much of it.
//!
//! * [`clients`], [`workers`], [`master`]: the connections; [`framed`], [`outbox`]: how they read
//!   and write.
//! * [`requests`], [`waits`], [`follow`], [`follow_run`], [`outlook`], [`info`]: what clients ask; [`reconfigure`]: what of it
//!   only the master can do, and what a reload changes here.
//! * [`dispatch`], [`runs`], [`loss`]: tasks on their way to workers and back; [`load`]: how much
//!   of that there is, for the master.
//! * [`advance`]: runs of workflows, from one step to the next.
//! * [`sessions`]: conversations; [`affinity`]: which worker knows them.
//! * [`calls`]: what running attempts may call, and what came of it; [`cache`], [`reuse`]: who
//!   needs no call; [`usage`]: what calls took and cost.
//! * [`schedule`]: tasks that the clock submits.
//! * [`queue`], [`permits`], [`budget`], [`rules`], [`conversation`], [`events`]: the decisions, pure.
//! * [`pending`], [`answers`], [`clock`], [`drain`]: what the store is asked and says, what time brings, how it ends;
//!   [`pressure`]: what happens when memory is short.
//! * [`store`]: where tasks live.

mod advance;
mod affinity;
mod answers;
pub(crate) mod budget;
mod cache;
mod calls;
mod clients;
mod clock;
pub(crate) mod conversation;
mod dispatch;
mod drain;
mod events;
mod follow;
mod follow_run;
mod framed;
mod info;
mod load;
mod loss;
mod master;
mod outbox;
mod outlook;
mod pending;
pub(crate) mod permits;
mod pressure;
pub(crate) mod queue;
mod reconfigure;
mod requests;
mod reuse;
mod rules;
mod runs;
mod schedule;
mod sessions;
mod start;
pub(crate) mod store;
mod turn;
mod usage;
mod waits;
mod workers;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::config::{Config, Sources};
use crate::handler::Registry;
use crate::protocol::control::Request;
use crate::protocol::lifeline::{self, Exit, Pool};
use crate::protocol::link::{Run, Seq, ToBroker};
use crate::task::TaskId;

use budget::Spent;
use clients::ReplyTo;
use drain::Phase;
use follow::Follower;
use outbox::Outbox;
use pending::Pending;
use permits::Permits;
use queue::Queues;
use runs::RunState;
use store::reader::Reader;
use store::writer::{Op, Writer};
use waits::Wait;

pub(crate) use clients::CLIENTS_MAX;
pub(crate) use start::{Start, run};

/// Everything that can happen to the broker, but for the store's answers.
pub(crate) enum Input {
    /// A client asks.
    Asked { to: ReplyTo, request: Request },
    /// A client is gone, and its waits with it.
    ClientGone { client: u64 },
    /// A connection on the worker socket.
    Knocked(workers::Knock),
    /// A worker said hello.
    WorkerCame { connection: u64, serial: u64, hello: crate::protocol::link::Hello, outbox: Outbox },
    /// A worker said something else.
    WorkerSaid { serial: u64, message: ToBroker },
    /// A worker's connection ended, and everything that it had sent has been taken in.
    WorkerGone { connection: u64, serial: u64 },
    /// The master said something.
    Master(lifeline::ToBroker),
    /// A question that was asked elsewhere comes back with its answer.
    Then(Box<dyn FnOnce(&mut Core)>),
    /// Time to tell the master that the loop turns.
    Beat,
    /// Close the store and end: SIGTERM.
    Terminate,
}

/// The broker's whole state. Its methods are spread over the files of this folder by subject.
pub(crate) struct Core {
    config: Config,
    /// What the configuration was made of.
    sources: Sources,
    registry: Registry,
    /// The kinds of a user's binary.
    users: Registry,
    /// The limit that new connections are told.
    input_bytes_max: Rc<Cell<u64>>,
    /// The pieces of a new configuration file that have come.
    new_config: Vec<u8>,
    /// What clients asked of the master.
    asked: BTreeMap<u64, ReplyTo>,
    /// The last number among them.
    last_asker: u64,
    /// The master knows that tasks wait and no worker is there.
    urgent_told: bool,
    instance: i64,
    phase: Phase,
    queues: Queues,
    /// What runs, by the store's number.
    runs: BTreeMap<Seq, RunState>,
    /// The same by the task's id.
    run_ids: BTreeMap<TaskId, Seq>,
    workers: BTreeMap<u64, Worker>,
    /// Tasks that must run alone and wait for a worker to become empty.
    solo: VecDeque<store::Ready>,
    knocks: Vec<workers::Knock>,
    pool: Pool,
    /// Deaths that were reported and not yet dealt with, each with its time.
    exits: BTreeMap<u64, (Exit, Instant)>,
    waits: BTreeMap<TaskId, Vec<Wait>>,
    followers: BTreeMap<TaskId, Vec<Follower>>,
    run_followers: follow_run::RunFollowers,
    writer: Writer,
    reader: Reader,
    disk_full: bool,
    /// What the store is to do, gathered over a turn.
    batch: Vec<Op>,
    /// What to do with the store's answers.
    pending: pending::PendingOps,
    clock: clock::Clock,
    /// Ends that are committed and do not hold yet: nobody is told of them.
    unsynced: Vec<runs::Ended>,
    permits: Permits,
    memory: pressure::Memory,
    paces: outlook::Paces,
    /// When those who follow waiting tasks are told again.
    prospects_at_ms: i64,
    answers: cache::Answers,
    /// Ready tasks whose answer is there.
    answered: VecDeque<store::Ready>,
    /// Running attempts that wait for a permit.
    asking: BTreeMap<(Run, u32), calls::Asking>,
    /// Runs of workflows that a worker knows.
    homes: BTreeMap<Seq, advance::Home>,
    /// Which worker ran each session's last task.
    affinity: affinity::Affinity,
    /// Somebody waits for a gate to open.
    gated: bool,
    /// What calls have cost today.
    spent: Spent,
    /// What the clock submits.
    schedules: schedule::Plans,
    /// Submissions on their way to the store.
    inserts_pending: usize,
    to_master: master::ToMaster,
    inputs: tokio::sync::mpsc::UnboundedSender<Input>,
}

/// A worker as the broker knows it.
#[derive(Default)]
pub(crate) struct Worker {
    pid: i32,
    slot: u32,
    generation: u32,
    /// Absent while it is not connected.
    link: Option<Link>,
    /// Tasks that it takes at once.
    capacity: u32,
    /// Claims on their way to it, and attempts that it runs.
    in_flight: u32,
    /// Of those, attempts that wait for a permit.
    asking: u32,
    /// Permits of its attempts before it came back: those that it does not hold never reached it.
    unheard: Vec<(Run, u64)>,
    /// It runs one task that must be alone, or becomes empty for one.
    solo: bool,
    tasks_done: u64,
    /// Not 0: it gets no more tasks.
    drain: u32,
    /// The drain of which the master was told that nothing is left.
    idle_told: u32,
}

pub(crate) struct Link {
    connection: u64,
    /// The version of the link's protocol that it speaks.
    protocol: u32,
    outbox: Outbox,
}

impl Core {
    /// Adds a step for the store, and what to do with its answer.
    fn store(&mut self, op: Op, pending: Pending) {
        self.batch.push(op);
        self.pending.push(pending);
    }
}

/// Milliseconds since 1970 as this broker counts them: the clock's time at its start, and what has
/// passed since. Limits a minute and doors that are closed for a while follow this one: no step of
/// the clock makes their minutes shorter.
fn steady_ms() -> i64 {
    static START: OnceLock<(i64, Instant)> = OnceLock::new();
    let (at_ms, start) = START.get_or_init(|| (now_ms(), Instant::now()));
    at_ms.saturating_add(i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX))
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
