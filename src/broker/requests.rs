//! What clients ask, one method a verb.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use serde_json::value::RawValue;
use tokio::task::spawn_local;

use crate::protocol::calls::CALL_TOKENS_MAX;
use crate::protocol::control::{
    Change, ListFilter, QueueCounts, Refusal, RefusalKind, Reply, Request,
};
use crate::protocol::lifeline::{Ask, FromBroker};
use crate::task::{NewTask, PRIORITIES, TaskId};

use super::clients::ReplyTo;
use super::pending::Pending;
use super::store::writer::Op;
use super::store::{Clear, Defaults, Depth, Insert, Retry, view};
use super::waits::no_such_task;
use super::{Core, Input, info, now_ms};

/// Tasks that one step of `queue clear` cancels.
pub(crate) const CLEAR_TASKS: u32 = 500;
/// Tasks in one request that changes or awaits them by id: all are steps of one transaction.
const IDS_MAX: usize = 10_000;
/// The longest name of a queue, lane or session, and the longest key, in bytes.
const NAME_BYTES_MAX: usize = 256;

impl Core {
    pub(super) fn asked(&mut self, to: ReplyTo, request: Request) {
        match request {
            Request::Submit { tasks, dry_run, room_for, wait } => {
                self.submit(to, tasks, dry_run.then_some(room_for), wait);
            }
            Request::Status { id } => self.read(move |core| core.status(to, id)),
            Request::Wait { ids, .. } | Request::Cancel { ids } | Request::Retry { ids, .. }
                if ids.len() > IDS_MAX =>
            {
                let message = format!("{} ids in one request; at most {IDS_MAX}", ids.len());
                to.refuse(Refusal::new(RefusalKind::Invalid, message));
            }
            Request::Wait { ids, full } => self.wait(to, ids, full),
            Request::Follow { id, after, from, all } => self.follow(to, id, after, from, all),
            Request::Cancel { ids } => self.cancel(to, ids),
            Request::Retry { ids, from } => self.retry(to, ids, from),
            Request::List(filter) => self.read(move |core| core.list(to, filter)),
            Request::QueueStatus { queue } => {
                self.store(Op::Depth, Pending::Queues { to, queue });
            }
            Request::QueuePause { queue } => self.pause(to, queue, true),
            Request::QueueResume { queue } => self.pause(to, queue, false),
            Request::QueueClear { queue } => self.clear(to, queue, 0),
            Request::Info => self.document(to, info::tell_info),
            Request::Stats => self.document(to, info::tell_stats),
            Request::Usage { since_day, by } => {
                self.read(move |core| core.usage(to, since_day, by));
            }
            Request::Stop { now } => {
                self.to_master.send(&FromBroker::StopAsked { now });
                let pid = nix::unistd::getppid().as_raw().unsigned_abs();
                to.send(&Reply::Done { count: pid.into() });
            }
            Request::Reload { request } => self.ask_master(to, request, Ask::Reload),
            Request::Upgrade { request } => self.ask_master(to, request, Ask::Upgrade),
            Request::Scale { request, size } => self.ask_master(to, request, Ask::Resize(size)),
            Request::Backup { file } => self.backup(to, file),
            Request::Sessions { limit } => self.read(move |core| core.list_sessions(to, limit)),
            Request::Session { name } => self.read(move |core| core.show_session(to, name)),
            Request::SessionClear { name } => self.clear_session(to, name),
        }
    }

    fn submit(&mut self, to: ReplyTo, mut tasks: Vec<NewTask>, dry_run: Option<u64>, wait: bool) {
        let short = || self.memory.pressure.refusal(self.config.queue.memory_high);
        if let Some(refusal) = self.phase.refusal().or_else(short) {
            return to.refuse(refusal);
        }
        for (index, task) in tasks.iter_mut().enumerate() {
            on_one_line(&mut task.input);
            if let Err(message) = self.accept(task) {
                let refusal = Refusal::new(RefusalKind::Invalid, message);
                return to.refuse(Refusal { index: Some(index), ..refusal });
            }
        }
        let insert = self.insert_of(tasks, dry_run);
        if dry_run.is_some() {
            self.store(Op::Insert(insert), Pending::DryRun { to });
        } else {
            self.inserts_pending += 1;
            self.store(Op::Insert(insert), Pending::Insert { to, wait });
        }
    }

