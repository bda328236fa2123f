//! `forq scale`: how many workers there should be, until the next reload.

use std::str::FromStr;

use clap::Args;
use uuid::Uuid;

use super::client::unexpected;
use super::out::Out;
use super::{CliError, Exit, Globals};
use crate::protocol::control::{Reply, Request};
use crate::protocol::lifeline::Resize;

/// Workers at most; as `workers.max` in the configuration.
const WORKERS_MAX: u32 = 1024;

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// N: exactly so many; +N, -N: so many more or fewer than there should be now
    #[arg(value_name = "N|+N|-N", allow_hyphen_values = true)]
    size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Size(Resize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, resize): (&str, fn(u32) -> Resize) = match text.as_bytes().first() {
            Some(b'+') => (&text[1..], Resize::More),
            Some(b'-') => (&text[1..], Resize::Fewer),
            _ => (text, Resize::To),
        };
        let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        match digits.parse() {
            Ok(count @ 1..=WORKERS_MAX) if all_digits => Ok(Self(resize(count))),
            Ok(0) if text == "0" => Err("the pool cannot be scaled to 0: `forq queue pause` \
                                         holds the work, `workers.min = 0` lets an idle pool \
                                         shrink to nothing"
                .to_owned()),
            _ => Err(format!("must be N, +N or -N, with N from 1 to {WORKERS_MAX}")),
        }
    }
}

pub(crate) fn run(args: ScaleArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let request = Request::Scale { request: Uuid::now_v7(), size: args.size.0 };
    let want = match globals.connect()?.call(&request)? {
        Reply::Done { count } => count,
        other => return Err(unexpected(&other)),
    };
    if out.json {
        out.value(&serde_json::json!({ "want": want }))?;
    } else {
        let workers = if want == 1 { "worker" } else { "workers" };
        out.line(format_args!("{want} {workers} from now on, until the next reload"))?;
    }
    Ok(Exit::Done as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative_and_bounded() {
        let read = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(read("4"), Ok(Resize::To(4)));
        assert_eq!(read("+2"), Ok(Resize::More(2)));
        assert_eq!(read("-1"), Ok(Resize::Fewer(1)));
        assert!(read("0").is_err_and(|error| error.contains("forq queue pause")));
        for bad in ["", "+", "-", "+0", "-0", "1025", "+-1", "++1", "two", "1.5", "99999999999"] {
            assert!(read(bad).is_err_and(|error| error.contains("1 to 1024")), "{bad}");
        }
    }
}
