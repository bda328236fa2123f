//! What a worker holds: attempts that run, and results that are not acknowledged. It outlives
//! every connection to the broker.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::calls::Calls;
use crate::handler::{Event, EventSink};
use crate::protocol::calls::{Answered, Begin, Grant};
use crate::protocol::link::{Done, EventBody, Outcome, Run, TaskEvent, ToBroker};

/// Events that are kept of one attempt until its result is acknowledged; older ones give way,
/// and the jump in their numbers tells of it.
const EVENT_LOG_BYTES_MAX: usize = 1 << 20;
/// Results that wait for the broker, by size, after which no new work is taken.
const RESULTS_BYTES_MAX: usize = 64 << 20;

/// What wakes the link, and why. Handlers on other threads use it, too.
#[derive(Default)]
pub(super) struct Wake {
    pub(super) changed: Notify,
    /// Attempts with events that were not sent.
    dirty: Mutex<Vec<Run>>,
    /// Attempts whose calls were not told.
    calls: Mutex<Vec<Run>>,
}

impl Wake {
    /// An attempt has something to say about its calls.
    pub(super) fn calls(&self, run: Run) {
        lock(&self.calls).push(run);
        self.changed.notify_one();
    }
}

/// All that a worker holds.
#[derive(Default)]
pub(super) struct Held {
    runs: BTreeMap<Run, Holding>,
    /// Attempts whose result is there and not sent on this connection.
    unsent: VecDeque<Run>,
    results_bytes: usize,
}

struct Holding {
    /// Wakes the runner to drop its handler.
    cancel: Rc<Notify>,
    log: Arc<EventLog>,
    calls: Calls,
    done: Option<Done>,
}

/// What an attempt that starts is given.
pub(super) struct Started {
    pub(super) cancel: Rc<Notify>,
    pub(super) log: Arc<EventLog>,
    pub(super) calls: Calls,
    /// What its output must be like, as JSON.
    pub(super) expect: Option<String>,
    /// The conversation so far, if it is of a session.
    pub(super) history: Option<Arc<str>>,
}

impl Held {
    /// Holds an attempt that starts. `None` if it is held already: a start that came twice.
    /// `limited`: its broker knows permits.
    pub(super) fn start(
        &mut self,
        begin: &mut Begin,
        limited: bool,
        wake: &Arc<Wake>,
    ) -> Option<Started> {
        let run = begin.start.run;
        if self.runs.contains_key(&run) {
            return None;
        }
        let cancel = Rc::new(Notify::new());
        let log = Arc::new(EventLog { run, kept: Mutex::default(), wake: Arc::clone(wake) });
        let calls = match limited {
            true => Calls::begin(begin, wake),
            false => Calls::free(begin.calls_max),
        };
        let started = Started {
            cancel: Rc::clone(&cancel),
            log: Arc::clone(&log),
            calls: calls.clone(),
            expect: None,
            history: None,
        };
        self.runs.insert(run, Holding { cancel, log, calls, done: None });
        Some(started)
    }

    /// Holds an attempt that ends as soon as it has started. `false` if it is held already.
    pub(super) fn hold(&mut self, run: Run, wake: &Arc<Wake>) -> bool {
        if self.runs.contains_key(&run) {
            return false;
        }
        let log = Arc::new(EventLog { run, kept: Mutex::default(), wake: Arc::clone(wake) });
        let (cancel, calls) = (Rc::default(), Calls::free(0));
        self.runs.insert(run, Holding { cancel, log, calls, done: None });
        true
    }

    /// Keeps a result.
    pub(super) fn finish(&mut self, done: Done) {
        let run = done.run;
        if let Some(holding) = self.runs.get_mut(&run) {
            self.results_bytes += bytes_of(&done);
            holding.done = Some(done);
            self.unsent.push_back(run);
        }
    }

    /// Tells an attempt to drop its handler. One that is not held needs no telling.
    pub(super) fn cancel(&self, run: Run) {
        if let Some(holding) = self.runs.get(&run) {
            holding.cancel.notify_one();
        }
    }

    /// The broker answers an ask of an attempt.
    pub(super) fn answered(&self, answered: Answered) {
        if let Some(holding) = self.runs.get(&answered.run) {
            holding.calls.answered(answered);
        }
    }

