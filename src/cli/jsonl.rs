//! A file of tasks, one a line: all of it is read and checked before any of it is sent.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::args::{TaskOptions, outside};
use super::{CliError, when};
use crate::handler::Needs;
use crate::handler::in_words;
use crate::task::{NewTask, TaskId, empty_object};

/// A task, and the line that it stands on.
#[derive(Debug)]
pub(crate) struct Numbered {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) task: NewTask,
}

/// A line as users write it: a [`NewTask`], with times for people besides those for programs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    id: TaskId,
    kind: String,
    #[serde(default = "empty_object")]
    input: Box<RawValue>,
    priority: Option<i64>,
    queue: Option<String>,
    lane: Option<String>,
    session: Option<String>,
    key: Option<String>,
    due_at_ms: Option<i64>,
    delay: Option<String>,
    at: Option<String>,
    expires_at_ms: Option<i64>,
    expires: Option<String>,
    timeout_ms: Option<u64>,
    timeout: Option<String>,
    max_attempts: Option<u32>,
}

impl Line {
    fn into_task(self, now_ms: i64) -> Result<NewTask, String> {
        let priority = match self.priority {
            Some(number) => match u8::try_from(number) {
                Ok(priority @ 0..=9) => Some(priority),
                _ => return Err(outside(number)),
            },
            None => None,
        };
        let later = |name: &str, text: Option<String>| match text {
            Some(text) => match when::duration_ms(&text) {
                Ok(ms) => Ok(Some(ms)),
                Err(error) => Err(format!("{name}: {error}")),
            },
            None => Ok(None),
        };
        let delay = later("delay", self.delay)?.map(|ms| when::after(now_ms, ms));
        let at = match self.at {
            Some(text) => Some(when::moment_ms(&text).map_err(|error| format!("at: {error}"))?),
            None => None,
        };
        let expires = later("expires", self.expires)?.map(|ms| when::after(now_ms, ms));
        let timeout = later("timeout", self.timeout)?;
        Ok(NewTask {
            id: self.id,
            kind: self.kind,
            input: self.input,
            priority,
            queue: self.queue,
            lane: self.lane,
            session: self.session,
            key: self.key,
            due_at_ms: only_one("due_at_ms, at, delay", [self.due_at_ms, at, delay])?,
            expires_at_ms: only_one("expires_at_ms, expires", [self.expires_at_ms, expires])?,
            timeout_ms: only_one("timeout_ms, timeout", [self.timeout_ms, timeout])?,
            max_attempts: self.max_attempts,
            needs: Needs::default(),
        })
    }
}

fn only_one<T, const N: usize>(names: &str, given: [Option<T>; N]) -> Result<Option<T>, String> {
    let mut given = given.into_iter().flatten();
    let first = given.next();
    if given.next().is_some() {
        return Err(format!("more than one of {names}"));
    }
    Ok(first)
}

/// Reads a whole file. `options` hold for each line that does not say otherwise. Blank lines are
/// passed over; the error names the first bad one.
pub(crate) fn read(
    text: &str,
    options: &TaskOptions,
    now_ms: i64,
) -> Result<Vec<Numbered>, CliError> {
    let mut tasks = Vec::new();
    for (index, text) in text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        let line = index + 1;
        let mut task = read_line(text)
            .and_then(|read| read.into_task(now_ms))
            .map_err(|error| bad_line(line, error))?;
        options.complete(&mut task, now_ms);
        tasks.push(Numbered { line, task });
    }
    Ok(tasks)
}

/// The error about one line.
pub(crate) fn bad_line(line: usize, reason: impl std::fmt::Display) -> CliError {
    CliError::invalid(format!("line {line}: {reason}"))
        .hint("nothing of the file was accepted: mend the line and submit the file again")
}

