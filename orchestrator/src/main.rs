//! The `patchlab` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    patchlab::cli::run(std::env::args_os())
}
