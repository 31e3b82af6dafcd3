//! `patchlab demo`: what `./quickstart` runs.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{CliError, Exit, Global, output};
use crate::demo::{self, After, Options};

/// The demonstration.
#[derive(Debug, Args)]
pub struct Demo {
    /// Leave the server and the managed hosts running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Folder that holds images/ and scenarios/
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// Where the console listens
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
}

impl Demo {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let voice = match output.voice() {
            _ if output.is_machine_read() => demo::Voice::Quiet,
            output::Voice::Quiet => demo::Voice::Quiet,
            output::Voice::Normal => demo::Voice::Aloud,
        };
        let after = if self.keep { After::Keep } else { After::Stop };
        let options = Options { source: self.source, listen: self.listen, after, voice };
        let shown = demo::run(&global.data()?, &options).map_err(|error| CliError::Failed(format!("{error:#}")))?;
        output.json(&shown)?;
        Ok(Exit::Passed)
    }
}
