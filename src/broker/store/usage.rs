//! The accounts as people see them, read from the database.

use std::borrow::Cow;

use rusqlite::{Connection, Row};
use serde_json::{Map, Value, json};

use super::view::rfc3339;
use crate::broker::budget::DAY_MS;
use crate::protocol::control::UsageBy;

/// The most rows that are told at once.
const ROWS_MAX: usize = 10_000;

const SUMS: &str = "coalesce(sum(calls), 0), coalesce(sum(failed), 0), coalesce(sum(cached), 0), \
                    coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0), \
                    coalesce(sum(cost), 0.0)";

/// The document of `forq usage`, but for the budgets: what calls took since a day, by these
/// columns in this order. `more` says that rows were left out; the total has all.
pub(crate) fn document(
    db: &Connection,
    since_day: i64,
    by: &[UsageBy],
) -> rusqlite::Result<Map<String, Value>> {
    let mut columns: Vec<UsageBy> = Vec::new();
    for column in by {
        if !columns.contains(column) {
            columns.push(*column);
        }
    }
    let mut rows = if columns.is_empty() { Vec::new() } else { rows(db, since_day, &columns)? };
    let more = rows.len() > ROWS_MAX;
    rows.truncate(ROWS_MAX);
    let sql = format!("SELECT {SUMS} FROM usage WHERE day >= ?1");
    let total = db.query_row(&sql, [since_day], |row| sums(row, 0))?;
    let mut document = Map::new();
    document.insert("since".to_owned(), json!(date(since_day)));
    document.insert("rows".to_owned(), rows.into());
    document.insert("more".to_owned(), more.into());
    document.insert("total".to_owned(), total.into());
    Ok(document)
}

fn rows(db: &Connection, since_day: i64, by: &[UsageBy]) -> rusqlite::Result<Vec<Value>> {
    let names: Vec<_> = by.iter().map(|column| column.as_str()).collect();
    let columns = names.join(", ");
    let sql = format!(
        "SELECT {columns}, {SUMS} FROM usage WHERE day >= ?1
         GROUP BY {columns} ORDER BY {columns} LIMIT {}",
        ROWS_MAX + 1
    );
    let mut query = db.prepare(&sql)?;
    let found = query.query_map([since_day], |row| {
        let mut object = Map::new();
        for (place, column) in by.iter().enumerate() {
            let value: Cow<'_, str> = match column {
                UsageBy::Day => date(row.get(place)?).into(),
                _ => row.get::<_, String>(place)?.into(),
            };
            object.insert(column.as_str().to_owned(), json!(value));
        }
        object.extend(sums(row, by.len())?);
        Ok(Value::Object(object))
    })?;
    found.collect()
}

/// The sums whose columns begin at `first`.
fn sums(row: &Row<'_>, first: usize) -> rusqlite::Result<Map<String, Value>> {
    let mut sums = Map::new();
    for (place, name) in
        ["calls", "failed", "cached", "tokens_in", "tokens_out"].into_iter().enumerate()
    {
        sums.insert(name.to_owned(), json!(row.get::<_, i64>(first + place)?));
    }
    sums.insert("cost".to_owned(), json!(rounded(row.get(first + 5)?)));
    Ok(sums)
}

/// Sums of costs without the noise of their last bits.
pub(crate) fn rounded(cost: f64) -> f64 {
    (cost * 1e9).round() / 1e9
}

/// A day since 1970 as `2026-01-31`.
fn date(day: i64) -> String {
    rfc3339(day.saturating_mul(DAY_MS)).chars().take(10).collect()
}
