use std::time::Duration;

use clap::Parser;

use super::books::Books;
use super::*;
use crate::cli::fake::{Act, FakeDaemon};
use crate::protocol::control::{Ended, Refusal, RefusalKind, Reply, Request};
use crate::task::State;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

fn args(line: &str) -> BenchArgs {
    Line::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).unwrap().args
}

#[test]
fn options_decide_the_pace_and_the_batch() {
    let table = [
        ("", 1_250, Pace::Pipelined),
        ("--count 100", 500, Pace::Pipelined),
        ("--count 1000000", 5_000, Pace::Pipelined),
        ("--batch 7", 7, Pace::Pipelined),
        ("--batch 1", 1, Pace::Acknowledged),
        ("--batch 1 --wait", 1, Pace::Finished),
        ("--clients 64", 1, Pace::Acknowledged),
        ("--clients 64 --batch 10", 10, Pace::Acknowledged),
    ];
    for (line, batch, pace) in table {
        let args = args(line);
        assert_eq!((args.batch(), args.pace()), (batch, pace), "{line}");
    }
}

#[test]
fn every_task_is_somebodys() {
    for line in ["--count 10 --clients 3", "--count 2 --clients 64", "--count 64 --clients 64"] {
        let args = args(line);
        let shares: Vec<_> = (0..args.clients()).map(|index| args.share(index)).collect();
        assert_eq!(shares.iter().sum::<u64>(), args.count, "{line}");
        assert!(shares.iter().all(|share| *share > 0), "{line}");
    }
}

#[test]
fn absurd_numbers_are_refused() {
    for line in
        ["--count 0", "--clients 0", "--batch 0", "sleep --seconds=-1", "sleep --seconds nan"]
    {
        assert!(Line::try_parse_from(std::iter::once("bench").chain(line.split(' '))).is_err());
    }
}

fn ids(request: &Request) -> Vec<crate::task::TaskId> {
    match request {
        Request::Submit { tasks, .. } => tasks.iter().map(|task| task.id).collect(),
        other => panic!("{other:?}"),
    }
}

fn ended(ids: &[crate::task::TaskId], state: State) -> Reply {
    Reply::Finished { tasks: ids.iter().map(|id| Ended { id: *id, state, task: None }).collect() }
}

#[test]
fn the_books_keep_pace() {
    let began = Instant::now();
    let at = |ms| began + Duration::from_millis(ms);
    // After the submission, its acknowledgement, its tasks' ends, its end: may the next go?
    for (line, expected) in [
        ("--batch 2", [true, true, true, true]),
        ("--batch 2 --clients 2", [false, true, true, true]),
        ("--batch 2 --wait", [false, false, false, true]),
    ] {
        let plan = Plan { tasks: 4, ..args(line).plan().unwrap() };
        let mut books = Books::new(plan, began);
        let ids = ids(&books.next_submission(at(0)));
        let mut seen = vec![books.may_submit()];
        for reply in
            [Reply::Submitted { ids: ids.clone() }, ended(&ids, State::Succeeded), Reply::End]
        {
            books.take(reply, at(1)).unwrap();
            seen.push(books.may_submit());
        }
        assert_eq!(seen, expected, "{line}");
        assert!(!books.is_over());
    }
}

#[test]
fn the_books_add_up() {
    let began = Instant::now();
    let at = |ms| began + Duration::from_millis(ms);
    let plan = Plan { tasks: 3, ..args("--batch 2").plan().unwrap() };
    let mut books = Books::new(plan, began);
    let first = ids(&books.next_submission(at(0)));
    let second = ids(&books.next_submission(at(1)));
    assert_eq!((first.len(), second.len()), (2, 1));
    // Replies of two submissions mix.
    books.take(Reply::Submitted { ids: first.clone() }, at(2)).unwrap();
    books.take(ended(&first[..1], State::Succeeded), at(3)).unwrap();
    books.take(Reply::Submitted { ids: second.clone() }, at(5)).unwrap();
    books.take(ended(&second, State::Failed), at(6)).unwrap();
    books.take(Reply::End, at(6)).unwrap();
    books.take(ended(&first, State::Succeeded), at(8)).unwrap();
    books.take(Reply::End, at(8)).unwrap();
    assert!(books.is_over());
    let outcome = books.close();
    assert_eq!((outcome.submitted, outcome.succeeded), (3, 2));
    assert_eq!(outcome.submitting, Duration::from_millis(5));
    assert_eq!(outcome.running, Duration::from_millis(8));
    let report = Report::of(outcome);
    assert_eq!(report.submit_ms.map(|spread| (spread.p50, spread.max)), Some((2.0, 4.0)));
    assert_eq!(report.result_ms.map(|spread| (spread.p50, spread.max)), Some((5.0, 8.0)));
    assert_eq!(report.bare_commits_ms, None);
}

fn bench(daemon: &FakeDaemon, line: &str) -> (Result<u8, CliError>, serde_json::Value) {
    let globals =
        Globals { state_dir: Some(daemon.instance.state_dir.clone()), ..Globals::default() };
    let (mut data, mut notes) = (Vec::new(), Vec::new());
    let mut out = Out::into(&mut data, &mut notes, true);
    let result = run(args(line), &globals, &mut out);
    drop(out);
    (result, serde_json::from_slice(&data).unwrap_or_default())
}

#[test]
fn a_whole_run_over_a_socket() {
    let daemon = FakeDaemon::new(|_, request| {
        let ids = ids(&request);
        let finished = ended(&ids, State::Succeeded);
        vec![Act::Reply(Reply::Submitted { ids }), Act::Reply(finished), Act::Reply(Reply::End)]
    });
    for line in ["--count 2000", "--count 50 --clients 8", "--count 20 --batch 1 --wait"] {
        let (result, report) = bench(&daemon, line);
        assert_eq!(result.unwrap(), 0, "{line}");
        assert_eq!(report["submitted"], report["succeeded"], "{line}");
        assert!(report["submit_ms"]["p99"].as_f64().unwrap() > 0.0, "{line}: {report}");
        let is_latency = line.ends_with("--wait");
        assert_eq!(report["bare_commits_ms"]["p50"].is_f64(), is_latency, "{line}: {report}");
    }
}

#[test]
fn refusals_and_failures_decide_the_exit_code() {
    let full = FakeDaemon::new(|_, _| {
        vec![Act::Reply(Reply::Error(Refusal::new(RefusalKind::Unavailable, "full")))]
    });
    assert_eq!(bench(&full, "--count 5").0.unwrap_err().exit as u8, 5);
    let failing = FakeDaemon::new(|_, request| {
        let ids = ids(&request);
        let finished = ended(&ids, State::Failed);
        vec![Act::Reply(Reply::Submitted { ids }), Act::Reply(finished), Act::Reply(Reply::End)]
    });
    assert_eq!(bench(&failing, "--count 5").0.unwrap(), 1);
    let gone = FakeDaemon::new(|_, _| vec![Act::HangUp]);
    assert_eq!(bench(&gone, "--count 5").0.unwrap_err().exit as u8, 5);
}
