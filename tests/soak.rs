//! Thousands of calls that go wrong in every way, and nothing that they leave behind.
//!
//! `FORQ_SOAK_CALLS` and `FORQ_SOAK_SEED` change it; `scripts/soak-calls` runs a long one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests may fail loudly"
)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use support::model::{Model, provider};
use support::processes::{descriptors, status};
use support::random::Random;
use support::{Daemon, Value, eventually_eq, json, number};

const WORKERS: usize = 2;
const CONCURRENCY: usize = 32;
/// Tasks that are submitted at once.
const BATCH_TASKS: usize = 250;

/// What small calls meet.
const FAULTS: [&str; 12] = [
    "m",
    "fault-429",
    "fault-500",
    "fault-400",
    "fault-401",
    "fault-hang",
    "fault-hang-mid-stream",
    "fault-cut-mid-stream",
    "fault-split-utf8",
    "fault-garbage-json",
    "fault-wrong-content-type",
    "fault-redirect",
];
/// What large calls meet: megabytes, or a long time.
const LARGE_FAULTS: [&str; 3] = ["fault-big-chunk", "fault-endless", "fault-slow-drip"];

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn config(model: &Model) -> String {
    let limits = "first_token_timeout = '200ms'\nidle_timeout = '200ms'\ntimeout = '1s'\n\
                  breaker = { failures = 1_000_000 }";
    [
        format!("[workers]\nmin = {WORKERS}\nmax = {WORKERS}\nconcurrency = {CONCURRENCY}\n"),
        "[queue]\nmax_attempts = 1\n".to_owned(),
        provider("sim", &model.url, limits),
        provider("closing", &model.url, limits),
        provider("dead", "http://127.0.0.1:1/v1", limits),
        provider("good", &model.url, ""),
        provider(
            "large",
            &model.url,
            &format!("{limits}\nmax_concurrent = 3").replace("200ms", "10s"),
        ),
        "[models.closes]\nchain = ['closing/fault-429-retry-after', 'good/m']\n".to_owned(),
        "[models.restarts]\nchain = ['dead/m', 'sim/fault-cut-mid-stream', 'good/m']\n".to_owned(),
        "[models.buffers]\nchain = ['sim/fault-garbage-json', 'good/m']\n\
         streaming = 'buffer_first'\n"
            .to_owned(),
    ]
    .concat()
}

fn chat(random: &mut Random, model: &str) -> Value {
    let stream = random.chance(75);
    let input = json!({ "prompt": "Say a word. A short word.", "model": model, "stream": stream });
    json!({ "kind": "chat", "input": input })
}

fn small(random: &mut Random) -> Value {
    let chains = ["closes", "restarts", "buffers"].map(str::to_owned);
    let models: Vec<_> =
        FAULTS.map(|fault| format!("sim/{fault}")).into_iter().chain(chains).collect();
    let model = random.between(0, models.len() as u64) as usize;
    chat(random, &models[model])
}

fn large(random: &mut Random) -> Value {
    let model = random.between(0, LARGE_FAULTS.len() as u64) as usize;
    chat(random, &format!("large/{}", LARGE_FAULTS[model]))
}

/// What the processes hold: resident KiB of each, and descriptors of them all.
#[derive(Debug)]
struct Held {
    rss_kib: Vec<(String, u64)>,
    descriptors: usize,
}

fn held(daemon: &Daemon) -> Held {
    let pids = daemon.all_up();
    let named = std::iter::once(("broker".to_owned(), pids.broker));
    let workers = pids.workers.iter().enumerate();
    let named: Vec<_> =
        named.chain(workers.map(|(slot, pid)| (format!("worker {}", slot + 1), *pid))).collect();
    let rss_kib = |pid| {
        let rss = status(pid, "VmRSS");
        rss.split(' ').next().unwrap().parse().unwrap()
    };
    Held {
        rss_kib: named.iter().map(|(name, pid)| (name.clone(), rss_kib(*pid))).collect(),
        descriptors: named.iter().map(|(_, pid)| descriptors(*pid).len()).sum(),
    }
}

/// Calls, and what may be left of them.
struct Soak {
    calls: usize,
    /// The first calls, which make caches, pools and heaps as large as they get.
    warm_up_calls: usize,
    /// What a process may hold more after all calls than after those.
    grown_kib_max: u64,
    task: fn(&mut Random) -> Value,
}

impl Soak {
    fn run(&self) {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        let seed = from_env("FORQ_SOAK_SEED", nanos.into());
        eprintln!("FORQ_SOAK_SEED={seed}: {} calls", self.calls);
        let mut random = Random::new(seed);
        let model = Model::start(&["--first-token-ms", "0", "--tokens-per-second", "0"]);
        let daemon = Daemon::start(&config(&model));
        let pids = daemon.all_up();

        self.call(&daemon, &mut random, self.warm_up_calls);
        let before = held(&daemon);
        self.call(&daemon, &mut random, self.calls.saturating_sub(self.warm_up_calls));
        eventually_eq(0, || number(&model.stats(), "/open_requests"));
        let (after, stats) = (held(&daemon), model.stats());
        eprintln!("after {} calls: {before:?}", self.warm_up_calls);
        eprintln!("after {} calls: {after:?}", self.calls);
        let (requests, aborted) = (number(&stats, "/requests"), number(&stats, "/aborted"));
        let idle = number(&stats, "/open_connections") - 1;
        eprintln!("upstream: {requests} requests, {aborted} aborted, {idle} idle connections");

        assert_eq!(daemon.all_up(), pids, "a process was replaced");
        for ((name, before), (_, after)) in before.rss_kib.iter().zip(&after.rss_kib) {
            assert!(
                *after <= before + self.grown_kib_max,
                "{name}: {before} KiB, then {after} KiB"
            );
        }
        // A connection that can be used again is kept for a while, one for each call at once.
        let slots = WORKERS * CONCURRENCY;
        assert!(idle <= slots as u64, "{idle} connections");
        assert!(after.descriptors <= before.descriptors + slots, "{before:?}, {after:?}");
        daemon.ok(&["stop"]);
        eventually_eq(1, || number(&model.stats(), "/open_connections"));
    }

    fn call(&self, daemon: &Daemon, random: &mut Random, calls: usize) {
        for done in (0..calls).step_by(BATCH_TASKS) {
            let batch = BATCH_TASKS.min(calls - done);
            let tasks: Vec<_> = (0..batch).map(|_| (self.task)(random)).collect();
            daemon.wait_for_all(&daemon.submit_all(&tasks), "60s");
        }
    }
}

/// How many small calls; large ones are a hundredth of that.
fn calls() -> usize {
    from_env("FORQ_SOAK_CALLS", 500) as usize
}

#[test]
fn calls_that_go_wrong_leave_nothing_behind() {
    // Most of it is the database's cache, which is full after some thousand calls.
    let grown_kib_max = 8 << 10;
    Soak { calls: calls(), warm_up_calls: 200, grown_kib_max, task: small }.run();
}

#[test]
fn large_answers_leave_nothing_behind() {
    // Fragments of the heap; each of the answers has ten times a million bytes or more.
    let grown_kib_max = 48 << 10;
    let calls = (calls() / 100).max(18);
    Soak { calls, warm_up_calls: 10, grown_kib_max, task: large }.run();
}
