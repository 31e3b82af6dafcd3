//! `patchlab audit`.

use clap::Subcommand;

use super::{CliError, Client, Exit, Global};
use crate::{api::AuditCheck, audit::Row};

/// The audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show rows, oldest first
    Show {
        /// Only rows after this number
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// Check the chain, and the heads that hosts have signed; exit 1 when something is wrong
    Verify,
}

impl AuditCommand {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, CliError> {
        let client = Client::new(global)?;
        let output = global.output();
        match self {
            Self::Show { after } => {
                let mut all: Vec<Row> = Vec::new();
                loop {
                    let from = all.last().map_or(after, |row| row.seq);
                    let page: Vec<Row> = client.get(&format!("audit?after={from}&limit=5000")).await?;
                    if page.is_empty() {
                        break;
                    }
                    all.extend(page);
                }
                let rows: Vec<_> = all
                    .iter()
                    .map(|row| {
                        let (number, at) = (row.seq.to_string(), output.moment(&row.at));
                        let fields = vec![number, at, row.actor.clone(), row.event.clone(), row.subject.clone()];
                        (fields, output.particulars(&row.detail))
                    })
                    .collect();
                output.annotated(&["row", "at", "who", "what", "on"], &rows);
                output.json(&all)?;
                Ok(Exit::Passed)
            }
            Self::Verify => {
                let check: AuditCheck = client.get("audit/verify").await?;
                for finding in &check.findings {
                    output.line(finding.to_string());
                }
                if check.findings.is_empty() {
                    output.line(format!("{} rows, chain intact, head {}", check.rows, check.head));
                }
                output.json(&check)?;
                Ok(if check.findings.is_empty() { Exit::Passed } else { Exit::Rejected })
            }
        }
    }
}
