//! Reload: the file is read once, checked by a child, and only then in force. Its generation is
//! one more than before, and [`super::rules::roll`] replaces all workers of an older one.

use std::time::Instant;

use nix::unistd::Pid;

use super::births::Born;
use super::checker::Check;
use super::fork::{self, Side};
use super::lifeline::{self, Lifeline};
use super::requests::Askers;
use super::rules::phase::Phase;
use super::supervise::Master;
use super::{limits, logging, serve};
use crate::config::{self, Sources};
use crate::protocol::lifeline::{Asker, CONFIG_PIECE_BYTES_MAX, ToBroker};
use crate::task::Cause;

/// Reloads that were asked for, and the one that is under way.
#[derive(Default)]
pub(super) struct Reload {
    /// Those who wait for the next check.
    asked: Askers,
    check: Option<(Check, Sources)>,
}

impl Reload {
    /// A client asks for one. Those that are asked for at once share it.
    pub(super) fn ask(&mut self, asker: Asker) {
        let checked = self.check.as_mut().is_some_and(|(check, _)| check.askers.meets_again(asker));
        if !checked && !self.asked.meets_again(asker) {
            self.asked.add(Some(asker));
        }
    }

    /// HUP asks for one.
    pub(super) fn ask_by_signal(&mut self) {
        self.asked.add(None);
    }

    pub(super) fn lifeline(&self) -> Option<&Lifeline> {
        self.check.as_ref().map(|(check, _)| &check.lifeline)
    }

    /// Whether one was asked for and is not in force yet.
    pub(super) fn is_under_way(&self) -> bool {
        self.check.is_some() || !self.asked.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.check.as_ref().map(|(check, _)| check.until)
    }

    pub(super) fn keep_deadline(&mut self, now: Instant) {
        if let Some((check, _)) = &mut self.check {
            check.keep_deadline(now);
        }
    }
}

impl Master {
    /// Begins the check that was asked for. `Some`: this is the child that does it.
    pub(super) fn fork_config_check(&mut self, now: Instant) -> Option<Born> {
        // A new build is told from the old by its generation, until its broker is ready.
        let waits = self.reload.check.is_some() || matches!(self.phase, Phase::Upgrading { .. });
        if self.reload.asked.is_empty() || waits {
            return None;
        }
        let askers = std::mem::take(&mut self.reload.asked);
        let sources = match serve::read_sources_again(&self.boot.instance, &self.boot.flags) {
            Ok(sources) => sources,
            Err(error) => {
                self.refuse_reload(&askers, &error);
                return None;
            }
        };
        match lifeline::pair().and_then(|pair| Ok((pair, fork::fork()?))) {
            Ok(((lifeline, _), Side::Parent(pid))) => {
                self.reload.check = Some((Check::new(pid, lifeline, askers, now), sources));
                None
            }
            Ok(((_, lifeline), Side::Child)) => {
                self.signals.unregister();
                Some(Born::ConfigCheck { lifeline, sources })
            }
            Err(error) => {
                self.refuse_reload(&askers, &format!("cannot fork: {error}"));
                None
            }
        }
    }

    pub(super) fn hear_config_check(&mut self) {
        let Some(said) = self.reload.check.as_ref().and_then(|(check, _)| check.hear()) else {
            return;
        };
        let Some((check, sources)) = self.reload.check.take() else { return };
        match said {
            Ok(()) if self.phase.is_stopping() => {
                self.refuse_reload(&check.askers, "the daemon is stopping");
            }
            Ok(()) => self.take_config(sources, &check.askers),
            Err(errors) => self.refuse_reload(&check.askers, &errors),
        }
    }

    /// Whether it was this check that died.
    pub(super) fn config_check_died(&mut self, pid: Pid, cause: &Cause) -> bool {
        let Some((check, _)) = self.reload.check.take_if(|(check, _)| check.is(pid)) else {
            return false;
        };
        self.refuse_reload(&check.askers, &Check::how(cause));
        true
    }

    fn refuse_reload(&mut self, askers: &Askers, errors: &str) {
        for line in errors.lines() {
            tracing::error!("not reloaded: {line}");
        }
        self.answer(askers, &Err(errors.to_owned()));
    }

    /// Puts a configuration in force that a child found good.
    fn take_config(&mut self, sources: Sources, askers: &Askers) {
        let loaded = match config::load(&sources) {
            Ok(loaded) => loaded,
            Err(errors) => return self.refuse_reload(askers, &errors.to_string()),
        };
        let text = sources.file.as_ref().map_or("", |(_, text)| text.as_str()).to_owned();
        self.boot.config = loaded.config;
        self.boot.sources = sources;
        self.sizing.rebound(&self.boot.config.workers);
        self.forget_failed_boots(Instant::now());
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
