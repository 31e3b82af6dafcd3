//! `patchlab order cancel`: the end of runs that have not begun.

use std::time::{Duration, Instant};

use clap::Args;

use super::{
    CliError, Client, Exit, Output,
    client::segment,
    order::{run_table, story},
};
use crate::{api::DeploymentStory, deploy::executor::has_begun, pipeline::CancelRequest, store::Run};

/// How long hosts are waited for that are to say how their runs ended.
const PATIENCE: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "Examples:
  patchlab order cancel PO-2026-0001 --host web-1
  patchlab order cancel PO-2026-0001

A run that waits, fetches or verifies ends as aborted, and uses nothing up: the order can be activated again. One that changes its host
already is never interrupted: the command says so and ends with 5. Needs no signature. A host that does not answer is asked again until it
does; if it is not reached before its window opens, it applies.";

/// Runs to cancel.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cancel {
    /// Id or digest
    order: String,
    /// Only on this host; may be given several times
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
}

impl Cancel {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let request = CancelRequest { hosts: self.hosts };
        let asked: Vec<Run> = client.post(&format!("orders/{}/cancel", segment(&self.order)), &request).await?;
        let end = Instant::now() + PATIENCE;
        // What has been begun meanwhile is decided too: it goes on.
        let is_decided = |run: &Run| run.stage.is_final() || run.state.is_some_and(has_begun);
        let runs = loop {
            let runs = now(client, &self.order, &asked).await?;
            match runs.iter().find(|run| !is_decided(run)) {
                // Comes back when something changed.
                Some(open) if Instant::now() < end => {
                    let _: DeploymentStory = client.get(&format!("activations/{}?wait=2", open.activation)).await?;
                }
                _ => break runs,
            }
        };
        run_table(output, &runs);
        output.json(&runs)?;
        let begun = runs.iter().find_map(|run| Some((run, run.state.filter(|state| has_begun(*state))?)));
        if let Some((run, state)) = begun {
            output.note(format!("too late on {}: it is {}, and is not interrupted", run.host, state.name()));
            return Ok(Exit::Refused);
        }
        match runs.iter().find(|run| !run.stage.is_final()) {
            Some(open) => {
                output.note(format!("{} does not answer: it is asked again until it does", open.host));
                Ok(Exit::Rejected)
            }
            None => Ok(Exit::Passed),
        }
    }
}

/// The same runs as they are now.
async fn now(client: &Client, order: &str, asked: &[Run]) -> Result<Vec<Run>, CliError> {
    let mut runs = story(client, order).await?.runs;
    runs.retain(|run| asked.iter().any(|asked| (&asked.host, asked.run) == (&run.host, run.run)));
    Ok(runs)
}
