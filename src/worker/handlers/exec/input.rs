//! What an `exec` task asks for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::guard::Command;
use crate::handler::parse_input;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    argv: Vec<String>,
    stdin: Option<Box<RawValue>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
}

/// A checked input.
pub(super) struct Input {
    pub(super) command: Command,
    stdin: Option<Box<RawValue>>,
}

impl Input {
    /// The error names the field.
    pub(super) fn read(input: &RawValue) -> Result<Self, String> {
        let Fields { argv, stdin, env, cwd } = parse_input(input)?;
        if argv.first().is_none_or(String::is_empty) {
            return Err("input.argv: must hold at least a program".into());
        }
        if let Some(index) = argv.iter().position(|argument| argument.contains('\0')) {
            return Err(format!("input.argv[{index}]: must not hold a zero byte"));
        }
        for (name, value) in &env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("input.env: {name:?} is not a name of a variable"));
            }
            if value.contains('\0') {
                return Err(format!("input.env.{name}: must not hold a zero byte"));
            }
        }
        if cwd.as_ref().is_some_and(|cwd| cwd.is_empty() || cwd.contains('\0')) {
            return Err("input.cwd: is not a path".into());
        }
        Ok(Self { command: Command { argv, env, without: Vec::new(), cwd }, stdin })
    }

    /// A string as it is, anything else as the JSON that was submitted.
    pub(super) fn stdin_bytes(&self) -> Option<Vec<u8>> {
        let json = self.stdin.as_ref()?.get();
        Some(match serde_json::from_str::<String>(json) {
            Ok(text) => text.into_bytes(),
            Err(_) => json.as_bytes().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::handlers::testing::raw;

    #[test]
    fn errors_name_the_field() {
        for (input, reason) in [
            ("{}", "missing field `argv`"),
            (r#"{"argv":"ls -l"}"#, "input.argv: invalid type: string"),
            (r#"{"argv":["ls",3]}"#, "input.argv[1]: invalid type: integer `3`"),
            (r#"{"argv":[]}"#, "input.argv: must hold at least a program"),
            (r#"{"argv":[""]}"#, "input.argv: must hold at least a program"),
            (r#"{"argv":["a","b\u0000"]}"#, "input.argv[1]: must not hold a zero byte"),
            (r#"{"argv":["a"],"env":{"A=B":"c"}}"#, "input.env: \"A=B\" is not a name"),
            (r#"{"argv":["a"],"env":{"A":1}}"#, "input.env.A: invalid type"),
            (r#"{"argv":["a"],"env":{"A":"\u0000"}}"#, "input.env.A: must not hold a zero byte"),
            (r#"{"argv":["a"],"cwd":""}"#, "input.cwd: is not a path"),
            (r#"{"argv":["a"],"shell":true}"#, "unknown field `shell`"),
        ] {
            let error = Input::read(&raw(input)).err().unwrap();
            assert!(error.contains(reason), "{input}: {error}");
        }
    }

    #[test]
    fn stdin_is_text_or_json() {
        for (stdin, bytes) in [
            (r#""a\n\"b\"""#, Some("a\n\"b\"")),
            (r#"{"b": 1,  "a":[2]}"#, Some(r#"{"b": 1,  "a":[2]}"#)),
            ("3", Some("3")),
            (r#""""#, Some("")),
            ("null", None),
        ] {
            let input = Input::read(&raw(format!(r#"{{"argv":["a"],"stdin":{stdin}}}"#))).unwrap();
            assert_eq!(input.stdin_bytes(), bytes.map(|bytes| bytes.as_bytes().to_vec()));
        }
    }
}
