//! Which step waits for which: cycles, what each may name, who comes after.

use std::collections::BTreeSet;

use super::definition::{OnFailure, Step};
use super::problem::Problem;
use super::set::StepSet;

/// Ties the steps to each other: who rescues whom, who waits for whom, what templates may name.
pub(super) fn tie(steps: &mut [Step], problems: &mut Vec<Problem>) {
    let rescues: Vec<(usize, usize)> = steps
        .iter()
        .enumerate()
        .filter_map(|(of, step)| match step.on_failure {
            OnFailure::Step(by) => Some((of, by)),
            _ => None,
        })
        .collect();
    for (of, by) in rescues {
        let name = steps.get(of).map(|step| step.name.clone()).unwrap_or_default();
        let Some(step) = steps.get_mut(by) else { continue };
        if step.rescues.is_some() {
            let why = format!("{} stands in for another step already", step.name);
            problems.push(Problem::new(format!("steps.{name}.on_failure.step"), why));
            continue;
        }
        step.rescues = Some(of);
        // It waits for that step to have failed, which is before it is done with.
        step.needs.retain(|need| *need != of);
    }
    let needs: Vec<Vec<usize>> = steps.iter().map(|step| step.needs.clone()).collect();
    for (i, needs) in needs.iter().enumerate() {
        for need in needs {
            if let Some(step) = steps.get_mut(*need) {
                step.needed_by.push(i);
            }
        }
    }
    let before: Vec<Vec<usize>> = (0..steps.len()).map(|i| before(steps, i)).collect();
    for (i, step) in steps.iter_mut().enumerate() {
        step.sees = reach(&before, i);
    }
    if let Some(cycle) = cycle(&before) {
        let name = |i: &usize| steps.get(*i).map(|step| step.name.as_str()).unwrap_or_default();
        let names: Vec<&str> = cycle.iter().map(name).collect();
        let first = names.first().copied().unwrap_or_default();
        let why = format!("is a cycle: {}", names.join(" -> "));
        problems.push(Problem::new(format!("steps.{first}.needs"), why));
    }
}

/// The steps that one waits for. Who needs a step needs whoever stands in for it; who stands in for
/// it needs what it needs.
fn before(steps: &[Step], i: usize) -> Vec<usize> {
    let mut before = Vec::new();
    let Some(step) = steps.get(i) else { return before };
    before.extend(step.needs.iter().copied());
    if let Some(of) = step.rescues.and_then(|of| steps.get(of).map(|step| (of, step))) {
        before.extend(of.1.needs.iter().copied());
    }
    let mut at = 0;
    while let Some(need) = before.get(at).and_then(|need| steps.get(*need)) {
        if let OnFailure::Step(by) = need.on_failure
            && !before.contains(&by)
        {
            before.push(by);
        }
        at += 1;
    }
    // Of the step that it stands in for it waits for the failure alone, not for the rescue.
    before.extend(step.rescues);
    before
}

/// All that can be reached.
fn reach(next: &[Vec<usize>], from: usize) -> StepSet {
    let mut seen = StepSet::default();
    let mut open = vec![from];
    while let Some(i) = open.pop() {
        for step in next.get(i).into_iter().flatten() {
            if seen.insert(*step) {
                open.push(*step);
            }
        }
    }
    seen
}

/// The first cycle, its first step at both ends.
fn cycle(before: &[Vec<usize>]) -> Option<Vec<usize>> {
    // Who comes after whom reads better than who waits for whom, hence the turn at the end.
    let mut done = StepSet::default();
    for start in 0..before.len() {
        let mut path = vec![(start, 0)];
        let mut on_path = StepSet::default();
        on_path.insert(start);
        while let Some((i, at)) = path.last_mut() {
            let next = before.get(*i).and_then(|needs| needs.get(*at)).copied();
            *at += 1;
            match next {
                Some(next) if on_path.contains(next) => {
                    let first = path.iter().position(|(step, _)| *step == next)?;
                    let mut cycle: Vec<usize> =
                        path.iter().skip(first).map(|(step, _)| *step).collect();
                    cycle.push(next);
                    cycle.reverse();
                    return Some(cycle);
                }
                Some(next) if !done.contains(next) => {
                    on_path.insert(next);
                    path.push((next, 0));
                }
                Some(_) => {}
                None => {
                    let (i, _) = path.pop()?;
                    on_path.remove(i);
                    done.insert(i);
                }
            }
        }
    }
    None
}

/// The last step in the file that nobody needs, of those that `counts`. Who stands in for another
/// is none: its result is the other's.
pub(super) fn last_leaf(steps: &[Step], counts: impl Fn(usize) -> bool) -> Option<usize> {
    let leaf = |step: &Step| step.needed_by.is_empty() && step.rescues.is_none();
    (0..steps.len()).rev().find(|i| steps.get(*i).is_some_and(leaf) && counts(*i))
}

/// A step and all whose results depend on its.
pub(super) fn downstream(steps: &[Step], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(step) = open.pop().and_then(|i| steps.get(i)) {
        let mut after = step.needed_by.clone();
        if let OnFailure::Step(by) = step.on_failure {
            after.push(by);
        }
        // Its result is that of the step it stands in for, which need not run again.
        let rescued = step.rescues.and_then(|of| steps.get(of));
        after.extend(rescued.into_iter().flat_map(|step| step.needed_by.iter().copied()));
        open.extend(after.into_iter().filter(|i| found.insert(*i)));
    }
    found
}
