//! Forks: which child, when, and what it is born with.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::children::{Child, Slot};
use super::fork::{self, Side};
use super::lifeline;
use super::rules::breaker::Breaker;
use super::rules::phase::Phase;
use super::rules::roll::{self, Member, Step, Target};
use super::supervise::Master;
use crate::config::Sources;

/// Spreads serials over the jitter of `max_tasks`: 2^64 divided by the golden ratio. The master
/// draws no random numbers, whose state its children would share.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a process that was just forked is to become.
pub(super) enum Born {
    Broker {
        lifeline: OwnedFd,
    },
    Worker {
        lifeline: OwnedFd,
        slot: u32,
        serial: u64,
        generation: u32,
    },
    /// Checks a configuration and ends.
    ConfigCheck {
        lifeline: OwnedFd,
        sources: Sources,
    },
    /// Becomes the new binary, which checks whether it can take over, and ends.
    UpgradeCheck {
        lifeline: OwnedFd,
        handover: File,
    },
}

impl Master {
    /// Takes the pool one or more steps nearer to what it should be.
    pub(super) fn roll(&mut self, now: Instant) {
        if self.phase.is_stopping() {
            return;
        }
        // Each step changes what the next one sees, and there are few.
        while let Some(step) = roll::next(&self.members(), self.vacant(), self.target()) {
            self.changed = true;
            match step {
                Step::Fork => self.free_slot().fork_at = Some(now),
                Step::GiveUp => {
                    let vacant = self.workers.iter_mut().filter(|slot| slot.is_vacant());
                    if let Some(slot) = vacant.max_by_key(|slot| slot.fork_at) {
                        slot.give_up();
                    }
                }
                Step::TakeBack(number) => self.set_drain(number, 0),
                Step::Drain(number) => {
                    self.last_drain = self.last_drain.wrapping_add(1).max(1);
                    self.set_drain(number, self.last_drain);
                }
            }
        }
    }

    pub(super) fn members(&self) -> Vec<Member> {
        let stay = |slot: &&Slot| !slot.is_vacant();
        let member = |slot: &Slot| Some(slot.child.as_ref()?.member(slot.number, self.generation));
        self.workers.iter().filter(stay).filter_map(member).collect()
    }

    fn vacant(&self) -> u32 {
        self.workers.iter().filter(|slot| slot.is_vacant()).count() as u32
    }

    fn target(&self) -> Target {
        Target {
            want: self.sizing.want,
            max: self.sizing.bounds.max,
            surge: self.boot.config.workers.max_surge,
        }
    }

    /// Every worker that takes tasks, and as many as there should be, is new and ready.
    pub(super) fn is_rolled(&self) -> bool {
        let members = self.members();
        let mut actives = members.iter().filter(|member| !member.draining && !member.ending);
        self.vacant() == 0
            && actives.clone().count() >= self.sizing.want as usize
            && actives.all(|member| member.ready && !member.stale)
    }

    /// The first slot with nobody in it, which may be a new one.
    fn free_slot(&mut self) -> &mut Slot {
        let free = |slot: &Slot| slot.child.is_none() && slot.fork_at.is_none();
        let place = self.workers.iter().position(free).unwrap_or_else(|| {
            self.workers.push(Slot::new(self.workers.len() as u32 + 1));
            self.workers.len() - 1
        });
        &mut self.workers[place]
    }

    fn set_drain(&mut self, number: u32, drain: u32) {
        let slot = self.workers.iter_mut().find(|slot| slot.number == number);
        let Some(child) = slot.and_then(|slot| slot.child.as_mut()) else { return };
        // One that has not said that it is ready may have a task already: its first word to the
        // broker may be faster. So it ends like any other, when the broker says that it may.
        child.drain = drain;
    }

    /// When this slot's child may be forked; `None`: not now, or there need be none.
    pub(super) fn fork_time(&self, slot: &Slot) -> Option<Instant> {
        let fork_at = slot.fork_at.filter(|_| slot.child.is_none())?;
        if slot.number == 0 {
            // A broker is there until the results of a stop are on disk.
            let ending = matches!(self.phase, Phase::EndingWorkers | Phase::EndingBroker);
            return (!ending).then_some(fork_at);
        }
        if self.phase.is_stopping() {
            return None;
        }
        let Some(probe_at) = self.breaker.probe_at() else { return Some(fork_at) };
        // One child at a time finds out whether the pool can boot again.
        let booting = |slot: &Slot| slot.child.as_ref().is_some_and(|c| c.ready_at.is_none());
        (!self.workers.iter().any(booting)).then_some(fork_at.max(probe_at))
    }

    /// Forks every child whose time has come. `Some`: this is one of them.
    pub(super) fn fork_due(&mut self, now: Instant) -> Option<Born> {
        let check = self.fork_config_check(now).or_else(|| self.fork_upgrade_check(now));
        if check.is_some() {
            return check;
        }
        for place in 0..=self.workers.len() {
            let slot = if place == 0 { &self.broker } else { &self.workers[place - 1] };
            if self.fork_time(slot).is_none_or(|fork_at| fork_at > now) {
                continue;
            }
            self.changed = true;
            match self.fork_into(place, now) {
                Ok(None) => {}
                Ok(Some(born)) => return Some(born),
                Err(error) => {
                    tracing::error!("cannot fork: {error}");
                    self.slot_mut(place).fork_failed(now);
                }
            }
        }
        None
    }

    /// Whoever waits after failed boots is forked at once: their cause may be gone.
    pub(super) fn forget_failed_boots(&mut self, now: Instant) {
        self.breaker = Breaker::default();
        self.workers.iter_mut().for_each(|slot| slot.forget_failures(now));
    }

    fn slot_mut(&mut self, place: usize) -> &mut Slot {
        if place == 0 { &mut self.broker } else { &mut self.workers[place - 1] }
    }

    fn fork_into(&mut self, place: usize, now: Instant) -> nix::Result<Option<Born>> {
        let (mine, childs) = lifeline::pair()?;
        self.last_serial += 1;
        let (serial, generation) = (self.last_serial, self.generation);
        match fork::fork()? {
            Side::Parent(pid) => {
                let mut child = Child::new(pid, serial, mine, generation, now);
                child.tasks_max = self.tasks_max(serial);
                self.slot_mut(place).fill(child);
                if place == 0 {
                    self.greet_broker(now);
                }
                Ok(None)
            }
            Side::Child => {
                self.signals.unregister();
                let slot = self.slot_mut(place).number;
                Ok(Some(match slot {
                    0 => Born::Broker { lifeline: childs },
                    slot => Born::Worker { lifeline: childs, slot, serial, generation },
                }))
            }
        }
    }

    /// After how many tasks the worker with this serial is replaced; 0: never.
    fn tasks_max(&self, serial: u64) -> u64 {
        let workers = &self.boot.config.workers;
        if workers.max_tasks == 0 {
            return 0;
        }
        let jitter = u64::from(workers.max_tasks_jitter) + 1;
        u64::from(workers.max_tasks) + (serial.wrapping_mul(SPREAD) >> 32) % jitter
    }
}
