//! From text to settings: the file, the environment and the command line, one layer over the
//! other, each value with the place that it came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Value};

use super::error::{ConfigError, Origin};
use super::items::check_items;
use super::key::Key;
use super::kind::{Kind, check_name};
use super::rules::{Rule, children};
use super::suggest::unknown;

/// An option on the command line that sets a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// The key, dotted: `workers.min`.
    pub key: String,
    /// The value, as it would stand in the file.
    pub value: Value,
    /// The option, as the user typed it: `--min-workers`.
    pub flag: String,
}

/// A value of one layer, before anything is known about its key.
pub(super) enum Node {
    Leaf(Value),
    List(Vec<(Origin, Node)>),
    Table(Vec<(String, Origin, Node)>),
}

/// What all layers together say, by key. Only values that their rules take are in it.
#[derive(Default)]
pub(super) struct Settings {
    /// The values.
    pub(super) values: BTreeMap<Key, (Value, Origin)>,
    /// The sections that were written, also empty ones, and where first.
    pub(super) sections: BTreeMap<Key, Origin>,
    /// Where each item of an array of sections begins.
    pub(super) items: BTreeMap<Key, Vec<Origin>>,
    /// The keys that hold something bad: told already, so not to be missed as well.
    pub(super) refused: Vec<Key>,
}

impl Settings {
    /// A value and its origin.
    pub(super) fn get(&self, key: &Key) -> Option<&(Value, Origin)> {
        self.values.get(key)
    }

    /// Lays the file over what is there.
    pub(super) fn add_file(&mut self, path: &Path, text: &str, errors: &mut Vec<ConfigError>) {
        /// One slip can make a parser trip many times; more than this helps nobody.
        const SYNTAX_ERRORS_MAX: usize = 10;
        let lines = Lines::of(path, text);
        let (table, bad) = DeTable::parse_recoverable(text);
        if bad.is_empty() {
            let node = lines.node_of_table(table.into_inner());
            self.add(&Key::default(), &Origin::Default, node, errors);
        }
        errors.extend(bad.iter().take(SYNTAX_ERRORS_MAX).map(|error| lines.syntax(error)));
    }

    /// Lays the environment over what is there: every `FORQ_SECTION__KEY`. A variable without
    /// `__` is none of ours.
    pub(super) fn add_env(&mut self, env: &[(String, String)], errors: &mut Vec<ConfigError>) {
        let env: BTreeMap<_, _> = env.iter().map(|(name, text)| (name, text)).collect();
        for (name, text) in env {
            let Some(rest) = name.strip_prefix("FORQ_").filter(|rest| rest.contains("__")) else {
                continue;
            };
            let parts = rest.split("__").map(str::to_ascii_lowercase).collect();
            let key = Key::of(parts);
            let value = value_of_env(&key, text);
            self.add_at(&key, &Origin::Env { name: name.clone() }, value, errors);
        }
    }

    /// Lays the command line over what is there.
    pub(super) fn add_flags(&mut self, flags: &[Override], errors: &mut Vec<ConfigError>) {
        for flag in flags {
            let origin = Origin::Flag { name: flag.flag.clone() };
            self.add_at(&Key::dotted(&flag.key), &origin, flag.value.clone(), errors);
        }
    }

    fn add_at(&mut self, key: &Key, origin: &Origin, value: Value, errors: &mut Vec<ConfigError>) {
        let inner = node_of_value(value, origin);
        let node =
            key.parts().iter().rev().fold(inner, |inner, part| {
                Node::Table(vec![(part.clone(), origin.clone(), inner)])
            });
        self.add(&Key::default(), origin, node, errors);
    }

    /// Checks what stands at `key` and takes it in.
    fn add(&mut self, key: &Key, origin: &Origin, node: Node, errors: &mut Vec<ConfigError>) {
        if let Some(rule) = Rule::of(key) {
            if let (Kind::Items(rules), Node::List(items)) = (rule.kind, &node) {
                let bad = check_items(key, items, rules);
                if !bad.is_empty() {
                    errors.extend(bad);
                    self.refused.push(key.clone());
                    return;
                }
                let origins = items.iter().map(|(origin, _)| origin.clone()).collect();
                self.items.insert(key.clone(), origins);
            }
            let value = value_of_node(&node);
            match rule.kind.check(&value) {
                Ok(()) => {
                    self.values.insert(key.clone(), (value, origin.clone()));
                    return;
                }
                Err(reason) if rule.kind.may_show() => {
                    errors.push(ConfigError::value(origin, key, &value, reason));
                }
                Err(reason) => errors.push(ConfigError::secret(origin, key, reason)),
            }
            self.refused.push(key.clone());
            return;
        }
        let Node::Table(entries) = node else {
            let reason = format!("{key} must be a section: write [{key}] and its keys below");
            errors.push(ConfigError::key(origin, reason));
            return;
        };
        if !key.parts().is_empty() {
            self.sections.entry(key.clone()).or_insert_with(|| origin.clone());
        }
        let known = children(key);
        for (name, origin, node) in entries {
            let child = key.child(&name);
            if known.contains(&"*") {
                if let Err(reason) = check_name(key.last(), &name) {
                    errors.push(ConfigError::key(
                        &origin,
                        format!("the name {child} must be {reason}"),
                    ));
                    continue;
                }
            } else if !known.contains(&name.as_str()) {
                errors.push(ConfigError::key(&origin, unknown(&child, &name, &known)));
                continue;
            }
            self.add(&child, &origin, node, errors);
        }
    }
}

