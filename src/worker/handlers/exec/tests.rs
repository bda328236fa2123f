//! Real commands under real guards.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::handler::Event;
use crate::task::ErrorKind;
use crate::worker::handlers::testing::{Events, context, raw, run};

async fn exec(input: Value) -> Result<Value, HandlerError> {
    run(&Exec::default(), input.to_string()).await
}

fn sh(script: &str) -> Value {
    json!({ "argv": ["sh", "-c", script] })
}

/// Polls until `condition` holds; fails after ten seconds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not after 10 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Polls a future until `condition` holds; the future must not end before.
async fn drive(future: impl Future, what: &str, condition: impl FnMut() -> bool) {
    tokio::select! {
        _ = future => panic!("{what}: the command ended"),
        () = until(what, condition) => {}
    }
}

/// The processes that have `MARK=<mark>` in their environment.
fn marked(mark: &str) -> BTreeSet<i32> {
    let needle = format!("MARK={mark}");
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|all| all.split(|byte| *byte == 0).any(|pair| pair == needle.as_bytes()))
    })
    .collect()
}

fn with_mark(script: &str, mark: &str) -> Value {
    json!({ "argv": ["sh", "-c", script], "env": { "MARK": mark } })
}

/// A mark that no other test has.
fn mark() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[tokio::test]
async fn json_goes_in_and_comes_out() {
    let program = "import json, sys\nprint(json.load(sys.stdin)['n'] * 2)";
    let input = json!({ "argv": ["python3", "-c", program], "stdin": { "n": 21 } });
    let output = exec(input).await.unwrap();
    assert_eq!(output, json!({ "exit_code": 0, "stdout": "42\n", "stderr": "" }));
}

#[tokio::test]
async fn stdin_may_be_large_unread_or_absent() {
    let large = "x".repeat(3 << 20);
    let output = exec(json!({ "argv": ["wc", "-c"], "stdin": large })).await.unwrap();
    assert_eq!(output["stdout"].as_str().unwrap().trim(), large.len().to_string());
    exec(json!({ "argv": ["true"], "stdin": large })).await.unwrap();
    assert_eq!(exec(json!({ "argv": ["cat"] })).await.unwrap()["stdout"], "");
    let twice = sh("cat /dev/stdin; cat /dev/stdin");
    let output = exec(json!({ "argv": twice["argv"], "stdin": "hi" })).await.unwrap();
    assert!(output["stdout"].as_str().unwrap().starts_with("hi"));
}

#[tokio::test]
async fn lines_are_told_as_they_come() {
    let events = Arc::<Events>::default();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let script =
        r#"echo one; echo '{"done": 1}'; while ! [ -e "$GO" ]; do sleep 0.01; done; printf end"#;
    let input = json!({ "argv": ["sh", "-c", script], "env": { "GO": go } });
    let future = Exec::default().run(context(&events), raw(input.to_string()));
    tokio::pin!(future);
    drive(&mut future, "two events", || events.all().len() == 2).await;
    std::fs::write(&go, "").unwrap();
    future.await.unwrap();
    let expected = [
        Event::Text { text: "one\n".into() },
        Event::Data { data: Box::new(json!({ "done": 1 })) },
        Event::Text { text: "end".into() },
    ];
    assert_eq!(events.all(), expected);
}

#[tokio::test]
async fn a_failure_tells_code_and_last_words() {
    let error =
        exec(sh("echo first >&2; echo 'no such voice' >&2; echo >&2; exit 3")).await.unwrap_err();
    assert_eq!(error.message, "the command ended with exit code 3: no such voice");
    assert_eq!((error.kind, error.retryable), (ErrorKind::Handler, true));
    assert_eq!(error.cause.unwrap().exit_code, Some(3));
}

#[tokio::test]
async fn a_signal_is_named() {
    for (number, name) in [(11, "SIGSEGV"), (9, "SIGKILL"), (40, "signal 40")] {
        // dash knows no `kill -40`; python does.
        let program = format!("import os\nos.kill(os.getpid(), {number})");
        let error = exec(json!({ "argv": ["python3", "-c", program] })).await.unwrap_err();
        assert_eq!(error.message, format!("the command was ended by {name}"));
        assert_eq!(error.cause.unwrap().signal.as_deref(), Some(name));
        assert!(error.retryable);
    }
}

#[tokio::test]
async fn env_and_cwd_are_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let input = json!({
        "argv": ["sh", "-c", "pwd; echo $GREETING; echo ${PATH:+path}"],
        "env": { "GREETING": "hello" },
        "cwd": dir,
    });
    let output = exec(input).await.unwrap();
    assert_eq!(output["stdout"], format!("{}\nhello\npath\n", dir.display()));
    // Not the guard's: it would not survive this one.
    let output = exec(json!({ "argv": ["/bin/echo", "hi"], "env": { "LD_PRELOAD": "/nowhere" } }));
    assert_eq!(output.await.unwrap()["stdout"], "hi\n");
}

#[tokio::test]
async fn a_command_starts_with_a_clean_slate() {
    let program = "import os, signal as s\n\
        print(s.pthread_sigmask(s.SIG_BLOCK, []), os.getpid() == os.getpgrp())\n\
        print([n for n in range(1, 32) if n not in (2,) and s.getsignal(n) == s.SIG_IGN])\n\
        print(sorted(os.listdir('/proc/self/fd')))";
    let output = exec(json!({ "argv": ["python3", "-c", program] })).await.unwrap();
    // Python itself ignores SIGPIPE and SIGXFSZ; 3 is its look into /proc.
    assert_eq!(output["stdout"], "set() True\n[13, 25]\n['0', '1', '2', '3']\n");
}

