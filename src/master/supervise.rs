//! The master's loop: signals, deaths, lifelines and clocks in; forks, kills and packets out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::children::{self, Child, Slot};
use super::fork::{self, Side};
use super::lifeline;
use super::serve::Boot;
use super::signals::Signals;
use super::status;
use crate::protocol::lifeline::{Exit, FromBroker, FromWorker, Pool, ToBroker};
use crate::task::Cause;

/// After a drain's end, how long the broker may take to put everything on disk before it is
/// taken for dead.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// How long a child may take to end after TERM.
const TERM_MAX: Duration = Duration::from_secs(2);
/// What INT and QUIT leave of a graceful stop.
const HASTENED: Duration = Duration::from_secs(2);

/// Where the instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not every child has been ready yet.
    Booting,
    /// At work.
    Running,
    /// There is no broker that could start; workers go on.
    Degraded,
    /// The broker lets running tasks end, or puts them back.
    Draining { until: Instant },
    /// Everything is on disk, and workers end.
    EndingWorkers { kill_at: Instant },
    /// Workers are gone, and the broker ends.
    EndingBroker { kill_at: Instant },
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Phase::Booting => "booting",
            Phase::Running => "running",
            Phase::Degraded => "degraded",
            Phase::Draining { .. } => "draining",
            Phase::EndingWorkers { .. } | Phase::EndingBroker { .. } => "stopping",
        }
    }

    fn is_stopping(self) -> bool {
        !matches!(self, Phase::Booting | Phase::Running | Phase::Degraded)
    }
}

/// Why the loop ended.
pub(super) enum Ended {
    /// The instance stopped as told.
    Stopped,
    /// The broker cannot start; one sentence.
    Fatal(String),
    /// This process is a child now.
    BrokerChild { boot: Boot, lifeline: OwnedFd },
    /// This process is a child now.
    WorkerChild { boot: Boot, lifeline: OwnedFd, slot: u32, serial: u64 },
}

/// The master's state.
pub(super) struct Master {
    boot: Boot,
    signals: Signals,
    broker: Slot,
    workers: Vec<Slot>,
    last_serial: u64,
    /// Deaths of workers that no broker has dealt with yet.
    exits: BTreeMap<u64, Exit>,
    phase: Phase,
    fatal: Option<String>,
    /// The pool is not as it was last told.
    changed: bool,
}

impl Master {
    pub(super) fn new(boot: Boot, signals: Signals, now: Instant) -> Self {
        let workers = (1..=boot.config.workers.min).map(|number| Slot::new(number, now)).collect();
        Self {
            boot,
            signals,
            broker: Slot::new(0, now),
            workers,
            last_serial: 0,
            exits: BTreeMap::new(),
            phase: Phase::Booting,
            fatal: None,
            changed: true,
        }
    }

