//! Which task runs next: pure.
//!
//! Two questions, two rules.
//!
//! 1. Which queue? The one whose best ready priority is highest; among equals they take turns by
//!    weight. A queue that has ready tasks and is not served rises by one level every
//!    [`AGEING_MS`], so after at most `(10 - priority) × 30 s` it is ahead of everything.
//! 2. Which of its tasks? Each task counts as if it had become ready `priority × 30 s` earlier
//!    than it did; the earliest goes first. So a task is overtaken only by tasks that are `d`
//!    levels above it and became ready less than `d × 30 s` after it: 270 s at the most.
//!
//! A task that calls a model or a tool waits at the *gate* of its chain of servers, and counts only
//! while that is open for it: a provider that takes nothing now holds up nobody else.
//!
//! Memory holds a window ([`group`]) of each queue, priority and gate, never all of it: the tasks up to its
//! `horizon`. Past that they are on disk, and a [`Need`] asks for the next of them.

mod group;

use std::collections::BTreeMap;

use group::Group;
pub(crate) use group::Slot;

use super::store::{Ord, Ready};
use crate::handler::Needs;

/// How long a task waits until it counts as one priority higher.
pub(crate) const AGEING_MS: i64 = 30_000;
/// Ready tasks that memory holds of one queue, priority and gate.
pub(crate) const WINDOW_TASKS_MAX: usize = 8192;
/// Below this many, more are asked for.
const WINDOW_TASKS_LOW: usize = WINDOW_TASKS_MAX / 4;
/// A turn of a queue with weight 1; divisible by every weight worth having.
const TURN: u64 = 1 << 20;

/// All queues.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    queues: BTreeMap<String, Queue>,
    settings: BTreeMap<String, Settings>,
    all_paused: bool,
    /// Windows with more on disk; usually none.
    behind: usize,
    /// The turn that was served last: a queue that was empty starts from here.
    turn: u64,
    /// The names of gates, each at the place before its [`GateId`]. Only gates of the
    /// configuration come here, so there are few.
    gates: Vec<String>,
}

/// A gate's number; 0 is none.
type GateId = u16;

/// Whether the gate of this name is open for a task at this [`place`].
type Opens<'a> = dyn FnMut(&str, &Slot, i64) -> bool + 'a;

/// What the configuration says of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) weight: u32,
    pub(crate) max_running: Option<u32>,
}

/// What waits for nothing but a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) tasks: u64,
    /// When the oldest of them became ready, in milliseconds since 1970.
    pub(crate) oldest_ms: Option<i64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1, max_running: None }
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// By priority and gate; none is there that has nothing to do.
    groups: BTreeMap<(u8, GateId), Group>,
    settings: Settings,
    running: u32,
    paused: bool,
    /// Counts up with each task served, by less for a greater weight.
    turn: u64,
    served_at_ms: i64,
}

/// A window that runs low: ask the store for the tasks after `after`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Need {
    pub(crate) queue: String,
    pub(crate) priority: u8,
    pub(crate) gate: String,
    pub(crate) after: Ord,
    pub(crate) limit: u32,
}

impl Queues {
    /// Empty queues under these settings.
    pub(crate) fn new(settings: BTreeMap<String, Settings>) -> Self {
        Self { settings, ..Self::default() }
    }

    fn queue(&mut self, name: &str) -> &mut Queue {
        // Looked up twice rather than copied each time: almost always it is there.
        if !self.queues.contains_key(name) {
            let settings = self.settings.get(name).copied().unwrap_or_default();
            let queue = Queue { settings, turn: self.turn, ..Queue::default() };
            self.queues.insert(name.to_owned(), queue);
        }
        self.queues.entry(name.to_owned()).or_default()
    }

    fn gate(&mut self, name: &str) -> GateId {
        if name.is_empty() {
            return 0;
        }
        let known = self.gates.iter().position(|gate| gate == name);
        let place = known.unwrap_or_else(|| {
            self.gates.push(name.to_owned());
            self.gates.len() - 1
        });
        GateId::try_from(place + 1).unwrap_or(GateId::MAX)
    }

    fn group(&mut self, queue: &str, priority: u8, gate: &str) -> &mut Group {
        let gate = self.gate(gate);
        self.queue(queue).groups.entry((priority, gate)).or_default()
    }

