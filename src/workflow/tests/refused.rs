//! Definitions that are refused, and what is said of them.

use serde_json::value::RawValue;

use super::super::Workflow;
use super::super::limits::{DEFINITION_BYTES_MAX, STEPS_MAX};
use super::{Run, json_of, problems};

#[test]
fn keys_and_values_are_checked() {
    for (file, said) in [
        ("", "name: is missing: what is the workflow called?"),
        ("name = 'X'", "name: is no name: 1 to 64 of a-z, 0-9, _ and -"),
        ("name = 5", "name: must be text"),
        ("nam = 'x'", "nam: unknown key; did you mean name?"),
        ("zzzzzz = 'x'", "zzzzzz: unknown key; allowed here: name, description, output, "),
        ("output = 5", "output: must be a template, or a table of templates"),
        ("voice = 'b'", "voice: there is no step b"),
        ("voice = 5", "voice: must be the name of a step, a list of names, or \"*\" for all"),
        ("source = { fil = 'x' }", "source.fil: unknown key; did you mean file?"),
        ("inputs = 5", "inputs: must be a table"),
        ("[inputs.x]\ntype = 'text'", "inputs.x.type: \"text\": must be one of string, number, "),
        ("[inputs.x]\ndefault = 5", "inputs.x.default: must be of type string"),
        ("[inputs.x]\nrequired = 1", "inputs.x.required: must be true or false"),
        ("[inputs.x]\ndefault = ''\nrequired = true", "inputs.x.default: is never used: "),
        ("[inputs.x-y]", "inputs.x-y: is no name: 1 to 64 of A-Z, a-z, 0-9 and _, with no digit"),
        ("[steps.1]", "steps.1: is no name"),
        ("[steps]\na = 5", "steps.a: must be a table"),
        ("[steps.a]\npromt = ''", "steps.a.promt: unknown key; did you mean prompt?"),
        ("[steps.a]\nprompt = 5", "steps.a.prompt: must be text"),
        ("[steps.a]\nkind = ''", "steps.a.kind: is no kind of task"),
        ("[steps.a]\npriority = 10", "steps.a.priority: 10: must be a whole number from 0 to 9"),
        ("[steps.a]\npriority = 'x'", "steps.a.priority: must be a whole number from 0 to 9"),
        ("[steps.a]\nattempts = 0", "steps.a.attempts: 0: must be a whole number from 1 to 100"),
        ("[steps.a]\ntimeout = '5'", "steps.a.timeout: \"5\" is not a duration"),
        ("[steps.a]\ntimeout = '0s'", "steps.a.timeout: must be at least 1ms"),
        ("[steps.a]\ninput = []", "steps.a.input: must be a table"),
        ("[steps.a]\nprompt = ''\ninput.prompt = ''", "steps.a.input.prompt: is given twice"),
        (
            "[steps.a]\nexpect.json = true\ninput.expect.json = true",
            "steps.a.input.expect: is given twice: the step has its own",
        ),
        ("[steps.a]\nset = {}", "steps.a.set: is for kind = \"workflow\""),
        ("[steps.a]\nkind = 'workflow'", "steps.a.workflow: is missing: which workflow?"),
        ("[steps.a]\nneeds = 'b'", "steps.a.needs: must be a list of texts"),
        ("[steps.a]\nneeds = ['b']", "steps.a.needs[0]: there is no step b"),
        ("[steps.a]\nexpect.jsn = true", "steps.a.expect: jsn: unknown field"),
        ("[steps.a]\nexpect.regex = '('", "steps.a.expect: regex: unclosed group"),
        ("[steps.a]\nexpect.schema.type = 'strng'", "steps.a.expect: schema: at /type: "),
        ("[steps.a]\non_failure = 'x'", "steps.a.on_failure: must be \"fail\", { output = …"),
        ("[steps.a]\non_failure = {}", "steps.a.on_failure: must have one of output and step"),
        ("[steps.a]\non_failure.step = 'b'", "steps.a.on_failure.step: there is no step b"),
        ("[steps.a]\non_failure.output = 5", "steps.a.on_failure.output: must be a template, or "),
        ("[steps.a]\nmax = 5", "steps.a.max: is for steps with for_each or plan"),
        ("[steps.a]\norder = 'x'", "steps.a.order: is for steps with plan"),
        ("[steps.a]\nrepeat = {}", "steps.a.repeat.max: is missing: how many rounds are there"),
        (
            "[steps.a]\nrepeat.max = 101",
            "steps.a.repeat.max: 101: must be a whole number from 1 to ",
        ),
        ("[steps.a]\nfor_each = '[]'\nmax = 10001", "steps.a.max: 10001: must be a whole number "),
        (
            "[steps.a]\nfor_each = '[]'\nrepeat.max = 3",
            "steps.a.repeat: is there besides for_each: a step has one of for_each, repeat and plan",
        ),
        ("[steps.a]\nplan = '[]'", "steps.a.actions: is empty: what may the tasks of the plan do?"),
        (
            "[steps.a]\nplan = '[]'\nprompt = ''\nactions.x = {}",
            "steps.a.prompt: belongs into an action: a plan has no task of its own",
        ),
        (
            "[steps.a]\nplan = '[]'\nconcurrency = 2\nactions.x = {}",
            "steps.a.concurrency: is for order = \"parallel\"",
        ),
        (
            "[steps.a]\nplan = '[]'\nactions.x.on_failure.step = 'a'",
            "steps.a.actions.x.on_failure.step: there is no step a",
        ),
        ("[steps.a]\nplan = '[]'\nactions.x.neds = []", "steps.a.actions.x.neds: unknown key"),
    ] {
        let name = if file.is_empty() || file.contains("nam") { "" } else { "name = 'x'\n" };
        let more = if file.contains("[steps") { "" } else { "\n[steps.ok]" };
        let found = problems(&format!("{name}{file}{more}"));
        assert!(found.iter().any(|one| one.starts_with(said)), "{file}: {found:?}");
        assert!(found.len() <= 2, "{file}: {found:?}");
    }
}

