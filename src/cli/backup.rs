//! `forq backup`: a consistent copy of the database, made by the broker while it runs.

use std::path::{Path, PathBuf};

use clap::Args;

use super::client::unexpected;
use super::out::{Out, size};
use super::{CliError, Exit, Globals};
use crate::protocol::control::{Reply, Request};

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where to; must not exist yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(args: BackupArgs, globals: &Globals, out: &mut Out) -> Result<u8, CliError> {
    // The broker's working folder is not ours.
    let file = std::path::absolute(&args.file)
        .map_err(|error| CliError::invalid(format!("{}: {error}", args.file.display())))?;
    let Some(file) = file.to_str().map(str::to_owned) else {
        return Err(CliError::invalid(format!("{} is not UTF-8", file.display())));
    };
    if let Some(reason) = unfit(Path::new(&file)) {
        return Err(CliError::invalid(reason));
    }
    match globals.connect()?.call(&Request::Backup { file: file.clone() })? {
        Reply::Done { count } if out.json => {
            out.value(&serde_json::json!({ "file": file, "bytes": count }))?;
        }
        Reply::Done { count } => out.line(format_args!("{file} ({})", size(count)))?,
        other => return Err(unexpected(&other)),
    }
    Ok(Exit::Done as u8)
}

/// Why no copy can be made there, as far as can be seen from here.
fn unfit(file: &Path) -> Option<String> {
    let folder = file.parent()?;
    if file.symlink_metadata().is_ok() {
        return Some(format!("{} is there already: name another file", file.display()));
    }
    (!folder.is_dir()).then(|| format!("there is no folder {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_file_in_a_folder_is_fit() {
        let folder = tempfile::tempdir().unwrap();
        let old = folder.path().join("old");
        std::fs::write(&old, "").unwrap();
        assert!(unfit(&old).is_some_and(|reason| reason.contains("already")));
        assert!(unfit(&folder.path().join("none/new")).is_some_and(|why| why.contains("none")));
        assert_eq!(unfit(&folder.path().join("new")), None);
    }
}
