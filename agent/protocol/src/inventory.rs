//! What is installed on a host, and the transaction between two such states, in canonical text: the form in which lab, agent
//! and server compare them and name them by digest.

mod source;
mod version;

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    str::{FromStr, SplitWhitespace},
};

use serde::{Deserialize, Serialize};

pub use self::{
    source::{SOURCE_BYTES, Source, Sources},
    version::VersionParts,
};
use crate::{Digest, PackageSystem, document::script};

/// A package's name and architecture: what can be installed once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageId {
    /// Package name.
    pub name: String,
    /// Package architecture as the package manager names it, e.g. `amd64`, `all`, `x86_64`, `noarch`.
    pub arch: String,
}

impl PackageId {
    /// An id from its parts.
    pub fn new(name: impl Into<String>, arch: impl Into<String>) -> Self {
        Self { name: name.into(), arch: arch.into() }
    }

    /// A package of which several versions can be installed at a time, as rpm's kernels: each is a package of its own here, and has
    /// its version in its name, `kernel-core@5.14.0-427.el9`. No package system has an `@` in a name.
    pub fn of_version(name: &str, version: &str, arch: impl Into<String>) -> Self {
        Self { name: format!("{name}@{version}"), arch: arch.into() }
    }

    /// Its name without a version that may stand in it.
    pub fn base_name(&self) -> &str {
        self.name.split_once('@').map_or(&*self.name, |(name, _)| name)
    }

    /// Whether it cannot be installed beside `old`, and takes its place: an architecture may turn from or to every one.
    pub fn takes_place_of(&self, old: &Self) -> bool {
        self.name == old.name && (self.arch == old.arch || self.is_for_every_arch() || old.is_for_every_arch())
    }

    /// `all` to dpkg, `noarch` to rpm.
    fn is_for_every_arch(&self) -> bool {
        matches!(&*self.arch, "all" | "noarch")
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.arch)
    }
}

/// The installed packages with their versions. Canonical text: one line `NAME ARCH VERSION` a package, sorted by name and
/// architecture, each ended by a line feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory(BTreeMap<PackageId, String>);

/// A line is not `NAME ARCH VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of a package list is not `NAME ARCH VERSION`: {text:?}")]
pub struct BadInventory {
    line: usize,
    text: String,
}

impl Inventory {
    /// The version installed; `None` when it is not.
    pub fn version(&self, id: &PackageId) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }

    /// Every package, in canonical order.
    pub fn packages(&self) -> impl Iterator<Item = (&PackageId, &str)> {
        self.0.iter().map(|(id, version)| (id, version.as_str()))
    }

    /// The digest of the canonical text: `plAgentInventoryDigest`, and `before` and `after` of results.
    pub fn digest(&self) -> Digest {
        Digest::of(self.to_string())
    }

    /// What leads from here to `after`, on a host with this package system.
    pub fn changes_to(&self, after: &Self, system: impl Into<Option<PackageSystem>>) -> Transaction {
        let gone = self.0.iter().filter(|(id, _)| !after.0.contains_key(*id));
        let removed = gone.map(|(id, version)| Change { id: id.clone(), from: Some(version.clone()), to: None });
        let other = after.0.iter().filter(|(id, version)| self.0.get(*id) != Some(*version));
        let changed = other.map(|(id, version)| Change {
            id: id.clone(),
            from: self.0.get(id).cloned(),
            to: Some(version.clone()),
        });
        Transaction::new(system, removed.chain(changed))
    }
}

impl FromIterator<(PackageId, String)> for Inventory {
    fn from_iter<I: IntoIterator<Item = (PackageId, String)>>(packages: I) -> Self {
        Self(packages.into_iter().collect())
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(id, version)| writeln!(f, "{} {} {version}", id.name, id.arch))
    }
}

impl FromStr for Inventory {
    type Err = BadInventory;

    /// Reads lines `NAME ARCH VERSION` in any order; empty lines are skipped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(number, line)| {
                let mut words = line.split_whitespace();
                three(&mut words)
                    .map(|[name, arch, version]| (PackageId::new(name, arch), version.to_owned()))
                    .ok_or_else(|| BadInventory { line: number + 1, text: line.chars().take(120).collect() })
            })
            .collect()
    }
}

fn three<'a>(words: &mut SplitWhitespace<'a>) -> Option<[&'a str; 3]> {
    let found = [words.next()?, words.next()?, words.next()?];
    words.next().is_none().then_some(found)
}

/// One package's part of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The package.
    pub id: PackageId,
    /// Version before; `None` when it was not installed.
    pub from: Option<String>,
    /// Version after; `None` when it is removed.
    pub to: Option<String>,
}

