//! `for_each`.

use serde_json::{Value, json};

use super::{Advance, Run, input};

fn scenes(more: &str) -> String {
    format!(
        r#"
        name = "scenes"
        [steps.plan]
        expect = {{ json = true }}
        [steps.scene]
        needs = ["plan"]
        for_each = "steps.plan.json.scenes"
        prompt = "{{{{ index }}}}: {{{{ item.title }}}}"
        {more}
        [steps.sum]
        needs = ["scene"]
        input = {{ all = "{{{{ steps.scene.items }}}}" }}
        prompt = "{{{{ steps.scene.text }}}}"
        "#
    )
}

fn planned(file: &str, titles: &[&str]) -> Run {
    let mut run = Run::of(file, json!({}));
    let scenes: Vec<Value> = titles.iter().map(|title| json!({"title": title})).collect();
    run.says("plan", &json!({"scenes": scenes}).to_string());
    run
}

#[test]
fn each_item_is_a_task() {
    let mut run = planned(&scenes(""), &["a", "b", "c"]);
    let new = run.go();
    assert_eq!(input(&new[2]), json!({"prompt": "2: c"}));
    for i in [2, 0] {
        run.says(&format!("scene[{i}]"), &format!("text {i}"));
        assert!(run.keys().is_empty());
    }
    run.says("scene[1]", "text 1");
    let sum = input(&run.go()[0]);
    assert_eq!(sum["prompt"], json!("text 0\n\ntext 1\n\ntext 2"));
    let first = json!({"index": 0, "item": {"title": "a"}, "output": {"text": "text 0"},
        "state": "succeeded", "text": "text 0"});
    assert_eq!(sum["all"][0], first);
}

#[test]
fn no_items_are_done_at_once() {
    let mut run = planned(&scenes(""), &[]);
    assert_eq!(input(&run.go()[0]), json!({"prompt": "", "all": []}));
}

#[test]
fn few_run_at_once() {
    let mut run = planned(&scenes("concurrency = 2"), &["a", "b", "c", "d"]);
    assert_eq!(run.keys(), ["scene[0]", "scene[1]"]);
    run.says("scene[1]", "b");
    assert_eq!(run.keys(), ["scene[2]"]);
    run.says("scene[0]", "a");
    run.says("scene[2]", "c");
    assert_eq!(run.keys(), ["scene[3]"]);
    run.says("scene[3]", "d");
    assert_eq!(run.keys(), ["sum"]);
}

#[test]
fn a_list_may_be_too_long() {
    let mut run = planned(&scenes("max = 2"), &["a", "b", "c"]);
    let said = "steps.scene: for_each gives 3 items, and max is 2";
    assert_eq!(run.failure(), (said.to_owned(), vec![]));
    let file = scenes("on_failure = { output = 'x' }").replace("input = {", "#");
    let mut run = Run::of(&file, json!({}));
    run.says("plan", r#"{"scenes": "three"}"#);
    assert_eq!(input(&run.go()[0])["prompt"], json!("x"));
}

#[test]
fn failed_items_are_blamed() {
    let mut run = planned(&scenes(""), &["a", "b", "c"]);
    assert_eq!(run.keys().len(), 3);
    run.fails("scene[2]", "two");
    run.fails("scene[1]", "one");
    let blamed = vec!["scene[1]".to_owned(), "scene[2]".to_owned()];
    assert_eq!(run.failure(), ("steps.scene[1]: one".to_owned(), blamed));
}

#[test]
fn an_item_may_have_a_stated_output() {
    let more = "on_failure = { output = '({{ item.title }}: {{ steps.scene.error }})' }";
    let mut run = planned(&scenes(more), &["a", "b"]);
    assert_eq!(run.keys().len(), 2);
    run.fails("scene[0]", "no");
    run.says("scene[1]", "b");
    let sum = input(&run.go()[0]);
    assert_eq!(sum["prompt"], json!("(a: no)\n\nb"));
    assert_eq!(
        (&sum["all"][0]["state"], &sum["all"][0]["error"]),
        (&json!("failed"), &json!("no"))
    );
}

#[test]
fn a_step_stands_in_for_all_items() {
    let more = "concurrency = 2\non_failure = { step = 'plain' }\n[steps.plain]\n\
        prompt = '{{ steps.scene.error }} {{ steps.plan.json.scenes | length }}'";
    let file = scenes(more).replace("input = {", "#");
    let mut run = planned(&file, &["a", "b", "c"]);
    assert_eq!(run.keys(), ["scene[0]", "scene[1]"]);
    run.fails("scene[1]", "no");
    assert!(run.keys().is_empty(), "the other is waited for, no third begins");
    run.says("scene[0]", "a");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "no 3"}));
    run.says("plain", "instead");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "instead"}));
}

#[test]
fn a_run_has_so_many_tasks() {
    let file = r#"
        name = "many"
        [steps.all]
        for_each = "range(10000)"
        max = 10000
        concurrency = 10
        kind = "noop"
        [steps.one_more]
        needs = ["all"]
    "#;
    let mut run = Run::of(file, json!({}));
    let mut ended = 0;
    while ended < 10_000 {
        for key in run.keys() {
            run.gives(&key, json!({}));
            ended += 1;
        }
    }
    assert_eq!(run.failure().0, "steps.one_more: a run has at most 10000 tasks");
}

#[test]
fn what_begins_at_once_is_bounded_before_it_takes_room() {
    let file = "name = 'n'\n[inputs]\nbook = {}\n[steps.each]\nkind = 'http'\n\
                for_each = 'range(10000)'\nmax = 10000\ninput = { url = '{{ inputs.book }}' }\n";
    let mut run = Run::of(file, json!({ "book": "x".repeat(1 << 20) }));
    let Advance::Failed { message, .. } = run.progress.advance(16 << 20) else { panic!("it went") };
    assert!(message.contains("16 of them have 16") && message.contains("concurrency"), "{message}");
    // What is expected of each answer is told with each step.
    let expects = "expect = { schema = { description = 'LONG' } }\ninput =";
    let expects = file.replace("input =", &expects.replace("LONG", &"x".repeat(30_000)));
    let mut run = Run::of(&expects, json!({ "book": "x" }));
    assert!(matches!(run.progress.advance(16 << 20), Advance::Failed { .. }));
}

#[test]
fn the_key_of_a_step_is_no_longer_than_that_of_any_task() {
    let file = "name = 'n'\n[inputs]\nk = {}\n[steps.a]\nkind = 'noop'\nkey = '{{ inputs.k }}'\n";
    for (bytes, fits) in [(0, false), (1, true), (256, true), (257, false)] {
        let mut run = Run::of(file, json!({ "k": "x".repeat(bytes) }));
        match run.progress.advance(u64::MAX) {
            Advance::Go(new) => assert!(fits && new.len() == 1, "{bytes}"),
            Advance::Failed { message, .. } => {
                assert!(!fits && message.contains("steps.a.key"), "{bytes}: {message}");
            }
            done => panic!("{done:?}"),
        }
    }
}
