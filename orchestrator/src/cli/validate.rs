//! `patchlab lab validate`: orders to verdicts, and what becomes of those: tables, JUnit, a page, annotations, releases, exit codes.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use patchlab_check::written::Span;
use patchlab_lab::{
    ArtifactStore, Baseline,
    host::Libvirt,
    junit,
    report::Report,
    runs::{Runs, Scope, Tested},
    validation::Reboot,
    verdict::{Judgement, PreExisting},
};
use patchlab_protocol::{Digest, Envelope, SigningKey, document::Order};

use super::{
    CliError, Exit, Global, Output,
    annotation::{self, Runner, Written},
    bisection::{self, Bisect, Split},
    board::{Board, Orders},
    kept::KeepWhen,
    lab, verdict,
};
use crate::{
    lab::{
        control::Control,
        pool::Pool,
        validate::{self, Batch, Validated},
        worker::Manner,
    },
    order::compile_file,
    place::Data,
    trust::release::release,
};

pub(super) const EXAMPLES: &str = "Examples:
  patchlab lab validate --order order.toml
  patchlab lab validate --order order.toml --baseline debian-12-web --json verdict.json --junit junit.xml
  patchlab lab validate --order first.toml --order second.toml --jobs 4
  patchlab lab validate --order order.toml --html report.html
  patchlab lab validate --order order.toml --libvirt qemu:///system
  patchlab lab validate --order order.toml --control remembered  # half the machines, where the same was validated before
  patchlab lab validate --order order.toml --pre-existing block  # what fails without the patch as well rejects it, too
  patchlab lab validate --order order.toml --keep on-failure     # then: patchlab lab kept, patchlab lab shell NAME

Every run leaves a record: `patchlab lab runs` lists them, `patchlab lab show last` says what the newest found.
Ctrl-C ends all machines and leaves the record as interrupted; a second one leaves at once.

Exit codes: 0 passed, 1 rejected, 2 nothing meaningful ran, 3 cannot be applied, 4 the lab broke, 65 wrong input, 130 interrupted.";

/// A validation.
#[derive(Debug, Args)]
pub struct Validate {
    /// An order, as drafted; several are validated beside each other
    #[arg(long, value_name = "ORDER.toml", required = true)]
    order: Vec<PathBuf>,
    /// A baseline to validate on; all that represent an order's packages unless given
    #[arg(long, value_name = "NAME")]
    baseline: Vec<String>,
    /// Folder of scenarios, before ./scenarios
    #[arg(long, value_name = "DIR")]
    scenarios: Vec<PathBuf>,
    /// How many validations at once, of one order on one baseline each; as many as there are processors unless given. Never more
    /// than memory and disk allow
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Hosts that lend machines, by the URIs of their libvirt, instead of those in DATA/patchlab.toml
    #[arg(long, value_name = "URI")]
    libvirt: Vec<Libvirt>,
    /// Sign a release of a passing order with this key, into ORDER.release.json
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// When clones reboot
    #[arg(long, value_enum, default_value_t = RebootWhen::Asked)]
    reboot: RebootWhen,
    /// Longest duration of the apply on a clone, and of the rollback; 30 min unless given. What takes longer is ended, and the order's fault
    #[arg(long, value_name = "TIME")]
    apply_within: Option<Span>,
    /// When an order of several packages that is rejected, or fails as it is applied, is split, into the smallest sets that fail and the
    /// most that pass, by further validations
    #[arg(long, value_enum, default_value_t = Bisect::Auto)]
    bisect: Bisect,
    /// When both clones are kept, for 3 days, to be looked into (lab kept, lab shell)
    #[arg(long, value_enum, default_value_t = KeepWhen::Never)]
    keep: KeepWhen,
    /// Which control the patched clone is compared with
    #[arg(long, value_enum, default_value_t = WhichControl::Beside)]
    control: WhichControl,
    /// What a step means that fails on both clones, so without the patch as well
    #[arg(long, value_enum, default_value_t = PreExistingMeans::Show)]
    pre_existing: PreExistingMeans,
    /// Where results go.
    #[command(flatten)]
    results: Results,
}

/// Which control.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WhichControl {
    /// One of its own, beside it
    Beside,
    /// What one was found to be before, on the same baseline under the same scenarios and by the same patchlab: half the machines. At the
    /// first disagreement a control of its own is made
    Remembered,
}

impl From<WhichControl> for Control {
    fn from(which: WhichControl) -> Self {
        match which {
            WhichControl::Beside => Self::Beside,
            WhichControl::Remembered => Self::Remembered,
        }
    }
}

/// What a failure on both clones means.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PreExistingMeans {
    /// It is shown, and does not block
    Show,
    /// It rejects the order
    Block,
}

impl From<PreExistingMeans> for PreExisting {
    fn from(means: PreExistingMeans) -> Self {
        match means {
            PreExistingMeans::Show => Self::Show,
            PreExistingMeans::Block => Self::Block,
        }
    }
}

