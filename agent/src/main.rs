//! `patchlab-agent`: runs on a managed host, or inside a lab clone.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use patchlab_agent::{
    configuration,
    enrolment::{AskError, EnrolError, Enrolled},
    inspection::{DocumentFiles, Fit, HostInventory, Inspection, InspectionError},
    journal,
    operator::{self, Request, Said},
    service::Service,
    state::State,
};
use patchlab_check::{Outcome, Step, Target, step::Context, target::TargetError};
use patchlab_protocol::{EnrolmentToken, PackageSystem, document::RunState, limits};
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
    ///
    /// With --verify also the installed files that are not what their packages shipped, configuration told apart; exit code 1 when one of
    /// them is neither configuration nor documentation and is missing or has something else in it.
    #[command(after_help = "Examples: patchlab-agent inventory\n          patchlab-agent inventory --verify --json")]
    Inventory {
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
        /// Compare every installed file with what its package shipped, too; takes minutes
        #[arg(long)]
        verify: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Says whether the agent would obey these documents now; exit code 5 and the refusal's name when it would not
    ///
    /// Of an order alone: whether it is signed, for this host's class, neither revoked nor past its time nor applied here before, and replaces
    /// the versions that are installed. No permission is looked at then, and that is said.
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
    /// Enrols this host with the server that a token names, and writes the folder that the agent runs from
    ///
    /// The host's key is made here and never leaves. The server is believed by its key, which the token pins, and by nothing else. When
    /// this is interrupted or the answer is lost, run it again with the same token. Exit code 5 when the server refuses.
    #[command(name = "enroll", after_help = ENROLL_EXAMPLES)]
    Enroll {
        /// The token, one line, or (-) standard input; better not on the command line, where every user of this host sees it
        #[arg(conflicts_with = "token_file")]
        token: Option<String>,
        /// A file that the token is in
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Folder to write agent.toml, root.json and host.pem to
        #[arg(long, value_name = "DIR", default_value = "/etc/patchlab-agent")]
        dir: PathBuf,
    },
    /// Shows what applying an order would do, as the package manager simulates it, and changes nothing
    Simulate {
        /// The order, as it is signed
        order: PathBuf,
        /// Where its files are, by any name; of packages, what ends in .deb or .rpm
        #[arg(long, value_name = "DIR")]
        files: PathBuf,
        /// The enrolment file, mode 0600
        #[arg(long, value_name = "FILE", default_value = "/etc/patchlab-agent/agent.toml")]
        config: PathBuf,
    },
}

const ENROLL_EXAMPLES: &str = "Examples:
  patchlab-agent enroll <token
  patchlab-agent enroll --token-file /run/token
  ssh server patchlab host token create web-1 --address 192.0.2.7:161 --site hall-2 | patchlab-agent enroll";

/// Exit code of `verify` and `simulate` when the agent would refuse, and of `enroll` when the server does.
const REFUSED: u8 = 5;

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    log_to_stderr(match command {
        // What a person asks is answered on standard output; beside it stands only what is wrong.
        Command::Status { .. } | Command::Inventory { .. } | Command::Verify { .. } | Command::Simulate { .. } => {
            Level::WARN
        }
        Command::Run { .. } | Command::Rollback { .. } | Command::Enroll { .. } => Level::INFO,
    });
    let done = match command {
        Command::Run { config } => run(config),
        Command::Status { config, json } => status(config, json),
        Command::Inventory { config, verify, json } => {
            inventory(&config, if verify { Files::Verified } else { Files::AsTheyAre }, json)
        }
        Command::Verify { order, release, approval, activation, config } => {
            verify(&config, &DocumentFiles { order, release, approval, activation })
        }
        Command::Rollback { order, config } => return end(roll_back(&config, order)),
        Command::Enroll { token, token_file, dir } => enroll(token.as_deref(), token_file.as_deref(), &dir),
        Command::Simulate { order, files, config } => simulate(&config, &order, &files),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patchlab-agent: {}", causes(&error));
            if is_refusal(&error) { ExitCode::from(REFUSED) } else { ExitCode::FAILURE }
        }
    }
}

