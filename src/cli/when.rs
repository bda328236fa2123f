//! Times as users write them.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::config;

/// A length of time like `10s`, `1h30m` or `500ms`, in milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let duration = config::parse_duration(text)?;
    u64::try_from(duration.as_millis()).map_err(|error| error.to_string())
}

/// A moment in RFC 3339, in milliseconds since 1970.
pub(crate) fn moment_ms(text: &str) -> Result<i64, String> {
    let moment: Timestamp = text.parse().map_err(|_| {
        format!("'{text}' is not a moment with its zone: write it like 2030-01-31T08:00:00Z")
    })?;
    Ok(moment.as_millisecond())
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// A UTC day like `2030-01-31`, since 1970.
pub(crate) fn day(text: &str) -> Result<i64, String> {
    // jiff would take a whole moment, and drop its time.
    let date =
        Some(text).filter(|text| text.len() == 10).and_then(|text| text.parse::<Date>().ok());
    let midnight = date.and_then(|date| date.to_zoned(TimeZone::UTC).ok());
    let midnight = midnight.ok_or_else(|| {
        format!("'{text}' is not a day: write it like 2030-01-31, or like 7d for the last seven")
    })?;
    Ok(day_of(midnight.timestamp().as_millisecond()))
}

/// The UTC day of a moment, since 1970.
pub(crate) fn day_of(ms: i64) -> i64 {
    ms.div_euclid(86_400_000)
}

/// The moment that is `ms` after `start_ms`.
pub(crate) fn after(start_ms: i64, ms: u64) -> i64 {
    start_ms.saturating_add_unsigned(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_bounded() {
        let good =
            [("10s", 10_000), ("1h30m", 5_400_000), ("500ms", 500), ("0s", 0), ("1.5s", 1_500)];
        for (text, ms) in good {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for (text, reason) in [
            ("-5s", "negative"),
            ("10", "not a duration"),
            ("", "not a duration"),
            ("soon", "not a duration"),
            ("99999999h", "ten years"),
        ] {
            let error = duration_ms(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn moments_have_a_zone() {
        assert_eq!(moment_ms("1970-01-01T00:00:01Z"), Ok(1_000));
        assert_eq!(moment_ms("1970-01-01T01:00:00+01:00"), Ok(0));
        for text in ["tomorrow", "2030-01-31T08:00:00", ""] {
            assert!(moment_ms(text).is_err(), "{text}");
        }
    }
}
