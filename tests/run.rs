//! `forq run` as a user meets it: through the real binary, from a file of tasks to the exit code.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail loudly; clippy knows only its #[test] functions"
)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Nothing here takes longer, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A folder of its own for files, and a mark by which its processes are known.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tasks(&self, lines: &[&str]) -> PathBuf {
        let file = self.path("tasks.jsonl");
        std::fs::write(&file, lines.join("\n")).unwrap();
        file
    }

    fn forq(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forq"));
        let tmp = self.path("tmp");
        std::fs::create_dir_all(&tmp).unwrap();
        command.args(args).env("FORQ_TEST_PLACE", self.folder.path()).env("TMPDIR", tmp);
        for name in ["OPENAI_API_KEY", "OPENAI_BASE_URL", "FORQ_STATE_DIR", "FORQ_CONFIG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.forq(args).output().unwrap()
    }

    /// The pids of processes that were started from here.
    fn processes(&self) -> Vec<i32> {
        let mark = format!("FORQ_TEST_PLACE={}", self.folder.path().display());
        let is_ours = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|env| env.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()))
        };
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
    }

    /// Whatever the run made is gone: its processes, and its temporary folder.
    fn assert_clean(&self) {
        wait_until("every process has gone", || self.processes().is_empty());
        assert_eq!(std::fs::read_dir(self.path("tmp")).unwrap().count(), 0, "a folder was left");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        nix::poll::poll(&mut [], 10u8).unwrap();
    }
}

