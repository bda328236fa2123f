//! The sections `[[schedule]]`: tasks that are submitted by the clock.

use std::time::Duration;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::units::{DurationText, OptionalDurationText};

/// Reads a cron pattern of five fields, or a nickname such as `@daily`.
pub(crate) fn cron_of(text: &str) -> Result<Cron, CronError> {
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(text)
}

/// The time zone of a name, from the database inside this program: the same on every machine.
pub(crate) fn zone_of(name: &str) -> Option<TimeZone> {
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

impl Schedule {
    /// Whether its cron pattern matches no date at all, such as the 30th of February.
    pub(super) fn never_fires(&self) -> bool {
        // Any day serves: the search goes on for thousands of years.
        let start = civil::date(2024, 1, 1).in_tz("UTC");
        let cron = self.cron.as_deref().map(cron_of);
        match (cron, start) {
            (Some(Ok(cron)), Ok(start)) => cron.find_next_occurrence(&start, true).is_err(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources, load, show};
    use proptest::prelude::*;
    use serde_json::json;

    fn loaded(text: &str) -> Result<Config, String> {
        let file = Some(("forq.toml".into(), text.to_owned()));
        let loaded = load(&Sources { file, ..Sources::default() });
        loaded.map(|loaded| loaded.config).map_err(|errors| errors.to_string())
    }

    #[test]
    fn schedules_are_read() {
        let text = "
            [[schedule]]
            name = 'warm-up'
            every = '5m'
            kind = 'http'
            input = { url = 'http://x', deep = [{ n = 1, f = 1.0, yes = true }] }
            queue = 'tenant-a'
            priority = 0
            [[schedule]]
            name = 'report'
            cron = '30 6 * * MON-FRI'
            timezone = 'Europe/Berlin'
            [schedule.input]
            prompt = 'Sum up the day.'";
        let config = loaded(text).unwrap();
        let [warm_up, report] = &config.schedule[..] else { unreachable!() };
        let expected = Schedule {
            name: "warm-up".to_owned(),
            every: Some(Duration::from_secs(300)),
            kind: "http".to_owned(),
            input: json!({ "url": "http://x", "deep": [{ "n": 1, "f": 1.0, "yes": true }] }),
            queue: Some("tenant-a".to_owned()),
            priority: Some(0),
            ..Schedule::default()
        };
        assert_eq!(warm_up, &expected);
        assert_eq!(report.kind, "chat");
        assert_eq!(report.timezone.as_deref(), Some("Europe/Berlin"));
        assert_eq!(report.input, json!({ "prompt": "Sum up the day." }));

        // What is shown of them is the same ones.
        let file = Some(("forq.toml".into(), text.to_owned()));
        let shown = show(&load(&Sources { file, ..Sources::default() }).unwrap());
        let shown = shown.iter().find(|shown| shown.key == "schedule").unwrap();
        assert_eq!(shown.origin.to_string(), "forq.toml line 2");
        let again = loaded(&format!("schedule = {}", shown.value)).unwrap();
        assert_eq!(again.schedule, config.schedule);
    }

    #[test]
    fn bad_schedules_are_told_with_their_item_and_line() {
        let table = [
            (
                "schedule = 3",
                "line 1: schedule = 3: must be an array of sections, each headed [[schedule]]",
            ),
            (
                "[schedule]\nname = 'a'",
                "line 1: schedule = { name = \"a\" }: must be an array of sections, each headed [[schedule]]",
            ),
            (
                "schedule = [1]",
                "line 1: schedule[0] must be a section: write [[schedule]] and its keys below",
            ),
            (
                "[[schedule]]\nname = 'a'\nevery = '1m'\ninput = {}\n[[schedule]]\nname = 'b'\ninput = {}\nevery = 3",
                "line 8: schedule[1].every = 3: must be a duration from \"1s\" to \"365d\"",
            ),
            (
                "[[schedule]]\nname = 'a'\ninput = {}\nevry = '1m'",
                "line 4: unknown key schedule[0].evry; did you mean every?",
            ),
            (
                "[[schedule]]\nevery = '1m'\ninput = {}",
                "line 1: schedule[0].name is missing: it must be a name: 1 to 64 of a-z, 0-9, _ and -",
            ),
            (
                "\n[[schedule]]\nname = 'a'\ninput = {}",
                "line 2: schedule[0] says no time: set one of cron and every",
            ),
            (
                "[[schedule]]\nname = 'a'\ninput = {}\nevery = '1m'\ncron = '@daily'",
                "line 1: schedule[0] has both cron and every: keep one of them",
            ),
            (
                "[[schedule]]\nname = 'a'\ninput = {}\nevery = '1m'\ntimezone = 'UTC'",
                "line 1: schedule[0] has a timezone, which only cron needs: remove it or use cron",
            ),
            (
                "[[schedule]]\nname = 'a'\ninput = {}\nevery = '1m'\n[[schedule]]\nname = 'a'\ninput = {}\nevery = '2m'",
                "line 5: schedule[1] has the name of schedule[0]: give it another",
            ),
            (
                "[[schedule]]\nname = 'a'\ninput = {}\ncron = '* * * * * *'",
                "line 4: schedule[0].cron = \"* * * * * *\": must be five fields (minute, hour, day of the month, month, day of the week), such as \"*/5 * * * *\"",
            ),
            (
                "[[schedule]]\nname = 'a'\ninput = {}\ncron = '@daily'\ntimezone = 'Europe/Atlantis'",
                "line 5: schedule[0].timezone = \"Europe/Atlantis\": must be a time zone of the IANA database, such as \"Europe/Berlin\"",
            ),
            (
                "[[schedule]]\nname = 'a'\nevery = '1m'\ninput = { at = 1979-05-27 }",
                "line 4: schedule[0].input = { at = 1979-05-27 }: must be a table that JSON can say: no dates, no nan, no inf",
            ),
            (
                "[[schedule]]\nname = 'a'\nevery = '1m'\ninput.x = [nan]",
                "line 4: schedule[0].input = { x = [nan] }: must be a table that JSON can say: no dates, no nan, no inf",
            ),
            (
                "[[schedule]]\nname = 'a'\nevery = '1m'\ninput = {}\nqueue = 'a b'\npriority = 10",
                "line 5: schedule[0].queue = \"a b\": must be the name of a queue: 1 to 64 of A-Z, a-z, 0-9, _ . : -\nforq.toml line 6: schedule[0].priority = 10: must be a whole number from 0 to 9",
            ),
        ];
        for (text, sentence) in table {
            assert_eq!(loaded(text), Err(format!("forq.toml {sentence}")), "for {text}");
        }
    }

    #[test]
    fn cron_patterns_of_five_fields() {
        for good in ["* * * * *", "*/5 9-17 * * 1-5", "0 0 1 JAN *", "30 6 * * MON-FRI", "@daily"] {
            assert!(cron_of(good).is_ok(), "{good}");
        }
        for bad in ["", "*", "* * * *", "61 * * * *", "* 24 * * *", "0 0 * * * 2030", "@noon", "x"]
        {
            assert!(cron_of(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_panics(text in "[0-9*/,#LW?@+A-Z -]{0,20}", noise in ".{0,20}") {
            for text in [text, noise] {
                let schedule = Schedule { cron: Some(text), ..Schedule::default() };
                let _ = schedule.never_fires();
            }
        }

        #[test]
        fn no_day_panics(minute in "[0-9*/,-]{1,4}", day in "[0-9*LW,-]{1,4}", month in "[0-9*,-]{1,4}", weekday in "[+]?[0-7*#L,-]{1,4}") {
            let cron = Some(format!("{minute} 0 {day} {month} {weekday}"));
            let _ = Schedule { cron, ..Schedule::default() }.never_fires();
        }

        #[test]
        fn no_zone_panics(name in ".{0,20}") {
            let _ = zone_of(&name);
        }
    }
}
