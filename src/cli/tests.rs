//! The verbs against a daemon that says what each test needs.

use std::sync::{Arc, Mutex};

use super::fake::{Act, FakeDaemon, hello, task};
use super::*;
use crate::protocol::control::{
    Change, Ended, EventPosition, FollowBody, FollowEvent, Hello, QueueCounts, Refusal,
    RefusalKind, Reply, Request,
};
use crate::task::{State, TaskId};

/// What a verb printed, and how it ended.
pub(super) struct Told {
    pub(super) exit: u8,
    pub(super) data: String,
    pub(super) notes: String,
    pub(super) error: String,
    pub(super) hint: String,
}

/// Runs a verb as the shell would, but for the process's own streams.
fn run_at(state_dir: &std::path::Path, words: &[&str]) -> Told {
    let mut line = vec!["forq", "--state-dir", state_dir.to_str().unwrap()];
    line.extend(words);
    let cli = Cli::try_parse_from(line).unwrap();
    let (mut data, mut notes) = (Vec::new(), Vec::new());
    let mut out = Out::into(&mut data, &mut notes, cli.globals.json);
    let (exit, error, hint) = match dispatch(cli, &Registry::default(), &mut out) {
        Ok(exit) => (exit, String::new(), String::new()),
        Err(error) => (error.exit as u8, error.message, error.hint.unwrap_or_default()),
    };
    drop(out);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Told { exit, data: text(data), notes: text(notes), error, hint }
}

pub(super) fn run_with(daemon: &FakeDaemon, words: &[&str]) -> Told {
    run_at(&daemon.instance.state_dir, words)
}

fn refuse(kind: RefusalKind) -> Vec<Act> {
    vec![Act::Reply(Reply::Error(Refusal::new(kind, "because")))]
}

fn accept(request: &Request) -> Vec<Act> {
    match request {
        Request::Submit { tasks, .. } => {
            let ids = tasks.iter().map(|task| task.id).collect();
            vec![Act::Reply(Reply::Submitted { ids })]
        }
        other => panic!("not a submission: {other:?}"),
    }
}

fn finished(ids: &[TaskId], state: State, output: Option<&str>) -> Act {
    let tasks =
        ids.iter().map(|&id| Ended { id, state, task: Some(task(id, state, output)) }).collect();
    Act::Reply(Reply::Finished { tasks })
}

fn event(id: TaskId, attempt: u32, n: u64, body: FollowBody) -> Act {
    let position = EventPosition { attempt, n };
    let (event, step) = (position.to_string(), None);
    Act::Reply(Reply::Event(FollowEvent { id, event, position, step, body }))
}

fn text(text: &str) -> FollowBody {
    FollowBody::Text { text: text.to_owned() }
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn bad_usage_is_refused_before_anything_is_asked() {
    let id = TaskId::new().to_string();
    let table: [(&[&str], &str); 15] = [
        (&["submit", "noop", "--priority", "10"], "priority 10: must be 0 to 9"),
        (&["submit", "noop", "--priority", "-1"], "priority -1: must be 0 to 9"),
        (&["submit", "noop", "--delay", "-5s"], "is negative"),
        (&["submit", "noop", "--timeout", "99999999h"], "ten years"),
        (&["submit", "noop", "--delay", "1s", "--at", "2030-01-01T00:00:00Z"], "cannot be used"),
        (&["submit", "noop", "--max-attempts", "0"], "must be a number from 1"),
        (&["list", "--limit", "0"], "must be a number from 1"),
        (&["queue", "pause", "--queue", "a b"], "1 to 64 letters"),
        (&["usage", "--by", "provider,week"], "one of provider, model, agent, queue, day"),
        (&["usage", "--since", "yesterday"], "write it like 2030-01-31"),
        (&["submit"], "required"),
        (&["submit", "noop", "--jsonl", "-"], "cannot be used"),
        (&["status", "nope"], "not a task id"),
        (&["wait"], "required"),
        (&["frobnicate", &id], "unrecognized subcommand"),
    ];
    for (words, expected) in table {
        let line = std::iter::once(&"forq").chain(words);
        let error = Cli::try_parse_from(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}");
        assert!(error.to_string().contains(expected), "{words:?}: {error}");
    }
}

#[test]
fn options_after_an_input_stay_options() {
    for words in [
        &["forq", "submit", "noop", "--wait"][..],
        &["forq", "submit", "noop", "-5", "--wait"],
        &["forq", "submit", "noop", "-", "--wait"],
        &["forq", "chat", "-", "--priority", "9"],
    ] {
        Cli::try_parse_from(words).unwrap();
    }
    assert!(Cli::try_parse_from(["forq", "submit", "noop", "--wiat"]).is_err());
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    for words in [
        ["forq", "--json", "--state-dir", "/x", "info"],
        ["forq", "info", "--state-dir", "/x", "--json"],
    ] {
        let globals = Cli::try_parse_from(words).unwrap().globals;
        assert!(globals.json);
        assert_eq!(globals.state_dir.as_deref(), Some(std::path::Path::new("/x")));
    }
}

#[test]
fn without_a_daemon_every_verb_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let id = TaskId::new().to_string();
    let verbs: [&[&str]; 10] = [
        &["submit", "noop"],
        &["chat", "hi"],
        &["status", &id],
        &["result", &id],
        &["wait", &id],
        &["follow", &id],
        &["list"],
        &["queue", "status"],
        &["info"],
        &["stop"],
    ];
    for words in verbs {
        let told = run_at(folder.path(), words);
        assert_eq!(told.exit, 3, "{words:?}: {}", told.error);
        assert!(told.error.contains("forq.sock: start one with `forq serve"), "{}", told.error);
    }
    // A socket that a dead daemon left is no daemon either.
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("forq.sock")).unwrap());
    assert_eq!(run_at(folder.path(), &["info"]).exit, 3);
}

