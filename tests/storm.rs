//! A storm: tasks of every sort while workers, brokers and whole daemons are killed at random.
//!
//! `FORQ_STORM_SEED`, `FORQ_STORM_TASKS` and `FORQ_STORM_KILLS` change it; `scripts/storm` runs
//! longer ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests may fail loudly"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::commands::append;
use support::daemon::jsonl;
use support::random::Random;
use support::{Daemon, Role, Value, json, number, outcomes, shown, text};

const WORKERS: usize = 3;
/// Kills would charge a task that was alone in its worker; here only what is lost counts.
const MAX_ATTEMPTS: u32 = 20;
/// Tasks that are submitted at once.
const BATCH_TASKS: usize = 25;
/// Kills of the whole daemon.
const MASTER_KILLS: u64 = 2;
/// Pauses between two kills. A worker's slot is hit about once a second, or forks back off.
const PAUSE_MS: (u64, u64) = (150, 450);

struct Storm {
    daemon: Daemon,
    random: Random,
    kills_left: u64,
    /// When the next kill is due.
    next_at: Instant,
    /// Kills left at which the master is the one.
    masters_at: Vec<u64>,
}

#[test]
fn nothing_is_lost_in_a_storm() {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = from_env("FORQ_STORM_SEED", nanos.into());
    let count = from_env("FORQ_STORM_TASKS", 300) as usize;
    let kills = from_env("FORQ_STORM_KILLS", 24);
    eprintln!("FORQ_STORM_SEED={seed} FORQ_STORM_TASKS={count} FORQ_STORM_KILLS={kills}");

    let config = format!("[workers]\nmin = {WORKERS}\nmax = {WORKERS}\nconcurrency = 3\n");
    let daemon = Daemon::start(&config);
    let file = daemon.file("traces");
    let mut random = Random::new(seed);
    let tasks: Vec<Value> = (0..count).map(|number| task(&mut random, &file, number)).collect();
    let masters_at = (1..=MASTER_KILLS).map(|part| kills * part / (MASTER_KILLS + 1)).collect();
    let mut storm =
        Storm { daemon, random, kills_left: kills, next_at: Instant::now(), masters_at };

    let mut ids = Vec::new();
    for batch in tasks.chunks(BATCH_TASKS) {
        ids.extend(storm.submit(batch));
        // Spread out, so that every kill finds something to do.
        storm.rage_until(kills - kills * ids.len() as u64 / count as u64);
    }
    storm.daemon.wait_for_all(&ids, "120s");
    judge(&storm.daemon, &tasks, &ids, &file);
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// A task that is known by its key, so that a submission may be repeated.
fn task(random: &mut Random, file: &Path, number: usize) -> Value {
    let seconds = random.between(50, 300) as f64 / 1000.0;
    let key = format!("task-{number}");
    let (kind, input) = match random.between(0, 3) {
        0 => ("noop", json!({})),
        1 => ("sleep", json!({ "seconds": seconds })),
        _ => ("exec", append(file, &key, seconds)),
    };
    json!({ "kind": kind, "input": input, "key": key, "max_attempts": MAX_ATTEMPTS })
}

impl Storm {
    /// Submits until it is acknowledged, while the storm goes on. Only a dead master ends a
    /// client.
    fn submit(&mut self, tasks: &[Value]) -> Vec<String> {
        let file = self.daemon.file("batch.jsonl");
        std::fs::write(&file, jsonl(tasks)).unwrap();
        loop {
            let mut client =
                self.daemon.background(&["submit", "--jsonl", &file.to_string_lossy()]);
            let mut master_died = false;
            while client.try_wait().unwrap().is_none() {
                master_died |= self.strike_when_due() == Some(Role::Master);
                support::pause(Duration::from_millis(2));
            }
            let output = client.wait_with_output().unwrap();
            if output.status.success() {
                let ids = String::from_utf8(output.stdout).unwrap();
                return ids.lines().map(str::to_owned).collect();
            }
            assert!(master_died, "no master died, and yet: {}", shown(&output));
        }
    }

    /// Goes on until so many kills are left.
    fn rage_until(&mut self, kills_left: u64) {
        while self.kills_left > kills_left {
            self.strike_when_due();
            support::pause(Duration::from_millis(5));
        }
    }

    /// Kills somebody, if it is time.
    fn strike_when_due(&mut self) -> Option<Role> {
        if self.kills_left == 0 || Instant::now() < self.next_at {
            return None;
        }
        let role = self.strike();
        let pause_ms = self.random.between(PAUSE_MS.0, PAUSE_MS.1);
        self.next_at = Instant::now() + Duration::from_millis(pause_ms);
        self.kills_left -= 1;
        Some(role)
    }

    fn strike(&mut self) -> Role {
        if self.masters_at.contains(&self.kills_left) {
            let took = self.daemon.kill_everything();
            assert!(took < Duration::from_secs(1), "something outlived its master for {took:?}");
            self.daemon.start_again();
            return Role::Master;
        }
        let role = if self.random.chance(30) {
            Role::Broker
        } else {
            Role::Worker(self.random.between(1, WORKERS as u64 + 1) as usize)
        };
        self.daemon.strike(role);
        role
    }
}

/// None lost, each result once, and `attempts` explains every run.
fn judge(daemon: &Daemon, tasks: &[Value], ids: &[String], file: &Path) {
    assert_eq!(ids.len(), tasks.len());
    let traces = std::fs::read_to_string(file).unwrap();
    let mut runs: BTreeMap<&str, u64> = BTreeMap::new();
    for line in traces.lines() {
        *runs.entry(line).or_default() += 1;
    }
    let mut starts = 0;
    for (task, id) in tasks.iter().zip(ids) {
        let found = daemon.task(id);
        assert_eq!(found["state"], "succeeded", "{found}");
        assert_eq!(found["key"], task["key"], "{found}");
        let outcomes = outcomes(&found);
        let attempt = number(&found, "/attempt");
        assert_eq!(outcomes.len() as u64, attempt, "{found}");
        let (last, lost) = outcomes.split_last().unwrap();
        assert_eq!(last, "succeeded", "{found}");
        let explained = |outcome: &String| outcome == "worker_lost" || outcome == "requeued";
        assert!(lost.iter().all(explained), "{found}");
        if task["kind"] == "exec" {
            let runs = runs.get(text(task, "/key").as_str()).copied().unwrap_or(0);
            assert!(runs >= 1 && runs <= attempt, "{runs} runs: {found}");
        }
        starts += attempt;
    }
    eprintln!("{} tasks took {starts} starts", tasks.len());
    let listed = daemon.json_lines(&["list", "--limit", "1000"]);
    assert_eq!(listed.len(), tasks.len().min(1000), "no task was made twice");
    let stats = daemon.json(&["stats"]);
    assert_eq!(number(&stats, "/succeeded"), tasks.len() as u64, "each result once: {stats}");
    assert_eq!(number(&stats, "/failed") + number(&stats, "/cancelled"), 0, "{stats}");
}
