//! Upgrades in place: another build takes over in the same process, and nobody loses anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{Daemon, SOON, Value, eventually, json, number, outcomes, pause, text};

const OLD: &str = env!("CARGO_PKG_VERSION");

/// A version of the same length as ours, and no other build's.
fn next_version() -> String {
    let (rest, last) = OLD.split_at(OLD.len() - 1);
    format!("{rest}{}", if last == "9" { "8" } else { "9" })
}

/// Puts a program in a place as an installation does: under another name first.
fn install(bytes: &[u8], path: &Path) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, path).unwrap();
}

/// This build under another version: wherever the binary says its own, it says the other.
fn other_build() -> Vec<u8> {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_forq")).unwrap();
    let (old, new) = (OLD.as_bytes(), next_version().into_bytes());
    let places: Vec<usize> =
        (0..bytes.len() - old.len()).filter(|at| bytes[*at..].starts_with(old)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(&new);
    }
    bytes
}

/// A daemon that was started from a path of its own, where another build can be put.
fn daemon(config: &str) -> (Daemon, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("forq");
    install(&fs::read(env!("CARGO_BIN_EXE_forq")).unwrap(), &program);
    let mut daemon = Daemon::start_program(&program, config);
    daemon.ask_with_own_build();
    (daemon, program, folder)
}

fn version(info: &Value) -> String {
    text(info, "/version")
}

#[test]
fn another_build_takes_over_under_load_and_nothing_is_lost() {
    let (daemon, program, _folder) = daemon("[workers]\nmin = 3\nmax = 5\n");
    let before = daemon.all_up();
    let mut ids = Vec::new();
    // Some that outlast the upgrade, and many small ones all the while.
    let long = vec![json!({ "kind": "sleep", "input": { "seconds": 2 } }); 9];
    ids.extend(daemon.submit_all(&long));
    ids.iter().for_each(|id| drop(daemon.until(id, "running")));
    let waiter = daemon.background(&["wait", &ids[0]]);
    install(&other_build(), &program);
    let mut upgrade = daemon.background(&["upgrade", "--wait"]);
    let mut longest = Duration::ZERO;
    while upgrade.try_wait().unwrap().is_none() {
        let began = Instant::now();
        ids.push(daemon.submit("sleep", &json!({ "seconds": 0.02 }), &[]));
        longest = longest.max(began.elapsed());
    }
    let output = upgrade.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with(&format!("upgraded: {}, generation 2", next_version())), "{said}");
    assert!(longest < Duration::from_secs(3), "a client waited for {longest:?}");
    assert!(waiter.wait_with_output().unwrap().status.success(), "who waited is told");
    daemon.wait_for_all(&ids, "20s");
    for id in &ids {
        let task = daemon.task(id);
        assert_eq!(outcomes(&task), ["succeeded"], "{task}");
    }
    let info = daemon.info_when("the old ones are gone", |info| {
        info["phase"] == "running" && info["workers"].as_array().unwrap().len() == 3
    });
    assert_eq!(version(&info), next_version());
    assert_eq!((number(&info, "/scale/want"), number(&info, "/scale/min")), (3, 3));
    let after = daemon.all_up();
    assert_eq!(after.master, before.master, "the same pid");
    assert_ne!(after.broker, before.broker);
    let old: BTreeSet<i32> = before.workers.iter().copied().collect();
    assert!(after.workers.iter().all(|pid| !old.contains(pid)));
    assert_eq!(number(&daemon.json(&["stats"]), "/worker_lost"), 0);
    // It is a whole master: it reaps, reloads, stops, and can be upgraded again.
    daemon.ok(&["reload", "--wait"]);
    daemon.signal(Signal::SIGUSR2);
    daemon.info_when("it is upgraded once more", |info| {
        number(info, "/generation") == 4 && info["rolled"] == true
    });
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let (daemon, program, _folder) = daemon("");
    let before = daemon.all_up();
    let refused = |what: &str| {
        let told = daemon.fails(2, &["upgrade", "--wait"]);
        assert!(told.contains(what), "{what}: {told}");
        assert_eq!(daemon.all_up(), before);
        assert_eq!(version(&daemon.json(&["info"])), OLD);
    };
    // No program at all, one that is something else, one that is broken, and none.
    install(b"garbage", &program);
    refused("cannot run");
    install(b"#!/bin/sh\nexit 0\n", &program);
    refused("does not take over");
    install(b"#!/bin/sh\nkill -SEGV $$\n", &program);
    refused("SIGSEGV");
    fs::remove_file(&program).unwrap();
    refused("cannot run");
    // A file that the new build would refuse.
    install(&other_build(), &program);
    daemon.configure("[workers]\nmux = 1\n");
    refused("mux");
    daemon.configure("[log]\nfile = \"/nowhere/log\"\n");
    refused("/nowhere/log");
    assert!(daemon.fails(2, &["reload"]).contains("/nowhere/log"));
    daemon.configure("");
    // An old story does not spoil a reload.
    daemon.ok(&["reload", "--wait"]);
    daemon.ok(&["upgrade", "--wait"]);
    assert_eq!(version(&daemon.json(&["info"])), next_version());
}

