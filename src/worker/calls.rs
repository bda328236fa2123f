//! The calls of one attempt: permits that it asks for, holds and settles. Like everything that a
//! worker holds, it outlives every connection to the broker.

use std::collections::BTreeMap;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::held::Wake;
use crate::protocol::calls::{Answered, Ask, Begin, CallOutcome, Grant, Settled};
use crate::protocol::link::{Run, ToBroker};
use crate::task::Usage;

/// More than this is no wait but a clock that was set.
const LATE_MS_MAX: u64 = 60_000;

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What one attempt may call. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Book>);

struct Book {
    run: Run,
    /// Absent: there is no broker to ask, and every call is free.
    wake: Option<Arc<Wake>>,
    calls_max: u32,
    cached: Option<String>,
    stale: Option<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The permit that came with the start, until it is used.
    first: Option<Grant>,
    asks: BTreeMap<u32, Asked>,
    last_ask: u32,
    held: BTreeMap<u64, Grant>,
    settled: Vec<Settled>,
    /// How many of them were sent on this connection.
    settled_sent: usize,
}

struct Asked {
    servers: Vec<String>,
    tokens: u64,
    sent: bool,
    answer: oneshot::Sender<Result<Grant, Vec<String>>>,
}

/// The permit for one call. Dropped before it is settled, the call was abandoned.
pub(crate) struct Permit {
    calls: Calls,
    grant: Option<Grant>,
    /// From the grant to here.
    late_ms: u64,
}

/// What came of a call.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The model's name at the server; empty for a tool.
    pub(crate) model: String,
    /// Tokens, if the server said how many.
    pub(crate) usage: Option<Usage>,
    /// How long the server asked everybody to stay away.
    pub(crate) closed_for: Option<Duration>,
}

impl Calls {
    /// The calls of an attempt that starts.
    pub(super) fn begin(begin: &mut Begin, wake: &Arc<Wake>) -> Self {
        let state = State { first: begin.grant.take(), ..State::default() };
        Self(Arc::new(Book {
            run: begin.start.run,
            wake: Some(Arc::clone(wake)),
            calls_max: begin.calls_max,
            cached: begin.cached.take(),
            stale: begin.stale.take(),
            state: Mutex::new(state),
        }))
    }

    /// Calls that nobody limits: for a handler that runs without a broker, or under one of a build
    /// that knows no permits.
    pub(crate) fn free(calls_max: u32) -> Self {
        let run = Run { seq: 0, attempt: 1 };
        let state = Mutex::default();
        Self(Arc::new(Book { run, wake: None, calls_max, cached: None, stale: None, state }))
    }

    /// Calls that this attempt may make.
    pub(crate) fn calls_max(&self) -> u32 {
        self.0.calls_max
    }

    /// The output of an equal request, if there is one: it stands for a call.
    pub(crate) fn cached(&self) -> Option<&str> {
        self.0.cached.as_deref()
    }

    /// One that is too old for that, and better than none.
    pub(crate) fn stale(&self) -> Option<&str> {
        self.0.stale.as_deref()
    }

    /// Waits for a permit to call the first of `servers` that is in service, best first. The
    /// error says for each why it is not.
    pub(crate) async fn permit(
        &self,
        servers: &[String],
        tokens: u64,
    ) -> Result<Permit, Vec<String>> {
        let granted = match self.ask(servers, tokens) {
            Ok(granted) => Ok(granted),
            // A book that is gone has nobody who waits here.
            Err(answer) => answer.await.unwrap_or_else(|_| Err(Vec::new())),
        };
        granted.map(|grant| {
            let late_ms = now_ms().saturating_sub(grant.at_ms()).min(LATE_MS_MAX);
            Permit { calls: self.clone(), grant: Some(grant), late_ms }
        })
    }

