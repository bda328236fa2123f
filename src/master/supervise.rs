//! The master's loop: signals, deaths, lifelines and clocks in; forks, kills and packets out.
//!
//! [`Master`]'s methods are spread over the files of this folder by subject.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::births::Born;
use super::children::{Child, Slot};
use super::oom::OomWatch;
use super::reload::Reload;
use super::requests::Done;
use super::resize::Sizing;
use super::rules::breaker::Breaker;
use super::rules::phase::{Condition, Phase};
use super::rules::quiet::Quiet;
use super::serve::Boot;
use super::signals::Signals;
use super::systemd::announce::Turn;
use super::systemd::notify::Notifier;
use super::upgrade::Upgrade;
use crate::protocol::lifeline::Exit;

/// How often the pool is looked at when nothing happens: its size, its memory.
const TICK: Duration = Duration::from_secs(1);

/// Deaths in one slot that have a line of their own, in a minute.
const DEATHS_TOLD: u32 = 5;

/// Why the loop ended.
pub(super) enum Ended {
    /// The instance stopped as told.
    Stopped,
    /// The broker cannot start; one sentence.
    Fatal(String),
    /// This process is a child now.
    Child(Box<Boot>, Born),
}

/// The master's state.
pub(super) struct Master {
    pub(super) boot: Boot,
    pub(super) signals: Signals,
    pub(super) broker: Slot,
    /// By number, from 1. They are never removed; see [`Slot`].
    pub(super) workers: Vec<Slot>,
    pub(super) last_serial: u64,
    pub(super) last_drain: u32,
    /// Deaths of workers that no broker has dealt with yet.
    pub(super) exits: BTreeMap<u64, Exit>,
    pub(super) phase: Phase,
    /// Counts reloads and upgrades, from 1.
    pub(super) generation: u32,
    /// The last generation that replaced all before it.
    pub(super) rolled: u32,
    pub(super) sizing: Sizing,
    pub(super) breaker: Breaker,
    pub(super) oom: OomWatch,
    /// Lines about deaths, by slot.
    pub(super) quiet: Quiet<u32>,
    /// Why the instance is degraded, if it is.
    pub(super) trouble: Option<String>,
    /// Why the broker cannot start, while it is tried again.
    pub(super) broker_trouble: Option<String>,
    pub(super) fatal: Option<String>,
    pub(super) reload: Reload,
    pub(super) upgrade: Upgrade,
    /// What clients asked for and got.
    pub(super) done: Done,
    pub(super) notifier: Notifier,
    /// What systemd was last told.
    pub(super) announced: Turn,
    /// When systemd is to hear that the loop turns.
    pub(super) watchdog_at: Option<Instant>,
    next_tick: Instant,
    /// The pool is not as it was last told.
    pub(super) changed: bool,
}

impl Master {
    pub(super) fn new(boot: Boot, signals: Signals, now: Instant) -> Self {
        let sizing = Sizing::new(&boot.config.workers, now);
        let mut broker = Slot::new(0);
        broker.fork_at = Some(now);
        Self {
            boot,
            signals,
            broker,
            workers: Vec::new(),
            last_serial: 0,
            last_drain: 0,
            exits: BTreeMap::new(),
            phase: Phase::Booting,
            generation: 1,
            rolled: 0,
            sizing,
            breaker: Breaker::default(),
            oom: OomWatch::new(),
            quiet: Quiet::new(DEATHS_TOLD, Duration::from_secs(60)),
            trouble: None,
            broker_trouble: None,
            fatal: None,
            reload: Reload::default(),
            upgrade: Upgrade::default(),
            done: Done::default(),
            announced: Turn::default(),
            watchdog_at: Some(now),
            notifier: Notifier::from_env(),
            next_tick: now,
            changed: true,
        }
    }

