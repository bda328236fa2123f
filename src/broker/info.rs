//! The documents of `forq info` and `forq stats`.

use serde_json::{Value, json};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::task::spawn_local;

use crate::protocol::control::Reply;

use super::clients::ReplyTo;
use super::pressure::Pressure;
use super::store::{Counts, Depth, view};
use super::{Core, now_ms, steady_ms};

pub(super) fn tell_info(core: &mut Core, to: ReplyTo, depth: Depth) {
    let document = core.info(&depth);
    send(&to, &document);
}

pub(super) fn tell_stats(core: &mut Core, to: ReplyTo, depth: Depth) {
    let (counts, slots) = (sum(&depth), core.slots());
    let reader = core.reader.clone();
    spawn_local(async move {
        match reader.ask(move |db| view::numbers(db, now_ms())).await {
            Ok(numbers) => send(&to, &stats(counts, slots, numbers)),
            Err(refusal) => to.refuse(refusal),
        }
    });
}

pub(super) fn send(to: &ReplyTo, document: &Value) {
    if let Ok(document) = serde_json::value::to_raw_value(document) {
        to.send(&Reply::Json { document });
    }
}

fn sum(depth: &Depth) -> Counts {
    depth.queues.values().fold(Counts::default(), |sum, counts| Counts {
        queued: sum.queued + counts.queued,
        running: sum.running + counts.running,
        scheduled: sum.scheduled + counts.scheduled,
        blocked: sum.blocked + counts.blocked,
    })
}

impl Core {
    fn info(&self, depth: &Depth) -> Value {
        let counts = sum(depth);
        let master = nix::unistd::getppid().as_raw();
        let broker = std::process::id() as i32;
        let pids: Vec<i32> = self.pool.workers.iter().filter_map(|worker| worker.pid).collect();
        let memory = Memory::of(&[&[master, broker][..], &pids].concat());
        let workers: Vec<Value> = self
            .pool
            .workers
            .iter()
            .map(|slot| {
                let worker = self.workers.get(&slot.serial).filter(|worker| worker.link.is_some());
                let draining = slot.drain != 0 || !self.phase.dispatches();
                let state = match worker {
                    Some(_) if draining => "draining",
                    Some(_) => "ready",
                    None if slot.pid.is_none() => "waiting",
                    None => "booting",
                };
                json!({
                    "slot": slot.slot,
                    "pid": slot.pid,
                    "generation": slot.generation,
                    "state": state,
                    "in_flight": worker.map_or(0, |worker| worker.in_flight),
                    "capacity": worker.map_or(0, |worker| worker.capacity),
                    "rss_bytes": slot.pid.and_then(|pid| memory.rss_bytes(pid)),
                    "tasks_done": worker.map_or(0, |worker| worker.tasks_done),
                    "restarts": slot.restarts,
                    "backoff_ms": slot.backoff_ms,
                    "last_exit": slot.last_exit,
                })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": self.pool.phase,
            "reason": self.pool.reason,
            "generation": self.pool.generation,
            "rolled": self.pool.rolled,
            "upgrade_error": self.pool.upgrade_error,
            // The instance's number is when it was started, in nanoseconds.
            "uptime_s": (now_ms() - self.instance / 1_000_000).max(0) / 1000,
            "disk_full": self.disk_full,
            "master": { "pid": master, "rss_bytes": memory.rss_bytes(master) },
            "broker": {
                "pid": broker,
                "rss_bytes": memory.rss_bytes(broker),
                "restarts": self.pool.broker_restarts,
            },
            "workers": workers,
            "scale": {
                "min": self.pool.scale.min,
                "max": self.pool.scale.max,
                "want": self.pool.scale.want,
                "reason": self.pool.scale.reason,
            },
            "queue": {
                "queued": counts.queued,
                "running": counts.running,
                "scheduled": counts.scheduled,
                "blocked": counts.blocked,
                "paused": self.queues.all_paused(),
            },
            "providers": self.providers(),
            "memory": {
                "used": self.memory.share,
                "high": self.config.queue.memory_high,
                "refusing": matches!(self.memory.pressure, Pressure::Refusing { .. }),
            },
            "tools": self.tools(),
            "cache": self.cache(),
            "schedules": self.tell_schedules(),
        })
    }