#[test]
fn names_in_templates_are_checked() {
    let file = |key: &str, template: &str| {
        format!(
            "name = 'x'\n[inputs]\noutline = {{}}\n[steps.first]\n[steps.second]\n\
             needs = ['first']\n{key} = '''{template}'''\n[steps.third]\n"
        )
    };
    for (template, said) in [
        ("{{ inputs.outlin }}", ": there is no input outlin; did you mean outline?"),
        (
            "a\n\n{{ steps.third.text }}",
            " line 3: steps.third may not have ended by then: add third",
        ),
        ("{{ steps.frist.text }}", ": there is no step frist; did you mean first?"),
        ("{{ steps.second.text }}", ": steps.second is this step itself: it has no result yet"),
        ("{{ steps['first'].txt }}", ": steps.first has no txt; did you mean text?"),
        ("{{ steps | tojson }}", ": steps as a whole is nothing: name one, as in steps.NAME"),
        ("{{ steps[inputs.outline] }}", ": steps as a whole is nothing: "),
        ("a\n{{ input.x }}", " line 2: there is no input here; did you mean inputs?"),
        ("{{ item }}", ": there is no item here: there is inputs, steps"),
        ("{{ now() }}", ": there is no now here: there is inputs, steps"),
        ("{% if false %}{{ 'x' | nope }}{% endif %}", ": unknown filter: nope"),
        ("{{ 'x' is nope }}", ": unknown test: nope"),
        ("{% set x %}{{ steps.third.text }}{% endset %}", ": steps.third may not have ended"),
        ("x\n{% x %}", " line 2: syntax error: unknown statement x"),
        ("{{ steps.first.text", ": syntax error: "),
        ("{% include 'x' %}", ": syntax error: "),
    ] {
        let found = problems(&file("prompt", template));
        let said = format!("steps.second.prompt{said}");
        assert!(found.len() == 1 && found[0].starts_with(&said), "{template}: {found:?}");
    }
    for (template, said) in [
        ("steps.first.text ==", ": syntax error: "),
        ("steps.third.text", ": steps.third may not have ended by then: add third to needs"),
        ("{{ steps.first.text }}", ": syntax error: "),
    ] {
        let found = problems(&file("when", template));
        let said = format!("steps.second.when{said}");
        assert!(found.len() == 1 && found[0].starts_with(&said), "{template}: {found:?}");
    }
    for good in
        ["{{ steps.first.text }}", "{{ range(3) }}{% for x in inputs.outline %}{{ x }}{% endfor %}"]
    {
        assert_eq!(problems(&file("prompt", good)), [""; 0]);
    }
}

