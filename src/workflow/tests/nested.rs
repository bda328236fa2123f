//! Workflows in workflows.

use serde_json::json;

use super::super::UsedKind;
use super::{Run, input, problems, read};

const OUTER: &str = r#"
name = "outer"
[inputs]
topic = { required = true }
[steps.table]
kind = "workflow"
set = { topic = "{{ inputs.topic }}", n = 3 }
repeat = { until = "steps.table.json.content", max = 2 }
[steps.table.workflow]
name = "round"
output = { content = "{{ steps.host.json.content }}" }
[steps.table.workflow.inputs]
topic = { required = true }
n = { type = "integer" }
[steps.table.workflow.steps.host]
agent = "host"
prompt = "{{ inputs.topic }}"
expect = { json = true }
"#;

#[test]
fn a_run_is_a_step() {
    let mut run = Run::of(OUTER, json!({"topic": "tea"}));
    let new = run.go();
    assert_eq!((new[0].key.as_str(), new[0].kind.as_str()), ("table#1", "workflow"));
    let given = input(&new[0]);
    assert_eq!(given["inputs"], json!({"topic": "tea", "n": 3}));
    assert_eq!(given["workflow"]["steps"]["host"]["prompt"], json!("{{ inputs.topic }}"));
    run.gives("table#1", json!({"json": {"content": true}}));
    assert_eq!(run.output(), json!({"json": {"content": true}}));
    let used = |path: &str, kind: &str, agent: Option<&str>| UsedKind {
        path: path.to_owned(),
        kind: kind.to_owned(),
        agent: agent.map(str::to_owned),
        model: None,
    };
    let all = [
        used("steps.table.workflow.steps.host", "chat", Some("host")),
        used("steps.table", "workflow", None),
    ];
    assert_eq!(run.workflow.step_kinds(), all);
}

#[test]
fn what_is_nested_is_checked() {
    for (from, to, said) in [
        (
            "prompt = \"{{ inputs.topic }}\"",
            "prompt = \"{{ inputs.topc }}\"",
            "steps.table.workflow.steps.host.prompt: there is no input topc; did you mean topic?",
        ),
        (
            "name = \"round\"",
            "",
            "steps.table.workflow.name: is missing: what is the workflow called?",
        ),
        (
            "topic = \"{{ inputs.topic }}\", ",
            "",
            "steps.table.set: the input topic is missing: it is required",
        ),
        ("n = 3", "m = 3", "steps.table.set.m: there is no input m: inputs are n, topic"),
        ("n = 3", "n = 'x'", "steps.table.set.n: must be of type integer"),
        ("set =", "input = {}\nset =", "steps.table.input: is for other kinds: "),
    ] {
        let found = problems(&OUTER.replace(from, to));
        assert!(found.len() == 1 && found[0].starts_with(said), "{found:?}");
    }
}

#[test]
fn nesting_ends() {
    let mut inner = "{\"name\":\"x\",\"steps\":{\"a\":{}}}".to_owned();
    for depth in 1..9 {
        inner = format!(
            "{{\"name\":\"x\",\"steps\":{{\"a\":{{\"kind\":\"workflow\",\"workflow\":{inner}}}}}}}"
        );
        let raw = serde_json::value::RawValue::from_string(inner.clone()).unwrap();
        let read = super::super::Workflow::read(&raw);
        assert_eq!(read.is_ok(), depth < 8, "{depth}");
    }
    assert!(read(OUTER).is_ok());
}