impl Change {
    /// `install`, `upgrade`, `downgrade` or `remove`, by the rules of its package system; what is no version there counts as an upgrade.
    pub fn verb(&self, system: impl Into<Option<PackageSystem>>) -> &'static str {
        let compare = |to: &str, from: &str| system.into()?.compare(to, from);
        match (&self.from, &self.to) {
            (None, _) => "install",
            (Some(_), None) => "remove",
            (Some(from), Some(to)) if compare(to, from) == Some(Ordering::Less) => "downgrade",
            (Some(_), Some(_)) => "upgrade",
        }
    }

    /// Canonical text, as in [`crate::document::BaselineProof::transaction`].
    pub fn line(&self, system: impl Into<Option<PackageSystem>>) -> String {
        let [from, to] = [&self.from, &self.to].map(|version| version.as_deref().unwrap_or("-"));
        let PackageId { name, arch } = &self.id;
        format!("{} {name} {arch} {from} -> {to}", self.verb(system))
    }
}

/// What a package manager does or would do in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    system: Option<PackageSystem>,
    changes: Vec<Change>,
}

impl Transaction {
    /// These changes, on a host with this package system, or with none.
    pub fn new(system: impl Into<Option<PackageSystem>>, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut changes: Vec<Change> = changes.into_iter().collect();
        changes.sort();
        Self { system: system.into(), changes }
    }

    /// The package system by whose rules its versions compare; `None` where there are no packages.
    pub fn system(&self) -> Option<PackageSystem> {
        self.system
    }

    /// The changes, sorted by package.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Whether it brings a kernel to boot.
    pub fn brings_kernel(&self) -> bool {
        // The name of an order may be anything, also a kernel's.
        let is_kernel = |id: &PackageId| {
            id.arch != script::ARCH && self.system.is_some_and(|system| system.is_kernel(id.base_name()))
        };
        self.changes.iter().any(|change| change.to.is_some() && is_kernel(&change.id))
    }

    /// Canonical text, one line a package, sorted: what a release proves.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.changes.iter().map(|change| change.line(self.system)).collect();
        lines.sort();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(text: &str) -> Inventory {
        text.parse().expect("a package list")
    }

    #[test]
    fn text_is_canonical_whatever_the_order() {
        let one = inventory("b amd64 2\na all 1\n");
        assert_eq!(one.to_string(), "a all 1\nb amd64 2\n");
        assert_eq!(one.digest(), inventory("a all 1\n\nb amd64 2").digest());
        assert!("a all".parse::<Inventory>().is_err() && "a all 1 more".parse::<Inventory>().is_err());
    }

    #[test]
    fn changes_name_what_happened() {
        let before = inventory("down amd64 1:1.0-1\ngone all 1\nsame all 1\nup amd64 1.9~rc1-1\n");
        let after = inventory("down amd64 1.5-1\nnew amd64 3\nsame all 1\nup amd64 1.9-1\n");
        assert_eq!(
            before.changes_to(&after, PackageSystem::Dpkg).lines(),
            [
                "downgrade down amd64 1:1.0-1 -> 1.5-1",
                "install new amd64 - -> 3",
                "remove gone all 1 -> -",
                "upgrade up amd64 1.9~rc1-1 -> 1.9-1",
            ]
        );
        assert!(after.changes_to(&after, PackageSystem::Dpkg).changes().is_empty());
    }

    #[test]
    fn one_of_several_versions_is_a_package_of_its_own() {
        let old = inventory("kernel-core@1-1 x86_64 1-1\nweb noarch 1.a-1\n");
        let new = PackageId::of_version("kernel-core", "2-1", "x86_64");
        assert_eq!(new.base_name(), "kernel-core");
        let old_id = PackageId::of_version("kernel-core", "1-1", "x86_64");
        assert!(new.takes_place_of(&new) && !new.takes_place_of(&old_id));
        let both = "kernel-core@1-1 x86_64 1-1\nkernel-core@2-1 x86_64 2-1\nweb noarch 1.1-1\n";
        let up = old.changes_to(&inventory(both), PackageSystem::Rpm);
        assert_eq!(up.lines(), ["install kernel-core@2-1 x86_64 - -> 2-1", "upgrade web noarch 1.a-1 -> 1.1-1"]);
        assert!(up.brings_kernel() && !inventory(both).changes_to(&old, PackageSystem::Rpm).brings_kernel());
        assert_eq!(
            old.changes_to(&inventory(both), PackageSystem::Dpkg).lines()[0],
            "downgrade web noarch 1.a-1 -> 1.1-1"
        );
    }
}
