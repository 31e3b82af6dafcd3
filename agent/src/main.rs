//! `patchlab-agent`: runs on a managed host, or inside a lab clone.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use patchlab_agent::{configuration, journal, service::Service, state::State};
use patchlab_check::{Outcome, Step, Target, step::Context, target::TargetError};
use tokio::signal::unix::{SignalKind, signal};

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
}

fn main() -> ExitCode {
    // The SNMP engine warns of every message it cannot read, and whoever reaches its port can send them without end: they are
    // counted, and do not fill the log.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,async_snmp=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let done = match Arguments::parse().command {
        Command::Run { config } => run(config),
        Command::Status { config, json } => status(config, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patchlab-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
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
            text += &format!("  run {number}: {}{refusal} after {seconds} s{reason}\n", run.state.name());
        }
    }
    text
}
