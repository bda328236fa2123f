//! Which fault a request meets: by its model's name, or by the option for all of them. Pure.

use std::fmt::Write;
use std::str::FromStr;

/// What a model's name begins with when it asks for a fault.
const MODEL_PREFIX: &str = "fault-";

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "KNOWN says what each does, where users can read it")]
pub enum Fault {
    RateLimit,
    RateLimitRetryAfter,
    ServerError,
    BadRequest,
    Unauthorized,
    Hang,
    HangMidStream,
    CutMidStream,
    SplitUtf8,
    GarbageJson,
    BigChunk,
    SlowDrip,
    WrongContentType,
    Redirect,
    Endless,
    ProseForJson,
}

/// Every fault, its name, and what it does.
const KNOWN: [(Fault, &str, &str); 16] = [
    (Fault::RateLimit, "429", "status 429 that does not say when to come back"),
    (Fault::RateLimitRetryAfter, "429-retry-after", "status 429 with Retry-After: 1"),
    (Fault::ServerError, "500", "status 500"),
    (Fault::BadRequest, "400", "status 400"),
    (Fault::Unauthorized, "401", "status 401"),
    (Fault::Hang, "hang", "no headers, ever"),
    (Fault::HangMidStream, "hang-mid-stream", "headers and half of the answer, then silence"),
    (Fault::CutMidStream, "cut-mid-stream", "half of the answer, then the connection is cut"),
    (Fault::SplitUtf8, "split-utf8", "right, but each write ends inside a character"),
    (Fault::GarbageJson, "garbage-json", "an event in the middle, or the body, is no JSON"),
    (Fault::BigChunk, "big-chunk", "right, but its text is one piece of 10 MB"),
    (Fault::SlowDrip, "slow-drip", "right, but one byte every 20 ms"),
    (Fault::WrongContentType, "wrong-content-type", "status 200 and a page of HTML"),
    (Fault::Redirect, "redirect", "status 302 to a path where there is nothing"),
    (Fault::Endless, "endless", "text without an end, as fast as it is read"),
    (Fault::ProseForJson, "prose-for-json", "words where JSON is asked for, until that is said"),
];

/// The names of all faults with what they do, a line each.
pub(crate) fn list() -> String {
    KNOWN.iter().fold(String::new(), |mut list, (_, name, meaning)| {
        // Writing to a string cannot fail.
        let _ = writeln!(list, "  {name:<20}{meaning}");
        list
    })
}

/// A fault, and how many requests meet it: `NAME` or `NAME:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// What they meet.
    pub fault: Fault,
    /// Only the first so many meet it; `None`: all.
    pub first: Option<u64>,
}

impl FaultRule {
    /// The fault of the request that `earlier` others came before.
    fn for_request(self, earlier: u64) -> Option<Fault> {
        self.first.is_none_or(|first| earlier < first).then_some(self.fault)
    }
}

/// A rule that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// No fault has this name.
    #[error("there is no fault '{name}': take one of {names}", names = names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// What follows the colon is no number.
    #[error("'{count}' is no number of requests: give NAME or NAME:N")]
    Count {
        /// What was asked for.
        count: String,
    },
}

fn names() -> String {
    KNOWN.map(|(_, name, _)| name).join(", ")
}

impl FromStr for FaultRule {
    type Err = BadRule;

    fn from_str(rule: &str) -> Result<Self, BadRule> {
        let (name, count) = match rule.split_once(':') {
            Some((name, count)) => (name, Some(count)),
            None => (rule, None),
        };
        let known = KNOWN.iter().find(|(_, known, _)| *known == name);
        let (fault, ..) = known.ok_or_else(|| BadRule::Unknown { name: name.into() })?;
        let first = count
            .map(|count| count.parse().map_err(|_| BadRule::Count { count: count.into() }))
            .transpose()?;
        Ok(Self { fault: *fault, first })
    }
}

/// The fault that a request for `model` meets, which comes after `earlier` requests, of which
/// `earlier_of_model` were for the same model. A model that names a fault is not subject to the
/// rule for all.
pub(super) fn choose(
    for_all: Option<FaultRule>,
    earlier: u64,
    model: &str,
    earlier_of_model: u64,
) -> Result<Option<Fault>, BadRule> {
    match model.strip_prefix(MODEL_PREFIX) {
        Some(rule) => Ok(rule.parse::<FaultRule>()?.for_request(earlier_of_model)),
        None => Ok(for_all.and_then(|rule| rule.for_request(earlier))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_or_the_option_decides() {
        let rule = |text: &str| Some(text.parse::<FaultRule>().unwrap());
        let cases = [
            (None, 0, "any", 0, None),
            (None, 0, "fault-500", 0, Some(Fault::ServerError)),
            (None, 9, "fault-500", 9, Some(Fault::ServerError)),
            (None, 9, "fault-500:2", 1, Some(Fault::ServerError)),
            (None, 0, "fault-500:2", 2, None),
            (None, 0, "fault-500:0", 0, None),
            (None, 0, "default-500", 0, None),
            (rule("hang"), 7, "any", 3, Some(Fault::Hang)),
            (rule("hang:2"), 1, "any", 0, Some(Fault::Hang)),
            (rule("hang:2"), 2, "any", 0, None),
            (rule("hang"), 0, "fault-429:1", 0, Some(Fault::RateLimit)),
            (rule("hang"), 1, "fault-429:1", 1, None),
        ];
        for (for_all, earlier, model, earlier_of_model, expected) in cases {
            let chosen = choose(for_all, earlier, model, earlier_of_model);
            assert_eq!(chosen, Ok(expected), "{for_all:?}, {earlier}, {model}, {earlier_of_model}");
        }
    }

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        for (fault, name, _) in KNOWN {
            assert_eq!(name.parse(), Ok(FaultRule { fault, first: None }));
            assert!(list().contains(name));
        }
    }

    #[test]
    fn a_rule_that_is_none_is_explained() {
        for name in ["", "fault-500", "501", "Hang", "500 "] {
            let error = name.parse::<FaultRule>().unwrap_err();
            assert_eq!(error, BadRule::Unknown { name: name.into() });
            assert!(error.to_string().contains("429-retry-after"), "{error}");
        }
        for count in ["", "-1", "x", "1:2"] {
            let error = format!("500:{count}").parse::<FaultRule>().unwrap_err();
            assert_eq!(error, BadRule::Count { count: count.into() });
        }
        assert!(choose(None, 0, "fault-", 0).is_err());
    }
}
