//! The other side of an upgrade: a new image takes over what the one before left.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};

use super::handover::{
    CHECK_VARIABLE, FAILED_VARIABLE, HANDOVER_VARIABLE, Handover, Image, SlotLeft, environment,
};
use super::{CLOSE_MAX, Upgrade, WayBack};
use crate::master::children::{Child, Slot};
use crate::master::fork;
use crate::master::lifeline;
use crate::master::requests::Done;
use crate::master::rules::phase::Phase;
use crate::master::serve::{Boot, Configured};
use crate::master::signals::Signals;
use crate::master::supervise::Master;
use crate::protocol::lifeline::FromChecker;

/// How this process was begun, if it was by an image of the master.
pub(crate) enum Left {
    /// It is only asked whether it could take over.
    Check { handover: File, lifeline: std::os::fd::OwnedFd },
    /// It is the master now.
    All { file: File, failed: Option<String> },
}

/// What the image before this one left, if there was one. The error is one sentence.
pub(crate) fn left() -> Result<Option<Left>, String> {
    let Some(handover) = number(HANDOVER_VARIABLE)? else { return Ok(None) };
    let cannot = |error| format!("cannot take what is handed over: {error}");
    let file = File::from(fork::adopt(handover).map_err(cannot)?);
    let left = match number(CHECK_VARIABLE)? {
        Some(lifeline) => {
            Left::Check { handover: file, lifeline: fork::adopt(lifeline).map_err(cannot)? }
        }
        None => Left::All { file, failed: std::env::var(FAILED_VARIABLE).ok() },
    };
    Ok(Some(left))
}

fn number(variable: &str) -> Result<Option<RawFd>, String> {
    let Some(text) = std::env::var_os(variable) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| format!("{variable} is no number: {}", text.display()))
}

/// Says whether this build could take over.
pub(crate) fn check(
    mut handover: File,
    lifeline: &std::os::fd::OwnedFd,
    configure: impl FnOnce(Option<String>) -> Result<Configured, String>,
) -> Result<(), String> {
    let found = Handover::read(&mut handover).and_then(|handover| configure(handover.config));
    let said = match found {
        Ok(_) => FromChecker::Good,
        Err(errors) => FromChecker::bad(errors),
    };
    lifeline::say(lifeline, &said).map_err(|error| error.to_string())
}

/// Runs the image that handed over again: this one cannot take over after all. Comes back only if
/// that fails, too.
pub(crate) fn go_back(file: &mut File, why: &str) -> Option<io::Error> {
    let mut handover = Handover::read(file).ok()?;
    let image = fork::adopt(handover.image.take()?).ok()?;
    // As it was there, and with no second way: it would not end.
    handover.config = handover.config_before.take();
    let back = || -> io::Result<std::convert::Infallible> {
        use std::os::fd::AsRawFd;
        let file = handover.write()?;
        let variables =
            [(HANDOVER_VARIABLE, file.as_raw_fd().to_string()), (FAILED_VARIABLE, why.to_owned())];
        fork::hand_on(&file, true)?;
        let arguments = Image::of_this_process()?.arguments;
        let path = Image::own_path(&image)?;
        Err(fork::exec(&path, &arguments, &environment(&variables)?).into())
    };
    match back() {
        Ok(never) => match never {},
        Err(error) => Some(error),
    }
}

impl Boot {
    /// A boot from what was handed over: nothing is bound, locked or made.
    pub(crate) fn adopt(configured: Configured, left: &Handover) -> io::Result<Self> {
        let lock =
            Flock::lock(File::from(fork::adopt(left.lock)?), FlockArg::LockExclusiveNonblock)
                .map_err(|(_, error)| io::Error::from(error))?;
        let listener = |fd| Ok::<_, io::Error>(UnixListener::from(fork::adopt(fd)?));
        let (control, worker) = (listener(left.control)?, listener(left.worker)?);
        Ok(configured.with(left.number, control, worker, lock))
    }
}

impl Master {
    /// A master from what was handed over. All children are of an older generation, so all are
    /// replaced: the broker at once, then the workers one by one.
    pub(crate) fn adopt(
        boot: Boot,
        signals: Signals,
        left: Handover,
        failed: Option<String>,
        now: Instant,
    ) -> io::Result<Self> {
        let until = now + CLOSE_MAX + boot.config.workers.boot_timeout;
        let image = left.image.map(fork::adopt).transpose()?;
        let config = left.config_before;
        let way_back = image.map(|image| WayBack { image, config });
        let mut master = Self::new(boot, signals, now);
        master.upgrade = Upgrade::begun(way_back.filter(|_| failed.is_none()), failed);
        master.last_serial = left.last_serial;
        master.last_drain = left.last_drain;
        master.generation = left.generation + 1;
        master.rolled = left.generation;
        master.sizing.adopt(left.want, left.moved);
        master.exits = left.exits.into_iter().map(|exit| (exit.serial, exit)).collect();
        master.done = Done::from(left.done);
        master.broker = Slot::adopt(left.broker, now)?;
        master.workers = left
            .workers
            .into_iter()
            .map(|slot| Slot::adopt(slot, now))
            .collect::<io::Result<_>>()?;
        master.enter(Phase::Upgrading { until });
        match &mut master.broker.child {
            Some(broker) => broker.terminate(CLOSE_MAX, now),
            None => master.broker.fork_at = Some(now),
        }
        // Whoever died while no handler was there is found now.
        master.reap();
        fork::unblock_signals();
        Ok(master)
    }
}

impl Slot {
    fn adopt(left: SlotLeft, now: Instant) -> io::Result<Self> {
        let mut slot = Slot::new(left.number);
        slot.restarts = left.restarts;
        slot.remember_exit(left.last_exit);
        if let Some(child) = left.child {
            let (pid, lifeline) = child.take()?;
            let mut adopted = Child::new(pid, child.serial, lifeline, child.generation, now);
            adopted.ready_at = child.ready.then_some(now);
            adopted.drain = child.drain;
            slot.fill(adopted);
        }
        Ok(slot)
    }
}
