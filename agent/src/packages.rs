//! The package manager, behind a trait: dpkg with apt is the one that is proven. Here rpm, Windows and AIX will enter.

mod apt;
mod simulation;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use patchlab_protocol::inventory::{Inventory, PackageId, Transaction};

use serde::{Deserialize, Serialize};

pub use apt::Apt;

use crate::{
    process::{Finished, ProcessMark},
    state::Reboot,
};

/// What is to be so after one transaction: these files installed, at whatever version is there now, and these packages
/// gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// Package files, absolute paths.
    pub install: Vec<PathBuf>,
    /// Packages to remove with their configuration.
    pub remove: Vec<PackageId>,
}

/// What is installed, as the package manager says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installed {
    /// Packages that are wholly installed: what digests are made of.
    pub settled: Inventory,
    /// Packages left half-way (unpacked, half-configured, …), with their version.
    pub unsettled: Inventory,
}

/// What a package file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileIdentity {
    /// Name and architecture.
    pub id: PackageId,
    /// Version.
    pub version: String,
    /// What its files take when they are unpacked, bytes, as its maker says; 0 when it says nothing.
    pub unpacked: u64,
}

/// How a transaction went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// How the package manager ended.
    pub finished: Finished,
    /// How long it worked.
    pub duration: Duration,
}

/// The package manager could not be asked, or said no before it did anything.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// It could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Which program.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Which program.
        program: &'static str,
        /// Its exit status, or `killed`.
        status: String,
        /// Its last words.
        said: String,
    },
    /// What it said cannot be understood.
    #[error("{program} said something unexpected: {said:?}")]
    Unexpected {
        /// Which program.
        program: &'static str,
        /// The line.
        said: String,
    },
    /// The agent's own folder for it could not be made.
    #[error("cannot prepare {path} for the package manager")]
    Prepare {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A host's package manager. Every call blocks, until `deadline` at the latest.
pub trait PackageManager: Send + Sync {
    /// What is installed.
    ///
    /// # Errors
    /// When the package manager's records cannot be read.
    fn installed(&self) -> Result<Installed, PackageError>;

    /// What a package file says of itself.
    ///
    /// # Errors
    /// When it is no package file.
    fn identify(&self, file: &Path) -> Result<FileIdentity, PackageError>;

    /// What reaching the goal would change; changes nothing.
    ///
    /// # Errors
    /// When the goal cannot be reached, e.g. a dependency is neither installed nor among the files, or a package is held.
    fn simulate(&self, goal: &Goal, deadline: Instant) -> Result<Transaction, PackageError>;

    /// Reaches the goal, with patience for a lock that somebody took meanwhile. `started` is told the process before it is waited for.
    ///
    /// # Errors
    /// When it could not be started; how it ended is in the answer.
    fn commit(
        &self,
        goal: &Goal,
        deadline: Instant,
        started: &mut dyn FnMut(ProcessMark),
    ) -> Result<Committed, PackageError>;

    /// Finishes what was left half-way, as far as that is possible.
    ///
    /// # Errors
    /// When something stays half-way.
    fn settle(&self, deadline: Instant) -> Result<(), PackageError>;

    /// Carries a transaction that was interrupted to its goal, from the same files and without planning anew: it was
    /// planned, compared and begun before.
    ///
    /// # Errors
    /// When something stays half-way.
    fn resume(&self, goal: &Goal, deadline: Instant) -> Result<(), PackageError>;

    /// Whether the host asks for a reboot after this transaction.
    fn reboot(&self, done: &Transaction) -> Reboot;

    /// The files on which whoever changes packages holds a record lock, fcntl(2), in the order in which they are taken.
    fn locks(&self) -> Vec<PathBuf>;

    /// The file whose change means that the list of packages may have changed.
    fn database(&self) -> &Path;
}