    fn ask(
        &self,
        servers: &[String],
        tokens: u64,
    ) -> Result<Grant, oneshot::Receiver<Result<Grant, Vec<String>>>> {
        let mut state = self.lock();
        if let Some(first) = state.first.take() {
            if servers.contains(&first.server) {
                state.held.insert(first.permit, first.clone());
                return Ok(first);
            }
            state.settle(self.0.run, first, CallOutcome::NotMade, Report::default(), 0);
        }
        let Some(wake) = &self.0.wake else {
            let server = servers.first().cloned().unwrap_or_default();
            return Ok(Grant { permit: 0, server, tokens });
        };
        let (answer, answered) = oneshot::channel();
        state.last_ask += 1;
        let number = state.last_ask;
        let servers = servers.to_vec();
        state.asks.insert(number, Asked { servers, tokens, sent: false, answer });
        drop(state);
        wake.calls(self.0.run);
        Err(answered)
    }

    /// The broker answers.
    pub(super) fn answered(&self, answered: Answered) {
        let mut state = self.lock();
        let asked = state.asks.remove(&answered.number);
        if let Ok(grant) = &answered.result {
            state.held.insert(grant.permit, grant.clone());
        }
        drop(state);
        let unheard = match asked {
            Some(asked) => asked.answer.send(answered.result).err(),
            // Asked again on a new connection, and answered twice.
            None => Some(answered.result),
        };
        if let Some(Ok(grant)) = unheard {
            self.settle(grant, CallOutcome::NotMade, Report::default(), 0);
        }
    }

    fn settle(&self, grant: Grant, outcome: CallOutcome, report: Report, late_ms: u64) {
        self.lock().settle(self.0.run, grant, outcome, report, late_ms);
        if let Some(wake) = &self.0.wake {
            wake.calls(self.0.run);
        }
    }

    /// The permits of calls that are under way, for a new connection, on which everything else is
    /// sent again.
    pub(super) fn reconnected(&self) -> Vec<(Run, Grant)> {
        let mut state = self.lock();
        // Their calls have ended, but no broker knows: it takes them in before their ends.
        let untold: Vec<Grant> =
            state.settled[state.settled_sent..].iter().map(|end| end.grant.clone()).collect();
        state.settled_sent = 0;
        state.asks.values_mut().for_each(|asked| asked.sent = false);
        if let Some(wake) = self.0.wake.as_ref().filter(|_| state.has_unsent()) {
            wake.calls(self.0.run);
        }
        let held = state.first.iter().chain(state.held.values()).chain(&untold);
        held.map(|grant| (self.0.run, grant.clone())).collect()
    }

    /// What was not sent on this connection.
    pub(super) fn take_unsent(&self, out: &mut Vec<ToBroker>) {
        let mut state = self.lock();
        let sent = state.settled_sent;
        state.settled_sent = state.settled.len();
        out.extend(state.settled[sent..].iter().cloned().map(ToBroker::Settled));
        let run = self.0.run;
        // One that nobody waits for any more needs no answer.
        state.asks.retain(|_, asked| !asked.answer.is_closed());
        for (number, asked) in state.asks.iter_mut().filter(|(_, asked)| !asked.sent) {
            asked.sent = true;
            let (number, servers) = (*number, asked.servers.clone());
            out.push(ToBroker::Ask(Ask { run, number, servers, tokens: asked.tokens }));
        }
    }

    /// Nobody reads a panicking handler's book half written: each change is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn settle(
        &mut self,
        run: Run,
        grant: Grant,
        outcome: CallOutcome,
        report: Report,
        late_ms: u64,
    ) {
        self.held.remove(&grant.permit);
        let Report { model, usage, closed_for } = report;
        let closed_ms = closed_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.settled.push(Settled { run, grant, model, outcome, usage, closed_ms, late_ms });
    }

    fn has_unsent(&self) -> bool {
        self.settled_sent < self.settled.len() || self.asks.values().any(|asked| !asked.sent)
    }
}

impl Permit {
    /// Whom to call.
    pub(crate) fn server(&self) -> &str {
        self.grant.as_ref().map_or("", |grant| &grant.server)
    }

