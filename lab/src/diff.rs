//! The state diff of two manifests: packages and their files, units, ports, kernels, configuration, accounts, disk use, restarts.
//!
//! Two questions use it: *what did the patch change* (baseline against patched; shown to people), and *is the machine as it was*
//! (baseline against rolled back; [`equal_to_baseline`], decides). Both leave out what differs between two runs of one machine,
//! by the written list in [`allowed`], and what time alone did: what the control, cloned from the same baseline and left alone, has
//! come to as well ([`diff_beside`]).

pub mod allowed;
mod machine;
pub(crate) mod ports;
mod summary;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};

use crate::manifest::{
    Manifest, Port, Restarts,
    attributes::differing,
    disks::{is_below, listed_by_one},
};

use ports::{Chosen, Listening};

pub use machine::{
    AccountChange, ChangedBy, ConfigurationChange, DiskChange, DiskPlace, FILE_SYSTEM_TOLERANCE, FOLDER_TOLERANCE,
    KernelsChange, LeftoverChange,
};
pub use summary::{Group, Row, groups, summary};

/// Most file changes listed in a report; all are in a file of the run's record, [`WHOLE_BYTES`] of it.
pub const FILES_LISTED: usize = 2_000;
/// Bytes of such a file: 16 MiB, some 100,000 changes.
pub const WHOLE_BYTES: usize = 16 << 20;

/// What differs between two machines, `from` the first `to` the second.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Diff {
    /// Packages whose version or state differs.
    pub packages: Vec<PackageChange>,
    /// Files that differ; in a report at most [`FILES_LISTED`].
    pub files: Vec<FileChange>,
    /// How many more files differ than are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files_omitted: usize,
    /// The file in the run's record that has all of them, one a line (JSON).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_in: Option<String>,
    /// Units whose state differs.
    pub units: Vec<UnitChange>,
    /// Ports that only the second listens on.
    pub ports_opened: Vec<Port>,
    /// Ports that only the first listens on.
    pub ports_closed: Vec<Port>,
    /// The running kernels, where they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelChange>,
    /// Those of the files that are configuration, with whose doing it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configuration: Vec<ConfigurationChange>,
    /// Those of the files that were left beside a configuration file for somebody to merge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leftovers: Vec<LeftoverChange>,
    /// Users that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<AccountChange>,
    /// Groups that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<AccountChange>,
    /// Kernels beside the running one, and their modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelsChange>,
    /// File systems and folders that hold more or less, beyond a tolerance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskChange>,
    /// What is due on the second and was not on the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A package that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageChange {
    /// `name:arch`.
    pub package: String,
    /// Version on the first; `None` where it is not installed.
    pub from: Option<String>,
    /// Version on the second.
    pub to: Option<String>,
    /// How many of its files differ.
    pub files: usize,
}

/// A file system object that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Absolute path.
    pub path: String,
    /// How.
    pub change: Change,
    /// What of it differs, for a change: `kind`, `mode`, `owner`, `content`, `target`, `capabilities`, `access list`, `attribute NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aspects: Vec<String>,
    /// The package (`name:arch`) that owns it on either machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
}

/// How a file system object differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, not alike.
    Changed,
}

/// A unit whose state differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitChange {
    /// Unit name.
    pub unit: String,
    /// State on the first, e.g. `active`, or `absent`.
    pub from: String,
    /// State on the second.
    pub to: String,
}

/// The running kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelChange {
    /// On the first.
    pub from: String,
    /// On the second.
    pub to: String,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the machine is as before: packages, files, units, ports and the running kernel. What else is told either lies in files (accounts,
    /// configuration, installed kernels), or lasts until the next reboot at most (modules, programs that still run), or is no state
    /// but an amount (disk use).
    pub fn is_as_before(&self) -> bool {
        self.lasts_as_before() && self.units.is_empty() && self.ports_opened.is_empty() && self.ports_closed.is_empty()
    }

    /// Only what lasts until the next reboot at most, and amounts.
    pub fn of_the_running(self) -> Self {
        Self { kernels: self.kernels, disk: self.disk, restarts: self.restarts, ..Self::default() }
    }

    /// Whether all that is not as before is what runs at this moment: units and ports. A unit that ends by itself when idle does so at
    /// another moment on every machine.
    pub fn is_of_the_moment(&self) -> bool {
        self.lasts_as_before()
    }

    /// Leaves [`FILES_LISTED`] files, and gives the text of the `file` that is to have all; `None` where they are no more than that.
    pub(crate) fn shorten(&mut self, file: &str) -> Option<String> {
        self.shorten_to(FILES_LISTED, WHOLE_BYTES, file)
    }

    fn shorten_to(&mut self, listed: usize, bytes: usize, file: &str) -> Option<String> {
        if self.files.len() <= listed {
            return None;
        }
        let mut text = String::new();
        let mut lines = self.files.iter().map(|file| serde_json::to_string(file).unwrap_or_default() + "\n");
        while let Some(line) = lines.next() {
            if text.len() + line.len() > bytes {
                text += &format!("{{\"omitted\":{}}}\n", lines.count() + 1);
                break;
            }
            text += &line;
        }
        self.files_omitted = self.files.len() - listed;
        self.files.truncate(listed);
        self.files_in = Some(file.to_owned());
        Some(text)
    }

    fn lasts_as_before(&self) -> bool {
        self.packages.is_empty() && self.files.is_empty() && self.files_omitted == 0 && self.kernel.is_none()
    }
}

