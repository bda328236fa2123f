//! A run's steps as a table: `forq status`, and the end of `forq run`.

use comfy_table::{Cell, CellAlignment};

use super::out::{span, state_cell};
use super::status::why;
use super::tree::money;
use crate::task::StepView;

pub(crate) const HEADER: [&str; 8] =
    ["STEP", "STATE", "ATTEMPT", "WAITED", "RAN", "TOKENS", "COST", "WHY"];

/// A row a step; the one that ran longest is marked if there are several.
pub(crate) fn rows(steps: &[StepView]) -> impl Iterator<Item = Vec<Cell>> {
    let longest = steps.iter().filter_map(|step| step.run_ms).max().filter(|_| steps.len() > 1);
    steps.iter().map(move |step| row(step, longest))
}

fn row(step: &StepView, longest: Option<u64>) -> Vec<Cell> {
    let ran = step.run_ms.map(|ms| {
        let mark = if longest == Some(ms) { "longest: " } else { "" };
        format!("{mark}{}", span(ms))
    });
    let figure = |shown: Option<String>| {
        Cell::new(shown.unwrap_or_default()).set_alignment(CellAlignment::Right)
    };
    vec![
        Cell::new(&step.step),
        state_cell(step.state, step.state.to_string()),
        figure(Some(step.attempt.to_string())),
        figure(step.wait_ms.map(span)),
        figure(ran),
        figure(step.usage.map(|usage| usage.total_tokens.to_string())),
        figure(step.cost.map(money)),
        Cell::new(step.error.as_ref().map(why).unwrap_or_default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::step;
    use crate::cli::out::Out;
    use crate::task::State;

    #[test]
    fn a_table_tells_of_each_step() {
        let mut steps = ["plan", "scene[0]", "scene[1]"].map(|path| step(path, State::Succeeded));
        steps[0].wait_ms = Some(20);
        steps[1].run_ms = Some(4_000);
        steps[1].cost = Some(0.5);
        steps[2] = step("scene[1]", State::Failed);
        let (mut data, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data, &mut notes, false);
        out.table(&HEADER, rows(&steps)).unwrap();
        drop(out);
        let table = String::from_utf8(data).unwrap();
        let words: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], HEADER);
        assert_eq!(words[1], ["plan", "succeeded", "1", "20ms", "3.2s", "12"]);
        assert_eq!(words[2], ["scene[0]", "succeeded", "1", "longest:", "4.0s", "12", "0.5000"]);
        assert_eq!(words[3][..4], ["scene[1]", "failed", "1", "3.2s"]);
        assert!(table.ends_with("handler: it broke\n"), "{table}");
    }
}
