//! What clients ask of the master, and what a reload changes here.

use uuid::Uuid;

use super::clients::ReplyTo;
use super::{Core, now_ms, start};
use crate::config;
use crate::protocol::control::{Refusal, RefusalKind, Reply};
use crate::protocol::lifeline::{Ask, Asker, FromBroker};
use crate::worker::kinds;

impl Core {
    /// Passes on what only the master can do.
    pub(super) fn ask_master(&mut self, to: ReplyTo, request: Uuid, ask: Ask) {
        self.asked.retain(|_, to| !to.is_closed());
        // Never one that was used before, also by an earlier broker: its answer may yet come.
        self.last_asker = (self.last_asker + 1).max(now_ms().unsigned_abs() << 20);
        let number = self.last_asker;
        self.asked.insert(number, to);
        let asker = Asker { number, request: request.as_u128() };
        self.to_master.send(&FromBroker::Asked { asker, ask });
    }

    /// The master has an answer.
    pub(super) fn master_answered(&mut self, asker: u64, result: Result<u32, String>) {
        let Some(to) = self.asked.remove(&asker) else { return };
        match result {
            Ok(count) => to.send(&Reply::Done { count: count.into() }),
            Err(sentence) if self.phase.refusal().is_some() => {
                to.refuse(Refusal::new(RefusalKind::Unavailable, sentence));
            }
            Err(sentence) => to.refuse(Refusal::new(RefusalKind::Invalid, sentence)),
        }
    }

    /// A piece of a new configuration file; with the last one it takes effect.
    pub(super) fn new_config(&mut self, piece: &[u8], last: bool) {
        self.new_config.extend_from_slice(piece);
        if last {
            let text = std::mem::take(&mut self.new_config);
            self.reconfigure(String::from_utf8_lossy(&text).into_owned());
        }
    }

    /// Limits take effect at once, on what is queued, too. A child of the master has found the
    /// file good, and so this can only fail if something else has changed since.
    fn reconfigure(&mut self, text: String) {
        let mut sources = self.sources.clone();
        match &mut sources.file {
            Some((_, before)) => *before = text,
            None => sources.file = (!text.is_empty()).then(|| (Default::default(), text)),
        }
        let made = config::load(&sources).map_err(|errors| errors.to_string()).and_then(|loaded| {
            kinds::check_templates(&loaded.config)?;
            Ok((kinds::with_built_in(&self.users, &loaded.config, false)?, loaded))
        });
        match made {
            Ok((registry, loaded)) => {
                self.registry = registry;
                self.queues.reconfigure(start::settings_of(&loaded.config));
                self.permits.configure(&loaded.config);
                self.answers.resize(loaded.config.cache.bytes_max);
                self.input_bytes_max.set(loaded.config.queue.input_bytes_max);
                crate::master::set_log_level(&loaded.config.log);
                self.config = loaded.config;
                self.reschedule();
                self.sources = sources;
                self.heed_budgets();
            }
            Err(error) => tracing::error!("the new configuration is not in force here: {error}"),
        }
    }
}
