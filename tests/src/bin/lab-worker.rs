//! Started by the tests that make machines themselves: becomes a worker, whose first act must come before any thread,
//! so that a test's own program cannot be one.

use std::process::ExitCode;

use clap::Parser;
use patchlab_lab::baseline::serve_freeze;
use patchlab_tests::isolation;

#[derive(Parser)]
enum Job {
    /// Freezes a baseline.
    Freeze,
    /// Clones it and says where its guest gets through to.
    Isolation,
}

fn main() -> ExitCode {
    match Job::parse() {
        Job::Freeze => serve_freeze(),
        Job::Isolation => isolation::serve(),
    }
}