#[test]
fn refusals_end_with_their_exit_codes() {
    for (kind, exit) in [
        (RefusalKind::Invalid, 2),
        (RefusalKind::Unavailable, 5),
        (RefusalKind::NoSuchTask, 6),
        (RefusalKind::Forbidden, 7),
        (RefusalKind::Internal, 70),
    ] {
        let daemon = FakeDaemon::new(move |_, _| refuse(kind));
        let id = TaskId::new().to_string();
        let verbs: [&[&str]; 4] =
            [&["status", &id], &["wait", &id], &["follow", &id], &["submit", "noop"]];
        for words in verbs {
            let told = run_with(&daemon, words);
            assert_eq!((told.exit, told.error.as_str()), (exit, "because"), "{words:?}");
        }
    }
}

#[test]
fn a_daemon_of_another_version_is_refused_with_the_cure() {
    let other = Hello { forq_protocol: 99, version: "9.9.9".to_owned(), ..hello() };
    let daemon = FakeDaemon::with_hello(other, |_, _| Vec::new());
    let told = run_with(&daemon, &["info"]);
    assert_eq!(told.exit, 2);
    assert!(told.error.contains("9.9.9") && told.error.contains("restart"), "{}", told.error);
}

#[test]
fn submit_prints_the_id_that_the_daemon_gives() {
    let older = TaskId::new();
    let daemon =
        FakeDaemon::new(move |_, _| vec![Act::Reply(Reply::Submitted { ids: vec![older] })]);
    assert_eq!(run_with(&daemon, &["submit", "noop", "--key", "k"]).data, format!("{older}\n"));
    let told = run_with(&daemon, &["--json", "submit", "noop"]);
    assert_eq!(told.data, format!("{{\"id\":\"{older}\"}}\n"));
}

#[test]
fn an_input_over_the_limit_is_refused_with_both_numbers() {
    let daemon = FakeDaemon::new(|_, request| panic!("sent: {request:?}"));
    let input = format!("\"{}\"", "x".repeat(5_000));
    let told = run_with(&daemon, &["submit", "noop", &input]);
    assert_eq!(told.exit, 2);
    assert!(told.error.contains("5002") && told.error.contains("4096"), "{}", told.error);
    assert_eq!(run_with(&daemon, &["submit", "noop", "{nope"]).exit, 2);
}

#[test]
fn a_request_whose_connection_breaks_is_sent_again_as_it_was() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sent = seen.clone();
    let daemon = FakeDaemon::new(move |connection, request| {
        sent.lock().unwrap().push(serde_json::to_value(&request).unwrap());
        if connection < 3 { vec![Act::HangUp] } else { accept(&request) }
    });
    let told = run_with(&daemon, &["submit", "noop"]);
    assert_eq!(told.exit, 0, "{}", told.error);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|request| *request == seen[0]), "the ids stay: {seen:?}");
}

