//! The steps of a run as far as they were told: events in, how each stands out. No I/O, no clock
//! of its own.

use std::collections::BTreeMap;

use super::pace::Pace;
use crate::cli::workflow;
use crate::task::{State, StepView};

/// The steps of a run, and of the runs within it.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// By path: `table#1/host`.
    steps: BTreeMap<String, Step>,
    moves: u64,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Step {
    /// As it was told last.
    pub(super) view: StepView,
    /// Its place among all, in the order in which they were first told.
    pub(super) place: u64,
    /// The same in the order in which their states last changed.
    pub(super) moved: u64,
    is_at_work: bool,
    /// When its first attempt began, on the caller's clock.
    began_ms: u64,
    pace: Pace,
}

/// What an event meant for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// It is at work now.
    Began,
    /// Its attempt did not succeed, and there is another.
    Waits,
    /// It has ended.
    Ended,
}

/// What a run took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) steps: u64,
    pub(super) tokens: u64,
    pub(super) cost: Option<f64>,
}

impl Tree {
    /// Takes in how a step stands at `now_ms`.
    pub(super) fn take(&mut self, view: &StepView, now_ms: u64) -> Option<Move> {
        let place = self.steps.len() as u64;
        let known = self.steps.contains_key(&view.step);
        let step = self.steps.entry(view.step.clone()).or_insert_with(|| Step {
            view: view.clone(),
            place,
            moved: 0,
            is_at_work: false,
            began_ms: now_ms,
            pace: Pace::default(),
        });
        if !known || step.view.state != view.state {
            self.moves += 1;
            step.moved = self.moves;
        }
        step.take(view, known, now_ms)
    }

    /// Every step with its path, sorted by it.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&str, &Step)> {
        self.steps.iter().map(|(path, step)| (path.as_str(), step))
    }

    /// The closest step that this one is within.
    pub(super) fn parent_of(&self, path: &str) -> Option<&str> {
        let ends = path.rmatch_indices('/').map(|(end, _)| end);
        let mut known = ends.filter_map(|end| self.steps.get_key_value(&path[..end]));
        known.next().map(|(parent, _)| parent.as_str())
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        // What a workflow within took is what its steps took.
        let leaves = self.steps.values().filter(|step| step.view.kind != workflow::KIND);
        for Step { view, .. } in leaves {
            totals.steps += 1;
            totals.tokens += tokens(view);
            if let Some(cost) = view.cost {
                *totals.cost.get_or_insert(0.0) += cost;
            }
        }
        totals
    }
}

impl Step {
    fn take(&mut self, view: &StepView, known: bool, now_ms: u64) -> Option<Move> {
        let (state, attempt) = (known.then_some(self.view.state), self.view.attempt);
        let was_at_work = std::mem::replace(&mut self.is_at_work, false);
        self.is_at_work = is_at_work(view, was_at_work);
        // The attempts of a workflow within are not what people mean by the word.
        let is_again = attempt < view.attempt && view.kind != workflow::KIND;
        let begins = self.is_at_work && (!was_at_work || is_again);
        if begins {
            let is_first = view.attempt <= 1 || !known || state.is_some_and(State::is_final);
            if is_first {
                self.began_ms = now_ms.saturating_sub(view.run_ms.unwrap_or(0));
            }
            self.pace = Pace::default();
        }
        if self.is_at_work {
            self.pace.take(now_ms, view.text_bytes.unwrap_or(0));
        }
        self.view = view.clone();
        match view.state {
            ended if ended.is_final() => {
                (!state.is_some_and(State::is_final)).then_some(Move::Ended)
            }
            State::Scheduled if view.attempt > 0 => {
                (state != Some(State::Scheduled)).then_some(Move::Waits)
            }
            _ => begins.then_some(Move::Began),
        }
    }

    /// Whether it is in a worker, or a workflow whose steps are on their way.
    pub(super) fn is_at_work(&self) -> bool {
        self.is_at_work
    }

    /// How long it took, or has taken so far, in milliseconds, from its first attempt on.
    pub(super) fn took_ms(&self, now_ms: u64) -> Option<u64> {
        if self.is_at_work { Some(now_ms.saturating_sub(self.began_ms)) } else { self.view.run_ms }
    }

    /// About how many tokens a second come, while it is at work.
    pub(super) fn tokens_per_s(&self, now_ms: u64) -> Option<u64> {
        if self.is_at_work { self.pace.tokens_per_s(now_ms) } else { None }
    }
}

