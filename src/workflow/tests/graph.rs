//! Plain graphs.

use serde_json::json;

use super::super::Voice;
use super::{Run, input};

const NOVEL: &str = r#"
name = "novel"
output = "{{ steps.repair.text | default(steps.polish.text) }}"
[inputs]
outline = { required = true }
[steps.director]
agent = "director"
prompt = "Plan: {{ inputs.outline }}"
[steps.plot]
needs = ["director"]
prompt = "{{ steps.director.text }}"
[steps.character]
needs = ["plot"]
prompt = "{{ steps.plot.text }}"
[steps.scene]
needs = ["plot"]
prompt = "{{ steps.plot.text }}"
[steps.draft]
needs = ["character", "scene"]
prompt = "{{ steps.character.text }} {{ steps.scene.text }}"
priority = 7
timeout = "60s"
attempts = 2
[steps.polish]
needs = ["draft"]
prompt = "{{ steps.draft.text }}"
on_failure = { output = "{{ steps.draft.text }}" }
[steps.check]
needs = ["draft"]
prompt = "{{ steps.draft.text }}"
expect = { json = true }
[steps.repair]
needs = ["polish", "check"]
when = "steps.check.json.score < 70"
prompt = "{{ steps.polish.text }}"
"#;

fn up_to_draft() -> Run {
    let mut run = Run::of(NOVEL, json!({"outline": "雨"}));
    let first = run.go();
    assert_eq!(input(&first[0]), json!({"agent": "director", "prompt": "Plan: 雨"}));
    run.says("director", "d");
    assert_eq!(run.keys(), ["plot"]);
    assert!(run.keys().is_empty());
    run.says("plot", "p");
    assert_eq!(run.keys(), ["character", "scene"]);
    run.says("scene", "s");
    assert!(run.keys().is_empty());
    run.says("character", "c");
    let draft = run.go();
    let [draft] = draft.as_slice() else { panic!("{draft:?}") };
    assert_eq!(
        (draft.priority, draft.timeout_ms, draft.max_attempts),
        (Some(7), Some(60_000), Some(2))
    );
    assert_eq!(input(draft), json!({"prompt": "c s"}));
    run.says("draft", "the draft");
    assert_eq!(run.keys(), ["polish", "check"]);
    run
}

#[test]
fn a_novel_is_written() {
    let mut run = up_to_draft();
    run.says("polish", "polished");
    run.says("check", "```json\n{\"score\": 90}\n```");
    assert_eq!(run.output(), json!({"text": "polished"}));
}

#[test]
fn a_failure_is_made_up_for_and_what_is_bad_repaired() {
    let mut run = up_to_draft();
    run.fails("polish", "no");
    run.says("check", "{\"score\": 60}");
    let repair = run.go();
    assert_eq!(input(&repair[0]), json!({"prompt": "the draft"}));
    run.says("repair", "repaired");
    assert_eq!(run.output(), json!({"text": "repaired"}));
}

#[test]
fn a_failure_ends_the_run() {
    let mut run = up_to_draft();
    run.fails("check", "no JSON");
    assert_eq!(run.failure(), ("steps.check: no JSON".to_owned(), vec!["check".to_owned()]));
}

const RESCUE: &str = r#"
name = "rescue"
[steps.first]
prompt = "a"
[steps.second]
needs = ["first"]
prompt = "b"
on_failure = { step = "stand_in" }
[steps.stand_in]
prompt = "{{ steps.first.text }}: {{ steps.second.error }}"
[steps.last]
needs = ["second"]
prompt = "{{ steps.second.state }} {{ steps.second.text }}"
"#;

#[test]
fn another_step_stands_in() {
    let mut run = Run::of(RESCUE, json!({}));
    assert_eq!(run.keys(), ["first"]);
    run.says("first", "f");
    assert_eq!(run.keys(), ["second"]);
    run.fails("second", "oh");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "f: oh"}));
    assert!(run.keys().is_empty());
    run.says("stand_in", "s");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "failed s"}));
    run.says("last", "l");
    assert_eq!(run.output(), json!({"text": "l"}));
}

#[test]
fn nobody_stands_in_for_a_success() {
    let mut run = Run::of(RESCUE, json!({}));
    run.says("first", "f");
    run.says("second", "s");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "succeeded s"}));
    run.fails("last", "no");
    assert_eq!(run.failure(), ("steps.last: no".to_owned(), vec!["last".to_owned()]));
}

