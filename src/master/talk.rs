//! What the master says over the lifelines, and what it hears.

use std::time::{Duration, Instant};

use super::rules::phase::Phase;
use super::status;
use super::stop::TERM_MAX;
use super::supervise::Master;
use crate::protocol::lifeline::{FromBroker, FromWorker, Pool, Scale, ToBroker};

impl Master {
    /// What a new broker must know: deaths that are open, then the pool, then a stop.
    pub(super) fn greet_broker(&mut self, now: Instant) {
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

    pub(super) fn tell_pool(&mut self) {
        let pool = Pool {
            phase: self.phase.word(self.condition()).to_owned(),
            reason: self.trouble.clone(),
            generation: self.generation,
            rolled: self.rolled == self.generation,
            upgrade_error: self.upgrade.error.clone(),
            scale: Scale {
                min: self.sizing.bounds.min,
                max: self.sizing.bounds.max,
                want: self.sizing.want,
                reason: self.sizing.reason.clone(),
            },
            broker_restarts: self.broker.restarts,
            workers: self.workers.iter().filter_map(super::children::Slot::view).collect(),
        };
        let broker_pid = self.broker.child.as_ref().map(|child| child.pid.as_raw());
        status::write(&self.boot.instance.status(), &pool, broker_pid);
        self.tell_broker(&ToBroker::Pool(pool));
    }

    pub(super) fn tell_broker(&mut self, message: &ToBroker) {
        if let Some(broker) = &mut self.broker.child {
            broker.lifeline.send(message);
        }
    }

    pub(super) fn tell_stop(&mut self, drain: Duration) {
        let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        self.tell_broker(&ToBroker::Stop { drain_ms });
    }

    pub(super) fn hear_children(&mut self) {
        let now = Instant::now();
        for child in self.children_mut() {
            child.lifeline.flush();
        }
        self.hear_workers(now);
        while let Some(message) =
            self.broker.child.as_ref().and_then(|broker| broker.lifeline.receive())
        {
            self.hear_broker(message, now);
        }
        self.hear_config_check();
        self.hear_upgrade_check();
    }

    fn hear_workers(&mut self, now: Instant) {
        let mut booted = false;
        for child in self.workers.iter_mut().filter_map(|slot| slot.child.as_mut()) {
            while let Some(message) = child.lifeline.receive() {
                child.pulse = super::rules::pulse::Pulse::new(now);
                match message {
                    FromWorker::Ready => {
                        child.ready_at = Some(now);
                        booted = true;
                    }
                    FromWorker::Beat { tasks_done } => {
                        let enough = child.tasks_max != 0 && tasks_done >= child.tasks_max;
                        if enough && child.recycle.is_none() {
                            child.recycle = Some("workers.max_tasks");
                            self.changed = true;
                        }
                    }
                }
            }
        }
        if booted {
            self.changed = true;
            if self.breaker.booted() {
                tracing::info!("workers start again");
            }
        }
    }

    fn hear_broker(&mut self, message: FromBroker, now: Instant) {
        if let Some(broker) = &mut self.broker.child {
            broker.pulse = super::rules::pulse::Pulse::new(now);
        }
        match message {
            // To be heard is all.
            FromBroker::Opening => {}
            FromBroker::Ready => {
                if let Some(broker) = &mut self.broker.child {
                    broker.ready_at = Some(now);
                }
                self.broker_trouble = None;
                self.changed = true;
                if matches!(self.phase, Phase::Upgrading { .. }) && self.broker_is_new() {
                    self.upgrade.no_way_back();
                    self.enter(Phase::Running);
                    tracing::info!("upgraded to {}", env!("CARGO_PKG_VERSION"));
                }
            }
            FromBroker::Fatal { message } if self.phase == Phase::Booting => {
                self.fatal = Some(message);
            }
            FromBroker::Fatal { message } => {
                self.broker_trouble = Some(message);
                self.changed = true;
            }
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
            FromBroker::Beat(load) => self.take_load(load, now),
            FromBroker::Idle { serial, drain } => self.retire(serial, drain, now),
            FromBroker::Migrating => self.upgrade.no_way_back(),
            FromBroker::Asked { asker, ask } => self.asked(asker, ask),
        }
    }

    /// Whether the broker was forked by this image.
    fn broker_is_new(&self) -> bool {
        self.broker.child.as_ref().is_some_and(|broker| broker.generation == self.generation)
    }

    /// A worker that drains has nothing left: it may end.
    fn retire(&mut self, serial: u64, drain: u32, now: Instant) {
        let Some(child) = self.worker_mut(serial) else { return };
        if child.drain == drain && drain != 0 && !child.is_ending() {
            child.terminate(TERM_MAX, now);
            self.changed = true;
        }
    }
}