/// Where results go, beside standard output and the record.
#[derive(Debug, Args)]
pub struct Results {
    /// Write JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write one HTML page, with both clones side by side
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a code quality report, which GitLab shows at the lines of scenario files in merge requests
    #[arg(long, value_name = "FILE")]
    code_quality: Option<PathBuf>,
}

/// When clones reboot.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RebootWhen {
    /// When the patched machine asks for it
    Asked,
    /// Always
    Always,
}

impl From<RebootWhen> for Reboot {
    fn from(when: RebootWhen) -> Self {
        match when {
            RebootWhen::Asked => Self::WhenAsked,
            RebootWhen::Always => Self::Always,
        }
    }
}

impl Validate {
    /// How the orders are validated.
    fn manner(&self) -> Manner {
        let apply_within = self.apply_within.map(|span| span.0);
        let (reboot, keep, control) = (self.reboot.into(), self.keep.into(), self.control.into());
        Manner { reboot, keep, control, apply_within, pre_existing: self.pre_existing.into() }
    }

    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        self.results.fit(self.order.len())?;
        let pool = Pool::of(&data, &self.libvirt).map_err(CliError::input)?;
        let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
        let compile = |path: &PathBuf| compile_file(path, &artifacts).map_err(CliError::from);
        let orders = self.order.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) =
            orders.iter().enumerate().find(|(at, order)| orders[..*at].iter().any(|o| o.id == order.id))
        {
            return Err(CliError::Input(format!("order {} is given twice: results go by its id", twice.1.id)));
        }
        let scenarios = lab::scenarios(&self.scenarios)?;
        let signer = self.sign_key.as_deref().map(SigningKey::read).transpose().map_err(CliError::input)?;
        let on = |order: Order| -> Result<(Order, Vec<Baseline>), CliError> {
            let baselines = validate::baselines(&data, &order, &self.baseline);
            Ok((order, baselines.map_err(|error| CliError::Input(format!("{error:#}")))?))
        };
        let orders = orders.into_iter().map(on).collect::<Result<Vec<_>, _>>()?;
        let manner = self.manner();
        let batch = Batch {
            data: &data,
            orders: &orders,
            scenarios: &scenarios,
            scope: Scope::Whole,
            retry_of: None,
            manner,
            jobs: self.jobs.map(NonZeroUsize::get),
            pool: &pool,
        };
        let mut validated = run(&output, &batch)?;
        for (((order, _), path), validated) in orders.iter().zip(&self.order).zip(&validated) {
            if validated.report.verdict == Judgement::Passed {
                sign(&output, (order, path), &validated.report, signer.as_ref())?;
            }
        }
        let mut split = Split::Untold;
        if self.bisect == Bisect::Auto && exit(&validated) != Exit::Interrupted {
            // Which package it is takes many more validations: what is known already is not to wait for that, nor be lost with it.
            self.results.write(&data, &validated)?;
            if !output.is_machine_read() {
                documents(&output, &validated)?;
            }
            for ((order, path), validated) in orders.iter().zip(&self.order).zip(&mut validated) {
                split = bisection::split(&output, &batch, (order, path), &mut validated.report, &artifacts);
                match split {
                    Split::Told => Runs::open(&data.lab())
                        .amend(&validated.record.id, &validated.report)
                        .map_err(CliError::failed)?,
                    Split::Untold => {}
                    Split::Interrupted => break,
                }
            }
        }
        let exit = finish(&output, &data, &self.results, &validated)?;
        Ok(if split == Split::Interrupted { Exit::Interrupted } else { exit })
    }
}

/// Validates while people watch, and prints what was found.
pub(super) fn run(output: &Output, batch: &Batch<'_>) -> Result<Vec<Validated>, CliError> {
    let validated = watch(output, batch)?;
    for Validated { report, record } in &validated {
        verdict::print(output, report, record);
    }
    Ok(validated)
}

/// Validates while people watch.
pub(super) fn watch(output: &Output, batch: &Batch<'_>) -> Result<Vec<Validated>, CliError> {
    say_unfit(output, batch.orders);
    let orders = if batch.orders.len() == 1 { Orders::One } else { Orders::Several };
    let mut board = Board::new(output.voice(), orders);
    let validated = validate::validate(batch, &mut |seen| board.see(seen));
    drop(board);
    validated.map_err(|error| CliError::Failed(format!("{error:#}")))
}

/// Says of each baseline that this host cannot clone why, what that costs, and what helps.
fn say_unfit(output: &Output, orders: &[(Order, Vec<Baseline>)]) {
    let mut baselines: Vec<&Baseline> = orders.iter().flat_map(|(_, baselines)| baselines).collect();
    baselines.sort_by_key(|baseline| baseline.full_name());
    baselines.dedup_by_key(|baseline| baseline.digest);
    for baseline in baselines {
        if let Some(reason) = baseline.unfit_here() {
            let name = baseline.full_name();
            output.note(format!(
                "baseline {name}: {reason}, so its clones boot its disk instead of going on from its memory; `patchlab baseline \
                 refreeze {name}` freezes it again for this host"
            ));
        }
    }
}

