//! What is said of a step, in words: pure.

use super::model::{Move, Totals, tokens};
use crate::cli::out::span;
use crate::task::{State, StepView, TaskView};

/// The line for a step that has moved, where there is no terminal to draw on.
pub(super) fn of_move(moved: Move, view: &StepView) -> String {
    let (step, attempt) = (&view.step, view.attempt);
    match moved {
        Move::Began if attempt > 1 => format!("{step}: attempt {attempt} began"),
        Move::Began => format!("{step}: began"),
        Move::Waits => format!("{step}: attempt {attempt} did not succeed{}", why(view)),
        Move::Ended => {
            let took = view.run_ms.map(|ms| format!(" after {}", span(ms))).unwrap_or_default();
            let used = match tokens(view) {
                0 => String::new(),
                tokens => format!(", {tokens} tokens"),
            };
            format!("{step}: {}{took}{used}{}", view.state, why(view))
        }
    }
}

/// The line for the whole of a run that has ended.
pub(super) fn of_run(task: &TaskView, took_ms: u64, totals: Totals) -> String {
    let Totals { steps, tokens, cost } = totals;
    let steps = if steps == 1 { "1 step".to_owned() } else { format!("{steps} steps") };
    let cost = cost.map(|cost| format!(", cost {}", money(cost))).unwrap_or_default();
    format!("{} after {}: {steps}, {tokens} tokens{cost}", task.state, span(took_ms))
}

/// An amount to a ten-thousandth: a step may cost less than a cent.
pub(crate) fn money(cost: f64) -> String {
    format!("{cost:.4}")
}

/// The first line of what went wrong, if something did.
pub(super) fn error_of(view: &StepView) -> Option<&str> {
    let error = view.error.as_ref().filter(|_| view.state != State::Succeeded);
    error.and_then(|error| error.message.lines().next())
}

fn why(view: &StepView) -> String {
    error_of(view).map(|error| format!(": {error}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::{step, task};
    use crate::task::TaskId;

    #[test]
    fn a_line_says_what_became_of_a_step() {
        let again = StepView { attempt: 2, ..step("plot", State::Running) };
        let unmeasured = StepView { run_ms: None, usage: None, ..step("plot", State::Cancelled) };
        for (moved, view, expected) in [
            (Move::Began, step("plot", State::Running), "plot: began"),
            (Move::Began, again, "plot: attempt 2 began"),
            (Move::Ended, step("plot", State::Succeeded), "plot: succeeded after 3.2s, 12 tokens"),
            (
                Move::Ended,
                step("scene[3]", State::Failed),
                "scene[3]: failed after 3.2s, 12 tokens: it broke",
            ),
            (Move::Ended, unmeasured, "plot: cancelled"),
        ] {
            assert_eq!(of_move(moved, &view), expected);
        }
        let mut waits = step("plot", State::Failed);
        waits.state = State::Scheduled;
        waits.error.as_mut().unwrap().message = "no JSON\nat all".to_owned();
        assert_eq!(of_move(Move::Waits, &waits), "plot: attempt 1 did not succeed: no JSON");
    }

    #[test]
    fn a_line_says_what_a_run_took() {
        let run = task(TaskId::new(), State::Succeeded, None);
        let totals = Totals { steps: 1, tokens: 0, cost: None };
        assert_eq!(of_run(&run, 850, totals), "succeeded after 850ms: 1 step, 0 tokens");
        let totals = Totals { steps: 7, tokens: 5_812, cost: Some(0.01234) };
        let expected = "succeeded after 12.3s: 7 steps, 5812 tokens, cost 0.0123";
        assert_eq!(of_run(&run, 12_345, totals), expected);
    }
}
