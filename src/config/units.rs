//! Durations and byte sizes as people write them, and their way back to text.

use std::borrow::Cow;
use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

/// The longest duration that is taken seriously: ten years of 365 days.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Units of time, largest first, in nanoseconds.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Units of size. The binary ones come first: they are the ones that are printed.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a duration such as `250ms`, `30s`, `10m`, `1h30m` or `2d`; a day has 24 hours.
///
/// The error is one sentence that quotes the text and says what is allowed: it must have a unit,
/// must not be negative, and must not pass [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    duration_of(text).map_err(|reason| format!("{} {reason}", quote(text)))
}

/// [`parse_duration`], with an error that begins after the quoted text.
pub(super) fn duration_of(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str =
        "is not a duration: write a number and its unit, such as 250ms, 30s, 10m, 1h30m or 2d";
    let span: Span = text.trim().parse().map_err(|_| FORM)?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| FORM)?;
    if signed < SignedDuration::ZERO {
        return Err("is negative: a duration must be 0s or more");
    }
    let duration = signed.unsigned_abs();
    if duration > DURATION_MAX {
        return Err("is too long: at most 3650d (ten years)");
    }
    Ok(duration)
}

/// Writes a duration so that [`parse_duration`] reads the same back: `1h30m`, `250ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    for (unit, nanos) in TIME_UNITS {
        let count = rest / nanos;
        rest %= nanos;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a size such as `512MiB`, `1GB` or `65536` (bytes); the error begins after the quoted
/// text.
pub(super) fn bytes_of(text: &str) -> Result<u64, &'static str> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let factor = match unit {
        "" => Some(1),
        _ => SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|&(_, n)| n),
    };
    match (number.parse::<u64>(), factor) {
        (Ok(number), Some(factor)) => number
            .checked_mul(factor)
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or("is too large"),
        _ => Err("is not a size: write a number and its unit, such as 64KiB, 512MiB or 1GB"),
    }
}

/// Writes a size so that [`bytes_of`] reads the same back, in the largest unit that is exact.
pub(super) fn format_bytes(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    match unit {
        Some((name, size)) => format!("{}{name}", bytes / size),
        None => format!("{bytes}B"),
    }
}

/// A stranger's text in quotes, on one line and of bounded length.
pub(super) fn quote(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut short: String = text.chars().take(CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// For `#[serde(with)]`: a [`Duration`] that is text in files. Serves the JSON Schema as well.
pub(super) struct DurationText;

impl DurationText {
    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_duration(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        parse_duration(&text).map_err(D::Error::custom)
    }
}

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["250ms", "30s", "1h30m", "2d"] })
    }
}

/// For `#[serde(with)]`: a [`Duration`] that may be absent, where there is a default.
pub(super) struct OptionalDurationText;

impl OptionalDurationText {
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => DurationText::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        DurationText::deserialize(from).map(Some)
    }
}

/// For `#[serde(with)]`: a size in bytes that is text or a plain number in files.
pub(super) struct SizeText;

impl SizeText {
    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_bytes(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(from)? {
            Written::Number(bytes) => Ok(bytes),
            Written::Text(text) => bytes_of(&text).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for SizeText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "examples": ["512MiB", "1GB", 65536] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read() {
        let table = [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            (" 2d ", 172_800_000),
            ("1.5s", 1_500),
            ("3650d", 315_360_000_000),
        ];
        for (text, millis) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn durations_are_refused() {
        let form =
            "is not a duration: write a number and its unit, such as 250ms, 30s, 10m, 1h30m or 2d";
        for text in ["", "10", "s", "ten seconds", "1mo", "1y", "30 s s", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), Err(format!("{text:?} {form}")));
        }
        assert_eq!(
            parse_duration("-5s"),
            Err("\"-5s\" is negative: a duration must be 0s or more".to_owned())
        );
        assert_eq!(
            parse_duration("3651d"),
            Err("\"3651d\" is too long: at most 3650d (ten years)".to_owned())
        );
    }

    #[test]
    fn sizes_are_read_and_refused() {
        let table = [("0", 0), ("65536", 65_536), ("512MiB", 512 << 20), ("1GB", 1_000_000_000)];
        for (text, bytes) in table {
            assert_eq!(bytes_of(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "1 elephant", "99999999TiB"] {
            assert!(bytes_of(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_read_back_as_written(millis in 0..=315_360_000_000_u64, nanos in 0..1_000_000_u64) {
            let duration = (Duration::from_millis(millis) + Duration::from_nanos(nanos)).min(DURATION_MAX);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn sizes_read_back_as_written(bytes in 0..=i64::MAX as u64, shift in 0..40_u32) {
            let bytes = bytes >> shift << shift;
            prop_assert_eq!(bytes_of(&format_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (parse_duration(&text), bytes_of(&text));
        }
    }
}
