//! What this program does when it is a worker.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use patchlab_lab::worker::{self, Launcher};

/// The hidden subcommand by which this program becomes a worker.
pub const SUBCOMMAND: &str = "worker";

/// A worker's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Job {
    /// Boots a new baseline once and freezes it.
    Freeze,
    /// Validates one order on baselines.
    Validate,
    /// Is a managed host of the demonstration.
    Host,
    /// Opens libvirt and says its versions.
    Versions,
    /// Lets a kept clone go on and runs commands in it.
    Shell,
    /// Runs a scenario on clones, for who writes it.
    Trial,
    /// Puts an order on a machine that becomes a baseline's successor.
    Succeed,
}

/// How this program is started for a job.
pub fn launcher(job: Job) -> anyhow::Result<Launcher> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let value = job.to_possible_value().context("a job has a name")?;
    Ok(Launcher { program, arguments: vec![SUBCOMMAND.into(), value.get_name().into()] })
}

/// Becomes a worker and does the job. To be called before any thread is started.
pub fn run(job: Job) -> ExitCode {
    let serve = match job {
        Job::Freeze => return patchlab_lab::baseline::serve_freeze(),
        Job::Validate => super::worker::serve,
        Job::Host => super::managed::serve,
        Job::Versions => super::versions::serve,
        Job::Shell => super::shell::serve,
        Job::Trial => super::trial::serve,
        Job::Succeed => super::successor::serve,
    };
    let inside = match worker::enter() {
        Ok(inside) => inside,
        Err(code) => return code,
    };
    match serve(inside) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
