//! What rpm is asked, and how its answers are read. Fields are parted by tabs, which stand in no name and in no version.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

pub use patchlab_protocol::package_system::PROVIDED_BY_SEVERAL;
use patchlab_protocol::{
    PackageSystem,
    inventory::{Inventory, PackageId, Source},
    package_system::rpm_version,
};

use super::super::{FileIdentity, Installed};

/// One line an installed package.
pub const INSTALLED: &str = "%{NAME}\\t%{ARCH}\\t%{EPOCHNUM}\\t%{VERSION}\\t%{RELEASE}\\t%{SOURCERPM}\\n";
/// One line a package file.
pub const FILE: &str = "%{NAME}\\t%{ARCH}\\t%{EPOCHNUM}\\t%{VERSION}\\t%{RELEASE}\\t%{LONGSIZE}\\t\
                        %|SOURCEPACKAGE?{source}:{binary}|\\t[%{PROVIDENAME} ]\\n";
/// One line a package of which several versions may be installed.
pub const SEVERAL: &str = "several\\t%{NAME}\\n";
/// Keys of signers stand in the database as packages of this name.
const KEYS: &str = "gpg-pubkey";

/// A line that is not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine(pub String);

fn bad(line: &str) -> BadLine {
    BadLine(line.chars().take(200).collect())
}

/// How many versions of a package can be installed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// One: a newer one takes its place.
    One,
    /// Several beside each other, as kernels.
    Several,
}

impl Versions {
    fn of<'a>(name: &str, mut provides: impl Iterator<Item = &'a str>) -> Self {
        let several = PackageSystem::Rpm.is_kernel(name) || provides.any(|name| PROVIDED_BY_SEVERAL.contains(&name));
        if several { Self::Several } else { Self::One }
    }

    fn id(self, name: &str, version: &str, arch: &str) -> PackageId {
        match self {
            Self::One => PackageId::new(name, arch),
            Self::Several => PackageId::of_version(name, version, arch),
        }
    }
}

/// What a package file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name, architecture, version and size.
    pub identity: FileIdentity,
    /// Whether it takes another version's place.
    pub versions: Versions,
}

/// Reads lines of [`FILE`].
///
/// # Errors
/// The line that is not understood; a source package is none that can be installed.
pub fn headers(said: &str) -> Result<Vec<Header>, BadLine> {
    let header = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [name, arch, epoch, version, release, size, "binary", provides] => {
            let version = rpm_version(epoch, version, release);
            let versions = Versions::of(name, provides.split(' '));
            let id = versions.id(name, &version, arch);
            let identity = FileIdentity { id, version, unpacked: size.parse().unwrap_or(0) };
            Ok(Header { identity, versions })
        }
        _ => Err(bad(line)),
    };
    said.lines().map(header).collect()
}

/// One installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: PackageId,
    /// Its version.
    pub version: String,
    /// What it was built from.
    pub source: Option<Source>,
}

impl Row {
    /// As rpm is told of exactly this one.
    pub fn label(&self) -> String {
        label(&self.id, &self.version)
    }
}

/// Names one version of a package to rpm.
pub fn label(id: &PackageId, version: &str) -> String {
    format!("{}-{version}.{}", id.base_name(), id.arch)
}

/// The names in lines of [`SEVERAL`]; rpm says of what nobody provides that nobody does.
pub fn several(said: &str) -> BTreeSet<String> {
    said.lines().filter_map(|line| line.strip_prefix("several\t")).map(str::to_owned).collect()
}

/// Reads lines of [`INSTALLED`].
///
/// # Errors
/// The line that is not understood.
pub fn rows(said: &str, several: &BTreeSet<String>) -> Result<Vec<Row>, BadLine> {
    let row = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [KEYS, ..] => Ok(None),
        [name, arch, epoch, version, release, source] => {
            let version = rpm_version(epoch, version, release);
            let source = Source::of_file(source);
            let provides = if several.contains(name) { PROVIDED_BY_SEVERAL[0] } else { "" };
            let id = Versions::of(name, [provides].into_iter()).id(name, &version, arch);
            Ok(Some(Row { id, version, source }))
        }
        _ => Err(bad(line)),
    };
    said.lines().filter_map(|line| row(line).transpose()).collect()
}