    /// Runs until the instance has stopped, or this process has become a child.
    pub(super) fn run(mut self) -> io::Result<Ended> {
        loop {
            let now = Instant::now();
            self.roll(now);
            if let Some(born) = self.fork_due(now) {
                return Ok(Ended::Child(Box::new(self.boot), born));
            }
            self.keep_deadlines(now);
            if now >= self.next_tick {
                self.next_tick = now + TICK;
                self.look_at_memory(now);
                self.tell_held(now);
                self.resize(now);
                self.announce_status();
            }
            self.look_at_trouble(now);
            self.look_at_phase();
            self.look_at_upgrade(now);
            self.announce();
            self.keep_watchdog(now);
            if std::mem::take(&mut self.changed) {
                self.tell_pool();
            }
            if let Some(sentence) = self.fatal.take() {
                self.kill_all();
                return Ok(Ended::Fatal(sentence));
            }
            if matches!(self.phase, Phase::EndingBroker) && self.broker.child.is_none() {
                return Ok(Ended::Stopped);
            }
            self.wait(now)?;
            self.notifier.flush();
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
        let lifelines = self.children().map(|child| &child.lifeline);
        let all = lifelines.chain(self.reload.lifeline()).chain(self.upgrade.lifeline());
        for lifeline in all.filter(|lifeline| !lifeline.is_over()) {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, lifeline.is_behind());
            fds.push(PollFd::new(lifeline.fd(), events));
        }
        if let Some(notifier) = self.notifier.fd().filter(|_| self.notifier.is_behind()) {
            fds.push(PollFd::new(notifier, PollFlags::POLLOUT));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let looks = self.children().filter_map(|child| child.look_at(self.silence_max(child)));
        let forks = self.slots().filter_map(|slot| self.fork_time(slot));
        looks
            .chain(forks)
            .chain(self.phase_deadline())
            .chain(self.reload.deadline())
            .chain(self.upgrade.deadline())
            .chain(self.watchdog_at)
            .chain([self.next_tick])
    }

    /// How long this child may be silent.
    pub(super) fn silence_max(&self, child: &Child) -> Duration {
        let workers = &self.boot.config.workers;
        match child.ready_at {
            Some(_) => workers.heartbeat_timeout,
            None => workers.boot_timeout,
        }
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        std::iter::once(&self.broker).chain(&self.workers)
    }

    pub(super) fn children(&self) -> impl Iterator<Item = &Child> {
        self.slots().filter_map(|slot| slot.child.as_ref())
    }

    pub(super) fn children_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        let slots = std::iter::once(&mut self.broker).chain(&mut self.workers);
        slots.filter_map(|slot| slot.child.as_mut())
    }

    pub(super) fn worker_mut(&mut self, serial: u64) -> Option<&mut Child> {
        let children = self.workers.iter_mut().filter_map(|slot| slot.child.as_mut());
        children.into_iter().find(|child| child.serial == serial)
    }

    pub(super) fn condition(&self) -> Condition {
        Condition { reloading: self.is_reloading(), degraded: self.trouble.is_some() }
    }

    /// Why the instance is degraded, if it is.
    fn find_trouble(&self, now: Instant) -> Option<String> {
        let broker =
            || self.broker.flapping(now).map(|how| format!("the broker does not stay up: {how}"));
        let workers = || {
            // One slot's bad luck is no trouble while others serve.
            let any_sound = self.workers.iter().any(|slot| slot.is_sound(now));
            let flapping = self.workers.iter().find_map(|slot| slot.flapping(now));
            flapping.filter(|_| !any_sound).map(|how| format!("workers do not stay up: {how}"))
        };
        let fatal = self.broker_trouble.clone();
        fatal.or_else(|| self.breaker.trouble()).or_else(broker).or_else(workers)
    }

    fn look_at_trouble(&mut self, now: Instant) {
        let trouble = self.find_trouble(now);
        if trouble != self.trouble {
            self.trouble = trouble;
            self.changed = true;
        }
    }

    /// Whether workers of an older generation are being replaced. Those that cannot be, since new
    /// ones do not start, are a trouble and no reload any more.
    pub(super) fn is_reloading(&self) -> bool {
        self.generation != self.rolled && self.trouble.is_none()
    }

    /// Everybody who should be there is ready: for the first time, or of a new generation.
    fn look_at_phase(&mut self) {
        if self.generation != self.rolled && self.is_complete() && self.is_rolled() {
            self.rolled = self.generation;
            self.changed = true;
        }
        if self.phase == Phase::Booting && self.is_complete() {
            self.enter(Phase::Running);
            tracing::info!(
                "ready: pid {}, {} workers, {}",
                std::process::id(),
                self.workers.len(),
                self.boot.instance.state_dir.display()
            );
        }
    }

    /// The broker serves, and so do as many workers as there should be at least.
    fn is_complete(&self) -> bool {
        let is_ready = |child: &&Child| child.ready_at.is_some() && !child.is_ending();
        let workers = self.workers.iter().filter_map(|slot| slot.child.as_ref());
        self.broker.child.as_ref().is_some_and(|broker| is_ready(&broker))
            && workers.filter(is_ready).count() >= self.sizing.bounds.min as usize
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.changed = true;
    }
}