fn code_of(mut child: Child) -> (Option<i32>, String) {
    let mut code = None;
    wait_until("the run has ended", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (code.and_then(|status| status.code()), stderr)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_of_prompts_is_answered_in_order() {
    let place = Place::new();
    let lines: Vec<_> = (1..=40)
        .map(|n| format!(r#"{{"kind":"chat","input":{{"prompt":"Sum up part {n}:\n\nforks"}}}}"#))
        .collect();
    let file = place.tasks(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let output = place.run(&["run", arg(&file)]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let titles: Vec<_> = stdout.lines().filter(|line| line.starts_with('[')).collect();
    let titles: Vec<_> = titles.into_iter().filter(|line| !line.starts_with("[sim")).collect();
    let expected: Vec<_> = (1..=40).map(|n| format!("[{n}/40] Sum up part {n}:")).collect();
    assert_eq!(titles, expected);
    assert_eq!(stdout.matches("[simulated]").count(), 40);
    let row = |first: &str| {
        let line = stdout.lines().find(|line| line.starts_with(first)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("40 ")[..4], ["40", "40", "0", "0"]);
    assert_eq!((row("wait").len(), row("run").len()), (5, 5));
    let worker_tasks = |slot: &str| row(slot)[2].parse::<u32>().unwrap();
    assert_eq!(worker_tasks("1 ") + worker_tasks("2 "), 40);
    assert!(stderr.contains("a simulated model answers"), "{stderr}");
    place.assert_clean();
}

/// The README's first command.
#[test]
fn the_example_runs_as_it_is_checked_in() {
    let place = Place::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/summarise/tasks.jsonl");
    let tasks = std::fs::read_to_string(&file).unwrap().lines().count();
    assert!(tasks >= 100, "{tasks} tasks");
    let output = place.run(&["run", arg(&file)]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("[simulated]").count(), tasks);
    place.assert_clean();
}

#[test]
fn programs_get_the_tasks_one_a_line() {
    let place = Place::new();
    let file = place.tasks(&[
        r#"{"kind":"noop"}"#,
        r#"{"kind":"exec","input":{"argv":["false"]},"max_attempts":1}"#,
    ]);
    let output = place.run(&["run", arg(&file), "--json"]);
    assert_eq!(output.status.code(), Some(1), "one of them failed");
    let mut states: Vec<_> = text(&output.stdout)
        .lines()
        .map(|line| {
            let task: Value = serde_json::from_str(line).unwrap();
            (task["kind"].as_str().unwrap().to_owned(), task["state"].as_str().unwrap().to_owned())
        })
        .collect();
    states.sort();
    let pair = |kind: &str, state: &str| (kind.to_owned(), state.to_owned());
    assert_eq!(states, [pair("exec", "failed"), pair("noop", "succeeded")]);
    place.assert_clean();
}

#[test]
fn a_single_task_prints_its_result_alone() {
    let place = Place::new();
    let argv = r#"{"argv":["echo","hello"]}"#;
    let output = place.run(&["run", "exec", argv]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "hello\n"));
    let output = place.run(&["run", "noop"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "{}\n"));
    place.assert_clean();
}

#[test]
fn bad_input_is_refused_before_anything_runs() {
    let place = Place::new();
    let mark = place.path("ran");
    let touch = format!(r#"{{"kind":"exec","input":{{"argv":["touch","{}"]}}}}"#, arg(&mark));
    let syntax = [touch.as_str(), r#"{"kind":"noop","priority":10}"#];
    let input = [touch.as_str(), r#"{"kind":"sleep","input":{"seconds":"long"}}"#];
    for (lines, expected) in [(syntax, "priority 10"), (input, "seconds")] {
        let file = place.tasks(&lines);
        let output = place.run(&["run", arg(&file)]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("line 2") && stderr.contains(expected), "{stderr}");
        assert!(!mark.exists(), "a line of a bad file ran");
    }
    let output = place.run(&["run", "no-such-kind"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("unknown kind 'no-such-kind'"));
    place.assert_clean();
}

/// The states of all tasks of a daemon, as `forq list` tells them; none if it does not answer.
fn states(place: &Place, state_dir: &str) -> Vec<String> {
    let output = place.run(&["list", "--limit", "1000", "--json", "--state-dir", state_dir]);
    let state = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["state"].as_str().unwrap().to_owned()
    };
    text(&output.stdout).lines().map(state).collect()
}

fn count(states: &[String], wanted: &str) -> usize {
    states.iter().filter(|state| *state == wanted).count()
}

#[test]
fn ctrl_c_puts_running_work_back_into_a_kept_folder() {
    let place = Place::new();
    let state_dir = place.path("state");
    let state_dir = arg(&state_dir);
    let mut lines = vec![r#"{"kind":"noop","priority":9}"#];
    lines.resize(100, r#"{"kind":"sleep","input":{"seconds":600}}"#);
    let file = place.tasks(&lines);
    let run = place.forq(&["run", arg(&file), "--state-dir", state_dir]).spawn().unwrap();
    wait_until("one has ended and others run", || {
        let states = states(&place, state_dir);
        count(&states, "succeeded") == 1 && count(&states, "running") > 0
    });
    let other = place.run(&["run", "noop", "--state-dir", state_dir]);
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("already up"), "{}", text(&other.stderr));

    let pid = Pid::from_raw(i32::try_from(run.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let (code, stderr) = code_of(run);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("1 of 100 tasks had ended"), "{stderr}");
    place.assert_clean();

    // The next daemon has them all; none ends, since each sleeps for ten minutes.
    let mut serve = place.forq(&["serve", "--state-dir", state_dir]);
    let mut serve = serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("every task is there again", || {
        let states = states(&place, state_dir);
        count(&states, "succeeded") == 1
            && count(&states, "running") + count(&states, "queued") == 99
    });
    let stop = place.run(&["stop", "--now", "--state-dir", state_dir]);
    assert_eq!(stop.status.code(), Some(0), "{}", text(&stop.stderr));
    assert_eq!(serve.wait().unwrap().code(), Some(0));
    place.assert_clean();
}

#[test]
fn a_daemon_that_is_killed_ends_the_run_with_its_reason() {
    let place = Place::new();
    let file = place.tasks(&[r#"{"kind":"sleep","input":{"seconds":600}}"#; 4]);
    let state_dir = place.path("state");
    let run = place.forq(&["run", arg(&file), "--state-dir", arg(&state_dir)]).spawn().unwrap();
    let mut master = None;
    wait_until("the daemon tells its pid", || {
        let info = place.run(&["info", "--json", "--state-dir", arg(&state_dir)]);
        let info: Value = serde_json::from_slice(&info.stdout).unwrap_or_default();
        master = info["master"]["pid"].as_i64();
        master.is_some()
    });
    kill(Pid::from_raw(i32::try_from(master.unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    let (code, stderr) = code_of(run);
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains("SIGKILL"), "{stderr}");
    place.assert_clean();
}

#[test]
fn a_workflow_tells_its_voice_its_steps_and_what_they_took() {
    let place = Place::new();
    let file = place.path("tale.toml");
    let workflow = r#"
        name = "tale"
        voice = "draft"
        [steps.draft]
        prompt = "Sum up:\n\nforks and spoons"
        [steps.count]
        needs = ["draft"]
        kind = "exec"
        input = { argv = ["sh", "-c", "printf the-end; exit $0", "CODE"] }
        attempts = 1
    "#;
    let run = |code: &str| {
        std::fs::write(&file, workflow.replace("CODE", code)).unwrap();
        place.run(&["run", arg(&file)])
    };
    let output = run("0");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.starts_with("[simulated] ") && stdout.ends_with("\n\nthe-end\n"), "{stdout}");
    for said in
        ["draft: began", "draft: succeeded after ", "count: succeeded after ", ": 2 steps, "]
    {
        assert!(stderr.contains(said), "{said}: {stderr}");
    }
    let row = |name: &str| stderr.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(row("STEP").contains("WAITED") && row("count ").contains("succeeded"), "{stderr}");

    let output = run("3");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error: the run failed: ") && stderr.contains("exit code 3"),
        "{stderr}"
    );
    place.assert_clean();
}
