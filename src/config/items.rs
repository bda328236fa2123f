//! Arrays of sections, such as `[[schedule]]`: each item is checked by the rules of its own, and
//! each mistake told with the line of its item.

use super::error::{ConfigError, Origin};
use super::key::Key;
use super::layers::{Node, value_of_node};
use super::rules::Rule;
use super::suggest::unknown;

/// What is wrong with the items of the array at `key`.
pub(super) fn check_items(
    key: &Key,
    items: &[(Origin, Node)],
    rules: &'static [Rule],
) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    for (index, (origin, node)) in items.iter().enumerate() {
        let item = format!("{key}[{index}]");
        let Node::Table(entries) = node else {
            let reason = format!("{item} must be a section: write [[{key}]] and its keys below");
            errors.push(ConfigError::key(origin, reason));
            continue;
        };
        for (name, origin, node) in entries {
            errors.extend(check_entry(&item, name, origin, node, rules));
        }
        for rule in rules.iter().filter(|rule| rule.required) {
            if !entries.iter().any(|(name, ..)| name == rule.pattern) {
                let reason = format!(
                    "{item}.{} is missing: it must be {}",
                    rule.pattern,
                    rule.kind.allowed()
                );
                errors.push(ConfigError::key(origin, reason));
            }
        }
    }
    errors
}

fn check_entry(
    item: &str,
    name: &str,
    origin: &Origin,
    node: &Node,
    rules: &'static [Rule],
) -> Option<ConfigError> {
    let key = format!("{item}.{}", Key::of(vec![name.to_owned()]));
    let Some(rule) = rules.iter().find(|rule| rule.pattern == name) else {
        let known: Vec<_> = rules.iter().map(|rule| rule.pattern).collect();
        return Some(ConfigError::key(origin, unknown(key, name, &known)));
    };
    let value = value_of_node(node);
    let reason = rule.kind.check(&value).err()?;
    Some(ConfigError::value(origin, key, &value, reason))
}