    /// What attempts have to say about their calls and have not said on this connection.
    pub(super) fn take_calls(&self, wake: &Wake) -> Vec<ToBroker> {
        let mut said = Vec::new();
        for run in std::mem::take(&mut *lock(&wake.calls)) {
            if let Some(holding) = self.runs.get(&run) {
                holding.calls.take_unsent(&mut said);
            }
        }
        said
    }

    /// Forgets a result that is on disk.
    pub(super) fn acknowledged(&mut self, run: Run) {
        if let Some(holding) = self.runs.remove(&run)
            && let Some(done) = &holding.done
        {
            self.results_bytes -= bytes_of(done);
        }
    }

    /// Everything is to be sent again: there is a new connection.
    pub(super) fn reconnected(&mut self) -> (Vec<Run>, Vec<(Run, Grant)>) {
        self.unsent = self
            .runs
            .iter()
            .filter(|(_, holding)| holding.done.is_some())
            .map(|(run, _)| *run)
            .collect();
        let mut permits = Vec::new();
        for holding in self.runs.values() {
            holding.log.send_again();
            permits.extend(holding.calls.reconnected());
        }
        (self.runs.keys().copied().collect(), permits)
    }

    /// Events that were not sent on this connection.
    pub(super) fn take_events(&self, wake: &Wake) -> Vec<TaskEvent> {
        let dirty = std::mem::take(&mut *lock(&wake.dirty));
        let mut events = Vec::new();
        for run in dirty {
            if let Some(holding) = self.runs.get(&run) {
                holding.log.take_unsent(&mut events);
            }
        }
        events
    }

    /// The next result that was not sent on this connection.
    pub(super) fn take_result(&mut self) -> Option<Done> {
        loop {
            let run = self.unsent.pop_front()?;
            if let Some(done) = self.runs.get(&run).and_then(|holding| holding.done.clone()) {
                return Some(done);
            }
        }
    }

