//! What is submitted by the clock, and when next. Pure.

use std::collections::BTreeMap;

use super::rhythm::Rhythm;
use crate::config::Schedule;

/// How soon a run that was refused for now is tried again, in milliseconds.
const AGAIN_MS: i64 = 1000;

/// Every schedule of the configuration.
#[derive(Default)]
pub(crate) struct Plans {
    plans: Vec<Plan>,
}

/// One schedule.
pub(crate) struct Plan {
    pub(super) schedule: Schedule,
    /// Absent: it has no times, which is told elsewhere.
    rhythm: Option<Rhythm>,
    /// The time of the last run. Times are in milliseconds since 1970.
    pub(super) last_at_ms: Option<i64>,
    /// The time of the next run, or of one that is due. None if there is none.
    pub(super) next_at_ms: Option<i64>,
    /// A due run was refused, and is tried again then.
    again_at_ms: Option<i64>,
    /// A run is on its way to the store.
    is_under_way: bool,
    /// Why it never runs.
    pub(super) fault: Option<String>,
}

/// A run that is due.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DueRun {
    pub(crate) schedule: Schedule,
    pub(crate) at_ms: i64,
    /// The time after it: by then another one takes its place.
    pub(crate) next_at_ms: Option<i64>,
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// Its task is in the store.
    Accepted,
    /// Not for now.
    Later,
    /// It never will.
    Never,
}

impl Plan {
    fn new(schedule: Schedule, last_at_ms: Option<i64>, since_ms: i64) -> Self {
        let rhythm = Rhythm::of(&schedule);
        let next_at_ms = rhythm.as_ref().and_then(|rhythm| rhythm.next_after(since_ms));
        let (again_at_ms, is_under_way, fault) = (None, false, None);
        Self { schedule, rhythm, last_at_ms, next_at_ms, again_at_ms, is_under_way, fault }
    }

    fn wakes_at(&self) -> Option<i64> {
        let next_at_ms = self.next_at_ms.filter(|_| !self.is_under_way && self.fault.is_none());
        next_at_ms.max(next_at_ms.and(self.again_at_ms))
    }

    /// However many times have passed, the last of them stands for all.
    fn due(&mut self, now_ms: i64) -> Option<DueRun> {
        if self.wakes_at()? > now_ms {
            return None;
        }
        let rhythm = self.rhythm.as_ref()?;
        let at_ms = rhythm.latest(now_ms).max(self.next_at_ms)?;
        self.is_under_way = true;
        self.next_at_ms = Some(at_ms);
        let next_at_ms = rhythm.next_after(at_ms);
        Some(DueRun { schedule: self.schedule.clone(), at_ms, next_at_ms })
    }

    fn ran(&mut self, at_ms: i64, ran: Ran, now_ms: i64) -> bool {
        self.is_under_way = false;
        let is_news = ran != Ran::Later || self.again_at_ms.is_none();
        if ran == Ran::Accepted {
            self.last_at_ms = self.last_at_ms.max(Some(at_ms));
        }
        if ran == Ran::Later {
            self.again_at_ms = Some(now_ms + AGAIN_MS);
        } else if self.next_at_ms.is_some_and(|next_at_ms| next_at_ms <= at_ms) {
            self.again_at_ms = None;
            self.next_at_ms = self.rhythm.as_ref().and_then(|rhythm| rhythm.next_after(at_ms));
        }
        is_news
    }
}

impl Plans {
    /// For a broker that starts. What was missed since its last run is due now; one that never ran
    /// waits for its first time.
    pub(crate) fn new(
        schedules: &[Schedule],
        last_runs: &BTreeMap<String, i64>,
        now_ms: i64,
    ) -> Self {
        let plan = |schedule: &Schedule| {
            let last_at_ms = last_runs.get(&schedule.name).copied();
            Plan::new(schedule.clone(), last_at_ms, last_at_ms.unwrap_or(now_ms))
        };
        Self { plans: schedules.iter().map(plan).collect() }
    }

    /// Takes over a new configuration. A schedule that has changed begins anew, and misses
    /// nothing. Gives the names of those that are gone.
    pub(crate) fn configure(&mut self, schedules: &[Schedule], now_ms: i64) -> Vec<String> {
        let mut before: BTreeMap<String, Plan> = std::mem::take(&mut self.plans)
            .into_iter()
            .map(|plan| (plan.schedule.name.clone(), plan))
            .collect();
        for schedule in schedules {
            let plan = match before.remove(&schedule.name) {
                Some(same) if same.schedule == *schedule => Plan { fault: None, ..same },
                other => {
                    let last_at_ms = other.and_then(|plan| plan.last_at_ms);
                    Plan::new(schedule.clone(), last_at_ms, now_ms)
                }
            };
            self.plans.push(plan);
        }
        before.into_keys().collect()
    }

