//! `repeat`.

use serde_json::json;

use super::{Run, input};

const TABLE: &str = r#"
name = "roundtable"
[steps.table]
expect = { json = true }
prompt = "{{ round }}{% for r in rounds %} {{ r.json.said }}{% endfor %}"
repeat = { until = "steps.table.json.content or (rounds | length) > 5", max = 3 }
[steps.report]
needs = ["table"]
prompt = "{{ steps.table.json.said }} of {{ steps.table.rounds | length }}"
"#;

fn said(text: &str, content: bool) -> String {
    json!({"said": text, "content": content}).to_string()
}

#[test]
fn rounds_go_on_until_all_are_content() {
    let mut run = Run::of(TABLE, json!({}));
    assert_eq!(input(&run.go()[0]), json!({"prompt": "1"}));
    run.says("table#1", &said("a", false));
    let second = run.go();
    assert_eq!((second[0].key.as_str(), input(&second[0])), ("table#2", json!({"prompt": "2 a"})));
    run.says("table#2", &said("b", true));
    assert_eq!(input(&run.go()[0]), json!({"prompt": "b of 2"}));
}

#[test]
fn the_last_round_is_the_last() {
    let mut run = Run::of(TABLE, json!({}));
    for key in ["table#1", "table#2", "table#3"] {
        assert_eq!(run.keys(), [key]);
        run.says(key, &said(key, false));
    }
    assert_eq!(input(&run.go()[0]), json!({"prompt": "table#3 of 3"}));
}

#[test]
fn a_round_may_fail() {
    let mut run = Run::of(TABLE, json!({}));
    run.says("table#1", &said("a", false));
    run.fails("table#2", "no");
    assert_eq!(run.failure(), ("steps.table#2: no".to_owned(), vec!["table#2".to_owned()]));
    let file = TABLE.replace(
        "[steps.table]",
        "[steps.table]\non_failure = { output = { json = '{{ rounds[-1].json }}' } }",
    );
    let mut run = Run::of(&file, json!({}));
    run.says("table#1", &said("a", false));
    run.fails("table#2", "no");
    assert_eq!(input(&run.go()[0]), json!({"prompt": "a of 1"}));
}

#[test]
fn without_a_wish_there_are_max_rounds() {
    let mut run = Run::of("name = 'x'\n[steps.a]\nrepeat = { max = 2 }", json!({}));
    run.says("a#1", "1");
    assert_eq!(run.keys(), ["a#2"]);
    run.says("a#2", "2");
    assert_eq!(run.output(), json!({"text": "2"}));
}
