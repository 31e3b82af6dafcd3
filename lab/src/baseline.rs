//! Baselines: pre-installed systems, frozen while they run.
//!
//! A baseline is an atomic, immutable, hashed tuple in a folder named by the digest of its record:
//!
//! ```text
//! DIGEST/baseline.json   the record: what it is made of, with the digest of every other file
//!        disk.qcow2      its disk, as it was at the freeze
//!        ram, state      its memory and devices at that moment
//!        domain.xml      libvirt's description of the machine that was frozen
//!        manifest.json   packages, files, units, ports, kernel
//!        apt/ or rpm/    dpkg's status or rpm's headers, all sources of packages, keys: what drafts an order
//! ```

mod build;
mod capture;
mod captured;
mod cloud;
mod coverage;
mod domain;
mod freeze;
mod image;
mod intake;
mod managed;
mod names;
mod offline;
mod parcel;
mod pool;
mod proof;
mod record;
mod refreeze;
mod retention;
mod secrets;
mod store;
mod successor;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use patchlab_check::Digest;
use serde::{Deserialize, Serialize};

pub use self::{
    build::Built,
    coverage::{Coverage, DkmsModule},
    domain::DomainError,
    freeze::serve_freeze,
    intake::IntakeError,
    parcel::{Imported, Offer, ParcelError},
    proof::{Sibling, Verified},
    record::{APT, Frozen, OrderName, Os, PackageVersion, PoolFile, RPM, Record, Represents, StoredFile},
    refreeze::Refreeze,
    retention::{Candidate, Fate, Policy, Pruned, Pruning, decide},
    secrets::{Extent, Secret, SecretKind, Secrets, SecretsPolicy},
    store::Baselines,
    successor::{Left, MadeBy, Patch, PutOn, SuccessorError},
};
pub(crate) use self::{image::PACKAGES, store::hold};
use crate::{
    apt::AptError,
    artifact::ArtifactError,
    dnf::DnfError,
    kept::KeptError,
    ledger::LedgerError,
    machine,
    manifest::Manifest,
    recipe::RecipeError,
    room::{Bytes, NoRoom},
    worker::{ChannelError, WorkerError},
};

/// The file of what a baseline was made of when it was frozen.
const MANIFEST: &str = "manifest.json";

/// A stored baseline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// Digest of its record.
    pub digest: Digest,
    /// Where its files are.
    pub folder: PathBuf,
    /// What it is made of.
    pub record: Record,
}

impl Baseline {
    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What it was made of when it was frozen, if the file still is what it was.
    ///
    /// # Errors
    /// The manifest is gone, was altered, or cannot be read.
    pub fn manifest(&self) -> Result<Manifest, StoreError> {
        let (baseline, path) = (self.full_name(), self.file(MANIFEST));
        let wrong = |reason: String| StoreError::Record { path: path.clone(), reason };
        let file = MANIFEST.to_owned();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { baseline, file });
            }
            other => other.map_err(|error| wrong(error.to_string()))?,
        };
        let expected = self.record.files.get(MANIFEST).map(|stored| stored.sha256);
        let expected = expected.ok_or_else(|| wrong(format!("its record names no {MANIFEST}")))?;
        let found = Digest::of(&bytes);
        if found != expected {
            return Err(StoreError::Altered { baseline, file, found, expected });
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        match (manifest.schema, Manifest::SCHEMA) {
            (schema, known) if schema > known => Err(StoreError::Newer { baseline, part: "manifest", schema, known }),
            _ => Ok(manifest),
        }
    }

    /// Why its memory is of no use as a template on this host, so that its clones boot instead; `None` when it is, or when QEMU is not
    /// there to be asked.
    pub fn unfit_here(&self) -> Option<String> {
        let (frozen, hardware) = (&self.record.frozen, &self.record.hardware);
        let here = machine::installed_qemu()?;
        machine::unfit(&frozen.versions.qemu, &frozen.host_cpu, &here, hardware)
    }

    /// Its full name, e.g. `debian-12-web@1`.
    pub fn full_name(&self) -> String {
        self.record.full_name()
    }
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Which of [`Progress::STEPS`] steps, from 1.
    pub step: u32,
    /// What is being done, for people.
    pub what: String,
    /// For how long people want to see it.
    pub weight: Weight,
    /// Since the build began.
    pub elapsed: Duration,
}

/// For how long people want to see what a build says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// Until the next: what is being done now.
    Passing,
    /// To the end: something to know.
    Lasting,
}

impl Progress {
    /// Steps of a build: install (libvirt opened first), disk, boot, settle, manifest, freeze, proof, store.
    pub const STEPS: u32 = 8;
}