/// An error with its causes; one that is told already is not told again.
fn causes(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(InspectionError::Refused(_)))
        || matches!(error.downcast_ref(), Some(EnrolError::Ask(AskError::Denied { .. })))
}

/// What is told, as RUST_LOG says it (`info,patchlab_agent=debug`). The SNMP engine warns of every message it cannot read, and whoever reaches its
/// port can send them without end: they are counted, and do not fill the log.
fn log_to_stderr(level: Level) {
    let said = std::env::var("RUST_LOG").ok().and_then(|said| said.parse().ok());
    // Not the filter that knows spans and patterns: it has a regular expression engine of its own.
    let told = said.unwrap_or_else(|| Targets::new().with_default(level).with_target("async_snmp", Level::ERROR));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(told)).init();
}

/// Puts it on standard output. A reader that has gone (`| head`) wants no more, and that is no error.
fn tell(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        told => told.context("write to standard output"),
    }
}

/// The exit code of a rollback.
fn end(ended: anyhow::Result<Said>) -> ExitCode {
    match ended {
        Ok(Said::Ended { state: RunState::RolledBack, reason, .. }) => {
            // It is done, whoever reads of it.
            let _ = tell(&format!("rolled back {reason}\n"));
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
            eprintln!("patchlab-agent: {}", causes(&error));
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

fn enroll(token: Option<&str>, file: Option<&Path>, dir: &Path) -> anyhow::Result<()> {
    let text = match (token, file) {
        (Some(token), _) if token != "-" => token.to_owned(),
        (_, Some(file)) => token_from(File::open(file).with_context(|| format!("open {}", file.display()))?)?,
        _ => {
            if io::stdin().is_terminal() {
                eprintln!("The token, one line:");
            }
            token_from(io::stdin().lock())?
        }
    };
    let token: EnrolmentToken = text.parse().map_err(EnrolError::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Enrolled { enrolment, config, key, updaters } =
        runtime.block_on(Box::pin(patchlab_agent::enrolment::enrol(&token, dir)))?;
    let mut said = format!(
        "host {} is enrolled with {}, key {key}; its configuration is {}\n",
        enrolment.host,
        token.server,
        config.display()
    );
    if !updaters.is_empty() {
        let named = updaters.join(", ");
        said += &format!(
            "automatic updaters run here: {named}; what they change nobody has proven, so consider switching them off\n"
        );
    }
    said += "next: systemctl enable --now patchlab-agent\n";
    tell(&said)
}

/// The first line.
fn token_from(source: impl io::Read) -> anyhow::Result<String> {
    let mut line = String::new();
    let most = limits::TOKEN_BYTES as u64 + 2;
    BufReader::new(source.take(most)).read_line(&mut line).context("read the token")?;
    Ok(line)
}

fn inspect(config: &Path) -> anyhow::Result<Inspection> {
    Ok(Inspection::open(configuration::read_all(config)?)?)
}

/// Whether the files of packages are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    Verified,
    AsTheyAre,
}

fn inventory(config: &Path, files: Files, json: bool) -> anyhow::Result<()> {
    let inspection = inspect(config)?;
    let found = inspection.inventory()?;
    let verified = (files == Files::Verified).then(|| inspection.files()).transpose()?;
    if json {
        let mut told = serde_json::to_value(&found)?;
        if let Some(verified) = &verified {
            told["files"] = serde_json::to_value(verified)?;
        }
        tell(&format!("{}\n", serde_json::to_string_pretty(&told)?))?;
    } else {
        let mut lines = shown(&found);
        if let Some(verified) = &verified {
            lines.push(format!("{} files are not as they were shipped", verified.altered.len() + verified.untold));
            lines.extend(verified.altered.iter().map(|file| format!("file {file}")));
        }
        tell(&(lines.join("\n") + "\n"))?;
    }
    let broken = verified.map_or(0, |verified| verified.broken().count());
    anyhow::ensure!(broken == 0, "{broken} files of packages are missing or altered: install their packages anew");
    Ok(())
}

/// Line by line, for people.
fn shown(found: &HostInventory) -> Vec<String> {
    let updaters = if found.updaters.is_empty() { "none".to_owned() } else { found.updaters.join(", ") };
    let description = &found.description;
    let said = |word: &str| if word.is_empty() { "not said".to_owned() } else { word.to_owned() };
    let (location, function) = (said(&description.tags.location), said(&description.tags.function));
    let system = found.system.map_or("no package system", PackageSystem::name);
    let mut lines = vec![
        format!("host {}: {}, kernel {}", found.host, found.class, found.kernel),
        format!("machine: {}, location: {location}, function: {function}", said(&description.machine)),
        format!("automatic updaters: {updaters}"),
        format!("{} packages of {system}, digest {}", found.packages.len(), found.digest),
    ];
    lines.extend(found.packages.iter().cloned());
    lines.extend(found.half_way.iter().map(|line| format!("half-way: {line}")));
    lines.extend(description.lines());
    lines
}

fn verify(config: &Path, files: &DocumentFiles) -> anyhow::Result<()> {
    tell(&match inspect(config)?.verify(files)? {
        Fit::Order(order) => {
            let (id, title) = (order.id, order.title);
            format!("order {id} itself is fit; no permission was looked at: {title}\n")
        }
        Fit::Permitted(order) => format!("order {} would be obeyed: {}\n", order.id, order.title),
    })
}

fn simulate(config: &Path, order: &Path, files: &Path) -> anyhow::Result<()> {
    let lines = inspect(config)?.simulate(order, files)?;
    tell(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())
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
    step.evaluate(target, Context { dir: None, budget, pace: 1 })
}

fn status(config: PathBuf, json: bool) -> anyhow::Result<()> {
    let enrolment = configuration::enrolment(&config)?;
    let path = enrolment.state_dir.join(journal::FILE_NAME);
    let state = journal::read(&path).with_context(|| format!("host {}", enrolment.host))?;
    if json {
        return tell(&format!("{}\n", serde_json::to_string_pretty(&state)?));
    }
    tell(&summary(&enrolment.host, &state))
}

/// Text that somebody else wrote, for a terminal: what would move its cursor or paint on it is shown, not done.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// One line a run, newest last.
fn summary(host: &str, state: &State) -> String {
    let mut text = format!("host {host}: {} orders, {} applied\n", state.orders.len(), state.applied.len());
    for (index, order) in &state.orders {
        text += &format!("order row {index}: {} from {}\n", order.columns.digest.short(), plain(&order.columns.uri));
        for (number, run) in &order.runs {
            let seconds = run.duration(patchlab_agent::run::now()) / 1000;
            let refusal = run.refusal.map(|refusal| format!(" {refusal}")).unwrap_or_default();
            let reason = if run.error.is_empty() { String::new() } else { format!(": {}", plain(&run.error)) };
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

#[cfg(test)]
mod tests {
    use patchlab_agent::state::{Change, Event};
    use patchlab_protocol::Digest;

    use super::*;

    #[test]
    fn what_others_wrote_does_nothing_to_a_terminal() {
        assert_eq!(plain("http://m/\u{1b}[2Jx\u{9b}y\n"), r"http://m/\u{1b}[2Jx\u{9b}y\n");
        let mut state = State::default();
        let row = serde_json::json!({
            "digest": Digest::of("order"), "release": null, "approval": null, "activation": null,
            "uri": "http://m/\u{1b}]0;owned\u{7}", "lifetime": 60,
        });
        let orders = [(7, Some(serde_json::from_value(row).unwrap()))].into();
        state.apply(&Event::Set(Change { orders, ..Change::default() }));
        let told = summary("host-1", &state);
        assert!(told.contains(r"from http://m/\u{1b}]0;owned\u{7}"), "{told:?}");
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = configuration::enrolment(Path::new("/nonexistent")).unwrap_err();
        let told = causes(&error.into());
        assert_eq!(told.matches("No such file").count(), 1, "{told}");
        let inner = io::Error::other("the disk said no");
        assert_eq!(causes(&anyhow::Error::new(inner).context("write")), "write: the disk said no");
    }
}