/// A build that says that it can take over, and whose broker does not serve.
#[test]
fn a_build_whose_broker_does_not_get_ready_gives_way_to_the_old_one() {
    let (daemon, program, folder) = daemon("[workers]\nmin = 2\nmax = 2\nboot_timeout = \"2s\"\n");
    let before = daemon.all_up();
    let id = daemon.submit("sleep", &json!({ "seconds": 4 }), &[]);
    daemon.until(&id, "running");
    // The real build behind a wrapper: when it runs for real, the database is out of its reach.
    let real = folder.path().join("real");
    install(&other_build(), &real);
    let database = daemon.state_dir().join("forq.db");
    let script = format!(
        "#!/bin/sh\nif [ -z \"$FORQ_HANDOVER_CHECK\" ] && [ -n \"$FORQ_HANDOVER\" ]; then\n\
         mv {database:?} {database:?}.away; mkdir {database:?}; fi\nexec {real:?} \"$@\"\n"
    );
    install(script.as_bytes(), &program);
    let mut upgrade = daemon.background(&["upgrade", "--wait"]);
    eventually("the new build cannot open the store", SOON, || database.is_dir().then_some(()));
    eventually("the old build is back", SOON, || {
        daemon.log().contains("the old build comes back").then_some(())
    });
    fs::remove_dir(&database).unwrap();
    fs::rename(folder_away(&database), &database).unwrap();
    install(&fs::read(env!("CARGO_BIN_EXE_forq")).unwrap(), &program);
    let status = support::daemon::eventually_ended(&mut upgrade, SOON).expect("an end");
    assert_eq!(status.code(), Some(1));
    let info = daemon.info_when("it serves", |info| info["phase"] == "running");
    assert_eq!(version(&info), OLD);
    assert!(text(&info, "/upgrade_error").contains(&next_version()), "{info}");
    assert_eq!(daemon.all_up().master, before.master);
    let task = daemon.until(&id, "succeeded");
    assert_eq!(outcomes(&task), ["succeeded"], "{task}");
}

fn folder_away(database: &Path) -> PathBuf {
    let mut away = database.as_os_str().to_owned();
    away.push(".away");
    PathBuf::from(away)
}

#[test]
fn a_stop_in_the_middle_of_an_upgrade_is_a_stop() {
    // At moments before, during and after the exec: it takes some 10 ms until then.
    for after_ms in [0, 5, 10, 15, 25, 40] {
        let (mut daemon, program, _folder) = daemon("[workers]\ndrain_timeout = \"5s\"\n");
        let id = daemon.submit("sleep", &json!({ "seconds": 0.5 }), &[]);
        daemon.until(&id, "running");
        install(&other_build(), &program);
        daemon.signal(Signal::SIGUSR2);
        pause(Duration::from_millis(after_ms));
        daemon.signal(Signal::SIGTERM);
        daemon.signal(Signal::SIGUSR2);
        let status = daemon.gone(SOON);
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        daemon.start_again();
        let task = daemon.until(&id, "succeeded");
        assert_eq!(task["attempt"], 1, "{task}");
    }
}
