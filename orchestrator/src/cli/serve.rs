//! `patchlab serve`, and the signer it starts.

use std::{
    io::{self, BufReader},
    net::SocketAddr,
    path::PathBuf,
};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Exit, Global, Output};
use crate::{
    enrol::identity::IdentityError,
    serve::{self, Addresses, Options, ServeError},
    trust::signer,
};

/// The server.
#[derive(Debug, Args)]
pub struct Serve {
    /// Console and API on TCP; loopback only, port 0 takes a free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8470")]
    listen: SocketAddr,
    /// Documents and package files for agents; may be given several times
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8471")]
    payload: Vec<SocketAddr>,
    /// Informs from agents, UDP
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8472")]
    informs: SocketAddr,
    /// Enrolment of hosts that have a token (patchlab host token create), TLS; may be given several times
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8473")]
    enrolment: Vec<SocketAddr>,
    /// The release key: read by the signer process alone; without it nothing is released here
    #[arg(long, value_name = "FILE")]
    release_key: Option<PathBuf>,
}

impl Serve {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let options = Options {
            data: global.data()?,
            listen: self.listen,
            payload: self.payload,
            informs: self.informs,
            enrolment: self.enrolment,
            release_key: self.release_key,
        };
        let output = global.output();
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::failed)?.block_on(
            async {
                let mut terminate = signal(SignalKind::terminate()).map_err(CliError::failed)?;
                let stop = async move {
                    tokio::select! {
                        _ = tokio::signal::ctrl_c() => {}
                        _ = terminate.recv() => {}
                    }
                };
                serve::serve(options, |addresses| announce(&output, addresses), stop).await.map_err(classify)
            },
        )?;
        Ok(Exit::Passed)
    }
}

/// Scripts read the first line, or the JSON.
fn announce(output: &Output, addresses: &Addresses) {
    output.line(format!("console\thttp://{}/", addresses.console));
    output.line(format!("socket\t{}", addresses.socket.display()));
    for payload in &addresses.payload {
        output.line(format!("payload\thttp://{payload}"));
    }
    output.line(format!("informs\tudp://{}", addresses.informs));
    for enrolment in &addresses.enrolment {
        output.line(format!("enrolment\ttls://{enrolment}"));
    }
    if addresses.resumed > 0 {
        output.note(format!("{} deployments were under way: taken up again", addresses.resumed));
    }
    if let Err(error) = output.json(addresses) {
        output.note(error.to_string());
    }
}

fn classify(error: ServeError) -> CliError {
    match error {
        ServeError::NotLoopback(_)
        | ServeError::Root(_)
        | ServeError::Activator(_)
        | ServeError::NotAnActivator
        | ServeError::Identity(IdentityError::Key(_))
        | ServeError::Running(_) => CliError::input(error),
        other => CliError::failed(other),
    }
}

/// The signer process.
#[derive(Debug, Args)]
pub struct SignerCommand {
    /// The release key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The root document
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
}

impl SignerCommand {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        signer::run(&self.key, &self.root, BufReader::new(io::stdin()), io::stdout()).map_err(CliError::failed)?;
        Ok(Exit::Passed)
    }
}
