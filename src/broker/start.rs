//! From a fresh fork to a serving broker.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};

use crate::config::{Config, Durability, HEARTBEAT, Sources};
use crate::handler::Registry;
use crate::protocol::lifeline::{FromBroker, Pool};
use crate::worker::kinds;

use super::budget::{Spent, day_of};
use super::cache::Answers;
use super::drain::Phase;
use super::follow_run::RunFollowers;
use super::outlook::Paces;
use super::pending::PendingOps;
use super::permits::{Memo, Permits, oldest_slot};
use super::pressure::Memory;
use super::queue::{Queues, Settings};
use super::runs::RunState;
use super::schedule::Plans;
use super::store::reader::Reader;
use super::store::reserve::Reserve;
use super::store::schema;
use super::store::sqlite::{self, Sqlite};
use super::store::writer::{Told, Writer};
use super::store::{Depth, OpenClaim, Store, StoreError};
use super::turn::End;
use super::{Core, Input, clients, clock, master, rules, workers};

/// Everything that the master gives a broker.
pub(crate) struct Start {
    pub(crate) config: Config,
    /// What the configuration was made of: a reload replaces the file in it.
    pub(crate) sources: Sources,
    /// The kinds of a user's binary.
    pub(crate) users: Registry,
    pub(crate) instance: i64,
    pub(crate) database: PathBuf,
    pub(crate) reserve: PathBuf,
    pub(crate) control: StdListener,
    pub(crate) worker: StdListener,
    pub(crate) lifeline: OwnedFd,
}

/// Runs the broker to its end; the exit code says whether it was told to.
pub(crate) fn run(start: Start, runtime: tokio::runtime::Runtime) -> i32 {
    let ended = LocalSet::new().block_on(&runtime, serve(start));
    match ended {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("the broker ends: {error}");
            1
        }
    }
}

async fn serve(start: Start) -> io::Result<()> {
    let (inputs, inbox) = unbounded_channel();
    let mut terminate = signal(SignalKind::terminate())?;
    crate::master::unblock_signals();
    let to_master = master::serve(start.lifeline, inputs.clone())?;
    spawn_local({
        let inputs = inputs.clone();
        async move {
            terminate.recv().await;
            let _ = inputs.send(Input::Terminate);
        }
    });
    let registry = kinds::check_templates(&start.config)
        .and_then(|()| kinds::with_built_in(&start.users, &start.config, false));
    let registry = match registry {
        Ok(registry) => registry,
        Err(message) => return Err(fatal(&to_master, message).await),
    };
    let (store, found) =
        match open_patiently(&start.database, &start.config, start.instance, &to_master).await? {
            Ok(opened) => opened,
            Err(error) => {
                let message = match error {
                    StoreError::Full => "the disk is full: make room and start again".to_owned(),
                    other => other.to_string(),
                };
                return Err(fatal(&to_master, message).await);
            }
        };
    let reserve = Reserve::new(start.reserve);
    if reserve.take().is_err() {
        tracing::warn!("no room for the reserve file: a full disk will hold up results, too");
    }
    let (answers, told) = unbounded_channel::<Told>();
    let core = Core {
        queues: queues_of(&start.config, &found.depth),
        runs: BTreeMap::new(),
        run_ids: BTreeMap::new(),
        workers: BTreeMap::new(),
        solo: VecDeque::new(),
        knocks: Vec::new(),
        pool: Pool::default(),
        exits: BTreeMap::new(),
        waits: BTreeMap::new(),
        followers: BTreeMap::new(),
        run_followers: RunFollowers::default(),
        writer: Writer::start(Box::new(store), reserve, answers)?,
        reader: Reader::start(&start.database)?,
        disk_full: false,
        batch: Vec::new(),
        pending: PendingOps::default(),
        clock: clock::Clock::default(),
        unsynced: Vec::new(),
        schedules: Plans::default(),
        inserts_pending: 0,
        permits: permits_of(&start.config, &found),
        answers: Answers::new(start.config.cache.bytes_max),
        answered: VecDeque::new(),
        memory: Memory::new(),
        paces: Paces::default(),
        prospects_at_ms: 0,
        asking: BTreeMap::new(),
        homes: BTreeMap::new(),
        affinity: Default::default(),
        gated: false,
        spent: found.spent.clone(),
        to_master: to_master.clone(),
        inputs: inputs.clone(),
        phase: Phase::Serving,
        instance: start.instance,
        registry,
        users: start.users,
        input_bytes_max: Rc::new(Cell::new(start.config.queue.input_bytes_max)),
        new_config: Vec::new(),
        asked: BTreeMap::new(),
        last_asker: 0,
        urgent_told: false,
        sources: start.sources,
        config: start.config,
    };
    let mut core = core.with(found);
    listen(&core, start.control, start.worker, &inputs)?;
    spawn_local(beat(inputs.clone()));
    to_master.send(&FromBroker::Ready);
    let end = core.run(inbox, told).await;
    core.writer.close();
    match end {
        End::Terminated => Ok(()),
        End::Broken(reason) => Err(io::Error::other(reason)),
    }
}

/// Tells the master that no broker could do better.
async fn fatal(to_master: &master::ToMaster, message: String) -> io::Error {
    to_master.send(&FromBroker::Fatal { message: message.clone() });
    // The packet must leave before this process does.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    io::Error::other(message)
}

