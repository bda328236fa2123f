//! The sections `[[schedule]]`: tasks that are submitted by the clock.

use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::units::{DurationText, OptionalDurationText};

/// Reads a cron pattern of five fields, or a nickname such as `@daily`.
pub(super) fn cron_of(text: &str) -> Result<Cron, CronError> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(text)
}

/// The time zone of a name, from the database inside this program: the same on every machine.
pub(super) fn zone_of(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok()
}

/// A task that is submitted by the clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Its name, which no other schedule has.
    pub name: String,
    /// When, as five fields: minute, hour, day of the month, month, day of the week. Exactly one
    /// of this and `every` must be set.
    #[schemars(with = "String")]
    pub cron: Option<String>,
    /// The time zone of `cron`, such as `Europe/Berlin`; absent: UTC.
    #[schemars(with = "String")]
    pub timezone: Option<String>,
    /// The time from one submission to the next. Exactly one of this and `cron` must be set.
    #[serde(with = "OptionalDurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub every: Option<Duration>,
    /// The kind of the task.
    pub kind: String,
    /// The task's input: this table as a JSON object.
    #[schemars(with = "serde_json::Map<String, Json>")]
    pub input: Json,
    /// The task's queue; absent: the default one.
    #[schemars(with = "String")]
    pub queue: Option<String>,
    /// The task's priority, 0 to 9, 9 first; absent: the default one.
    #[schemars(with = "u8")]
    pub priority: Option<u8>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            name: String::new(),
            cron: None,
            timezone: None,
            every: None,
            kind: "chat".to_owned(),
            input: Json::Object(serde_json::Map::new()),
            queue: None,
            priority: None,
        }
    }
}
