//! `patchlab order draft`: what apt or dnf would install on a baseline, or the script that people wrote, as an order. Needs no server.

use std::path::{Path, PathBuf};

use clap::Args;
use patchlab_check::{PackageSystem, step::PackageName, written};
use patchlab_lab::{
    ArtifactStore, Baseline,
    apt::{AptInputs, dpkg_arch},
    baseline::{APT, Baselines, RPM},
    dnf::DnfInputs,
};
use patchlab_protocol::document::{Class, Kind, Order, Origin, PackageFile, Script, Severity, ShippedFile};
use serde_json::json;

use super::{CliError, Exit, Global, Output, progress::Progress};
use crate::{
    draft::{self, Base, Inputs, Request, WhenCurrent},
    order::{Written, compile},
};

const EXAMPLES: &str = "Examples:
  patchlab order draft --baseline web --upgrade nginx --id PO-2026-0001 --out order.toml
  patchlab order draft --baseline web --package ./tool.deb --id PO-2026-0002 --out order.toml
  patchlab order draft --from banner/written.toml --out banner/order.toml

With --from, the order is one that somebody wrote, whose change is made by scripts ([change.script]): its files are taken in, and the order is
written anew with their digests.";

/// A draft.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Draft {
    /// The baseline whose systems the order is for
    #[arg(long, value_name = "NAME", required_unless_present = "from")]
    baseline: Option<String>,
    /// An order with a [change.script], as people write it, to be drafted instead of packages
    #[arg(
        long,
        value_name = "WRITTEN.toml",
        conflicts_with_all = ["baseline", "upgrade", "package", "or_next", "id", "title", "advisory", "scenarios"]
    )]
    from: Option<PathBuf>,
    /// A package to bring to its newest version; may be given several times
    #[arg(long, value_name = "PKG", num_args = 1..)]
    upgrade: Vec<PackageName>,
    /// A package file (.deb or .rpm) made locally, installed too
    #[arg(long, value_name = "FILE")]
    package: Vec<PathBuf>,
    /// When none of them has a newer version, take the next package that has one, aloud
    #[arg(long)]
    or_next: bool,
    /// The order's id, e.g. PO-2026-0001
    #[arg(long, required_unless_present = "from")]
    id: Option<String>,
    /// One line; made from the packages unless given
    #[arg(long)]
    title: Option<String>,
    /// critical, important, moderate or low
    #[arg(long, default_value = "important", value_parser = word::<Severity>)]
    severity: Severity,
    /// routine, emergency or workaround
    #[arg(long, default_value = "routine", value_parser = word::<Kind>)]
    kind: Kind,
    /// An advisory it answers
    #[arg(long, value_name = "ID")]
    advisory: Vec<String>,
    /// Folder of scenarios, before ./scenarios
    #[arg(long, value_name = "DIR")]
    scenarios: Vec<PathBuf>,
    /// Where to write the order
    #[arg(long, value_name = "ORDER.toml")]
    out: PathBuf,
}

/// A word of the order's file.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(json!(text)).map_err(|error| error.to_string())
}

