//! When a schedule's times are. Pure.

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::config::{Schedule, cron_of, zone_of};

/// A cron pattern in its time zone, or multiples of a time since 1970: so a restart moves nothing.
pub(super) enum Rhythm {
    Every { ms: i64 },
    Cron { cron: Box<Cron>, zone: TimeZone },
}

impl Rhythm {
    /// The rhythm that a checked configuration says; none if it says none.
    pub(super) fn of(schedule: &Schedule) -> Option<Self> {
        if let Some(every) = schedule.every {
            let ms = i64::try_from(every.as_millis()).ok().filter(|ms| *ms > 0)?;
            return Some(Self::Every { ms });
        }
        let cron = Box::new(cron_of(schedule.cron.as_deref()?).ok()?);
        let zone = zone_of(schedule.timezone.as_deref().unwrap_or("UTC"))?;
        Some(Self::Cron { cron, zone })
    }

    /// Its first time after this one. Times are in milliseconds since 1970.
    pub(super) fn next_after(&self, at_ms: i64) -> Option<i64> {
        match self {
            Self::Every { ms } => at_ms.div_euclid(*ms).checked_add(1)?.checked_mul(*ms),
            Self::Cron { cron, zone } => {
                let found = cron.find_next_occurrence(&whole_second(at_ms, zone)?, false);
                Some(found.ok()?.timestamp().as_millisecond())
            }
        }
    }

    /// Its last time that is not after this one.
    pub(super) fn latest(&self, at_ms: i64) -> Option<i64> {
        match self {
            Self::Every { ms } => at_ms.div_euclid(*ms).checked_mul(*ms),
            Self::Cron { cron, zone } => {
                let found = cron.find_previous_occurrence(&whole_second(at_ms, zone)?, true);
                Some(found.ok()?.timestamp().as_millisecond())
            }
        }
    }
}

/// No time of a cron pattern is between two seconds.
fn whole_second(at_ms: i64, zone: &TimeZone) -> Option<Zoned> {
    let at = Timestamp::from_second(at_ms.div_euclid(1000)).ok()?;
    Some(at.to_zoned(zone.clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    pub(super) fn rhythm(cron: &str, zone: Option<&str>) -> Rhythm {
        let (cron, timezone) = (Some(cron.to_owned()), zone.map(str::to_owned));
        Rhythm::of(&Schedule { cron, timezone, ..Schedule::default() }).unwrap()
    }

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn told(ms: Option<i64>) -> String {
        ms.map_or_else(String::new, |ms| Timestamp::from_millisecond(ms).unwrap().to_string())
    }

    #[test]
    fn times_are_found() {
        let berlin = Some("Europe/Berlin");
        for (cron, zone, at, latest, next) in [
            (
                "30 6 * * *",
                None,
                "2026-01-01T06:30:00Z",
                "2026-01-01T06:30:00Z",
                "2026-01-02T06:30:00Z",
            ),
            (
                "30 6 * * *",
                None,
                "2026-01-01T06:29:59.999Z",
                "2025-12-31T06:30:00Z",
                "2026-01-01T06:30:00Z",
            ),
            (
                "30 6 * * *",
                None,
                "2026-01-01T06:30:00.5Z",
                "2026-01-01T06:30:00Z",
                "2026-01-02T06:30:00Z",
            ),
            (
                "30 6 * * *",
                berlin,
                "2026-01-01T06:00:00Z",
                "2026-01-01T05:30:00Z",
                "2026-01-02T05:30:00Z",
            ),
            (
                "30 6 * * *",
                berlin,
                "2026-07-01T06:00:00Z",
                "2026-07-01T04:30:00Z",
                "2026-07-02T04:30:00Z",
            ),
            (
                "0 9 * * MON-FRI",
                None,
                "2026-01-03T00:00:00Z",
                "2026-01-02T09:00:00Z",
                "2026-01-05T09:00:00Z",
            ),
            (
                "0 0 29 2 *",
                None,
                "2026-01-01T00:00:00Z",
                "2024-02-29T00:00:00Z",
                "2028-02-29T00:00:00Z",
            ),
        ] {
            let rhythm = rhythm(cron, zone);
            let found = (told(rhythm.latest(ms(at))), told(rhythm.next_after(ms(at))));
            assert_eq!(found, (latest.to_owned(), next.to_owned()), "{cron} in {zone:?} at {at}");
        }
        let never = rhythm("0 0 30 2 *", None);
        assert_eq!((never.next_after(0), never.latest(0)), (None, None));
    }

    #[test]
    fn a_time_that_a_clock_skips_or_repeats_is_one_time() {
        let rhythm = rhythm("30 2 * * *", Some("Europe/Berlin"));
        // Clocks go from 2 to 3 on March 29th, and from 3 to 2 on October 25th.
        for (from, to, count) in [
            ("2026-03-27T12:00:00Z", "2026-03-31T12:00:00Z", 4),
            ("2026-10-23T12:00:00Z", "2026-10-27T12:00:00Z", 4),
        ] {
            let (mut at, mut times) = (ms(from), Vec::new());
            while let Some(next) = rhythm.next_after(at).filter(|next| *next <= ms(to)) {
                times.push(told(Some(next)));
                at = next;
            }
            assert_eq!(times.len(), count, "{times:?}");
        }
    }

    #[test]
    fn multiples_are_counted_from_1970() {
        let every = Some(Duration::from_secs(300));
        let rhythm = Rhythm::of(&Schedule { every, ..Schedule::default() }).unwrap();
        let at = ms("2026-01-01T00:07:00Z");
        assert_eq!(told(rhythm.latest(at)), "2026-01-01T00:05:00Z");
        assert_eq!(told(rhythm.next_after(at)), "2026-01-01T00:10:00Z");
        assert_eq!(told(rhythm.next_after(ms("2026-01-01T00:10:00Z"))), "2026-01-01T00:15:00Z");
    }

    proptest! {
        #[test]
        fn time_goes_on(
            at in 0..4_000_000_000_000_i64,
            cron in prop::sample::select(vec!["* * * * *", "*/7 3 * * *", "30 2 * * *", "15 0 1 * *", "0 12 * * 7"]),
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
        ) {
            let rhythm = rhythm(cron, Some(zone));
            let (latest, next) = (rhythm.latest(at).unwrap(), rhythm.next_after(at).unwrap());
            prop_assert!(latest <= at && at < next, "{latest} {at} {next}");
            prop_assert_eq!(rhythm.next_after(latest), Some(next));
            prop_assert_eq!(rhythm.latest(next), Some(next));
            prop_assert_eq!(rhythm.latest(next - 1), Some(latest));
        }
    }
}
