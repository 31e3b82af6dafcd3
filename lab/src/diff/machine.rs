//! What differs beside packages, files, units and ports: configuration, leftovers, accounts, kernels, disk use, what is due to restart.
//!
//! People read it; whether a rollback is proven is decided by the files alone, which hold all of this that outlives a reboot. A section that
//! either manifest lacks is not compared.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Change, Diff, FileChange};
use crate::manifest::{Accounts, DiskUse, Group, Kernels, Manifest, Restarts, User, is_leftover};

/// How much more or less a file system may hold before it is told: 16 MiB. Two clones that run for minutes stay below.
pub const FILE_SYSTEM_TOLERANCE: u64 = 16 << 20;
/// The same of a folder: 1 MiB.
pub const FOLDER_TOLERANCE: u64 = 1 << 20;

/// A configuration file that differs: one of a package, or one in `/etc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationChange {
    /// Absolute path.
    pub path: String,
    /// How.
    pub change: Change,
    /// Whose doing it is, as far as the second machine shows.
    pub by: ChangedBy,
    /// The package (`name:arch`) whose configuration file it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Whether it was other than shipped on the first machine already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_altered: bool,
}

/// Whose doing a configuration file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedBy {
    /// The package's: it is as that ships it.
    Package,
    /// A person's, a maintainer script's or a tool's: it is other than the package ships it.
    Other,
    /// No package has it for a configuration file.
    Unmanaged,
}

impl ChangedBy {
    /// In words, for what stands behind a path.
    pub fn describe(self, package: Option<&str>) -> String {
        let package = package.unwrap_or("its package");
        match self {
            Self::Package => format!("as {package} ships it"),
            Self::Other => format!("not as {package} ships it"),
            Self::Unmanaged => "no package's".to_owned(),
        }
    }
}

/// A file that was left beside a configuration file for somebody to merge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftoverChange {
    /// Absolute path.
    pub path: String,
    /// How.
    pub change: Change,
}

/// A user or a group that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountChange {
    /// Name.
    pub name: String,
    /// How.
    pub change: Change,
    /// What it is, or what of it differs, e.g. `shell /bin/sh -> /bin/bash`.
    pub details: Vec<String>,
}

/// Kernels beside the running one, and their modules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelsChange {
    /// Releases that only the second has installed.
    pub installed: Vec<String>,
    /// Releases that only the first has.
    pub removed: Vec<String>,
    /// Modules that only the second has loaded.
    pub modules_loaded: Vec<String>,
    /// Modules that only the first has.
    pub modules_unloaded: Vec<String>,
    /// What loads the kernel on either, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<[String; 2]>,
}

/// A file system or folder that holds more or less, beyond its tolerance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChange {
    /// Mount point or folder.
    pub path: String,
    /// Which of them.
    pub of: DiskPlace,
    /// Bytes on the first.
    pub from: u64,
    /// Bytes on the second.
    pub to: u64,
}

/// What holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskPlace {
    /// A file system, as statfs(2) counts.
    FileSystem,
    /// A folder, by its files' sizes.
    Folder,
}

/// Fills in everything but packages, files, units, ports and the running kernel; `files` are all that differ.
pub(super) fn fill(found: &mut Diff, from: &Manifest, to: &Manifest, files: &[FileChange]) {
    found.configuration = configuration(from, to, files);
    let leftover = |file: &&FileChange| is_leftover(&file.path);
    found.leftovers = files
        .iter()
        .filter(leftover)
        .map(|file| LeftoverChange { path: file.path.clone(), change: file.change })
        .collect();
    if let (Some(first), Some(second)) = (&from.accounts, &to.accounts) {
        (found.users, found.groups) = accounts(first, second);
    }
    if let (Some(first), Some(second)) = (&from.kernels, &to.kernels) {
        found.kernels = kernels(first, second);
    }
    if let (Some(first), Some(second)) = (&from.disk, &to.disk) {
        found.disk = disk(first, second);
    }
    if let (Some(first), Some(second)) = (&from.restarts, &to.restarts) {
        found.restarts = restarts(first, second);
    }
}

/// Leaves only what differs from the control as well.
pub(super) fn retain(found: &mut Diff, beside: &Diff) {
    found.users.retain(|change| beside.users.iter().any(|other| other.name == change.name));
    found.groups.retain(|change| beside.groups.iter().any(|other| other.name == change.name));
    found.disk.retain(|change| beside.disk.iter().any(|other| (&other.path, other.of) == (&change.path, change.of)));
    found.kernels = match (found.kernels.take(), &beside.kernels) {
        (Some(mut found), Some(beside)) => {
            found.installed.retain(|release| beside.installed.contains(release));
            found.removed.retain(|release| beside.removed.contains(release));
            found.modules_loaded.retain(|module| beside.modules_loaded.contains(module));
            found.modules_unloaded.retain(|module| beside.modules_unloaded.contains(module));
            found.boot = found.boot.filter(|_| beside.boot.is_some());
            Some(found).filter(|found| *found != KernelsChange::default())
        }
        _ => None,
    };
    found.restarts = match (found.restarts.take(), &beside.restarts) {
        (Some(mut found), Some(beside)) => {
            found.reboot.retain(|reason| beside.reboot.contains(reason));
            found.units.retain(|unit, _| beside.units.contains_key(unit));
            Some(found).filter(|found| *found != Restarts::default())
        }
        _ => None,
    };
}

