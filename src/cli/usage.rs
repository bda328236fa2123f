//! `forq usage`: what calls took, and what they cost.

use clap::Args;
use comfy_table::{Cell, CellAlignment};
use serde_json::Value;

use super::client::unexpected;
use super::out::Out;
use super::{CliError, Exit, Globals, when};
use crate::protocol::control::{Reply, Request, UsageBy};

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// A row for each provider, model, agent, queue or day; may be given several times
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', default_value = "provider,model")]
    by: Vec<UsageBy>,
    /// From this UTC day on (2030-01-31), or so many days with today (7d)
    #[arg(long, value_name = "DAY", value_parser = since, default_value = "7d")]
    since: Since,
}

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// This day, since 1970.
    Day(i64),
    /// So many days, today included.
    Last(i64),
}

impl Since {
    fn day(self, today: i64) -> i64 {
        match self {
            Since::Day(day) => day,
            Since::Last(days) => today - (days - 1),
        }
    }
}

/// The columns of numbers, with the words that JSON uses.
const NUMBERS: [(&str, &str); 6] = [
    ("CALLS", "calls"),
    ("FAILED", "failed"),
    ("CACHED", "cached"),
    ("TOKENS IN", "tokens_in"),
    ("TOKENS OUT", "tokens_out"),
    ("COST", "cost"),
];

pub(crate) fn run(args: UsageArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    let since_day = args.since.day(when::day_of(when::now_ms()));
    let request = Request::Usage { since_day, by: args.by.clone() };
    let document = match globals.connect()?.call(&request)? {
        Reply::Json { document } => document,
        other => return Err(unexpected(&other)),
    };
    if out.json {
        out.line(document.get())?;
        return Ok(Exit::Done as u8);
    }
    let usage: Value = serde_json::from_str(document.get())
        .map_err(|error| CliError::internal(format!("cannot read the daemon's usage: {error}")))?;
    print(&args.by, &usage, out)?;
    Ok(Exit::Done as u8)
}