/// Hands results on, and says by the exit code which is the worst.
pub(super) fn finish(
    output: &Output,
    data: &Data,
    results: &Results,
    validated: &[Validated],
) -> Result<Exit, CliError> {
    results.write(data, validated)?;
    let runner = runner();
    for Validated { report, record } in validated {
        let written = Written { junit: results.junit.as_deref(), code_quality: results.code_quality.as_deref() };
        for line in annotation::lines(&runner, report, &record.scenarios, written) {
            // Where standard output is a document, runners read the other one as well.
            if output.is_machine_read() { eprintln!("{line}") } else { output.line(line) }
        }
    }
    documents(output, validated)?;
    Ok(exit(validated))
}

/// Who runs this program.
fn runner() -> Runner {
    Runner::of(|name| std::env::var(name).ok())
}

/// The verdicts as JSON: of several orders a list.
fn documents(output: &Output, validated: &[Validated]) -> Result<(), CliError> {
    match validated {
        [one] => output.json(&one.report),
        all => output.json(&all.iter().map(|one| &one.report).collect::<Vec<_>>()),
    }
}

/// The worst of all; interrupted before anything else.
fn exit(validated: &[Validated]) -> Exit {
    use patchlab_lab::runs::{End, How};
    let is_interrupted = |one: &Validated| matches!(one.record.end, Some(End { how: How::Interrupted, .. }));
    if validated.iter().any(is_interrupted) {
        return Exit::Interrupted;
    }
    let worst = validated.iter().map(|one| one.report.verdict).reduce(Judgement::worse);
    match worst.unwrap_or(Judgement::Missing) {
        Judgement::Passed => Exit::Passed,
        Judgement::Rejected => Exit::Rejected,
        Judgement::Missing => Exit::Missing,
        Judgement::Inapplicable => Exit::Inapplicable,
        Judgement::LabError => Exit::Broken,
    }
}

impl Results {
    /// A page is about one run.
    fn fit(&self, orders: usize) -> Result<(), CliError> {
        match &self.html {
            Some(_) if orders > 1 => Err(CliError::Input(
                "--html writes a page about one order: `patchlab lab report RUN --out FILE` writes one for each run"
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    fn write(&self, data: &Data, validated: &[Validated]) -> Result<(), CliError> {
        if let Some(path) = &self.junit {
            let reports: Vec<Report> = validated.iter().map(|one| one.report.clone()).collect();
            let mut tested: Vec<Tested> = validated.iter().flat_map(|one| one.record.scenarios.clone()).collect();
            tested.dedup_by(|one, other| one.name == other.name);
            let text = junit::render(&reports, &tested).map_err(CliError::failed)?;
            write("--junit", path, &text)?;
        }
        if let Some(path) = &self.code_quality {
            let verdicts = validated.iter().map(|one| (&one.report, &one.record.scenarios[..]));
            // Where no runner says where the code is, it is here.
            let here = std::env::current_dir().unwrap_or_default();
            let runner = runner();
            let code = if runner == Runner::Other { &here } else { runner.code() };
            let entries = annotation::code_quality(code, verdicts);
            write("--code-quality", path, &format!("{entries:#}\n"))?;
        }
        if let (Some(path), [one]) = (&self.html, validated) {
            write("--html", path, &super::runs::page(data, &one.record.id)?)?;
        }
        Ok(())
    }
}

pub(super) fn write(option: &str, path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|error| CliError::Failed(format!("{option} {}: {error}", path.display())))
}

/// Ends a passing validation with a release, or says that there is none.
fn sign(
    output: &Output,
    (order, path): (&Order, &Path),
    report: &Report,
    signer: Option<&SigningKey>,
) -> Result<(), CliError> {
    let Some(key) = signer else {
        output.note("unsigned: no --sign-key was given; a server's signer can release it (order release)");
        return Ok(());
    };
    let envelope = Envelope::sign(release(report, order, jiff::Timestamp::now()), key);
    let path = path.with_extension("release.json");
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        validate: Validate,
    }

    #[test]
    fn what_a_failure_on_both_clones_means_is_said_on_the_command_line_and_stands_in_the_record() {
        let told = |more: &[&str]| {
            let line = Line::try_parse_from(["validate", "--order", "a.toml"].iter().chain(more)).unwrap();
            // A record keeps it as JSON, and a retry takes it from there.
            let kept = serde_json::to_value(line.validate.manner()).unwrap();
            serde_json::from_value::<Manner>(kept).unwrap().pre_existing
        };
        assert_eq!(told(&[]), PreExisting::Show);
        assert_eq!(told(&["--pre-existing", "show"]), PreExisting::Show);
        assert_eq!(told(&["--pre-existing", "block"]), PreExisting::Block);
        let before: Manner =
            serde_json::from_value(serde_json::json!({ "reboot": "always", "keep": "never" })).unwrap();
        assert_eq!(before.pre_existing, PreExisting::Show, "a run of an older patchlab");
    }
}
