//! `patchlab lab`: validations on clones, their records, and what dead ones left behind. Needs no server.

use std::path::PathBuf;

use clap::Subcommand;
use patchlab_check::written::ByteSize;
use patchlab_lab::{
    gc::{self, Leftover, Mode},
    room::Bytes,
    runs::{Limits, Runs},
    scenario::{Scenario, discover},
};

use super::{
    CliError, Exit, Global, kept, pool,
    runs::{self, LogCommand, ReportOf, Retry, RunsCommand},
    validate::{self, Validate},
};
use crate::lab::pool::Pool;

/// The lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Apply orders to clones, compare them with unpatched ones, and take the orders back again
    #[command(after_help = validate::EXAMPLES)]
    Validate(Validate),
    /// List the records of validations, newest first
    #[command(after_help = runs::RUNS_EXAMPLES)]
    Runs(RunsCommand),
    /// Say what a run found, and how long its phases took
    #[command(after_help = runs::SHOW_EXAMPLES)]
    Show {
        /// The run's id, how only one begins, or `last`
        run: String,
    },
    /// Print what was said in a run: its events, a clone's console, or the journal of the patched clone
    #[command(after_help = runs::LOG_EXAMPLES)]
    Log(LogCommand),
    /// Validate the order of a run again, on its baselines and with its scenarios as they were, or a part of it
    #[command(after_help = runs::RETRY_EXAMPLES)]
    Retry(Retry),
    /// Write a run as one HTML page
    #[command(after_help = runs::REPORT_EXAMPLES)]
    Report(ReportOf),
    /// List the hosts that lend machines, and look at each
    #[command(after_help = pool::EXAMPLES)]
    Hosts(pool::HostsCommand),
    /// List the clones that were kept of validations
    #[command(after_help = kept::KEPT_EXAMPLES)]
    Kept,
    /// Look into a kept clone, or into a fresh one right before the step that failed: run commands in it
    #[command(after_help = kept::SHELL_EXAMPLES)]
    Shell(kept::ShellCommand),
    /// Print what a kept clone's console said until it was saved
    #[command(after_help = kept::CONSOLE_EXAMPLES)]
    Console(kept::ConsoleCommand),
    /// Take a picture of a kept clone's screen, as it was when the clone was saved
    #[command(after_help = kept::SCREENSHOT_EXAMPLES)]
    Screenshot(kept::ScreenshotCommand),
    /// Take kept clones away
    #[command(after_help = kept::RM_EXAMPLES)]
    Rm {
        /// Names of kept clones, or how only one of them begins
        #[arg(required = true)]
        name: Vec<String>,
    },
    /// Take away what dead workers left behind (machines, files, links), kept clones whose time is over, and the oldest records
    #[command(after_help = GC_EXAMPLES)]
    Gc(Gc),
}

const GC_EXAMPLES: &str = "Examples:
  patchlab lab gc --dry-run
  patchlab lab gc
  patchlab lab gc --runs 20 --run-bytes 500MiB

Records of runs that go on, and the newest, always stay.";

/// What is left behind.
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Only say what would be taken away
    #[arg(long)]
    dry_run: bool,
    /// How many records of runs stay
    #[arg(long, value_name = "N", default_value_t = Limits::default().count)]
    runs: usize,
    /// How much the records of runs may take together
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(Limits::default().bytes.0))]
    run_bytes: ByteSize,
}

/// Every scenario in the folders given and in `./scenarios`.
pub(super) fn scenarios(given: &[PathBuf]) -> Result<Vec<Scenario>, CliError> {
    discover(&scenario_dirs(given)).map_err(CliError::input)
}

/// The folders given, and ./scenarios where that is.
pub(super) fn scenario_dirs(given: &[PathBuf]) -> Vec<PathBuf> {
    let own = PathBuf::from("scenarios");
    let mut dirs = given.to_vec();
    if own.is_dir() && !dirs.contains(&own) {
        dirs.push(own);
    }
    dirs
}

impl LabCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        match self {
            Self::Validate(validate) => validate.run(global),
            Self::Runs(runs) => runs.run(global),
            Self::Show { run } => runs::show(global, &run),
            Self::Log(log) => log.run(global),
            Self::Retry(retry) => retry.run(global),
            Self::Report(report) => report.run(global),
            Self::Hosts(hosts) => hosts.run(global),
            Self::Kept => kept::list(global),
            Self::Shell(shell) => shell.run(global),
            Self::Console(console) => console.run(global),
            Self::Screenshot(screenshot) => screenshot.run(global),
            Self::Rm { name } => kept::remove(global, &name),
            Self::Gc(gc) => gc.run(global),
        }
    }
}

impl Gc {
    fn run(self, global: &Global) -> Result<Exit, CliError> {
        let mode = if self.dry_run { Mode::DryRun } else { Mode::Collect };
        let data = global.data()?;
        let places = data.lab();
        let mut leftovers = gc::collect(&places, mode).map_err(CliError::failed)?;
        for host in Pool::of(&data, &[]).map_err(CliError::input)?.hosts() {
            let there = host.places(&places);
            if there != places {
                leftovers.extend(gc::collect(&there, mode).map_err(CliError::failed)?);
            }
        }
        let limits = Limits { count: self.runs, bytes: Bytes(self.run_bytes.bytes()) };
        let old = Runs::open(&places).retain(limits, mode).map_err(CliError::failed)?;
        leftovers.extend(old.into_iter().map(|run| Leftover {
            undertaking: "runs".into(),
            what: format!("record {} of {}, {}", run.record.id, run.record.order, run.bytes()),
            failure: None,
        }));
        let output = global.output();
        for leftover in &leftovers {
            let failure = leftover.failure.as_deref().map(|why| format!("\tleft: {why}")).unwrap_or_default();
            output.line(format!("{}\t{}{failure}", leftover.undertaking, leftover.what));
        }
        if leftovers.is_empty() {
            output.line("nothing to collect");
        }
        output.json(&leftovers)?;
        let failed = leftovers.iter().any(|leftover| leftover.failure.is_some());
        Ok(if failed { Exit::Broken } else { Exit::Passed })
    }
}
