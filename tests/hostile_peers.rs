//! Peers that say anything, at any speed, on either socket: they are let go, and everybody else
//! works on undisturbed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

mod support;

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::processes;
use support::random::Random;
use support::wire::{Wire, frame};
use support::{Daemon, SOON, eventually, json, number, text};

/// What a frame that has begun may take.
const FRAME_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a stranger on the worker socket is kept waiting.
const PARKED_MAX: Duration = Duration::from_secs(1);

fn client(daemon: &Daemon) -> Wire {
    Wire::connect(&daemon.state_dir().join("forq.sock"))
}

fn as_worker(daemon: &Daemon) -> Wire {
    Wire::connect(&daemon.state_dir().join("worker.sock"))
}

/// Does something nasty while another client works; neither the daemon nor its client notices.
#[track_caller]
fn undisturbed(daemon: &Daemon, nasty: impl FnOnce()) {
    let pids = daemon.all_up();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let working = threads.spawn(|| {
            let mut finished = 0;
            while !done.load(Ordering::SeqCst) || finished == 0 {
                daemon.ok(&["submit", "noop", "--wait"]);
                finished += 1;
            }
        });
        // Whatever comes of it, the other thread must end.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(nasty));
        done.store(true, Ordering::SeqCst);
        working.join().unwrap();
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(daemon.all_up(), pids, "somebody died of it");
    let stats = daemon.json(&["stats"]);
    assert_eq!((number(&stats, "/failed"), number(&stats, "/worker_lost")), (0, 0));
}

#[test]
fn garbage_on_the_control_socket_is_answered_or_let_go() {
    let daemon = Daemon::start("");
    undisturbed(&daemon, || {
        for message in ["", "{", "null", "[1,2]", "\"info\"x", r#"{"sumbit":{}}"#, "\u{0}"] {
            let mut wire = client(&daemon);
            wire.answer();
            wire.send(&frame(message.as_bytes()));
            let refusal = wire.answer();
            assert_eq!(refusal["error"]["kind"], "invalid", "{message:?}: {refusal}");
            let why = text(&refusal, "/error/message");
            assert!(why.contains("not a request of protocol 1"), "{why}");
            // The frame was whole, so the next one is found.
            wire.ask(&json!("info"));
            assert!(wire.answer()["json"].is_object(), "after {message:?}");
        }
        let seed = 7;
        println!("seed {seed}");
        let mut random = Random::new(seed);
        for _ in 0..100 {
            let bytes: Vec<u8> =
                (0..random.between(1, 400)).map(|_| random.between(0, 256) as u8).collect();
            let mut wire = client(&daemon);
            // It may be let go in the middle of it.
            let _ = wire.try_send(&bytes);
            wire.end_sending();
            wire.let_go();
        }
    });
}

#[test]
fn a_huge_length_is_refused_before_its_bytes() {
    let daemon = Daemon::start("[queue]\ninput_bytes_max = '1MiB'\n");
    undisturbed(&daemon, || {
        for length in [(2 << 20) + 1, u32::MAX] {
            let mut wire = client(&daemon);
            let hello = wire.answer();
            assert_eq!(number(&hello, "/frame_bytes_max"), 2 << 20);
            wire.send(&length.to_le_bytes());
            let why = text(&wire.answer(), "/error/message");
            assert!(why.contains(&length.to_string()) && why.contains("2097152"), "{why}");
            assert!(wire.let_go().is_empty());
        }
    });
}

#[test]
fn half_a_frame_and_then_the_end_is_no_request() {
    let daemon = Daemon::start("");
    undisturbed(&daemon, || {
        let id = "0190aaaa-0000-7000-8000-000000000000";
        let submit = json!({"submit": {"tasks": [{"id": id, "kind": "noop"}]}}).to_string();
        let whole = frame(submit.as_bytes());
        for cut in [1, 3, 4, 5, whole.len() - 1] {
            let mut wire = client(&daemon);
            wire.answer();
            wire.send(&whole[..cut]);
            wire.end_sending();
            assert!(wire.let_go().is_empty(), "cut at {cut}");
        }
        daemon.fails(6, &["status", id]);
    });
}