#[tokio::test]
async fn what_cannot_start_is_named() {
    for (input, reason) in [
        (json!({ "argv": ["no-such-program"] }), "input.argv[0]: there is no program 'no-such-"),
        (
            json!({ "argv": ["/etc/passwd"] }),
            "input.argv[0]: '/etc/passwd' cannot be started: Perm",
        ),
        (json!({ "argv": ["true"], "cwd": "/no/such" }), "input.cwd: '/no/such' cannot be entered"),
        (json!({ "argv": ["true"], "cwd": "/etc/passwd" }), "input.cwd: '/etc/passwd' cannot be"),
    ] {
        let error = exec(input).await.unwrap_err();
        assert!(error.message.contains(reason), "{}", error.message);
        assert!(!error.retryable);
    }
}

#[tokio::test]
async fn too_much_stdout_fails_with_both_numbers() {
    let mark = mark();
    let error = exec(with_mark("yes", &mark)).await.unwrap_err();
    assert!(error.message.contains(&STDOUT_BYTES_MAX.to_string()), "{}", error.message);
    assert!(error.message.starts_with("stdout is too large: at least 8"), "{}", error.message);
    assert!(!error.retryable);
    until("nothing left", || marked(&mark).is_empty()).await;
}

#[tokio::test]
async fn stderr_keeps_its_end() {
    let output = exec(sh("yes | head -c 1000000 >&2; printf bye >&2")).await.unwrap();
    let stderr = output["stderr"].as_str().unwrap();
    assert_eq!(stderr.len(), STDERR_TAIL_BYTES_MAX);
    assert!(stderr.ends_with("y\nbye"));
}

/// Children that leave the group, the session and their parent.
const BROOD: &str = "sleep 1000 & setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & \
     (setsid sh -c 'trap : TERM; while :; do sleep 1; done' &) ;";

#[tokio::test]
async fn nothing_outlives_the_command() {
    let mark = mark();
    let output = exec(with_mark(&format!("{BROOD} echo bye"), &mark)).await.unwrap();
    assert_eq!(output["stdout"], "bye\n");
    assert_eq!(marked(&mark), BTreeSet::new());
}

#[tokio::test]
async fn cancelling_ends_everything() {
    let mark = mark();
    let events = Arc::<Events>::default();
    let input = with_mark(&format!("{BROOD} trap '' TERM; while :; do sleep 1; done"), &mark);
    let mut future = Exec::default().run(context(&events), raw(input.to_string()));
    drive(&mut future, "the brood", || marked(&mark).len() >= 7).await;
    drop(future);
    let start = Instant::now();
    until("nothing left", || marked(&mark).is_empty()).await;
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
}

#[tokio::test]
async fn cancelling_lets_a_command_tidy_up() {
    let dir = tempfile::tempdir().unwrap();
    let (ready, tidy) = (dir.path().join("ready"), dir.path().join("tidy"));
    let script = "trap 'sleep 0.05; touch tidy; exit 0' TERM; touch ready; \
                  while :; do sleep 0.01; done";
    let input = json!({ "argv": ["sh", "-c", script], "cwd": dir.path() });
    let mut future = Exec::default().run(context(&Arc::default()), raw(input.to_string()));
    drive(&mut future, "ready", || ready.exists()).await;
    drop(future);
    until("tidied up", || tidy.exists()).await;
}

/// Names the mark of the command that [`holds_a_command`] is to hold.
const HOLD: &str = "FORQ_TEST_HOLD";

/// The other half of the next test: a process that runs a command until it is killed.
#[tokio::test]
async fn holds_a_command() {
    if let Ok(mark) = std::env::var(HOLD) {
        _ = exec(with_mark(&format!("{BROOD} sleep 1000"), &mark)).await;
    }
}

#[tokio::test]
async fn death_of_the_worker_ends_everything() {
    let mark = mark();
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker::handlers::exec::tests::holds_a_command"])
        .env(HOLD, &mark)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the brood", || marked(&mark).len() >= 7).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    let start = Instant::now();
    until("nothing left", || marked(&mark).is_empty()).await;
    // No grace: another worker may start the next attempt right now.
    assert!(start.elapsed() < Duration::from_millis(500), "took {:?}", start.elapsed());
}

#[tokio::test]
async fn death_of_the_guard_ends_the_command() {
    let mark = mark();
    let input = with_mark("sleep 1000", &mark);
    let future = Exec::default().run(context(&Arc::default()), raw(input.to_string()));
    tokio::pin!(future);
    drive(&mut future, "the command", || !marked(&mark).is_empty()).await;
    let command = *marked(&mark).first().unwrap();
    let guard = parent(command);
    // Asleep, it has said which command is its own.
    drive(&mut future, "the guard's sleep", || is_asleep(guard)).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    let error = future.await.unwrap_err();
    assert_eq!(error.message, "the guard of the command ended before it");
    assert!(error.retryable);
    until("nothing left", || marked(&mark).is_empty()).await;
}

fn is_asleep(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.unwrap().rsplit(')').next().unwrap().trim_start().starts_with('S')
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}
