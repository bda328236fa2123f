//! A definition as JSON in the order of its file: which step is the last of it matters.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Value};

/// A definition, or a part of it at a path.
pub(super) struct Ordered<'a> {
    value: &'a Value,
    path: String,
    /// The line of each path, if the definition came from a file.
    lines: Option<&'a Map<String, Value>>,
}

impl<'a> Ordered<'a> {
    pub(super) fn new(definition: &'a Value) -> Self {
        Self { value: definition, path: String::new(), lines: lines_of(definition) }
    }

    fn at(&self, name: &str, value: &'a Value) -> Self {
        match lines_of(value) {
            // A file within counts its own lines.
            Some(lines) => Self { value, path: String::new(), lines: Some(lines) },
            None => {
                let path = if self.path.is_empty() {
                    name.to_owned()
                } else {
                    format!("{}.{name}", self.path)
                };
                Self { value, path, lines: self.lines }
            }
        }
    }
}

fn lines_of(definition: &Value) -> Option<&Map<String, Value>> {
    definition.get("source")?.get("lines")?.as_object()
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Object(object) => {
                let line = |part: &Self| {
                    let line = self.lines.and_then(|lines| lines.get(&part.path));
                    line.and_then(Value::as_u64)
                };
                let mut parts: Vec<_> =
                    object.iter().map(|(name, value)| (name, self.at(name, value))).collect();
                // What has no line, such as a file within, keeps its name's order.
                parts.sort_by_key(|(_, part)| line(part));
                let mut map = serializer.serialize_map(Some(parts.len()))?;
                for (name, part) in parts {
                    map.serialize_entry(name, &part)?;
                }
                map.end()
            }
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for (index, item) in items.iter().enumerate() {
                    list.serialize_element(&self.at(&format!("[{index}]"), item))?;
                }
                list.end()
            }
            plain => plain.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_stand_as_in_their_file() {
        let definition = json!({
            "name": "x",
            "source": { "lines": { "name": 1, "steps": 2, "steps.b": 2, "steps.b.kind": 3, "steps.a": 4 } },
            "steps": { "a": { "kind": "noop" }, "b": { "kind": "noop" } },
        });
        let text = serde_json::to_string(&Ordered::new(&definition)).unwrap();
        assert!(text.contains(r#""steps":{"b":{"kind":"noop"},"a":{"kind":"noop"}}"#), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), definition);
    }
}