fn read_line(text: &str) -> Result<Line, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let line = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        let whole = error.to_string();
        // serde_json counts lines inside this one.
        let reason = in_words(whole.split(" at line ").next().unwrap_or(&whole));
        match path.as_str() {
            // "?": it broke off where no field is.
            "." | "?" => format!("{reason} (column {})", error.column()),
            path => format!("{path}: {reason}"),
        }
    })?;
    json.end().map_err(|error| format!("more after the task (column {})", error.column()))?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_000_000;

    fn one(line: &str) -> Result<NewTask, String> {
        match read(line, &TaskOptions::default(), NOW_MS) {
            Ok(mut tasks) => Ok(tasks.remove(0).task),
            Err(error) => Err(error.message),
        }
    }

    #[test]
    fn every_field_is_read() {
        let task =
            one(r#"{"kind":"chat","input":{"a": 1},"priority":9,"queue":"q","lane":"l","key":"k",
                "delay":"10s","expires":"1h","timeout":"60s","max_attempts":2}"#
                .replace('\n', " ")
                .as_str())
            .unwrap();
        assert_eq!((task.kind.as_str(), task.input.get()), ("chat", "{\"a\": 1}"));
        assert_eq!((task.priority, task.max_attempts), (Some(9), Some(2)));
        assert_eq!(task.due_at_ms, Some(NOW_MS + 10_000));
        assert_eq!(task.expires_at_ms, Some(NOW_MS + 3_600_000));
        assert_eq!(task.timeout_ms, Some(60_000));
        assert_eq!(one(r#"{"kind":"noop"}"#).unwrap().input.get(), "{}");
        assert_eq!(
            one(r#"{"kind":"noop","at":"1970-01-01T00:00:01Z"}"#).unwrap().due_at_ms,
            Some(1_000)
        );
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        let table = [
            ("nope", "line 1: expected ident (column 2)"),
            ("{}", "line 1: missing field `kind` (column 2)"),
            ("[1]", "line 1: "),
            (r#"{"kind":7}"#, "line 1: kind: invalid type: integer `7`, expected a string"),
            (r#"{"kind":"a""#, "line 1: EOF while parsing an object (column 11)"),
            (
                r#"{"kind":"a","priority":"x"}"#,
                "line 1: priority: invalid type: string \"x\", expected a whole number",
            ),
            (r#"{"kind":"a","priority":10}"#, "line 1: priority 10: must be 0 to 9"),
            (r#"{"kind":"a","priority":-1}"#, "line 1: priority -1: must be 0 to 9"),
            (r#"{"kind":"a","prioritty":1}"#, "unknown field `prioritty`"),
            (r#"{"kind":"a","delay":"-5s"}"#, "line 1: delay: \"-5s\" is negative"),
            (r#"{"kind":"a","delay":"5s","at":"1970-01-01T00:00:01Z"}"#, "more than one of"),
            (r#"{"kind":"a"} {"kind":"b"}"#, "line 1: more after the task (column 14)"),
        ];
        for (line, expected) in table {
            let message = one(line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }

    #[test]
    fn the_bad_line_is_named_among_good_and_blank_ones() {
        let text = format!("{}\n\n{{\"kind\":", "{\"kind\":\"noop\"}\n".repeat(15));
        let error = read(&text, &TaskOptions::default(), NOW_MS).unwrap_err();
        assert!(error.message.starts_with("line 18: kind: EOF"), "{error}");
    }

    #[test]
    fn options_hold_where_a_line_is_silent() {
        let options = TaskOptions {
            priority: Some(1),
            queue: Some("batch".to_owned()),
            delay: Some(5),
            lane: Some("all".to_owned()),
            ..TaskOptions::default()
        };
        let text = "{\"kind\":\"a\"}\n{\"kind\":\"b\",\"priority\":9,\"session\":\"s\"}\n";
        let tasks = read(text, &options, NOW_MS).unwrap();
        assert_eq!((tasks[0].task.priority, tasks[1].task.priority), (Some(1), Some(9)));
        assert_eq!(tasks[1].task.queue.as_deref(), Some("batch"));
        assert_eq!(tasks[0].task.due_at_ms, Some(NOW_MS + 5));
        assert_eq!(
            (tasks[0].task.lane.as_deref(), tasks[1].task.lane.as_deref()),
            (Some("all"), None)
        );
        assert_eq!(tasks[1].line, 2);
    }
}
