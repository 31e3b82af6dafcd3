//! What a baseline stands for beside its packages: how it boots, which kernel it runs, which modules were built on it, whose repositories it
//! installs from, and which configuration is no longer as shipped. Known of every baseline that this patchlab froze.

use std::collections::{BTreeMap, BTreeSet};

use patchlab_check::Boots;
use serde::{Deserialize, Serialize};

use crate::{
    apt::sources::{Repository, Sources},
    dnf,
    manifest::{BootMode, Manifest},
};

/// Entries of each list that are kept: a record stays readable whatever a system has.
const ENTRIES: usize = 500;
/// Where dkms(8) keeps what it builds: `NAME/VERSION/KERNEL/ARCH/…`.
const DKMS: &str = "/var/lib/dkms/";

/// What a baseline stands for beside its packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// What loads its kernel; absent where nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootMode>,
    /// The running kernel's release (`uname -r`).
    pub kernel: String,
    /// The kernel's flavour as the distribution calls it, e.g. `cloud-amd64`; absent where its release names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavour: Option<String>,
    /// Modules that were built on the system itself.
    pub dkms: Vec<DkmsModule>,
    /// Repositories that are not the distribution's own.
    pub third_party: Vec<Repository>,
    /// The same of rpm packages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub third_party_rpm: Vec<dnf::sources::Repository>,
    /// Repositories that could not be read as ones, each with the reason.
    pub unclear: Vec<String>,
    /// Packages' configuration files by path that are not as their package shipped them.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

/// A module that dkms(8) built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DkmsModule {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Releases of the kernels that it was built for.
    pub kernels: Vec<String>,
}

impl Coverage {
    /// From what a system is made of, and the repositories that it names. `codename` is its release's, e.g. `bookworm`; without one every
    /// repository is somebody else's.
    pub(super) fn of_dpkg(manifest: &Manifest, sources: &Sources, codename: &str) -> Self {
        let third_party: BTreeSet<_> =
            sources.repositories.iter().filter(|repository| !repository.is_own(codename)).cloned().collect();
        let unclear = sources.passed_over.iter().take(ENTRIES).cloned().collect();
        Self { third_party: third_party.into_iter().take(ENTRIES).collect(), unclear, ..Self::of(manifest) }
    }

    /// The same of a system with rpm, whose own repositories are those in files that its package of repositories (`fedora-repos`,
    /// `almalinux-repos`) owns.
    pub(super) fn of_rpm(manifest: &Manifest, sources: &dnf::sources::Sources) -> Self {
        let owner = |file: &str| Some(&manifest.packages.get(manifest.files.get(file)?.package.as_ref()?)?.name);
        let is_own = |one: &&dnf::sources::Repository| owner(&one.file).is_some_and(|name| name.ends_with("-repos"));
        let third_party: BTreeSet<_> = sources.repositories.iter().filter(|one| !is_own(one)).cloned().collect();
        let unclear = sources.passed_over.iter().take(ENTRIES).cloned().collect();
        Self { third_party_rpm: third_party.into_iter().take(ENTRIES).collect(), unclear, ..Self::of(manifest) }
    }

    /// What of it a new kernel has to do with.
    pub fn boots(&self) -> Boots {
        let dkms = self.dkms.iter().map(|module| module.name.clone()).collect();
        Boots { flavour: self.flavour.clone(), dkms }
    }

    fn of(manifest: &Manifest) -> Self {
        let configuration = manifest.configuration.iter().flatten();
        let other: Vec<_> = configuration.filter(|(_, file)| !file.obsolete && !file.is_as_shipped()).collect();
        let of = |is_there: bool| {
            let paths = other.iter().filter(|(_, file)| file.found.is_some() == is_there);
            paths.map(|(path, _)| (*path).clone()).take(ENTRIES).collect()
        };
        Self {
            boot: manifest.kernels.as_ref().map(|kernels| kernels.boot),
            kernel: manifest.kernel.clone(),
            flavour: Boots::flavour_of(&manifest.kernel),
            dkms: dkms(manifest.files.keys().map(String::as_str)),
            third_party: Vec::new(),
            third_party_rpm: Vec::new(),
            unclear: Vec::new(),
            changed: of(true),
            removed: of(false),
        }
    }
}