    /// Says what came of the call.
    pub(crate) fn settle(mut self, outcome: CallOutcome, report: Report) {
        if let Some(grant) = take(&mut self.grant) {
            self.calls.settle(grant, outcome, report, self.late_ms);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(grant) = take(&mut self.grant) {
            self.calls.settle(grant, CallOutcome::Abandoned, Report::default(), self.late_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::protocol::link::Start;
    use crate::task::TaskId;

    const RUN: Run = Run { seq: 7, attempt: 1 };

    fn grant(permit: u64, server: &str) -> Grant {
        Grant { permit, server: server.to_owned(), tokens: 10 }
    }

    fn calls(first: Option<Grant>) -> (Calls, Arc<Wake>) {
        let (kind, input) = ("chat".to_owned(), "{}".to_owned());
        let start = Start { run: RUN, id: TaskId::new(), kind, input, timeout_ms: 1000 };
        let mut begin = Begin { start, grant: first, calls_max: 3, cached: None, stale: None };
        let wake = Arc::default();
        (Calls::begin(&mut begin, &wake), wake)
    }

    fn unsent(calls: &Calls) -> Vec<ToBroker> {
        let mut out = Vec::new();
        calls.take_unsent(&mut out);
        out
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn outcome(message: &ToBroker) -> (u64, CallOutcome) {
        match message {
            ToBroker::Settled(settled) => (settled.grant.permit, settled.outcome),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_call_needs_no_asking_and_is_told_until_the_end() {
        let (calls, _) = calls(Some(grant(1, "a")));
        let permit = calls.permit(&names(&["a", "b"]), 10).await.ok().unwrap();
        assert_eq!(permit.server(), "a");
        assert_eq!(calls.reconnected(), [(RUN, grant(1, "a"))]);
        permit.settle(CallOutcome::Failed, Report::default());
        assert_eq!(calls.reconnected(), [(RUN, grant(1, "a"))], "no broker knows of its end");
        for _ in 0..2 {
            let told = unsent(&calls);
            assert_eq!(told.iter().map(outcome).collect::<Vec<_>>(), [(1, CallOutcome::Failed)]);
            assert!(unsent(&calls).is_empty());
            assert_eq!(calls.reconnected(), []);
        }
    }

    #[tokio::test]
    async fn another_server_is_asked_for_again_on_each_connection() {
        let (calls, _) = calls(None);
        let asking = calls.clone();
        let servers = names(&["b"]);
        let mut waits = Box::pin(asking.permit(&servers, 5));
        assert!(waits.as_mut().now_or_never().is_none());
        let ask = ToBroker::Ask(Ask { run: RUN, number: 1, servers: servers.clone(), tokens: 5 });
        assert_eq!(unsent(&calls), std::slice::from_ref(&ask));
        calls.reconnected();
        assert_eq!(unsent(&calls), [ask]);
        let answer = |permit| Answered { run: RUN, number: 1, result: Ok(grant(permit, "b")) };
        calls.answered(answer(8));
        let permit = waits.await.ok().unwrap();
        calls.answered(answer(9));
        assert_eq!(outcome(&unsent(&calls)[0]), (9, CallOutcome::NotMade), "one is enough");
        drop(permit);
        assert_eq!(outcome(&unsent(&calls)[0]), (8, CallOutcome::Abandoned));
    }

    #[tokio::test]
    async fn nobody_waits_and_nothing_is_held() {
        let (calls, _) = calls(Some(grant(1, "a")));
        let servers = names(&["b"]);
        let mut waits = Box::pin(calls.permit(&servers, 5));
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(outcome(&unsent(&calls)[0]), (1, CallOutcome::NotMade), "the wrong one");
        drop(waits);
        calls.answered(Answered { run: RUN, number: 1, result: Ok(grant(2, "b")) });
        assert_eq!(outcome(&unsent(&calls)[0]), (2, CallOutcome::NotMade));
        assert_eq!(calls.reconnected(), []);
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let (calls, _) = calls(None);
        let servers = names(&["b"]);
        let mut waits = Box::pin(calls.permit(&servers, 5));
        assert!(waits.as_mut().now_or_never().is_none());
        let why = vec!["b is left alone".to_owned()];
        calls.answered(Answered { run: RUN, number: 1, result: Err(why.clone()) });
        assert_eq!(waits.await.err(), Some(why));
    }
}
