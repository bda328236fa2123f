//! What each process of an instance is made of, and leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use support::processes::{
    accepted_at, descriptors, listening_sockets, name, signals, status, tree, zombies_of,
};
use support::{Daemon, Role, SOON, eventually, eventually_eq, json, number};

/// What a master may have on its heap and stacks.
const MASTER_ANON_KIB_MAX: u64 = 4 << 10;

/// The signals that people send; above them are the C library's own and the real-time ones.
const STANDARD: u64 = (1 << 31) - 1;

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_master_stays_bare() {
    let daemon = Daemon::start("");
    let ids: Vec<String> = (0..20).map(|_| daemon.submit("noop", &json!({}), &[])).collect();
    daemon.wait_for_all(&ids, "20s");
    daemon.kill(Role::Worker(1));
    daemon.kill(Role::Broker);
    let master = daemon.all_up().master;
    let threads = fs::read_dir(format!("/proc/{master}/task")).unwrap().count();
    assert_eq!(threads, 1, "the master forks: it must have no other thread");
    let anon = status(master, "RssAnon");
    let anon_kib: u64 = anon.trim_end_matches(" kB").parse().unwrap();
    assert!(anon_kib < MASTER_ANON_KIB_MAX, "{anon}");
}

#[test]
fn processes_are_told_apart_by_name() {
    let daemon = Daemon::start("[workers]\nmin = 3\n");
    let pids = daemon.all_up();
    assert_eq!(name(pids.master), "forq: master");
    assert_eq!(name(pids.broker), "forq: broker");
    let workers: Vec<String> = pids.workers.iter().map(|pid| name(*pid)).collect();
    assert_eq!(workers, ["forq: worker 1", "forq: worker 2", "forq: worker 3"]);
    // As `ps` shows them, if the place for it is long enough: it is here.
    let line = fs::read_to_string(format!("/proc/{}/cmdline", pids.broker)).unwrap();
    assert_eq!(line.trim_end_matches('\0'), "forq: broker");
}

#[test]
fn processes_take_signals_and_ignore_none() {
    let mut daemon = Daemon::prepare("state", "");
    let serve = daemon.serve_command();
    // As under `nohup`, and worse: whoever starts it ignores what ends it.
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" HUP INT TERM USR1; exec "$0" "$@""#]);
    command.arg(serve.get_program()).args(serve.get_args()).stdin(Stdio::null());
    command.env_clear();
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    daemon.start_by(command);
    let pids = daemon.all_up();
    // Rust's start ignores PIPE; the rest is what this test was started with.
    let given = signals(nix::unistd::getpid().as_raw(), "SigIgn") | bit(Signal::SIGPIPE);
    for pid in pids.workers.iter().chain([&pids.broker, &pids.master]) {
        assert_eq!(signals(*pid, "SigBlk"), 0, "{}", name(*pid));
        // Whatever is ignored, commands would inherit.
        let ignored = signals(*pid, "SigIgn") & STANDARD;
        assert_eq!(ignored & !given, 0, "{} ignores {ignored:#x}", name(*pid));
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1] {
            assert_eq!(ignored & bit(signal), 0, "{} ignores {signal}", name(*pid));
        }
        assert_ne!(signals(*pid, "SigCgt") & bit(Signal::SIGTERM), 0, "{}", name(*pid));
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.gone(SOON).success());
}

/// When memory is short the workers go first and the master last.
#[test]
fn the_master_is_the_last_to_go_when_memory_is_short() {
    let daemon = Daemon::start("[workers]\nmin = 2\n");
    let pids = daemon.all_up();
    let score = |pid: i32| -> i32 {
        let file = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        file.trim_end().parse().unwrap()
    };
    let master = score(pids.master);
    assert_eq!(master, score(nix::unistd::getpid().as_raw()), "as it was started");
    assert_eq!(score(pids.broker), (master + 100).min(1000));
    for worker in pids.workers {
        assert_eq!(score(worker), (master + 500).min(1000));
    }
}