/// All that a step used, in and out.
pub(super) fn tokens(view: &StepView) -> u64 {
    view.usage.map_or(0, |usage| usage.total_tokens)
}

fn is_at_work(view: &StepView, was: bool) -> bool {
    match view.state {
        State::Running => true,
        // Between its steps a workflow is blocked, and then queued for a moment.
        State::Blocked => view.kind == workflow::KIND && (was || view.attempt > 0),
        State::Queued => view.kind == workflow::KIND && was,
        _ => false,
    }
}

/// The name of a step in the workflow file: `scene` of `scene[3]`, `table` of `table#2`.
pub(crate) fn base_name(name: &str) -> &str {
    name.split(['[', '#']).next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::step;

    #[test]
    fn a_step_begins_and_ends_once_however_often_it_is_told() {
        let mut tree = Tree::default();
        let mut took = |state, now_ms| tree.take(&step("plot", state), now_ms);
        assert_eq!(took(State::Queued, 0), None);
        assert_eq!(took(State::Running, 10), Some(Move::Began));
        assert_eq!(took(State::Running, 20), None);
        assert_eq!(took(State::Scheduled, 30), Some(Move::Waits));
        assert_eq!(took(State::Queued, 40), None);
        assert_eq!(took(State::Running, 50), Some(Move::Began));
        assert_eq!(took(State::Succeeded, 60), Some(Move::Ended));
        assert_eq!(took(State::Succeeded, 70), None);
        // It is retried by hand.
        assert_eq!(took(State::Queued, 80), None);
        assert_eq!(took(State::Cancelled, 90), Some(Move::Ended));
        assert_eq!(tree.take(&step("brief", State::Failed), 0), Some(Move::Ended));
    }

    #[test]
    fn a_new_attempt_begins_anew_even_if_nothing_was_told_between() {
        let mut tree = Tree::default();
        let mut view = step("plot", State::Running);
        assert_eq!(tree.take(&view, 0), Some(Move::Began));
        view.attempt = 2;
        assert_eq!(tree.take(&view, 5_000), Some(Move::Began));
        assert_eq!(tree.steps["plot"].took_ms(6_000), Some(6_000), "all attempts count");
    }

    #[test]
    fn a_workflow_within_is_at_work_until_it_ends() {
        let mut tree = Tree::default();
        let mut view = StepView { kind: "workflow".to_owned(), ..step("table#1", State::Blocked) };
        view.attempt = 0;
        assert_eq!(tree.take(&view, 0), None, "it waits for its lane");
        view.attempt = 1;
        view.state = State::Running;
        assert_eq!(tree.take(&view, 1_000), Some(Move::Began));
        for (state, attempt) in [(State::Blocked, 1), (State::Queued, 0), (State::Running, 1)] {
            (view.state, view.attempt) = (state, attempt);
            assert_eq!(tree.take(&view, 2_000), None, "{state}");
        }
        assert_eq!(tree.steps["table#1"].took_ms(3_000), Some(2_000));
        (view.state, view.run_ms) = (State::Succeeded, Some(2_345));
        assert_eq!(tree.take(&view, 4_000), Some(Move::Ended));
        assert_eq!(tree.steps["table#1"].took_ms(9_000), Some(2_345));
    }

    #[test]
    fn totals_count_what_a_workflow_within_took_once() {
        let mut tree = Tree::default();
        let mut view = step("a", State::Succeeded);
        view.cost = Some(0.25);
        let tokens = tokens(&view);
        for (path, kind) in [("a", "chat"), ("t#1", "workflow"), ("t#1/x", "chat")] {
            (view.step, view.kind) = (path.to_owned(), kind.to_owned());
            tree.take(&view, 0);
        }
        assert_eq!(tree.totals(), Totals { steps: 2, tokens: 2 * tokens, cost: Some(0.5) });
    }

    #[test]
    fn a_step_whose_parent_was_not_told_hangs_on_the_next_above() {
        let mut tree = Tree::default();
        tree.take(&step("a", State::Running), 0);
        assert_eq!(tree.parent_of("a/b/c"), Some("a"));
        assert_eq!(tree.parent_of("x/y"), None);
        assert_eq!(
            (base_name("scene[3]"), base_name("table#2"), base_name("x")),
            ("scene", "table", "x")
        );
    }
}
