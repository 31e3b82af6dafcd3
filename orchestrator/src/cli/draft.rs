//! `patchlab order draft`: what apt or dnf would install on a baseline, as an order. Needs no server.

use std::path::PathBuf;

use clap::Args;
use patchlab_check::{PackageSystem, step::PackageName};
use patchlab_lab::{
    ArtifactStore, Baseline,
    apt::{AptInputs, dpkg_arch},
    baseline::{APT, Baselines, RPM},
    dnf::DnfInputs,
};
use patchlab_protocol::document::{Class, Kind, Origin, PackageFile, Severity};
use serde_json::json;

use super::{CliError, Exit, Global, progress::Progress};
use crate::{
    draft::{self, Base, Inputs, Request, WhenCurrent},
    order::compile,
};

/// A draft.
#[derive(Debug, Args)]
pub struct Draft {
    /// The baseline whose systems the order is for
    #[arg(long, value_name = "NAME")]
    baseline: String,
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
    #[arg(long)]
    id: String,
    /// One line; made from the packages unless given
    #[arg(long)]
    title: Option<String>,
    /// critical, important, moderate or low
    #[arg(long, default_value = "important", value_parser = written::<Severity>)]
    severity: Severity,
    /// routine, emergency or workaround
    #[arg(long, default_value = "routine", value_parser = written::<Kind>)]
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
fn written<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(json!(text)).map_err(|error| error.to_string())
}

impl Draft {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let baseline = Baselines::open(&data.lab()).get(&self.baseline).map_err(CliError::input)?;
        let scenarios = super::lab::scenarios(&self.scenarios)?;
        let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
        let name = baseline.full_name();
        let os = &baseline.record.os;
        let class = Class { family: os.family.clone(), release: os.release.clone(), arch: os.arch.clone() };
        let inputs = inputs(&baseline);
        let pool = pool(&baseline);
        let base = Base { name: &name, class: &class, inputs: &inputs, pool: &pool };
        let request = Request {
            id: self.id,
            title: self.title,
            severity: self.severity,
            kind: self.kind,
            advisories: self.advisory,
            upgrade: self.upgrade,
            packages: self.package,
            when_current: if self.or_next { WhenCurrent::TakeNext } else { WhenCurrent::Stop },
        };
        let mut progress = Progress::new(output.voice());
        let cache = data.dir().join("cache");
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
        if let Some(dir) = self.out.parent() {
            std::fs::create_dir_all(dir).map_err(|error| CliError::Failed(format!("{}: {error}", dir.display())))?;
        }
        std::fs::write(&self.out, text)
            .map_err(|error| CliError::Failed(format!("{}: {error}", self.out.display())))?;
        let row = |file: &PackageFile| {
            let from = order.replaces.iter().find(|replaced| replaced.name == file.name);
            let from = from.map_or("-", |replaced| replaced.version.as_str());
            vec![file.name.clone(), format!("{from} -> {}", file.version), file.sha256.short()]
        };
        let rows: Vec<_> = order.install.iter().map(row).collect();
        output.table(&["package", "change", "digest"], &rows);
        output.fields(&[&order.id, &self.out.display().to_string()]);
        output.json(&json!({
            "id": order.id,
            "digest": patchlab_protocol::envelope::digest_of(order.clone()),
            "file": self.out,
            "order": order,
        }))?;
        Ok(Exit::Passed)
    }
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