    /// A submission, with what its tasks get that do not say otherwise.
    pub(super) fn insert_of(&self, tasks: Vec<NewTask>, dry_run: Option<u64>) -> Insert {
        let over_budget = tasks.iter().enumerate();
        let over_budget =
            over_budget.filter_map(|(index, task)| Some((index, self.over_budget(task)?)));
        let over_budget = over_budget.collect();
        let defaults = self.defaults();
        Insert { tasks, defaults, now_ms: now_ms(), over_budget, dry_run }
    }

    pub(super) fn defaults(&self) -> Defaults {
        let queue = &self.config.queue;
        Defaults {
            max_attempts: queue.max_attempts,
            timeout_ms: u64::try_from(queue.task_timeout.as_millis()).unwrap_or(u64::MAX),
            max_queued: queue.max_queued.into(),
        }
    }

    /// Whether a task can be accepted as it stands; one sentence if not. Finds out what it needs.
    pub(super) fn accept(&self, task: &mut NewTask) -> Result<(), String> {
        let bytes = task.input.get().len() as u64;
        let limit = self.config.queue.input_bytes_max;
        if bytes > limit {
            return Err(format!(
                "the input has {bytes} bytes, more than input_bytes_max = {limit}"
            ));
        }
        if let Some(priority) = task.priority.filter(|p| usize::from(*p) >= PRIORITIES) {
            return Err(format!("priority {priority}: must be 0 to 9"));
        }
        if task.max_attempts == Some(0) {
            return Err("max_attempts 0: must be at least 1".to_owned());
        }
        if task.timeout_ms == Some(0) {
            return Err("timeout 0: must be longer".to_owned());
        }
        if task.lane.is_some() && task.session.is_some() {
            return Err("a session is a lane: give one of lane and session".to_owned());
        }
        if let Some(queue) =
            task.queue.as_deref().filter(|name| !crate::config::is_queue_name(name))
        {
            return Err(format!(
                "queue '{queue}': must be 1 to 64 letters, digits or any of _ . : -"
            ));
        }
        for (what, name) in [("lane", &task.lane), ("session", &task.session), ("key", &task.key)] {
            if let Some(name) = name
                && (name.is_empty() || name.len() > NAME_BYTES_MAX)
            {
                return Err(format!("{what}: must have 1 to {NAME_BYTES_MAX} bytes"));
            }
        }
        task.needs = self.registry.needs(&task.kind, &task.input)?;
        task.needs.tokens = task.needs.tokens.min(CALL_TOKENS_MAX);
        // What is said in a session depends on more than its request.
        if task.session.is_some() || !super::reuse::keeps(&self.config, &task.needs.gate) {
            task.needs.cache_key = None;
        }
        let agent = task.needs.agent.as_ref().and_then(|agent| self.config.agents.get(agent));
        task.priority = task.priority.or(agent.and_then(|agent| agent.priority));
        Ok(())
    }

    fn status(&self, to: ReplyTo, id: TaskId) {
        let (reader, inputs) = (self.reader.clone(), self.inputs.clone());
        spawn_local(async move {
            match reader.ask(move |db| view::task(db, id)).await {
                Ok(Some(mut task)) => {
                    let then = move |core: &mut Core| {
                        core.explain(&mut task);
                        to.send(&Reply::Task { task: Box::new(task) });
                    };
                    let _ = inputs.send(Input::Then(Box::new(then)));
                }
                Ok(None) => to.refuse(no_such_task(id)),
                Err(refusal) => to.refuse(refusal),
            }
        });
    }

    fn list(&self, to: ReplyTo, filter: ListFilter) {
        let (reader, inputs) = (self.reader.clone(), self.inputs.clone());
        spawn_local(async move {
            match reader.ask(move |db| view::list(db, &filter)).await {
                Ok(mut tasks) => {
                    let then = move |core: &mut Core| {
                        tasks.iter_mut().for_each(|task| core.explain_briefly(task));
                        to.send(&Reply::Tasks { tasks });
                    };
                    let _ = inputs.send(Input::Then(Box::new(then)));
                }
                Err(refusal) => to.refuse(refusal),
            }
        });
    }

    fn cancel(&mut self, to: ReplyTo, ids: Vec<TaskId>) {
        let changes = Changes::new(to, ids.len());
        for id in ids {
            let changes = changes.clone();
            self.store(Op::Cancel { id, now_ms: now_ms() }, Pending::Cancel { id, changes });
        }
    }

