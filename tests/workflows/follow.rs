//! Those who follow a run: every event, once.

use std::io::{BufRead, BufReader};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::model::Model;
use crate::support::random::Random;
use crate::support::{Daemon, Role, Value, text};
use crate::{CONFIG, NOVEL, file, from_env, submit};

/// What one `forq follow --json` told: of at most `events_max` events, which then is killed.
fn followed(daemon: &Daemon, id: &str, after: Option<&str>, events_max: u64) -> Vec<Value> {
    let mut args = vec!["follow", id, "--json", "--all"];
    args.extend(after.into_iter().flat_map(|after| ["--after", after]));
    let mut child = daemon.background(&args);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut events = Vec::new();
    for line in lines.map_while(Result::ok) {
        events.push(serde_json::from_str(&line).unwrap());
        if events.len() as u64 == events_max {
            break;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    events
}

#[test]
fn events_go_on_behind_any_of_them_without_a_gap_or_a_repeat() {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = from_env("FORQ_FOLLOW_SEED", nanos.into());
    eprintln!("FORQ_FOLLOW_SEED={seed}");
    let mut random = Random::new(seed);
    let model = Model::start(&["--first-token-ms", "40", "--tokens-per-second", "100"]);
    let daemon = Daemon::start(&format!("{CONFIG}{}", model.config()));
    let id = submit(&daemon, &file(&daemon, NOVEL), &["--set", "n=1"]);
    let mut told: Vec<Value> = Vec::new();
    let is_over = |told: &[Value]| told.last().is_some_and(|event| event["type"] == "finished");
    while !is_over(&told) {
        let after = told.last().map(|event| text(event, "/event"));
        told.extend(followed(&daemon, &id, after.as_deref(), random.between(1, 12)));
        if random.chance(40) {
            daemon.strike(Role::Broker);
        }
    }
    let run = daemon.task(&id);
    for step in run["by_step"].as_array().unwrap() {
        let of_step = |event: &&Value| event["step"] == step["step"];
        let of_step: Vec<&Value> = told.iter().filter(of_step).collect();
        let states: Vec<String> = of_step
            .iter()
            .filter(|event| event["type"] == "step")
            .map(|event| text(event, "/view/state"))
            .collect();
        let ends = states.iter().filter(|state| *state == "succeeded").count();
        assert_eq!(
            (ends, states.last().map(String::as_str)),
            (1, Some("succeeded")),
            "{states:?} of {told:#?}"
        );
        let texts = of_step.iter().filter(|event| event["type"] == "text");
        let told: String = texts.map(|event| text(event, "/text")).collect();
        let output = daemon.task(&text(step, "/id"));
        assert_eq!(told, text(&output, "/output/text"), "of {}", step["step"]);
        assert!(of_step.iter().all(|event| event["type"] != "restarted"), "{of_step:?}");
    }
    let again = followed(&daemon, &id, None, u64::MAX);
    let ends = again.iter().filter(|event| event["view"]["state"] == "succeeded").count();
    assert_eq!((ends, again.last().unwrap()["type"].as_str()), (7, Some("finished")));
    let nonsense = daemon.fails(2, &["follow", &id, "--after", "nonsense"]);
    assert!(nonsense.contains("nonsense"), "{nonsense}");
}

#[test]
fn the_first_text_comes_with_the_first_token() {
    let model = Model::start(&["--first-token-ms", "300", "--tokens-per-second", "20"]);
    let daemon = Daemon::start(&format!("{CONFIG}{}", model.config()));
    let file = file(
        &daemon,
        "name = 'voice'\nvoice = 'a'\n[steps.a]\nprompt = 'Say a word.'\n\
         [steps.b]\nneeds = ['a']\nprompt = '{{ steps.a.text }}'\n",
    );
    let id = submit(&daemon, &file, &[]);
    let mut child = daemon.background(&["follow", &id, "--json"]);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let events = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let first = events.into_iter().find(|event| event["type"] == "text").expect("text");
    assert_eq!(first["step"], "a");
    let step = daemon.json_lines(&["list", "--run", &id]).pop().unwrap();
    assert_eq!(step["state"], "running", "its text is told before it has ended");
    let _ = child.kill();
    let _ = child.wait();
}
