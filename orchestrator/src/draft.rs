//! Drafting an order: what would the host's real apt (or dnf) install on that baseline, from which signed sources, and which files of
//! the baseline's pool bring it back.
//!
//! Flow: a [`Request`] (what people want) and a [`Base`] (what the baseline is) go in; the package manager resolves and fetches ([`patchlab_lab::apt`], [`patchlab_lab::dnf`]); every file
//! goes into the artifact store by digest; a [`Written`] order comes out, which a person may read and keep before it is compiled.
//! Nothing here knows a version or a host name.

mod error;
mod files;
mod resolver;
mod script;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use patchlab_check::step::PackageName;
use patchlab_lab::{ArtifactStore, scenario::Scenario};
use patchlab_protocol::{
    PackageSystem,
    document::{Class, Kind, OnFailure, PackageFile, ProductionCheck, RebootRule, RebootWhen, RollbackFiles, Severity},
    inventory::PackageId,
};

pub use error::DraftError;
pub use patchlab_lab::apt::transaction::{Installation, Transaction};
pub use resolver::Inputs;
pub use script::draft_script;

use self::{
    files::Fetched,
    resolver::{Resolved, Resolver},
};
use crate::order::{Change, On, ReplacedFile, Replaces, Upgrade, Written};

/// Minutes that logged-in users get before a drafted order's reboot.
const REBOOT_GRACE_MINUTES: u16 = 5;

/// The baseline an order is drafted on.
#[derive(Debug, Clone)]
pub struct Base<'a> {
    /// `name@n`.
    pub name: &'a str,
    /// The class of hosts it stands for.
    pub class: &'a Class,
    /// What its package manager needs to know.
    pub inputs: &'a Inputs,
    /// The package files it was installed from.
    pub pool: &'a [PackageFile],
}

/// What people want.
#[derive(Debug, Clone)]
pub struct Request {
    /// Identifier of the order.
    pub id: String,
    /// One line; absent: made from the packages.
    pub title: Option<String>,
    /// How bad it is to wait.
    pub severity: Severity,
    /// Routine, emergency or workaround.
    pub kind: Kind,
    /// Advisories it answers.
    pub advisories: Vec<String>,
    /// Installed packages to bring to their newest version.
    pub upgrade: Vec<PackageName>,
    /// Package files made locally, installed too; what they depend on is resolved with the rest.
    pub packages: Vec<PathBuf>,
    /// What to do when no named package has a newer version.
    pub when_current: WhenCurrent,
}

/// What to do when no named package has a newer version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenCurrent {
    /// Say so and stop.
    Stop,
    /// Take the next package of the baseline that has one, aloud; packages that a scenario covers come first.
    TakeNext,
}

/// Told while drafting, for people who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Index files are being brought up to date.
    Updating,
    /// The package manager works out what it would do.
    Resolving,
    /// Package files are being fetched.
    Fetching {
        /// How many.
        packages: usize,
    },
    /// Something people should know, e.g. that another package was taken.
    Note(String),
}