#[test]
fn wait_asks_again_for_those_that_are_left() {
    let ids = [TaskId::new(), TaskId::new()];
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let daemon = FakeDaemon::new(move |connection, request| {
        let Request::Wait { ids: left, .. } = request else { panic!("{request:?}") };
        seen.lock().unwrap().push(left.clone());
        match connection {
            0 => vec![finished(&left[..1], State::Succeeded, None), Act::HangUp],
            _ => vec![finished(&left, State::Succeeded, None), Act::Reply(Reply::End)],
        }
    });
    let told = run_with(&daemon, &["wait", &ids[0].to_string(), &ids[1].to_string()]);
    assert_eq!(told.exit, 0, "{}", told.error);
    let mut ended: Vec<_> = told.data.lines().map(|line| line.split_once(' ').unwrap()).collect();
    ended.sort_unstable();
    let names = ids.map(|id| id.to_string());
    assert_eq!(ended, [(names[0].as_str(), "succeeded"), (names[1].as_str(), "succeeded")]);
    let lengths: Vec<_> = asked.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 1]);
}

#[test]
fn wait_fails_with_a_failed_task_and_gives_up_in_time() {
    let id = TaskId::new();
    let failing = FakeDaemon::new(move |_, _| {
        vec![finished(&[id], State::Failed, None), Act::Reply(Reply::End)]
    });
    assert_eq!(run_with(&failing, &["wait", &id.to_string()]).exit, 1);
    let silent = FakeDaemon::new(|_, _| Vec::new());
    let told = run_with(&silent, &["wait", &id.to_string(), "--timeout", "50ms"]);
    assert_eq!(told.exit, 4);
    assert!(told.error.contains("0 of 1"), "{}", told.error);
}

#[test]
fn result_prints_text_as_text_and_all_else_as_json() {
    let id = TaskId::new();
    let table = [
        (State::Succeeded, Some("{\"text\":\"hi\"}"), &[][..], 0, "hi\n"),
        (State::Succeeded, Some("{\"text\":\"hi\"}"), &["--json"], 0, "{\"text\":\"hi\"}\n"),
        (State::Succeeded, Some("{\"n\": 1}"), &[], 0, "{\"n\": 1}\n"),
        (State::Failed, None, &[], 1, ""),
        (State::Cancelled, None, &[], 1, ""),
        (State::Running, None, &[], 4, ""),
    ];
    for (state, output, options, exit, data) in table {
        let daemon = FakeDaemon::new(move |_, _| {
            vec![Act::Reply(Reply::Task { task: task(id, state, output) })]
        });
        let mut words = vec!["result".to_owned(), id.to_string()];
        words.extend(options.iter().map(|option| (*option).to_owned()));
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let told = run_with(&daemon, &words);
        assert_eq!((told.exit, told.data.as_str()), (exit, data), "{state} {options:?}");
    }
}

#[test]
fn submit_with_wait_prints_the_result() {
    let daemon = FakeDaemon::new(|_, request| match request {
        Request::Wait { ids, full: true } => {
            vec![
                finished(&ids, State::Succeeded, Some("{\"text\":\"done\"}")),
                Act::Reply(Reply::End),
            ]
        }
        request => accept(&request),
    });
    let told = run_with(&daemon, &["submit", "chat", "{\"prompt\":\"x\"}", "--wait"]);
    assert_eq!((told.exit, told.data.as_str()), (0, "done\n"), "{}", told.error);
}

#[test]
fn follow_goes_on_where_it_was() {
    let id = TaskId::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let daemon = FakeDaemon::new(move |connection, request| {
        let Request::Follow { after, .. } = request else { panic!("{request:?}") };
        seen.lock().unwrap().push(after);
        match connection {
            0 => vec![event(id, 1, 1, text("one ")), event(id, 1, 2, text("two")), Act::HangUp],
            _ => vec![
                event(id, 1, 3, text(" three")),
                event(
                    id,
                    1,
                    4,
                    FollowBody::Finished {
                        task: task(id, State::Succeeded, Some("{\"text\":\"one two three\"}")),
                    },
                ),
                Act::Reply(Reply::End),
            ],
        }
    });
    let told = run_with(&daemon, &["follow", &id.to_string()]);
    assert_eq!((told.exit, told.data.as_str()), (0, "one two three\n"), "{}", told.error);
    let after = EventPosition { attempt: 1, n: 2 };
    assert_eq!(*asked.lock().unwrap(), [None, Some(after)]);
}

