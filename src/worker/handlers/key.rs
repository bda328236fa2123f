//! Keys under which equal requests find each other's answers: the same in each process and build.
//! Pure.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Half a SHA-256.
pub(super) fn half_digest(text: &str) -> u128 {
    let digest = Sha256::digest(text);
    digest.iter().take(16).fold(0, |key, byte| key << 8 | u128::from(*byte))
}

/// Writes JSON with sorted keys, whatever order the build's maps have.
pub(super) fn write_in_order(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_unstable_by_key(|(name, _)| *name);
            out.push('{');
            for (name, value) in fields {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_in_order(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_in_order(item, out);
                out.push(',');
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}
