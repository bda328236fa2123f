//! How long a server asks us to stay away, by the headers of its answer. Pure.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Longest wait that a provider may ask one task for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest time that an answer closes its provider to everybody: one wrong header must not cost a
/// day.
pub(super) const CLOSED_MAX: Duration = Duration::from_secs(60 * 60);
/// A plain number above this is no number of seconds to wait (some servers send a time of day).
const RESET_S_MAX: f64 = 7.0 * 24.0 * 60.0 * 60.0;

/// How long the provider asks us to wait, by the headers that OpenAI's own client reads.
pub(in crate::worker::handlers) fn retry_after(
    headers: &HeaderMap,
    now: Timestamp,
) -> Option<Duration> {
    let seconds = |text: &str, unit: f64| Some(text.parse::<f64>().ok()? / unit);
    let wait_s = header(headers, "retry-after-ms")
        .and_then(|text| seconds(text, 1000.0))
        .or_else(|| seconds(header(headers, RETRY_AFTER.as_str())?, 1.0))
        .or_else(|| {
            let date = header(headers, RETRY_AFTER.as_str())?;
            let parser = jiff::fmt::rfc2822::DateTimeParser::new();
            let until = parser.parse_timestamp(date).ok()?;
            Some(until.duration_since(now).as_secs_f64())
        })?;
    // Negative, infinite and not-a-number waits are none.
    Some(Duration::try_from_secs_f64(wait_s).ok()?.min(RETRY_AFTER_MAX))
}

/// How long nobody should call the provider: as long as a 429 or 503 says, and, after any answer,
/// until it has requests and tokens to give again. At most [`CLOSED_MAX`].
pub(in crate::worker::handlers) fn closed_for(
    status: StatusCode,
    headers: &HeaderMap,
    now: Timestamp,
) -> Option<Duration> {
    let full = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
    let asked = if full { retry_after(headers, now) } else { None };
    let spent = ["requests", "tokens"].into_iter().filter_map(|what| reset(headers, what));
    asked.into_iter().chain(spent).max().map(|wait| wait.min(CLOSED_MAX))
}

/// When there is more of `what`, if there is none left.
fn reset(headers: &HeaderMap, what: &str) -> Option<Duration> {
    let remaining = header(headers, &format!("x-ratelimit-remaining-{what}"))?;
    if remaining.parse::<f64>().ok()? > 0.0 {
        return None;
    }
    duration(header(headers, &format!("x-ratelimit-reset-{what}"))?)
}

/// A time such as `6m0s`, `1.5s`, `20ms`, or a number of seconds.
fn duration(text: &str) -> Option<Duration> {
    let total_s = match text.parse::<f64>() {
        Ok(number) => Some(number).filter(|number| *number <= RESET_S_MAX),
        Err(_) => sum_of_units(text),
    };
    // Negative, infinite and not-a-number times are none.
    Duration::try_from_secs_f64(total_s?).ok()
}

fn sum_of_units(mut text: &str) -> Option<f64> {
    let mut total_s = 0.0;
    loop {
        let digits = text.find(|char: char| !(char.is_ascii_digit() || char == '.'))?;
        let (number, rest) = text.split_at(digits);
        let unit = rest.find(|char: char| char.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit);
        let unit_s = match unit {
            "d" => 86400.0,
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total_s += number.parse::<f64>().ok()? * unit_s;
        if rest.is_empty() {
            return Some(total_s);
        }
        text = rest;
    }
}

/// A header's value as text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}

#[cfg(test)]
mod tests {
    use super::super::tests::headers;
    use super::*;

    #[test]
    fn waits_are_read_in_every_form() {
        for (name, value, wait_s) in [
            ("retry-after", "2", Some(2.0)),
            ("retry-after", "1.5", Some(1.5)),
            ("retry-after", "Thu, 01 Jan 1970 00:00:30 GMT", Some(30.0)),
            ("retry-after", "Wed, 31 Dec 1969 23:59:30 GMT", None),
            ("retry-after-ms", "300", Some(0.3)),
            ("retry-after", "99999999999", Some(86400.0)),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "inf", None),
            ("retry-after", "soon", None),
        ] {
            let wait = retry_after(&headers(&[(name, value)]), Timestamp::UNIX_EPOCH);
            assert_eq!(wait.map(|wait| wait.as_secs_f64()), wait_s, "{name}: {value}");
        }
        let both = headers(&[("retry-after", "9"), ("retry-after-ms", "1000")]);
        assert_eq!(retry_after(&both, Timestamp::UNIX_EPOCH), Some(Duration::from_secs(1)));
    }

    #[test]
    fn resets_are_read_in_every_form() {
        for (text, wait_s) in [
            ("1s", Some(1.0)),
            ("6m0s", Some(360.0)),
            ("20ms", Some(0.02)),
            ("1.5s", Some(1.5)),
            ("1h2m3s", Some(3723.0)),
            ("1d", Some(86400.0)),
            ("1m30.5s", Some(90.5)),
            ("12", Some(12.0)),
            ("0.5", Some(0.5)),
            ("", None),
            ("s", None),
            ("5 s", None),
            ("1s2", None),
            ("-1", None),
            ("-1s", None),
            ("1..5s", None),
            ("NaN", None),
            ("soon", None),
            // Seconds since 1970.
            ("1700000000", None),
        ] {
            assert_eq!(duration(text).map(|wait| wait.as_secs_f64()), wait_s, "{text}");
        }
    }

    #[test]
    fn a_provider_is_closed_when_it_says_so() {
        let requests = |remaining, reset| {
            [("x-ratelimit-remaining-requests", remaining), ("x-ratelimit-reset-requests", reset)]
        };
        let tokens = [("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "9s")];
        let both = [requests("0", "2s"), tokens].concat();
        let all = [both.as_slice(), &[("retry-after", "20")]].concat();
        let wait = [("retry-after", "20")];
        for (status, pairs, wait_s) in [
            (200, &[][..], None),
            (200, &wait, None),
            (429, &wait, Some(20)),
            (503, &wait, Some(20)),
            (500, &wait, None),
            (200, &requests("0", "6m0s"), Some(360)),
            (200, &requests("1", "6m0s"), None),
            (429, &requests("1", "6m0s"), None),
            (200, &requests("0", "soon"), None),
            (200, &tokens, Some(9)),
            (400, &both, Some(9)),
            (429, &all, Some(20)),
            (429, &[("retry-after", "86400")], Some(3600)),
            (200, &requests("0", "30h"), Some(3600)),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let closed = closed_for(status, &headers(pairs), Timestamp::UNIX_EPOCH);
            assert_eq!(closed, wait_s.map(Duration::from_secs), "{status} {pairs:?}");
        }
    }
}