#[test]
fn follow_tells_of_a_restart_and_prints_what_was_not_streamed() {
    let id = TaskId::new();
    let daemon = FakeDaemon::new(move |_, _| {
        vec![
            event(id, 1, 1, text("lost")),
            event(id, 2, 0, FollowBody::Restarted),
            event(
                id,
                2,
                1,
                FollowBody::Finished {
                    task: task(id, State::Succeeded, Some("{\"text\":\"whole\"}")),
                },
            ),
            Act::Reply(Reply::End),
        ]
    });
    let told = run_with(&daemon, &["follow", &id.to_string()]);
    assert_eq!((told.exit, told.data.as_str()), (0, "lost\nwhole\n"), "{}", told.error);
    assert!(told.notes.contains("attempt 2"), "{}", told.notes);
    let told = run_with(&daemon, &["follow", &id.to_string(), "--json"]);
    assert_eq!(told.data.lines().count(), 3);
}

#[test]
fn cancel_tells_what_became_of_each_and_fails_for_an_unknown_one() {
    let ids = [TaskId::new(), TaskId::new()];
    let daemon = FakeDaemon::new(move |_, _| {
        vec![Act::Reply(Reply::Changed {
            results: vec![
                Change { id: ids[0], state: None, changed: false, reason: None },
                Change { id: ids[1], state: Some(State::Cancelled), changed: true, reason: None },
            ],
        })]
    });
    let told = run_with(&daemon, &["cancel", &ids[0].to_string(), &ids[1].to_string()]);
    assert_eq!((told.exit, told.data), (6, format!("{} cancelled\n", ids[1])));
    assert!(told.error.contains(&ids[0].to_string()));
}

#[test]
fn resuming_one_queue_says_that_all_are_paused() {
    for paused in [true, false] {
        let daemon = FakeDaemon::new(move |_, request| {
            let counts = QueueCounts { paused, ..QueueCounts::default() };
            vec![Act::Reply(match request {
                Request::QueueStatus { .. } => Reply::Queues { queues: vec![counts] },
                _ => Reply::Done { count: 0 },
            })]
        });
        let told = run_with(&daemon, &["queue", "resume", "--queue", "q"]);
        assert_eq!(told.data, "queue q: resumed\n");
        assert_eq!(told.notes.contains("all queues are paused"), paused);
    }
}

#[test]
fn a_bad_line_of_a_file_is_named_and_nothing_is_accepted() {
    let accepted = Arc::new(Mutex::new(0));
    let count = accepted.clone();
    let daemon = FakeDaemon::new(move |_, request| match &request {
        Request::Submit { tasks, dry_run, room_for, .. } => {
            match tasks.iter().position(|task| task.kind == "unheard-of") {
                Some(index) => {
                    let refusal = Refusal::new(RefusalKind::Invalid, "unknown kind 'unheard-of'");
                    vec![Act::Reply(Reply::Error(Refusal { index: Some(index), ..refusal }))]
                }
                None => {
                    assert!(!dry_run || *room_for == 3_000);
                    *count.lock().unwrap() += if *dry_run { 0 } else { tasks.len() };
                    accept(&request)
                }
            }
        }
        other => panic!("{other:?}"),
    });
    let file = daemon.instance.state_dir.join("tasks.jsonl");
    let submit = |lines: &[String]| {
        std::fs::write(&file, lines.join("\n")).unwrap();
        run_with(&daemon, &["submit", "--jsonl", file.to_str().unwrap()])
    };
    // Large enough inputs that the file takes several requests.
    let good = format!("{{\"kind\":\"noop\",\"input\":\"{}\"}}", "x".repeat(1_000));
    let mut lines = vec![good; 3_000];
    for (bad, reason) in [
        ("{\"kind\":\"unheard-of\"}", "line 2500: unknown kind 'unheard-of'"),
        ("{\"kind\":", "line 2500: "),
        ("{\"kind\":\"noop\",\"priority\":10}", "line 2500: priority 10: must be 0 to 9"),
    ] {
        let kept = std::mem::replace(&mut lines[2_499], bad.to_owned());
        let told = submit(&lines);
        assert_eq!((told.exit, told.data.as_str()), (2, ""), "{bad}");
        assert!(told.error.starts_with(reason), "{}", told.error);
        assert_eq!(*accepted.lock().unwrap(), 0);
        lines[2_499] = kept;
    }
    let told = submit(&lines);
    assert_eq!((told.exit, told.data.lines().count()), (0, 3_000), "{}", told.error);
    assert_eq!(*accepted.lock().unwrap(), 3_000);
}

