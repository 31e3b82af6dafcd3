//! `patchlab baseline`: stored systems that clones are made from. Needs no server.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use patchlab_lab::{
    Baseline, Manifest,
    artifact::ArtifactStore,
    baseline::{Baselines, BuildError, Built, StoreError, Weight},
    diff::{self, diff},
};
use serde_json::json;

use super::{CliError, Exit, Global, Output, progress::Progress};
use crate::{
    lab::job::{Job, launcher},
    legible,
    place::Data,
};

/// Baselines.
#[derive(Debug, Subcommand)]
pub enum BaselineCommand {
    /// Build a baseline from a recipe, boot it once and freeze it; one that is there already is taken from the store
    Build {
        /// The recipe
        #[arg(value_name = "RECIPE.toml")]
        recipe: PathBuf,
    },
    /// List baselines
    List,
    /// Show what one is made of
    Show {
        /// name, name@n or digest
        name: String,
    },
    /// Say what differs between two: packages, files, units, ports, kernel
    #[command(after_help = DIFF_EXAMPLES)]
    Diff {
        /// name, name@n or digest
        from: String,
        /// name, name@n or digest
        to: String,
    },
    /// Read every file of one again, its pool too, and compare digests
    Verify {
        /// name, name@n or digest
        name: String,
    },
    /// Take one away; its package files stay, since orders may need them
    Rm {
        /// name, name@n or digest
        name: String,
    },
}

const DIFF_EXAMPLES: &str = "Examples:
  patchlab baseline diff debian-12-web@1 debian-12-web@2
  patchlab baseline diff debian-12-web@1 debian-12-web@2 --json diff.json

A screen's worth is shown; the JSON has every file. What differs between any two runs of one machine (caches, logs, identities) is left out.";

impl BaselineCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let baselines = Baselines::open(&data.lab());
        let output = global.output();
        match self {
            Self::Build { recipe } => build(&baselines, &output, &recipe)?,
            Self::List => list(&baselines, &output)?,
            Self::Show { name } => show(&baselines.get(&name).map_err(classify)?, &output)?,
            Self::Diff { from, to } => compare(&baselines, &output, [&from, &to])?,
            Self::Verify { name } => verify(&data, &baselines, &output, &name)?,
            Self::Rm { name } => {
                let (removed, digest) = baselines.remove(&name).map_err(classify)?;
                output.fields(&[&removed, "removed"]);
                output.json(&json!({ "removed": removed, "digest": digest }))?;
            }
        }
        Ok(Exit::Passed)
    }
}

fn build(baselines: &Baselines, output: &Output, recipe: &Path) -> Result<(), CliError> {
    let mut progress = Progress::new(output.voice());
    let launcher = launcher(Job::Freeze).map_err(CliError::failed)?;
    let built = baselines
        .build(recipe, &launcher, &mut |told| {
            let line = format!("{}/{} {}", told.step, patchlab_lab::baseline::Progress::STEPS, told.what);
            match told.weight {
                Weight::Passing => progress.now(&line),
                Weight::Lasting => progress.note(&line),
            }
        })
        .map_err(classify_build)?;
    let took = progress.elapsed();
    drop(progress);
    let whence = match &built {
        Built::New(_) => "built",
        Built::Stored(_) => "taken from the store",
    };
    let baseline = built.baseline();
    output.fields(&[&baseline.full_name(), &baseline.digest.to_string(), whence]);
    output.note(format!("{whence} in {}", legible::duration(took)));
    let mut shown = summary(baseline);
    shown["from_store"] = json!(matches!(built, Built::Stored(_)));
    shown["ms"] = json!(took.as_millis() as u64);
    output.json(&shown)
}

