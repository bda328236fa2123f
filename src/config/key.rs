//! A key's name: the parts between the dots.

use std::fmt;

/// A key or a section, from the top: `queues.tenant-a.weight`. The empty one is the whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Vec<String>);

impl Key {
    /// The key of a dotted text whose parts have no dots in them.
    pub(super) fn dotted(text: &str) -> Self {
        Self(text.split('.').map(str::to_owned).collect())
    }

    /// The key of parts that may hold anything.
    pub(super) fn of(parts: Vec<String>) -> Self {
        Self(parts)
    }

    /// What stands in this section under `name`.
    pub(super) fn child(&self, name: &str) -> Self {
        let mut parts = self.0.clone();
        parts.push(name.to_owned());
        Self(parts)
    }

    /// The section that it stands in.
    pub(super) fn parent(&self) -> Self {
        let mut parts = self.0.clone();
        parts.pop();
        Self(parts)
    }

    /// The last part.
    pub(super) fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }

    /// All parts.
    pub(super) fn parts(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Key {
    /// As in TOML: a part that is not bare is quoted, and stays on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            if !part.is_empty() && part.bytes().all(bare) {
                f.write_str(part)?;
            } else {
                write!(f, "{part:?}")?;
            }
        }
        Ok(())
    }
}
