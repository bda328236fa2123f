//! Upgrade in place: the binary that lies where this one was started from is asked whether it can
//! take over, then this process runs it. Pid, children, listeners and lock stay as they are; the
//! new image replaces the broker, then the workers one by one. If its broker does not get ready,
//! it runs the old image again, in the same way.

//!
//! [`handover`]: what is left to the next image; [`adopt`]: how that takes it.

pub(crate) mod adopt;
pub(crate) mod handover;

pub(crate) use handover::{CHECK_VARIABLE, FAILED_VARIABLE, HANDOVER_VARIABLE};

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::broker::store::schema::SCHEMA_VERSION;
use crate::master::births::Born;
use crate::master::checker::Check;
use crate::master::children::Slot;
use crate::master::fork::{self, Side};
use crate::master::lifeline::{self, Lifeline};
use crate::master::requests::Askers;
use crate::master::rules::phase::Phase;
use crate::master::serve;
use crate::master::supervise::Master;
use crate::protocol::lifeline::Asker;
use crate::task::Cause;
use handover::{HANDOVER_PROTOCOL, Handover, Image, environment};

/// Deaths of a new build's broker before it was ready, after which the old build comes back.
const BROKER_DEATHS_MAX: u32 = 3;
/// How long the old broker may take to close its store.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(10);

/// Upgrades that were asked for, and the one that is under way.
#[derive(Default)]
pub(crate) struct Upgrade {
    asked: Askers,
    check: Option<Check>,
    /// The build before this one, while it is not certain that this one serves.
    way_back: Option<WayBack>,
    /// Why the last one came to nothing, if it did.
    pub(crate) error: Option<String>,
}

/// An upgrade that was given up: why, and the configuration file of the image that comes back.
struct Failed {
    why: String,
    config: Option<String>,
}

/// The build before this one, and the configuration file that it was under.
pub(crate) struct WayBack {
    pub(crate) image: OwnedFd,
    pub(crate) config: Option<String>,
}

impl Upgrade {
    /// In a new image: the way back, or why this image is here again.
    pub(crate) fn begun(way_back: Option<WayBack>, error: Option<String>) -> Self {
        Self { way_back, error, ..Self::default() }
    }

    /// A client asks for one.
    pub(crate) fn ask(&mut self, asker: Asker) {
        let checked = self.check.as_mut().is_some_and(|check| check.askers.meets_again(asker));
        if !checked && !self.asked.meets_again(asker) {
            self.asked.add(Some(asker));
        }
    }

    /// USR2 asks for one.
    pub(crate) fn ask_by_signal(&mut self) {
        self.asked.add(None);
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.check.is_some() || !self.asked.is_empty()
    }

    pub(crate) fn lifeline(&self) -> Option<&Lifeline> {
        self.check.as_ref().map(|check| &check.lifeline)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.check.as_ref().map(|check| check.until)
    }

    pub(crate) fn keep_deadline(&mut self, now: Instant) {
        if let Some(check) = &mut self.check {
            check.keep_deadline(now);
        }
    }

    /// The store is of the new build's schema now.
    pub(crate) fn no_way_back(&mut self) {
        self.way_back = None;
    }
}

impl Master {
    /// Asks the new binary whether it can take over what there is now. `Some`: this is the child
    /// that becomes that binary.
    pub(crate) fn fork_upgrade_check(&mut self, now: Instant) -> Option<Born> {
        // One thing after the other: it would hand over a reload that is half done.
        let busy = self.upgrade.check.is_some() || self.reload.is_under_way();
        if self.upgrade.asked.is_empty() || busy || self.phase != Phase::Running {
            return None;
        }
        let askers = std::mem::take(&mut self.upgrade.asked);
        self.upgrade.error = None;
        let forked = self.config_now().and_then(|config| {
            let file = self.handover(config).write()?;
            let pair = lifeline::pair()?;
            Ok((file, pair, fork::fork()?))
        });
        match forked {
            Ok((_, (lifeline, _), Side::Parent(pid))) => {
                self.upgrade.check = Some(Check::new(pid, lifeline, askers, now));
                None
            }
            Ok((file, (_, lifeline), Side::Child)) => {
                self.signals.unregister();
                Some(Born::UpgradeCheck { lifeline, handover: file })
            }
            Err(error) => {
                self.refuse_upgrade(&askers, &format!("cannot ask the new binary: {error}"));
                None
            }
        }
    }

    pub(crate) fn hear_upgrade_check(&mut self) {
        let Some(said) = self.upgrade.check.as_ref().and_then(Check::hear) else { return };
        let Some(check) = self.upgrade.check.take() else { return };
        match said {
            // Asked before a stop began, or before another image took over.
            Ok(()) if self.phase != Phase::Running => {
                self.refuse_upgrade(&check.askers, "the daemon is stopping");
            }
            Ok(()) => self.upgrade(&check.askers),
            Err(error) => self.refuse_upgrade(&check.askers, &error),
        }
    }

    /// Whether it was this check that died.
    pub(crate) fn upgrade_check_died(&mut self, pid: Pid, cause: &Cause) -> bool {
        let Some(check) = self.upgrade.check.take_if(|check| check.is(pid)) else { return false };
        let how = Check::how(cause);
        let path = self.boot.image.path.to_string_lossy().into_owned();
        self.refuse_upgrade(&check.askers, &format!("{path} does not take over: {how}"));
        true
    }

    fn refuse_upgrade(&mut self, askers: &Askers, error: &str) {
        tracing::error!("not upgraded: {error}");
        self.upgrade.error = Some(error.to_owned());
        self.changed = true;
        self.answer(askers, &Err(error.to_owned()));
    }

