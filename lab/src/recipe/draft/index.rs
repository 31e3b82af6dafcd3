//! What the index files of an archive say of packages, as apt shows it (deb822(5), Debian policy 5.3). Pure.

use std::collections::{BTreeMap, BTreeSet};

use debversion::Version;

use crate::{
    apt::relation::{Depends, depends},
    recipe::{is_package, package::is_version},
};

/// One version of a package in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Available {
    /// As written.
    pub(super) version: String,
    /// The same, to compare.
    pub(super) order: Version,
    /// What it takes on the disk, KiB.
    pub(super) installed_kib: u64,
    /// Whether every installation has it: essential, or of priority required.
    pub(super) is_base: bool,
    /// What it needs: of each, one of the alternatives.
    pub(super) depends: Depends,
    /// Other names that it goes by.
    pub(super) provides: Vec<String>,
}

/// Versions of packages in the archive, each package's newest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Index(BTreeMap<String, Vec<Available>>);

impl Index {
    /// Reads what `apt-cache show` says; stanzas that are none of a package are passed over.
    pub(super) fn read(text: &str) -> Self {
        let mut index = Self::default();
        for stanza in text.split("\n\n") {
            let Some((name, available)) = available(stanza) else { continue };
            let versions = index.0.entry(name).or_default();
            // One that several pockets have is one.
            if versions.iter().all(|there| there.version != available.version) {
                versions.push(available);
            }
        }
        for versions in index.0.values_mut() {
            versions.sort_by(|one, other| other.order.cmp(&one.order));
        }
        index
    }

    /// Adds what another has.
    pub(super) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What these packages bring that is neither here nor among those `asked` for.
    pub(super) fn lacking(&self, roots: &[&str], asked: &BTreeSet<String>) -> BTreeSet<String> {
        let (mut seen, mut lacking) = (BTreeSet::new(), BTreeSet::new());
        let mut waiting: Vec<&str> = roots.to_vec();
        while let Some(name) = waiting.pop() {
            if !seen.insert(name) {
                continue;
            }
            if !asked.contains(name) {
                lacking.insert(name.to_owned());
            }
            let clauses = self.versions(name).iter().flat_map(|one| &one.depends);
            waiting.extend(clauses.filter_map(|clause| clause.first()).map(|relation| relation.name.as_str()));
        }
        lacking
    }

    /// Every version of a package, newest first.
    pub(super) fn versions(&self, name: &str) -> &[Available] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The one of that package that is nearest to a version: the oldest that is not older, else the newest.
    pub(super) fn nearest(&self, name: &str, to: &Version) -> Option<&Available> {
        let versions = self.versions(name);
        versions.iter().rev().find(|available| available.order >= *to).or(versions.first())
    }
}

fn available(stanza: &str) -> Option<(String, Available)> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
    };
    let (name, version) = (field("Package"), field("Version"));
    if !is_package(name) || !is_version(version) {
        return None;
    }
    let provides = depends(field("Provides")).into_iter().flatten().map(|relation| relation.name);
    let available = Available {
        version: version.to_owned(),
        order: version.parse().ok()?,
        installed_kib: field("Installed-Size").parse().unwrap_or(0),
        is_base: field("Essential") == "yes" || field("Priority") == "required",
        depends: [field("Pre-Depends"), field("Depends")].into_iter().flat_map(depends).collect(),
        provides: provides.collect(),
    };
    Some((name.to_owned(), available))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_each_version_once_newest_first() {
        let text = "Package: aa\nVersion: 1:1.0-1\nDepends: bb | cc, dd (>= 2)\nProvides: vv (= 1), ww\nPriority: required\n\n\
                    Package: aa\nVersion: 1:1.0-1+deb12u1\nInstalled-Size: 12\n\nPackage: aa\nVersion: 1:1.0-1\n\n\
                    Package: A\nVersion: 1\n\nN: Unable to locate package x\n";
        let index = Index::read(text);
        let versions: Vec<&str> = index.versions("aa").iter().map(|one| one.version.as_str()).collect();
        assert_eq!(versions, ["1:1.0-1+deb12u1", "1:1.0-1"]);
        let oldest = &index.versions("aa")[1];
        assert_eq!(
            (oldest.depends.len(), oldest.is_base, oldest.provides.as_slice()),
            (2, true, &["vv", "ww"].map(String::from)[..])
        );
        let nearest = |to: &str| index.nearest("aa", &to.parse().unwrap()).unwrap().version.as_str();
        assert_eq!(nearest("0.9"), "1:1.0-1");
        assert_eq!(nearest("1:1.0-1+deb12u1~1"), "1:1.0-1+deb12u1");
        assert_eq!(nearest("2:0"), "1:1.0-1+deb12u1");
        assert!(index.nearest("bb", &"1".parse().unwrap()).is_none());
    }
}
