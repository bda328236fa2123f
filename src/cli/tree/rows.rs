//! Which rows the steps of a run make, and which of them are shown: pure.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Step, Tree, base_name, tokens};
use super::words::error_of;
use crate::task::State;

/// Steps with one name side by side (the items of a list, the rounds of a table) that have a row
/// each. More of them share one.
pub(crate) const SIBLINGS_MAX: usize = 8;

/// One line of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Steps that it is within.
    pub(super) depth: usize,
    pub(super) mark: Mark,
    pub(super) name: String,
    pub(super) took_ms: Option<u64>,
    /// What else there is to say, shortest and most wanted first.
    pub(super) facts: Vec<String>,
    pub(super) error: Option<String>,
    /// When it changed last.
    moved: u64,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    AtWork,
    Failed,
    Waits,
    Succeeded,
    Cancelled,
}

type Children<'a> = BTreeMap<Option<&'a str>, Vec<(&'a str, &'a Step)>>;

/// A row for each step, those within another below it; at most `rows_max`, of which the last then
/// says how many are left out.
pub(super) fn rows(tree: &Tree, rows_max: usize, now_ms: u64) -> (Vec<Row>, usize) {
    let mut children = Children::new();
    for (path, step) in tree.steps() {
        children.entry(tree.parent_of(path)).or_default().push((path, step));
    }
    let mut rows = Vec::new();
    add_children(&mut children, None, 0, now_ms, &mut rows);
    choose(rows, rows_max)
}

fn add_children<'a>(
    children: &mut Children<'a>,
    parent: Option<&'a str>,
    depth: usize,
    now_ms: u64,
    rows: &mut Vec<Row>,
) {
    let mut steps = children.remove(&parent).unwrap_or_default();
    let name_of = |path: &'a str| match parent {
        Some(parent) => &path[parent.len() + 1..],
        None => path,
    };
    steps.sort_by_key(|(_, step)| step.place);
    let mut by_name: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    for (path, step) in &steps {
        by_name.entry(base_name(name_of(path))).or_default().push(step);
    }
    // Items stand in the order of their list, where the first of them began.
    steps.sort_by_key(|(path, step)| {
        let name = name_of(path);
        let first = by_name.get(base_name(name)).map_or(step.place, |alike| alike[0].place);
        (first, number_of(name), step.place)
    });
    let mut many = BTreeSet::new();
    for (path, step) in steps {
        let name = name_of(path);
        match by_name.get(base_name(name)) {
            Some(alike) if alike.len() > SIBLINGS_MAX => {
                if many.insert(base_name(name)) {
                    rows.push(row_of_many(base_name(name), alike, depth, now_ms));
                }
            }
            _ => {
                rows.push(row_of(name, step, depth, now_ms));
                add_children(children, Some(path), depth + 1, now_ms, rows);
            }
        }
    }
}

/// The number of an item or a round: 3 of `scene[3]`, 2 of `table#2`.
fn number_of(name: &str) -> Option<u64> {
    name[base_name(name).len()..].trim_matches(['[', ']', '#']).parse().ok()
}

fn row_of(name: &str, step: &Step, depth: usize, now_ms: u64) -> Row {
    let mut facts = Vec::new();
    match (step.tokens_per_s(now_ms), tokens(&step.view)) {
        (Some(per_s), _) => facts.push(format!("{per_s} tokens/s")),
        (None, tokens) if tokens > 0 && !step.is_at_work() => {
            facts.push(format!("{tokens} tokens"));
        }
        _ => {}
    }
    if step.view.attempt > 1 {
        facts.push(format!("attempt {}", step.view.attempt));
    }
    Row {
        depth,
        mark: mark_of(step),
        name: name.to_owned(),
        took_ms: step.took_ms(now_ms),
        facts,
        error: error_of(&step.view).map(str::to_owned),
        moved: step.moved,
    }
}

fn row_of_many(name: &str, steps: &[&Step], depth: usize, now_ms: u64) -> Row {
    let count = |mark| steps.iter().filter(|step| mark_of(step) == mark).count();
    let [at_work, failed, waits] = [Mark::AtWork, Mark::Failed, Mark::Waits].map(count);
    let ended = steps.len() - at_work - waits;
    let mut facts = Vec::new();
    if at_work > 0 {
        facts.push(format!("{at_work} running"));
    }
    if failed > 0 {
        facts.push(format!("{failed} failed"));
    }
    let per_s: u64 = steps.iter().filter_map(|step| step.tokens_per_s(now_ms)).sum();
    let tokens: u64 = steps.iter().map(|step| tokens(&step.view)).sum();
    if per_s > 0 {
        facts.push(format!("{per_s} tokens/s"));
    } else if tokens > 0 {
        facts.push(format!("{tokens} tokens"));
    }
    let mark = match (at_work, failed, waits) {
        (1.., ..) => Mark::AtWork,
        (0, 1.., _) => Mark::Failed,
        (0, 0, 1..) => Mark::Waits,
        _ => steps.iter().map(|step| mark_of(step)).min().unwrap_or(Mark::Waits),
    };
    Row {
        depth,
        mark,
        name: format!("{name} {ended}/{}", steps.len()),
        took_ms: None,
        facts,
        error: None,
        moved: steps.iter().map(|step| step.moved).max().unwrap_or(0),
    }
}

fn mark_of(step: &Step) -> Mark {
    match step.view.state {
        State::Succeeded => Mark::Succeeded,
        State::Failed => Mark::Failed,
        State::Cancelled => Mark::Cancelled,
        _ if step.is_at_work() => Mark::AtWork,
        _ => Mark::Waits,
    }
}