fn list(baselines: &Baselines, output: &Output) -> Result<(), CliError> {
    let all = baselines.list().map_err(classify)?;
    let row = |baseline: &Baseline| {
        let record = &baseline.record;
        let size: u64 = record.files.values().map(|file| file.size).sum();
        vec![
            baseline.full_name(),
            format!("{} {} {}", record.os.family, record.os.release, record.os.arch),
            record.pool.len().to_string(),
            format!("{} MiB", size >> 20),
            baseline.digest.short(),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    output.table(&["baseline", "system", "packages", "size", "digest"], &rows);
    output.json(&all.iter().map(summary).collect::<Vec<_>>())
}

fn show(baseline: &Baseline, output: &Output) -> Result<(), CliError> {
    let record = &baseline.record;
    let (frozen, hardware, represents) = (&record.frozen, &record.hardware, &record.represents);
    let mut pairs = vec![
        ("baseline", baseline.full_name()),
        ("digest", baseline.digest.to_string()),
        ("system", format!("{} {} {}", record.os.family, record.os.release, record.os.arch)),
        ("kernel", frozen.kernel.clone()),
        ("frozen", output.moment(&frozen.at.to_string())),
        (
            "under",
            format!("QEMU {}, libvirt {}, {:?}", frozen.versions.qemu, frozen.versions.libvirt, hardware.accelerator),
        ),
        ("memory", format!("{} MiB, {} processors", hardware.memory_mib, hardware.vcpus)),
        ("represents", format!("tags {:?}, packages {:?}", represents.tags, represents.packages)),
        ("pool", format!("{} package files", record.pool.len())),
    ];
    pairs.extend(
        record.files.iter().map(|(name, file)| ("file", format!("{name}  {} bytes  {}", file.size, file.sha256))),
    );
    output.pairs(&pairs);
    output.json(record)
}

fn compare(baselines: &Baselines, output: &Output, names: [&str; 2]) -> Result<(), CliError> {
    let [from, to] = names.map(|name| baselines.get(name).map_err(classify));
    let (from, to) = (from?, to?);
    let found = diff(&from.manifest().map_err(classify)?, &to.manifest().map_err(classify)?);
    output.note(format!("from {} to {}", from.full_name(), to.full_name()));
    diff::summary(&found).lines().for_each(|line| output.line(line));
    output.json(&json!({ "from": from.full_name(), "to": to.full_name(), "diff": found }))
}

fn verify(data: &Data, baselines: &Baselines, output: &Output, name: &str) -> Result<(), CliError> {
    let baseline = baselines.verify(name).map_err(classify)?;
    let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
    for file in &baseline.record.pool {
        artifacts.verify(&file.sha256).map_err(|error| {
            let (baseline, name, version) = (baseline.full_name(), &file.name, &file.version);
            CliError::Failed(format!("baseline {baseline}: {name} {version} of its pool: {error}"))
        })?;
    }
    let (files, pool) = (baseline.record.files.len(), baseline.record.pool.len());
    let full_name = baseline.full_name();
    output.fields(&[&full_name, "intact", &format!("{files} files"), &format!("{pool} package files")]);
    output.json(&json!({ "baseline": full_name, "intact": true, "files": files, "pool": pool }))
}

/// A baseline for programs, without the pool's hundreds of lines.
fn summary(baseline: &Baseline) -> serde_json::Value {
    let record = &baseline.record;
    json!({
        "name": baseline.full_name(),
        "digest": baseline.digest,
        "os": record.os,
        "kernel": record.frozen.kernel,
        "packages": record.pool.len(),
        "represents": record.represents,
        "accelerator": record.hardware.accelerator,
        "manifest_schema": Manifest::SCHEMA,
    })
}

fn classify_build(error: BuildError) -> CliError {
    let is_input = match &error {
        BuildError::Recipe(_) => true,
        BuildError::Step { source, .. } => matches!(**source, BuildError::NoSuchPackage { .. }),
        _ => false,
    };
    let text = chain(&error);
    if is_input { CliError::Input(text) } else { CliError::Failed(text) }
}

fn classify(error: StoreError) -> CliError {
    match error {
        StoreError::Unknown { .. } => CliError::Input(error.to_string()),
        StoreError::Needed { .. } => CliError::Refused(error.to_string()),
        other => CliError::Failed(chain(&other)),
    }
}

/// An error and what caused it, on one line; a cause that the error already says is not said twice.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
