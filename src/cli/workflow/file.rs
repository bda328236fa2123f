//! One workflow file as JSON, with the line on which each text of it begins.

use std::path::Path;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::cli::CliError;

/// Reads a file. The line of each text is kept under `source`, for errors about templates.
pub(super) fn read(path: &Path) -> Result<Value, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::invalid(format!("cannot read {}: {error}", path.display())))?;
    let name = path.display().to_string();
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&text)
            .map_err(|error| CliError::invalid(format!("{name}: not JSON: {error}")));
    }
    let table = DeTable::parse(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(&text, span.start));
        CliError::invalid(format!("{name}:{line}: {}", error.message()))
    })?;
    let mut lines = Map::new();
    let mut value = value_of_table(table.get_ref(), &text, "", &mut lines);
    if let Value::Object(definition) = &mut value {
        let source = serde_json::json!({ "file": name, "lines": lines });
        definition.insert("source".to_owned(), source);
    }
    Ok(value)
}

fn value_of_table(
    table: &DeTable<'_>,
    text: &str,
    path: &str,
    lines: &mut Map<String, Value>,
) -> Value {
    let entries = table.iter().map(|(key, value)| {
        let key = key.get_ref().as_ref();
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        (key.to_owned(), value_of(value, text, &path, lines))
    });
    Value::Object(entries.collect())
}

fn value_of(
    value: &Spanned<DeValue<'_>>,
    text: &str,
    path: &str,
    lines: &mut Map<String, Value>,
) -> Value {
    let start = value.span().start;
    lines.insert(path.to_owned(), first_line(text, start).into());
    match value.get_ref() {
        DeValue::String(string) => Value::String(string.to_string()),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(number.as_str(), number.radix());
            parsed.map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Boolean(boolean) => Value::Bool(*boolean),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => {
            let items = items.iter().enumerate();
            let items =
                items.map(|(index, item)| value_of(item, text, &format!("{path}[{index}]"), lines));
            Value::Array(items.collect())
        }
        DeValue::Table(table) => value_of_table(table, text, path, lines),
    }
}

/// The line of a value's first character: of a text in three quotes the first after the break that
/// TOML leaves out.
fn first_line(text: &str, start: usize) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    let breaks = [r#"""""#, "'''"].iter().any(|quotes| {
        rest.strip_prefix(quotes)
            .is_some_and(|rest| rest.starts_with('\n') || rest.starts_with("\r\n"))
    });
    line_at(text, start) + usize::from(breaks)
}

fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}
