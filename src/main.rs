//! The binary `forq`: nothing but the library's `main`.

use std::process::ExitCode;

fn main() -> ExitCode {
    forq::guard::maybe_main().unwrap_or(ExitCode::SUCCESS)
}