#[test]
fn children_outlive_signals_that_a_terminal_sends_to_all() {
    let daemon = Daemon::start("");
    let id = daemon.submit("sleep", &json!({ "seconds": 1 }), &[]);
    daemon.until(&id, "running");
    let before = daemon.all_up();
    let meant_for_the_master = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    for pid in before.workers.iter().chain([&before.broker]) {
        for signal in meant_for_the_master {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal).unwrap();
        }
    }
    assert_eq!(daemon.until(&id, "succeeded")["attempt"], 1);
    assert_eq!(daemon.all_up(), before);
}

#[test]
fn a_worker_holds_nothing_of_the_others() {
    let daemon = Daemon::start("");
    let listening = listening_sockets();
    // What this test was started with, its daemon was started with.
    let given = descriptors(nix::unistd::getpid().as_raw());
    for pid in daemon.all_up().workers {
        let mut own = descriptors(pid);
        own.retain(|number, leads_to| *number > 2 && given.get(number) != Some(leads_to));
        let mut sockets = 0;
        for (number, leads_to) in &own {
            let leads_to = leads_to.to_string_lossy();
            if let Some(inode) = leads_to.strip_prefix("socket:[") {
                let inode = inode.trim_end_matches(']');
                assert!(!listening.iter().any(|listener| listener == inode), "{number} listens");
                sockets += 1;
            } else {
                let wakes = leads_to.starts_with("anon_inode:") || leads_to.starts_with("pipe:");
                // The lock is held by every process: it says that somebody is left.
                let lock = leads_to.ends_with("/forq.lock");
                assert!(wakes || lock, "descriptor {number} is {leads_to}");
            }
        }
        // Its lifeline, its connection to the broker, and both ends of tokio's signal pipe.
        assert!(sockets <= 5, "{own:?}");
    }
}

#[test]
fn forty_deaths_leave_nothing_behind() {
    const WORKERS: usize = 7;
    let daemon = Daemon::start(&format!("[workers]\nmin = {WORKERS}\nmax = {WORKERS}\n"));
    let master = daemon.all_up().master;
    let before = descriptors(master);
    for round in 1..=5 {
        for slot in 0..=WORKERS {
            let dead = daemon.kill(if slot == 0 { Role::Broker } else { Role::Worker(slot) });
            eventually("a new one is there", SOON, || {
                let up = daemon.pids()?;
                (up.broker != dead && !up.workers.contains(&dead)).then_some(())
            });
        }
        if round % 2 == 0 {
            // Slots that die again and again are held back, until one has served for a second.
            support::pause(Duration::from_millis(1100));
        }
    }
    let up = daemon.all_up();
    assert_eq!(up.master, master);
    let after = descriptors(master);
    assert_eq!(before.len(), after.len(), "{before:?} became {after:?}");
    eventually_eq(0, || zombies_of(master));
    eventually_eq(WORKERS + 2, || tree(master).len());
    let info = daemon.json(&["info"]);
    let restarts = number(&info, "/broker/restarts")
        + info["workers"].as_array().unwrap().iter().map(|w| number(w, "/restarts")).sum::<u64>();
    assert_eq!(restarts, 40, "{info}");
}

/// Reloads that replace all workers of a pool, until there were 300 and more.
/// What a process has open, sorted; of a socket or a pipe, that it is one.
fn kinds_of_descriptors(pid: i32) -> Vec<String> {
    let targets = descriptors(pid).into_values().map(|target| target.display().to_string());
    let kind = |target: String| target.split(":[").next().unwrap_or_default().to_owned();
    let mut kinds: Vec<_> = targets.map(kind).collect();
    kinds.sort();
    kinds
}