/// What differs between two machines, apart from what may.
pub fn diff(from: &Manifest, to: &Manifest) -> Diff {
    with_files(from, to, files(from, to))
}

/// What differs on `to` from where it came `from` and from its twin, the `control`, that came from there too and was left alone.
pub fn diff_beside(from: &Manifest, to: &Manifest, control: &Manifest) -> Diff {
    let from = &*completed(from, control);
    let from_control: BTreeSet<String> = files(control, to).into_iter().map(|file| file.path).collect();
    let mut files = files(from, to);
    files.retain(|file| from_control.contains(&file.path));
    let mut found = with_files(from, to, files);
    let beside = with_files(control, to, Vec::new());
    found.packages.retain(|change| beside.packages.iter().any(|other| other.package == change.package));
    found.units.retain(|change| beside.units.iter().any(|other| other.unit == change.unit));
    let (now, theirs) = (listening(to), listening(control));
    found.ports_opened.retain(|port| now.has_like(port, &beside.ports_opened));
    found.ports_closed.retain(|port| theirs.has_like(port, &beside.ports_closed));
    found.kernel = found.kernel.filter(|_| beside.kernel.is_some());
    machine::retain(&mut found, &beside);
    found
}

/// A baseline's manifest; one of an older lab, which listed the root's files alone, with those of its other disks as the control has them:
/// that began alike, and was left alone.
fn completed<'m>(baseline: &'m Manifest, control: &Manifest) -> Cow<'m, Manifest> {
    let unknown = listed_by_one(baseline.file_systems.as_ref(), control.file_systems.as_ref());
    if baseline.file_systems.is_some() || unknown.is_empty() {
        return Cow::Borrowed(baseline);
    }
    let mut whole = baseline.clone();
    let theirs = control.files.iter().filter(|(path, _)| is_below(&unknown, path));
    whole.files.extend(theirs.map(|(path, entry)| (path.clone(), entry.clone())));
    whole.file_systems.clone_from(&control.file_systems);
    Cow::Owned(whole)
}

