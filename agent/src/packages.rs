//! The package manager, behind a trait: dpkg with apt, rpm, and none. Here Windows and AIX will enter.
//!
//! [`open`] takes the one that the system has, by what it says of itself or by what the configuration says.

mod altered;
mod apt;
mod excluded;
mod none;
mod offline;
mod pattern;
mod rpm;
mod simulation;
mod system;

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use patchlab_protocol::{
    PackageSystem, enrolment,
    inventory::{Inventory, PackageId, Sources, Transaction},
};

use serde::{Deserialize, Serialize};

pub use altered::{Altered, Difference, Extent, Kind, Verified};
pub use apt::Apt;
pub use none::NoPackages;
pub use offline::pending_offline;
pub use rpm::Rpm;
pub use system::{SystemError, system};

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

/// Longest answer of a query that is kept, bytes: a package list of a full desktop has a few hundred KiB.
const QUERY_BYTES: u64 = 16 * 1024 * 1024;
/// How long a query may take.
const QUERY: Duration = Duration::from_secs(120);

/// What is installed, as the package manager says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Whose packages these are; `None` where there is no package system.
    pub system: Option<PackageSystem>,
    /// Packages that are wholly installed: what digests are made of.
    pub settled: Inventory,
    /// Packages left half-way (unpacked, half-configured, two versions of one, …), with their version.
    pub unsettled: Inventory,
    /// What they were built from, as far as they say.
    pub sources: Sources,
}

impl Installed {
    /// Everything that is unpacked, settled or not.
    pub fn all(&self) -> Inventory {
        let all = self.settled.packages().chain(self.unsettled.packages());
        all.map(|(id, version)| (id.clone(), version.to_owned())).collect()
    }
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
    /// Scripts of packages that failed without making the package manager fail, in its words.
    pub failed_scripts: Vec<String>,
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
    /// A file that it needs cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody said on the host that a package stays as it is.
    #[error("held packages would change: {}; take the lock away on the host, or draft an order without them", .0.join(", "))]
    Held(Vec<String>),
    /// There is none.
    #[error("this host has no package system: only scripts change it")]
    NoSystem,
    /// Somebody else holds its lock.
    #[error("somebody else holds the lock {path}")]
    Locked {
        /// The lock's file.
        path: PathBuf,
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
    /// Whose packages it manages; `None` where there is no package system.
    fn system(&self) -> Option<PackageSystem>;

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

    /// Finishes what was left half-way, as far as that is possible, once whoever holds a lock has let it go. `started` is told every
    /// process before it is waited for.
    ///
    /// # Errors
    /// When something stays half-way.
    fn settle(&self, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError>;

    /// Carries a transaction that was interrupted to its goal, from the same files and without planning anew: it was
    /// planned, compared and begun before.
    ///
    /// # Errors
    /// When something stays half-way.
    fn resume(&self, goal: &Goal, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError>;

    /// Compares installed files with what their packages shipped. Reads every one of them: of a whole system that takes minutes.
    ///
    /// # Errors
    /// When one of the packages is not installed, the package manager gives up, or the time is over.
    fn verify(&self, extent: Extent<'_>, deadline: Instant) -> Result<Verified, PackageError>;

    /// Whether the host asks for a reboot after this transaction.
    fn reboot(&self, done: &Transaction) -> Reboot;

    /// The files on which whoever changes packages holds a record lock, fcntl(2), in the order in which they are taken.
    fn locks(&self) -> Vec<PathBuf>;

    /// The files of its database: when one of them is written, appears or goes, the list of packages may have changed.
    fn database(&self) -> Vec<PathBuf>;
}

/// The package manager of the system that the configuration names; its own files go below `state`.
///
/// # Errors
/// When nobody can tell which system it is, or its programs are not there.
pub fn open(packages: &enrolment::Packages, state: &Path) -> Result<Arc<dyn PackageManager>, OpenError> {
    let root = &packages.root;
    let found = packages.system.map_or_else(|| system(root), |said| Ok(said.into()))?;
    tracing::info!(system = found.map_or("none", PackageSystem::name), root = %root.display(), "package system");
    Ok(match found {
        Some(PackageSystem::Dpkg) => Arc::new(Apt::new(root, &state.join("apt"))?),
        Some(PackageSystem::Rpm) => Arc::new(Rpm::new(root, &state.join("rpm"))?),
        None => Arc::new(NoPackages::new(root)),
    })
}

/// There is no package manager to work with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody can tell which.
    #[error(transparent)]
    System(#[from] SystemError),
    /// It cannot be used.
    #[error(transparent)]
    Packages(#[from] PackageError),
}

/// When each file of a package manager's database was written last; `None` when there is no database.
pub fn written(packages: &dyn PackageManager) -> Option<Vec<Option<SystemTime>>> {
    let at = |path: PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let times: Vec<Option<SystemTime>> = packages.database().into_iter().map(at).collect();
    times.iter().any(Option::is_some).then_some(times)
}

/// Whether the system below `root` asks for a reboot, whoever left word.
fn asks_for_reboot(root: &Path) -> bool {
    ["run/reboot-required", "var/run/reboot-required"].iter().any(|at| root.join(at).exists())
}

/// A command with nothing of the agent's environment.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/");
    command
}

/// What a program said that ended well.
fn succeeded(program: &'static str, finished: Finished) -> Result<String, PackageError> {
    if finished.succeeded() {
        return Ok(finished.stdout);
    }
    let status = finished.exit.map_or_else(|| "killed".to_owned(), |code| format!("exit status {code}"));
    Err(PackageError::Failed { program, status, said: finished.last_words() })
}

/// Makes a folder of the agent's own, private.
fn prepare(path: &Path) -> Result<(), PackageError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = |source| PackageError::Prepare { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}
