//! `forq completions` and `forq man`: made from the same definition as the parser.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::out::Out;
use super::{Cli, CliError, Exit};

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

pub(crate) fn completions(args: CompletionsArgs, out: &mut Out) -> Result<u8, CliError> {
    // Into memory first: the generator does not return errors of its writer.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "forq", &mut script);
    out.raw(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done as u8)
}

/// The page of the whole, then that of each verb.
pub(crate) fn man(out: &mut Out) -> Result<u8, CliError> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(|error| CliError::internal(format!("cannot write the manual page: {error}")))?;
    out.raw(&String::from_utf8_lossy(&page))?;
    Ok(Exit::Done as u8)
}