    /// Says that the store has ready tasks of this queue, priority and gate which memory has not
    /// seen.
    pub(crate) fn known_on_disk(&mut self, queue: &str, priority: u8, gate: &str, count: u64) {
        let group = self.group(queue, priority, gate);
        group.beyond = count;
        if group.horizon.replace(Ord::MIN).is_none() {
            self.behind += 1;
        }
    }

    /// Takes in a task that became ready.
    pub(crate) fn push(&mut self, ready: &Ready) {
        let turn = self.turn;
        let queue = self.queue(&ready.queue);
        if queue.is_empty() {
            // No credit is saved up while there is nothing to do.
            queue.turn = queue.turn.max(turn);
            queue.served_at_ms = 0;
        }
        let group = self.group(&ready.queue, ready.priority, &ready.needs.gate);
        if group.horizon.is_some_and(|horizon| ready.ord > horizon) {
            group.beyond += 1;
            return;
        }
        group.window.insert(ready.ord, Slot::of(ready));
        if group.window.len() > WINDOW_TASKS_MAX {
            group.window.pop_last();
            group.beyond += 1;
            let before = group.horizon;
            group.horizon = group.window.last_key_value().map(|(ord, _)| *ord);
            self.behind += usize::from(before.is_none());
        }
    }

    /// Takes in what the store had after a [`Need`]'s place.
    pub(crate) fn refilled(&mut self, need: &Need, found: &[Ready]) {
        let group = self.group(&need.queue, need.priority, &need.gate);
        group.asked = false;
        for ready in found {
            group.window.insert(ready.ord, Slot::of(ready));
        }
        group.horizon = match found.last() {
            Some(last) if found.len() == need.limit as usize => Some(last.ord),
            _ => None,
        };
        group.beyond = group.beyond.saturating_sub(found.len() as u64);
        if group.horizon.is_none() {
            group.beyond = 0;
            self.behind -= 1;
            self.queue(&need.queue).tidy();
        }
    }

    /// The windows that run low; each is told once until it is [`refilled`](Self::refilled).
    pub(crate) fn needs(&mut self) -> Vec<Need> {
        let mut needs = Vec::new();
        if self.behind == 0 {
            return needs;
        }
        for (name, queue) in &mut self.queues {
            for ((priority, gate), group) in &mut queue.groups {
                let Some(after) = group.horizon else { continue };
                if group.asked || group.window.len() >= WINDOW_TASKS_LOW {
                    continue;
                }
                group.asked = true;
                let limit = (WINDOW_TASKS_MAX / 2) as u32;
                let gate = name_of(&self.gates, *gate).to_owned();
                let (queue, priority) = (name.clone(), *priority);
                needs.push(Need { queue, priority, gate, after, limit });
            }
        }
        needs
    }

    /// Takes the task that runs next, and counts it as running; `None` if none may.
    pub(crate) fn pop(&mut self, now_ms: i64, opens: &mut Opens<'_>) -> Option<Ready> {
        if self.all_paused {
            return None;
        }
        let gates = &self.gates;
        let mut is_open = |gate: GateId, slot: &Slot, place: i64| {
            gate == 0 || opens(name_of(gates, gate), slot, place)
        };
        let mut best = None;
        for (name, queue) in &mut self.queues {
            let Some(level) = queue.level(now_ms, &mut is_open) else { continue };
            let rank = (level, std::cmp::Reverse(queue.turn));
            if best.as_ref().is_none_or(|(best_rank, _, _)| rank >= *best_rank) {
                best = Some((rank, name, queue));
            }
        }
        let (_, name, queue) = best?;
        let (priority, gate, ord, slot) = queue.pop_first(&mut is_open)?;
        queue.running += 1;
        queue.served_at_ms = now_ms;
        queue.turn += TURN / u64::from(queue.settings.weight.max(1));
        self.turn = self.turn.max(queue.turn.saturating_sub(TURN));
        let Slot { seq, solo, cache_refresh, cache_key, tokens, session } = slot;
        let gate = name_of(gates, gate).to_owned();
        let needs = Needs { gate, tokens, cache_key, cache_refresh, agent: None };
        Some(Ready { queue: name.clone(), priority, ord, seq, solo, needs, session })
    }