fn print(by: &[UsageBy], usage: &Value, out: &mut Out) -> Result<(), CliError> {
    let mut names: Vec<&str> = Vec::new();
    for column in by {
        if !names.contains(&column.as_str()) {
            names.push(column.as_str());
        }
    }
    let heads: Vec<String> = names.iter().map(|name| name.to_uppercase()).collect();
    let header: Vec<&str> =
        heads.iter().map(String::as_str).chain(NUMBERS.map(|(head, _)| head)).collect();
    let rows = usage["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let mut lines: Vec<Vec<Cell>> = rows
        .iter()
        .map(|row| names.iter().map(|name| named(&row[*name])).chain(numbers(row)).collect())
        .collect();
    let words = std::iter::once("total").chain(std::iter::repeat("")).take(names.len());
    lines.push(words.map(Cell::new).chain(numbers(&usage["total"])).collect());
    out.table(&header, lines)?;
    if usage["more"] == true {
        out.note("hint: there are more rows: ask by fewer columns, or for fewer days");
    }
    let budgets = usage["budgets"].as_array().map_or(&[][..], Vec::as_slice);
    if !budgets.is_empty() {
        out.line("")?;
        out.table(&["BUDGET", "SPENT TODAY (UTC)", "LIMIT"], budgets.iter().map(budget))?;
    }
    Ok(())
}

fn budget(budget: &Value) -> Vec<Cell> {
    vec![
        named(&budget["key"]),
        Cell::new(money(&budget["spent"])).set_alignment(CellAlignment::Right),
        Cell::new(money(&budget["limit"])).set_alignment(CellAlignment::Right),
    ]
}

/// A name; tasks without an agent have none.
fn named(value: &Value) -> Cell {
    let name = value.as_str().unwrap_or_default();
    Cell::new(if name.is_empty() { "-" } else { name })
}

fn numbers(row: &Value) -> impl Iterator<Item = Cell> {
    NUMBERS.into_iter().map(|(_, name)| {
        let shown = match name {
            "cost" => money(&row[name]),
            _ => row[name].as_u64().unwrap_or(0).to_string(),
        };
        Cell::new(shown).set_alignment(CellAlignment::Right)
    })
}

/// An amount to a ten-thousandth: a call may cost less than a cent.
fn money(value: &Value) -> String {
    format!("{:.4}", value.as_f64().unwrap_or(0.0))
}

/// Reads `7d` or `2030-01-31`.
fn since(text: &str) -> Result<Since, String> {
    if let Some(days) = text.strip_suffix('d').and_then(|days| days.parse::<u16>().ok()) {
        return match days {
            0 => Err("0d is no day: 1d is today".to_owned()),
            days => Ok(Since::Last(days.into())),
        };
    }
    when::day(text).map(Since::Day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fake::{Act, FakeDaemon};
    use serde_json::json;

    #[test]
    fn a_day_or_so_many_days_are_read() {
        for (text, day) in
            [("1d", 100), ("7d", 94), ("1970-01-02", 1), ("1969-12-31", -1), ("2000-03-01", 11_017)]
        {
            assert_eq!(since(text).map(|since| since.day(100)), Ok(day), "{text}");
        }
        for text in ["0d", "d", "-1d", "7", "7h", "today", "2000-02-30", "2000-03-01T00:00:00Z"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn usage_asks_by_columns_from_a_day_on() {
        let document = r#"{"since":"1970-01-03","rows":[],"total":{"calls":7,"cost":1.5}}"#;
        let daemon = FakeDaemon::new(move |_, request| {
            let Request::Usage { since_day: 2, by } = request else { panic!("{request:?}") };
            assert_eq!(by, [UsageBy::Queue, UsageBy::Day]);
            let document = serde_json::value::RawValue::from_string(document.to_owned()).unwrap();
            vec![Act::Reply(Reply::Json { document })]
        });
        let state_dir = Some(daemon.instance.state_dir.clone());
        let globals = Globals { state_dir, ..Globals::default() };
        let told = |json: bool| {
            let (mut data, mut notes) = (Vec::new(), Vec::new());
            let mut out = Out::into(&mut data, &mut notes, json);
            let args = UsageArgs { by: vec![UsageBy::Queue, UsageBy::Day], since: Since::Day(2) };
            assert_eq!(run(args, &globals, &mut out).unwrap(), 0);
            drop(out);
            String::from_utf8(data).unwrap()
        };
        assert!(told(false).starts_with("QUEUE  DAY  CALLS"), "{}", told(false));
        assert_eq!(told(true), format!("{document}\n"));
    }

    #[test]
    fn people_see_a_table_with_its_total() {
        let row = |day: &str, agent: &str, calls: u64, cost: f64| {
            json!({ "day": day, "agent": agent, "calls": calls, "failed": 1, "cached": 2,
                    "tokens_in": 3, "tokens_out": 4, "cost": cost })
        };
        let usage = json!({
            "since": "2026-01-02",
            "rows": [row("2026-01-02", "host", 10, 1.5), row("2026-01-03", "", 2, 0.00004)],
            "total": row("", "", 12, 1.50004),
            "budgets": [{ "key": "agents.host.daily_budget", "limit": 5.0, "spent": 1.5 }],
        });
        let (mut data, mut notes) = (Vec::new(), Vec::new());
        let mut out = Out::into(&mut data, &mut notes, false);
        print(&[UsageBy::Day, UsageBy::Agent, UsageBy::Day], &usage, &mut out).unwrap();
        drop(out);
        let data = String::from_utf8(data).unwrap();
        let lines: Vec<Vec<&str>> =
            data.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["DAY", "AGENT", "CALLS", "FAILED"]);
        assert_eq!(lines[1], ["2026-01-02", "host", "10", "1", "2", "3", "4", "1.5000"]);
        assert_eq!(lines[2], ["2026-01-03", "-", "2", "1", "2", "3", "4", "0.0000"]);
        assert_eq!(lines[3], ["total", "12", "1", "2", "3", "4", "1.5000"]);
        assert_eq!(lines[5][0], "BUDGET");
        assert_eq!(lines[6], ["agents.host.daily_budget", "1.5000", "5.0000"]);
        assert!(notes.is_empty());
    }
}
