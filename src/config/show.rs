//! What `forq config show` and `forq config init` print.

use serde::Serialize;
use toml::{Table, Value};

use super::Loaded;
use super::error::Origin;
use super::key::Key;

/// One effective value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The dotted key.
    pub key: String,
    /// The value as TOML, on one line.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Every effective value and where it came from, by section, in the order of the keys. What is
/// not set and has no default is left out. No secret is among them: the configuration holds only
/// the names of the places where API keys are.
pub fn show(loaded: &Loaded) -> Vec<Shown> {
    let mut shown = Vec::new();
    // Strings, numbers and maps with text keys: this cannot fail, and then there is nothing.
    if let Ok(table) = Table::try_from(&loaded.config) {
        collect(loaded, &Key::default(), &table, &mut shown);
    }
    shown
}

fn collect(loaded: &Loaded, section: &Key, table: &Table, shown: &mut Vec<Shown>) {
    for (name, value) in table {
        let key = section.child(name);
        if let Value::Table(inner) = value {
            collect(loaded, &key, inner, shown);
            continue;
        }
        let key = key.to_string();
        let origin = loaded.origins.get(&key).cloned().unwrap_or_default();
        shown.push(Shown { key, value: toml_of(value), origin });
    }
}

/// A value as TOML, on one line.
fn toml_of(value: &Value) -> String {
    let mut text = String::new();
    match value.serialize(toml::ser::ValueSerializer::new(&mut text)) {
        Ok(_) => text,
        Err(_) => value.to_string(),
    }
}

/// A starter `forq.toml`: every key with its meaning and default, all commented out.
pub fn starter() -> &'static str {
    include_str!("starter.toml")
}
