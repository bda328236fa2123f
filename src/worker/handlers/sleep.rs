//! `sleep` {seconds} → {}: holds a slot and no CPU. For benchmarks and probes.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::handler::{Context, Handler, HandlerError, HandlerFuture, Output, parse_input};
use crate::task::empty_object;

/// A day. Whoever wants to wait longer wants `--delay`, which holds no slot.
const SECONDS_MAX: f64 = 86_400.0;

/// The kind `sleep`.
pub(crate) struct Sleep;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    seconds: f64,
}

fn read(input: &RawValue) -> Result<Duration, String> {
    let Input { seconds } = parse_input(input)?;
    if (0.0..=SECONDS_MAX).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("input.seconds: {seconds} is not between 0 and {SECONDS_MAX}"))
    }
}

impl Handler for Sleep {
    fn check(&self, input: &RawValue) -> Result<(), String> {
        read(input).map(drop)
    }

    fn run(&self, _context: Context, input: Box<RawValue>) -> HandlerFuture {
        Box::pin(async move {
            tokio::time::sleep(read(&input).map_err(HandlerError::input)?).await;
            Ok(Output { json: empty_object(), usage: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handlers::testing::{check, run};

    #[test]
    fn refuses_what_is_no_time() {
        for (input, reason) in [
            ("{}", "missing field `seconds`"),
            (r#"{"seconds":-0.1}"#, "input.seconds: -0.1 is not between 0 and 86400"),
            (r#"{"seconds":86400.1}"#, "input.seconds: 86400.1 is not"),
            (r#"{"seconds":1e999}"#, "out of range"),
            (r#"{"seconds":"1"}"#, "input.seconds: invalid type"),
            (r#"{"seconds":1,"minutes":1}"#, "unknown field `minutes`"),
        ] {
            let error = check(&Sleep, input).unwrap_err();
            assert!(error.contains(reason), "{input}: {error}");
        }
        assert_eq!(check(&Sleep, r#"{"seconds":0}"#), Ok(()));
        assert_eq!(check(&Sleep, r#"{"seconds":86400}"#), Ok(()));
    }

    #[tokio::test]
    async fn sleeps_as_long_as_asked() {
        let start = std::time::Instant::now();
        assert_eq!(run(&Sleep, r#"{"seconds":0.05}"#).await.unwrap(), serde_json::json!({}));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }
}
