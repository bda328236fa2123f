//! What systemd is told: the turns of the life cycle, one line of status, that the loop turns, and
//! that what takes long goes on.

use std::time::{Duration, Instant};

use crate::master::rules::phase::Phase;
use crate::master::supervise::Master;

/// How much more time is asked for, again and again, while a stop or a reload goes on. The loop
/// asks once a second, so a master that hangs is given up soon.
const MORE_TIME: Duration = Duration::from_secs(15);

/// The turns that systemd knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Turn {
    #[default]
    Starting,
    Ready,
    Reloading,
    Stopping,
}

impl Master {
    /// Tells systemd what is new. Called once in each turn of the loop.
    pub(crate) fn announce(&mut self) {
        let turn = self.turn();
        if turn == self.announced {
            return;
        }
        let status = self.status_line();
        match turn {
            // It is ready only once; a start that goes on needs no word.
            Turn::Starting => return,
            Turn::Ready => self.notifier.ready(&status),
            Turn::Reloading => self.notifier.reloading(&status),
            Turn::Stopping => self.notifier.stopping(&status),
        }
        self.announced = turn;
    }

    /// Once a second: the status, and more time where something takes long.
    pub(crate) fn announce_status(&mut self) {
        let status = self.status_line();
        self.notifier.status(&status);
        // A start that comes to nothing is to fail in the time that the unit gives it.
        let hopeless = self.announced == Turn::Starting && self.trouble.is_some();
        if self.announced != Turn::Ready && !hopeless {
            self.notifier.extend_timeout(MORE_TIME);
        }
    }

    /// Proves that the loop turns, and nothing else: a broker that is down must not have systemd
    /// kill the workers, too.
    pub(crate) fn keep_watchdog(&mut self, now: Instant) {
        if self.watchdog_at.is_some_and(|at| now >= at) {
            self.notifier.watchdog();
            self.watchdog_at = self.notifier.watchdog_interval().map(|interval| now + interval);
        }
    }

    fn turn(&self) -> Turn {
        match self.phase {
            phase if phase.is_stopping() => Turn::Stopping,
            Phase::Booting => Turn::Starting,
            Phase::Upgrading { .. } => Turn::Reloading,
            _ if self.reload.is_under_way() || self.upgrade.is_under_way() => Turn::Reloading,
            _ if self.is_reloading() => Turn::Reloading,
            _ => Turn::Ready,
        }
    }

    fn status_line(&self) -> String {
        let word = self.phase.word(self.condition());
        if let Some(trouble) = &self.trouble {
            return format!("{word}: {trouble}");
        }
        let workers = self.workers.iter().filter(|slot| slot.child.is_some()).count();
        let (running, ready) = self.sizing.load();
        format!("{word}: {workers} workers, {running} tasks running, {ready} ready to run")
    }
}
