//! What the index files of an archive say of packages, as apt shows it (deb822(5), Debian policy 5.3). Pure.

use std::collections::{BTreeMap, BTreeSet};

use debversion::Version;

use crate::recipe::{is_package, package::is_version};

/// Alternatives of one dependency that are read.
const ALTERNATIVES: usize = 50;

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
    pub(super) depends: Vec<Vec<Relation>>,
    /// Other names that it goes by.
    pub(super) provides: Vec<String>,
}

/// A package that another needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) name: String,
    pub(super) bound: Option<(Bound, Version)>,
}

/// How a version must be (Debian policy 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Earlier,
    AtMost,
    Exactly,
    AtLeast,
    Later,
}

impl Relation {
    fn read(text: &str) -> Option<Self> {
        let (name, rest) = text.trim().split_once([' ', '(']).unwrap_or((text.trim(), ""));
        // `python3:any` is python3 of whatever architecture: there is one here.
        let name = name.split(':').next().unwrap_or_default();
        if !is_package(name) {
            return None;
        }
        let inside = rest.trim().trim_start_matches('(').split(')').next().unwrap_or_default().trim();
        let sign = inside.trim_start_matches(['<', '=', '>']);
        let bound = match &inside[..inside.len() - sign.len()] {
            "<<" => Bound::Earlier,
            "<=" => Bound::AtMost,
            "=" => Bound::Exactly,
            ">=" => Bound::AtLeast,
            ">>" => Bound::Later,
            _ => return Some(Self { name: name.to_owned(), bound: None }),
        };
        Some(Self { name: name.to_owned(), bound: Some((bound, sign.trim().parse().ok()?)) })
    }

    /// Whether that version will do.
    pub(super) fn takes(&self, version: &Version) -> bool {
        self.bound.as_ref().is_none_or(|(bound, than)| match bound {
            Bound::Earlier => version < than,
            Bound::AtMost => version <= than,
            Bound::Exactly => version == than,
            Bound::AtLeast => version >= than,
            Bound::Later => version > than,
        })
    }
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
    let relations = |text: &str| -> Vec<Vec<Relation>> {
        let alternatives = |clause: &str| clause.split('|').take(ALTERNATIVES).filter_map(Relation::read).collect();
        text.split(',').filter(|clause| !clause.trim().is_empty()).map(alternatives).collect()
    };
    let depends = [field("Pre-Depends"), field("Depends")].into_iter().flat_map(relations);
    let provides = relations(field("Provides")).into_iter().flatten().map(|relation| relation.name);
    let available = Available {
        version: version.to_owned(),
        order: version.parse().ok()?,
        installed_kib: field("Installed-Size").parse().unwrap_or(0),
        is_base: field("Essential") == "yes" || field("Priority") == "required",
        depends: depends.collect(),
        provides: provides.collect(),
    };
    Some((name.to_owned(), available))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_read_with_their_bounds() {
        for (text, version, takes) in [
            ("libc6 (>= 2.36)", "2.36-9+deb12u10", true),
            ("libc6 (>= 2.36)", "2.35-1", false),
            ("login (<< 1:4.13)", "2:1.0", false),
            ("nginx-common (= 1.22.1-9)", "1.22.1-9+deb12u1", false),
            ("python3:any", "3.11.2-1+b1", true),
            ("libfoo(<=1.0~rc1)", "1.0", false),
            ("libfoo (>> 1.0~rc1)", "1.0", true),
        ] {
            let relation = Relation::read(text).unwrap();
            assert_eq!(relation.takes(&version.parse().unwrap()), takes, "{text} {version}");
        }
        assert_eq!(Relation::read("python3:any").unwrap().name, "python3");
        assert!(Relation::read("${shlibs:Depends}").is_none());
    }

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