#[test]
fn info_falls_back_to_what_the_master_wrote() {
    let daemon = FakeDaemon::new(|_, _| Vec::new());
    let status = r#"{"phase":"degraded","version":"1.2.3","master_pid":42}"#;
    std::fs::write(daemon.instance.status(), status).unwrap();
    let told = run_with(&daemon, &["info"]);
    assert_eq!(told.exit, 0, "{}", told.error);
    assert!(told.data.contains("degraded") && told.data.contains("pid 42"), "{}", told.data);
    assert!(told.notes.contains("broker does not answer"), "{}", told.notes);
}

#[test]
fn stop_waits_until_the_master_has_gone() {
    let mut master = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = u64::from(master.id());
    let daemon = FakeDaemon::new(move |_, request| {
        assert!(matches!(request, Request::Stop { now: true }));
        vec![Act::Reply(Reply::Done { count: pid })]
    });
    let state_dir = daemon.instance.state_dir.clone();
    let stopping = std::thread::spawn(move || run_at(&state_dir, &["stop", "--now"]));
    assert!(!stopping.is_finished());
    master.kill().unwrap();
    master.wait().unwrap();
    let told = stopping.join().unwrap();
    assert_eq!((told.exit, told.data.as_str()), (0, "stopped\n"), "{}", told.error);
}

#[test]
fn completions_and_the_manual_are_made() {
    let folder = tempfile::tempdir().unwrap();
    for (words, expected) in [
        (&["completions", "bash"][..], "_forq()"),
        (&["completions", "fish"], "complete -c forq"),
        (&["man"], ".TH forq"),
    ] {
        let told = run_at(folder.path(), words);
        assert_eq!(told.exit, 0);
        assert!(told.data.contains(expected), "{words:?}");
    }
}

#[test]
fn a_configuration_is_started_checked_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| run_at(&folder.path().join("new"), words);
    assert_eq!(run(&["config", "init"]).exit, 0);
    assert_eq!(run(&["config", "init"]).exit, 2, "an existing file stays as it is");
    assert_eq!(run(&["config", "check"]).exit, 0);
    let told = run(&["config", "show", "--json"]);
    let first: serde_json::Value = serde_json::from_str(told.data.lines().next().unwrap()).unwrap();
    assert!(first["key"].is_string() && first["origin"].is_string(), "{first}");
    let schema: serde_json::Value = serde_json::from_str(&run(&["config", "schema"]).data).unwrap();
    assert!(schema["properties"]["workers"].is_object());

    let bad = folder.path().join("bad.toml");
    std::fs::write(&bad, "[workers]\nmin = 9\nmax = 2\nmni = 1\n").unwrap();
    let told = run(&["config", "check", bad.to_str().unwrap(), "--json"]);
    assert_eq!(told.exit, 2);
    assert!(told.error.contains("line 4") && told.error.contains("mni"), "{}", told.error);
    assert!(told.data.contains("\"ok\":false"), "{}", told.data);
    assert_eq!(run(&["config", "check", "/no/such.toml"]).exit, 2);

    let keyless = folder.path().join("keyless.toml");
    let text = "models.default.chain = ['x/m']\nproviders.x = { base_url = 'http://x', api_key_env = 'NO_SUCH_KEY' }\n";
    std::fs::write(&keyless, text).unwrap();
    let told = run(&["config", "check", keyless.to_str().unwrap(), "--json"]);
    assert_eq!(told.exit, 0);
    assert!(told.data.contains("line 2: providers.x.api_key_env: "), "{}", told.data);
}
