//! Benches. `bench clone` measures how fast machines come to life, with bare QEMU as the floor in the same run; `bench validate` how long
//! a validation takes, beside autopkgtest at the same work; `bench parallel` how long several at once, beside what the processors need for
//! them; `bench agent` what an agent costs its host.
//!
//! The numbers are medians of interleaved runs, so that what else the host does meets both sides alike.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use patchlab_lab::{
    LabHost,
    baseline::{Baselines, Built, Progress, serve_freeze},
    places::Places,
    worker::{self, Launcher, Network},
};
use patchlab_tests::{
    agent_bench,
    clone_bench::{Order, Word},
    parallel_bench,
    validate_bench::Bench,
};
use serde_json::Value;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Cold boot, template clone, eight clones at once, memory per clone.
    Clone(CloneArguments),
    /// A validation by patchlab, and the same work by autopkgtest.
    Validate(ValidateArguments),
    /// Several validations at once, and what the processors need for them.
    Parallel(ParallelArguments),
    /// The agent: size, start, memory idle and while it applies a large order, processor time idle.
    Agent(AgentArguments),
    /// Started by the lab: freezes a baseline.
    #[command(hide = true)]
    FreezeWorker,
    /// Started by the bench: clones it.
    #[command(hide = true)]
    CloneWorker,
}

#[derive(clap::Args)]
struct CloneArguments {
    /// Where to write the medians, as flat JSON; `-` for standard output.
    #[arg(long, default_value = "-")]
    json: PathBuf,
    /// Recipe of the baseline to clone; built when it is not in the store.
    #[arg(long, default_value = "images/debian-12-web.toml")]
    recipe: PathBuf,
    /// Data folder; its store keeps the baseline for the next run.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// Template clones to make one after the other, each beside one of bare QEMU.
    #[arg(long, default_value_t = 7)]
    runs: u32,
    /// Cold boots among them.
    #[arg(long, default_value_t = 2)]
    cold_boots: u32,
}

#[derive(clap::Args)]
struct ValidateArguments {
    /// Where to write the medians, as flat JSON; `-` for standard output.
    #[arg(long, default_value = "-")]
    json: PathBuf,
    /// Data folder; its store keeps the baseline for the next run. The lab's user must be able to reach it.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// How often each side does the work. autopkgtest takes minutes.
    #[arg(long, default_value_t = 1)]
    runs: u32,
}

#[derive(clap::Args)]
struct ParallelArguments {
    /// Where to write the figures, as flat JSON; `-` for standard output.
    #[arg(long, default_value = "-")]
    json: PathBuf,
    /// Data folder; its store keeps the baseline for the next run. The lab's user must be able to reach it.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// How many validations.
    #[arg(long, default_value_t = 8)]
    count: u32,
}

#[derive(clap::Args)]
struct AgentArguments {
    /// Where to write the medians, as flat JSON; `-` for standard output.
    #[arg(long, default_value = "-")]
    json: PathBuf,
    /// The agent to measure: the static one that ships.
    #[arg(long, env = "PATCHLAB_AGENT", default_value = "target/release/patchlab-agent")]
    agent: PathBuf,
    /// Where to work; three times the order's size is needed.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// Starts to take the median of.
    #[arg(long, default_value_t = 11)]
    starts: u32,
    /// Seconds to watch it idle.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Size of the order, MiB.
    #[arg(long, default_value_t = 500)]
    order: u64,
}

impl AgentArguments {
    fn run(self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.data)?;
        let bench = agent_bench::Bench {
            agent: self.agent,
            folder: self.data.canonicalize()?,
            starts: self.starts,
            idle: std::time::Duration::from_secs(self.idle),
            order_mib: self.order,
        };
        write(&bench.measure()?, &self.json)
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::FreezeWorker => return serve_freeze(),
        Command::CloneWorker => return patchlab_tests::clone_bench::serve(),
        Command::Clone(arguments) => clone(&arguments),
        Command::Agent(arguments) => arguments.run(),
        Command::Validate(ValidateArguments { json, data, runs }) => {
            Bench::prepare(&data).and_then(|bench| bench.measure(runs)).and_then(|medians| write(&medians, &json))
        }
        Command::Parallel(ParallelArguments { json, data, count }) => Bench::prepare(&data)
            .and_then(|bench| parallel_bench::measure(&bench, count))
            .and_then(|figures| write(&figures, &json)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn launcher(command: &str) -> anyhow::Result<Launcher> {
    Ok(Launcher { program: std::env::current_exe()?, arguments: vec![command.into()] })
}

fn clone(arguments: &CloneArguments) -> anyhow::Result<()> {
    std::fs::create_dir_all(&arguments.data)?;
    let places = Places::of_data(&arguments.data.canonicalize()?);
    let mut tell = |progress: Progress| {
        let Progress { step, what, elapsed, .. } = progress;
        eprintln!("[{:6.1} s] {step}/{} {what}", elapsed.as_secs_f64(), Progress::STEPS);
    };
    let built = Baselines::open(&places).build(&arguments.recipe, &launcher("freeze-worker")?, &mut tell)?;
    match &built {
        Built::New(baseline) => eprintln!("built {}", baseline.full_name()),
        Built::Stored(baseline) => eprintln!("{} taken from the store", baseline.full_name()),
        Built::Refrozen(baseline) => eprintln!("{} frozen again for this host", baseline.full_name()),
    }
    let mut worker = worker::spawn(&LabHost::here(), &places, &launcher("clone-worker")?, &Network::Isolated)?;
    let order =
        Order { baseline: built.baseline().full_name(), runs: arguments.runs, cold_boots: arguments.cold_boots };
    worker.sender().send(&order)?;
    let mut receiver = worker.take_receiver().context("the worker's channel")?;
    let medians = loop {
        match receiver.receive()?.context("the worker ended without a word")? {
            Word::Said(text) => eprintln!("{text}"),
            Word::Medians(medians) => break medians,
            Word::Failed(reason) => bail!("{reason}"),
        }
    };
    worker.end()?;
    write(&medians, &arguments.json)
}

fn write(medians: &BTreeMap<String, Value>, file: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(medians)? + "\n";
    if file.as_os_str() == "-" {
        print!("{text}");
        return Ok(());
    }
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