fn with_files(from: &Manifest, to: &Manifest, files: Vec<FileChange>) -> Diff {
    let mut owned: BTreeMap<&str, usize> = BTreeMap::new();
    for file in &files {
        *owned.entry(file.package.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let packages = packages(from, to, &owned);
    let mut found = Diff::default();
    machine::fill(&mut found, from, to, &files);
    let (first, second) = (listening(from), listening(to));
    Diff {
        packages,
        files,
        units: units(from, to),
        ports_opened: second.without(&first, Chosen::ByOneProgram),
        ports_closed: first.without(&second, Chosen::ByOneProgram),
        kernel: (from.kernel != to.kernel).then(|| KernelChange { from: from.kernel.clone(), to: to.kernel.clone() }),
        ..found
    }
}

fn listening(manifest: &Manifest) -> Listening {
    Listening::on(manifest.ports.iter().cloned(), manifest.given_ports)
}

/// Whether a rolled-back machine is as its baseline's manifest says, apart from what may differ and from what the control has come to
/// as well.
///
/// # Errors
/// What is not as it was.
pub fn equal_to_baseline(baseline: &Manifest, now: &Manifest, control: &Manifest) -> Result<(), Box<Diff>> {
    let diff = diff_beside(baseline, now, control);
    if diff.is_as_before() { Ok(()) } else { Err(Box::new(diff)) }
}

/// The same after a workload wrote on both: a file that it added, removed or changed on the control too is its doing. Each machine has
/// times and numbers of its own in it, so that its content cannot be compared; the scenarios after the rollback read it.
///
/// # Errors
/// What is not as it was, and not the workload's.
pub fn equal_but_for_workload(baseline: &Manifest, now: &Manifest, control: &Manifest) -> Result<(), Box<Diff>> {
    let Err(mut diff) = equal_to_baseline(baseline, now, control) else { return Ok(()) };
    let written: BTreeSet<String> = files(baseline, control)
        .into_iter()
        .filter(|file| file.aspects.iter().all(|aspect| aspect == "content"))
        .map(|file| file.path)
        .collect();
    // Owner, mode and kind are the same on both: these a workload's numbers do not explain.
    let only_content = |path: &String| match (control.files.get(path), now.files.get(path)) {
        (Some(_), Some(_)) => aspects(control, now, path).iter().all(|aspect| aspect == "content"),
        (None, None) => true,
        _ => false,
    };
    diff.files.retain(|file| !written.contains(&file.path) || !only_content(&file.path));
    let left: BTreeSet<&str> = diff.files.iter().map(|file| file.path.as_str()).collect();
    diff.configuration.retain(|change| left.contains(change.path.as_str()));
    diff.leftovers.retain(|change| left.contains(change.path.as_str()));
    if diff.is_as_before() { Ok(()) } else { Err(diff) }
}

fn packages(from: &Manifest, to: &Manifest, owned: &BTreeMap<&str, usize>) -> Vec<PackageChange> {
    // A removed package whose configuration is left is not installed, but is not gone either.
    let state = |manifest: &Manifest, name: &String| {
        manifest.packages.get(name).map(|package| match package.status.ends_with(" ok installed") {
            true => package.version.clone(),
            false => format!("{} ({})", package.version, package.status),
        })
    };
    let names: BTreeSet<&String> = from.packages.keys().chain(to.packages.keys()).collect();
    names
        .into_iter()
        .map(|name| PackageChange {
            package: name.clone(),
            from: state(from, name),
            to: state(to, name),
            files: owned.get(name.as_str()).copied().unwrap_or(0),
        })
        .filter(|change| change.from != change.to)
        .collect()
}

fn files(from: &Manifest, to: &Manifest) -> Vec<FileChange> {
    let unknown = listed_by_one(from.file_systems.as_ref(), to.file_systems.as_ref());
    let paths: BTreeSet<&String> = from.files.keys().chain(to.files.keys()).collect();
    paths
        .into_iter()
        .filter(|path| allowed::path(path).is_none() && !is_below(&unknown, path))
        .filter_map(|path| {
            let (first, second) = (from.files.get(path), to.files.get(path));
            let (change, aspects) = match (first, second) {
                (Some(_), Some(_)) => (Change::Changed, aspects(from, to, path)),
                (None, _) => (Change::Added, Vec::new()),
                (_, None) => (Change::Removed, Vec::new()),
            };
            if change == Change::Changed && aspects.is_empty() {
                return None;
            }
            let package = second.or(first).and_then(|entry| entry.package.clone());
            let package = package
                .or_else(|| first.and_then(|entry| entry.package.clone()))
                .or_else(|| dpkgs_note_of(path, to).or_else(|| dpkgs_note_of(path, from)).map(str::to_owned));
            Some(FileChange { path: path.clone(), change, aspects, package })
        })
        .collect()
}

/// The package about which dpkg keeps a note at a path, `/var/lib/dpkg/info/NAME[:ARCH].KIND`.
fn dpkgs_note_of<'m>(path: &str, manifest: &'m Manifest) -> Option<&'m str> {
    let (name, _) = path.strip_prefix("/var/lib/dpkg/info/")?.rsplit_once('.')?;
    let mut after = manifest.packages.range(name.to_owned()..).map(|(package, _)| package.as_str());
    after.find_map(|package| match package.strip_prefix(name) {
        None => Some(None),
        Some(rest) => (rest.is_empty() || rest.starts_with(':')).then_some(Some(package)),
    })?
}

/// What of a path that both have differs.
fn aspects(from: &Manifest, to: &Manifest, path: &String) -> Vec<String> {
    let (Some(first), Some(second)) = (from.files.get(path), to.files.get(path)) else { return Vec::new() };
    let mut found = Vec::new();
    let mut push = |differs: bool, name: &str| {
        if differs {
            found.push(name.to_owned());
        }
    };
    push(first.kind != second.kind, "kind");
    push(first.mode != second.mode, "mode");
    push((first.uid, first.gid) != (second.uid, second.gid), "owner");
    push((first.size, first.sha256) != (second.size, second.sha256), "content");
    push(first.target != second.target, "target");
    if let (Some(first), Some(second)) = (&from.attributes, &to.attributes) {
        found.extend(differing(first.get(path), second.get(path)));
    }
    found
}

fn units(from: &Manifest, to: &Manifest) -> Vec<UnitChange> {
    let names: BTreeSet<&String> = from.units.keys().chain(to.units.keys()).collect();
    let state = |manifest: &Manifest, name: &String| {
        manifest.units.get(name).map(|unit| match unit.load.as_str() {
            "loaded" => unit.active.clone(),
            other => other.to_owned(),
        })
    };
    names
        .into_iter()
        .filter(|name| allowed::unit(name).is_none())
        .filter_map(|name| {
            let (first, second) = (state(from, name), state(to, name));
            // systemd forgets an idle unit and loads it again when something names it: that is no change.
            let idle = |state: &Option<String>| matches!(state.as_deref(), None | Some("inactive" | "not-found"));
            if first == second || idle(&first) && idle(&second) {
                return None;
            }
            let shown = |state: Option<String>| state.unwrap_or_else(|| "absent".into());
            Some(UnitChange { unit: name.clone(), from: shown(first), to: shown(second) })
        })
        .collect()
}

#[cfg(test)]
mod tests;
