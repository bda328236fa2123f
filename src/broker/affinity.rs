//! Which worker ran the last task of each session, and may have a warm connection for it: pure. A
//! guess that is lost costs nothing else.

use std::collections::BTreeMap;

use super::conversation::SessionHash;

/// Sessions that are remembered: those of this generation and of the one before it.
const SESSIONS_MAX: usize = 10_000;

/// Remembers about the last [`SESSIONS_MAX`] sessions.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    young: BTreeMap<SessionHash, u64>,
    old: BTreeMap<SessionHash, u64>,
}

impl Affinity {
    /// The worker, by its serial, that ran the session's last task.
    pub(crate) fn of(&self, session: SessionHash) -> Option<u64> {
        self.young.get(&session).or_else(|| self.old.get(&session)).copied()
    }

    /// A worker runs a task of the session.
    pub(crate) fn ran(&mut self, session: SessionHash, serial: u64) {
        self.young.insert(session, serial);
        if self.young.len() >= SESSIONS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64) -> SessionHash {
        SessionHash::new(number).unwrap()
    }

    #[test]
    fn the_last_worker_is_remembered() {
        let mut affinity = Affinity::default();
        assert_eq!(affinity.of(session(1)), None);
        affinity.ran(session(1), 7);
        affinity.ran(session(2), 8);
        affinity.ran(session(1), 9);
        assert_eq!((affinity.of(session(1)), affinity.of(session(2))), (Some(9), Some(8)));
    }

    #[test]
    fn sessions_that_are_used_stay_and_others_go() {
        let mut affinity = Affinity::default();
        for number in 2..50_000 {
            affinity.ran(session(1), 7);
            affinity.ran(session(number), 8);
            assert!(affinity.young.len() + affinity.old.len() <= SESSIONS_MAX);
        }
        assert_eq!(affinity.of(session(1)), Some(7));
        assert_eq!((affinity.of(session(2)), affinity.of(session(49_999))), (None, Some(8)));
    }
}
