//! `patchlab order probe` and `order prefetch`: what hosts do with an order ahead of its activation.

use clap::Args;
use patchlab_protocol::document::{Preparation, RunState};

use super::{CliError, Client, Exit, Output, client::segment};
use crate::{
    pipeline::PreparationRequest,
    store::{PreparationRow, Verified},
};

const PROBE_EXAMPLES: &str = "Example: patchlab order probe PO-2026-0001 --host web-1 --host web-2

Each host fetches what the package manager needs for its simulation, compares that with what the lab proved, looks for room, power, held and
half-way packages, runs the order's production checks as it is, and forgets the files. Ends with 5 and the refusal when apply would be
refused, with 1 when a check fails. Needs a release, no approval and no activation; Ctrl-C leaves it to the server.";

const PREFETCH_EXAMPLES: &str = "Example: patchlab order prefetch PO-2026-0001 --host web-1

The files are kept until the order is rolled back, at most 8 orders and 4 GiB, the oldest make room. An apply, and a rollback by the host's
own operator (patchlab-agent rollback), then need no file from the network. Needs a release, no approval and no activation.";

/// A probe.
#[derive(Debug, Args)]
#[command(after_help = PROBE_EXAMPLES)]
pub struct Probe {
    #[command(flatten)]
    order: Prepared,
}

/// A prefetch.
#[derive(Debug, Args)]
#[command(after_help = PREFETCH_EXAMPLES)]
pub struct Prefetch {
    #[command(flatten)]
    order: Prepared,
}

/// Which order, and where.
#[derive(Debug, Args)]
struct Prepared {
    /// Id or digest
    order: String,
    /// A host, by name; may be given several times
    #[arg(long = "host", value_name = "NAME", required = true)]
    hosts: Vec<String>,
}

impl Probe {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        self.order.run(client, output, Preparation::Probe).await
    }
}

impl Prefetch {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        self.order.run(client, output, Preparation::Prefetch).await
    }
}

impl Prepared {
    async fn run(self, client: &Client, output: &Output, what: Preparation) -> Result<Exit, CliError> {
        let path = format!("orders/{}/preparations", segment(&self.order));
        let asked: Vec<PreparationRow> = client.post(&path, &PreparationRequest { hosts: self.hosts, what }).await?;
        let mut said: Vec<String> = Vec::new();
        let rows = loop {
            let mut rows: Vec<PreparationRow> = client.get(&format!("{path}?wait=2")).await?;
            rows.retain(|row| asked.iter().any(|asked| (&asked.host, asked.run) == (&row.host, row.run)));
            if rows.iter().all(|row| row.ended_at.is_some()) {
                break rows;
            }
            for row in &rows {
                let line = format!("{}: {} {}", row.host, state(row), row.phase);
                if !said.contains(&line) {
                    output.note(line.trim_end());
                    said.push(line);
                }
            }
        };
        preparation_table(output, &rows);
        output.json(&rows)?;
        let well = |row: &PreparationRow| row.state == Some(RunState::Succeeded) && row.verified == Verified::Yes;
        Ok(match rows.iter().all(well) {
            true => Exit::Passed,
            false if rows.iter().any(|row| row.refusal.is_some()) => Exit::Refused,
            false => Exit::Rejected,
        })
    }
}

fn state(row: &PreparationRow) -> &'static str {
    row.state.map_or("-", RunState::name)
}

/// What hosts did with an order ahead of its activation.
pub(super) fn preparation_table(output: &Output, rows: &[PreparationRow]) {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let refusal = row.refusal.map_or("-", |refusal| refusal.name()).to_owned();
            vec![
                row.host.clone(),
                row.run.to_string(),
                row.what.name().to_owned(),
                state(row).to_owned(),
                refusal,
                row.verified.to_string(),
                row.reason.clone(),
            ]
        })
        .collect();
    output.table(&["host", "run", "action", "state", "refusal", "signed", "reason"], &rows);
}
