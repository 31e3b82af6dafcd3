//! `patchlab lab`: validations on clones, and what dead ones left behind. Needs no server.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use patchlab_check::Status;
use patchlab_lab::{
    ArtifactStore, gc, junit,
    report::Report,
    scenario::{Scenario, discover},
    validation::Reboot,
    verdict::Judgement,
};
use patchlab_protocol::{Digest, Envelope, SigningKey};

use super::{
    CliError, Exit, Global, Output,
    kept::{self, KeepWhen},
    progress::Progress,
    verdict,
};
use crate::{
    lab::{
        validate,
        worker::{Manner, Tell},
    },
    order::compile_file,
    trust::release::release,
};

/// The lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Apply an order to a clone, compare it with an unpatched one, and take it back again
    #[command(after_help = VALIDATE_EXAMPLES)]
    Validate(Validate),
    /// List the clones that were kept of validations
    #[command(after_help = kept::KEPT_EXAMPLES)]
    Kept,
    /// Look into a kept clone: run commands in it, from the moment in which it was saved
    #[command(after_help = kept::SHELL_EXAMPLES)]
    Shell(kept::ShellCommand),
    /// Take kept clones away
    #[command(after_help = kept::RM_EXAMPLES)]
    Rm {
        /// Names of kept clones, or how only one of them begins
        #[arg(required = true)]
        name: Vec<String>,
    },
    /// Take away what dead workers left behind (machines, files, links) and kept clones whose time is over
    #[command(after_help = GC_EXAMPLES)]
    Gc {
        /// Only say what would be taken away
        #[arg(long)]
        dry_run: bool,
    },
}

const GC_EXAMPLES: &str = "Examples:
  patchlab lab gc --dry-run
  patchlab lab gc";

const VALIDATE_EXAMPLES: &str = "Examples:
  patchlab lab validate --order order.toml
  patchlab lab validate --order order.toml --baseline debian-12-web --json verdict.json --junit junit.xml
  patchlab lab validate --order order.toml --keep on-failure     # then: patchlab lab kept, patchlab lab shell NAME

Exit codes: 0 passed, 1 rejected, 2 nothing meaningful ran, 3 cannot be applied, 4 the lab broke, 65 wrong input.";

/// A validation.
#[derive(Debug, Args)]
pub struct Validate {
    /// The order, as drafted
    #[arg(long, value_name = "ORDER.toml")]
    order: PathBuf,
    /// A baseline to validate on; all that represent the order's packages unless given
    #[arg(long, value_name = "NAME")]
    baseline: Vec<String>,
    /// Folder of scenarios, before ./scenarios
    #[arg(long, value_name = "DIR")]
    scenarios: Vec<PathBuf>,
    /// Write JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Sign a release of a passing order with this key, into ORDER.release.json
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// When clones reboot
    #[arg(long, value_enum, default_value_t = RebootWhen::Asked)]
    reboot: RebootWhen,
    /// When both clones are kept, for 3 days, to be looked into (lab kept, lab shell)
    #[arg(long, value_enum, default_value_t = KeepWhen::Never)]
    keep: KeepWhen,
}

/// When clones reboot.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RebootWhen {
    /// When the patched machine asks for it
    Asked,
    /// Always
    Always,
}

impl LabCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        match self {
            Self::Validate(validate) => validate.run(global),
            Self::Kept => kept::list(global),
            Self::Shell(shell) => shell.run(global),
            Self::Rm { name } => kept::remove(global, &name),
            Self::Gc { dry_run } => {
                let mode = if dry_run { gc::Mode::DryRun } else { gc::Mode::Collect };
                let leftovers = gc::collect(&global.data()?.lab(), mode).map_err(CliError::failed)?;
                let output = global.output();
                for leftover in &leftovers {
                    let failure = leftover.failure.as_deref().map(|why| format!("\tleft: {why}")).unwrap_or_default();
                    output.line(format!("{}\t{}{failure}", leftover.undertaking, leftover.what));
                }
                if leftovers.is_empty() {
                    output.line("nothing to collect");
                }
                output.json(&leftovers)?;
                let failed = leftovers.iter().any(|leftover| leftover.failure.is_some());
                Ok(if failed { Exit::Broken } else { Exit::Passed })
            }
        }
    }
}

/// Every scenario in the folders given and in `./scenarios`.
pub(super) fn scenarios(given: &[PathBuf]) -> Result<Vec<Scenario>, CliError> {
    let own = PathBuf::from("scenarios");
    let mut dirs = given.to_vec();
    if own.is_dir() && !dirs.contains(&own) {
        dirs.push(own);
    }
    discover(&dirs).map_err(CliError::input)
}

impl Validate {
    fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
        let order = compile_file(&self.order, &artifacts).map_err(CliError::from)?;
        let scenarios = scenarios(&self.scenarios)?;
        let signer = self.sign_key.as_deref().map(SigningKey::read).transpose().map_err(CliError::input)?;
        let baselines = validate::baselines(&data, &order, &self.baseline)
            .map_err(|error| CliError::Input(format!("{error:#}")))?;
        let reboot = match self.reboot {
            RebootWhen::Asked => Reboot::WhenAsked,
            RebootWhen::Always => Reboot::Always,
        };
        let manner = Manner { reboot, keep: self.keep.into() };
        let mut progress = Progress::new(output.voice());
        let report =
            validate::validate(&data, &order, &baselines, &scenarios, manner, &mut |baseline, tell| match tell {
                Tell::Phase(phase) => progress.now(&format!("{baseline}: {phase}")),
                Tell::Agent { what, .. } => progress.detail(&what),
                Tell::Step { scenario, step, role, status } => {
                    if status == Status::Fail {
                        progress.note(&format!("{scenario}/{step} fails on the {} clone", role.name()));
                    }
                }
                Tell::Note(text) => progress.note(&text),
                Tell::Done { .. } | Tell::Failed(_) => {}
            })
            .map_err(|error| CliError::Failed(format!("{error:#}")))?;
        drop(progress);
        verdict::print(&output, &report);
        if let Some(path) = &self.junit {
            let text = junit::render(&report).map_err(CliError::failed)?;
            std::fs::write(path, text)
                .map_err(|error| CliError::Failed(format!("--junit {}: {error}", path.display())))?;
        }
        if report.verdict == Judgement::Passed {
            self.sign(&output, &order, &report, signer.as_ref())?;
        }
        output.json(&report)?;
        Ok(exit(report.verdict))
    }

    /// Ends a passing validation with a release, or says that there is none.
    fn sign(
        &self,
        output: &Output,
        order: &patchlab_protocol::document::Order,
        report: &Report,
        signer: Option<&SigningKey>,
    ) -> Result<(), CliError> {
        let Some(key) = signer else {
            output.note("unsigned: no --sign-key was given; a server's signer can release it (order release)");
            return Ok(());
        };
        let envelope = Envelope::sign(release(report, order, jiff::Timestamp::now()), key);
        let path = self.order.with_extension("release.json");
        std::fs::write(&path, envelope.to_bytes())
            .map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
        output.note(format!(
            "release {} signed by {}: {}",
            Digest::short(&envelope.digest()),
            key.public().id(),
            path.display()
        ));
        Ok(())
    }
}

fn exit(judgement: Judgement) -> Exit {
    match judgement {
        Judgement::Passed => Exit::Passed,
        Judgement::Rejected => Exit::Rejected,
        Judgement::Missing => Exit::Missing,
        Judgement::Inapplicable => Exit::Inapplicable,
        Judgement::LabError => Exit::Broken,
    }
}
