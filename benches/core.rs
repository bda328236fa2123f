//! What the broker does for every task, without processes and disk: which task runs next, frames,
//! and the messages of the worker link. `forq bench` measures the whole way.
//!
//! `cargo bench --bench core` takes about two minutes, with `-- --quick` some ten seconds;
//! criterion compares each run with the one before.

#![allow(clippy::unwrap_used, reason = "a bench may fail loudly, as a test may")]

use std::convert::Infallible;
use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forq::bench_support::{Decisions, WINDOW_TASKS_MAX};
use forq::protocol::codec;
use forq::protocol::frame::{put_frame, take_frame};
use forq::protocol::link::{Done, Outcome, Run, Start, ToBroker, ToWorker};
use forq::task::{TaskId, Usage};

/// Tasks that wait in each queue while queues take turns.
const WAITING_TASKS: usize = 8;

fn waiting(queues: usize, tasks_each: usize) -> Decisions {
    let mut decisions = Decisions::default();
    for queue in 0..queues {
        for _ in 0..tasks_each {
            decisions.push(&format!("tenant-{queue}"));
        }
    }
    decisions
}

/// One task out, one in: with ever more queues that have work, and with one whose window is full.
fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue/turn_over");
    group.throughput(Throughput::Elements(1));
    for queues in [1, 100, 1000] {
        let mut decisions = waiting(queues, WAITING_TASKS);
        group.bench_function(BenchmarkId::new("queues", queues), |b| {
            b.iter(|| assert!(decisions.turn_over()));
        });
    }
    group.bench_function(BenchmarkId::new("window", WINDOW_TASKS_MAX), |b| {
        let mut decisions = waiting(1, WINDOW_TASKS_MAX);
        b.iter(|| assert!(decisions.turn_over()));
    });
    group.finish();
}

/// A queue that is longer than its window and ran through it: the next half window comes in.
fn refill(c: &mut Criterion) {
    let half = WINDOW_TASKS_MAX / 2;
    let mut group = c.benchmark_group("queue/refill");
    group.throughput(Throughput::Elements(half as u64));
    group.bench_function(BenchmarkId::new("tasks", half), |b| {
        let low = || {
            let mut decisions = waiting(1, WINDOW_TASKS_MAX + 1);
            assert_eq!(decisions.drain(WINDOW_TASKS_MAX), WINDOW_TASKS_MAX);
            decisions
        };
        b.iter_batched_ref(
            low,
            |decisions| assert_eq!(decisions.refill(), half),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn frames(c: &mut Criterion) {
    for (name, bytes) in [("100B", 100), ("1MiB", 1 << 20)] {
        let message = vec![b'x'; bytes];
        let put = |out: &mut Vec<u8>| {
            put_frame::<Infallible>(out, |out| {
                out.extend_from_slice(&message);
                Ok(())
            })
        };
        let mut group = c.benchmark_group(format!("frame/{name}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut out = Vec::new();
        group.bench_function("put", |b| {
            b.iter(|| {
                out.clear();
                put(&mut out).unwrap();
                black_box(&out);
            });
        });
        out.clear();
        put(&mut out).unwrap();
        group.bench_function("take", |b| {
            b.iter_batched(
                || BytesMut::from(&out[..]),
                |mut buffer| take_frame(&mut buffer, bytes).unwrap().unwrap(),
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

fn link(c: &mut Criterion) {
    let run = Run { seq: 123_456, attempt: 1 };
    let text = "a task's input or output, as long as a short prompt is. ".repeat(4);
    let start = ToWorker::Run(Start {
        run,
        id: TaskId::new(),
        kind: "chat".to_owned(),
        input: format!("{{\"prompt\":\"{text}\"}}"),
        timeout_ms: 600_000,
    });
    let usage = Usage { prompt_tokens: 50, completion_tokens: 60, total_tokens: 110 };
    let output = format!("{{\"text\":\"{text}\"}}");
    let outcome = Outcome::Succeeded { output, usage: Some(usage) };
    let done = ToBroker::Done(Done { run, run_ms: 1234, outcome });
    message(c, "link/run", &start);
    message(c, "link/done", &done);
}

fn message<T>(c: &mut Criterion, name: &str, message: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let mut group = c.benchmark_group(name);
    let mut out = Vec::new();
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            codec::put(&mut out, message).unwrap();
            black_box(&out);
        });
    });
    let bytes = codec::encode(message).unwrap();
    group.bench_function("decode", |b| b.iter(|| codec::decode::<T>(black_box(&bytes)).unwrap()));
    group.finish();
}

criterion_group!(benches, decide, refill, frames, link);
criterion_main!(benches);
