//! `patchlab scenario`: what holds on a machine. Needs no server.
//!
//! [`run`] with its [`watch`] runs one on a clone and says what came of it as [`told`], [`new`] writes one to begin with, [`page`] tells of
//! them; [`words`] are a step's.

mod new;
mod page;
mod run;
mod told;
mod watch;
mod words;

use std::path::PathBuf;

use clap::Subcommand;
use patchlab_lab::scenario::{Weight, lint};
use serde_json::json;

use super::{CliError, Exit, Global};

/// Scenarios.
#[derive(Debug, Subcommand)]
pub enum ScenarioCommand {
    /// Write a scenario to begin with: it lints clean, runs, and teaches the form
    #[command(after_help = new::EXAMPLES)]
    New(new::NewCommand),
    /// List scenarios: those in the folders given, and in ./scenarios
    #[command(after_help = page::LIST_EXAMPLES)]
    List(page::ListCommand),
    /// Describe a scenario on a page (Markdown): what is tested, by whom, where
    #[command(after_help = page::DOC_EXAMPLES)]
    Doc(page::DocCommand),
    /// Run a scenario on a fresh clone, once or again at each save
    #[command(after_help = run::EXAMPLES)]
    Run(run::RunCommand),
    /// Say all that is wrong or unwise in scenario folders, or in every one in a folder
    #[command(after_help = LINT_EXAMPLES)]
    Lint {
        /// The folders
        #[arg(value_name = "DIR", required = true)]
        dirs: Vec<PathBuf>,
    },
}

const LINT_EXAMPLES: &str = "Examples:
  patchlab scenario lint scenarios/
  patchlab scenario lint scenarios/web-smoke scenarios/db-smoke";

impl ScenarioCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        match self {
            Self::New(command) => command.run(global),
            Self::List(command) => command.run(global),
            Self::Doc(command) => command.run(global),
            Self::Run(command) => command.run(global),
            Self::Lint { dirs } => lint_all(global, &dirs),
        }
    }
}

fn lint_all(global: &Global, dirs: &[PathBuf]) -> Result<Exit, CliError> {
    let output = global.output();
    let mut all = Vec::new();
    for dir in dirs {
        let findings = lint(dir).map_err(CliError::input)?;
        for finding in &findings {
            output.line(finding.to_string());
        }
        let wrong = findings.iter().filter(|finding| finding.weight == Weight::Error).count();
        output.note(format!("{}: {wrong} errors, {} advices", dir.display(), findings.len() - wrong));
        all.extend(findings);
    }
    let shown: Vec<_> =
        all.iter().map(|finding| json!({ "error": finding.weight == Weight::Error, "text": finding.text })).collect();
    output.json(&shown)?;
    let is_wrong = all.iter().any(|finding| finding.weight == Weight::Error);
    Ok(if is_wrong { Exit::Input } else { Exit::Passed })
}