impl Draft {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        match (&self.from, self.baseline.clone(), self.id.clone()) {
            (Some(from), ..) => draft_script(from, &self.out, global),
            (None, Some(baseline), Some(id)) => self.draft_packages(&baseline, id, global),
            _ => Err(CliError::Input("give --baseline and --id, or --from".into())),
        }
    }

    fn draft_packages(self, baseline: &str, id: String, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let baseline = Baselines::open(&data.lab()).get(baseline).map_err(CliError::input)?;
        let scenarios = super::lab::scenarios(&self.scenarios)?;
        let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
        let name = baseline.full_name();
        let os = &baseline.record.os;
        let class = Class { family: os.family.clone(), release: os.release.clone(), arch: os.arch.clone() };
        let inputs = inputs(&baseline);
        let pool = pool(&baseline);
        let base = Base { name: &name, class: &class, inputs: &inputs, pool: &pool };
        let request = Request {
            id,
            title: self.title,
            severity: self.severity,
            kind: self.kind,
            advisories: self.advisory,
            upgrade: self.upgrade,
            packages: self.package,
            when_current: if self.or_next { WhenCurrent::TakeNext } else { WhenCurrent::Stop },
        };
        let mut progress = Progress::new(output.voice());
        let cache = data.lab().index;
        let drafted =
            draft::draft(&base, &request, &scenarios, &artifacts, &cache, &self.out, &mut |step| match step {
                draft::Progress::Updating => progress.now("bringing index files up to date"),
                draft::Progress::Resolving => progress.now("asking the package manager what it would install"),
                draft::Progress::Fetching { packages } => progress.now(&format!("fetching {packages} package files")),
                draft::Progress::Note(text) => progress.note(&text),
            })
            .map_err(CliError::input)?;
        drop(progress);
        let order = compile(&drafted).map_err(CliError::input)?;
        let text = draft::render(&drafted, &name).map_err(CliError::failed)?;
        write(&self.out, &text)?;
        let row = |file: &PackageFile| {
            let from = order.replaces.iter().find(|replaced| replaced.name == file.name);
            let from = from.map_or("-", |replaced| replaced.version.as_str());
            vec![file.name.clone(), format!("{from} -> {}", file.version), file.sha256.short()]
        };
        let rows: Vec<_> = order.install.iter().map(row).collect();
        output.table(&["package", "change", "digest"], &rows);
        tell(&order, &self.out, &output)
    }
}

/// Drafts the order that somebody wrote in `from`.
fn draft_script(from: &Path, out: &Path, global: &Global) -> Result<Exit, CliError> {
    let output = global.output();
    let artifacts = ArtifactStore::open(global.data()?.artifacts()).map_err(CliError::failed)?;
    let written: Written =
        written::parse(&written::read_text(from).map_err(CliError::input)?, from).map_err(CliError::input)?;
    let mut told = |step| {
        if let draft::Progress::Note(text) = step {
            output.note(text);
        }
    };
    let drafted = draft::draft_script(&written, from, &artifacts, out, &mut told).map_err(CliError::input)?;
    let order = compile(&drafted).map_err(CliError::input)?;
    write(out, &draft::render_script(&drafted).map_err(CliError::failed)?)?;
    let row = |file: &ShippedFile| vec![file.name.to_string(), file.size.to_string(), file.sha256.short()];
    let rows: Vec<_> = order.script.iter().flat_map(Script::shipped).map(row).collect();
    output.table(&["file", "bytes", "digest"], &rows);
    tell(&order, out, &output)
}

fn write(out: &Path, text: &str) -> Result<(), CliError> {
    if let Some(dir) = out.parent() {
        std::fs::create_dir_all(dir).map_err(|error| CliError::Failed(format!("{}: {error}", dir.display())))?;
    }
    std::fs::write(out, text).map_err(|error| CliError::Failed(format!("{}: {error}", out.display())))
}

fn tell(order: &Order, out: &Path, output: &Output) -> Result<Exit, CliError> {
    output.fields(&[&order.id, &out.display().to_string()]);
    output.json(&json!({
        "id": order.id,
        "digest": patchlab_protocol::envelope::digest_of(order.clone()),
        "file": out,
        "order": order,
    }))?;
    Ok(Exit::Passed)
}

fn inputs(baseline: &Baseline) -> Inputs {
    let os = &baseline.record.os;
    match baseline.record.package_system() {
        PackageSystem::Dpkg => {
            let file = |name: &str| baseline.file(APT).join(name);
            Inputs::Apt(AptInputs {
                status: file("status"),
                sources: file("sources.list"),
                keyrings: file("keyrings"),
                arch: dpkg_arch(&os.arch).to_owned(),
            })
        }
        PackageSystem::Rpm => Inputs::Dnf(DnfInputs::below(&baseline.file(RPM), &os.release, &os.arch)),
    }
}

/// The pool as an order names files. Signatures were checked when the baseline was made: apt's of the suite, rpm's of every file.
fn pool(baseline: &Baseline) -> Vec<PackageFile> {
    let file = |file: &patchlab_lab::baseline::PoolFile| PackageFile {
        name: file.name.clone(),
        version: file.version.clone(),
        arch: file.arch.clone(),
        size: file.size,
        sha256: file.sha256,
        origin: Origin::VendorSigned,
    };
    baseline.record.pool.iter().map(file).collect()
}
