//! `patchlab report`.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{CliError, Client, Exit, Global};
use crate::report::{Bundle, html};

/// The report.
#[derive(Debug, Args)]
pub struct ReportCommand {
    /// Folder to write index.html and report.json to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ReportCommand {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, CliError> {
        let bundle: Bundle = Client::new(global)?.get("report").await?;
        let page = html(&bundle).map_err(CliError::failed)?;
        let json = serde_json::to_string_pretty(&bundle).map_err(CliError::failed)?;
        let failed =
            |error: std::io::Error| CliError::Failed(format!("cannot write to {}: {error}", self.out.display()));
        fs::create_dir_all(&self.out).map_err(failed)?;
        let (page_path, json_path) = (self.out.join("index.html"), self.out.join("report.json"));
        fs::write(&page_path, page).map_err(failed)?;
        fs::write(&json_path, json).map_err(failed)?;
        let output = global.output();
        output.line(page_path.display().to_string());
        bundle.trust.warnings.iter().for_each(|warning| output.note(warning));
        output.json(&json!({ "html": page_path, "json": json_path, "orders": bundle.orders.len() }))?;
        Ok(Exit::Passed)
    }
}
