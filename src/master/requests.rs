//! What clients ask of the master through the broker, answered once each.

use std::collections::VecDeque;

use super::supervise::Master;
use crate::protocol::lifeline::{Ask, Asker, ToBroker};

/// Requests that are remembered once they are done, so that a client which has to ask again, since
/// the broker died or was replaced before it could answer, is told what was done.
const DONE_MAX: usize = 64;

/// The requests that were done, oldest first, each with its answer.
#[derive(Default)]
pub(super) struct Done(VecDeque<(u128, u32)>);

impl Done {
    pub(super) fn from(done: Vec<(u128, u32)>) -> Self {
        Self(done.into())
    }

    pub(super) fn to_vec(&self) -> Vec<(u128, u32)> {
        self.0.iter().copied().collect()
    }

    fn answer(&self, request: u128) -> Option<u32> {
        self.0.iter().find(|(done, _)| *done == request).map(|(_, answer)| *answer)
    }

    fn remember(&mut self, request: u128, answer: u32) {
        if self.0.len() == DONE_MAX {
            self.0.pop_front();
        }
        self.0.push_back((request, answer));
    }
}

/// Those who wait for one check, and whether a signal asked, too.
#[derive(Default)]
pub(super) struct Askers {
    pub(super) clients: Vec<Asker>,
    pub(super) signal: bool,
}

impl Askers {
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty() && !self.signal
    }

    /// Adds a client, or `None` for a signal.
    pub(super) fn add(&mut self, asker: Option<Asker>) {
        match asker {
            Some(asker) => self.clients.push(asker),
            None => self.signal = true,
        }
    }

    /// Whether this request is here already; its client is where it asked last.
    pub(super) fn meets_again(&mut self, asker: Asker) -> bool {
        let known = self.clients.iter_mut().find(|known| known.request == asker.request);
        known.map(|known| *known = asker).is_some()
    }
}

impl Master {
    pub(super) fn asked(&mut self, asker: Asker, ask: Ask) {
        if let Some(answer) = self.done.answer(asker.request) {
            return self.answer_one(asker, Ok(answer));
        }
        if self.phase.is_stopping() {
            return self.answer_one(asker, Err("the daemon is stopping".to_owned()));
        }
        match ask {
            Ask::Reload => self.reload.ask(asker),
            Ask::Upgrade => self.upgrade.ask(asker),
            Ask::Resize(resize) => {
                self.operator_resizes(resize);
                self.answer_one(asker, Ok(self.sizing.want));
            }
        }
    }

    /// Answers everybody who waited for the same thing.
    pub(super) fn answer(&mut self, askers: &Askers, result: &Result<u32, String>) {
        for asker in &askers.clients {
            self.answer_one(*asker, result.clone());
        }
    }

    fn answer_one(&mut self, asker: Asker, result: Result<u32, String>) {
        if let Ok(answer) = result
            && self.done.answer(asker.request).is_none()
        {
            self.done.remember(asker.request, answer);
        }
        self.tell_broker(&ToBroker::Answer { asker: asker.number, result });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_remembered_for_a_while() {
        let mut done = Done::default();
        for request in 0..100 {
            done.remember(request, request as u32);
        }
        assert_eq!((done.answer(99), done.answer(36), done.answer(35)), (Some(99), Some(36), None));
        assert_eq!(Done::from(done.to_vec()).answer(99), Some(99));
    }

    #[test]
    fn who_asks_again_is_answered_where_it_is_now() {
        let mut askers = Askers::default();
        askers.add(Some(Asker { number: 1, request: 7 }));
        assert!(askers.meets_again(Asker { number: 2, request: 7 }));
        assert!(!askers.meets_again(Asker { number: 2, request: 8 }));
        assert_eq!(askers.clients, [Asker { number: 2, request: 7 }]);
        askers.add(None);
        assert!(askers.signal && !askers.is_empty());
    }
}
