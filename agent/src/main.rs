//! `patchlab-agent`: runs on a managed host, or inside a lab clone.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use patchlab_agent::{
    configuration,
    inspection::{DocumentFiles, Inspection, InspectionError},
    journal,
    operator::{self, Request, Said},
    service::Service,
    state::State,
};
use patchlab_check::{Outcome, Step, Target, step::Context, target::TargetError};
use patchlab_protocol::document::RunState;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Applies patch orders that are signed, released, approved and activated, and nothing else.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers SNMP and carries out orders until it is stopped
    Run {
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
    },
    /// Shows orders and runs, from the journal; the agent need not run
    Status {
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
        /// Everything that is remembered, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows what is installed, which automatic updaters are enabled, and what the host is and does
    Inventory {
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Says whether the agent would obey these documents now; exit code 5 and the refusal's name when it would not
    ///
    /// Of an order alone: whether it is signed, for this host's class, and replaces the versions that are installed.
    #[command(
        after_help = "Example: patchlab-agent verify order.json --release release.json --approval approval.json \
                            --activation activation.json"
    )]
    Verify {
        /// The order, as it is signed
        order: PathBuf,
        /// Its release
        #[arg(long, value_name = "FILE")]
        release: Option<PathBuf>,
        /// Its approval
        #[arg(long, value_name = "FILE")]
        approval: Option<PathBuf>,
        /// Its activation
        #[arg(long, value_name = "FILE")]
        activation: Option<PathBuf>,
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
    },
    /// Rolls an order back from what was staged on this host, with nothing from the network; needs root, and the agent running
    ///
    /// The run is journaled, signed and told to the manager as soon as that answers, with your user id. Exit code 5 when the
    /// agent refuses, 1 when the way back fails.
    #[command(
        after_help = "Examples: patchlab-agent rollback PO-2026-0001\n          patchlab-agent rollback 3f9c1a72b0de"
    )]
    Rollback {
        /// Its id, or its digest, or how that begins (8 digits at least)
        order: String,
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
    },
    /// Shows what applying an order would do, as the package manager simulates it, and changes nothing
    Simulate {
        /// The order, as it is signed
        order: PathBuf,
        /// Where its package files (*.deb, by any name) are
        #[arg(long, value_name = "DIR")]
        files: PathBuf,
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
    },
}

/// Exit code of `verify` and `simulate` when the agent would refuse.
const REFUSED: u8 = 5;

