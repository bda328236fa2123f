//! What users get wrong: each has its exit code and one sentence that names the cure, and nothing
//! that was accepted before is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

use support::wire::{Wire, frame};
use support::{Daemon, Value, eventually, json, shown, text};

/// Never the id of a task.
const NOBODY: &str = "0190aaaa-0000-7000-8000-000000000000";

/// The one sentence of a verb that failed with `code`; it must say all of `says`.
#[track_caller]
fn sentence(output: &Output, code: i32, says: &[&str]) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", shown(output));
    assert!(output.stdout.is_empty(), "data on stdout: {}", shown(output));
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert!(errors == 1 && stderr.starts_with("error: "), "one sentence: {stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("RUST_"), "{stderr}");
    for said in says {
        assert!(stderr.contains(said), "'{said}' is not in: {stderr}");
    }
    stderr
}

#[track_caller]
fn count(daemon: &Daemon) -> usize {
    daemon.json_lines(&["list", "--limit", "1000"]).len()
}

/// A daemon with one task that waits, and the proof that it still does.
fn with_one_task() -> (Daemon, impl Fn(&Daemon)) {
    let daemon = Daemon::start("");
    let id = daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    let untouched = move |daemon: &Daemon| {
        assert_eq!(daemon.state(&id), "scheduled");
        assert_eq!(count(daemon), 1);
    };
    (daemon, untouched)
}