/// Drafts an order and puts its files into `artifacts`. `cache` keeps index files between drafts. Paths in the order are relative
/// to the folder of `out`, which is not written: see [`render`].
///
/// # Errors
/// A package that is not installed, unknown or up to date; sources that do not check; a transaction that removes packages; apt,
/// files or the store said no.
pub fn draft(
    base: &Base<'_>,
    request: &Request,
    scenarios: &[Scenario],
    artifacts: &ArtifactStore,
    cache: &Path,
    out: &Path,
    observer: &mut dyn FnMut(Progress),
) -> Result<Written, DraftError> {
    if request.upgrade.is_empty() && request.packages.is_empty() {
        return Err(DraftError::NothingAsked);
    }
    std::fs::create_dir_all(cache).map_err(|source| DraftError::Io {
        action: "create",
        path: cache.to_owned(),
        source,
    })?;
    let resolver = Resolver::open(base.inputs, cache)?;
    let installed = resolver.installed()?;
    if let Some(name) = request.upgrade.iter().find(|name| !installed.contains(name.as_str())) {
        return Err(DraftError::NotInstalled { name: name.to_string(), baseline: base.name.to_owned() });
    }
    observer(Progress::Updating);
    resolver.update()?;
    observer(Progress::Resolving);
    let system = base.inputs.system();
    let locals = request.packages.iter().map(|path| files::local(path, system)).collect::<Result<Vec<_>, _>>()?;
    let files: Vec<PathBuf> = locals.iter().map(|local| local.path.clone()).collect();
    let (upgrade, resolved) = resolve(&resolver, base, request, &files, scenarios, observer)?;
    let transaction = &resolved.transaction;
    if !transaction.remove.is_empty() {
        return Err(DraftError::Removes { names: transaction.remove.join(", ") });
    }
    observer(Progress::Fetching { packages: transaction.install.len() });
    let downloads = resolver.download(&resolved, &upgrade, &files)?;
    let fetched = files::store(transaction, system, &downloads, &locals, artifacts)?;
    let replaces = replaces(transaction, base.pool);
    for lost in replaces.iter().filter(|replaces| replaces.file.is_none()) {
        observer(Progress::Note(format!(
            "{} {} is not in the pool of {}: there is no way back to it",
            lost.name, lost.version, base.name
        )));
    }
    let changed: BTreeSet<String> = transaction.install.iter().map(|installation| installation.name.clone()).collect();
    let class = base.class.clone();
    let change = Change {
        on: On { family: class.family, release: class.release, arch: class.arch },
        upgrade: upgrade_table(&upgrade, transaction),
        packages: request.packages.iter().map(|path| files::relative(path, out)).collect(),
        script: None,
        file: fetched.iter().map(|file| file.written(artifacts, out)).collect::<Result<_, _>>()?,
        replaces,
    };
    let title = request.title.clone().unwrap_or_else(|| title(&change, &fetched));
    let reboot = reboot(system, transaction);
    if reboot.is_some() {
        observer(Progress::Note(
            "this brings a kernel: the order says that hosts reboot, into it once, and fall back to the old one".into(),
        ));
    }
    Ok(Written { reboot, ..written(request, title, change, production(scenarios, &changed)) })
}

/// A kernel that is not booted patches nothing, and only a run that reboots boots it once.
fn reboot(system: PackageSystem, transaction: &Transaction) -> Option<RebootRule> {
    let is_kernel = |one: &Installation| system.is_kernel(PackageId::new(&one.name, &one.arch).base_name());
    let rule = RebootRule { when: RebootWhen::IfNeeded, grace_minutes: REBOOT_GRACE_MINUTES };
    transaction.install.iter().any(is_kernel).then_some(rule)
}

/// The order that was asked for, around the change that apt resolved.
fn written(request: &Request, title: String, change: Change, production: Vec<ProductionCheck>) -> Written {
    Written {
        id: request.id.clone(),
        title,
        severity: request.severity,
        kind: request.kind,
        advisories: request.advisories.clone(),
        after: Vec::new(),
        supersedes: Vec::new(),
        rollback: None,
        not_after: None,
        on_failure: OnFailure::default(),
        rollback_files: RollbackFiles::default(),
        reboot: None,
        production,
        change: vec![change],
    }
}

/// What is upgraded, and all that the package manager would do for it and for the local `files`. Named packages without a newer version are an
/// error or are stood in for.
fn resolve(
    resolver: &Resolver<'_>,
    base: &Base<'_>,
    request: &Request,
    files: &[PathBuf],
    scenarios: &[Scenario],
    observer: &mut dyn FnMut(Progress),
) -> Result<(Vec<String>, Resolved), DraftError> {
    let named: Vec<String> = request.upgrade.iter().map(ToString::to_string).collect();
    let resolved = resolver.resolve(&named, files)?;
    let moves = |name: &String| resolved.transaction.install.iter().any(|installation| installation.name == *name);
    let (newer, current): (Vec<String>, Vec<String>) = named.into_iter().partition(moves);
    if current.is_empty() {
        return Ok((newer, resolved));
    }
    let names = current.join(", ");
    match request.when_current {
        WhenCurrent::Stop => Err(DraftError::UpToDate { names, baseline: base.name.to_owned() }),
        // Packages that do not move change nothing in the transaction.
        WhenCurrent::TakeNext if !newer.is_empty() => {
            observer(Progress::Note(format!("no newer version of {names} today: only {} is taken", newer.join(", "))));
            Ok((newer, resolved))
        }
        WhenCurrent::TakeNext => {
            let next = next_upgradable(&resolver.upgradable()?, scenarios)
                .ok_or_else(|| DraftError::AllUpToDate { baseline: base.name.to_owned() })?;
            observer(Progress::Note(format!("no newer version of {names} today: {next} is taken instead")));
            let next = vec![next];
            let resolved = resolver.resolve(&next, files)?;
            Ok((next, resolved))
        }
    }
}

