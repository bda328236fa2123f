//! What the messages between the processes of one instance look like as bytes, held to a file.
//!
//! After an upgrade the workers of the old build go on speaking to the master and the broker of
//! the new one, until their tasks have ended. So these bytes may not change by accident.
//!
//! **When a test here fails** and you have changed a message:
//! * A new variant at the end of its enum changes no bytes of the others, and needs a new line in
//!   the file, which the failure prints. It may be sent only to a process of a build that knows
//!   it: a new build's master must not send it to an adopted worker.
//! * Anything else (a new field, another type or order, a variant in between) is a new version of
//!   the protocol: raise [`link::LINK_PROTOCOL`], keep reading what this file holds from workers
//!   that say the old version in their hello, and add `v2.txt` beside `v1.txt`, which stays for as
//!   long as upgrades from builds that speak it are allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{calls, codec, lifeline, link, steps};
use crate::handler::Needs;
use crate::task::{Cause, ErrorKind, LossReason, TaskError, TaskId, Usage};

/// One message a line: its type and variant, then its bytes.
const V1: &str = include_str!("fixtures/v1.txt");

/// The messages of one type beside the lines of the file.
struct Lines {
    checked_in: BTreeMap<&'static str, &'static str>,
    differences: String,
}

impl Lines {
    fn read() -> Self {
        let lines = V1.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let checked_in: BTreeMap<_, _> =
            lines.clone().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(checked_in.len(), lines.count(), "each message has one line");
        Self { checked_in, differences: String::new() }
    }

    /// Each of these is written as the file has it, and read back from there; together they are
    /// all variants of their type, in order.
    fn check<T>(&mut self, of: &str, messages: &[T])
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let mut variants = BTreeSet::new();
        for message in messages {
            let bytes = codec::encode(message).unwrap();
            variants.insert(usize::from(bytes[0]));
            let shown = format!("{message:?}");
            let variant = shown.split([' ', '(', '{']).next().unwrap_or_default();
            let copies = self.differences_of(&format!("{of}::{variant}"), &hex(&bytes));
            let Some(bytes) = copies else { continue };
            let read = codec::decode::<T>(&unhex(bytes));
            assert_eq!(&read.expect("a message of before"), message);
        }
        let all: BTreeSet<usize> = (0..variants_of::<T>()).collect();
        assert_eq!(variants, all, "a message of each variant of {of}");
    }

    /// Notes a difference to the line of this message; gives the line if there is one.
    fn differences_of(&mut self, name: &str, bytes: &str) -> Option<&'static str> {
        let line = self.checked_in.remove(name);
        if line != Some(bytes) {
            let _ = writeln!(self.differences, "{name} {bytes}");
        }
        line.filter(|line| *line == bytes)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// How many variants an enum has: serde says so to whoever asks for one that is not there.
fn variants_of<T: DeserializeOwned>() -> usize {
    let Err(error) = codec::decode::<T>(&[250]) else { panic!("variant 250 of a message") };
    let error = format!("{error:?}");
    let (_, after) = error.split_once("0 <= i < ").unwrap_or_else(|| panic!("{error}"));
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..end].parse().unwrap()
}

const RUN: link::Run = link::Run { seq: 70_000, attempt: 3 };
const USAGE: Usage = Usage { prompt_tokens: 1, completion_tokens: 300, total_tokens: 70_000 };

fn grant() -> calls::Grant {
    calls::Grant { permit: 1 << 40, server: "p".to_owned(), tokens: 70_000 }
}

fn begin(start: link::Start) -> calls::Begin {
    let (grant, cached) = (Some(grant()), Some("{}".to_owned()));
    calls::Begin { start, grant, calls_max: 3, cached, stale: None }
}

fn cause(reason: LossReason) -> Cause {
    Cause { signal: Some("SIGABRT".to_owned()), exit_code: Some(-1), reason: Some(reason) }
}

fn hello() -> link::Hello {
    link::Hello {
        protocol: 1,
        build: "0.1.0".to_owned(),
        slot: 2,
        serial: 1 << 40,
        generation: 3,
        capacity: 250,
        holds: vec![RUN, link::Run { seq: -1, attempt: 251 }],
    }
}

