//! What people ask on the host itself, without a manager: what is installed, whether a document would be obeyed, what
//! an order would do. Reads the journal and changes nothing; the agent need not run, and may.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Envelope, PackageSystem, Refusal, Refused, Role,
    authorization::{Documents, Identity, authorize, fit, signed},
    description::{Description, Tags},
    document::{Action, Class, Order, Root},
    inventory::{Source, VersionParts},
    limits,
    trust::root_in_force,
};
use serde::Serialize;

use crate::{
    change::{
        ChangeError, Places, Plan, plan, proves_transaction,
        script::{Begun, Here, Rule},
    },
    configuration::Configuration,
    description::describe,
    host::{self, ClassError},
    jobs::Jobs,
    journal::{self, JournalError},
    ledger::{Ledger, LedgerError, Standing},
    packages::{self, Extent, Installed, OpenError, PackageError, PackageManager, Verified},
    state::{Event, State},
    trust::BrokenChain,
    updaters,
};

/// How long looking at every file of every package may take: a full system has some tens of gigabytes.
const VERIFYING: Duration = Duration::from_secs(3600);
/// How long a simulation may take.
const SIMULATION: Duration = Duration::from_secs(300);

/// A question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum InspectionError {
    /// A file cannot be read, or is no document.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The host's class.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The roots.
    #[error(transparent)]
    Trust(#[from] BrokenChain),
    /// The package manager.
    #[error(transparent)]
    Packages(#[from] PackageError),
    /// There is none.
    #[error(transparent)]
    NoPackages(#[from] OpenError),
    /// The change cannot be looked at.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The agent would refuse.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What the host is and has.
#[derive(Debug, Serialize)]
pub struct HostInventory {
    /// Enrolled name.
    pub host: String,
    /// Its class.
    pub class: Class,
    /// The running kernel's release.
    pub kernel: String,
    /// Its package system; `None` where there is none.
    pub system: Option<PackageSystem>,
    /// Digest of the package list: `plAgentInventoryDigest`.
    pub digest: Digest,
    /// Installed packages, `NAME ARCH VERSION`, sorted.
    pub packages: Vec<String>,
    /// The same, taken apart.
    pub details: Vec<PackageDetail>,
    /// Packages left half-way.
    pub half_way: Vec<String>,
    /// Automatic updaters that are enabled. While a run works, those with a lock of their own are paused ([`crate::updaters`]).
    pub updaters: Vec<&'static str>,
    /// What it is and does.
    pub description: Description,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageDetail {
    /// Package name.
    pub name: String,
    /// Package architecture.
    pub arch: String,
    /// Full version.
    pub version: String,
    /// Its parts.
    pub parts: VersionParts,
    /// What it was built from; `None` when it does not say.
    pub source: Option<Source>,
}

/// The host as the agent sees it.
pub struct Inspection {
    host: String,
    class: Class,
    pinned: Root,
    journaled: State,
    ledger_dir: PathBuf,
    packages: Arc<dyn PackageManager>,
    system: PathBuf,
    tags: Tags,
    scripts: Rule,
    state_dir: PathBuf,
}

/// The files of an order's documents; those that are not given are missing.
#[derive(Debug, Clone, Default)]
pub struct DocumentFiles {
    /// The order.
    pub order: PathBuf,
    /// The release.
    pub release: Option<PathBuf>,
    /// The approval.
    pub approval: Option<PathBuf>,
    /// The activation.
    pub activation: Option<PathBuf>,
}

/// What was asked of [`Inspection::verify`] is as the agent would have it.
#[derive(Debug, Clone)]
pub enum Fit {
    /// The order alone; no permission was looked at.
    Order(Order),
    /// All of its documents: the agent would obey them now.
    Permitted(Order),
}

/// What the agent believes and remembers.
struct Believed {
    root: Root,
    state: State,
}

fn envelope(path: &Path) -> Result<Envelope, InspectionError> {
    let failed = |reason: String| InspectionError::File { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limits::DOCUMENT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(error.to_string()))?;
    Envelope::from_bytes(&bytes).map_err(|error| failed(error.to_string()))
}

impl Inspection {
    /// Opens what the configuration names.
    ///
    /// # Errors
    /// When any of it cannot be used.
    pub fn open(configuration: Configuration) -> Result<Self, InspectionError> {
        let Configuration { enrolment, root, .. } = configuration;
        let journaled = journal::read(&enrolment.state_dir.join(journal::FILE_NAME))?;
        Ok(Self {
            class: host::class(&enrolment.packages.root)?,
            pinned: root,
            ledger_dir: enrolment.ledger().to_owned(),
            packages: packages::open(&enrolment.packages, &enrolment.state_dir)?,
            scripts: Rule::from(&enrolment.scripts),
            host: enrolment.host,
            state_dir: enrolment.state_dir,
            system: enrolment.packages.root,
            tags: enrolment.tags,
            journaled,
        })
    }

    /// The agent's own memory, as it would have it at its start: where the ledger is ahead of the journal, the ledger is believed. Nothing is
    /// written.
    fn believed(&self) -> Result<Believed, InspectionError> {
        let mut state = self.journaled.clone();
        // The journal was read before: an agent that is at work writes the ledger first.
        if let (_, Standing::TurnedBack(kept)) = Ledger::open(&self.ledger_dir, &state)? {
            state.apply(&Event::Restored(kept));
        }
        let root = root_in_force(self.pinned.clone(), &state.roots).map_err(BrokenChain::from)?;
        Ok(Believed { root, state })
    }

    /// What is installed.
    ///
    /// # Errors
    /// When the package manager cannot say.
    pub fn inventory(&self) -> Result<HostInventory, InspectionError> {
        let Installed { system, settled, unsettled, sources } = self.packages.installed()?;
        let details = settled.packages().map(|(id, version)| PackageDetail {
            name: id.name.clone(),
            arch: id.arch.clone(),
            version: version.to_owned(),
            parts: VersionParts::of(version),
            source: sources.get(id).cloned(),
        });
        let details = details.collect();
        let lines = |text: String| text.lines().map(str::to_owned).collect();
        Ok(HostInventory {
            host: self.host.clone(),
            class: self.class.clone(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            system,
            digest: settled.digest(),
            packages: lines(settled.to_string()),
            details,
            half_way: lines(unsettled.to_string()),
            updaters: updaters::enabled(&self.system),
            description: describe(&self.system, &self.tags, Jobs::read(&self.state_dir).known(), &[]),
        })
    }

    /// Compares every installed file with what its package shipped.
    ///
    /// # Errors
    /// When the package manager cannot say.
    pub fn files(&self) -> Result<Verified, InspectionError> {
        Ok(self.packages.verify(Extent::Everything, Instant::now() + VERIFYING)?)
    }

    /// Whether the agent would obey these documents now. Of an order alone: whether it is signed, for this host's class, neither revoked nor
    /// past its time nor applied here before, and replaces the versions that are here.
    ///
    /// # Errors
    /// What the agent would say, or that a file cannot be read.
    pub fn verify(&self, files: &DocumentFiles) -> Result<Fit, InspectionError> {
        let order = envelope(&files.order)?;
        let read = |path: &Option<PathBuf>| path.as_deref().map(envelope).transpose();
        let [release, approval, activation] = [read(&files.release)?, read(&files.approval)?, read(&files.activation)?];
        let Believed { root, state } = self.believed()?;
        let (identity, ledger, now) = (self.identity(), state.ledger(), Timestamp::now());
        if release.is_none() && approval.is_none() && activation.is_none() {
            let said = fit(&root, &identity, &order, &ledger, now)?;
            self.plan(&state, &said, order.digest(), Action::Apply)?;
            return Ok(Fit::Order(said));
        }
        let documents = Documents {
            order: &order,
            release: release.as_ref(),
            approval: approval.as_ref(),
            activation: activation.as_ref(),
        };
        let authorized = authorize(&root, &identity, &documents, &ledger, now)?;
        if let Some(release) = authorized.release() {
            proves_transaction(release, root.audience)?;
        }
        self.plan(&state, authorized.order(), authorized.digest(), authorized.action())?;
        Ok(Fit::Permitted(authorized.order().clone()))
    }

    fn identity(&self) -> Identity<'_> {
        Identity { host: &self.host, class: &self.class }
    }

    /// An order that may be looked at: signed, and for this host's class.
    fn drafted(&self, root: &Root, envelope: &Envelope) -> Result<Order, Refused> {
        let statement = envelope.statement();
        let order: Order = match statement {
            Ok(statement) => statement.predicate,
            Err(error) => return Err(Refused::new(Refusal::BadSignature, error.to_string())),
        };
        if !signed(root, envelope, Role::Drafter) {
            let reason = format!("order {} is not signed by a key that may draft here", order.id);
            return Err(Refused::new(Refusal::BadSignature, reason));
        }
        if order.class != self.class {
            let reason = format!("order {} is for {}, this host is {}", order.id, order.class, self.class);
            return Err(Refused::new(Refusal::NotMyClass, reason));
        }
        Ok(order)
    }

    fn plan(&self, state: &State, order: &Order, digest: Digest, action: Action) -> Result<Plan, InspectionError> {
        if action == Action::Apply {
            has_before(order, &state.succeeded)?;
        }
        let begun = if state.applied.contains(&digest) { Begun::Here } else { Begun::Never };
        Ok(plan(order, action, &self.packages.installed()?, Here { rule: self.scripts, begun })?)
    }

    /// What applying an order would do, as the package manager simulates it or its `verify` says; its files (packages: `*.deb`, `*.rpm`)
    /// are found in `folder` by their digest.
    ///
    /// # Errors
    /// As [`Self::verify`], when a file is missing, and when the package manager or the script says no.
    pub fn simulate(&self, order: &Path, folder: &Path) -> Result<Vec<String>, InspectionError> {
        let envelope = envelope(order)?;
        let Believed { root, state } = self.believed()?;
        let (order, digest) = (self.drafted(&root, &envelope)?, envelope.digest());
        let plan = self.plan(&state, &order, digest, Action::Apply)?;
        let failed = |reason: String| InspectionError::File { path: folder.to_owned(), reason };
        let entries = fs::read_dir(folder).map_err(|error| failed(error.to_string()))?;
        let files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        let ending = self.packages.system().map(|system| match system {
            PackageSystem::Dpkg => "deb",
            PackageSystem::Rpm => "rpm",
        });
        let is_package =
            |path: &Path| ending.is_some_and(|ending| path.extension().is_some_and(|found| found == ending));
        let wanted = |path: &&PathBuf| (matches!(plan, Plan::Script(_)) || is_package(path)) && path.is_file();
        let digests: Vec<(Digest, &PathBuf)> = files
            .iter()
            .filter(wanted)
            .filter_map(|path| Digest::of_file(path).ok().map(|(digest, _)| (digest, path)))
            .collect();
        let found: Result<Vec<PathBuf>, InspectionError> = plan
            .parts()
            .iter()
            .map(|part| {
                let wanted = part.payload().sha256;
                let found = digests.iter().find(|(digest, _)| *digest == wanted);
                let missing = || failed(format!("no file there is {} ({wanted})", part.name()));
                found.map(|(_, path)| path.canonicalize().unwrap_or_else(|_| (*path).clone())).ok_or_else(missing)
            })
            .collect();
        let files = found?;
        for (part, path) in plan.parts().iter().zip(&files) {
            part.identify(path, &*self.packages).map_err(failed)?;
        }
        // Beside the agent's own folders, which may be at work.
        let room = self.state_dir.join(format!("simulation-{}", std::process::id()));
        let goal = plan.goal(Places { order: digest, files, room: room.clone() });
        let simulated = goal.simulate(&*self.packages, Instant::now() + SIMULATION, &mut |_| {});
        match fs::remove_dir_all(&room) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %room.display(), "a folder of the simulation could not be removed");
            }
            _ => {}
        }
        match simulated {
            Ok(transaction) => Ok(transaction.lines()),
            Err(ChangeError::Refused(refused)) => Err(refused.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether what an order builds on succeeded here.
fn has_before(order: &Order, succeeded: &[Digest]) -> Result<(), Refused> {
    match order.after.iter().find(|digest| !succeeded.contains(digest)) {
        None => Ok(()),
        Some(missing) => {
            let reason = format!("order {} must have succeeded here before", missing.short());
            Err(Refused::new(Refusal::Preflight, reason))
        }
    }
}