fn main() -> ExitCode {
    log_to_stderr();
    let done = match Arguments::parse().command {
        Command::Run { config } => run(config),
        Command::Status { config, json } => status(config, json),
        Command::Inventory { config, json } => inventory(&config, json),
        Command::Verify { order, release, approval, activation, config } => {
            verify(&config, &DocumentFiles { order, release, approval, activation })
        }
        Command::Rollback { order, config } => return end(roll_back(&config, order)),
        Command::Simulate { order, files, config } => simulate(&config, &order, &files),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patchlab-agent: {error:#}");
            match error.downcast_ref() {
                Some(InspectionError::Refused(_)) => ExitCode::from(REFUSED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// What is told, as RUST_LOG says it (`info,patchlab_agent=debug`). The SNMP engine warns of every message it cannot read, and whoever reaches its
/// port can send them without end: they are counted, and do not fill the log.
fn log_to_stderr() {
    let said = std::env::var("RUST_LOG").ok().and_then(|said| said.parse().ok());
    // Not the filter that knows spans and patterns: it has a regular expression engine of its own.
    let told = said.unwrap_or_else(|| Targets::new().with_default(Level::INFO).with_target("async_snmp", Level::ERROR));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(told)).init();
}

/// The exit code of a rollback.
fn end(ended: anyhow::Result<Said>) -> ExitCode {
    match ended {
        Ok(Said::Ended { state: RunState::RolledBack, reason, .. }) => {
            println!("rolled back {reason}");
            ExitCode::SUCCESS
        }
        Ok(Said::Ended { state, refusal: Some(refusal), reason }) => {
            eprintln!("patchlab-agent: {}: {refusal}: {reason}", state.name());
            ExitCode::from(REFUSED)
        }
        Ok(Said::Ended { state, reason, .. }) => {
            eprintln!("patchlab-agent: {}: {reason}", state.name());
            ExitCode::FAILURE
        }
        Ok(Said::No(reason)) => {
            eprintln!("patchlab-agent: {reason}");
            ExitCode::from(REFUSED)
        }
        Ok(Said::Moved { .. }) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("patchlab-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn roll_back(config: &Path, order: String) -> anyhow::Result<Said> {
    let enrolment = configuration::enrolment(config)?;
    let said = operator::ask(&enrolment.state_dir, &Request::Rollback(order), |said| {
        if let Said::Moved { state, phase } = said {
            eprintln!("{} {phase}", state.name());
        }
    });
    Ok(said?)
}

fn inspect(config: &Path) -> anyhow::Result<Inspection> {
    Ok(Inspection::open(configuration::read_all(config)?)?)
}

fn inventory(config: &Path, json: bool) -> anyhow::Result<()> {
    let found = inspect(config)?.inventory()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    let updaters = if found.updaters.is_empty() { "none".to_owned() } else { found.updaters.join(", ") };
    println!("host {}: {}, kernel {}", found.host, found.class, found.kernel);
    let description = &found.description;
    let said = |word: &str| if word.is_empty() { "not said".to_owned() } else { word.to_owned() };
    let (location, function) = (said(&description.tags.location), said(&description.tags.function));
    println!("machine: {}, location: {location}, function: {function}", said(&description.machine));
    println!("automatic updaters: {updaters}");
    println!("{} packages of {}, digest {}", found.packages.len(), found.system, found.digest);
    found.packages.iter().for_each(|line| println!("{line}"));
    found.half_way.iter().for_each(|line| println!("half-way: {line}"));
    description.lines().iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn verify(config: &Path, files: &DocumentFiles) -> anyhow::Result<()> {
    let order = inspect(config)?.verify(files)?;
    println!("order {} would be obeyed: {}", order.id, order.title);
    Ok(())
}

fn simulate(config: &Path, order: &Path, files: &Path) -> anyhow::Result<()> {
    inspect(config)?.simulate(order, files)?.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn run(config: PathBuf) -> anyhow::Result<()> {
    let configuration = configuration::read_all(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut stops = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let [terminate, interrupt] = &mut stops;
        let (Ok(terminate), Ok(interrupt)) = (terminate, interrupt) else {
            anyhow::bail!("cannot wait for signals");
        };
        let service = Box::pin(Service::open(configuration, Some(evaluate))).await?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Box::pin(service.run(stop)).await?;
        Ok(())
    })
}

/// Steps as the lab evaluates them; a managed host has no scenario folder.
fn evaluate(step: &Step, target: &dyn Target, budget: Duration) -> Result<Outcome, TargetError> {
    step.evaluate(target, Context { dir: None, budget })
}

fn status(config: PathBuf, json: bool) -> anyhow::Result<()> {
    let enrolment = configuration::enrolment(&config)?;
    let path = enrolment.state_dir.join(journal::FILE_NAME);
    let state = journal::read(&path).with_context(|| format!("host {}", enrolment.host))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&state)?);
        return Ok(());
    }
    print!("{}", summary(&enrolment.host, &state));
    Ok(())
}

/// One line a run, newest last.
fn summary(host: &str, state: &State) -> String {
    let mut text = format!("host {host}: {} orders, {} applied\n", state.orders.len(), state.applied.len());
    for (index, order) in &state.orders {
        text += &format!("order row {index}: {} from {}\n", order.columns.digest.short(), order.columns.uri);
        for (number, run) in &order.runs {
            let seconds = run.duration(patchlab_agent::run::now()) / 1000;
            let refusal = run.refusal.map(|refusal| format!(" {refusal}")).unwrap_or_default();
            let reason = if run.error.is_empty() { String::new() } else { format!(": {}", run.error) };
            let what = match (run.preparation, run.operator) {
                (Some(preparation), _) => format!("{}, ", preparation.name()),
                (None, Some(uid)) => format!("rollback by operator {uid}, "),
                (None, None) => String::new(),
            };
            text += &format!("  run {number}: {what}{}{refusal} after {seconds} s{reason}\n", run.state.name());
        }
    }
    text
}
