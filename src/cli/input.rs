//! What a user hands in: on the command line, in a file, or on stdin.

use std::io::Read;
use std::path::Path;

use serde_json::value::RawValue;

use super::CliError;
use crate::protocol::control::Hello;

/// A task's input: JSON, `@FILE`, or `-` for stdin.
pub(crate) fn json(argument: &str) -> Result<Box<RawValue>, CliError> {
    let (text, whence) = match argument.strip_prefix('@') {
        Some(file) => (from_file(Path::new(file))?, file),
        None if argument == "-" => (from_stdin()?, "stdin"),
        None => (argument.to_owned(), "input"),
    };
    serde_json::from_str(&text).map_err(|error| {
        let error = CliError::invalid(format!("{whence}: not JSON: {error}"));
        if whence == "input" {
            return error.hint("INPUT is JSON (a string needs its own quotes), @FILE, or -");
        }
        error
    })
}

/// A text: as it is, or `-` for stdin.
pub(crate) fn text(argument: String) -> Result<String, CliError> {
    if argument == "-" { from_stdin() } else { Ok(argument) }
}

/// A whole file, or stdin for `-`.
pub(crate) fn file_or_stdin(file: &Path) -> Result<String, CliError> {
    if file == Path::new("-") { from_stdin() } else { from_file(file) }
}

fn from_file(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file)
        .map_err(|error| CliError::invalid(format!("cannot read {}: {error}", file.display())))
}

fn from_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CliError::invalid(format!("cannot read stdin: {error}")))?;
    Ok(text)
}

/// Refuses an input that the daemon would not take, before it is sent.
pub(crate) fn check_size(input: &RawValue, hello: &Hello) -> Result<(), String> {
    let (bytes, bytes_max) = (input.get().len() as u64, hello.input_bytes_max);
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(format!(
        "the input has {bytes} bytes, and the daemon takes {bytes_max} at most \
         (queue.input_bytes_max)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_from_the_line_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("in.json");
        std::fs::write(&file, "{\"a\": 1}\n").unwrap();
        assert_eq!(json(&format!("@{}", file.display())).unwrap().get(), "{\"a\": 1}");
        assert_eq!(json("[1, 2]").unwrap().get(), "[1, 2]");
    }

    #[test]
    fn bad_inputs_say_where_they_came_from() {
        let error = json("{nope").unwrap_err();
        assert_eq!(error.exit as u8, 2);
        assert!(error.message.starts_with("input: not JSON: "), "{error}");
        assert!(json("@/no/such/file").unwrap_err().message.contains("/no/such/file"));
    }
}