    fn retry(&mut self, to: ReplyTo, ids: Vec<TaskId>, from: Option<String>) {
        if let Some(refusal) = self.phase.refusal() {
            return to.refuse(refusal);
        }
        let changes = Changes::new(to, ids.len());
        for id in ids {
            let changes = changes.clone();
            match from.clone() {
                Some(step) => self.retry_from(id, step, changes),
                None => self.put_back_by_hand(id, None, changes),
            }
        }
    }

    pub(super) fn put_back_by_hand(
        &mut self,
        id: TaskId,
        redo: Option<BTreeSet<String>>,
        changes: Changes,
    ) {
        self.store(Op::Retry(Retry { id, redo }), Pending::Retry { id, changes });
    }

    fn pause(&mut self, to: ReplyTo, queue: Option<String>, paused: bool) {
        let op = Op::Pause { queue: queue.clone(), paused };
        self.store(op, Pending::Pause { to, queue, paused });
    }

    pub(super) fn clear(&mut self, to: ReplyTo, queue: Option<String>, cleared: u64) {
        let clear = Clear { queue: queue.clone(), now_ms: now_ms(), limit: CLEAR_TASKS };
        self.store(Op::Clear(clear), Pending::Clear { to, queue, cleared });
    }

    /// A document that is made of the depth of the queue and more.
    fn document(&mut self, to: ReplyTo, write: fn(&mut Core, ReplyTo, Depth)) {
        self.store(Op::Depth, Pending::Document { to, write });
    }

    pub(super) fn tell_queues(&self, to: &ReplyTo, only: Option<&str>, depth: &Depth) {
        let configured = self.config.queues.keys().map(String::as_str);
        let mut names: Vec<&str> = depth
            .queues
            .keys()
            .map(String::as_str)
            .chain(configured)
            .chain(self.queues.paused())
            .chain(only)
            .filter(|name| only.is_none_or(|only| only == *name))
            .collect();
        names.sort_unstable();
        names.dedup();
        let queues = names.into_iter().map(|name| {
            let counts = depth.queues.get(name).copied().unwrap_or_default();
            let settings = self.queues.settings(name);
            QueueCounts {
                queue: name.to_owned(),
                queued: counts.queued,
                running: counts.running,
                scheduled: counts.scheduled,
                blocked: counts.blocked,
                paused: self.queues.is_paused(name),
                weight: settings.weight,
                max_running: settings.max_running,
            }
        });
        to.send(&Reply::Queues { queues: queues.collect() });
    }

    fn backup(&mut self, to: ReplyTo, file: String) {
        let reader = self.reader.clone();
        spawn_local(async move {
            match reader.ask(move |db| view::backup(db, &file)).await {
                Ok(bytes) => to.send(&Reply::Done { count: bytes }),
                Err(refusal) => {
                    to.refuse(Refusal { kind: RefusalKind::Invalid, ..refusal });
                }
            }
        });
    }
}

/// Inputs are told on one line (`--json`), so they are kept on one line. JSON has line ends only
/// between its tokens: they can go without a look at the rest.
fn on_one_line(input: &mut Box<RawValue>) {
    if input.get().contains(['\n', '\r']) {
        let line = input.get().replace(['\n', '\r'], "");
        if let Ok(line) = RawValue::from_string(line) {
            *input = line;
        }
    }
}

/// The results of one request about many ids, told when the last one is there.
#[derive(Clone)]
pub(crate) struct Changes {
    to: ReplyTo,
    gathered: Rc<RefCell<Gathered>>,
}

struct Gathered {
    results: Vec<Change>,
    missing: usize,
    refused: bool,
}

impl Changes {
    fn new(to: ReplyTo, count: usize) -> Self {
        let gathered = Gathered { results: Vec::new(), missing: count, refused: false };
        if count == 0 {
            to.send(&Reply::Changed { results: Vec::new() });
        }
        Self { to, gathered: Rc::new(RefCell::new(gathered)) }
    }

    /// Adds the result of one id.
    pub(crate) fn add(&self, change: Change) {
        let mut gathered = self.gathered.borrow_mut();
        gathered.results.push(change);
        gathered.missing -= 1;
        if gathered.missing == 0 && !gathered.refused {
            let results = std::mem::take(&mut gathered.results);
            self.to.send(&Reply::Changed { results });
        }
    }

    /// Refuses the whole request, once.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        let mut gathered = self.gathered.borrow_mut();
        gathered.missing -= 1;
        if !std::mem::replace(&mut gathered.refused, true) {
            self.to.refuse(refusal);
        }
    }
}
