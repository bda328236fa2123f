//! Random graphs with random histories: what a run is told decides what comes next, however and
//! whenever it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Advance, Ended, Progress, Workflow, step_of};
use super::raw;

#[derive(Clone, Debug)]
struct StepPlan {
    needs: u16,
    form: u8,
    when: u8,
    on_failure: u8,
    width: u8,
}

fn step_plan() -> impl Strategy<Value = StepPlan> {
    (any::<u16>(), 0..8_u8, 0..8_u8, 0..4_u8, 0..5_u8).prop_map(
        |(needs, form, when, on_failure, width)| StepPlan { needs, form, when, on_failure, width },
    )
}

fn definition(plans: &[StepPlan]) -> Value {
    let mut steps = serde_json::Map::new();
    for (i, plan) in plans.iter().enumerate() {
        // Of what stands before, at most three: so there is no cycle.
        let needs: Vec<String> = (0..i)
            .filter(|j| plan.needs >> j & 1 == 1)
            .take(3)
            .map(|j| format!("s{j:02}"))
            .collect();
        let seen: String = needs
            .iter()
            .map(|need| {
                format!("{{{{ steps.{need}.state }}}}{{{{ steps.{need}.text | default('-') }}}}")
            })
            .collect();
        let width = plan.width;
        let mut step = json!({ "needs": needs, "prompt": seen });
        match plan.form {
            1 | 2 => {
                step["for_each"] = json!(format!("range({width})"));
                step["prompt"] = json!(format!("{seen} {{{{ item }}}}"));
                if plan.form == 2 {
                    step["concurrency"] = json!(2);
                }
            }
            3 => {
                let until = format!("steps.s{i:02}.text == '{width}'");
                step["repeat"] = json!({ "max": width + 1, "until": until });
                step["prompt"] = json!("{{ round }}{% for r in rounds %}{{ r.text }}{% endfor %}");
            }
            form @ (4 | 5) => {
                let tasks: Vec<_> = (0..width).map(|t| json!({"action": "x", "t": t})).collect();
                let done = "{% for d in done %}{{ d.text }}{% endfor %}";
                let (order, done) = if form == 4 { ("sequence", done) } else { ("parallel", "") };
                let action = json!({"prompt": format!("{{{{ task.t }}}}{done}{seen}")});
                step = json!({ "needs": needs, "plan": json!(tasks).to_string(), "order": order,
                    "actions": { "x": action } });
            }
            _ => {}
        }
        match (plan.when, needs.first()) {
            (0, _) => step["when"] = json!("false"),
            (1, Some(need)) => step["when"] = json!(format!("steps.{need}.state == 'succeeded'")),
            _ => {}
        }
        match plan.on_failure {
            0 => {}
            1 | 2 => step["on_failure"] = json!({"output": format!("instead of s{i:02}")}),
            _ => {
                step["on_failure"] = json!({"step": format!("r{i:02}")});
                let prompt = format!("{{{{ steps.s{i:02}.error }}}}{seen}");
                let rescue = json!({ "prompt": prompt, "on_failure": {"output": "neither"} });
                steps.insert(format!("r{i:02}"), rescue);
            }
        }
        steps.insert(format!("s{i:02}"), step);
    }
    json!({"name": "random", "steps": steps})
}

/// What somebody remembers of a run.
#[derive(Default)]
struct History {
    began: Vec<String>,
    ended: BTreeMap<String, Result<Value, String>>,
}

impl History {
    fn open(&self) -> Vec<&String> {
        self.began.iter().filter(|key| !self.ended.contains_key(*key)).collect()
    }

    /// Tells all of it to another, in some order.
    fn retold(&self, workflow: &Arc<Workflow>, mut luck: impl FnMut(usize) -> usize) -> Progress {
        let mut progress = Progress::new(Arc::clone(workflow), serde_json::Map::new());
        let mut keys = self.began.clone();
        while !keys.is_empty() {
            let key = keys.swap_remove(luck(keys.len()));
            if luck(2) == 0 {
                progress.began(&key);
            }
            if let Some(end) = self.ended.get(&key) {
                progress.ended(&key, told(end));
            }
            progress.began(&key);
        }
        progress
    }
}

fn told(end: &Result<Value, String>) -> Ended {
    match end {
        Ok(output) => Ended::Succeeded(raw(output)),
        Err(why) => Ended::Failed(why.clone()),
    }
}

/// That nothing begins twice, or while something of what its step needs is under way or to come.
fn check_order(plan: &Value, history: &History, key: &str) {
    assert!(!history.began.iter().any(|began| began == key), "{key} began twice");
    let needs = |step: &str| -> BTreeSet<String> {
        let needs = plan["steps"][step]["needs"].as_array();
        needs.into_iter().flatten().filter_map(|need| Some(need.as_str()?.to_owned())).collect()
    };
    let step = step_of(key);
    let open: BTreeSet<&str> = history.open().into_iter().map(|key| step_of(key)).collect();
    assert!(needs(step).iter().all(|need| !open.contains(need.as_str())), "{key} is early");
    let waits = |began: &String| needs(step_of(began)).contains(step);
    assert!(!history.began.iter().any(waits), "{key} is late");
}

fn live(plans: &[StepPlan], choices: &[u16]) {
    let plan = definition(plans);
    let workflow = Workflow::read(&raw(&plan));
    let workflow = Arc::new(workflow.unwrap_or_else(|problems| panic!("{plan}: {problems:?}")));
    let mut at = 0;
    let mut luck = |below: usize| {
        at += 1;
        usize::from(
            choices[at % choices.len()].rotate_left(u32::try_from(at / choices.len()).unwrap()),
        ) % below
    };
    let mut progress = Progress::new(Arc::clone(&workflow), serde_json::Map::new());
    let mut history = History::default();
    loop {
        let mut other = history.retold(&workflow, &mut luck);
        let next = progress.advance(u64::MAX);
        assert_eq!(format!("{next:?}"), format!("{:?}", other.advance(u64::MAX)), "{plan}");
        match next {
            Advance::Go(new) => {
                for new in &new {
                    check_order(&plan, &history, &new.key);
                }
                history.began.extend(new.into_iter().map(|new| new.key));
            }
            Advance::Done { .. } => return assert!(history.open().is_empty(), "{plan}"),
            Advance::Failed { blamed, .. } => {
                assert!(blamed.iter().all(|key| history.ended[key].is_err()), "{plan}");
                return;
            }
        }
        assert!(!history.open().is_empty(), "it goes on for no one: {plan}");
        for _ in 0..=luck(3) {
            let open = history.open();
            if open.is_empty() {
                break;
            }
            let key = open[luck(open.len())].clone();
            let fails = luck(6) == 0;
            let end =
                if fails { Err("no".to_owned()) } else { Ok(json!({"text": luck(5).to_string()})) };
            progress.ended(&key, told(&end));
            history.ended.insert(key, end);
        }
    }
}

proptest! {
    #[test]
    fn a_run_that_was_lost_is_the_same_again(
        plans in prop::collection::vec(step_plan(), 1..10),
        choices in prop::collection::vec(any::<u16>(), 1..40),
    ) {
        live(&plans, &choices);
    }
}