/// What a variable holds: TOML if its key takes that, else the text as it stands.
fn value_of_env(key: &Key, text: &str) -> Value {
    let plain = Value::String(text.to_owned());
    let Ok(value) = ValueDeserializer::parse(text).and_then(Value::deserialize) else {
        return plain;
    };
    match Rule::of(key) {
        Some(rule) if rule.kind.check(&value).is_err() && rule.kind.check(&plain).is_ok() => plain,
        _ => value,
    }
}

fn node_of_value(value: Value, origin: &Origin) -> Node {
    match value {
        Value::Table(table) => Node::Table(
            table
                .into_iter()
                .map(|(name, value)| (name, origin.clone(), node_of_value(value, origin)))
                .collect(),
        ),
        Value::Array(items) => Node::List(
            items.into_iter().map(|item| (origin.clone(), node_of_value(item, origin))).collect(),
        ),
        leaf => Node::Leaf(leaf),
    }
}

pub(super) fn value_of_node(node: &Node) -> Value {
    match node {
        Node::Leaf(value) => value.clone(),
        Node::List(items) => {
            Value::Array(items.iter().map(|(_, node)| value_of_node(node)).collect())
        }
        Node::Table(entries) => Value::Table(
            entries.iter().map(|(name, _, node)| (name.clone(), value_of_node(node))).collect(),
        ),
    }
}

/// A file, and where its lines begin.
struct Lines<'a> {
    path: PathBuf,
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(path: &Path, text: &'a str) -> Self {
        let after = text.match_indices('\n').map(|(at, _)| at + 1);
        let starts = std::iter::once(0).chain(after).collect();
        Self { path: path.to_owned(), text, starts }
    }

    /// The line of an offset, from 1.
    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset)
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.clone(), line: self.line(offset) }
    }

    /// The column of an offset, from 1, in characters.
    fn column(&self, offset: usize) -> usize {
        let start = self.starts.get(self.line(offset) - 1).copied().unwrap_or(0);
        self.text.get(start..offset).map_or(1, |before| before.chars().count() + 1)
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let offset = error.span().map_or(0, |span| span.start);
        ConfigError::Syntax {
            path: self.path.clone(),
            line: self.line(offset),
            column: self.column(offset),
            reason: error.message().replace('\n', ", "),
        }
    }

    fn node_of_table(&self, table: DeTable<'_>) -> Node {
        let entry = |(name, value): (Spanned<std::borrow::Cow<'_, str>>, Spanned<DeValue<'_>>)| {
            let origin = self.origin(name.span().start);
            (name.into_inner().into_owned(), origin, self.node(value))
        };
        let mut entries: Vec<_> = table.into_iter().map(entry).collect();
        entries.sort_by(|(_, a, _), (_, b, _)| a.cmp(b));
        Node::Table(entries)
    }

    fn node(&self, value: Spanned<DeValue<'_>>) -> Node {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => self.node_of_table(table),
            DeValue::Array(items) => Node::List(
                items
                    .into_iter()
                    .map(|item| (self.origin(item.span().start), self.node(item)))
                    .collect(),
            ),
            leaf => {
                let written = ValueDeserializer::from(Spanned::new(span.clone(), leaf));
                // It fails for a whole number beyond 64 bits: as a float, no rule takes it.
                let value = Value::deserialize(written);
                Node::Leaf(value.unwrap_or_else(|_| Value::Float(self.float_at(span))))
            }
        }
    }

    fn float_at(&self, span: std::ops::Range<usize>) -> f64 {
        let text = self.text.get(span).unwrap_or_default().replace('_', "");
        text.parse().unwrap_or(f64::NAN)
    }
}