/// A baseline could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The suites do not have them.
    #[error(
        "no package named {packages} in {suites}: correct `packages` in {recipe}, or add the pocket that has it to its source"
    )]
    NoSuchPackage {
        /// Their names.
        packages: String,
        /// Where they were looked for.
        suites: String,
        /// Who asks for them.
        recipe: PathBuf,
    },
    /// A step of the build failed. Nothing was stored.
    #[error("baseline {name}, step {step} of {steps} ({what}{log})", steps = Progress::STEPS, log = logged(.log.as_deref()))]
    Step {
        /// The baseline.
        name: String,
        /// Which step.
        step: u32,
        /// What was being done.
        what: String,
        /// Where its log lies.
        log: Option<PathBuf>,
        /// Why it failed.
        source: Box<BuildError>,
    },
    /// There is not enough room to begin.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The disk became full in the middle.
    #[error(
        "the disk is full: {free} were free in {folder} when it failed, and a build needs about {needed}: make room there, or \
         choose another folder with --data DIR"
    )]
    Full {
        /// Where.
        folder: PathBuf,
        /// What was free when it failed.
        free: Bytes,
        /// What a build needs.
        needed: Bytes,
        /// What failed first.
        source: Box<BuildError>,
    },
    /// A tool failed.
    #[error("{tool} on {subject}: {reason}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What it worked on.
        subject: String,
        /// What it said.
        reason: String,
    },
    /// apt, asked for what a system lacks.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// dnf and rpm, asked for a system's package files.
    #[error(transparent)]
    Dnf(#[from] DnfError),
    /// The image that it is to be made from.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// A machine of another libvirt.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// It holds secrets, and may not.
    #[error(
        "the system holds secrets: {}; say in its recipe what is to become of them: `secrets = \"scrub\"` in `source` overwrites and \
         removes them, \"keep\" keeps them",
        secrets::named(.found, *.extent)
    )]
    Secrets {
        /// Where and of which kind.
        found: Vec<Secret>,
        /// Whether that is all.
        extent: Extent,
    },
    /// The suite holds another system than the recipe says.
    #[error("suite {suite} installs {found}, and the recipe's `os` is {said}: correct one of the two")]
    OtherSystem {
        /// The suite.
        suite: String,
        /// What the installed system calls itself.
        found: String,
        /// What the recipe says.
        said: String,
    },
    /// Some installed package's file was not kept.
    #[error(
        "the package files of {} installed packages were not kept, first {first}: the pool would be incomplete",
        count
    )]
    PoolIncomplete {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// The patch could not be put on the machine that was to be a successor.
    #[error("its patched machine: {0}")]
    Successor(#[from] SuccessorError),
    /// The first boot or the freeze failed.
    #[error("first boot and freeze: {reason}")]
    Freeze {
        /// Why.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact store.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The way to the worker.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system said no.
    #[error("baseline: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn logged(log: Option<&Path>) -> String {
    log.map_or_else(String::new, |log| format!("; log {}", log.display()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Io { action, path, source }
}

/// A stored baseline could not be found, read or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such name or digest.
    #[error("no baseline {wanted:?}; there {}: build it with `patchlab baseline build RECIPE.toml`", listed(.known))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A file is not what it was.
    #[error(
        "baseline {baseline}: {file} was altered: its content now has digest {found}, not {expected}: take it away with \
         `patchlab baseline rm {baseline}` and build it again"
    )]
    Altered {
        /// Which baseline.
        baseline: String,
        /// Which of its files.
        file: String,
        /// What it has.
        found: Digest,
        /// What it had.
        expected: Digest,
    },
    /// A file is gone.
    #[error(
        "baseline {baseline}: {file} is missing: take it away with `patchlab baseline rm {baseline}` and build it again"
    )]
    Missing {
        /// Which baseline.
        baseline: String,
        /// Which of its files.
        file: String,
    },
    /// Kept clones are layers over its disk.
    #[error(
        "baseline {baseline} is needed by kept clones {}: remove them first, with `patchlab lab rm {}`",
        kept.join(", "), kept.join(" ")
    )]
    Needed {
        /// Which baseline.
        baseline: String,
        /// By what.
        kept: Vec<String>,
    },
    /// A machine that runs was made from it.
    #[error("baseline {baseline} is in use by a machine that runs: wait until that run ends")]
    InUse {
        /// Which baseline.
        baseline: String,
    },
    /// The kept clones cannot be looked through.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// A later patchlab wrote it, in a form that this one does not know.
    #[error(
        "baseline {baseline}: its {part} has form {schema}, and this patchlab reads forms up to {known}: use the patchlab that \
         wrote it, or a later one"
    )]
    Newer {
        /// Which baseline.
        baseline: String,
        /// Record or manifest.
        part: &'static str,
        /// Its form.
        schema: u32,
        /// The highest that is read.
        known: u32,
    },
    /// A record cannot be read.
    #[error("baseline record {path}: {reason}")]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system said no.
    #[error("baselines: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "are none".into() } else { format!("are {}", names.join(", ")) }
}
