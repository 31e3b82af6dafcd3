//! `patchlab baseline`: stored systems that clones are made from. Needs no server.

use std::path::PathBuf;

use clap::Subcommand;
use patchlab_lab::{
    Baseline, Manifest,
    artifact::ArtifactStore,
    baseline::{Baselines, BuildError, Built, StoreError, Weight},
};
use serde_json::json;

use super::{CliError, Exit, Global, progress::Progress};
use crate::lab::job::{Job, launcher};

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

impl BaselineCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let baselines = Baselines::open(&data.lab());
        let output = global.output();
        match self {
            Self::Build { recipe } => {
                let mut progress = Progress::new(output.voice());
                let launcher = launcher(Job::Freeze).map_err(CliError::failed)?;
                let built = baselines
                    .build(&recipe, &launcher, &mut |told| {
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
                output.line(format!("{}\t{}\t{whence}", baseline.full_name(), baseline.digest));
                output.note(format!("{whence} in {}", crate::legible::duration(took)));
                let mut shown = summary(baseline);
                shown["from_store"] = json!(matches!(built, Built::Stored(_)));
                shown["ms"] = json!(took.as_millis() as u64);
                output.json(&shown)?;
            }
            Self::List => {
                let all = baselines.list().map_err(classify)?;
                let rows: Vec<_> = all
                    .iter()
                    .map(|baseline| {
                        let record = &baseline.record;
                        let size: u64 = record.files.values().map(|file| file.size).sum();
                        vec![
                            baseline.full_name(),
                            format!("{} {} {}", record.os.family, record.os.release, record.os.arch),
                            record.pool.len().to_string(),
                            format!("{} MiB", size >> 20),
                            baseline.digest.short(),
                        ]
                    })
                    .collect();
                output.table(&["baseline", "system", "packages", "size", "digest"], &rows);
                output.json(&all.iter().map(summary).collect::<Vec<_>>())?;
            }
            Self::Show { name } => {
                let baseline = baselines.get(&name).map_err(classify)?;
                let record = &baseline.record;
                output.line(format!("{}  {}", baseline.full_name(), baseline.digest));
                output.line(format!("system     {} {} {}", record.os.family, record.os.release, record.os.arch));
                output.line(format!("kernel     {}", record.frozen.kernel));
                output.line(format!(
                    "frozen     {} under QEMU {}, libvirt {}, {:?}",
                    record.frozen.at,
                    record.frozen.versions.qemu,
                    record.frozen.versions.libvirt,
                    record.hardware.accelerator
                ));
                output.line(format!(
                    "memory     {} MiB, {} processors",
                    record.hardware.memory_mib, record.hardware.vcpus
                ));
                output.line(format!(
                    "represents tags {:?}, packages {:?}",
                    record.represents.tags, record.represents.packages
                ));
                output.line(format!("pool       {} package files", record.pool.len()));
                for (name, file) in &record.files {
                    output.line(format!("file       {name}  {} bytes  {}", file.size, file.sha256));
                }
                output.json(record)?;
            }
            Self::Verify { name } => {
                let baseline = baselines.verify(&name).map_err(classify)?;
                let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
                for file in &baseline.record.pool {
                    artifacts.verify(&file.sha256).map_err(|error| {
                        let (baseline, name, version) = (baseline.full_name(), &file.name, &file.version);
                        CliError::Failed(format!("baseline {baseline}: {name} {version} of its pool: {error}"))
                    })?;
                }
                let (files, pool) = (baseline.record.files.len(), baseline.record.pool.len());
                output.line(format!("{}\tintact\t{files} files\t{pool} package files", baseline.full_name()));
                output
                    .json(&json!({ "baseline": baseline.full_name(), "intact": true, "files": files, "pool": pool }))?;
            }
            Self::Rm { name } => {
                let (removed, digest) = baselines.remove(&name).map_err(classify)?;
                output.line(format!("{removed}\tremoved"));
                output.json(&json!({ "removed": removed, "digest": digest }))?;
            }
        }
        Ok(Exit::Passed)
    }
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
