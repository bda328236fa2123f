//! `forq top`, as a user sees it on a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::LocalFlags;
use nix::unistd::Pid;
use support::daemon::Role;
use support::terminal::Terminal;
use support::{Daemon, SOON, json};

const TWO_WORKERS: &str = "[workers]\nmin = 2\nmax = 2\n";
const LEAVES_ALTERNATE_SCREEN: &str = "\x1b[?1049l";
const SHOWS_CURSOR: &str = "\x1b[?25h";

fn top(daemon: &Daemon, columns: u16, rows: u16) -> Terminal {
    let mut command = daemon.command();
    command.args(["top", "--interval", "100ms"]);
    Terminal::run(&command, columns, rows)
}

/// The terminal is as a shell wants it.
#[track_caller]
fn assert_restored(terminal: &mut Terminal) {
    let written = terminal.written();
    assert!(written.contains(LEAVES_ALTERNATE_SCREEN), "{written:?}");
    assert!(written.contains(SHOWS_CURSOR), "{written:?}");
    let echoes = terminal.settings().local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON);
    assert!(echoes, "the terminal is raw");
}

#[test]
fn it_shows_a_workers_death_and_outlives_the_daemon() {
    let mut daemon = Daemon::start(TWO_WORKERS);
    let mut terminal = top(&daemon, 100, 30);
    let pids = daemon.all_up();
    for pid in pids.workers.iter().chain([&pids.master, &pids.broker]) {
        terminal.until(&pid.to_string());
    }
    assert!(!terminal.settings().local_flags.contains(LocalFlags::ECHO));

    let dead = daemon.kill(Role::Worker(2));
    terminal.until(&format!("worker 2 died: ended by SIGKILL, pid {dead}"));
    daemon.all_up();

    daemon.ok(&["queue", "pause"]);
    daemon.submit("noop", &json!({}), &[]);
    terminal.until("paused  1 queued");
    terminal.until("queue paused");

    let master = daemon.master();
    daemon.signal(Signal::SIGINT);
    daemon.gone(SOON);
    terminal.until("forq.sock: waiting");
    terminal.until_rows("no workers", |rows| !rows.iter().any(|row| row.starts_with("SLOT")));
    daemon.start_again();
    let pids = daemon.all_up();
    terminal.until(&format!("daemon restarted: master {master} → {}", pids.master));
    terminal.until(&pids.workers[1].to_string());

    terminal.type_in("q");
    assert_eq!(terminal.ended().code(), Some(0));
    assert_restored(&mut terminal);
}

#[test]
fn it_fits_into_any_window_and_follows_its_size() {
    let daemon = Daemon::start(TWO_WORKERS);
    let mut terminal = top(&daemon, 20, 5);
    terminal.until_rows("workers in a small window", |rows| {
        rows[0].starts_with("running") && rows[2].starts_with("SLOT") && rows[4].contains("ready")
    });
    terminal.resize(120, 40);
    terminal.until("LAST EXIT");
    terminal.until("q quit");
    terminal.resize(3, 1);
    terminal.until("run");
    terminal.type_in("\x1b");
    assert_eq!(terminal.ended().code(), Some(0));
    assert!(!terminal.written().contains("\x1b[38"), "colour under NO_COLOR");
    assert_restored(&mut terminal);
}

#[test]
fn a_broker_that_does_not_answer_holds_up_no_key() {
    let daemon = Daemon::start(TWO_WORKERS);
    let broker = Pid::from_raw(daemon.all_up().broker);
    let mut terminal = top(&daemon, 80, 24);
    terminal.until("ready");
    kill(broker, Signal::SIGSTOP).unwrap();
    terminal.type_in("p");
    terminal.until("PAUSED");
    terminal.type_in("p");
    terminal.until("the broker does not answer");
    terminal.type_in("s");
    terminal.until("sort: tasks");
    kill(broker, Signal::SIGCONT).unwrap();
    terminal.until("the broker answers again");
    terminal.type_in("\x03");
    assert_eq!(terminal.ended().code(), Some(0));
    assert_restored(&mut terminal);
}

#[test]
fn signals_and_a_closed_window_end_it() {
    let daemon = Daemon::prepare("state", "");
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let mut terminal = top(&daemon, 80, 24);
        terminal.until("forq.sock: waiting");
        kill(Pid::from_raw(terminal.pid()), signal).unwrap();
        assert_eq!(terminal.ended().code(), Some(code), "{signal}");
        assert_restored(&mut terminal);
    }
    let mut terminal = top(&daemon, 80, 24);
    terminal.until("forq.sock: waiting");
    terminal.hang_up();
    assert_eq!(terminal.ended().code(), Some(129));
}

#[test]
fn without_a_terminal_it_names_what_programs_use() {
    let daemon = Daemon::prepare("state", "");
    for args in [&["top"][..], &["top", "--json"]] {
        let error = daemon.fails(2, args);
        for part in ["needs a terminal", "forq stats --json", "forq info --json"] {
            assert!(error.contains(part), "{error}");
        }
    }
    let error = daemon.fails(2, &["top", "--interval", "1ms"]);
    assert!(error.contains("100ms to 1m"), "{error}");
}