    /// Forgets a task that was ready and is cancelled.
    pub(crate) fn remove(&mut self, ready: &Ready) {
        let group = self.group(&ready.queue, ready.priority, &ready.needs.gate);
        if group.window.remove(&ready.ord).is_none() && group.horizon.is_some() {
            group.beyond = group.beyond.saturating_sub(1);
        }
        let queue = self.queue(&ready.queue);
        queue.tidy();
        self.forget_if_empty(&ready.queue);
    }

    /// Puts back a task that was taken and not started.
    pub(crate) fn put_back(&mut self, ready: &Ready) {
        self.ended(&ready.queue);
        self.push(ready);
    }

    /// Counts a task of this queue that runs already (in a worker that outlived a broker).
    pub(crate) fn runs(&mut self, queue: &str) {
        self.queue(queue).running += 1;
    }

    /// Counts one running task less.
    pub(crate) fn ended(&mut self, name: &str) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.running = queue.running.saturating_sub(1);
            self.forget_if_empty(name);
        }
    }

    /// Names come from strangers: what is empty is forgotten.
    fn forget_if_empty(&mut self, name: &str) {
        let queue = self.queues.get(name);
        if queue.is_some_and(|queue| queue.running == 0 && queue.is_empty() && !queue.paused) {
            self.queues.remove(name);
        }
    }

    /// Stops or starts dispatch from one queue, or from all.
    pub(crate) fn pause(&mut self, queue: Option<&str>, paused: bool) {
        match queue {
            Some(name) => self.queue(name).paused = paused,
            None => {
                self.all_paused = paused;
                // To resume all is to resume each.
                self.queues.values_mut().filter(|_| !paused).for_each(|queue| queue.paused = false);
            }
        }
    }

    /// Whether one more task of this queue may run.
    pub(crate) fn may_run(&self, queue: &str) -> bool {
        !self.all_paused && self.queues.get(queue).is_none_or(Queue::may_run)
    }

    /// Whether dispatch from this queue is stopped.
    pub(crate) fn is_paused(&self, queue: &str) -> bool {
        self.all_paused || self.queues.get(queue).is_some_and(|queue| queue.paused)
    }

    /// Whether all dispatch is stopped.
    pub(crate) fn all_paused(&self) -> bool {
        self.all_paused
    }

    /// The queues that are paused by name.
    pub(crate) fn paused(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().filter(|(_, queue)| queue.paused).map(|(name, _)| name.as_str())
    }

    /// Under new settings, also for what is queued.
    pub(crate) fn reconfigure(&mut self, settings: BTreeMap<String, Settings>) {
        for (name, queue) in &mut self.queues {
            queue.settings = settings.get(name).copied().unwrap_or_default();
        }
        self.settings = settings;
    }

    /// The tasks that could run now if there were slots, as far as memory holds them. `room` says
    /// how many more calls a gate lets through now.
    pub(crate) fn waiting(&self, room: impl Fn(&str) -> u64) -> Waiting {
        let mut waiting = Waiting::default();
        if self.all_paused {
            return waiting;
        }
        let mut rooms: Vec<u64> = self.gates.iter().map(|gate| room(gate)).collect();
        for queue in self.queues.values().filter(|queue| queue.may_run()) {
            let mut tasks = 0;
            let mut left = queue.room();
            for ((_, gate), group) in &queue.groups {
                let gate = usize::from(*gate).checked_sub(1).and_then(|gate| rooms.get_mut(gate));
                let open = gate.as_deref().copied().unwrap_or(u64::MAX);
                let count = (group.window.len() as u64).min(open).min(left);
                if count == 0 {
                    continue;
                }
                if let Some(room) = gate {
                    *room -= count;
                }
                tasks += count;
                left -= count;
                let since_ms = group.first().map(|us| us / 1000);
                waiting.oldest_ms = [waiting.oldest_ms, since_ms].into_iter().flatten().min();
            }
            waiting.tasks += tasks;
        }
        waiting
    }

    /// How many ready tasks at these gates stand before this place.
    pub(crate) fn ahead(&self, before: i64, mut gates: impl FnMut(&str) -> bool) -> u64 {
        let wanted: Vec<bool> = self.gates.iter().map(|gate| gates(gate)).collect();
        let (no_gate, mut ahead) = (gates(""), 0);
        for queue in self.queues.values().filter(|queue| !queue.paused) {
            for ((priority, gate), group) in &queue.groups {
                if !usize::from(*gate).checked_sub(1).map_or(no_gate, |gate| wanted[gate]) {
                    continue;
                }
                // The ord of this priority at that place.
                let ord = before - place(0, *priority);
                ahead += group.window.range(..ord).count() as u64;
                if group.horizon.is_some_and(|horizon| horizon < ord) {
                    ahead += group.beyond;
                }
            }
        }
        ahead
    }

    /// The first task of each group that waits at a gate: the gate, its place, and its tokens.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (&str, i64, u64)> {
        let queues = self.queues.values().filter(|queue| !self.all_paused && queue.may_run());
        let gated = queues.flat_map(|queue| &queue.groups).filter(|((_, gate), _)| *gate != 0);
        gated.filter_map(|((priority, gate), group)| {
            let (ord, slot) = group.window.first_key_value()?;
            Some((name_of(&self.gates, *gate), place(*ord, *priority), slot.tokens))
        })
    }

    /// The best place of a ready task at one of these gates: see [`place`].
    pub(crate) fn best_place(&self, mut gates: impl FnMut(&str) -> bool) -> Option<i64> {
        let wanted: Vec<bool> = self.gates.iter().map(|gate| gates(gate)).collect();
        let queues = self.queues.values().filter(|queue| !self.all_paused && queue.may_run());
        let groups = queues.flat_map(|queue| &queue.groups);
        let at_gate = groups.filter(|((_, gate), _)| {
            usize::from(*gate).checked_sub(1).is_some_and(|gate| wanted[gate])
        });
        at_gate.filter_map(|((priority, _), group)| Some(place(group.first()?, *priority))).min()
    }

    /// What the configuration says of a queue.
    pub(crate) fn settings(&self, queue: &str) -> Settings {
        self.settings.get(queue).copied().unwrap_or_default()
    }
}