    /// Every schedule as it stands.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.plans.iter()
    }

    /// These never run, each with the reason.
    pub(super) fn set_faults(&mut self, mut faults: BTreeMap<String, String>) {
        for plan in &mut self.plans {
            plan.fault = faults.remove(&plan.schedule.name);
        }
    }

    /// The runs that are due. Each is given once until [`Plans::ran`] is told of it.
    pub(crate) fn due(&mut self, now_ms: i64) -> Vec<DueRun> {
        self.plans.iter_mut().filter_map(|plan| plan.due(now_ms)).collect()
    }

    /// What became of a run. Whether it is news: one that is tried again and again is not.
    pub(crate) fn ran(&mut self, name: &str, at_ms: i64, ran: Ran, now_ms: i64) -> bool {
        let plan = self.plans.iter_mut().find(|plan| plan.schedule.name == name);
        plan.is_some_and(|plan| plan.ran(at_ms, ran, now_ms))
    }

    /// When there is something to do next.
    pub(crate) fn wakes_at(&self) -> Option<i64> {
        self.plans.iter().filter_map(Plan::wakes_at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Runs at each multiple of 10 s.
    fn every(name: &str) -> Schedule {
        let every = Some(Duration::from_secs(10));
        Schedule { name: name.to_owned(), every, ..Schedule::default() }
    }

    fn plans(last_at_ms: Option<i64>, now_ms: i64) -> Plans {
        let last_runs = last_at_ms.map(|at_ms| ("a".to_owned(), at_ms));
        Plans::new(&[every("a")], &last_runs.into_iter().collect(), now_ms)
    }

    fn times(plans: &mut Plans, now_ms: i64) -> Vec<(i64, Option<i64>)> {
        plans.due(now_ms).into_iter().map(|due| (due.at_ms, due.next_at_ms)).collect()
    }

    #[test]
    fn each_time_runs_once() {
        let mut plans = plans(None, 12_345);
        assert_eq!((plans.wakes_at(), times(&mut plans, 19_999)), (Some(20_000), vec![]));
        assert_eq!(times(&mut plans, 20_003), [(20_000, Some(30_000))]);
        assert_eq!((plans.wakes_at(), times(&mut plans, 30_000)), (None, vec![]), "under way");
        plans.ran("a", 20_000, Ran::Accepted, 30_001);
        assert_eq!(plans.plans[0].last_at_ms, Some(20_000));
        assert_eq!(times(&mut plans, 30_002), [(30_000, Some(40_000))]);
    }

    #[test]
    fn one_run_makes_up_for_all_that_were_missed() {
        for (last, now, due) in [
            (None, 95_000, vec![]),
            (Some(90_000), 95_000, vec![]),
            (Some(20_000), 95_000, vec![(90_000, Some(100_000))]),
            (Some(20_000), 90_000, vec![(90_000, Some(100_000))]),
            // The clock was set back.
            (Some(200_000), 95_000, vec![]),
        ] {
            let mut plans = plans(last, now);
            assert_eq!(times(&mut plans, now), due, "{last:?} at {now}");
            plans.ran("a", 90_000, Ran::Accepted, now);
            assert_eq!(times(&mut plans, now + 1), []);
        }
        // A loop that stood still.
        assert_eq!(times(&mut plans(None, 0), 57_000), [(50_000, Some(60_000))]);
    }

    #[test]
    fn a_refused_run_is_tried_again_until_its_successor_is_due() {
        let mut plans = plans(None, 0);
        assert_eq!(times(&mut plans, 10_000), [(10_000, Some(20_000))]);
        assert!(plans.ran("a", 10_000, Ran::Later, 10_001));
        assert_eq!((plans.wakes_at(), times(&mut plans, 11_000)), (Some(11_001), vec![]));
        assert_eq!(times(&mut plans, 11_001), [(10_000, Some(20_000))]);
        assert!(!plans.ran("a", 10_000, Ran::Later, 19_500), "no news");
        assert_eq!(times(&mut plans, 20_500), [(20_000, Some(30_000))]);
        plans.ran("a", 20_000, Ran::Never, 20_600);
        assert_eq!((plans.wakes_at(), plans.plans[0].last_at_ms), (Some(30_000), None));
    }

    #[test]
    fn a_reload_keeps_what_is_the_same() {
        let mut plans = Plans::new(&[every("a"), every("b"), every("c")], &BTreeMap::new(), 0);
        for due in plans.due(10_000) {
            plans.ran(&due.schedule.name, due.at_ms, Ran::Accepted, 10_000);
        }
        let changed = Schedule { every: Some(Duration::from_secs(7)), ..every("b") };
        let gone = plans.configure(&[every("d"), changed, every("a")], 24_000);
        assert_eq!(gone, ["c"]);
        let told: Vec<_> = plans
            .iter()
            .map(|plan| (&*plan.schedule.name, plan.last_at_ms, plan.next_at_ms))
            .collect();
        let expected = [
            ("d", None, Some(30_000)),
            ("b", Some(10_000), Some(28_000)),
            ("a", Some(10_000), Some(20_000)),
        ];
        assert_eq!(told, expected);
        plans.set_faults(BTreeMap::from([("a".to_owned(), "no such kind".to_owned())]));
        assert_eq!(plans.due(29_000).len(), 1, "b alone");
    }
}
