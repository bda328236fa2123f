//! `--set`: values for a workflow's inputs.

use std::path::Path;

use serde_json::{Map, Value};

use crate::cli::{CliError, input};

/// Takes in one `NAME=VALUE`, `NAME=@FILE`, or `@FILE` with an object of them. A value is a text,
/// unless the input is declared as something else: then it is JSON.
pub(super) fn apply(
    inputs: &mut Map<String, Value>,
    set: &str,
    declared: Option<&Value>,
) -> Result<(), CliError> {
    if let Some(file) = set.strip_prefix('@') {
        let text = input::file_or_stdin(Path::new(file))?;
        let values: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
            CliError::invalid(format!("--set @{file}: not a JSON object: {error}"))
        })?;
        inputs.extend(values);
        return Ok(());
    }
    let Some((name, value)) = set.split_once('=') else {
        return Err(CliError::invalid(format!(
            "--set {set}: give NAME=VALUE, NAME=@FILE or @FILE"
        )));
    };
    let text = match value.strip_prefix('@') {
        Some(file) => input::file_or_stdin(Path::new(file))?,
        None => value.to_owned(),
    };
    let declared = declared.and_then(|declared| declared.get(name));
    let kind = declared.and_then(|input| input.get("type")).and_then(Value::as_str);
    let value = match kind {
        None | Some("string") => Value::String(text),
        Some(kind) => serde_json::from_str(&text).map_err(|error| {
            CliError::invalid(format!("--set {name}: must be JSON of type {kind}: {error}"))
        })?,
    };
    inputs.insert(name.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(text: &str) -> Result<Value, String> {
        let declared = json!({ "n": { "type": "integer" }, "l": { "type": "list" }, "t": {} });
        let mut inputs = Map::new();
        apply(&mut inputs, text, Some(&declared)).map_err(|error| error.message)?;
        Ok(inputs.into())
    }

    #[test]
    fn values_are_texts_unless_declared_otherwise() {
        assert_eq!(set("t=5"), Ok(json!({ "t": "5" })));
        assert_eq!(set("n=5"), Ok(json!({ "n": 5 })));
        assert_eq!(set("l=[1, 2]"), Ok(json!({ "l": [1, 2] })));
        assert_eq!(set("t=a=b"), Ok(json!({ "t": "a=b" })));
        assert_eq!(set("undeclared=x"), Ok(json!({ "undeclared": "x" })));
    }

    #[test]
    fn mistakes_name_the_option() {
        assert!(set("n=five").unwrap_err().starts_with("--set n: must be JSON of type integer"));
        assert!(set("n").unwrap_err().starts_with("--set n: give NAME=VALUE"));
        assert!(set("t=@/no/file").unwrap_err().contains("/no/file"));
    }

    #[test]
    fn files_give_texts_or_whole_objects() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("in.json");
        std::fs::write(&file, "{\"n\": 1, \"t\": \"x\"}").unwrap();
        let file = file.display();
        assert_eq!(set(&format!("@{file}")), Ok(json!({ "n": 1, "t": "x" })));
        assert_eq!(set(&format!("t=@{file}")), Ok(json!({ "t": "{\"n\": 1, \"t\": \"x\"}" })));
    }
}