#[test]
fn each_place_has_names_of_its_own() {
    for (step, good) in [
        ("for_each = '[1]'\nprompt = '{{ item }}{{ index }}'", true),
        ("for_each = 'item'", false),
        ("for_each = '[1]'\nwhen = 'item'", false),
        ("for_each = '[1]'\nkey = '{{ item }}'", true),
        ("for_each = '[1]'\nprompt = '{{ round }}'", false),
        ("repeat = { max = 2, until = 'steps.a.json and round and rounds' }", true),
        ("repeat.max = 2\nprompt = '{{ round }}{{ rounds }}'", true),
        ("repeat.max = 2\nprompt = '{{ steps.a.text }}'", false),
        ("on_failure.output = '{{ steps.a.error }}'", true),
        ("plan = '[]'\nactions.x.prompt = '{{ task }}{{ index }}{{ done }}'", true),
        ("plan = '[]'\norder = 'parallel'\nactions.x.prompt = '{{ done }}'", false),
        ("plan = '[]'\nactions.x.on_failure.output = '{{ task.q }}'", true),
        ("plan = '[]'\nactions.x = {}\non_failure.output = '{{ task.q }}'", false),
    ] {
        let found = problems(&format!("name = 'x'\n[steps.a]\n{step}"));
        assert_eq!(found.is_empty(), good, "{step}: {found:?}");
    }
    let found = problems("name = 'x'\nkey = '{{ steps.a.text }}'\n[steps.a]");
    assert_eq!(found, ["key: no step has run yet: there is only inputs"]);
}

#[test]
fn cycles_are_named() {
    for (steps, said) in [
        ("[steps.a]\nneeds = ['a']", "steps.a.needs: is a cycle: a -> a"),
        (
            "[steps.a]\nneeds = ['b']\n[steps.b]\nneeds = ['c']\n[steps.c]\nneeds = ['a']",
            "steps.a.needs: is a cycle: a -> c -> b -> a",
        ),
        (
            // Who needs a step waits for whoever stands in for it.
            "[steps.a]\non_failure.step = 'r'\n[steps.b]\nneeds = ['a']\n[steps.r]\nneeds = ['b']",
            "steps.b.needs: is a cycle: b -> r -> b",
        ),
        ("[steps.a]\non_failure.step = 'a'", "steps.a.needs: is a cycle: a -> a"),
        (
            "[steps.a]\non_failure.step = 'r'\n[steps.b]\non_failure.step = 'r'\n[steps.r]",
            "steps.b.on_failure.step: r stands in for another step already",
        ),
    ] {
        assert_eq!(problems(&format!("name = 'x'\n{steps}")), [said]);
    }
    let rescued =
        "[steps.a]\non_failure.step = 'r'\n[steps.r]\nneeds = ['a']\n[steps.b]\nneeds = ['a', 'r']";
    assert_eq!(problems(&format!("name = 'x'\n{rescued}")), [""; 0]);
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let file = "
        name = 'x'
        [steps.a]
        promt = ''
        prompt = '{{ nope }}'
        when = '='
        [steps.b]
        needs = ['c']
        [source]
        file = 'x.toml'
        lines = { 'steps.a' = 3, 'steps.a.prompt' = 5, 'steps.b.needs' = 8 }
    ";
    let found = problems(file);
    assert_eq!(found.len(), 4, "{found:?}");
    for said in [
        "x.toml:3: steps.a.promt: unknown key",
        "x.toml:5: steps.a.prompt: there is no nope",
        "x.toml:3: steps.a.when: syntax error",
        "x.toml:8: steps.b.needs[0]: there is no step c",
    ] {
        assert!(found.iter().any(|one| one.starts_with(said)), "{said}: {found:?}");
    }
}

#[test]
fn sizes_are_bounded() {
    let steps: String = (0..=STEPS_MAX).map(|i| format!("[steps.s{i}]\n")).collect();
    assert_eq!(
        problems(&format!("name = 'x'\n{steps}")),
        ["steps: has 257 entries: at most 256 are allowed"]
    );
    let large = format!("name = 'x'\ndescription = '{}'", "x".repeat(DEFINITION_BYTES_MAX));
    assert!(problems(&large)[0].ends_with("bytes: at most 1048576 are allowed"));
    let twice = json_of("name = 'x'\n[steps.a]").replace("{}", "{},\"a\":{}");
    let twice = Workflow::read(&RawValue::from_string(twice).unwrap()).unwrap_err();
    assert_eq!(twice[0].to_string(), "steps.a: is given twice");
    for odd in ["5", "[]", "null", "{\"steps\":null}", "{\"steps\":[]}"] {
        assert!(Workflow::read(&RawValue::from_string(odd.to_owned()).unwrap()).is_err());
    }
}

#[test]
fn nothing_is_nested_without_end() {
    let file = |code: &str| format!("name = 'x'\n[steps.a]\nprompt = '''{code}'''");
    let nested = |times| format!("{{% with a=1{} %}}{{% endwith %}}", ",a=[a]".repeat(times));
    let mut run = Run::of(&file(&nested(1300)), serde_json::json!({}));
    assert_eq!(run.keys(), ["a"]);
    let said = "steps.a.prompt: has 8423 bytes of code: at most 8192 are allowed";
    assert_eq!(problems(&file(&nested(1400))), [said]);
    let loops = "{% set ns = namespace(x=[]) %}";
    assert!(problems(&file(loops))[0].contains("there is no namespace here"));
}
