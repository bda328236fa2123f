//! Runs of workflows, as users start them: what they bring forth, and what outlives a kill.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests may fail loudly"
)]

#[path = "../support/mod.rs"]
mod support;

mod follow;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::commands::append;
use support::model::Model;
use support::random::Random;
use support::{Daemon, Role, Value, eventually, json, number, pause, text};

/// Two workers.
const CONFIG: &str = "[workers]\nmin = 2\nmax = 2\nconcurrency = 8\n";
const LONG: &str = "120s";

/// The chapter of a novel: seven calls, two pairs of them side by side. Each step asks for a model
/// of its own, so that its calls can be counted.
const NOVEL: &str = r#"
name = "novel"
output = "{{ steps.optimise.text }}"
[inputs]
n = { type = "integer" }
[steps.director]
model = "sim/{{ inputs.n }}-director"
prompt = "Plan."
[steps.plot]
needs = ["director"]
model = "sim/{{ inputs.n }}-plot"
prompt = "{{ steps.director.text }}"
[steps.character]
needs = ["plot"]
model = "sim/{{ inputs.n }}-character"
prompt = "{{ steps.plot.text }}"
[steps.scene]
needs = ["plot"]
model = "sim/{{ inputs.n }}-scene"
prompt = "{{ steps.plot.text }}"
[steps.synthesis]
needs = ["character", "scene"]
model = "sim/{{ inputs.n }}-synthesis"
prompt = "{{ steps.character.text }} {{ steps.scene.text }}"
[steps.optimise]
needs = ["synthesis"]
model = "sim/{{ inputs.n }}-optimise"
prompt = "{{ steps.synthesis.text }}"
[steps.check]
needs = ["synthesis"]
model = "sim/{{ inputs.n }}-check"
prompt = "{{ steps.synthesis.text }}"
"#;

/// Writes a workflow into the daemon's folder.
fn file(daemon: &Daemon, workflow: &str) -> PathBuf {
    let file = daemon.file("workflow.toml");
    std::fs::write(&file, workflow).unwrap();
    file
}

/// Submits a run; its id.
#[track_caller]
fn submit(daemon: &Daemon, file: &Path, options: &[&str]) -> String {
    let at = format!("@{}", file.display());
    let args = [&["submit", "workflow", &at], options].concat();
    daemon.ok(&args).trim().to_owned()
}

/// A run's steps: their states by key.
fn states(run: &Value) -> BTreeMap<String, String> {
    let steps = run["by_step"].as_array().expect("steps");
    steps.iter().map(|step| (text(step, "/step"), text(step, "/state"))).collect()
}