/// Where a task stands among all: it counts as if it had become ready earlier by its priority's
/// head start. In microseconds; less is better.
pub(crate) fn place(ord: Ord, priority: u8) -> i64 {
    ord - i64::from(priority) * AGEING_MS * 1000
}

fn name_of(gates: &[String], gate: GateId) -> &str {
    usize::from(gate).checked_sub(1).and_then(|place| gates.get(place)).map_or("", String::as_str)
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    fn may_run(&self) -> bool {
        !self.paused && self.room() > 0
    }

    /// How many more of its tasks may run.
    fn room(&self) -> u64 {
        let max_running = self.settings.max_running;
        max_running.map_or(u64::MAX, |max| u64::from(max.saturating_sub(self.running)))
    }

    /// Its best priority, raised by the time for which it was not served; `None` if nothing of it
    /// may run.
    fn level(
        &self,
        now_ms: i64,
        is_open: &mut impl FnMut(GateId, &Slot, i64) -> bool,
    ) -> Option<i64> {
        if !self.may_run() {
            return None;
        }
        let (mut best, mut oldest_us) = (None, i64::MAX);
        for ((priority, gate), group) in &self.groups {
            if let Some((ord, slot)) = group.window.first_key_value()
                && is_open(*gate, slot, place(*ord, *priority))
            {
                best = best.max(Some(i64::from(*priority)));
                oldest_us = oldest_us.min(*ord);
            }
        }
        let waits_since_ms = self.served_at_ms.max(oldest_us / 1000);
        Some(best? + (now_ms - waits_since_ms).max(0) / AGEING_MS)
    }

    fn pop_first(
        &mut self,
        is_open: &mut impl FnMut(GateId, &Slot, i64) -> bool,
    ) -> Option<(u8, GateId, Ord, Slot)> {
        let heads = self.groups.iter().filter_map(|(key, group)| {
            let (ord, slot) = group.window.first_key_value()?;
            let place = place(*ord, key.0);
            is_open(key.1, slot, place).then_some((place, *key))
        });
        let (_, key) = heads.min()?;
        let group = self.groups.get_mut(&key)?;
        let (ord, slot) = group.window.pop_first()?;
        if group.window.is_empty() && group.horizon.is_none() {
            self.groups.remove(&key);
        }
        Some((key.0, key.1, ord, slot))
    }

    /// Forgets groups that have nothing to do.
    fn tidy(&mut self) {
        self.groups.retain(|_, group| !group.window.is_empty() || group.horizon.is_some());
    }
}

#[cfg(test)]
mod tests;
