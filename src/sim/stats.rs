//! What the simulated model saw of its clients: `GET /sim/stats`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::time::Instant;

/// Most arrival times that are kept.
const TIMES_MAX: usize = 100_000;
/// Most models that are counted apart, and their longest name; the rest are one.
const MODELS_MAX: usize = 10_000;
const MODEL_BYTES_MAX: usize = 256;
const OTHER_MODELS: &str = "(other)";

/// What is counted, as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Counts {
    /// Chat completions asked for, the refused ones too.
    requests: u64,
    /// Those of them that are under way: not answered to the end, and their client is there.
    open_requests: u64,
    /// The most that were under way at once.
    open_requests_max: u64,
    /// Those whose client went away before the end.
    aborted: u64,
    /// Connections that are open now, the one of who asks included.
    open_connections: u64,
    /// Requests for a path that there is not, such as the one that a redirect names.
    unknown_paths: u64,
    /// Requests by the model's name as it was asked for; without those that cannot be read.
    by_model: BTreeMap<String, u64>,
    /// When the last requests arrived, in milliseconds since the start.
    request_times_ms: VecDeque<u64>,
}

/// The counters of one simulated model.
#[derive(Debug)]
pub(super) struct Stats {
    start: Instant,
    counts: Mutex<Counts>,
}

impl Stats {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counters have no invariant that a panic elsewhere could have broken.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All counters now.
    pub(super) fn show(&self) -> impl Serialize + use<> {
        self.counts().clone()
    }

    /// Counts a request for a path that there is not.
    pub(super) fn stray(&self) {
        self.counts().unknown_paths += 1;
    }

    /// Counts a connection for as long as the value lives.
    pub(super) fn connect(self: &Arc<Self>) -> Connection {
        self.counts().open_connections += 1;
        Connection { stats: Arc::clone(self) }
    }

    /// Counts a call from now on.
    pub(super) fn arrive(self: &Arc<Self>) -> Call {
        let age_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut counts = self.counts();
        let number = counts.requests;
        counts.requests += 1;
        counts.open_requests += 1;
        counts.open_requests_max = counts.open_requests_max.max(counts.open_requests);
        if counts.request_times_ms.len() == TIMES_MAX {
            counts.request_times_ms.pop_front();
        }
        counts.request_times_ms.push_back(age_ms);
        Call { stats: Arc::clone(self), number, is_finished: false }
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    stats: Arc<Stats>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stats.counts().open_connections -= 1;
    }
}

/// A call that is under way. When it is dropped before it is finished, its client has gone.
#[derive(Debug)]
pub(super) struct Call {
    stats: Arc<Stats>,
    /// How many calls came before it.
    pub(super) number: u64,
    is_finished: bool,
}

impl Call {
    /// Counts it for its model; gives how many calls for the same model came before it.
    pub(super) fn is_for(&self, model: &str) -> u64 {
        let models = &mut self.stats.counts().by_model;
        let is_known = models.contains_key(model);
        let fits = models.len() < MODELS_MAX && model.len() <= MODEL_BYTES_MAX;
        let name = if is_known || fits { model } else { OTHER_MODELS };
        let count = models.entry(name.to_owned()).or_insert(0);
        *count += 1;
        *count - 1
    }

    /// All of the answer has been handed over, or it was never meant to be more.
    pub(super) fn finish(&mut self) {
        self.is_finished = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut counts = self.stats.counts();
        counts.open_requests -= 1;
        if !self.is_finished {
            counts.aborted += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_end_or_are_given_up() {
        let stats = Stats::new();
        let (mut ends, leaves, stays) = (stats.arrive(), stats.arrive(), stats.arrive());
        assert_eq!([ends.number, leaves.number, stays.number], [0, 1, 2]);
        ends.finish();
        drop((ends, leaves));
        let counts = stats.counts().clone();
        assert_eq!((counts.requests, counts.open_requests, counts.aborted), (3, 1, 1));
        assert_eq!((counts.open_requests_max, counts.request_times_ms.len()), (3, 3));
    }

    #[test]
    fn models_are_counted_apart_up_to_a_number() {
        let stats = Stats::new();
        let call = stats.arrive();
        assert_eq!([call.is_for("a"), call.is_for("a"), call.is_for("b")], [0, 1, 0]);
        for number in 0..2 * MODELS_MAX {
            call.is_for(&number.to_string());
        }
        assert_eq!(call.is_for("a"), 2);
        let too_long = "x".repeat(MODEL_BYTES_MAX + 1);
        call.is_for(&too_long);
        let counts = stats.counts().clone();
        assert_eq!(counts.by_model.len(), MODELS_MAX + 1);
        assert!(!counts.by_model.contains_key(&too_long));
    }

    #[test]
    fn only_the_last_times_are_kept() {
        let stats = Stats::new();
        stats.counts().request_times_ms = vec![u64::MAX; TIMES_MAX].into();
        stats.arrive();
        let times = stats.counts().request_times_ms.clone();
        assert_eq!((times.len(), times.back() < times.front()), (TIMES_MAX, true));
    }
}
