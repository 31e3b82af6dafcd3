//! The command line: parses, calls, prints, and turns every end into an exit code. One file a noun.
//!
//! Pipeline commands are clients of a running server's API ([`client`]); `key` and `root` need none. `signer` is what the server
//! starts for itself.

mod annotation;
mod audit;
mod baseline;
mod bisection;
mod board;
mod cancellation;
mod client;
mod demo;
mod doctor;
mod draft;
mod enroll;
mod exit;
mod host;
mod kept;
mod key;
mod lab;
mod machine;
mod order;
mod output;
mod point;
mod pool;
mod preparation;
mod progress;
mod report;
mod revocation;
mod root;
mod runs;
mod scenario;
mod schema;
mod serve;
mod shell_help;
mod token;
mod tty;
mod validate;
mod verdict;
mod waiver;

use std::{ffi::OsString, io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

pub use client::Client;
pub use exit::{CliError, Exit};
pub use output::{JsonTo, Output};

use crate::place::{Data, PlaceError};

/// Proves a patch before it ships.
#[derive(Debug, Parser)]
#[command(name = "patchlab", version, about, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Folder of all data: /var/lib/patchlab for root, else the XDG data folder
    #[arg(long, global = true, value_name = "DIR", env = "PATCHLAB_DATA")]
    pub data: Option<PathBuf>,
    /// Write the result as JSON, to a file or (-) to standard output
    #[arg(long, global = true, value_name = "FILE|-")]
    pub json: Option<JsonTo>,
    /// Print results only
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice: everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Global {
    /// The data folder.
    pub fn data(&self) -> Result<Data, CliError> {
        Data::open(self.data.clone()).map_err(|error| match error {
            PlaceError::NoHome => CliError::Input(error.to_string()),
            other => CliError::Input(format!("data folder: {other}; choose another with --data DIR")),
        })
    }

    /// Where results go.
    pub fn output(&self) -> Output {
        let voice = if self.quiet { output::Voice::Quiet } else { output::Voice::Normal };
        Output::new(self.json.clone(), voice)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Can this machine run the lab?
    Doctor(doctor::Doctor),
    /// The whole path on real input, in eight stages: what ./quickstart runs
    Demo(demo::Demo),
    /// Stored systems that clones are made from
    #[command(subcommand)]
    Baseline(baseline::BaselineCommand),
    /// Validations on clones
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Scenarios: what must hold on a machine
    #[command(subcommand)]
    Scenario(scenario::ScenarioCommand),
    /// Run the server: pipeline, API, console, payloads
    Serve(serve::Serve),
    /// Patch orders on their way: submit, release, approve, activate, cancel, roll back
    #[command(subcommand)]
    Order(order::OrderCommand),
    /// Documents that count no more
    Revocation(revocation::Revocation),
    /// Managed hosts
    #[command(subcommand)]
    Host(host::HostCommand),
    /// The audit log
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Write a report: one HTML page and JSON
    Report(report::ReportCommand),
    /// Keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// The root document: whose signature counts
    Root(root::RootArguments),
    /// JSON Schemas of the files people write, for editors
    Schema(schema::SchemaCommand),
    /// Print completions for a shell
    #[command(after_help = shell_help::COMPLETIONS_EXAMPLES)]
    Completions(shell_help::CompletionsCommand),
    /// Write manual pages, one a command
    #[command(after_help = shell_help::MAN_EXAMPLES)]
    Man(shell_help::ManCommand),
    /// A worker, started by the lab
    #[command(hide = true, name = crate::lab::job::SUBCOMMAND)]
    Worker {
        /// Its job
        #[arg(value_enum)]
        job: crate::lab::job::Job,
    },
    /// The release signer, started by serve
    #[command(hide = true)]
    Signer(serve::SignerCommand),
}

/// Parses and runs. Commands that must be a single thread are dispatched before any runtime starts.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Passed };
            let _ = error.print();
            return code.into();
        }
    };
    // A worker gives up its rights before any thread is started.
    if let Command::Worker { job } = cli.command {
        return crate::lab::job::run(job);
    }
    logging(&cli.global);
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("patchlab: {error}");
            error.exit().into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<Exit, CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Worker { .. } => Err(CliError::Failed("a worker is started by the lab".into())),
        Command::Signer(command) => command.run(),
        Command::Doctor(command) => command.run(global),
        Command::Demo(command) => command.run(global),
        Command::Baseline(command) => command.run(global),
        Command::Lab(command) => command.run(global),
        Command::Scenario(command) => command.run(global),
        Command::Schema(command) => command.run(global),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(global),
        Command::Key(command) => command.run(global),
        Command::Serve(command) => command.run(global),
        Command::Order(command) => client_runtime(command.run(global)),
        Command::Root(command) => client_runtime(command.run(global)),
        Command::Revocation(command) => client_runtime(command.run(global)),
        Command::Host(command) => client_runtime(command.run(global)),
        Command::Audit(command) => client_runtime(command.run(global)),
        Command::Report(command) => client_runtime(command.run(global)),
    }
}

/// Clients need one thread.
fn client_runtime<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("cannot start: {error}")))?
        .block_on(work)
}

/// Logs go to standard error; `PATCHLAB_LOG` chooses more finely than `--verbose`.
fn logging(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn,patchlab=info,async_snmp::notification=error",
        (false, 1) => "info,patchlab=debug",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("PATCHLAB_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // A second call, in tests, keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
