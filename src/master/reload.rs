//! Reload: the file is read once, checked by a child, and only then in force. Its generation is
//! one more than before, and [`super::roll`] replaces all workers of an older one.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::births::Born;
use super::fork::{self, Side};
use super::lifeline::{self, Lifeline};
use super::supervise::Master;
use super::{limits, logging, serve};
use crate::config::{self, Sources};
use crate::protocol::lifeline::{CONFIG_PIECE_BYTES_MAX, FromChecker, ToBroker};
use crate::task::Cause;

/// How long the check of a configuration may take.
const CHECK_MAX: Duration = Duration::from_secs(10);

/// Reloads that were asked for, and the one that is under way.
#[derive(Default)]
pub(super) struct Reload {
    /// Who waits for the next check: a client through the broker, by its number.
    asked: Vec<Option<u64>>,
    check: Option<Check>,
}

struct Check {
    pid: Pid,
    lifeline: Lifeline,
    sources: Sources,
    askers: Vec<Option<u64>>,
    until: Instant,
}

impl Reload {
    /// Asks for one. Those that are asked for at once share it.
    pub(super) fn ask(&mut self, asker: Option<u64>) {
        self.asked.push(asker);
    }

    pub(super) fn lifeline(&self) -> Option<&Lifeline> {
        self.check.as_ref().map(|check| &check.lifeline)
    }

    /// Whether one was asked for and is not in force yet.
    pub(super) fn is_under_way(&self) -> bool {
        self.check.is_some() || !self.asked.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.check.as_ref().map(|check| check.until)
    }
}

impl Master {
    /// Begins the check that was asked for. `Some`: this is the child that does it.
    pub(super) fn fork_checker(&mut self, now: Instant) -> Option<Born> {
        if self.reload.asked.is_empty() || self.reload.check.is_some() {
            return None;
        }
        let askers = std::mem::take(&mut self.reload.asked);
        let sources = match serve::read_sources(&self.boot.instance, &self.boot.flags) {
            Ok(sources) => sources,
            Err(error) => {
                self.refuse_reload(&askers, &error);
                return None;
            }
        };
        let forked = lifeline::pair().and_then(|pair| Ok((pair, fork::fork()?)));
        match forked {
            Ok(((lifeline, _), Side::Parent(pid))) => {
                let until = now + CHECK_MAX;
                self.reload.check = Some(Check { pid, lifeline, sources, askers, until });
                None
            }
            Ok(((_, lifeline), Side::Child)) => {
                self.signals.unregister();
                Some(Born::Checker { lifeline, sources })
            }
            Err(error) => {
                self.refuse_reload(&askers, &format!("cannot fork: {error}"));
                None
            }
        }
    }

    pub(super) fn hear_checker(&mut self) {
        let said = self.reload.check.as_ref().and_then(|check| check.lifeline.receive());
        let Some(said) = said else { return };
        let Some(check) = self.reload.check.take() else { return };
        match said {
            FromChecker::Good => self.take_config(check.sources, &check.askers),
            FromChecker::Bad { errors } => self.refuse_reload(&check.askers, &errors),
        }
    }

    /// Whether it was the checker that died. If it has said nothing, that is an error.
    pub(super) fn checker_died(&mut self, pid: Pid, cause: &Cause) -> bool {
        let Some(check) = self.reload.check.take_if(|check| check.pid == pid) else { return false };
        let how = cause.signal.as_deref().unwrap_or("no word");
        self.refuse_reload(&check.askers, &format!("the check of the file ended with {how}"));
        true
    }

    pub(super) fn keep_reload_deadline(&mut self, now: Instant) {
        if let Some(check) = &mut self.reload.check
            && now >= check.until
        {
            let _ = kill(check.pid, Signal::SIGKILL);
            // Its death says the rest.
            check.until = now + CHECK_MAX;
        }
    }

    fn refuse_reload(&mut self, askers: &[Option<u64>], errors: &str) {
        for line in errors.lines() {
            tracing::error!("not reloaded: {line}");
        }
        self.answer(askers, &Err(errors.to_owned()));
    }

    fn answer(&mut self, askers: &[Option<u64>], result: &Result<u32, String>) {
        for asker in askers.iter().flatten() {
            self.tell_broker(&ToBroker::Answer { asker: *asker, result: result.clone() });
        }
    }

    /// Puts a configuration in force that a child found good.
    fn take_config(&mut self, sources: Sources, askers: &[Option<u64>]) {
        let loaded = match config::load(&sources) {
            Ok(loaded) => loaded,
            Err(errors) => return self.refuse_reload(askers, &errors.to_string()),
        };
        let text = sources.file.as_ref().map_or("", |(_, text)| text.as_str()).to_owned();
        self.boot.config = loaded.config;
        self.boot.sources = sources;
        self.sizing.rebound(&self.boot.config.workers);
        logging::set_level(&self.boot.config.log);
        if let Err(error) = limits::raise_open_files(&self.boot.config.workers) {
            tracing::error!("{error}");
        }
        self.generation += 1;
        self.changed = true;
        tracing::info!("reloaded: generation {}; workers are replaced", self.generation);
        self.tell_config(text.as_bytes());
        // First the generation, then the answer that names it.
        self.tell_pool();
        self.answer(askers, &Ok(self.generation));
    }

    fn tell_config(&mut self, text: &[u8]) {
        let pieces = text.len().div_ceil(CONFIG_PIECE_BYTES_MAX).max(1);
        for index in 0..pieces {
            let from = index * CONFIG_PIECE_BYTES_MAX;
            let piece = text[from..text.len().min(from + CONFIG_PIECE_BYTES_MAX)].to_vec();
            self.tell_broker(&ToBroker::Config { piece, last: index + 1 == pieces });
        }
    }
}
