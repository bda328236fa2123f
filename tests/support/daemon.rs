//! The daemon under test.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::processes::{self, Process};
use super::{SOON, command_of, eventually, json_lines, pause, shown, text};

/// How much of a log a failed test shows, in bytes.
const LOG_SHOWN_BYTES_MAX: usize = 16 << 10;

/// One of the daemon's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Master,
    Broker,
    /// The worker in this slot, from 1.
    Worker(usize),
}

/// The processes of a daemon that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pids {
    pub(crate) master: i32,
    pub(crate) broker: i32,
    /// By slot.
    pub(crate) workers: Vec<i32>,
}

/// A daemon with a state folder of its own. It ends with this value.
pub(crate) struct Daemon {
    program: PathBuf,
    /// What asks it; the program itself, unless a test says otherwise.
    client: Option<PathBuf>,
    folder: TempDir,
    state_dir: PathBuf,
    serve_args: Vec<String>,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon under this configuration, up and running.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        let mut daemon = Self::prepare("state", config);
        daemon.start_again();
        daemon
    }

    /// As [`Daemon::start`], with a user's own binary, which has kinds of its own.
    #[track_caller]
    pub(crate) fn start_program(program: &Path, config: &str) -> Self {
        let mut daemon = Self::prepare("state", config);
        daemon.set_program(program);
        daemon.start_again();
        daemon
    }

    /// A state folder at `below` a temporary one, with this configuration; nothing runs.
    pub(crate) fn prepare(below: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state_dir = folder.path().join(below);
        let config_file = folder.path().join("forq.toml");
        std::fs::write(&config_file, config).expect("the configuration");
        let serve_args = vec!["--config".to_owned(), config_file.to_string_lossy().into_owned()];
        let program = PathBuf::from(env!("CARGO_BIN_EXE_forq"));
        Self { program, client: None, folder, state_dir, serve_args, child: None }
    }

    /// Makes a daemon that is not up a user's own binary.
    pub(crate) fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Puts the state folder of a daemon that is not up elsewhere.
    pub(crate) fn set_state_dir(&mut self, state_dir: &Path) {
        self.state_dir = state_dir.to_owned();
    }

    /// Puts other text into the configuration file; nobody is told.
    pub(crate) fn configure(&self, config: &str) {
        std::fs::write(self.file("forq.toml"), config).expect("the configuration");
    }

    /// Starts `forq serve` on the state folder, and waits until it runs.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.start_by(self.serve_command());
    }

    /// As [`Daemon::start_again`], by a command made from [`Daemon::serve_command`].
    #[track_caller]
    pub(crate) fn start_by(&mut self, command: Command) {
        self.spawn_by(command);
        eventually("the daemon runs", SOON, || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("the daemon ended at its start: {status}");
            }
            self.pids()
        });
    }

    /// Starts `forq serve`, and does not wait for anything.
    pub(crate) fn spawn(&mut self) {
        self.spawn_by(self.serve_command());
    }

    fn spawn_by(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "the daemon is up already");
        let log = File::options().append(true).create(true).open(self.log_file());
        let child = command.stdout(Stdio::null()).stderr(log.expect("a log file")).spawn();
        self.child = Some(child.expect("forq serve starts"));
    }

    /// What starts the daemon: its output goes to the log.
    pub(crate) fn serve_command(&self) -> Command {
        let mut command = self.command();
        command
            .arg("serve")
            .args(&self.serve_args)
            // Should the test itself be killed, the daemon follows it.
            .env("FORQ_PARENT", std::process::id().to_string())
            .stdin(Stdio::null());
        command
    }

    /// The state folder.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// A path for a test's own file, outside the state folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The log so far, of every start.
    pub(crate) fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.file("serve.log")
    }

    /// The binary, on this instance.
    pub(crate) fn command(&self) -> Command {
        self.on_this_instance(self.client.as_ref().unwrap_or(&self.program))
    }

    fn on_this_instance(&self, program: &Path) -> Command {
        let mut command = command_of(program);
        command.env("FORQ_STATE_DIR", &self.state_dir);
        command
    }

    /// Asks with the build under test from now on, whatever becomes of the daemon's program.
    pub(crate) fn ask_with_own_build(&mut self) {
        self.client = Some(PathBuf::from(env!("CARGO_BIN_EXE_forq")));
    }

    /// Runs a verb to its end.
    pub(crate) fn forq(&self, args: &[&str]) -> Output {
        self.command().args(args).stdin(Stdio::null()).output().expect("forq runs")
    }

    /// Runs a verb with something on its stdin.
    pub(crate) fn forq_with(&self, args: &[&str], stdin: &str) -> Output {
        // A file rather than a pipe: nobody has to write while the other reads.
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), stdin).expect("the input");
        let stdin = File::open(file.path()).expect("the input");
        self.command().args(args).stdin(stdin).output().expect("forq runs")
    }

    /// Starts a verb that takes its time; its stdout and stderr are pipes.
    pub(crate) fn background(&self, args: &[&str]) -> Child {
        self.command()
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("forq starts")
    }

    /// Runs a verb that succeeds, and gives its stdout.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.forq(args);
        assert!(output.status.success(), "forq {args:?}: {}", shown(&output));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    /// Runs a verb that fails with this exit code, and gives its stderr.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.forq(args);
        assert_eq!(output.status.code(), Some(code), "forq {args:?}: {}", shown(&output));
        String::from_utf8(output.stderr).expect("text")
    }

    /// Runs a verb with `--json` that succeeds, and gives its one value.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{args:?}: {error}: {printed}"))
    }

    /// Runs a verb with `--json` that succeeds, and gives its values, one a line.
    #[track_caller]
    pub(crate) fn json_lines(&self, args: &[&str]) -> Vec<Value> {
        json_lines(self.ok(&[args, &["--json"]].concat()).as_bytes())
    }

    /// Submits a task, and gives its id.
    #[track_caller]
    pub(crate) fn submit(&self, kind: &str, input: &Value, options: &[&str]) -> String {
        self.ok(&[&["submit", kind, &input.to_string()], options].concat())
    }

    /// Submits many tasks at once, and gives their ids in order.
    #[track_caller]
    pub(crate) fn submit_all(&self, tasks: &[Value]) -> Vec<String> {
        let output = self.forq_with(&["submit", "--jsonl", "-"], &jsonl(tasks));
        assert!(output.status.success(), "{}", shown(&output));
        String::from_utf8(output.stdout).expect("ids").lines().map(str::to_owned).collect()
    }

    /// Runs a task under the eyes of somebody who follows it from before its start; gives its id and
    /// every event.
    #[track_caller]
    pub(crate) fn run_followed(&self, kind: &str, input: &Value) -> (String, Vec<Value>) {
        self.ok(&["queue", "pause"]);
        let id = self.submit(kind, input, &[]);
        let mut follower = self.background(&["follow", &id, "--json"]);
        let mut stdout = BufReader::new(follower.stdout.take().expect("a pipe"));
        let mut events = String::new();
        stdout.read_line(&mut events).expect("that it waits");
        self.ok(&["queue", "resume"]);
        stdout.read_to_string(&mut events).expect("all events");
        assert!(follower.wait().expect("a child").success(), "{events}");
        (id, json_lines(events.as_bytes()))
    }

    /// A task as it is now.
    #[track_caller]
    pub(crate) fn task(&self, id: &str) -> Value {
        self.json(&["status", id])
    }

    /// A task's state.
    #[track_caller]
    pub(crate) fn state(&self, id: &str) -> String {
        text(&self.task(id), "/state")
    }

    /// Waits until a task is in this state, and gives it.
    #[track_caller]
    pub(crate) fn until(&self, id: &str, state: &str) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            last = self.task(id);
            if last["state"] == state {
                return last;
            }
            pause(Duration::from_millis(10));
        }
        panic!("not {state} within {SOON:?}: {last}");
    }

    /// Waits until all of these have ended, whichever way.
    #[track_caller]
    pub(crate) fn wait_for_all(&self, ids: &[String], timeout: &str) {
        let args: Vec<&str> = ["wait", "--timeout", timeout]
            .into_iter()
            .chain(ids.iter().map(String::as_str))
            .collect();
        let output = self.forq(&args);
        let done = matches!(output.status.code(), Some(0 | 1));
        assert!(done, "wait for {} tasks: {}", ids.len(), shown(&output));
    }

    /// The processes, once all of them are up and the workers have reached the broker.
    pub(crate) fn pids(&self) -> Option<Pids> {
        let output = self.forq(&["info", "--json"]);
        let info: Value = serde_json::from_slice(&output.stdout).ok()?;
        if info["phase"] != "running" {
            return None;
        }
        let pid = |value: &Value| value.as_i64().and_then(|pid| i32::try_from(pid).ok());
        let workers = info["workers"].as_array()?.iter();
        let ready =
            workers.map(|worker| pid(&worker["pid"]).filter(|_| worker["state"] == "ready"));
        Some(Pids {
            master: pid(&info["master"]["pid"])?,
            broker: pid(&info["broker"]["pid"])?,
            workers: ready.collect::<Option<_>>()?,
        })
    }

    /// What `forq info` says, once it says this.
    #[track_caller]
    pub(crate) fn info_when(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, || {
            let output = self.forq(&["info", "--json"]);
            serde_json::from_slice(&output.stdout).ok().filter(|info| holds(info))
        })
    }

    /// As [`Daemon::pids`], waiting until they are all there.
    #[track_caller]
    pub(crate) fn all_up(&self) -> Pids {
        eventually("every process is up", SOON, || self.pids())
    }

    /// The pid of the process that was started here: the master, dead or alive.
    pub(crate) fn master(&self) -> i32 {
        let child = self.child.as_ref().expect("a daemon that was started");
        i32::try_from(child.id()).expect("a pid")
    }

    /// Sends the master a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.master()), signal).expect("the master is there");
    }

    /// Kills one process with SIGKILL, if it is there; gives its pid. After a master's death
    /// [`Daemon::gone`] must follow.
    #[track_caller]
    pub(crate) fn kill(&self, role: Role) -> i32 {
        let pids = self.all_up();
        let pid = match role {
            Role::Master => pids.master,
            Role::Broker => pids.broker,
            Role::Worker(slot) => pids.workers[slot - 1],
        };
        // Gone in the meantime, at worst: somebody else was faster.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        pid
    }

    /// Kills one process at this very moment, whatever the others are at; `false` if there is
    /// none to be killed.
    pub(crate) fn strike(&self, role: Role) -> bool {
        let name = match role {
            Role::Master => "forq: master".to_owned(),
            Role::Broker => "forq: broker".to_owned(),
            Role::Worker(slot) => format!("forq: worker {slot}"),
        };
        let found = self.tree().into_iter().find(|process| process.name() == name);
        found.is_some_and(|process| kill(Pid::from_raw(process.pid), Signal::SIGKILL).is_ok())
    }

    /// Every process of the instance: the master, its children, their commands.
    pub(crate) fn tree(&self) -> Vec<Process> {
        processes::tree(self.master())
    }

    /// Waits for the master's end, and gives its exit status; the next start may follow.
    #[track_caller]
    pub(crate) fn gone(&mut self, within: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("a daemon that was started");
        let status = eventually_ended(&mut child, within);
        status.unwrap_or_else(|| {
            self.child = Some(child);
            panic!("the master is there after {within:?}")
        })
    }

    /// Kills the master, and waits until nothing of the instance is left; the time that took.
    #[track_caller]
    pub(crate) fn kill_everything(&mut self) -> Duration {
        let tree = self.tree();
        let began = Instant::now();
        self.signal(Signal::SIGKILL);
        let status = self.gone(SOON);
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
        eventually("nothing of the instance is left", SOON, || {
            tree.iter().all(|process| !process.is_there()).then_some(())
        });
        began.elapsed()
    }
}

/// Tasks as lines of a file.
pub(crate) fn jsonl(tasks: &[Value]) -> String {
    tasks.iter().map(|task| format!("{task}\n")).collect()
}

/// Waits for the end of a process that a test started.
#[track_caller]
pub(crate) fn eventually_ended(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        let status = child.try_wait().expect("a child of this test");
        if status.is_some() || Instant::now() > deadline {
            return status;
        }
        pause(Duration::from_millis(5));
    }
}

impl Drop for Daemon {
    /// Ends the processes that were started here, by pid: first as a user would, then for sure.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let tree = processes::tree(i32::try_from(child.id()).unwrap_or(0));
            let master = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
            let _ = kill(master, Signal::SIGINT);
            if eventually_ended(&mut child, Duration::from_secs(5)).is_none() {
                let _ = child.kill();
                let _ = child.wait();
            }
            for process in tree.iter().filter(|process| process.is_there()) {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.floor_char_boundary(log.len().saturating_sub(LOG_SHOWN_BYTES_MAX));
            eprintln!("--- the daemon's log ---\n{}", &log[from..]);
        }
    }
}
