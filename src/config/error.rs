//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    #[default]
    Default,
    /// A line of the file, from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// An option on the command line.
    Flag {
        /// Its name, such as `--min-workers`.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{} line {line}", path.display()),
            Origin::Env { name } => write!(f, "environment {}", name.escape_debug()),
            Origin::Flag { name } => f.write_str(name),
        }
    }
}

/// One thing that is wrong with the configuration: one sentence that says where, which key,
/// what was found, and what is allowed or what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{} line {line}, column {column}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key holds what it may not hold, or contradicts another.
    #[error("{}", place_of(origin, key, found.as_deref(), reason))]
    Value {
        /// Where the value came from.
        origin: Origin,
        /// The key.
        key: String,
        /// The value, as TOML; absent where it might be a secret.
        found: Option<String>,
        /// What is allowed, or what to do.
        reason: String,
    },
    /// A key or section that is unknown or missing, or a variable that cannot be read.
    #[error("{origin}: {reason}")]
    Key {
        /// Where it stands.
        origin: Origin,
        /// The key and what is wrong with it.
        reason: String,
    },
}

/// `forq.toml line 3: workers.max = 0: must be …`, but `--max-workers 0: must be …`.
fn place_of(origin: &Origin, key: &str, found: Option<&str>, reason: &str) -> String {
    match (origin, found) {
        (Origin::Flag { name }, Some(found)) => format!("{name} {found}: {reason}"),
        (_, Some(found)) => format!("{origin}: {key} = {found}: {reason}"),
        (_, None) => format!("{origin}: {key} {reason}"),
    }
}

impl ConfigError {
    pub(super) fn key(origin: &Origin, reason: String) -> Self {
        ConfigError::Key { origin: origin.clone(), reason }
    }

    pub(super) fn value(
        origin: &Origin,
        key: impl fmt::Display,
        value: &toml::Value,
        reason: String,
    ) -> Self {
        let found = Some(one_line(value));
        ConfigError::Value { origin: origin.clone(), key: key.to_string(), found, reason }
    }

    pub(super) fn secret(origin: &Origin, key: impl fmt::Display, reason: String) -> Self {
        ConfigError::Value { origin: origin.clone(), key: key.to_string(), found: None, reason }
    }
}

/// Everything that is wrong with a configuration, in the order of the layers; never empty. It
/// prints one error a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines_of(errors))]
pub struct ConfigErrors {
    /// The errors.
    pub errors: Vec<ConfigError>,
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self { errors: vec![error] }
    }
}

fn lines_of(errors: &[ConfigError]) -> String {
    errors.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("\n")
}

/// A value as TOML, on one line and of bounded length.
pub(super) fn one_line(value: &toml::Value) -> String {
    if let Some(text) = value.as_str() {
        return super::units::quote(text);
    }
    const CHARS_MAX: usize = 120;
    let text = value.to_string();
    let mut line: String = text.chars().take(CHARS_MAX).flat_map(escape_control).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

fn escape_control(c: char) -> impl Iterator<Item = char> {
    let (plain, escaped) =
        if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escaped.into_iter().flatten())
}
