//! `forq completions` and `forq man`: made from the same definition as the parser.

use std::io::Write;

use clap::{Args, Command, CommandFactory};
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

/// One page: the whole, then a section for each verb.
pub(crate) fn man(out: &mut Out) -> Result<u8, CliError> {
    let cannot = |error| CliError::internal(format!("cannot write the manual page: {error}"));
    let mut page = Vec::new();
    write_page(&mut page).map_err(cannot)?;
    out.raw(&String::from_utf8_lossy(&page))?;
    Ok(Exit::Done as u8)
}

fn write_page(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut whole = Cli::command();
    whole.build();
    let man = clap_mangen::Man::new(whole.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    for verb in leaves(&whole) {
        let name = verb.get_bin_name().unwrap_or_default().to_uppercase();
        writeln!(page, ".SH \"{name}\"")?;
        if let Some(about) = verb.get_about() {
            writeln!(page, "{about}.")?;
        }
        // The verb's own sections become parts of its section here.
        let mut sections = Vec::new();
        let man = clap_mangen::Man::new(verb.clone());
        man.render_synopsis_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        let sections = String::from_utf8_lossy(&sections).replace("\n.SH ", "\n.SS ");
        page.extend_from_slice(sections.as_bytes());
    }
    Ok(())
}

/// Every verb that does something: `queue pause` rather than `queue`.
fn leaves(command: &Command) -> Vec<&Command> {
    let mut verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help").peekable();
    match verbs.peek() {
        None => vec![command],
        Some(_) => verbs.flat_map(leaves).collect(),
    }
}