    /// Each provider with its limits and how they are used, without its key.
    fn providers(&self) -> Vec<Value> {
        let now_ms = steady_ms();
        self.config
            .providers
            .iter()
            .map(|(name, provider)| {
                let mut shown = self.server(name, now_ms);
                shown["name"] = json!(name);
                shown["base_url"] = json!(provider.base_url);
                shown
            })
            .collect()
    }

    fn tools(&self) -> Vec<Value> {
        let now_ms = steady_ms();
        let tools = self.config.tools.iter().map(|(name, tool)| {
            let services = tool.chain.iter().map(|service| {
                let mut shown = self.server(&format!("{name}/{service}"), now_ms);
                shown["name"] = json!(service);
                shown
            });
            json!({ "name": name, "services": services.collect::<Vec<_>>() })
        });
        tools.collect()
    }

    fn server(&self, name: &str, now_ms: i64) -> Value {
        let Some(look) = self.permits.look(name, now_ms) else { return json!({}) };
        json!({
            "in_flight": look.in_flight,
            "max_concurrent": look.limits.max_concurrent,
            "rpm": look.limits.rpm,
            "rpm_used": look.rpm_used,
            "tpm": look.limits.tpm,
            "tpm_used": look.tpm_used,
            "breaker": look.breaker.as_str(),
            "failures": look.failures,
            "out_until": look.out_until_ms.map(view::rfc3339),
        })
    }

    fn cache(&self) -> Value {
        let (answers, bytes) = self.answers.size();
        let counts = self.answers.counts;
        json!({
            "answers": answers,
            "bytes": bytes,
            "bytes_max": self.config.cache.bytes_max,
            "hits": counts.hits,
            "misses": counts.misses,
            "shared": counts.shared,
        })
    }
}

fn stats(counts: Counts, slots: u64, mut numbers: view::Numbers) -> Value {
    let total = |name: &str| {
        numbers.totals.iter().find(|(total, _)| total == name).map_or(0, |(_, count)| *count)
    };
    let totals =
        ["succeeded", "failed", "cancelled", "timed_out", "retried", "worker_lost"].map(total);
    let [succeeded, failed, cancelled, timed_out, retried, worker_lost] = totals;
    let utilisation = if slots == 0 { 0.0 } else { counts.running as f64 / slots as f64 };
    json!({
        "queued": counts.queued,
        "running": counts.running,
        "scheduled": counts.scheduled,
        "blocked": counts.blocked,
        "succeeded": succeeded,
        "failed": failed,
        "cancelled": cancelled,
        "timed_out": timed_out,
        "retried": retried,
        "worker_lost": worker_lost,
        "wait_ms": times(&mut numbers.wait_ms),
        "run_ms": times(&mut numbers.run_ms),
        "tasks_per_min": numbers.ended_in_last_minute,
        "utilisation": utilisation,
    })
}

fn times(ms: &mut [u64]) -> Value {
    ms.sort_unstable();
    let at = |share: f64| {
        let place = (ms.len() as f64 * share).ceil() as usize;
        ms.get(place.saturating_sub(1)).copied().unwrap_or(0)
    };
    let avg = if ms.is_empty() { 0.0 } else { ms.iter().sum::<u64>() as f64 / ms.len() as f64 };
    json!({ "avg": avg, "p50": at(0.5), "p95": at(0.95), "p99": at(0.99) })
}

/// Resident memory of some processes.
struct Memory(Option<System>);

impl Memory {
    fn of(pids: &[i32]) -> Self {
        let pids: Vec<Pid> = pids.iter().map(|pid| Pid::from_u32(pid.unsigned_abs())).collect();
        let mut system = System::new().ok();
        let what = ProcessRefreshKind::nothing().with_memory();
        if let Some(system) = &mut system {
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), false, what);
        }
        Self(system)
    }

    fn rss_bytes(&self, pid: i32) -> Option<u64> {
        self.0.as_ref()?.process(Pid::from_u32(pid.unsigned_abs())).map(sysinfo::Process::memory)
    }
}