/// Leaves out what is least worth a line: first what has ended long ago, last what is at work.
/// Gives how many were left out, too; they take a line of their own.
fn choose(rows: Vec<Row>, rows_max: usize) -> (Vec<Row>, usize) {
    if rows.len() <= rows_max {
        return (rows, 0);
    }
    let shown = rows_max.saturating_sub(1);
    let mut ranks: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(at, row)| (row.mark != Mark::AtWork, std::cmp::Reverse(row.moved), at))
        .collect();
    ranks.sort_unstable();
    let chosen: BTreeSet<usize> = ranks.into_iter().take(shown).map(|(.., at)| at).collect();
    let hidden = rows.len() - chosen.len();
    let rows = rows.into_iter().enumerate().filter(|(at, _)| chosen.contains(at));
    (rows.map(|(_, row)| row).collect(), hidden)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::fake::step;
    use crate::task::StepView;

    fn tree(steps: &[(&str, State)]) -> Tree {
        let mut tree = Tree::default();
        for (path, state) in steps {
            tree.take(&step(path, *state), 0);
        }
        tree
    }

    fn names(tree: &Tree, rows_max: usize) -> Vec<(usize, String)> {
        rows(tree, rows_max, 0).0.into_iter().map(|row| (row.depth, row.name)).collect()
    }

    #[test]
    fn steps_stand_below_what_they_are_within_in_the_order_of_their_beginnings() {
        use State::*;
        let tree = tree(&[
            ("plan", Succeeded),
            ("table#1", Running),
            ("table#1/planner", Succeeded),
            ("check", Running),
            ("table#1/host", Running),
        ]);
        let expected =
            [(0, "plan"), (0, "table#1"), (1, "planner"), (1, "host"), (0, "check")].map(own);
        assert_eq!(names(&tree, 9), expected);
    }

    #[test]
    fn items_stand_in_the_order_of_their_list() {
        use State::*;
        let tree = tree(&[
            ("s[10]", Running),
            ("join", Running),
            ("s[9]", Succeeded),
            ("s[9]/x", Succeeded),
            ("s[0]", Succeeded),
        ]);
        let expected = [(0, "s[0]"), (0, "s[9]"), (1, "x"), (0, "s[10]"), (0, "join")].map(own);
        assert_eq!(names(&tree, 9), expected);
    }

    fn own((depth, name): (usize, &str)) -> (usize, String) {
        (depth, name.to_owned())
    }

    #[test]
    fn many_of_a_name_share_a_row() {
        let mut all = tree(&[("plan", State::Succeeded)]);
        for index in 0..40 {
            let state = match index {
                0 => State::Failed,
                1..12 => State::Succeeded,
                12..16 => State::Running,
                _ => State::Queued,
            };
            all.take(&step(&format!("scene[{index}]"), state), 0);
        }
        all.take(&step("scene[3]/within", State::Running), 0);
        all.take(&step("join", State::Queued), 0);
        let (rows, hidden) = rows(&all, 9, 0);
        assert_eq!((rows.len(), hidden), (3, 0));
        assert_eq!((rows[1].name.as_str(), rows[1].mark), ("scene 12/40", Mark::AtWork));
        assert_eq!(rows[1].facts, ["4 running", "1 failed", "144 tokens"]);
        assert_eq!((rows[2].name.as_str(), rows[2].mark), ("join", Mark::Waits));
    }

    #[test]
    fn eight_of_a_name_have_a_row_each() {
        let mut tree = Tree::default();
        for round in 1..=8 {
            tree.take(&step(&format!("table#{round}"), State::Succeeded), 0);
        }
        assert_eq!(names(&tree, 20).len(), 8);
        tree.take(&step("table#9", State::Succeeded), 0);
        assert_eq!(names(&tree, 20), [own((0, "table 9/9"))]);
    }

    #[test]
    fn a_row_says_what_a_step_took_and_why_it_failed() {
        let mut tree = tree(&[("a", State::Succeeded), ("b", State::Failed)]);
        let view = StepView { attempt: 2, ..step("c", State::Running) };
        tree.take(&view, 1_000);
        tree.take(&StepView { text_bytes: Some(400), ..view.clone() }, 2_000);
        tree.take(&StepView { text_bytes: Some(600), ..view }, 3_000);
        let rows = rows(&tree, 9, 3_000).0;
        assert_eq!((rows[0].took_ms, rows[0].mark), (Some(3_200), Mark::Succeeded));
        assert_eq!(rows[0].facts, ["12 tokens"]);
        assert_eq!((rows[1].mark, rows[1].error.as_deref()), (Mark::Failed, Some("it broke")));
        assert_eq!((rows[2].took_ms, rows[2].mark), (Some(2_000), Mark::AtWork));
        assert_eq!(rows[2].facts, ["50 tokens/s", "attempt 2"]);
    }

    #[test]
    fn where_there_is_no_room_the_running_and_the_latest_stay() {
        let mut tree = tree(&[("old", State::Running)]);
        for name in ["a", "b", "c", "d"] {
            tree.take(&step(name, State::Succeeded), 0);
        }
        let (rows, hidden) = rows(&tree, 3, 0);
        let shown: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!((shown, hidden), (vec!["old", "d"], 3));
    }

    proptest! {
        #[test]
        fn no_more_rows_than_there_is_room_for(
            steps in prop::collection::vec(("[ab](\\[[0-9]\\])?(/[cd](#[0-9])?){0,2}", 0usize..7), 0..80),
            rows_max in 1usize..20,
        ) {
            let mut tree = Tree::default();
            for (path, state) in steps {
                tree.take(&step(&path, State::ALL[state]), 0);
            }
            let (rows, hidden) = rows(&tree, rows_max, 0);
            prop_assert!(rows.len() + usize::from(hidden > 0) <= rows_max);
            prop_assert_eq!(rows.is_empty() && hidden == 0, tree.steps().count() == 0);
        }
    }
}
