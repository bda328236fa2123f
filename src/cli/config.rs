//! `forq config`: check, show, explain or start a configuration. No daemon is asked.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::out::Out;
use super::{CliError, Exit, Globals, workflow};
use crate::config::{
    Config, ConfigErrors, Loaded, Schedule, Shown, key_warnings, load, read_sources, schema, show,
    starter,
};
use crate::handler::Registry;
use crate::worker::kinds::{check_templates, with_built_in};

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Write a commented file to start from
    Init,
    /// Check a file: each mistake with its line, key and cure
    Check {
        /// The file, which may be a workflow [default: the instance's]
        file: Option<PathBuf>,
    },
    /// Show every effective value, and where it came from
    Show,
    /// Print the JSON Schema of the file
    Schema,
}

pub(crate) fn run(
    args: ConfigArgs,
    globals: &Globals,
    own_kinds: &Registry,
    out: &mut Out,
) -> Result<u8, CliError> {
    match args.verb {
        ConfigVerb::Init => init(&globals.instance_to_serve()?.config(), out)?,
        ConfigVerb::Check { file } => check(file, globals, own_kinds, out)?,
        ConfigVerb::Show => show_all(globals, out)?,
        ConfigVerb::Schema => out.line(format_args!("{:#}", schema()))?,
    }
    Ok(Exit::Done as u8)
}

fn init(file: &Path, out: &mut Out) -> Result<(), CliError> {
    write_new(file, starter()).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            CliError::invalid(format!("{} is there already", file.display()))
                .hint("`forq config show` shows what it says; --config names another file")
        }
        _ => CliError::invalid(format!("cannot write {}: {error}", file.display())),
    })?;
    if out.json {
        return out.value(&json!({ "file": file }));
    }
    out.line(file.display())?;
    out.note("hint: every line of it is a comment that shows a default: change what you need");
    Ok(())
}

fn write_new(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        // An instance's folder is its user's alone.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).open(file)?.write_all(text.as_bytes())
}

fn check(
    file: Option<PathBuf>,
    globals: &Globals,
    own_kinds: &Registry,
    out: &mut Out,
) -> Result<(), CliError> {
    let (path, must_exist) = match file {
        Some(file) => (file, true),
        None => effective_file(globals)?,
    };
    if std::fs::read_to_string(&path).is_ok_and(|text| workflow::is_workflow(&text)) {
        return check_workflow(&path, out);
    }
    let read = read(&path, must_exist);
    let checked = read.map_err(|errors| {
        let errors = errors.errors.iter().map(ToString::to_string);
        errors.collect::<Vec<_>>()
    });
    match checked.and_then(with_good_templates) {
        Ok(mut loaded) => {
            // The keys that are seen from here, which may be another environment than the daemon's.
            let keys = key_warnings(&loaded, |name| std::env::var(name).ok());
            loaded.warnings.extend(keys);
            loaded.warnings.extend(schedule_warnings(&loaded.config, own_kinds));
            if out.json {
                let warnings = &loaded.warnings;
                return out.value(&json!({ "ok": true, "file": path, "warnings": warnings }));
            }
            warn(&loaded, out);
            if !path.exists() {
                out.note("hint: there is no such file: the defaults hold");
            }
            out.line(format_args!("{}: ok", path.display()))
        }
        Err(errors) => {
            if out.json {
                out.value(&json!({ "ok": false, "file": path, "errors": errors }))?;
            }
            Err(CliError::invalid(errors.join("\n")))
        }
    }
}

fn check_workflow(path: &Path, out: &mut Out) -> Result<(), CliError> {
    match workflow::check_file(path) {
        Ok(_) if out.json => out.value(&json!({ "ok": true, "file": path, "warnings": [] })),
        Ok(_) => out.line(format_args!("{}: ok", path.display())),
        Err(error) => {
            if out.json {
                let errors: Vec<_> = error.message.lines().collect();
                out.value(&json!({ "ok": false, "file": path, "errors": errors }))?;
            }
            Err(error)
        }
    }
}

/// What only the engine of templates can find wrong.
fn with_good_templates(loaded: Loaded) -> Result<Loaded, Vec<String>> {
    let Err(sentence) = check_templates(&loaded.config) else { return Ok(loaded) };
    let key = sentence.split(": ").next().unwrap_or_default();
    Err(vec![match loaded.origins.get(key) {
        Some(origin) => format!("{origin}: {sentence}"),
        None => sentence,
    }])
}

/// Schedules whose tasks would be refused.
fn schedule_warnings(config: &Config, own_kinds: &Registry) -> Vec<String> {
    let Ok(kinds) = with_built_in(own_kinds, config, false) else { return Vec::new() };
    let warning = |(index, schedule): (usize, &Schedule)| {
        let input = serde_json::value::to_raw_value(&schedule.input).ok()?;
        let reason = kinds.check(&schedule.kind, &input).err()?;
        Some(format!("schedule[{index}] ({}) never runs: {reason}", schedule.name))
    };
    config.schedule.iter().enumerate().filter_map(warning).collect()
}

fn show_all(globals: &Globals, out: &mut Out) -> Result<(), CliError> {
    let (path, must_exist) = effective_file(globals)?;
    let loaded = read(&path, must_exist).map_err(|errors| CliError::invalid(errors.to_string()))?;
    warn(&loaded, out);
    let shown = show(&loaded);
    if out.json {
        return shown.iter().try_for_each(|shown| out.value(&json_of(shown)));
    }
    let line = |shown: &Shown| format!("{} = {}", shown.key, shown.value);
    let width = shown.iter().map(|shown| line(shown).chars().count()).max().unwrap_or(0);
    // One long list must not push every origin off the screen.
    let width = width.min(50);
    shown
        .iter()
        .try_for_each(|shown| out.line(format_args!("{:width$}  # {}", line(shown), shown.origin)))
}

fn json_of(shown: &Shown) -> Value {
    let parsed: Option<toml::Table> = toml::from_str(&format!("value = {}", shown.value)).ok();
    let value = parsed.and_then(|table| serde_json::to_value(&table["value"]).ok());
    json!({ "key": shown.key, "value": value, "origin": shown.origin.to_string() })
}

fn warn(loaded: &Loaded, out: &mut Out) {
    for warning in &loaded.warnings {
        out.note(format_args!("warning: {warning}"));
    }
}

/// The instance's file, and whether somebody named it, so that it must be there.
fn effective_file(globals: &Globals) -> Result<(PathBuf, bool), CliError> {
    let instance = globals.instance_to_serve()?;
    Ok((instance.config(), instance.named_config.is_some()))
}

fn read(path: &Path, must_exist: bool) -> Result<Loaded, ConfigErrors> {
    load(&read_sources(Some(path), must_exist)?)
}
