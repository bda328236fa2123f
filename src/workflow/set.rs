//! A set of steps by their numbers.

use super::limits::STEPS_MAX;

const WORDS: usize = STEPS_MAX / 64;

/// Steps of one workflow: cheap to copy along with every template that is rendered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepSet([u64; WORDS]);

impl StepSet {
    pub(super) fn all() -> Self {
        Self([u64::MAX; WORDS])
    }

    /// Adds a step; whether it is new.
    pub(super) fn insert(&mut self, step: usize) -> bool {
        let new = !self.contains(step);
        if let Some(word) = self.0.get_mut(step / 64) {
            *word |= 1 << (step % 64);
        }
        new
    }

    pub(super) fn remove(&mut self, step: usize) {
        if let Some(word) = self.0.get_mut(step / 64) {
            *word &= !(1 << (step % 64));
        }
    }

    pub(super) fn contains(&self, step: usize) -> bool {
        self.0.get(step / 64).is_some_and(|word| word & (1 << (step % 64)) != 0)
    }
}