    /// Whether results fill the buffer.
    pub(super) fn is_full(&self) -> bool {
        self.results_bytes > RESULTS_BYTES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

fn bytes_of(done: &Done) -> usize {
    match &done.outcome {
        Outcome::Succeeded { output, .. } => output.len(),
        Outcome::Failed { error, .. } | Outcome::RunFailed { error, .. } => error.message.len(),
        Outcome::Advanced { steps } => steps.iter().map(|step| step.input.len()).sum(),
        Outcome::Cancelled | Outcome::Forgotten => 0,
    }
}

/// One attempt's events. A handler may tell them from any thread.
pub(super) struct EventLog {
    run: Run,
    kept: Mutex<Kept>,
    wake: Arc<Wake>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<(u64, EventBody)>,
    bytes: usize,
    last_n: u64,
    /// The last one that was sent on this connection.
    sent_n: u64,
    /// The last one that was ever sent: somebody may have read it, so that it must not grow.
    told_n: u64,
}

impl EventLog {
    fn send_again(&self) {
        let mut kept = lock(&self.kept);
        kept.sent_n = 0;
        if kept.last_n > 0 {
            lock(&self.wake.dirty).push(self.run);
        }
    }

    fn take_unsent(&self, out: &mut Vec<TaskEvent>) {
        let mut kept = lock(&self.kept);
        let (run, sent_n) = (self.run, kept.sent_n);
        let unsent = kept.events.iter().filter(|(n, _)| *n > sent_n);
        out.extend(unsent.map(|(n, body)| TaskEvent { run, n: *n, body: body.clone() }));
        kept.sent_n = kept.last_n;
        kept.told_n = kept.last_n;
    }
}

impl EventSink for EventLog {
    fn emit(&self, event: Event) {
        let mut kept = lock(&self.kept);
        if kept.sent_n == kept.last_n {
            lock(&self.wake.dirty).push(self.run);
            self.wake.changed.notify_one();
        }
        kept.push(&event);
    }
}

/// A handler that panicked while it told an event has not broken the log.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn push(&mut self, event: &Event) {
        let body = EventBody::from(event);
        self.bytes += body.bytes();
        // Text that waits together travels together.
        let last = self.events.back_mut().filter(|_| self.told_n < self.last_n);
        if let (Some((_, EventBody::Text(text))), EventBody::Text(more)) = (last, &body) {
            text.push_str(more);
        } else {
            self.last_n += 1;
            self.events.push_back((self.last_n, body));
        }
        while self.bytes > EVENT_LOG_BYTES_MAX
            && let Some((_, old)) = self.events.pop_front()
        {
            self.bytes -= old.bytes();
        }
        if self.events.is_empty() {
            // Too large by itself. A number that is missing is a gap for whoever reads the next
            // one, so that there must be one.
            self.last_n += 1;
            self.events.push_back((self.last_n, EventBody::Text(String::new())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::link::Start;
    use crate::task::TaskId;

    const RUN: Run = Run { seq: 7, attempt: 1 };

    fn held() -> (Held, Arc<EventLog>) {
        let (kind, input) = ("noop".to_owned(), "{}".to_owned());
        let start = Start { run: RUN, id: TaskId::new(), kind, input, timeout_ms: 1000 };
        let mut begin = Begin { start, grant: None, calls_max: 1, cached: None, stale: None };
        let mut held = Held::default();
        let started = held.start(&mut begin, true, &Arc::default()).unwrap();
        (held, started.log)
    }

    fn sent(held: &Held, log: &EventLog) -> Vec<TaskEvent> {
        held.take_events(&log.wake)
    }

    fn text(text: &str) -> Event {
        Event::Text { text: text.to_owned() }
    }

    #[test]
    fn a_result_is_kept_until_it_is_acknowledged() {
        let (mut held, _) = held();
        let done = Done { run: RUN, run_ms: 1, outcome: Outcome::Cancelled };
        held.finish(done.clone());
        assert_eq!(held.take_result(), Some(done.clone()));
        assert_eq!(held.take_result(), None);
        assert_eq!(held.reconnected().0, [RUN]);
        assert_eq!(held.take_result(), Some(done));
        held.acknowledged(RUN);
        assert!(held.is_empty());
        assert_eq!(held.results_bytes, 0);
    }

    #[test]
    fn text_that_waits_together_travels_together() {
        let (held, log) = held();
        log.emit(text("a"));
        log.emit(text("b"));
        let sent = sent(&held, &log);
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].n, &sent[0].body), (1, &EventBody::Text("ab".to_owned())));
        log.emit(text("c"));
        assert_eq!(super::tests::sent(&held, &log)[0].n, 2);
        assert!(super::tests::sent(&held, &log).is_empty());
    }

    #[test]
    fn a_new_connection_is_told_everything_that_is_kept() {
        let (mut held, log) = held();
        log.emit(text("a"));
        sent(&held, &log);
        log.emit(text("b"));
        held.reconnected();
        let numbers: Vec<u64> = sent(&held, &log).iter().map(|event| event.n).collect();
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn text_that_was_told_once_does_not_grow() {
        let (mut held, log) = held();
        log.emit(text("a"));
        sent(&held, &log);
        held.reconnected();
        // Before the new connection is told of the first: a follower may have read it.
        log.emit(text("b"));
        let told: Vec<_> = sent(&held, &log).into_iter().map(|event| event.body).collect();
        assert_eq!(told, ["a", "b"].map(|text| EventBody::Text(text.to_owned())));
    }

    #[test]
    fn events_are_bounded() {
        let (held, log) = held();
        for _ in 0..3 {
            log.emit(text(&"x".repeat(EVENT_LOG_BYTES_MAX / 2)));
            sent(&held, &log);
        }
        assert!(log.kept.lock().unwrap().bytes <= EVENT_LOG_BYTES_MAX);
        assert_eq!(log.kept.lock().unwrap().last_n, 3);
    }

    #[test]
    fn an_event_that_does_not_fit_leaves_a_gap_also_at_the_end() {
        let (held, log) = held();
        log.emit(text(&"x".repeat(EVENT_LOG_BYTES_MAX + 1)));
        let told: Vec<_> = sent(&held, &log).into_iter().map(|event| event.n).collect();
        assert_eq!(told, [2]);
        assert_eq!(log.kept.lock().unwrap().bytes, 0);
        log.emit(text("a"));
        assert_eq!(sent(&held, &log)[0].n, 3);
    }
}