#[test]
fn a_submission_that_is_wrong_is_refused_by_name() {
    let (daemon, untouched) = with_one_task();
    let table: &[(&[&str], &[&str])] = &[
        (&["nope"], &["unknown kind 'nope'", "this daemon knows chat, exec, http, noop, sleep"]),
        (&[""], &["unknown kind ''", "knows chat"]),
        (&["noop", "{nope"], &["input: not JSON", "hint: INPUT is JSON"]),
        (&["noop", "{} {}"], &["input: not JSON: trailing characters"]),
        (&["noop", "@/no/such/file"], &["cannot read /no/such/file"]),
        (&["noop", r#"{"a":1}"#], &["noop: input.a: unknown field `a`"]),
        (&["sleep"], &["sleep: input: missing field `seconds`"]),
        (
            &["sleep", r#"{"seconds":"x"}"#],
            &["input.seconds: invalid type: string", "expected a number"],
        ),
        (&["sleep", r#"{"seconds":-1}"#], &["input.seconds: -1 is not between 0 and 86400"]),
        (&["sleep", r#"{"seconds":1e9}"#], &["is not between 0 and 86400"]),
        (&["exec", r#"{"argv":"ls"}"#], &["input.argv: invalid type", "expected a list"]),
        (&["exec", r#"{"argv":[]}"#], &["input.argv: must hold at least a program"]),
        (&["http", r#"{"url":"ftp://x"}"#], &["input.url: 'ftp' is not http or https"]),
        (&["chat", "{}"], &["chat: input: give `prompt` or `messages`"]),
        (&["chat", r#"{"prompt":3}"#], &["input.prompt: expected a string"]),
        (&["noop", "--priority", "10"], &["priority 10: must be 0 to 9"]),
        (&["noop", "--priority", "-1"], &["priority -1: must be 0 to 9"]),
        (&["noop", "--delay", "-5s"], &["\"-5s\" is negative: a duration must be 0s or more"]),
        (&["noop", "--delay", "10"], &["write a number and its unit"]),
        (&["noop", "--delay", "9999999h"], &["too long: at most 3650d"]),
        (&["noop", "--expires", "-1s"], &["is negative"]),
        (&["noop", "--timeout", "0s"], &["timeout 0: must be longer"]),
        (&["noop", "--at", "tomorrow"], &["write it like 2030-01-31T08:00:00Z"]),
        (&["noop", "--queue", "a b"], &["queue 'a b': must be 1 to 64 letters"]),
        (&["noop", "--lane", ""], &["lane: must have 1 to 256 bytes"]),
        (&["noop", "--lane", "a", "--session", "b"], &["--lane", "--session"]),
        (&["noop", "--max-attempts", "0"], &["--max-attempts", "must be a number from 1"]),
        (&["noop", "--no-such-option"], &["unexpected argument '--no-such-option'"]),
        (&[], &["<KIND>"]),
    ];
    for (args, says) in table {
        let output = daemon.forq(&[&["submit"], *args].concat());
        sentence(&output, 2, says);
    }
    untouched(&daemon);
}

#[test]
fn an_unknown_task_is_exit_6_and_no_id_is_exit_2() {
    let (daemon, untouched) = with_one_task();
    for verb in ["status", "result", "follow", "cancel", "retry", "wait"] {
        sentence(&daemon.forq(&[verb, NOBODY]), 6, &[&format!("no task {NOBODY}")]);
        sentence(&daemon.forq(&[verb, "one"]), 2, &["not a task id: `forq list` shows them"]);
    }
    sentence(&daemon.forq(&["list", "--state", "done"]), 2, &["one of queued, running"]);
    untouched(&daemon);
}

#[test]
fn a_key_or_id_with_other_content_is_refused() {
    let daemon = Daemon::start("");
    let options = &["--key", "k", "--delay", "1h"];
    let id = daemon.submit("sleep", &json!({"seconds": 1}), options);
    assert_eq!(daemon.submit("sleep", &json!({"seconds": 1}), options), id);
    let other = daemon.forq(&["submit", "sleep", r#"{"seconds":2}"#, "--key", "k"]);
    sentence(&other, 2, &[&format!("the key 'k' belongs to task {id}"), "use another one"]);
    let line = json!({"id": id, "kind": "noop"}).to_string();
    let other = daemon.forq_with(&["submit", "--jsonl", "-"], &line);
    sentence(&other, 2, &["line 1", &format!("this id belongs to task {id}")]);
    assert_eq!(count(&daemon), 1);
}

#[test]
fn one_bad_line_among_thousands_refuses_the_whole_file() {
    let daemon = Daemon::start("");
    let good = r#"{"kind":"noop","input":{}}"#;
    let table: &[(&str, &[&str])] = &[
        ("{nope", &["line 2345: "]),
        ("[]", &["line 2345: "]),
        (r#"{"input":{}}"#, &["line 2345: missing field `kind`"]),
        (r#"{"kind":"noop","prio":1}"#, &["line 2345: ", "unknown field `prio`"]),
        (r#"{"kind":"noop","priority":10}"#, &["line 2345: priority 10: must be 0 to 9"]),
        (r#"{"kind":"noop","priority":"9"}"#, &["line 2345: ", "priority"]),
        (r#"{"kind":"noop","delay":"-1s"}"#, &["line 2345: delay: ", "is negative"]),
        (r#"{"kind":"nope"}"#, &["line 2345: unknown kind 'nope'", "this daemon knows"]),
        (r#"{"kind":"sleep","input":{}}"#, &["line 2345: sleep: input: missing field `seconds`"]),
        (r#"{"kind":"noop","timeout_ms":0}"#, &["line 2345: timeout 0"]),
    ];
    for (bad, says) in table {
        let mut lines = vec![good; 3000];
        lines[2344] = bad;
        let output = daemon.forq_with(&["submit", "--jsonl", "-"], &lines.join("\n"));
        let stderr = sentence(&output, 2, says);
        assert!(stderr.contains("nothing of the file was accepted"), "{stderr}");
        assert_eq!(count(&daemon), 0, "{bad}");
    }
}

#[test]
fn an_input_over_the_limit_is_refused_with_both_numbers() {
    let daemon = Daemon::start("[queue]\ninput_bytes_max = '1MiB'\n");
    let program = json!({"argv": ["true"], "stdin": "x".repeat(1 << 20)}).to_string();
    let (size, limit) = (program.len().to_string(), (1 << 20).to_string());
    let says: &[&str] = &[&size, &limit, "input_bytes_max"];
    let file = daemon.file("input.json");
    std::fs::write(&file, &program).unwrap();
    let output = daemon.forq(&["submit", "exec", &format!("@{}", file.display())]);
    sentence(&output, 2, says);
    let line = format!(r#"{{"kind":"exec","input":{program}}}"#);
    let output = daemon.forq_with(&["submit", "--jsonl", "-"], &format!("{line}\n"));
    sentence(&output, 2, &[says, &["line 1"]].concat());
    // A client that does not look for itself is told by the daemon.
    let mut wire = Wire::connect(&daemon.state_dir().join("forq.sock"));
    wire.answer();
    wire.send(&frame(format!(r#"{{"submit":{{"tasks":[{line}]}}}}"#).as_bytes()));
    let refusal = text(&wire.answer(), "/error/message");
    assert!(says.iter().all(|said| refusal.contains(said)), "{refusal}");
    assert_eq!(count(&daemon), 0);
    // The largest that is allowed is allowed.
    let fits = 1_048_576 - json!({"argv": ["true"], "stdin": ""}).to_string().len();
    let input = json!({"argv": ["true"], "stdin": "x".repeat(fits)});
    std::fs::write(&file, input.to_string()).unwrap();
    let id = daemon.ok(&["submit", "exec", &format!("@{}", file.display())]);
    daemon.until(&id, "succeeded");
}

/// Whatever its size: just over the limit, or over what a frame carries.
#[test]
fn an_output_over_the_limit_fails_its_task_with_both_numbers() {
    let daemon = Daemon::start("[queue]\ninput_bytes_max = '64KiB'\n");
    for bytes in [100_000, 1 << 20, 3 << 20] {
        let print = json!({"argv": ["sh", "-c", format!("yes | head -c {bytes}")]});
        let id = daemon.submit("exec", &print, &[]);
        let task = daemon.until(&id, "failed");
        let message = text(&task, "/error/message");
        assert!(message.contains("65536") && message.contains("input_bytes_max"), "{message}");
        assert_eq!(task["attempt"], 1, "a retry mends nothing");
        assert_eq!(task["error"]["retryable"], false);
    }
    let id = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&id, "succeeded");
}

#[test]
fn a_full_queue_is_exit_5_and_says_by_how_much() {
    let daemon = Daemon::start("[queue]\nmax_queued = 3\n");
    daemon.ok(&["queue", "pause"]);
    let ids: Vec<String> = (0..3).map(|_| daemon.submit("noop", &json!({}), &[])).collect();
    let full = &["the queue is full", "3 tasks wait", "max_queued = 3", "try again later"];
    sentence(&daemon.forq(&["submit", "noop"]), 5, full);
    sentence(&daemon.forq_with(&["submit", "--jsonl", "-"], r#"{"kind":"noop"}"#), 5, full);
    assert_eq!(count(&daemon), 3);
    daemon.ok(&["queue", "resume"]);
    ids.iter().for_each(|id| drop(daemon.until(id, "succeeded")));
}

#[test]
fn a_second_daemon_on_the_same_folder_is_refused() {
    let (daemon, untouched) = with_one_task();
    let says = &["forq runs on", &daemon.master().to_string(), "forq stop", "--state-dir"];
    sentence(&daemon.forq(&["serve"]), 2, says);
    untouched(&daemon);
    assert_eq!(daemon.all_up().master, daemon.master());
}

#[test]
fn a_state_folder_that_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    // Not a matter of permissions, which root has.
    for (dir, says) in [
        (Path::new("/proc/forq"), &["cannot make the state folder", "with --state-dir"][..]),
        (&file, &["Not a directory"]),
        (&file.join("below"), &["Not a directory"]),
    ] {
        let output = support::command().args(["serve", "--state-dir"]).arg(dir).output().unwrap();
        sentence(&output, 2, &[says, &[dir.to_str().unwrap()]].concat());
    }
}

#[test]
fn a_state_folder_with_a_long_path_works() {
    let mut daemon = Daemon::prepare(&format!("{}/{}", "d".repeat(100), "e".repeat(100)), "");
    daemon.start_again();
    assert!(daemon.state_dir().as_os_str().len() > 200);
    let id = daemon.submit("exec", &json!({"argv": ["echo", "hi"]}), &[]);
    assert_eq!(daemon.until(&id, "succeeded")["output"]["stdout"], "hi\n");
    sentence(&daemon.forq(&["serve"]), 2, &["forq runs on"]);
    daemon.ok(&["stop"]);
}

#[test]
fn no_daemon_is_exit_3_and_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    for verb in [&["info"][..], &["submit", "noop"], &["status", NOBODY], &["stop"]] {
        let output = support::command().args(["--state-dir", dir]).args(verb).output().unwrap();
        sentence(&output, 3, &["no daemon at", &format!("forq serve --state-dir {dir}")]);
    }
}

/// Somebody else listens where a daemon should be.
#[test]
fn a_daemon_that_is_not_understood_is_exit_2() {
    let hello = json!({
        "forq_protocol": 99, "version": "9.8.7", "input_bytes_max": 1, "frame_bytes_max": 1,
    });
    let other_version = frame(hello.to_string().as_bytes());
    let no_json = frame(b"220 mail.example.com ESMTP");
    let huge = [0xff; 64].to_vec();
    for (greeting, says) in [
        (other_version, &["9.8.7", "protocol", "99"][..]),
        (no_json, &["not a forq daemon"]),
        (huge, &["not a forq daemon"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("forq.sock")).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&greeting).unwrap();
            // Until the client has gone.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let dir = folder.path().to_str().unwrap();
        let output = support::command().args(["--state-dir", dir, "info"]).output().unwrap();
        sentence(&output, 2, says);
        serving.join().unwrap();
    }
}

/// A database that cannot be used ends `serve` with its sentence, and is left as it is.
#[test]
fn a_damaged_or_newer_database_is_refused_and_never_emptied() {
    let mut daemon = Daemon::start("");
    daemon.submit("noop", &json!({}), &["--delay", "1h"]);
    daemon.ok(&["stop"]);
    assert!(daemon.gone(support::SOON).success());
    let path = daemon.state_dir().join("forq.db");
    let sound = std::fs::read(&path).unwrap();
    let mut newer = sound.clone();
    // Where SQLite's header has the version of the schema.
    newer[60..64].copy_from_slice(&99u32.to_be_bytes());
    for (bytes, says) in [
        (newer, &["newer forq", "schema 99", "--state-dir"][..]),
        (b"no database ".repeat(1000), &["is damaged", "forq backup"]),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let output = daemon.forq(&["serve"]);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{log}");
        let error = log.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        let says = [says, &[path.to_str().unwrap(), "nothing was changed"]].concat();
        assert!(says.iter().all(|said| error.contains(said)), "{log}");
        assert!(std::fs::read(&path).unwrap() == bytes, "the database was changed");
    }
    std::fs::write(&path, &sound).unwrap();
    daemon.start_again();
    assert_eq!(count(&daemon), 1, "nothing was lost");
}

#[test]
fn too_few_open_files_for_the_concurrency_are_refused_with_the_numbers() {
    let daemon = Daemon::prepare("state", "[workers]\nconcurrency = 1000\n");
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 500 && exec \"$0\" serve --config \"$1\""])
        .args([daemon.command().get_program(), daemon.file("forq.toml").as_os_str()])
        .env("FORQ_STATE_DIR", daemon.state_dir())
        .output()
        .unwrap();
    sentence(&output, 2, &["concurrency = 1000", "1064", "500", "LimitNOFILE="]);
}

#[test]
fn a_configuration_that_is_wrong_names_file_key_and_cure() {
    for (config, says) in [
        ("[workers]\nmax = 0\n", &["forq.toml line 2: workers.max = 0", "must be"][..]),
        ("[workers]\nmin = 5\nmax = 2\n", &["workers.min", "workers.max"]),
        ("[worker]\n", &["worker", "workers"]),
        ("[queue\n", &["forq.toml line 1"]),
    ] {
        let daemon = Daemon::prepare("state", config);
        let file = daemon.file("forq.toml");
        let output = daemon.forq(&["serve", "--config", file.to_str().unwrap()]);
        sentence(&output, 2, says);
        assert!(!daemon.state_dir().exists(), "nothing was made");
    }
}

/// Whoever stops a daemon while others submit: they are told, and what they were told is kept.
#[test]
fn a_daemon_that_stops_refuses_with_exit_5() {
    let mut daemon = Daemon::start("");
    let id = daemon.submit("sleep", &json!({"seconds": 2}), &[]);
    daemon.until(&id, "running");
    let mut stop = daemon.background(&["stop"]);
    let refused = eventually("a submission is refused", support::SOON, || {
        let output = daemon.forq(&["submit", "noop"]);
        (!output.status.success()).then_some(output)
    });
    sentence(&refused, 5, &["stopping"]);
    assert!(stop.wait().unwrap().success());
    assert!(daemon.gone(support::SOON).success());
    daemon.start_again();
    let task: Value = daemon.task(&id);
    assert_eq!(task["state"], "succeeded", "{task}");
}