/// From all paths of a system.
fn dkms<'p>(paths: impl Iterator<Item = &'p str>) -> Vec<DkmsModule> {
    let mut modules: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for path in paths.filter_map(|path| path.strip_prefix(DKMS)) {
        let mut parts = path.split('/');
        if let (Some(name), Some(version), Some(below)) = (parts.next(), parts.next(), parts.next()) {
            let kernels = modules.entry((name, version)).or_default();
            // Sources and logs of a build lie beside the kernels.
            if parts.next().is_some() && below.starts_with(|c: char| c.is_ascii_digit()) {
                kernels.insert(below);
            }
        }
    }
    let modules = modules.into_iter().map(|((name, version), kernels)| DkmsModule {
        name: name.to_owned(),
        version: version.to_owned(),
        kernels: kernels.into_iter().map(str::to_owned).collect(),
    });
    modules.take(ENTRIES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apt::sources,
        manifest::{ConfigurationFile, Kernels},
    };

    #[test]
    fn what_dkms_built_and_for_which_kernels() {
        let paths = [
            "/var/lib/dkms/mok.key",
            "/var/lib/dkms/zfs/kernel-6.1.0-9-amd64-x86_64",
            "/var/lib/dkms/zfs/2.1.11/source",
            "/var/lib/dkms/zfs/2.1.11/6.1.0-9-amd64/x86_64/module/zfs.ko",
            "/var/lib/dkms/zfs/2.1.11/6.1.0-50-amd64/x86_64/log/make.log",
            "/var/lib/dkms/wl/6.30/source/src/wl.c",
        ];
        let module = |name: &str, version: &str, kernels: &[&str]| DkmsModule {
            name: name.into(),
            version: version.into(),
            kernels: kernels.iter().map(|kernel| (*kernel).to_owned()).collect(),
        };
        let expected = [module("wl", "6.30", &[]), module("zfs", "2.1.11", &["6.1.0-50-amd64", "6.1.0-9-amd64"])];
        assert_eq!(dkms(paths.into_iter()), expected);
    }

    #[test]
    fn configuration_and_repositories_are_told_apart() {
        let file = |found: Option<&str>, obsolete: bool| ConfigurationFile {
            package: "a:all".into(),
            shipped: "1".into(),
            found: found.map(str::to_owned),
            obsolete,
        };
        let configuration = [
            ("/same", file(Some("1"), false)),
            ("/other", file(Some("2"), false)),
            ("/gone", file(None, false)),
            ("/old", file(Some("2"), true)),
        ];
        let manifest = Manifest {
            kernel: "6.1.0-9-amd64".into(),
            configuration: Some(configuration.map(|(path, file)| (path.to_owned(), file)).into()),
            kernels: Some(Kernels {
                installed: vec![],
                running_version: None,
                modules: Default::default(),
                boot: BootMode::Uefi,
            }),
            ..Manifest::default()
        };
        let lists = "deb http://mirror.example.org/debian bookworm main\ndeb http://x/y bookworm-pgdg main\ndeb [trusted=yes] http://z/ a b\n";
        let sources = sources::read(&[("/etc/apt/sources.list".to_owned(), lists.to_owned())].into(), &BTreeMap::new());
        let coverage = Coverage::of_dpkg(&manifest, &sources, "bookworm");
        assert_eq!(
            (coverage.boot, coverage.changed, coverage.removed),
            (Some(BootMode::Uefi), vec!["/other".into()], vec!["/gone".into()])
        );
        assert_eq!(coverage.third_party.iter().map(|one| one.uri.as_str()).collect::<Vec<_>>(), ["http://x/y"]);
        assert_eq!(coverage.unclear.len(), 1);
    }
}