#[test]
fn slow_bytes_are_let_go_in_time_and_cost_nobody_anything() {
    let daemon = Daemon::start("");
    undisturbed(&daemon, || {
        let began = Instant::now();
        let mut half = client(&daemon);
        half.answer();
        half.send(&frame(b"\"info\"")[..6]);
        half.limit_reading(FRAME_TIME_MAX + SOON);
        let mut dripping = client(&daemon);
        dripping.answer();
        dripping.send(&1_000_000u32.to_le_bytes());
        dripping.limit_reading(Duration::from_millis(100));
        // A byte now and then does not buy it more time.
        while dripping.try_send(b" ").is_ok() {
            assert!(began.elapsed() < FRAME_TIME_MAX + SOON, "still kept");
            support::pause(Duration::from_millis(100));
        }
        assert!(half.let_go().is_empty());
        assert!(began.elapsed() >= FRAME_TIME_MAX, "{:?}", began.elapsed());
        // A slow frame that comes whole is a request like any other.
        let mut slow = client(&daemon);
        slow.answer();
        for byte in frame(b"\"info\"") {
            slow.send(&[byte]);
            support::pause(Duration::from_millis(20));
        }
        assert!(slow.answer()["json"].is_object());
    });
}

#[test]
fn an_idle_client_is_kept() {
    let daemon = Daemon::start("");
    let mut wires: Vec<Wire> = (0..200).map(|_| client(&daemon)).collect();
    undisturbed(&daemon, || wires.iter_mut().for_each(|wire| drop(wire.answer())));
    for wire in &mut wires {
        wire.ask(&json!("info"));
        assert!(wire.answer()["json"].is_object());
    }
}

#[test]
fn a_client_that_never_reads_is_let_go_and_its_replies_with_it() {
    let daemon = Daemon::start("");
    let file = daemon.file("input.json");
    std::fs::write(&file, json!({"argv": ["true"], "stdin": "x".repeat(4 << 20)}).to_string())
        .unwrap();
    let large = daemon.ok(&["submit", "exec", &format!("@{}", file.display()), "--delay", "1h"]);
    let broker = daemon.all_up().broker;
    undisturbed(&daemon, || {
        let mut wire = client(&daemon);
        wire.limit_sending(Duration::from_secs(1));
        let status = frame(json!({"status": {"id": large}}).to_string().as_bytes());
        let began = Instant::now();
        // Each of these is worth 4 MiB; a socket holds a few hundred KiB.
        let broken = loop {
            match wire.try_send(&status) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => break error,
                Ok(()) => {}
            }
            assert!(began.elapsed() < SOON, "still kept");
        };
        let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(gone.contains(&broken.kind()), "{broken}");
        assert!(daemon.log().contains("reads too slowly"), "{}", daemon.log());
    });
    eventually("its replies are forgotten", SOON, || {
        let rss = processes::status(broker, "VmRSS");
        let kib: u64 = rss.trim_end_matches(" kB").parse().unwrap();
        (kib < 100 << 10).then_some(())
    });
}

/// The worker socket takes only the pids that the master named.
#[test]
fn strangers_on_the_worker_socket_are_let_go_within_a_second_or_so() {
    let daemon = Daemon::start("");
    undisturbed(&daemon, || {
        // A hello that is right in everything but the pid it comes from.
        let hello = [0, 1, 5, b'0', b'.', b'1', b'.', b'0', 1, 1, 1, 32, 0];
        let mut wires =
            [&frame(&hello)[..], &[0xff; 64], &[1], b"", &frame(&[9; 1000])].map(|bytes| {
                let mut wire = as_worker(&daemon);
                wire.send(bytes);
                wire
            });
        let began = Instant::now();
        for wire in &mut wires {
            assert!(wire.let_go().is_empty(), "it was told something");
        }
        let took = began.elapsed();
        assert!(took < PARKED_MAX + Duration::from_secs(5), "{took:?}");
        for _ in 0..200 {
            drop(as_worker(&daemon));
        }
    });
    let log = daemon.log();
    assert!(log.contains("is no worker of ours: let go"), "{log}");
    let workers = daemon.json(&["info"])["workers"].as_array().unwrap().len();
    assert_eq!(workers, 2);
}
