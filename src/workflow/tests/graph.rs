//! Plain graphs.

use serde_json::json;

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
    assert_eq!(run.keys(), ["check", "polish"]);
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
