//! What happened between two looks at the daemon, in words. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::model::{Link, Snapshot};
use crate::cli::info::{Info, Process, Worker, loose, text};

/// Events that are kept: more than the tallest terminal shows.
const EVENTS_MAX: usize = 200;

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// When it was noticed.
    pub(super) at: Instant,
    pub(super) text: String,
}

/// The last events.
#[derive(Clone, Debug, Default)]
pub(super) struct Events(VecDeque<Event>);

impl Events {
    pub(super) fn extend(&mut self, events: impl IntoIterator<Item = Event>) {
        self.0.extend(events);
        let surplus = self.0.len().saturating_sub(EVENTS_MAX);
        self.0.drain(..surplus);
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Event> {
        self.0.iter().rev()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// What became of the connection.
pub(super) fn of_link(before: &Link, after: &Link) -> Option<String> {
    match (before, after) {
        (Link::New, Link::Live | Link::Lost(_)) => None,
        (Link::Live, Link::Live) | (Link::Silent, Link::Silent) | (_, Link::New) => None,
        (Link::Lost(before), Link::Lost(after)) if before == after => None,
        (_, Link::Lost(why)) => Some(format!("connection lost: {why}")),
        (_, Link::Silent) => Some("the broker does not answer".to_owned()),
        (Link::Silent, Link::Live) => Some("the broker answers again".to_owned()),
        (Link::Lost(_), Link::Live) => Some("connected".to_owned()),
    }
}

/// What changed in the daemon, most important first.
pub(super) fn between(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let (old, new) = (&before.info, &after.info);
    let mut lines = Vec::new();
    lines.extend(of_version(old, new));
    let masters = (before.master_pid(), after.master_pid());
    if masters.0 != masters.1 && masters.0.is_some() && masters.1.is_some() {
        // Everything is new then, and nothing of it died on its own.
        lines.push(format!("daemon restarted: master {}", arrow(masters.0, masters.1)));
        return lines;
    }
    lines.extend(of_phase(old, new));
    if let (Some(old), Some(new)) = (&old.broker, &new.broker) {
        lines.extend(of_broker(old, new));
    }
    lines.extend(of_workers(&old.workers, &new.workers));
    lines.extend(of_scale(old, new));
    lines.extend(of_queue(old, new));
    lines.extend(of_providers(old, new));
    lines
}

fn of_version(old: &Info, new: &Info) -> Option<String> {
    let versions = (old.version.as_ref()?, new.version.as_ref()?);
    (versions.0 != versions.1).then(|| format!("version {} → {}", versions.0, versions.1))
}

fn of_phase(old: &Info, new: &Info) -> Option<String> {
    let phases = (old.phase.as_ref()?, new.phase.as_ref()?);
    let reason = new.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    if phases.0 != phases.1 {
        return Some(format!("phase {} → {}{reason}", phases.0, phases.1));
    }
    (old.reason != new.reason && new.reason.is_some()).then(|| format!("{}{reason}", phases.1))
}

fn of_broker(old: &Process, new: &Process) -> Option<String> {
    let died = new.restarts > old.restarts && old.restarts.is_some();
    let moved = old.pid != new.pid && new.pid.is_some() && old.pid.is_some();
    match (died, moved) {
        (true, true) => Some(format!("broker died, pid {}", arrow(old.pid, new.pid))),
        (true, false) => Some(format!("broker died, pid {}", text(old.pid))),
        // An upgrade's, or one whose death is not counted.
        (false, true) => Some(format!("broker replaced, pid {}", arrow(old.pid, new.pid))),
        (false, false) => None,
    }
}

/// All processes that were in one slot: while one drains, its successor is there already.
#[derive(Default)]
struct Slot<'a> {
    pids: BTreeSet<i32>,
    draining: BTreeSet<i32>,
    restarts: u64,
    /// Whose last exit is the latest.
    last: Option<&'a Worker>,
}

fn slots(workers: &[Worker]) -> BTreeMap<u32, Slot<'_>> {
    let mut slots: BTreeMap<u32, Slot<'_>> = BTreeMap::new();
    for worker in workers {
        let slot = slots.entry(worker.slot.unwrap_or(0)).or_default();
        slot.pids.extend(worker.pid);
        if worker.state.as_deref() == Some("draining") {
            slot.draining.extend(worker.pid);
        }
        let restarts = worker.restarts.unwrap_or(0);
        if slot.last.is_none() || restarts > slot.restarts {
            slot.last = Some(worker);
        }
        slot.restarts = slot.restarts.max(restarts);
    }
    slots
}

fn of_workers(old: &[Worker], new: &[Worker]) -> Vec<String> {
    let (old, new) = (slots(old), slots(new));
    let numbers: BTreeSet<u32> = old.keys().chain(new.keys()).copied().collect();
    numbers.into_iter().flat_map(|slot| of_slot(slot, old.get(&slot), new.get(&slot))).collect()
}

fn of_slot(number: u32, old: Option<&Slot<'_>>, new: Option<&Slot<'_>>) -> Vec<String> {
    let nobody = Slot::default();
    // A slot that is new has a past, perhaps, but none that was seen here.
    let restarts_before = old.map_or(u64::MAX, |old| old.restarts);
    let (old, new) = (old.unwrap_or(&nobody), new.unwrap_or(&nobody));
    let deaths = new.restarts.saturating_sub(restarts_before);
    let gone: Vec<i32> = old.pids.difference(&new.pids).copied().collect();
    let came: Vec<i32> = new.pids.difference(&old.pids).copied().collect();
    let pids = match (&gone[..], &came[..]) {
        ([], []) => String::new(),
        (gone, []) => format!("pid {}", list(gone)),
        ([], came) => format!("pid {}", list(came)),
        (gone, came) => format!("pid {} → {}", list(gone), list(came)),
    };
    let mut lines = Vec::new();
    if deaths > 0 {
        let exit = new.last.and_then(|worker| worker.last_exit.as_ref()).map(loose);
        let exit = exit.map(|exit| format!(": {exit}")).unwrap_or_default();
        let times = if deaths > 1 { format!(" {deaths} times") } else { String::new() };
        let pids = match (gone.is_empty(), pids.is_empty()) {
            (_, true) => String::new(),
            (true, false) => format!(", now {pids}"),
            (false, false) => format!(", {pids}"),
        };
        lines.push(format!("worker {number} died{times}{exit}{pids}"));
    } else if !pids.is_empty() {
        let verb = match (gone.is_empty(), came.is_empty()) {
            (true, _) => "started",
            (false, true) => "ended",
            (false, false) => "replaced",
        };
        lines.push(format!("worker {number} {verb}, {pids}"));
    }
    let draining: Vec<i32> = new.draining.difference(&old.draining).copied().collect();
    if !draining.is_empty() {
        lines.push(format!("worker {number} drains, pid {}", list(&draining)));
    }
    lines
}

fn of_scale(old: &Info, new: &Info) -> Vec<String> {
    let (Some(old), Some(new)) = (&old.scale, &new.scale) else { return Vec::new() };
    let mut lines = Vec::new();
    if (old.min, old.max) != (new.min, new.max) {
        let range = |min, max| format!("{} to {}", text(min), text(max));
        lines.push(format!(
            "scale limits {} → {}",
            range(old.min, old.max),
            range(new.min, new.max)
        ));
    }
    if old.want != new.want {
        let reason = new.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        lines.push(format!("scale {}{reason}", arrow(old.want, new.want)));
    }
    lines
}

fn of_queue(old: &Info, new: &Info) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(old), Some(new)) = (&old.queue, &new.queue)
        && old.pause() != new.pause()
    {
        lines.push(format!("queue {}", new.pause().unwrap_or_else(|| "resumed".to_owned())));
    }
    match (old.disk_full.unwrap_or(false), new.disk_full.unwrap_or(false)) {
        (false, true) => lines.push("the disk is full".to_owned()),
        (true, false) => lines.push("the disk has room again".to_owned()),
        _ => {}
    }
    lines
}

fn of_providers(old: &Info, new: &Info) -> Vec<String> {
    let breaker = |name: &str| old.providers.iter().find(|old| old.name == name)?.breaker.as_ref();
    let changed = new.providers.iter().filter_map(|new| {
        let (old, now) = (breaker(&new.name)?, new.breaker.as_ref()?);
        let (old, now) = (loose(old), loose(now));
        (old != now).then(|| format!("provider {}: breaker {old} → {now}", new.name))
    });
    changed.collect()
}

fn arrow(old: Option<impl ToString>, new: Option<impl ToString>) -> String {
    format!("{} → {}", text(old), text(new))
}

fn list(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