fn step_task() -> steps::StepTask {
    let needs = Needs {
        gate: "m:default".to_owned(),
        tokens: 512,
        cache_key: Some(1 << 100),
        cache_refresh: true,
        agent: Some("host".to_owned()),
    };
    steps::StepTask {
        id: TaskId(uuid::Uuid::from_u128(1 << 64)),
        key: "scene[3]".to_owned(),
        kind: "chat".to_owned(),
        input: "{}".to_owned(),
        priority: Some(7),
        timeout_ms: Some(60_000),
        max_attempts: Some(3),
        task_key: Some("k".to_owned()),
        expect: Some("{}".to_owned()),
        needs,
    }
}

fn step_news() -> Vec<steps::StepNews> {
    use steps::{StepEnd, StepNews};
    let news = |key: &str, end| StepNews { key: key.to_owned(), end };
    vec![
        news("plot", Some(StepEnd::Succeeded("{}".to_owned()))),
        news("scene[3]", Some(StepEnd::Failed("why".to_owned()))),
        news("table#2", None),
    ]
}

fn outcomes() -> Vec<link::Outcome> {
    let error = TaskError {
        kind: ErrorKind::Provider,
        message: "mäßig".to_owned(),
        retryable: true,
        cause: Some(cause(LossReason::Heartbeat)),
    };
    vec![
        link::Outcome::Succeeded { output: "{\"a\":1}".to_owned(), usage: Some(USAGE) },
        link::Outcome::Failed { error: error.clone(), retry_after_ms: Some(1500) },
        link::Outcome::Cancelled,
        link::Outcome::Advanced { steps: vec![step_task()] },
        link::Outcome::Forgotten,
        link::Outcome::RunFailed { error, blamed: vec!["plot".to_owned()] },
    ]
}

#[test]
fn between_worker_and_broker() {
    let mut lines = Lines::read();
    lines.checked_in.retain(|name, _| name.starts_with("link::"));
    let [text, data] = [link::EventBody::Text("t".into()), link::EventBody::Data("{}".into())];
    let event = |n, body| link::TaskEvent { run: RUN, n, body };
    let outcome = outcomes().remove(0);
    lines.check(
        "link::ToBroker",
        &[
            link::ToBroker::Hello(hello()),
            link::ToBroker::Credits { capacity: 32 },
            link::ToBroker::Events {
                events: vec![event(1, text.clone()), event(1 << 20, data.clone())],
            },
            link::ToBroker::Done(link::Done { run: RUN, run_ms: 1234, outcome }),
            link::ToBroker::Permits { held: vec![(RUN, grant())] },
            link::ToBroker::Ask(calls::Ask {
                run: RUN,
                number: 2,
                servers: vec!["local".to_owned(), "search/jina".to_owned()],
                tokens: 300,
            }),
            link::ToBroker::Settled(calls::Settled {
                run: RUN,
                grant: grant(),
                model: "m".to_owned(),
                outcome: calls::CallOutcome::Failed,
                usage: Some(USAGE),
                closed_ms: Some(1500),
                late_ms: 5,
            }),
        ],
    );
    let id = TaskId(uuid::Uuid::from_u128(0x0199_aabb_ccdd_7eee_8fff_0123_4567_89ab));
    let (kind, input) = ("chat".to_owned(), "{}".to_owned());
    let start = link::Start { run: RUN, id, kind, input, timeout_ms: 600_000 };
    lines.check(
        "link::ToWorker",
        &[
            link::ToWorker::Run(start.clone()),
            link::ToWorker::Cancel(RUN),
            link::ToWorker::Ack { runs: vec![RUN] },
            link::ToWorker::Drain,
            link::ToWorker::Begin(begin(start.clone())),
            link::ToWorker::Answered(calls::Answered { run: RUN, number: 2, result: Ok(grant()) }),
            link::ToWorker::Advance(steps::Advance {
                start: start.clone(),
                known: true,
                steps: step_news(),
            }),
            link::ToWorker::BeginWith(steps::BeginWith {
                begin: begin(start),
                expect: Some("{}".to_owned()),
                history: Some("[]".to_owned()),
            }),
        ],
    );
    lines.check("link::CallOutcome", &{
        use calls::CallOutcome::*;
        [Succeeded, Failed, Refused, Abandoned, NotMade]
    });
    lines.check("link::Outcome", &outcomes());
    lines.check("link::EventBody", &[text, data]);
    lines.check("link::ErrorKind", &{
        use ErrorKind::*;
        [Handler, Input, Timeout, WorkerLost, Provider, Cancelled]
    });
    all_there(lines);
}