/// What is installed. A package is half-way when two versions of it are there, or when it is `begun`: part of a transaction that
/// did not end.
pub fn installed(rows: &[Row], begun: &[(PackageId, Option<String>)]) -> Installed {
    let mut versions: BTreeMap<&PackageId, Vec<&str>> = BTreeMap::new();
    for row in rows {
        versions.entry(&row.id).or_default().push(&row.version);
    }
    // What was to be installed and is not there yet may have files there.
    for (id, to) in begun {
        if let Some(to) = to {
            versions.entry(id).or_insert_with(|| vec![to]);
        }
    }
    let is_begun = |id: &PackageId| begun.iter().any(|(begun, _)| begun == id);
    let newest = |found: &[&str]| {
        let order = |one: &&&str, other: &&&str| PackageSystem::Rpm.compare(one, other).unwrap_or(Ordering::Equal);
        found.iter().max_by(order).map(|version| (*version).to_owned()).unwrap_or_default()
    };
    let (settled, unsettled): (Vec<_>, Vec<_>) =
        versions.into_iter().partition(|(id, versions)| versions.len() == 1 && !is_begun(id));
    let inventory = |found: Vec<(&PackageId, Vec<&str>)>| -> Inventory {
        found.into_iter().map(|(id, versions)| (id.clone(), newest(&versions))).collect()
    };
    let sources = rows.iter().filter_map(|row| Some((row.id.clone(), row.source.clone()?))).collect();
    let system = Some(PackageSystem::Rpm);
    Installed { system, settled: inventory(settled), unsettled: inventory(unsettled), sources }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "gpg-pubkey\t(none)\t0\tfd431d51\t4ae0493b\t(none)\n\
                        kernel-core\tx86_64\t0\t5.14.0\t1.el9\tkernel-5.14.0-1.el9.src.rpm\n\
                        kernel-core\tx86_64\t0\t5.14.0\t2.el9\tkernel-5.14.0-2.el9.src.rpm\n\
                        kmod-x\tx86_64\t0\t1\t1\t(none)\nweb\tx86_64\t2\t0.9\t1\tweb-0.9-1.src.rpm\n";

    #[test]
    fn kernels_stand_beside_each_other_and_keys_are_no_packages() {
        let several = several("no package provides installonlypkg(vm)\nseveral\tkmod-x\n");
        let found = installed(&rows(SAID, &several).unwrap(), &[]);
        let expected = "kernel-core@5.14.0-1.el9 x86_64 5.14.0-1.el9\nkernel-core@5.14.0-2.el9 x86_64 5.14.0-2.el9\n\
                        kmod-x@1-1 x86_64 1-1\nweb x86_64 2:0.9-1\n";
        assert_eq!((found.settled.to_string().as_str(), found.unsettled.to_string().as_str()), (expected, ""));
        assert_eq!(rows(SAID, &several).unwrap()[0].label(), "kernel-core-5.14.0-1.el9.x86_64");
        let sources: Vec<_> =
            found.sources.values().map(|source| format!("{} {}", source.name, source.version)).collect();
        assert_eq!(sources, ["kernel 5.14.0-1.el9", "kernel 5.14.0-2.el9", "web 0.9-1"]);
        assert!(rows("web\tx86_64\n", &several).is_err());
    }

    #[test]
    fn two_versions_of_one_and_what_was_begun_are_half_way() {
        let both = format!("{SAID}web\tx86_64\t0\t1.0\t1\t(none)\nlib\tnoarch\t0\t1\t1\t(none)\n");
        let rows = rows(&both, &BTreeSet::new()).unwrap();
        let begun =
            [(PackageId::new("lib", "noarch"), None), (PackageId::new("new", "noarch"), Some("3-1".to_owned()))];
        let found = installed(&rows, &begun);
        assert_eq!(found.unsettled.to_string(), "lib noarch 1-1\nnew noarch 3-1\nweb x86_64 2:0.9-1\n");
        assert!(!found.settled.to_string().contains("web"));
    }

    #[test]
    fn a_file_says_whether_it_takes_anothers_place_and_a_source_package_is_none() {
        let file = |name: &str, kind: &str, provides: &str| {
            headers(&format!("{name}\tx86_64\t0\t1.0\t1\t4096\t{kind}\t{provides} \n"))
        };
        let web = &file("web", "binary", "web config(web)").unwrap()[0];
        assert_eq!((web.identity.unpacked, web.versions), (4096, Versions::One));
        let module = &file("kmod-x", "binary", "kmod-x installonlypkg(kernel-module)").unwrap()[0];
        assert_eq!((&*module.identity.id.name, module.versions), ("kmod-x@1.0-1", Versions::Several));
        assert!(file("web", "source", "").is_err());
    }
}