fn keys(run: &Value) -> Vec<String> {
    states(run).into_keys().collect()
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// `exec` as a step's input: appends a line to a file.
fn appends(file: &Path, line: &str) -> String {
    let input = append(file, line, 0.0);
    toml_of(&input)
}

fn toml_of(input: &Value) -> String {
    toml::Value::try_from(input).unwrap().to_string()
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Kills processes of a daemon until all runs have ended.
fn kill_at_random(daemon: &mut Daemon, random: &mut Random, ids: &[String], mut kills: u64) {
    let masters = [kills / 3, 2 * kills / 3];
    let mut waiting = ids.len();
    while waiting > 0 {
        if kills > 0 {
            pause(Duration::from_millis(random.between(60, 250)));
            kills -= 1;
            if masters.contains(&kills) {
                daemon.kill_everything();
                daemon.start_again();
            } else if random.chance(30) {
                daemon.strike(Role::Broker);
            } else {
                daemon.strike(Role::Worker(random.between(1, 3) as usize));
            }
            continue;
        }
        daemon.wait_for_all(ids, LONG);
        waiting = 0;
    }
}

/// `FORQ_CHAPTERS`, `FORQ_CHAPTER_KILLS` and `FORQ_CHAPTER_SEED` change it.
#[test]
fn no_finished_step_is_ever_called_again() {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = from_env("FORQ_CHAPTER_SEED", nanos.into());
    let (chapters, kills) = (from_env("FORQ_CHAPTERS", 200), from_env("FORQ_CHAPTER_KILLS", 24));
    eprintln!("FORQ_CHAPTER_SEED={seed} FORQ_CHAPTERS={chapters} FORQ_CHAPTER_KILLS={kills}");
    let model = Model::start(&["--first-token-ms", "30", "--tokens-per-second", "2000"]);
    let config = format!("{CONFIG}{}max_attempts = 20\n", model.config());
    let mut daemon = Daemon::start(&config);
    let file = file(&daemon, NOVEL);
    let ids: Vec<String> =
        (0..chapters).map(|n| submit(&daemon, &file, &["--set", &format!("n={n}")])).collect();
    kill_at_random(&mut daemon, &mut Random::new(seed), &ids, kills);
    let calls = model.stats()["by_model"].clone();
    let mut repeated = 0;
    for (n, id) in ids.iter().enumerate() {
        let run = daemon.task(id);
        assert_eq!(text(&run, "/state"), "succeeded", "{run}");
        let steps = run["by_step"].as_array().unwrap();
        assert_eq!(steps.len(), 7, "each step is one task: {run}");
        for step in steps {
            let (key, starts) = (text(step, "/step"), number(step, "/attempt"));
            assert_eq!(text(step, "/state"), "succeeded", "{step}");
            let called = calls[format!("{n}-{key}")].as_u64().unwrap_or(0);
            // Only a start that was lost with its worker is called for again.
            assert!(
                (1..=starts).contains(&called),
                "{key} of {n}: {called} calls, {starts} starts"
            );
            repeated += called - 1;
        }
    }
    eprintln!("{repeated} calls were lost with their workers and made again");
}

#[test]
fn lists_rounds_and_plans_become_steps() {
    let daemon = Daemon::start(CONFIG);
    let file = file(
        &daemon,
        r#"
name = "shapes"
output = { items = "{{ steps.each.items | length }}", rounds = "{{ steps.loop.rounds | length }}",
           plan = "{{ steps.work.items | map(attribute='text') | join }}" }
[inputs]
n = { type = "integer", default = 5 }
[steps.each]
kind = "exec"
for_each = "range(inputs.n)"
concurrency = 2
input = { argv = ["echo", "item {{ item }} at {{ index }}"] }
[steps.loop]
kind = "exec"
needs = ["each"]
repeat = { until = "round == 3", max = 5 }
input = { argv = ["echo", "round {{ round }} after {{ rounds | length }}"] }
[steps.planner]
kind = "exec"
expect = { json = true }
input = { argv = ["echo", '[{"action": "a", "x": 1}, {"action": "b", "x": 2}]'] }
[steps.work]
needs = ["planner", "loop"]
plan = "steps.planner.json"
[steps.work.actions.a]
kind = "exec"
input = { argv = ["echo", "a {{ task.x }}"] }
[steps.work.actions.b]
kind = "exec"
input = { argv = ["echo", "b {{ task.x }} after {{ done[0].text | trim }}"] }
"#,
    );
    let run = daemon.until(&submit(&daemon, &file, &[]), "succeeded");
    let output = json!({ "items": 5, "rounds": 3, "plan": "a 1\nb 2 after a 1\n" });
    assert_eq!(run["output"]["json"], output, "{run}");
    let fan = (0..5).map(|index| format!("each[{index}]"));
    let mut expected: Vec<String> = fan.collect();
    expected
        .extend(["loop#1", "loop#2", "loop#3", "planner", "work[0]", "work[1]"].map(String::from));
    assert_eq!(keys(&run), expected);
    let none = daemon.until(&submit(&daemon, &file, &["--set", "n=0"]), "succeeded");
    assert_eq!(none["output"]["json"]["items"], 0);
}

#[test]
fn a_failure_is_met_as_the_file_says() {
    let daemon = Daemon::start(CONFIG);
    let file = file(
        &daemon,
        r#"
name = "failures"
output = "{{ steps.last.text }}"
[steps.stated]
kind = "exec"
attempts = 1
input = { argv = ["false"] }
on_failure = { output = "a stated output" }
[steps.rescued]
kind = "exec"
attempts = 1
input = { argv = ["sh", "-c", "echo no >&2; exit 3"] }
on_failure = { step = "rescue" }
[steps.rescue]
kind = "exec"
input = { argv = ["echo", "-n", "instead of: {{ steps.rescued.error }}"] }
[steps.spare]
kind = "exec"
needs = ["stated"]
when = "steps.stated.state == 'succeeded'"
input = { argv = ["echo", "never"] }
[steps.last]
kind = "exec"
needs = ["stated", "rescued", "spare"]
input = { argv = ["echo", "-n", "{{ steps.stated.text }}, {{ steps.rescued.text }}, {{ steps.spare.state }}"] }
"#,
    );
    let run = daemon.until(&submit(&daemon, &file, &[]), "succeeded");
    let said = text(&run, "/output/text");
    assert!(said.starts_with("a stated output, instead of: "), "{said}");
    assert!(said.ends_with(", skipped") && said.contains("exit code 3"), "{said}");
    assert_eq!(keys(&run), ["last", "rescue", "rescued", "stated"]);
}

/// Three steps in a row, each of which leaves a line; the second fails until a file is there.
fn fragile(traces: &Path, gate: &Path) -> String {
    let gate = gate.display();
    let traces = traces.display();
    let step = |name: &str, needs: &str, check: &str| {
        format!(
            "[steps.{name}]\nkind = 'exec'\nattempts = 1\nneeds = [{needs}]\n\
             input = {{ argv = ['sh', '-c', '{check} echo {name} >> {traces}'] }}\n"
        )
    };
    [
        "name = 'fragile'\noutput = '{{ steps.three.state }}'\n".to_owned(),
        step("one", "", ""),
        step("two", "'one'", &format!("test -e {gate} || exit 9;")),
        step("side", "'one'", ""),
        step("three", "'two', 'side'", ""),
    ]
    .concat()
}

/// The numbers of a run's attempts, as they are listed.
fn attempts(run: &Value) -> Vec<u64> {
    run["attempts"].as_array().unwrap().iter().map(|one| number(one, "/attempt")).collect()
}

#[test]
fn a_failed_run_resumes_where_it_failed() {
    let daemon = Daemon::start(CONFIG);
    let (traces, gate) = (daemon.file("traces"), daemon.file("gate"));
    let file = file(&daemon, &fragile(&traces, &gate));
    let id = submit(&daemon, &file, &[]);
    let failed = daemon.until(&id, "failed");
    assert!(text(&failed, "/error/message").contains("two"), "{}", failed["error"]);
    let step = daemon.json_lines(&["list", "--run", &id, "--state", "failed"]);
    let step = text(&step[0], "/id");
    let refused = daemon.fails(7, &["retry", &step]);
    assert!(refused.contains(&format!("forq retry {id}")), "{refused}");
    std::fs::write(&gate, "").unwrap();
    daemon.ok(&["retry", &id]);
    let run = daemon.until(&id, "succeeded");
    assert_eq!(number(&run, "/attempt"), 2);
    assert_eq!(attempts(&run), [1, 2]);
    let mut seen = lines(&traces);
    seen.sort_unstable();
    assert_eq!(seen, ["one", "side", "three", "two"], "each ran once to its end");

    daemon.ok(&["retry", &id, "--from", "side"]);
    eventually("it runs again from there", Duration::from_secs(10), || {
        (lines(&traces).len() == 6).then_some(())
    });
    let run = daemon.until(&id, "succeeded");
    assert_eq!(attempts(&run), [1, 3], "one that succeeded is not kept when another begins");
    assert_eq!(lines(&traces)[4..], ["side", "three"]);
    let refused = daemon.fails(7, &["retry", &id, "--from", "nine"]);
    assert!(refused.contains("no step 'nine'"), "{refused}");
}

#[test]
fn a_cancelled_run_takes_its_steps_along() {
    let daemon = Daemon::start(CONFIG);
    let traces = daemon.file("traces");
    let file = file(
        &daemon,
        &format!(
            "name = 'long'\n\
             [steps.runs]\nkind = 'sleep'\ninput = {{ seconds = 60 }}\n\
             [steps.inner]\nkind = 'workflow'\n\
             workflow = {{ name = 'inner', steps = {{ deep = {{ kind = 'sleep', input = {{ seconds = 60 }} }} }} }}\n\
             [steps.later]\nneeds = ['runs']\nkind = 'exec'\ninput = {}\n",
            appends(&traces, "later")
        ),
    );
    let id = submit(&daemon, &file, &[]);
    let running = || {
        let steps =
            daemon.json_lines(&["list", "--steps", "--kind", "sleep", "--state", "running"]);
        (steps.len() == 2).then_some(())
    };
    eventually("both sleeps run", Duration::from_secs(10), running);
    let run = daemon.task(&id);
    assert_eq!(run["waiting_for"], "steps");
    for step in run["by_step"].as_array().unwrap() {
        assert!(step["run_ms"].is_u64(), "it has run so far: {step}");
    }
    let deep = text(&daemon.json_lines(&["list", "--steps", "--kind", "sleep"])[0], "/id");
    let nonsense = daemon.fails(2, &["follow", &deep, "--after", "nonsense"]);
    assert!(nonsense.contains("'nonsense' is no event of a task"), "{nonsense}");
    daemon.ok(&["cancel", &id]);
    daemon.until(&id, "cancelled");
    let ended = || {
        let steps =
            daemon.json_lines(&["list", "--steps", "--kind", "sleep", "--state", "cancelled"]);
        (steps.len() == 2).then_some(())
    };
    eventually("both sleeps are cancelled", Duration::from_secs(10), ended);
    assert!(daemon.json_lines(&["queue", "items"]).is_empty());
    assert!(!traces.exists());
}

#[test]
fn a_thousand_runs_that_wait_hold_no_slot() {
    let daemon = Daemon::start(CONFIG);
    let file = file(
        &daemon,
        "name = 'chain'\n\
         [steps.a]\nkind = 'noop'\n[steps.b]\nneeds = ['a']\nkind = 'noop'\n\
         [steps.c]\nneeds = ['b']\nkind = 'workflow'\n\
         workflow = { name = 'in', steps = { d = { kind = 'noop' }, e = { needs = ['d'], kind = 'noop' } } }\n",
    );
    let definition = daemon.file("task.json");
    let id = submit(&daemon, &file, &[]);
    let input = daemon.until(&id, "succeeded")["input"].clone();
    std::fs::write(&definition, input.to_string()).unwrap();
    let tasks: Vec<Value> = (0..1000)
        .map(|n| {
            // Half of them in a few lanes.
            let lane = (n % 2 == 0).then(|| format!("lane-{}", n % 10));
            json!({ "kind": "workflow", "input": input, "lane": lane })
        })
        .collect();
    let began = Instant::now();
    let ids = daemon.submit_all(&tasks);
    daemon.wait_for_all(&ids, LONG);
    eprintln!("1,000 runs of 5 steps in {:?}", began.elapsed());
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/failed"), 0);
    assert_eq!(number(&stats, "/blocked") + number(&stats, "/queued"), 0);
}

#[test]
fn one_key_is_one_run_and_one_step() {
    let daemon = Daemon::start(CONFIG);
    let traces = daemon.file("traces");
    let file = file(
        &daemon,
        &format!(
            "name = 'keyed'\nkey = '{{{{ inputs.topic | sha256 }}}}'\n[inputs]\ntopic = {{}}\nother = {{ default = '' }}\n\
             [steps.search]\nkind = 'exec'\nkey = 'search {{{{ inputs.topic | lower }}}}'\ninput = {}\n",
            appends(&traces, "searched")
        ),
    );
    let first = submit(&daemon, &file, &["--set", "topic=Bees"]);
    let second = submit(&daemon, &file, &["--set", "topic=Bees"]);
    assert_eq!(first, second);
    let other = submit(&daemon, &file, &["--set", "topic=BEES"]);
    assert_ne!(first, other);
    daemon.until(&first, "succeeded");
    daemon.until(&other, "succeeded");
    assert_eq!(submit(&daemon, &file, &["--set", "topic=Bees"]), first, "also when it is done");
    assert_eq!(lines(&traces), ["searched"], "the step's key is for all runs");
}

#[test]
fn a_run_keeps_the_file_that_it_began_with() {
    let daemon = Daemon::start(CONFIG);
    let (traces, gate) = (daemon.file("traces"), daemon.file("gate"));
    let before = fragile(&traces, &gate);
    let file = file(&daemon, &before);
    let id = submit(&daemon, &file, &[]);
    daemon.until(&id, "failed");
    std::fs::write(&file, before.replace("echo three", "echo edited")).unwrap();
    std::fs::write(&gate, "").unwrap();
    daemon.ok(&["retry", &id]);
    daemon.until(&id, "succeeded");
    assert!(lines(&traces).contains(&"three".to_owned()), "{:?}", lines(&traces));
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let daemon = Daemon::start(CONFIG);
    let bad = "name = 'bad'\n\
               [steps.a]\nneeds = ['b']\nprompt = \"\"\"\nline one\n{{ inputs.nothing }}\n\"\"\"\n\
               [steps.b]\nneeds = ['a', 'c']\nprompt = '{{ steps.d.text }}'\n\
               [steps.d]\nprompt = '{{ 1 | nofilter }}'\nagnt = 'x'\n";
    let file = file(&daemon, bad);
    let at = format!("@{}", file.display());
    let check = daemon.fails(2, &["config", "check", file.to_str().unwrap()]);
    let submitted = daemon.fails(2, &["submit", "workflow", &at]);
    for said in [check, submitted] {
        for part in [
            "a -> b -> a",
            "workflow.toml:6: steps.a.prompt",
            "there is no step c",
            "nofilter",
            "agnt",
        ] {
            assert!(said.contains(part), "'{part}' in: {said}");
        }
    }
    std::fs::write(&file, "name = 'kinds'\n[steps.a]\nkind = 'nokind'\n").unwrap();
    let refused = daemon.fails(2, &["submit", "workflow", &at]);
    assert!(refused.contains("steps.a") && refused.contains("unknown kind 'nokind'"), "{refused}");
    std::fs::write(&file, "name = 'set'\n[inputs]\nn = { type = 'integer', required = true }\n[steps.a]\nkind = 'noop'\n").unwrap();
    let refused = daemon.fails(2, &["submit", "workflow", &at]);
    assert!(refused.contains("input n is missing"), "{refused}");
    assert!(daemon.json_lines(&["list"]).is_empty(), "nothing was accepted");
}

#[test]
fn an_error_at_run_time_names_file_step_and_line() {
    let daemon = Daemon::start(CONFIG);
    let file = file(
        &daemon,
        "name = 'late'\n[steps.a]\nkind = 'exec'\ninput = { argv = ['echo', 'x'] }\n\
         [steps.b]\nneeds = ['a']\nkind = 'exec'\ninput = { argv = ['echo', '{{ steps.a.output.nothing }}'] }\n",
    );
    let run = daemon.until(&submit(&daemon, &file, &[]), "failed");
    let message = text(&run, "/error/message");
    assert!(message.contains("workflow.toml:8: steps.b.input"), "{message}");
    assert!(message.contains("undefined"), "{message}");
    for (step, said) in [
        (
            "input = { argv = ['echo', '{{ 5 }}'] }",
            "workflow.toml:3: steps.a: exec: input.argv[1]: ",
        ),
        (
            "for_each = '[1, 2]'\nmax = 1\ninput = { argv = ['echo'] }",
            "workflow.toml:3: steps.a: for_each gives 2 items",
        ),
    ] {
        let step = format!("name = 'late'\n\n[steps.a]\nkind = 'exec'\n{step}\n");
        std::fs::write(&file, step).unwrap();
        let run = daemon.until(&submit(&daemon, &file, &[]), "failed");
        let message = text(&run, "/error/message");
        assert!(message.contains(said), "{message}");
    }
    let status = daemon.ok(&["status", &text(&run, "/id")]);
    assert!(!status.contains("\"steps\""), "its definition is left out: {status}");
}

#[test]
fn a_run_that_grows_too_large_leaves_its_worker_free() {
    const LIMIT_BYTES: usize = 64 << 10;
    let one_slot = "[workers]\nmin = 1\nmax = 1\nconcurrency = 1\n";
    let daemon = Daemon::start(&format!("{one_slot}[queue]\ninput_bytes_max = '64KiB'\n"));
    let workflow = |bytes: usize| {
        format!(
            "name = 'large'\n[steps.a]\nkind = 'exec'\n\
             input = {{ argv = ['sh', '-c', 'yes | tr -d \"\\n\" | head -c {bytes}'] }}\n\
             [steps.b]\nneeds = ['a']\nkind = 'noop'\n"
        )
    };
    let file = file(&daemon, &workflow(1000));
    daemon.until(&submit(&daemon, &file, &[]), "succeeded");
    let step = daemon.json_lines(&["list", "--steps", "--kind", "exec"]).remove(0);
    let besides = daemon.task(&text(&step, "/id"))["output"].to_string().len() - 1000;
    // An output that is just allowed, and too large for its run.
    std::fs::write(&file, workflow(LIMIT_BYTES - 16 - besides)).unwrap();
    for _ in 0..2 {
        let run = daemon.until(&submit(&daemon, &file, &[]), "failed");
        let message = text(&run, "/error/message");
        assert!(message.contains("input_bytes_max = 65536"), "{message}");
    }
    let after = daemon.ok(&["submit", "noop"]).trim().to_owned();
    daemon.until(&after, "succeeded");
}
