//! The edge: reads the file and the environment, and understands neither.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::error::{ConfigError, ConfigErrors};
use super::{Origin, Sources};

/// Bytes of a configuration file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads the file at `path`, if a path is given, and the environment of this process. A file
/// that is not there is an error only if it `must_exist` (somebody named it). Add the options of
/// the command line to the result, then [`load`](super::load) it.
pub fn read_sources(path: Option<&Path>, must_exist: bool) -> Result<Sources, ConfigErrors> {
    let mut errors = Vec::new();
    let file = path.and_then(|path| match read_file(path, must_exist) {
        Ok(text) => text.map(|text| (path.to_owned(), text)),
        Err(reason) => {
            errors.push(ConfigError::Unreadable { path: path.to_owned(), reason });
            None
        }
    });
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if !name.starts_with("FORQ_") {
            continue;
        }
        match value.into_string() {
            Ok(value) => env.push((name, value)),
            Err(_) => errors
                .push(ConfigError::key(&Origin::Env { name }, "its value is not UTF-8".to_owned())),
        }
    }
    if !errors.is_empty() {
        return Err(ConfigErrors { errors });
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    Ok(Sources { file, env, flags: Vec::new(), cpus: u32::try_from(cpus).unwrap_or(u32::MAX) })
}

/// The file's text, or nothing if it need not be there and is not.
fn read_file(path: &Path, must_exist: bool) -> Result<Option<String>, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err("no such file: write one with `forq config init`".to_owned());
        }
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes: is it the right file?"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("byte {at} is not UTF-8: save it as UTF-8 text")
    })?;
    Ok(Some(text))
}
