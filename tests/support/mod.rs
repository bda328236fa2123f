//! The harness of the black-box tests: a daemon of one's own, started, asked and killed as a user
//! would do it.
//!
//! * [`daemon`]: the daemon under test. [`processes`]: what `/proc` says of it.
//! * [`listener`]: a model that remembers what it was asked.
//! * [`commands`]: inputs of `exec` tasks that leave traces. [`random`]: seeded, so that a
//!   failure can be had again. [`terminal`]: a pseudo-terminal, and what a user sees on it.
#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of the harness")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests may fail loudly"
)]

pub(crate) mod commands;
pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod listener;
pub(crate) mod model;
pub(crate) mod processes;
pub(crate) mod random;
pub(crate) mod terminal;
pub(crate) mod wire;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) use daemon::{Daemon, Role};
pub(crate) use serde_json::{Value, json};

/// Enough for anything that is to happen at once, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The binary under test, which sees nothing of the tester's own forq.
pub(crate) fn command() -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_forq")))
}

/// As [`command`], for a user's own binary.
pub(crate) fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("FORQ_") || name_text.starts_with("OPENAI_") {
            command.env_remove(&name);
        }
    }
    command.env("NO_COLOR", "1");
    command
}

/// A user's own binary, one of the examples of `Cargo.toml`. Cargo builds them with the tests, next
/// to the folder of the test's own file.
#[track_caller]
pub(crate) fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the test's own file");
    let target = own.ancestors().nth(2).expect("two folders above");
    let path = target.join("examples").join(name);
    assert!(path.exists(), "no {}: build it with `cargo build --examples`", path.display());
    path
}

/// What a command printed, and how it ended; for messages.
pub(crate) fn shown(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until `look` finds something, and gives it; fails after `within`.
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        pause(Duration::from_millis(5));
    }
}

/// Waits until `probe` gives `expected`; fails with what it gave last.
#[track_caller]
pub(crate) fn eventually_eq<T: PartialEq + Debug>(expected: T, mut probe: impl FnMut() -> T) {
    let deadline = Instant::now() + SOON;
    loop {
        let found = probe();
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "after {SOON:?} it is {found:?}, not {expected:?}");
        pause(Duration::from_millis(5));
    }
}

/// Lets time pass: between two looks at a condition, and between the blows of a storm.
pub(crate) fn pause(time: Duration) {
    #[allow(clippy::disallowed_methods, reason = "the one place where tests let time pass")]
    std::thread::sleep(time);
}

/// A line of JSON each.
pub(crate) fn json_lines(text: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(text);
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// A text field of a task or another object.
#[track_caller]
pub(crate) fn text(value: &Value, pointer: &str) -> String {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} in {value}")).to_owned()
}

/// A number of a task or another object.
#[track_caller]
pub(crate) fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no number at {pointer} in {value}"))
}

/// A time of a task or another object.
#[track_caller]
pub(crate) fn time(value: &Value, pointer: &str) -> jiff::Timestamp {
    text(value, pointer).parse().expect("a time")
}

/// How each attempt of a task ended, oldest first.
pub(crate) fn outcomes(task: &Value) -> Vec<String> {
    let attempts = task["attempts"].as_array().expect("attempts");
    attempts.iter().map(|attempt| text(attempt, "/outcome")).collect()
}
