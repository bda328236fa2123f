//! `plan`.

use serde_json::json;

use super::{Run, input};

fn nova(more: &str, names: &str) -> String {
    format!(
        r#"
        name = "nova"
        [steps.planner]
        expect = {{ json = true }}
        [steps.work]
        needs = ["planner"]
        plan = "steps.planner.json.tasks"
        {more}
        [steps.work.actions.insight]
        agent = "insight"
        prompt = "{{{{ task.about }}}} {names}"
        [steps.work.actions.search]
        kind = "tool"
        input = {{ q = "{{{{ task.about }}}}", n = "{{{{ index }}}}" }}
        on_failure = {{ output = "nothing about {{{{ task.about }}}}" }}
        [steps.write]
        needs = ["work"]
        input = {{ all = "{{{{ steps.work.items | map(attribute='task.action') | list }}}}" }}
        prompt = "{{{{ steps.work.text }}}}"
        "#
    )
}

const DONE: &str = "{% for d in done %}[{{ d.task.action }}: {{ d.text }}]{% endfor %}";

fn planned(file: &str) -> Run {
    let mut run = Run::of(file, json!({}));
    let tasks = json!({"tasks": [
        {"action": "search", "about": "tea"},
        {"action": "insight", "about": "cups"},
        {"action": "insight", "about": "pots"},
    ]});
    run.says("planner", &tasks.to_string());
    run
}

#[test]
fn tasks_in_sequence_see_what_came_before() {
    let mut run = planned(&nova("", DONE));
    let first = run.go();
    assert_eq!((first[0].key.as_str(), first[0].kind.as_str()), ("work[0]", "tool"));
    assert_eq!(input(&first[0]), json!({"q": "tea", "n": 0}));
    run.fails("work[0]", "offline");
    let prompt = "cups [search: nothing about tea]";
    assert_eq!(input(&run.go()[0]), json!({"agent": "insight", "prompt": prompt}));
    run.says("work[1]", "c");
    let prompt = "pots [search: nothing about tea][insight: c]";
    assert_eq!(input(&run.go()[0])["prompt"], json!(prompt));
    run.says("work[2]", "p");
    let all = json!(["search", "insight", "insight"]);
    assert_eq!(input(&run.go()[0]), json!({"all": all, "prompt": "nothing about tea\n\nc\n\np"}));
}

#[test]
fn tasks_in_parallel_see_themselves() {
    let mut run = planned(&nova("order = 'parallel'\nconcurrency = 2", ""));
    assert_eq!(run.keys(), ["work[0]", "work[1]"]);
    run.says("work[1]", "c");
    assert_eq!(run.keys(), ["work[2]"]);
    run.says("work[2]", "p");
    run.says("work[0]", "s");
    assert_eq!(input(&run.go()[0])["prompt"], json!("s\n\nc\n\np"));
}

#[test]
fn a_task_fails_the_step() {
    let mut run = planned(&nova("", ""));
    run.says("work[0]", "t");
    assert_eq!(run.keys(), ["work[1]"]);
    run.fails("work[1]", "no");
    assert_eq!(run.failure(), ("steps.work[1]: no".to_owned(), vec!["work[1]".to_owned()]));
    let mut run = planned(&nova("on_failure = { output = 'none ({{ steps.work.error }})' }", ""));
    run.says("work[0]", "t");
    run.fails("work[1]", "no");
    let sum = run.progress.advance(u64::MAX);
    assert!(format!("{sum:?}").contains("undefined value: steps.work.items"), "{sum:?}");
}

#[test]
fn bad_plans_fail_the_step() {
    for (tasks, said) in [
        (json!("x"), "plan gives a string, no list"),
        (json!({"a": 1}), "plan gives a map, no list"),
        (json!([1]), "task 0 of the plan is no table with an action: 1"),
        (json!([{"about": "x"}]), "task 0 of the plan is no table with an action: "),
        (
            json!([{"action": "search", "about": "x"}, {"action": "rm"}]),
            "task 1 of the plan has the action \"rm\", not one of insight, search",
        ),
    ] {
        let mut run = Run::of(&nova("", ""), json!({}));
        run.says("planner", &json!({ "tasks": tasks }).to_string());
        let (message, blamed) = run.failure();
        assert!(message.starts_with(&format!("steps.work: {said}")), "{message}");
        assert_eq!(blamed, Vec::<String>::new());
    }
}
