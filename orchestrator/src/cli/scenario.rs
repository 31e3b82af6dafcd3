//! `patchlab scenario`: what holds on a machine. Needs no server.

use std::path::PathBuf;

use clap::Subcommand;
use patchlab_lab::scenario::{Weight, lint};
use serde_json::json;

use super::{CliError, Exit, Global};

/// Scenarios.
#[derive(Debug, Subcommand)]
pub enum ScenarioCommand {
    /// Say all that is wrong or unwise in a scenario folder, or in every one in a folder
    Lint {
        /// The folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

impl ScenarioCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let Self::Lint { dir } = self;
        let output = global.output();
        let findings = lint(&dir).map_err(CliError::input)?;
        for finding in &findings {
            output.line(finding.to_string());
        }
        let wrong = findings.iter().filter(|finding| finding.weight == Weight::Error).count();
        output.note(format!("{}: {wrong} errors, {} advices", dir.display(), findings.len() - wrong));
        let shown: Vec<_> = findings
            .iter()
            .map(|finding| json!({ "error": finding.weight == Weight::Error, "text": finding.text }))
            .collect();
        output.json(&shown)?;
        Ok(if wrong == 0 { Exit::Passed } else { Exit::Input })
    }
}
