//! Every fault of a server against every way to call it: what becomes of the task, what it says,
//! and what a follower sees meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::process::Child;

use support::model::{Model, provider};
use support::{Daemon, Value, eventually_eq, json, json_lines, number, text};

/// How a chain meets a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// Nobody else is asked.
    Alone,
    /// Nobody else is asked, and the answer is to come in one piece.
    AloneWhole,
    /// A healthy provider is next, and text is told as it comes.
    Restart,
    /// A healthy provider is next, and text is held until its provider has proved itself.
    BufferFirst,
}

use Policy::{Alone, AloneWhole, BufferFirst, Restart};

const POLICIES: [Policy; 4] = [Alone, AloneWhole, Restart, BufferFirst];

/// What a fault does to a call.
#[derive(Clone, Copy)]
enum Harm {
    /// It is answered all the same.
    None,
    /// It fails; another provider may answer.
    Call(&'static str, May),
    /// The request is bad everywhere.
    Request(&'static str),
}

/// Whether the same call may be answered later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    Pass,
    Stay,
}

use Harm::{Call, None as Harmless, Request};
use May::{Pass, Stay};

struct Case {
    fault: &'static str,
    /// Of a stream: what the error says of the provider.
    stream: Harm,
    /// Of an answer in one piece.
    whole: Harm,
    /// Whether there is text before a stream fails.
    tells: bool,
}

const fn same(fault: &'static str, harm: Harm) -> Case {
    Case { fault, stream: harm, whole: harm, tells: false }
}

const FIRST: Harm = Call("did not answer in time: first_token_timeout of 1 s", Pass);
const IDLE: Harm = Call("did not answer in time: idle_timeout of 1 s", Pass);
const LATE: Harm = Call("did not answer in time: timeout of 3 s", Pass);
const CUT: Harm = Call("broke off the answer: ", Pass);

/// A server that is not there.
const DEAD: &str = "dead";

const CASES: [Case; 16] = [
    same("429", Call("answered 429: The simulated rate limit", Pass)),
    same("429-retry-after", Call("answered 429: The simulated rate limit", Pass)),
    same("500", Call("answered 500: The simulated model failed", Pass)),
    same("400", Request("answered 400: The simulated request is bad")),
    same("401", Call("answered 401: The simulated key is wrong", Stay)),
    same("wrong-content-type", Call("answered with 'text/html', not a completion", Stay)),
    same("redirect", Call("answered 302: redirects are not followed", Stay)),
    same(DEAD, Call("could not be reached at 127.0.0.1:1: ", Pass)),
    Case { fault: "hang", stream: FIRST, whole: LATE, tells: false },
    Case { fault: "slow-drip", stream: FIRST, whole: LATE, tells: false },
    Case { fault: "hang-mid-stream", stream: IDLE, whole: LATE, tells: true },
    Case { fault: "cut-mid-stream", stream: CUT, whole: CUT, tells: true },
    Case {
        fault: "garbage-json",
        stream: Call("sent an event that is no chunk: ", Pass),
        whole: Call("sent an answer that is no completion: ", Pass),
        tells: true,
    },
    same("split-utf8", Harmless),
    Case {
        fault: "big-chunk",
        stream: Call("said too much: ", Stay),
        whole: Harmless,
        tells: false,
    },
    Case { fault: "endless", stream: LATE, whole: Call("said too much: ", Stay), tells: true },
];

/// A task that is followed from before its start.
struct Run {
    case: &'static Case,
    policy: Policy,
    id: String,
    follower: Option<Child>,
}

/// Each case has a provider of its own: a door that one closes is closed to it alone.
fn name(case: &Case, policy: Policy) -> String {
    format!("{}-{policy:?}", case.fault).to_lowercase()
}

fn config(model: &Model, large: &Model) -> String {
    let short = "first_token_timeout = '1s'\nidle_timeout = '1s'\ntimeout = '3s'";
    // What sends megabytes may take its time to begin.
    let long = "first_token_timeout = '20s'\nidle_timeout = '20s'\ntimeout = ";
    let mut config = format!("[workers]\nmin = 4\nmax = 4\n{}", provider("good", &model.url, ""));
    for case in &CASES {
        for policy in POLICIES {
            let name = name(case, policy);
            let (url, limits) = match case.fault {
                DEAD => ("http://127.0.0.1:1/v1", short.to_owned()),
                // In one piece it ends by its size, however long that takes.
                "endless" if policy == AloneWhole => (&*large.url, format!("{long}'60s'")),
                "endless" => (&*large.url, format!("{long}'3s'")),
                "big-chunk" => (&*large.url, format!("{long}'20s'")),
                _ => (&*model.url, short.to_owned()),
            };
            config += &provider(&name, url, &limits);
            let next = if matches!(policy, Restart | BufferFirst) { ", 'good/m'" } else { "" };
            let streaming = if policy == BufferFirst { "buffer_first" } else { "restart" };
            config += &format!(
                "[models.{name}]\nchain = ['{name}/fault-{}'{next}]\nstreaming = '{streaming}'\n",
                case.fault.replace(DEAD, "500")
            );
        }
    }
    config
}

#[test]
fn every_fault_has_its_answer_under_every_policy() {
    let quick = || Model::start(&["--first-token-ms", "0", "--tokens-per-second", "0"]);
    // What sends megabytes has a server of its own: the others are to be in time.
    let (model, large) = (quick(), quick());
    let daemon = Daemon::start(&config(&model, &large));
    let (_, events) = daemon.run_followed("chat", &json!({ "prompt": PROMPT, "model": "good/m" }));
    let healthy = told(&events);
    assert!(!healthy.is_empty());

    daemon.ok(&["queue", "pause"]);
    let pairs = CASES.iter().flat_map(|case| POLICIES.map(|policy| (case, policy)));
    let mut runs: Vec<Run> = pairs.map(|(case, policy)| start(&daemon, case, policy)).collect();
    let followers: Vec<_> =
        runs.iter_mut().map(|run| listen(run.follower.take().unwrap())).collect();
    daemon.ok(&["queue", "resume"]);
    let ids: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
    daemon.wait_for_all(&ids, "30s");
    let mut wrong = Vec::new();
    for (run, follower) in runs.iter().zip(followers) {
        let events = follower.join().unwrap();
        if let Err(what) = judge(run, &daemon.task(&run.id), &events, &healthy) {
            wrong.push(format!("{} {:?}: {what}", run.case.fault, run.policy));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), runs.len(), wrong.join("\n"));
    // Nothing is left open by what failed.
    eventually_eq(0, || number(&model.stats(), "/open_requests"));
    eventually_eq(0, || number(&large.stats(), "/open_requests"));
}

const PROMPT: &str = "Say a word. A short word.";

fn start(daemon: &Daemon, case: &'static Case, policy: Policy) -> Run {
    let mut input = json!({ "prompt": PROMPT, "model": name(case, policy) });
    if policy == AloneWhole {
        input["stream"] = false.into();
    }
    let id = daemon.submit("chat", &input, &["--max-attempts", "1"]);
    let follower = Some(daemon.background(&["follow", &id, "--json"]));
    Run { case, policy, id, follower }
}

/// Waits until somebody follows; everything that is told comes with the thread's end.
fn listen(mut follower: Child) -> std::thread::JoinHandle<Vec<Value>> {
    use std::io::{BufRead, BufReader, Read};
    let mut stdout = BufReader::new(follower.stdout.take().unwrap());
    let mut told = String::new();
    stdout.read_line(&mut told).unwrap();
    std::thread::spawn(move || {
        stdout.read_to_string(&mut told).unwrap();
        follower.wait().unwrap();
        json_lines(told.as_bytes())
    })
}

/// The text that counts for a follower: what came since the last restart.
fn told(events: &[Value]) -> String {
    let since = events.iter().rposition(|event| !event["data"]["restarted"].is_null());
    let events = &events[since.map_or(0, |at| at + 1)..];
    events.iter().filter_map(|event| event["text"].as_str()).collect()
}

fn restarts(events: &[Value]) -> usize {
    events.iter().filter(|event| !event["data"]["restarted"].is_null()).count()
}

macro_rules! check {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

fn judge(run: &Run, task: &Value, events: &[Value], healthy: &str) -> Result<(), String> {
    let harm = if run.policy == AloneWhole { run.case.whole } else { run.case.stream };
    match harm {
        Harmless => answered(run, task, events),
        Request(said) => failed(run, task, said, Stay),
        Call(said, may) if matches!(run.policy, Alone | AloneWhole) => failed(run, task, said, may),
        Call(said, _) => fell_back(run, task, events, said, healthy),
    }
}

/// By the provider with the fault.
fn answered(run: &Run, task: &Value, events: &[Value]) -> Result<(), String> {
    check!(task["state"] == "succeeded", "{}", short(task));
    check!(task["output"]["provider"] == name(run.case, run.policy), "{}", short(task));
    let answer = text(task, "/output/text");
    match run.case.fault {
        "split-utf8" => {
            let whole = ["é", "漢", "🦀"].iter().all(|wide| answer.contains(wide));
            check!(whole && !answer.contains('\u{fffd}'), "{answer}");
        }
        _ => check!(answer.len() == 10_000_000, "{} bytes", answer.len()),
    }
    // More than is kept for followers has a gap, and says so.
    let gap = events.iter().any(|event| event["type"] == "gap");
    check!(gap || told(events) == answer, "followers saw {}", told(events).len());
    check!(restarts(events) == 0, "{} restarts", restarts(events));
    Ok(())
}

/// With nobody else to ask.
fn failed(run: &Run, task: &Value, said: &str, may: May) -> Result<(), String> {
    check!(task["state"] == "failed", "{}", short(task));
    let error = &task["error"];
    check!(error["kind"] == "provider", "{error}");
    check!(error["retryable"] == (may == Pass), "{error}");
    let expected = format!("provider '{}' {said}", name(run.case, run.policy));
    check!(text(error, "/message").starts_with(&expected), "{error}, not {expected}");
    Ok(())
}

/// The healthy provider answered.
fn fell_back(
    run: &Run,
    task: &Value,
    events: &[Value],
    said: &str,
    healthy: &str,
) -> Result<(), String> {
    check!(task["state"] == "succeeded", "{}", short(task));
    check!(task["output"]["provider"] == "good", "{}", short(task));
    check!(text(task, "/output/text") == healthy, "{}", short(task));
    let fallback = &task["output"]["fallbacks"][0];
    check!(fallback["provider"] == name(run.case, run.policy), "{fallback}");
    check!(text(fallback, "/error").starts_with(said), "{fallback}");
    check!(told(events) == healthy, "followers saw {}", told(events));
    // Endless text has proved itself before it fails.
    let hears = run.case.tells && (run.policy == Restart || run.case.fault == "endless");
    check!(restarts(events) == usize::from(hears), "{} restarts", restarts(events));
    let all: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    check!(hears == (all != healthy), "followers saw {} bytes", all.len());
    let reason = events.iter().find_map(|event| event["data"]["restarted"]["reason"].as_str());
    let expected = format!("provider '{}' {said}", name(run.case, run.policy));
    check!(reason.is_none_or(|reason| reason.starts_with(&expected)), "{reason:?}");
    Ok(())
}

fn short(task: &Value) -> String {
    task.to_string().chars().take(1500).collect()
}