#[test]
fn a_stand_in_may_fail() {
    let mut run = Run::of(RESCUE, json!({}));
    run.says("first", "f");
    run.fails("second", "no");
    run.fails("stand_in", "neither");
    assert_eq!(run.failure(), ("steps.stand_in: neither".to_owned(), vec!["stand_in".to_owned()]));
    // With one of its own, and so on.
    let file = RESCUE
        .replace("[steps.stand_in]", "[steps.stand_in]\non_failure = { output = 'so be it' }");
    let mut run = Run::of(&file, json!({}));
    run.says("first", "f");
    run.fails("second", "no");
    run.fails("stand_in", "neither");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "failed so be it"}));
}

#[test]
fn what_is_skipped_counts_as_met() {
    let file = r#"
        name = "skip"
        [inputs]
        n = { type = "integer", default = 3 }
        [steps.a]
        when = "inputs.n > 5"
        prompt = "a"
        [steps.b]
        needs = ["a"]
        prompt = "{{ steps.a.state }} {{ steps.a.text | default('nothing') }}"
        [steps.c]
        needs = ["b"]
        when = "steps.a.state == 'succeeded'"
        prompt = "c"
    "#;
    let mut run = Run::of(file, json!({}));
    assert_eq!(input(&run.go()[0]), json!({"prompt": "skipped nothing"}));
    run.says("b", "b");
    // The last leaf was skipped.
    assert_eq!(run.output(), json!({}));
    let mut run = Run::of(file, json!({"n": 6}));
    assert_eq!(run.keys(), ["a"]);
}

#[test]
fn the_output_is_that_of_the_last_leaf() {
    let file =
        "name = 'x'\n[steps.z]\n[steps.b]\nneeds = ['z']\n[steps.a]\nneeds = ['z']\nwhen = 'false'";
    let mut run = Run::of(file, json!({}));
    run.gives("z", json!({}));
    assert_eq!(run.keys(), ["b"]);
    run.gives("b", json!({"stdout": "out", "json": [1], "exit_code": 0}));
    assert_eq!(run.output(), json!({"text": "out", "json": [1]}));
    assert_eq!(run.workflow.voice(), &Voice::Steps(vec!["a".to_owned()]));
}

#[test]
fn values_keep_their_type() {
    let file = r#"
        name = "values"
        output = { list = "{{ steps.a.json }}", n = "{{ steps.a.json | length }}!", fixed = [1, { a = "b" }] }
        key = "{{ inputs | tojson | sha256 }}"
        [inputs]
        n = { type = "integer", required = true }
        [steps.a]
        kind = "tool"
        key = "a-{{ inputs.n }}"
        input = { n = "{{ inputs.n }}", text = " {{ inputs.n }}", braces = "{", list = ["{{ [inputs.n] }}"] }
    "#;
    let mut run = Run::of(file, json!({"n": 5}));
    let new = run.go();
    assert_eq!(input(&new[0]), json!({"n": 5, "text": " 5", "braces": "{", "list": [[5]]}));
    assert_eq!((new[0].kind.as_str(), new[0].task_key.as_deref()), ("tool", Some("a-5")));
    run.gives("a", json!({"json": [1, 2.5, null, "<&>"]}));
    let list = json!([1, 2.5, null, "<&>"]);
    assert_eq!(run.output(), json!({"json": {"list": list, "n": "4!", "fixed": [1, {"a": "b"}]}}));
    let key = run.workflow.key(&run.inputs).unwrap().unwrap();
    assert_eq!(key.len(), 64);
}

#[test]
fn an_error_of_a_template_says_where() {
    let file = r#"
        name = "where"
        [steps.a]
        [steps.b]
        needs = ["a"]
        prompt = "x\n{{ steps.a.json.score }}"
        [source]
        file = "where.toml"
        lines = { "steps.b.prompt" = 12 }
    "#;
    let mut run = Run::of(file, json!({}));
    run.says("a", "a");
    let said = "where.toml:13: steps.b.prompt: undefined value: steps.a.json";
    assert_eq!(run.failure(), (said.to_owned(), vec![]));
}

#[test]
fn what_comes_after_is_known() {
    let run = Run::of(RESCUE, json!({}));
    for (step, all) in [
        ("first", vec!["first", "last", "second", "stand_in"]),
        ("second", vec!["last", "second", "stand_in"]),
        ("stand_in", vec!["last", "stand_in"]),
        ("last", vec!["last"]),
    ] {
        let found = run.workflow.downstream(step).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), all, "{step}");
    }
    assert_eq!(run.workflow.downstream("none"), None);
}

#[test]
fn odd_keys_are_ignored_and_ends_stand() {
    let mut run = Run::of(NOVEL, json!({"outline": "o"}));
    for key in ["", "nobody", "director[0]", "director#1", "[", "plot[", "director "] {
        run.progress.began(key);
        run.fails(key, "no");
    }
    assert_eq!(run.keys(), ["director"]);
    run.says("director", "one");
    run.fails("director", "two");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "one"}));
}
