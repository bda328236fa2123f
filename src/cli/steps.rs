//! A run's steps as a table: `forq status`, and the end of `forq run`.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment};

use super::out::{span, state_cell};
use super::status::why;
use super::tree::{SIBLINGS_MAX, base_name, money};
use crate::task::{State, StepView, Usage};

pub(crate) const HEADER: [&str; 8] =
    ["STEP", "STATE", "ATTEMPT", "WAITED", "RAN", "TOKENS", "COST", "WHY"];

/// A row a step; the one that ran longest is marked if there are several.
pub(crate) fn rows(steps: &[StepView]) -> impl Iterator<Item = Vec<Cell>> {
    let longest = steps.iter().filter_map(|step| step.run_ms).max().filter(|_| steps.len() > 1);
    steps.iter().map(move |step| row(step, longest))
}

/// The same steps with those that the tree would draw in one line as one: all that they used, the
/// longest that one of them waited and ran, and the worst that became of one.
pub(crate) fn together(steps: &[StepView]) -> Vec<StepView> {
    let mut many: BTreeMap<&str, usize> = BTreeMap::new();
    for step in steps {
        *many.entry(base_name(&step.step)).or_default() += 1;
    }
    let mut rows: Vec<StepView> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for step in steps {
        let name = base_name(&step.step);
        match (many.get(name), places.get(name)) {
            (Some(count), None) if *count > SIBLINGS_MAX => {
                places.insert(name, rows.len());
                rows.push(StepView { step: format!("{name} ({count})"), ..step.clone() });
            }
            (_, Some(place)) => add(&mut rows[*place], step),
            _ => rows.push(step.clone()),
        }
    }
    rows
}

fn add(all: &mut StepView, one: &StepView) {
    let badness = |state| match state {
        State::Failed => 3,
        State::Cancelled => 2,
        State::Succeeded => 0,
        _ => 1,
    };
    if badness(one.state) > badness(all.state) {
        (all.state, all.error) = (one.state, one.error.clone());
    }
    all.attempt = all.attempt.max(one.attempt);
    all.wait_ms = all.wait_ms.max(one.wait_ms);
    all.run_ms = all.run_ms.max(one.run_ms);
    all.usage = sum(all.usage, one.usage, |a, b| Usage {
        prompt_tokens: a.prompt_tokens + b.prompt_tokens,
        completion_tokens: a.completion_tokens + b.completion_tokens,
        total_tokens: a.total_tokens + b.total_tokens,
    });
    all.cost = sum(all.cost, one.cost, |a, b| a + b);
}

fn sum<T>(a: Option<T>, b: Option<T>, add: impl Fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(add(a, b)),
        (a, b) => a.or(b),
    }
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

    #[test]
    fn many_of_a_name_are_one_row() {
        let mut steps = vec![step("plan", State::Succeeded)];
        steps.extend((0..=SIBLINGS_MAX).map(|index| {
            let state = if index == 4 { State::Failed } else { State::Succeeded };
            StepView { cost: Some(0.5), ..step(&format!("scene[{index}]"), state) }
        }));
        steps.push(step("join", State::Succeeded));
        let rows = together(&steps);
        let names: Vec<_> = rows.iter().map(|row| row.step.as_str()).collect();
        assert_eq!(names, ["plan", "scene (9)", "join"]);
        assert_eq!(rows[1].state, State::Failed);
        assert_eq!(rows[1].error.as_ref().map(|error| error.message.as_str()), Some("it broke"));
        assert_eq!(
            (rows[1].usage.map(|usage| usage.total_tokens), rows[1].cost),
            (Some(108), Some(4.5))
        );
        let few = &steps[..=SIBLINGS_MAX];
        assert_eq!(together(few), few);
    }

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
