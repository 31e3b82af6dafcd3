//! Who works out what an order would install: the package manager of the baseline's systems, as this host has it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use patchlab_check::PackageSystem;
use patchlab_lab::{
    apt::{Apt, AptError, AptInputs, transaction},
    dnf::{Dnf, DnfInputs},
};

use super::{DraftError, Transaction};

/// What drafting needs to know of a baseline's systems.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// Of those with dpkg.
    Apt(AptInputs),
    /// Of those with rpm.
    Dnf(DnfInputs),
}

impl Inputs {
    /// The package system that they are of.
    pub fn system(&self) -> PackageSystem {
        match self {
            Self::Apt(_) => PackageSystem::Dpkg,
            Self::Dnf(_) => PackageSystem::Rpm,
        }
    }
}

/// A package manager over a baseline's inputs.
#[derive(Debug)]
pub(super) enum Resolver<'a> {
    Apt(Apt),
    /// It is opened for each question: a simulation is written into what it works on.
    Dnf {
        inputs: &'a DnfInputs,
        cache: &'a Path,
        /// Where files are fetched to.
        folder: tempfile::TempDir,
    },
}

/// What would be installed, with the files that come from repositories where these are known already.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) transaction: Transaction,
    fetched: Vec<PathBuf>,
}

impl<'a> Resolver<'a> {
    pub(super) fn open(inputs: &'a Inputs, cache: &'a Path) -> Result<Self, DraftError> {
        match inputs {
            Inputs::Apt(inputs) => Ok(Self::Apt(Apt::open(inputs, cache)?)),
            Inputs::Dnf(inputs) => {
                let folder = tempfile::Builder::new().prefix("draft-files-").tempdir_in(cache);
                let folder = folder.map_err(|source| DraftError::Io {
                    action: "create a folder in",
                    path: cache.into(),
                    source,
                })?;
                Ok(Self::Dnf { inputs, cache, folder })
            }
        }
    }

    /// Names of what is installed.
    pub(super) fn installed(&self) -> Result<BTreeSet<String>, DraftError> {
        match self {
            Self::Apt(apt) => Ok(transaction::installed(apt.status()).into_keys().collect()),
            Self::Dnf { inputs, cache, .. } => {
                let dnf = Dnf::open(inputs, cache)?;
                Ok(dnf.installed().iter().map(|package| package.name.clone()).collect())
            }
        }
    }

    /// Brings index files up to date.
    pub(super) fn update(&self) -> Result<(), DraftError> {
        match self {
            Self::Apt(apt) => Ok(apt.update()?),
            Self::Dnf { inputs, cache, .. } => Ok(Dnf::open(inputs, cache)?.update()?),
        }
    }

    /// What brings `names` to their newest versions and installs `files`.
    pub(super) fn resolve(&self, names: &[String], files: &[PathBuf]) -> Result<Resolved, DraftError> {
        match self {
            Self::Apt(apt) => {
                let transaction = simulated(&apt.simulate_install(&words(names, files))?)?;
                Ok(Resolved { transaction, fetched: Vec::new() })
            }
            Self::Dnf { inputs, cache, folder } => {
                let dnf = Dnf::open(inputs, cache)?;
                let into = tempfile::tempdir_in(folder.path()).map(tempfile::TempDir::keep);
                let into = into.map_err(|source| DraftError::Io {
                    action: "create a folder in",
                    path: folder.path().into(),
                    source,
                })?;
                let fetched = dnf.fetch(names, files, &into)?;
                let all: Vec<PathBuf> = fetched.iter().chain(files).cloned().collect();
                Ok(Resolved { transaction: dnf.simulate(&all)?, fetched })
            }
        }
    }

    /// Names of what has a newer version.
    pub(super) fn upgradable(&self) -> Result<Vec<String>, DraftError> {
        match self {
            Self::Apt(apt) => {
                let transaction = simulated(&apt.simulate_upgrade()?)?;
                Ok(transaction.install.into_iter().map(|installation| installation.name).collect())
            }
            Self::Dnf { inputs, cache, .. } => Ok(Dnf::open(inputs, cache)?.upgradable()?),
        }
    }

    /// The files of what was resolved that come from repositories.
    pub(super) fn download(
        &self,
        resolved: &Resolved,
        names: &[String],
        files: &[PathBuf],
    ) -> Result<Vec<PathBuf>, DraftError> {
        match self {
            Self::Apt(apt) => Ok(apt.download(&words(names, files))?),
            Self::Dnf { .. } => Ok(resolved.fetched.clone()),
        }
    }
}

fn words(names: &[String], files: &[PathBuf]) -> Vec<String> {
    names.iter().cloned().chain(files.iter().map(|file| file.display().to_string())).collect()
}

pub(super) fn simulated(text: &str) -> Result<Transaction, DraftError> {
    transaction::parse_simulation(text).map_err(|line| {
        let reason = format!("its simulation says {line:?}, which is not understood");
        AptError::Apt { action: "resolve what to install", reason }.into()
    })
}
