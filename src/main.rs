//! The binary `forq`: the built-in kinds, and every verb.

use std::process::ExitCode;

fn main() -> ExitCode {
    forq::App::new().main()
}