/// The package to take where none of the named has a newer version: the first by name that a scenario covers, else the first.
fn next_upgradable(names: &[String], scenarios: &[Scenario]) -> Option<String> {
    let covered = |name: &&String| {
        let one = BTreeSet::from([(*name).clone()]);
        scenarios.iter().any(|scenario| scenario.covers(&one))
    };
    names.iter().find(covered).or(names.first()).cloned()
}

fn upgrade_table(names: &[String], transaction: &Transaction) -> Vec<Upgrade> {
    names
        .iter()
        .filter_map(|name| {
            let installation = transaction.install.iter().find(|installation| installation.name == *name)?;
            Some(Upgrade { name: name.parse().ok()?, to: Some(installation.to.clone()) })
        })
        .collect()
}

/// What the transaction replaces, each with the pool file that brings it back.
fn replaces(transaction: &Transaction, pool: &[PackageFile]) -> Vec<Replaces> {
    let mut found = Vec::new();
    for installation in &transaction.install {
        let (Some(from), Ok(name)) = (&installation.from, installation.name.parse::<PackageName>()) else { continue };
        let mut files = pool.iter().filter(|file| file.name == installation.name && file.version == *from);
        let file = files.clone().find(|file| file.arch == installation.arch).or_else(|| files.next());
        let arch = file.map_or(&installation.arch, |file| &file.arch).clone();
        let file =
            file.map(|file| ReplacedFile { size: file.size, sha256: file.sha256, origin: file.origin, arch: None });
        found.push(Replaces { name, version: from.clone(), arch, file });
    }
    found
}

/// The production steps of the scenarios that cover a changed package.
fn production(scenarios: &[Scenario], changed: &BTreeSet<String>) -> Vec<ProductionCheck> {
    let covering = scenarios.iter().filter(|scenario| scenario.covers(changed));
    covering
        .flat_map(|scenario| {
            let name = scenario.name.clone();
            scenario.production_steps().map(move |step| ProductionCheck { scenario: name.clone(), step: step.clone() })
        })
        .collect()
}

fn title(change: &Change, fetched: &[Fetched]) -> String {
    let mut names: Vec<String> =
        change.upgrade.iter().map(|up| format!("{} {}", up.name, up.to.as_deref().unwrap_or_default())).collect();
    names.extend(
        fetched.iter().filter(|file| file.is_local()).map(|file| format!("{} {}", file.name(), file.version())),
    );
    names.join(", ").chars().take(200).collect()
}

/// The text of an order whose change is made by a script.
///
/// # Errors
/// As [`render`].
pub fn render_script(order: &Written) -> Result<String, DraftError> {
    Ok(format!(
        "# Drafted by `patchlab order draft --from`: every file of the script is named by its digest.\n\
         # Read it, then `patchlab lab validate --order`.\n\n{}",
        body(order)?
    ))
}

fn body(order: &Written) -> Result<String, DraftError> {
    toml::to_string(order).map_err(|error| DraftError::Render { reason: error.to_string() })
}

/// The text of the order's file.
///
/// # Errors
/// The order has no TOML form, which no value of its types has been seen to cause.
pub fn render(order: &Written, baseline: &str) -> Result<String, DraftError> {
    let body = body(order)?;
    let counts: BTreeMap<&str, usize> = order.change.iter().fold(BTreeMap::new(), |mut counts, change| {
        *counts.entry("files").or_default() += change.file.len();
        *counts.entry("replaced").or_default() += change.replaces.len();
        counts
    });
    let count = |name| counts.get(name).copied().unwrap_or(0);
    Ok(format!(
        "# Drafted by `patchlab order draft` on baseline {baseline}: {} package files, {} versions replaced.\n\
         # Every file is named by its digest; the vendor-signed ones were checked. Read it, then `patchlab lab validate --order`.\n\n{body}",
        count("files"),
        count("replaced"),
    ))
}

#[cfg(test)]
mod tests;
