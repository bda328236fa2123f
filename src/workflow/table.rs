//! Reading the tables of a definition: every mistake is noted, and reading goes on.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::limits::ENTRIES_MAX;
use super::problem::Problem;
use crate::config::suggest::nearest;

/// A table in the order of the file, its values not yet read.
pub(super) struct Table<'a> {
    pub(super) path: String,
    entries: Vec<(String, &'a RawValue)>,
}

impl<'a> Table<'a> {
    /// Reads one, of which nothing but `known` keys is allowed.
    pub(super) fn read(
        path: &str,
        raw: &'a RawValue,
        known: &[&str],
        problems: &mut Vec<Problem>,
    ) -> Self {
        let table = Self::named(path, raw, problems);
        for (name, _) in &table.entries {
            if !known.contains(&name.as_str()) {
                let why = match nearest(name, known) {
                    Some(meant) => format!("unknown key; did you mean {meant}?"),
                    None => format!("unknown key; allowed here: {}", known.join(", ")),
                };
                problems.push(Problem::new(table.at(name), why));
            }
        }
        table
    }

    /// Reads one whose keys are names that the writer chose.
    pub(super) fn named(path: &str, raw: &'a RawValue, problems: &mut Vec<Problem>) -> Self {
        let entries = match serde_json::from_str::<Entries<'a>>(raw.get()) {
            Ok(Entries(entries)) => entries,
            Err(_) => {
                problems.push(Problem::new(path, "must be a table"));
                Vec::new()
            }
        };
        let mut table = Self { path: path.to_owned(), entries };
        let count = table.entries.len();
        if count > ENTRIES_MAX {
            // Who reads them compares each with all.
            let why = format!("has {count} entries: at most {ENTRIES_MAX} are allowed");
            problems.push(Problem::new(path, why));
            table.entries.truncate(ENTRIES_MAX);
        }
        let mut names: Vec<&str> = table.entries.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        for (name, next) in names.iter().zip(names.iter().skip(1)) {
            if name == next {
                problems.push(Problem::new(table.at(name), "is given twice"));
            }
        }
        table
    }

    /// The path of a key.
    pub(super) fn at(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.entries.iter().map(|(name, raw)| (name.as_str(), *raw))
    }

    /// The value of a key; a null counts for nothing.
    pub(super) fn get(&self, key: &str) -> Option<&'a RawValue> {
        let (_, raw) = self.entries.iter().find(|(name, _)| name == key)?;
        (raw.get() != "null").then_some(*raw)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn text(&self, key: &str, problems: &mut Vec<Problem>) -> Option<String> {
        self.typed(key, "text", problems)
    }

    /// A list of names; `what` says so.
    pub(super) fn names(
        &self,
        key: &str,
        what: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<String>> {
        let names: Vec<String> = self.typed(key, what, problems)?;
        if names.len() <= ENTRIES_MAX {
            return Some(names);
        }
        let why = format!("has {} entries: at most {ENTRIES_MAX} are allowed", names.len());
        problems.push(Problem::new(self.at(key), why));
        None
    }

    /// A whole number from `min` to `max`.
    pub(super) fn whole(
        &self,
        key: &str,
        (min, max): (u64, u64),
        problems: &mut Vec<Problem>,
    ) -> Option<u64> {
        let what = format!("a whole number from {min} to {max}");
        let number = self.typed::<u64>(key, &what, problems)?;
        if (min..=max).contains(&number) {
            return Some(number);
        }
        problems.push(Problem::new(self.at(key), format!("{number}: must be {what}")));
        None
    }

    /// A value that `T` can be read from; `what` says what that is.
    pub(super) fn typed<T: Deserialize<'a>>(
        &self,
        key: &str,
        what: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        match serde_json::from_str(self.get(key)?.get()) {
            Ok(value) => Some(value),
            Err(_) => {
                problems.push(Problem::new(self.at(key), format!("must be {what}")));
                None
            }
        }
    }

    /// Any value.
    pub(super) fn value(&self, key: &str, problems: &mut Vec<Problem>) -> Option<Value> {
        self.typed(key, "JSON of bounded depth", problems)
    }

    /// Notes each of `keys` that is there: it is not wanted, and why.
    pub(super) fn refuse(&self, keys: &[&str], why: &str, problems: &mut Vec<Problem>) {
        for key in keys.iter().filter(|key| self.has(key)) {
            problems.push(Problem::new(self.at(key), why));
        }
    }
}

struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        from.deserialize_map(InOrder)
    }
}
