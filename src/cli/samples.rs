//! Averages and percentiles of durations: pure.

use std::time::Duration;

use serde::Serialize;

/// Durations of one sort, as they come.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    micros: Vec<f64>,
}

/// What is told of them, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Half of them were no longer.
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Samples {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.micros.push(duration.as_nanos() as f64 / 1e3);
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.micros.append(&mut other.micros);
    }

    /// Absent where nothing was measured: a 0 would look like a good figure.
    pub(crate) fn spread(mut self) -> Option<Spread> {
        self.micros.sort_by(f64::total_cmp);
        Some(Spread { p50: self.at(50)?, p95: self.at(95)?, p99: self.at(99)?, max: self.at(100)? })
    }

    /// In milliseconds.
    pub(crate) fn average(&self) -> Option<f64> {
        let count = self.micros.len();
        (count > 0).then(|| (self.micros.iter().sum::<f64>() / count as f64).round() / 1e3)
    }

    /// The nearest rank: a duration that did occur, in whole microseconds. Needs them sorted.
    fn at(&self, percent: usize) -> Option<f64> {
        let rank = (self.micros.len() * percent).div_ceil(100);
        let micros = self.micros.get(rank.max(1) - 1)?;
        Some(micros.round() / 1e3)
    }
}

/// How many a second, to one decimal; 0 where no time passed.
pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { (count as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spread(millis: impl IntoIterator<Item = u64>) -> Option<Spread> {
        let mut samples = Samples::default();
        for ms in millis {
            samples.push(Duration::from_millis(ms));
        }
        samples.spread()
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let of = |p50, p95, p99, max| Some(Spread { p50, p95, p99, max });
        assert_eq!(spread([]), None);
        assert_eq!(spread([7]), of(7.0, 7.0, 7.0, 7.0));
        assert_eq!(spread([2, 1]), of(1.0, 2.0, 2.0, 2.0));
        assert_eq!(spread((1..=100).rev()), of(50.0, 95.0, 99.0, 100.0));
        assert_eq!(spread(1..=1000), of(500.0, 950.0, 990.0, 1000.0));
    }

    #[test]
    fn fractions_of_a_millisecond_are_kept() {
        let mut samples = Samples::default();
        samples.push(Duration::from_nanos(1_234_567));
        samples.push(Duration::from_nanos(3_000_000));
        assert_eq!(samples.average(), Some(2.117));
        assert_eq!(samples.spread().unwrap().p50, 1.235);
    }

    #[test]
    fn rates_need_time() {
        assert_eq!(per_second(10, Duration::ZERO), 0.0);
        assert_eq!(per_second(10, Duration::from_secs(4)), 2.5);
    }

    proptest! {
        #[test]
        fn they_are_ordered_and_did_occur(millis in prop::collection::vec(0u64..5000, 1..200)) {
            let spread = spread(millis.clone()).unwrap();
            let shown = [spread.p50, spread.p95, spread.p99, spread.max];
            prop_assert!(shown.is_sorted());
            prop_assert!(shown.iter().all(|ms| millis.contains(&(*ms as u64))));
        }
    }
}