#[test]
fn three_hundred_replacements_leave_nothing_behind() {
    const WORKERS: usize = 8;
    const RELOADS: usize = 38;
    // What an allocator may keep once; a leak of a worker's table entry would be as much in an
    // hour, and of one page a reload it is here.
    const GROWTH_KIB_MAX: u64 = 128;
    let daemon = Daemon::start(&format!(
        "[workers]\nmin = {WORKERS}\nmax = {WORKERS}\nmax_surge = {WORKERS}\n"
    ));
    let reload = || {
        daemon.ok(&["reload", "--wait"]);
        daemon.info_when("the old ones have gone", |info| {
            info["rolled"] == true && info["workers"].as_array().unwrap().len() == WORKERS
        });
    };
    let anon_kib = |pid: i32| -> u64 {
        status(pid, "RssAnon").trim_end_matches(" kB").parse().expect("a size")
    };
    // The first ones fill tables that stay.
    (0..5).for_each(|_| reload());
    let first = daemon.all_up();
    let [master, broker] = [first.master, first.broker];
    // The broker may still hold the connection of the client that asked last.
    let clients = || accepted_at(&daemon.state_dir().join("forq.sock"));
    eventually_eq(0, clients);
    let before = [master, broker].map(kinds_of_descriptors);
    let anon_before = anon_kib(master);
    let mut seen = BTreeSet::new();
    for _ in 0..RELOADS {
        reload();
        seen.extend(daemon.all_up().workers);
    }
    assert_eq!(seen.len(), WORKERS * RELOADS, "each reload replaces each worker");
    let last = daemon.all_up();
    assert_eq!((last.master, last.broker), (master, broker));
    eventually_eq(before, || [master, broker].map(kinds_of_descriptors));
    eventually_eq(0, || zombies_of(master));
    eventually_eq(WORKERS + 2, || tree(master).len());
    let anon = anon_kib(master);
    assert!(anon <= anon_before + GROWTH_KIB_MAX, "{anon_before} KiB became {anon} KiB");
    let threads = fs::read_dir(format!("/proc/{master}/task")).unwrap().count();
    assert_eq!(threads, 1);
    let info = daemon.json(&["info"]);
    assert!(info["workers"].as_array().unwrap().iter().all(|one| one["restarts"] == 0), "{info}");
}

#[test]
fn a_replacement_takes_tasks() {
    let daemon = Daemon::start("[workers]\nmin = 1\n");
    let dead = daemon.kill(Role::Worker(1));
    let id = daemon.submit("noop", &json!({}), &[]);
    let task = daemon.until(&id, "succeeded");
    let now = daemon.all_up().workers[0];
    assert_ne!(now, dead);
    assert_eq!(task["worker_pid"], now, "{task}");
    let info = daemon.json(&["info"]);
    assert_eq!(info["workers"][0]["last_exit"], "ended by SIGKILL", "{info}");
    assert_eq!(info["workers"][0]["restarts"], 1, "{info}");
}

#[test]
fn a_daemon_of_root_says_so() {
    let daemon = Daemon::start("");
    let told = daemon.log().lines().filter(|line| line.contains("running as root")).count();
    assert_eq!(told, usize::from(nix::unistd::geteuid().is_root()), "{}", daemon.log());
}

#[test]
fn open_files_are_raised_to_what_the_concurrency_may_need() {
    let daemon = Daemon::start("[workers]\nconcurrency = 1000\n");
    let worker = daemon.all_up().workers[0];
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = [3, 4].map(|field| {
        let limit = line.split_whitespace().nth(field).unwrap();
        limit.parse().unwrap_or(u64::MAX)
    });
    assert!(soft >= hard.min(8064), "{line}");
}

#[test]
fn a_state_folder_is_its_owners() {
    let daemon = Daemon::start("");
    let id = daemon.submit("noop", &json!({}), &[]);
    daemon.until(&id, "succeeded");
    let folder = daemon.state_dir();
    assert_eq!(mode(folder), 0o700);
    for name in ["forq.sock", "worker.sock", "forq.db", "forq.db-wal", "forq.lock", "status.json"] {
        assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
    }
}
