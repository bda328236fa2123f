//! What `forq top` knows of the daemon: the last look, what was seen over time, and whether it
//! still holds. Pure: documents and times come in from outside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::events::{self, Event, Events};
use crate::cli::info::{Info, Process};

/// Rates that are kept: more than the widest terminal shows.
const RATES_MAX: usize = 512;

/// The daemon at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) info: Info,
    pub(super) stats: Stats,
}

/// `forq stats --json`, as far as it is shown here. Daemons differ in age, so all is optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    succeeded: Option<u64>,
    failed: Option<u64>,
    cancelled: Option<u64>,
    pub(super) wait_ms: Times,
    pub(super) run_ms: Times,
    pub(super) tasks_per_min: Option<f64>,
    pub(super) utilisation: Option<f64>,
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Times {
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
}

impl Snapshot {
    /// From the broker's two documents; stats may be missing.
    pub(super) fn read(info: &str, stats: Option<&str>) -> serde_json::Result<Self> {
        let stats = stats.map(serde_json::from_str).transpose()?.unwrap_or_default();
        Ok(Self { info: serde_json::from_str(info)?, stats })
    }

    /// From what the master last wrote about itself: the shape of `info`, but that the broker's
    /// and the master's numbers have no objects of their own.
    pub(super) fn read_status(status: &str) -> serde_json::Result<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Flat {
            broker_pid: Option<i32>,
            broker_restarts: Option<u64>,
            workers: Vec<FlatWorker>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct FlatWorker {
            ready: Option<bool>,
        }
        let flat: Flat = serde_json::from_str(status)?;
        let mut info: Info = serde_json::from_str(status)?;
        let master = Process { pid: info.master_pid, ..Process::default() };
        info.master.get_or_insert(master);
        info.broker.get_or_insert(Process {
            pid: flat.broker_pid,
            restarts: flat.broker_restarts,
            ..Process::default()
        });
        for (worker, flat) in info.workers.iter_mut().zip(flat.workers) {
            let state = flat.ready.map(|ready| if ready { "ready" } else { "booting" }.to_owned());
            worker.state = worker.state.take().or(state);
        }
        Ok(Self { info, stats: Stats::default() })
    }

    pub(super) fn master_pid(&self) -> Option<i32> {
        self.info.master.as_ref().and_then(|master| master.pid)
    }

    /// Tasks that have ended so far, whichever way.
    fn ended(&self) -> Option<u64> {
        let Stats { succeeded, failed, cancelled, .. } = self.stats;
        Some(succeeded? + failed.unwrap_or(0) + cancelled.unwrap_or(0))
    }
}

/// One look at the daemon.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    /// What the broker says.
    Live(Snapshot),
    /// The broker does not answer: what the master last wrote.
    Silent(Snapshot),
    /// Neither, and why.
    Lost(String),
}

/// Whether what is shown still holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing was seen yet.
    #[default]
    New,
    Live,
    Silent,
    /// Why there is nothing.
    Lost(String),
}

/// Everything that is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    pub(super) link: Link,
    /// The last one seen; that of a lost daemon is kept for comparing only.
    last: Option<Snapshot>,
    pub(super) events: Events,
    /// Tasks ended in a second, oldest first, one for each look.
    pub(super) rates: VecDeque<f64>,
    /// When `last` was told by a broker, to measure the next rate from.
    live_at: Option<Instant>,
}

impl Board {
    /// What there is to show of the daemon now.
    pub(super) fn current(&self) -> Option<&Snapshot> {
        self.last.as_ref().filter(|_| matches!(self.link, Link::Live | Link::Silent))
    }

    /// Takes in what was seen at `now`.
    pub(super) fn take(&mut self, sight: Sight, now: Instant) {
        let (link, snapshot) = match sight {
            Sight::Live(snapshot) => (Link::Live, Some(snapshot)),
            Sight::Silent(snapshot) => (Link::Silent, Some(snapshot)),
            Sight::Lost(why) => (Link::Lost(why), None),
        };
        let mut lines: Vec<String> = events::of_link(&self.link, &link).into_iter().collect();
        if let (Some(last), Some(snapshot)) = (&self.last, &snapshot) {
            lines.extend(events::between(last, snapshot));
        }
        if link == Link::Live {
            self.measure(snapshot.as_ref(), now);
        }
        self.live_at = (link == Link::Live).then_some(now);
        self.events.extend(lines.into_iter().map(|text| Event { at: now, text }));
        self.last = snapshot.or(self.last.take());
        self.link = link;
    }

    fn measure(&mut self, snapshot: Option<&Snapshot>, now: Instant) {
        let ended = |snapshot: Option<&Snapshot>| snapshot.and_then(Snapshot::ended);
        let (Some(live_at), Some(before), Some(after)) =
            (self.live_at, ended(self.last.as_ref()), ended(snapshot))
        else {
            return;
        };
        let elapsed = now.duration_since(live_at).max(Duration::from_millis(1));
        if self.rates.len() == RATES_MAX {
            self.rates.pop_front();
        }
        self.rates.push_back(after.saturating_sub(before) as f64 / elapsed.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ended(succeeded: u64) -> Sight {
        let stats = json!({ "succeeded": succeeded, "failed": 1, "new": {} }).to_string();
        Sight::Live(Snapshot::read("{}", Some(&stats)).unwrap())
    }

    #[test]
    fn a_document_may_lack_anything_and_have_more() {
        for (info, stats) in [
            ("{}", None),
            (r#"{"workers":[{}],"new":[1]}"#, Some("{}")),
            (r#"{"phase":null,"scale":{},"broker":{}}"#, Some(r#"{"wait_ms":{"p50":null}}"#)),
        ] {
            Snapshot::read(info, stats).unwrap_or_else(|error| panic!("{info}: {error}"));
        }
        assert!(Snapshot::read("nonsense", None).is_err());
    }

    #[test]
    fn what_the_master_wrote_reads_like_what_the_broker_says() {
        let status = json!({
            "phase": "degraded", "master_pid": 7, "broker_pid": 8, "broker_restarts": 3,
            "workers": [{ "slot": 1, "pid": 9, "ready": true }, { "slot": 2, "ready": false }],
        });
        let seen = Snapshot::read_status(&status.to_string()).unwrap();
        assert_eq!(seen.master_pid(), Some(7));
        let broker = seen.info.broker.unwrap();
        assert_eq!((broker.pid, broker.restarts), (Some(8), Some(3)));
        let states: Vec<_> =
            seen.info.workers.iter().map(|worker| worker.state.as_deref()).collect();
        assert_eq!(states, [Some("ready"), Some("booting")]);
    }

    #[test]
    fn the_rate_is_measured_between_two_looks_at_a_live_daemon() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut board = Board::default();
        board.take(ended(10), at(0));
        board.take(ended(15), at(500));
        board.take(Sight::Lost("gone".to_owned()), at(600));
        assert!(board.current().is_none());
        // Nobody knows how fast these 100 were.
        board.take(ended(115), at(900));
        board.take(ended(115), at(1_900));
        // A database that was made anew counts from 0 again.
        board.take(ended(0), at(2_900));
        assert_eq!(board.rates, [10.0, 0.0, 0.0]);
        assert!(board.current().is_some());
    }

    #[test]
    fn rates_are_bounded() {
        let start = Instant::now();
        let mut board = Board::default();
        for second in 0..2 * RATES_MAX as u64 {
            board.take(ended(second), start + Duration::from_secs(second));
        }
        assert_eq!(board.rates.len(), RATES_MAX);
    }
}
