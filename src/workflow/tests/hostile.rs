//! Definitions that want more time or memory of their reader than they look like.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::Workflow;
use super::super::limits::PROBLEMS_MAX;

/// Far more than any takes, and far less than those took that compared everything with everything.
const TIME_MAX: Duration = Duration::from_secs(15);

fn named(prefix: &str, count: usize, value: impl Fn(usize) -> Value) -> Value {
    let named = (0..count).map(|i| (format!("{prefix}{i}"), value(i)));
    Value::Object(named.collect::<Map<_, _>>())
}

#[test]
fn much_of_one_thing_is_refused_soon() {
    let code = |code: &str| json!({ "prompt": format!("{code}\n").repeat(600) });
    let names: Vec<_> = (0..90_000).map(|i| format!("x{i}")).collect();
    for (definition, said) in [
        (json!({"steps": {"a": {"needs": names}}}), "steps.a.needs: has 90000 entries"),
        (json!({"steps": {"a": {}}, "voice": names}), "voice: has 90000 entries"),
        (json!({"steps": {"a": named("x", 60_000, |i| json!(i))}}), "steps.a: has 60000 entries"),
        (
            json!({"steps": named("s", 60, |_| code("{{inputs.z}}")),
                   "inputs": named("i", 30_000, |_| json!({}))}),
            "inputs: has 30000 entries",
        ),
        (
            json!({"steps": {"p": {"plan": "[]", "actions": named("x", 20_000, |_| json!({}))}}}),
            "steps.p.actions: has 20000 entries",
        ),
        (
            json!({"steps": named("s", 120, |_| code("{{1|xx}}"))}),
            "steps.s0.prompt: unknown filter: xx",
        ),
        (
            json!({"steps": named("s", 200, |_| {
                let patterns: Vec<_> = (0..100).map(|_| json!({"pattern": r"\w{100}"})).collect();
                json!({"prompt": "x", "expect": {"schema": {"anyOf": patterns}}})
            })}),
            "steps.s107.expect: a workflow has at most 1000 patterns",
        ),
        (json!({"steps": {"a": code(&"{% \n".repeat(250))}}), "steps.a.prompt: has "),
    ] {
        let mut definition = definition;
        definition["name"] = json!("x");
        let began = Instant::now();
        let problems =
            Workflow::read(&RawValue::from_string(definition.to_string()).unwrap()).unwrap_err();
        assert!(began.elapsed() < TIME_MAX, "{said}: {:?}", began.elapsed());
        assert!(problems.iter().any(|one| one.to_string().starts_with(said)), "{problems:?}");
        assert!(problems.len() <= PROBLEMS_MAX + 1, "{said}: {}", problems.len());
    }
}

#[test]
fn what_is_written_out_is_not_multiplied() {
    let bomb = "{{ ['x' * 100000000] }}";
    let definition = json!({"name": "x", "output": bomb,
        "steps": {"a": {"when": "\n'x' * 100000000", "input": {"a": ["{{ 'x' * 9 }}"]}}}});
    let problems = Workflow::read(&RawValue::from_string(definition.to_string()).unwrap());
    let problems: Vec<_> = problems.unwrap_err().iter().map(ToString::to_string).collect();
    let why = "text and lists that are written out cannot be multiplied";
    assert_eq!(
        problems,
        [
            format!("steps.a.when line 2: {why}"),
            format!("steps.a.input.a[0]: {why}"),
            format!("output: {why}"),
        ]
    );
}