fn pool() -> lifeline::Pool {
    let worker = lifeline::PoolWorker {
        slot: 1,
        pid: Some(4321),
        serial: 9,
        generation: 2,
        ready: true,
        drain: 5,
        restarts: 6,
        backoff_ms: 700,
        last_exit: Some("ended by SIGKILL".to_owned()),
    };
    lifeline::Pool {
        phase: "running".to_owned(),
        reason: Some("why".to_owned()),
        generation: 2,
        rolled: true,
        upgrade_error: Some("no".to_owned()),
        scale: lifeline::Scale { min: 1, max: 8, want: 3, reason: "load".to_owned() },
        broker_restarts: 4,
        workers: vec![worker, lifeline::PoolWorker::default()],
    }
}

#[test]
fn between_master_and_broker() {
    let mut lines = Lines::read();
    lines.checked_in.retain(|name, _| {
        let other = ["link::", "lifeline::FromWorker", "lifeline::ToWorker", "lifeline::FromCh"];
        !other.iter().any(|other| name.starts_with(other))
    });
    let exit = lifeline::Exit { serial: 7, pid: 4321, cause: cause(LossReason::Oom) };
    lines.check(
        "lifeline::ToBroker",
        &[
            lifeline::ToBroker::Pool(pool()),
            lifeline::ToBroker::Exited(exit),
            lifeline::ToBroker::Stop { drain_ms: 30_000 },
            lifeline::ToBroker::Config { piece: b"[log]".to_vec(), last: true },
            lifeline::ToBroker::Answer { asker: 7, result: Err("line 3".to_owned()) },
            lifeline::ToBroker::ReopenLog,
        ],
    );
    let load = lifeline::Load {
        ready: 1,
        in_flight: 2,
        oldest_wait_ms: 3000,
        slots: 64,
        ceiling: Some(5),
        busy: vec![(9, 2), (1 << 40, 1)],
    };
    let asker = lifeline::Asker { number: 7, request: u128::MAX - 1 };
    let ask = lifeline::Ask::Resize(lifeline::Resize::More(2));
    lines.check(
        "lifeline::FromBroker",
        &[
            lifeline::FromBroker::Opening,
            lifeline::FromBroker::Ready,
            lifeline::FromBroker::Fatal { message: "why".to_owned() },
            lifeline::FromBroker::ExitSeen { serial: 300 },
            lifeline::FromBroker::StopAsked { now: true },
            lifeline::FromBroker::Drained,
            lifeline::FromBroker::Beat(load),
            lifeline::FromBroker::Idle { serial: 9, drain: 1 },
            lifeline::FromBroker::Asked { asker, ask },
            lifeline::FromBroker::Migrating,
        ],
    );
    lines.check("lifeline::Ask", &[lifeline::Ask::Reload, lifeline::Ask::Upgrade, ask]);
    let resizes = [lifeline::Resize::To(1), lifeline::Resize::More(2), lifeline::Resize::Fewer(3)];
    lines.check("lifeline::Resize", &resizes);
    lines.check("lifeline::LossReason", &{
        use LossReason::*;
        [Crash, Oom, Heartbeat, Memory]
    });
    all_there(lines);
}

/// These are spoken across an upgrade: adopted workers, and the new image's check.
#[test]
fn between_master_and_the_others() {
    let mut lines = Lines::read();
    lines.checked_in.retain(|name, _| {
        let mine = ["lifeline::FromWorker", "lifeline::ToWorker", "lifeline::FromCh"];
        mine.iter().any(|mine| name.starts_with(mine))
    });
    lines.check(
        "lifeline::FromWorker",
        &[lifeline::FromWorker::Ready, lifeline::FromWorker::Beat { tasks_done: 70_000 }],
    );
    lines.check("lifeline::ToWorker", &[lifeline::ToWorker::ReopenLog]);
    lines.check(
        "lifeline::FromChecker",
        &[lifeline::FromChecker::Good, lifeline::FromChecker::bad("line 3".to_owned())],
    );
    all_there(lines);
}

#[track_caller]
fn all_there(lines: Lines) {
    let Lines { checked_in, differences } = lines;
    assert!(
        differences.is_empty(),
        "not as in fixtures/v1.txt; read the top of this file before you change it:\n{differences}"
    );
    assert!(checked_in.is_empty(), "no such message any more: {checked_in:?}");
}