    /// Becomes the new image. Comes back only if that fails.
    fn upgrade(&mut self, askers: &Askers) {
        tracing::info!("upgrading from {}", env!("CARGO_PKG_VERSION"));
        // Said before the end, and remembered for those who do not hear it.
        self.answer(askers, &Ok(self.generation + 1));
        let path = self.boot.image.path.clone();
        let error = self.become_image(&path, None);
        tracing::error!("not upgraded: cannot run {}: {error}", path.to_string_lossy());
        self.upgrade.error = Some(format!("cannot run the new binary: {error}"));
        self.changed = true;
    }

    /// Whether the new broker is given up; then this process runs the old image again.
    pub(crate) fn look_at_upgrade(&mut self, now: Instant) {
        let Phase::Upgrading { until } = self.phase else { return };
        let gave_up = self.broker_trouble.clone().or_else(|| {
            (now >= until).then(|| "its broker is not ready within workers.boot_timeout".to_owned())
        });
        let deaths = self.broker.strikes() >= BROKER_DEATHS_MAX;
        let gave_up = gave_up.or_else(|| {
            deaths.then(|| format!("its broker does not start: {}", self.broker.last_exit()))
        });
        let Some(why) = gave_up else { return };
        let Some(WayBack { image, config }) = self.upgrade.way_back.take() else {
            // There is none: it is a broker that does not start, like any other.
            return self.enter(Phase::Running);
        };
        let version = env!("CARGO_PKG_VERSION");
        tracing::error!("forq {version} does not serve: {why}; the old build comes back");
        if let Some(broker) = &mut self.broker.child {
            broker.kill(crate::task::LossReason::Crash, "its build is given up");
        }
        let error = match Image::own_path(&image) {
            Ok(path) => {
                let why = format!("forq {version} does not serve: {why}");
                self.become_image(&path, Some(Failed { why, config }))
            }
            Err(error) => error,
        };
        tracing::error!("the old build does not come back: {error}");
        self.enter(Phase::Running);
    }

    /// Hands everything to the image at `path` and becomes it. `failed`: an upgrade was given up.
    fn become_image(&mut self, path: &CString, failed: Option<Failed>) -> io::Error {
        self.hear_children();
        fork::block_signals();
        self.signals.pass_on();
        let error = match self.exec_image(path, failed) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        self.hand_on_all(false);
        fork::unblock_signals();
        error
    }

    fn exec_image(
        &mut self,
        path: &CString,
        failed: Option<Failed>,
    ) -> io::Result<std::convert::Infallible> {
        let mut variables = Vec::new();
        let handover = match failed {
            None => self.handover(self.config_now()?),
            Some(Failed { why, config }) => {
                variables.push((FAILED_VARIABLE, why));
                // No second way: the old build stays, whatever becomes of its broker.
                Handover { image: None, ..self.handover(config) }
            }
        };
        let file = handover.write()?;
        variables.push((HANDOVER_VARIABLE, file.as_raw_fd().to_string()));
        let environment = environment(&variables)?;
        fork::hand_on(&file, true)?;
        self.hand_on_all(true);
        Err(fork::exec(path, &self.boot.image.arguments, &environment).into())
    }

    /// Leaves every descriptor that is handed over open across an exec, or closes it to commands
    /// again.
    fn hand_on_all(&self, yes: bool) {
        let lifelines = self.children().map(|child| child.lifeline.fd());
        for fd in self.boot.descriptors().into_iter().chain(lifelines) {
            if let Err(error) = fork::hand_on(fd, yes) {
                tracing::error!("cannot hand over a descriptor: {error}");
            }
        }
    }

    /// The configuration file as it is now, as a start would find it.
    fn config_now(&self) -> io::Result<Option<String>> {
        let sources = serve::read_sources_again(&self.boot.instance, &self.boot.flags);
        Ok(sources.map_err(io::Error::other)?.file.map(|(_, text)| text))
    }

    /// What there is to hand over, beside the configuration file.
    fn handover(&self, config: Option<String>) -> Handover {
        let config_before = self.boot.sources.file.as_ref().map(|(_, text)| text.clone());
        let [lock, control, worker, image] = self.boot.descriptors().map(|fd| fd.as_raw_fd());
        Handover {
            protocol: HANDOVER_PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema: SCHEMA_VERSION,
            number: self.boot.number,
            config,
            config_before,
            lock,
            control,
            worker,
            image: Some(image),
            last_serial: self.last_serial,
            last_drain: self.last_drain,
            generation: self.generation,
            moved: self.sizing.moved(),
            want: self.sizing.want,
            exits: self.exits.values().cloned().collect(),
            done: self.done.to_vec(),
            broker: self.broker.left(),
            workers: self.workers.iter().map(Slot::left).collect(),
        }
    }
}

/// In the child that asks the new binary: becomes it.
pub(crate) fn check_main(image: &Image, lifeline: &OwnedFd, handover: &File) -> io::Error {
    let variables = [
        (HANDOVER_VARIABLE, handover.as_raw_fd().to_string()),
        (CHECK_VARIABLE, lifeline.as_raw_fd().to_string()),
    ];
    let exec = || -> io::Result<std::convert::Infallible> {
        let environment = environment(&variables)?;
        fork::hand_on(handover, true)?;
        fork::hand_on(lifeline, true)?;
        fork::unblock_signals();
        Err(fork::exec(&image.path, &image.arguments, &environment).into())
    };
    match exec() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
