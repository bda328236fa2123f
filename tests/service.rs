//! What a service manager gives a daemon, and hears of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::{Daemon, Role, SOON, json, shown};

/// `forq serve` as systemd would run it: what it passes is descriptor 3, told in the environment.
fn with_passed(passed: impl Into<OwnedFd>, serve: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#, "sh"])
        .arg(serve.get_program())
        .args(serve.get_args())
        .stdin(Stdio::from(passed.into()));
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Reads the beginning of a broker's hello.
fn is_greeted(mut client: UnixStream) {
    client.set_read_timeout(Some(SOON)).unwrap();
    client.read_exact(&mut [0; 4]).expect("a hello");
}

#[test]
fn a_socket_that_was_passed_is_served() {
    let mut daemon = Daemon::prepare("state", "");
    let socket = daemon.file("passed.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // A client may come before the daemon does.
    let early = UnixStream::connect(&socket).unwrap();
    let kept = listener.try_clone().unwrap();
    daemon.start_by(with_passed(listener, &daemon.serve_command()));
    is_greeted(early);
    let own = daemon.state_dir().join("forq.sock");
    assert_eq!(std::fs::read_link(&own).unwrap(), socket);
    // Every broker serves it.
    daemon.kill(Role::Broker);
    daemon.wait_for_all(&[daemon.submit("noop", &json!({}), &[])], "20s");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.gone(SOON).success());
    // It is not ours to remove: the next daemon serves who waits at it.
    let waiting = UnixStream::connect(&socket).unwrap();
    daemon.start_by(with_passed(kept, &daemon.serve_command()));
    is_greeted(waiting);
}

#[test]
fn what_is_no_control_socket_is_refused() {
    let daemon = Daemon::prepare("state", "");
    let refused = |passed: OwnedFd, found: &str| {
        let output = with_passed(passed, &daemon.serve_command()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let expected = "error: cannot use what systemd passed: ";
        assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
        assert!(stderr.contains(expected) && stderr.contains(found), "{}", shown(&output));
    };
    refused(std::fs::File::open("/dev/null").unwrap().into(), "not a socket");
    refused(UnixStream::pair().unwrap().0.into(), "it is a connection");
    refused(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(), "unix stream socket");
}

#[test]
fn a_socket_for_another_process_is_left_alone() {
    let mut daemon = Daemon::prepare("state", "");
    let mut command = daemon.serve_command();
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    daemon.start_by(command);
    assert!(!daemon.state_dir().join("forq.sock").is_symlink());
}

#[test]
fn commands_do_not_speak_to_the_service_manager() {
    let mut daemon = Daemon::prepare("state", "");
    let mut command = daemon.serve_command();
    for (name, value) in [
        ("NOTIFY_SOCKET", "/nowhere/notify"),
        ("WATCHDOG_USEC", "1000000"),
        ("WATCHDOG_PID", "1"),
        ("LISTEN_PID", "1"),
        ("LISTEN_FDS", "1"),
        ("LISTEN_FDNAMES", "control"),
        ("STATE_DIRECTORY", "/kept"),
    ] {
        command.env(name, value);
    }
    daemon.start_by(command);
    let id = daemon.submit("exec", &json!({ "argv": ["env"] }), &[]);
    let output = daemon.until(&id, "succeeded")["output"]["stdout"].to_string();
    for gone in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "FORQ_PARENT"] {
        assert!(!output.contains(gone), "{output}");
    }
    assert!(output.contains("STATE_DIRECTORY=/kept"), "{output}");
}

/// Reads what the service manager is told until it is told `what`.
#[track_caller]
fn told(manager: &UnixDatagram, what: &str) -> String {
    let mut said = String::new();
    while !said.contains(what) {
        let mut bytes = [0; 4096];
        let count = manager.recv(&mut bytes).unwrap_or_else(|_| panic!("no {what} in {said:?}"));
        said.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    said
}

#[test]
fn the_service_manager_is_told_of_each_turn() {
    let mut daemon = Daemon::prepare("state", "");
    let socket = daemon.file("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = daemon.serve_command();
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    daemon.start_by(command);
    told(&manager, "READY=1\nSTATUS=");
    // Whatever becomes of the broker, the loop turns, and the service is what it was.
    daemon.kill(Role::Broker);
    let id = daemon.submit("sleep", &json!({ "seconds": 1 }), &[]);
    daemon.until(&id, "running");
    let mut said = String::new();
    while said.matches("WATCHDOG=1").count() < 3 {
        said += &told(&manager, "WATCHDOG=1");
    }
    assert!(!said.contains("READY") && !said.contains("STOPPING"), "{said}");
    daemon.signal(Signal::SIGTERM);
    let said = told(&manager, "EXTEND_TIMEOUT_USEC=");
    assert!(said.contains("STOPPING=1\nSTATUS="), "{said}");
    assert!(daemon.gone(SOON).success());
}

/// What a unit says, without its comments.
fn directives(unit: &str) -> Vec<&str> {
    unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn the_templates_differ_from_the_units_in_names_alone() {
    let named = |unit: &str| {
        unit.replace("=forq:", "=forq %i:")
            .replace("=forq\n", "=forq-%i\n")
            .replace("/run/forq/", "/run/forq/%i/")
            .replace("/forq.toml", "/%i.toml")
            .replace("=forq.socket", "=forq@%i.socket")
            .replace("=forq.service", "=forq@%i.service")
            // The user and the group are the same.
            .replace("User=forq-%i", "User=forq")
            .replace("Group=forq-%i", "Group=forq")
    };
    for (unit, template) in [
        (include_str!("../systemd/forq.service"), include_str!("../systemd/forq@.service")),
        (include_str!("../systemd/forq.socket"), include_str!("../systemd/forq@.socket")),
    ] {
        assert_eq!(directives(&named(unit)), directives(template));
    }
}