fn listen(
    core: &Core,
    control: StdListener,
    worker: StdListener,
    inputs: &UnboundedSender<Input>,
) -> io::Result<()> {
    let control = UnixListener::from_std(control)?;
    let worker = UnixListener::from_std(worker)?;
    spawn_local(clients::accept(control, inputs.clone(), Rc::clone(&core.input_bytes_max)));
    spawn_local(workers::accept(worker, inputs.clone()));
    Ok(())
}

/// Has the loop tell the master that it turns.
async fn beat(inputs: UnboundedSender<Input>) {
    let mut beats = tokio::time::interval(HEARTBEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        let _ = inputs.send(Input::Beat);
    }
}

/// Opens the store on a thread of its own, and tells the master meanwhile that the loop turns: the
/// check of a large database after a power cut takes longer than any boot should.
async fn open_patiently(
    database: &Path,
    config: &Config,
    instance: i64,
    to_master: &master::ToMaster,
) -> io::Result<Result<(Sqlite, Found), StoreError>> {
    if schema::will_migrate(database) {
        to_master.send(&FromBroker::Migrating);
    }
    let (database, durability) = (database.to_owned(), config.queue.durability);
    let mut opening = tokio::task::spawn_blocking(move || {
        let mut store = open(&database, instance, durability)?;
        let found = recover(&mut store, instance)?;
        Ok((store, found))
    });
    let mut beats = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            opened = &mut opening => return opened.map_err(io::Error::other),
            _ = beats.tick() => to_master.send(&FromBroker::Opening),
        }
    }
}

fn open(path: &Path, instance: i64, hold: Durability) -> Result<Sqlite, StoreError> {
    let durability = match hold {
        Durability::Fsync => sqlite::Durability::Fsync,
        Durability::Os => sqlite::Durability::Os,
        Durability::None => sqlite::Durability::None,
    };
    Sqlite::open(path, instance, durability)
}

/// What a starting broker finds in the store.
struct Found {
    depth: Depth,
    claims: Vec<OpenClaim>,
    memos: Vec<Memo>,
    spent: Spent,
    last_runs: BTreeMap<String, i64>,
}

/// Claims of other starts of the instance are nobody's: their tasks go back. Those of this start
/// belong to workers that may still run them.
fn recover(store: &mut Sqlite, instance: i64) -> Result<Found, StoreError> {
    let now_ms = super::now_ms();
    store.begin(true)?;
    let (mut mine, mut back) = (Vec::new(), 0);
    for claim in store.claims()? {
        if claim.owner.instance == instance {
            mine.push(claim);
            continue;
        }
        back += 1;
        let next = if claim.facts.cancel_asked {
            super::store::Next::Cancelled { error: sqlite::cancelled("cancelled by request") }
        } else {
            rules::after_put_back(&claim.facts)
        };
        let (run, owner) = (claim.facts.run, claim.owner);
        store.end(&super::store::End {
            run,
            owner,
            now_ms,
            next,
            awaited: false,
            calls: Vec::new(),
            advance: None,
            keep: None,
        })?;
    }
    let memos = store.memos(oldest_slot(now_ms))?;
    let spent = store.spent_on(day_of(now_ms))?;
    let last_runs = store.last_runs()?;
    store.commit()?;
    if back > 0 {
        tracing::info!("{back} tasks that were running when forq last ended are queued again");
    }
    Ok(Found { depth: store.look()?, claims: mine, memos, spent, last_runs })
}

/// What the configuration says of each queue that it names.
pub(super) fn settings_of(config: &Config) -> BTreeMap<String, Settings> {
    let settings = config.queues.iter().map(|(name, queue)| {
        (name.clone(), Settings { weight: queue.weight, max_running: queue.max_running })
    });
    settings.collect()
}

/// As an earlier broker left them. Until its workers have said what they hold, nothing is granted:
/// only those that run tasks can hold anything.
fn permits_of(config: &Config, found: &Found) -> Permits {
    let mut permits = Permits::default();
    permits.configure(config);
    permits.restore(found.memos.clone());
    for claim in &found.claims {
        permits.await_worker(claim.owner.serial);
    }
    permits.forget_probes();
    permits
}

fn queues_of(config: &Config, depth: &Depth) -> Queues {
    let mut queues = Queues::new(settings_of(config));
    for (queue, priority, gate, count) in &depth.groups {
        queues.known_on_disk(queue, *priority, gate, *count);
    }
    if depth.all_paused {
        queues.pause(None, true);
    }
    for queue in &depth.paused {
        queues.pause(Some(queue), true);
    }
    queues
}

impl Core {
    /// Takes in what the store holds from before.
    fn with(mut self, found: Found) -> Self {
        self.heed_budgets();
        self.schedules = Plans::new(&self.config.schedule, &found.last_runs, super::now_ms());
        self.check_schedules();
        let configured = |name: &String| self.config.schedule.iter().any(|it| it.name == *name);
        let gone: Vec<_> = found.last_runs.into_keys().filter(|name| !configured(name)).collect();
        gone.into_iter().for_each(|name| self.forget_schedule(name));
        self.clock.due(found.depth.next_due_at_ms);
        self.clock.expires(found.depth.next_expiry_at_ms);
        for claim in found.claims {
            let (facts, serial) = (claim.facts, claim.owner.serial);
            self.queues.runs(&facts.queue);
            self.run_ids.insert(facts.id, facts.run.seq);
            let state = RunState::new(facts, serial, claim.priority);
            self.runs.insert(state.facts.run.seq, state);
        }
        self
    }
}