fn configuration(from: &Manifest, to: &Manifest, files: &[FileChange]) -> Vec<ConfigurationChange> {
    let (Some(first), Some(second)) = (&from.configuration, &to.configuration) else { return Vec::new() };
    let is_configuration =
        |path: &str| first.contains_key(path) || second.contains_key(path) || path.starts_with("/etc/");
    let change = |file: &FileChange| {
        let (before, now) = (first.get(&file.path), second.get(&file.path));
        let by = match now {
            Some(now) if now.is_as_shipped() => ChangedBy::Package,
            Some(_) => ChangedBy::Other,
            // Removed with its package.
            None if before.is_some() && file.change == Change::Removed => ChangedBy::Package,
            None => ChangedBy::Unmanaged,
        };
        ConfigurationChange {
            path: file.path.clone(),
            change: file.change,
            by,
            package: now.or(before).map(|file| file.package.clone()),
            was_altered: before.is_some_and(|before| !before.is_as_shipped()),
        }
    };
    files.iter().filter(|file| is_configuration(&file.path) && !is_leftover(&file.path)).map(change).collect()
}

fn accounts(first: &Accounts, second: &Accounts) -> (Vec<AccountChange>, Vec<AccountChange>) {
    let user = |user: &User| {
        vec![
            ("uid", user.uid.to_string()),
            ("gid", user.gid.to_string()),
            ("home", user.home.clone()),
            ("shell", user.shell.clone()),
            ("password", user.password.name().to_owned()),
        ]
    };
    let group = |group: &Group| vec![("gid", group.gid.to_string()), ("members", group.members.join(","))];
    (changes(&first.users, &second.users, user), changes(&first.groups, &second.groups, group))
}

/// What differs between two tables, by the facts of each entry.
fn changes<T>(
    first: &BTreeMap<String, T>,
    second: &BTreeMap<String, T>,
    facts: impl Fn(&T) -> Vec<(&'static str, String)>,
) -> Vec<AccountChange> {
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let told = |facts: Vec<(&str, String)>| {
        let known = facts.into_iter().filter(|(_, value)| !value.is_empty());
        known.map(|(fact, value)| format!("{fact} {value}")).collect()
    };
    names
        .into_iter()
        .filter_map(|name| {
            let (change, details) = match (first.get(name), second.get(name)) {
                (Some(first), Some(second)) => {
                    let pairs = facts(first).into_iter().zip(facts(second));
                    let differ = pairs.filter(|(first, second)| first != second);
                    let details: Vec<String> =
                        differ.map(|((fact, from), (_, to))| format!("{fact} {from} -> {to}")).collect();
                    (!details.is_empty()).then_some((Change::Changed, details))?
                }
                (None, Some(second)) => (Change::Added, told(facts(second))),
                (Some(first), None) => (Change::Removed, told(facts(first))),
                (None, None) => return None,
            };
            Some(AccountChange { name: name.clone(), change, details })
        })
        .collect()
}

fn kernels(first: &Kernels, second: &Kernels) -> Option<KernelsChange> {
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|release| !those.contains(release)).cloned().collect()
    };
    let modules = |these: &Kernels, those: &Kernels| these.modules.difference(&those.modules).cloned().collect();
    let found = KernelsChange {
        installed: only(&second.installed, &first.installed),
        removed: only(&first.installed, &second.installed),
        modules_loaded: modules(second, first),
        modules_unloaded: modules(first, second),
        boot: (first.boot != second.boot).then(|| [first.boot.name().to_owned(), second.boot.name().to_owned()]),
    };
    Some(found).filter(|found| *found != KernelsChange::default())
}

fn disk(first: &DiskUse, second: &DiskUse) -> Vec<DiskChange> {
    let used = |disk: &DiskUse| -> BTreeMap<String, u64> {
        disk.file_systems.iter().map(|(path, file_system)| (path.clone(), file_system.used)).collect()
    };
    let mut found = grown(DiskPlace::FileSystem, &used(first), &used(second), FILE_SYSTEM_TOLERANCE);
    found.extend(grown(DiskPlace::Folder, &first.folders, &second.folders, FOLDER_TOLERANCE));
    found
}

fn grown(
    of: DiskPlace,
    first: &BTreeMap<String, u64>,
    second: &BTreeMap<String, u64>,
    tolerance: u64,
) -> Vec<DiskChange> {
    let paths: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let bytes = |table: &BTreeMap<String, u64>, path: &String| table.get(path).copied().unwrap_or(0);
    let changes = paths.into_iter().map(|path| DiskChange {
        path: path.clone(),
        of,
        from: bytes(first, path),
        to: bytes(second, path),
    });
    changes.filter(|change| change.from.abs_diff(change.to) > tolerance).collect()
}

/// What is due on the second that was not on the first.
fn restarts(first: &Restarts, second: &Restarts) -> Option<Restarts> {
    let mut found = second.clone();
    found.reboot.retain(|reason| !first.reboot.contains(reason));
    found.units.retain(|unit, _| !first.units.contains_key(unit));
    Some(found).filter(|found| *found != Restarts::default())
}