    /// Runs until the instance has stopped, or this process has become a child.
    pub(super) fn run(mut self) -> io::Result<Ended> {
        loop {
            let now = Instant::now();
            if let Some(ended) = self.fork_due(now) {
                return Ok(ended.become_child(self));
            }
            self.keep_deadlines(now);
            if std::mem::take(&mut self.changed) {
                self.tell_pool();
            }
            if let Some(sentence) = self.fatal.take() {
                self.kill_all(Signal::SIGKILL);
                return Ok(Ended::Fatal(sentence));
            }
            if matches!(self.phase, Phase::EndingBroker { .. }) && self.broker.child.is_none() {
                return Ok(Ended::Stopped);
            }
            self.wait(now)?;
            self.hear_children();
            self.heed_signals();
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self, now: Instant) -> io::Result<()> {
        let timeout = self.deadlines().min().map_or(PollTimeout::NONE, |at| {
            // Rounded up: to wake a moment early would be to spin.
            let ms = at.saturating_duration_since(now).as_micros().div_ceil(1000);
            PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        for child in self.slots().filter_map(|slot| slot.child.as_ref()) {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, child.lifeline.is_behind());
            fds.push(PollFd::new(child.lifeline.fd(), events));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        std::iter::once(&self.broker).chain(&self.workers)
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let boot_timeout = self.boot.config.workers.boot_timeout;
        let boots = self
            .slots()
            .filter_map(|slot| slot.child.as_ref())
            .filter(|child| child.ready_at.is_none())
            .map(move |child| child.forked_at + boot_timeout);
        let forks = self.slots().filter(|slot| self.may_fork(slot)).filter_map(|slot| slot.fork_at);
        let phase = match self.phase {
            Phase::Draining { until } => Some(until + SETTLE_MAX),
            Phase::EndingWorkers { kill_at } | Phase::EndingBroker { kill_at } => Some(kill_at),
            Phase::Booting | Phase::Running | Phase::Degraded => None,
        };
        boots.chain(forks).chain(phase)
    }

    /// A broker is forked until the results of a stop are on disk; workers only before it.
    fn may_fork(&self, slot: &Slot) -> bool {
        match self.phase {
            Phase::Booting | Phase::Running | Phase::Degraded => true,
            Phase::Draining { .. } => slot.number == 0,
            Phase::EndingWorkers { .. } | Phase::EndingBroker { .. } => false,
        }
    }

    /// Forks every child whose time has come. `Some`: this is one of them.
    fn fork_due(&mut self, now: Instant) -> Option<BornChild> {
        for place in 0..=self.workers.len() {
            let slot = if place == 0 { &self.broker } else { &self.workers[place - 1] };
            if !self.may_fork(slot) || slot.fork_at.is_none_or(|fork_at| fork_at > now) {
                continue;
            }
            self.changed = true;
            match self.fork_into(place, now) {
                Ok(None) => {}
                Ok(Some(born)) => return Some(born),
                Err(error) => {
                    tracing::error!("cannot fork: {error}");
                    self.slot(place).fork_failed(now);
                }
            }
        }
        None
    }

    fn slot(&mut self, place: usize) -> &mut Slot {
        if place == 0 { &mut self.broker } else { &mut self.workers[place - 1] }
    }

    fn fork_into(&mut self, place: usize, now: Instant) -> nix::Result<Option<BornChild>> {
        let (lifeline, childs_end) = lifeline::pair()?;
        self.last_serial += 1;
        let serial = self.last_serial;
        match fork::fork()? {
            Side::Parent(pid) => {
                let child = Child { pid, serial, lifeline, forked_at: now, ready_at: None };
                self.slot(place).fill(child);
                if place == 0 {
                    self.greet_broker(now);
                }
                Ok(None)
            }
            Side::Child => {
                self.signals.unregister();
                let slot = self.slot(place).number;
                Ok(Some(BornChild { slot, serial, lifeline: childs_end }))
            }
        }
    }

    /// What a new broker must know: deaths that are open, then the pool, then a stop.
    fn greet_broker(&mut self, now: Instant) {
        let Some(broker) = &mut self.broker.child else { return };
        for exit in self.exits.values() {
            broker.lifeline.send(&ToBroker::Exited(exit.clone()));
        }
        self.changed = true;
        self.tell_pool();
        if let Phase::Draining { until } = self.phase {
            self.tell_stop(until.saturating_duration_since(now));
        }
    }

    fn tell_pool(&mut self) {
        let pool = Pool {
            phase: self.phase.word().to_owned(),
            broker_restarts: self.broker.restarts,
            workers: self.workers.iter().map(Slot::view).collect(),
        };
        let broker_pid = self.broker.child.as_ref().map(|child| child.pid.as_raw());
        status::write(&self.boot.instance.status(), &pool, broker_pid);
        self.tell_broker(&ToBroker::Pool(pool));
    }

    fn tell_broker(&mut self, message: &ToBroker) {
        if let Some(broker) = &mut self.broker.child {
            broker.lifeline.send(message);
        }
    }

    fn tell_stop(&mut self, drain: Duration) {
        let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        self.tell_broker(&ToBroker::Stop { drain_ms });
    }

    fn hear_children(&mut self) {
        let now = Instant::now();
        for slot in std::iter::once(&mut self.broker).chain(&mut self.workers) {
            if let Some(child) = &mut slot.child {
                child.lifeline.flush();
            }
        }
        for slot in &mut self.workers {
            let Some(child) = &mut slot.child else { continue };
            while let Some(FromWorker::Ready) = child.lifeline.receive() {
                child.ready_at = Some(now);
                self.changed = true;
            }
        }
        while let Some(message) =
            self.broker.child.as_ref().and_then(|broker| broker.lifeline.receive())
        {
            self.hear_broker(message, now);
        }
        if self.phase == Phase::Booting && self.slots().all(is_ready) {
            self.enter(Phase::Running);
            tracing::info!(
                "ready: pid {}, {} workers, {}",
                std::process::id(),
                self.workers.len(),
                self.boot.instance.state_dir.display()
            );
        }
    }

    fn hear_broker(&mut self, message: FromBroker, now: Instant) {
        match message {
            FromBroker::Ready => {
                if let Some(broker) = &mut self.broker.child {
                    broker.ready_at = Some(now);
                }
                if self.phase == Phase::Degraded {
                    self.enter(Phase::Running);
                }
                self.changed = true;
            }
            FromBroker::Fatal { message } if self.phase == Phase::Booting => {
                self.fatal = Some(message);
            }
            FromBroker::Fatal { .. } if self.phase == Phase::Running => self.enter(Phase::Degraded),
            FromBroker::Fatal { .. } => {}
            FromBroker::ExitSeen { serial } => drop(self.exits.remove(&serial)),
            FromBroker::StopAsked { now: false } => {
                self.stop(self.boot.config.workers.drain_timeout)
            }
            FromBroker::StopAsked { now: true } => self.stop(Duration::ZERO),
            FromBroker::Drained => {
                if matches!(self.phase, Phase::Draining { .. }) {
                    self.end_workers(now);
                }
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.changed = true;
    }

    fn heed_signals(&mut self) {
        let asked = self.signals.take();
        if asked.reap {
            self.reap();
        }
        if asked.stop {
            self.stop(self.boot.config.workers.drain_timeout);
        }
        if asked.stop_now {
            let draining = matches!(self.phase, Phase::Draining { .. });
            self.stop(if draining { HASTENED } else { Duration::ZERO });
        }
        if let Some(signal) = asked.unanswered {
            tracing::warn!("signal {signal} has no meaning in this version: ignored");
        }
    }

    /// Begins to stop, or hastens a stop that has begun.
    fn stop(&mut self, drain: Duration) {
        let until = Instant::now() + drain;
        match self.phase {
            Phase::Booting | Phase::Running | Phase::Degraded => {
                tracing::info!("stopping: running tasks have {} s", drain.as_secs_f64());
                self.enter(Phase::Draining { until });
            }
            Phase::Draining { until: before } if until < before => {
                self.enter(Phase::Draining { until });
            }
            _ => return,
        }
        self.tell_stop(drain);
    }

    fn end_workers(&mut self, now: Instant) {
        self.enter(Phase::EndingWorkers { kill_at: now + TERM_MAX });
        self.signal_workers(Signal::SIGTERM);
    }

    fn signal_workers(&self, signal: Signal) {
        for child in self.workers.iter().filter_map(|slot| slot.child.as_ref()) {
            let _ = kill(child.pid, signal);
        }
    }

    fn kill_all(&self, signal: Signal) {
        for child in self.slots().filter_map(|slot| slot.child.as_ref()) {
            let _ = kill(child.pid, signal);
        }
    }

    /// Whoever did not do in time what was asked of it is killed.
    fn keep_deadlines(&mut self, now: Instant) {
        let boot_timeout = self.boot.config.workers.boot_timeout;
        for slot in self.slots() {
            if let Some(child) = &slot.child
                && child.ready_at.is_none()
                && now >= child.forked_at + boot_timeout
            {
                tracing::error!("pid {} is not ready after {boot_timeout:?}: killed", child.pid);
                let _ = kill(child.pid, Signal::SIGKILL);
            }
        }
        match self.phase {
            Phase::Draining { until } if now >= until + SETTLE_MAX => {
                tracing::error!("the broker does not finish: its tasks go back at the next start");
                self.end_workers(now);
            }
            Phase::EndingWorkers { .. } if self.workers.iter().all(|slot| slot.child.is_none()) => {
                self.enter(Phase::EndingBroker { kill_at: now + SETTLE_MAX });
                if let Some(broker) = &self.broker.child {
                    let _ = kill(broker.pid, Signal::SIGTERM);
                }
            }
            Phase::EndingWorkers { kill_at } if now >= kill_at => {
                self.signal_workers(Signal::SIGKILL);
                self.enter(Phase::EndingWorkers { kill_at: now + TERM_MAX });
            }
            Phase::EndingBroker { kill_at } if now >= kill_at => {
                self.kill_all(Signal::SIGKILL);
                self.enter(Phase::EndingBroker { kill_at: now + TERM_MAX });
            }
            _ => {}
        }
    }

    /// Collects every death there is, also those of strangers that were left to us.
    #[allow(clippy::disallowed_methods, reason = "the master is the one that reaps")]
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                return;
            }
            if let Some((pid, cause)) = children::death(status) {
                self.died(pid, &cause);
            }
        }
    }

    fn died(&mut self, pid: Pid, cause: &Cause) {
        // What it said before it died counts: it may have been ready.
        self.hear_children();
        let now = Instant::now();
        let is = |slot: &Slot| slot.child.as_ref().is_some_and(|child| child.pid == pid);
        let how = children::in_words(cause);
        if is(&self.broker) {
            self.changed = true;
            self.broker.empty(cause, now);
            if !self.phase.is_stopping() || matches!(self.phase, Phase::Draining { .. }) {
                tracing::error!("the broker (pid {pid}) is dead: {how}; a new one follows");
            }
            return;
        }
        let Some(slot) = self.workers.iter_mut().find(|slot| is(slot)) else { return };
        self.changed = true;
        let Some(child) = slot.empty(cause, now) else { return };
        let number = slot.number;
        if !self.phase.is_stopping() {
            tracing::warn!("worker {number} (pid {pid}) is dead: {how}; a new one follows");
        }
        let exit = Exit { serial: child.serial, pid: pid.as_raw(), cause: cause.clone() };
        self.tell_broker(&ToBroker::Exited(exit.clone()));
        self.exits.insert(child.serial, exit);
    }
}

fn is_ready(slot: &Slot) -> bool {
    slot.child.as_ref().is_some_and(|child| child.ready_at.is_some())
}

/// A process that was just forked, before it has let go of what is the master's.
struct BornChild {
    slot: u32,
    serial: u64,
    lifeline: OwnedFd,
}

impl BornChild {
    /// Drops everything of the master but what a child starts from.
    fn become_child(self, master: Master) -> Ended {
        let (boot, lifeline) = (master.boot, self.lifeline);
        match self.slot {
            0 => Ended::BrokerChild { boot, lifeline },
            slot => Ended::WorkerChild { boot, lifeline, slot, serial: self.serial },
        }
    }
}
