//! The pool: the very package files a baseline was installed from. Rollback payloads come from here.
//!
//! An installation by the lab keeps its files ([`keep`]). For a captured system, those that its suites still have are looked up by exact
//! version in their signed index files and fetched, unless the store has them by that digest ([`find`]); the others are named.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BuildError, PackageVersion, PoolFile, Weight, failed};
use crate::{
    apt::{Apt, AptInputs, Described, Identity},
    artifact::ArtifactStore,
    dnf::{self, Dnf, DnfInputs},
};

/// Puts the kept package files into the artifact store and lists them; every installed package must be among them.
pub(super) fn keep(root: &Path, packages: &Path, store: &ArtifactStore) -> Result<Vec<PoolFile>, BuildError> {
    let status_path = root.join("var/lib/dpkg/status");
    let status = fs::read_to_string(&status_path).map_err(failed("read", &status_path))?;
    let mut files = described(packages)?;
    let mut pool = Vec::new();
    let mut missing = Vec::new();
    for (name, arch, version) in installed(&status) {
        match files.remove(&(name.clone(), arch.clone(), version.clone())) {
            Some(path) => {
                let (sha256, size) = store.put(&path)?;
                pool.push(PoolFile { name, version, arch, size, sha256 });
            }
            None => missing.push(format!("{name} {version} {arch}")),
        }
    }
    match missing.into_iter().reduce(|first, _| first) {
        None => {
            pool.sort();
            Ok(pool)
        }
        Some(first) => {
            let count = installed(&status).len() - pool.len();
            Err(BuildError::PoolIncomplete { count, first })
        }
    }
}

/// The pool of a system by what is installed, of files that are known. Pure.
pub(super) fn of_installed(installed: Vec<Identity>, known: &[PoolFile]) -> Found {
    let identity = |file: &PoolFile| (file.name.clone(), file.arch.clone(), file.version.clone());
    let described = |file: &PoolFile| Described { sha256: file.sha256, size: file.size };
    let known = known.iter().map(|file| (identity(file), described(file))).collect();
    judge(installed, &known, |_| true)
}

/// A captured system's pool.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The files that were found.
    pub(super) pool: Vec<PoolFile>,
    /// Installed packages whose file no suite has.
    pub(super) unpooled: Vec<PackageVersion>,
}

/// Looks for the package file of every installed package. Suites that cannot be asked are told, and what they might have is then
/// missing.
pub(super) fn find(
    inputs: &AptInputs,
    work: &Path,
    store: &ArtifactStore,
    tell: &mut dyn FnMut(&str, Weight),
) -> Result<Found, BuildError> {
    let status = fs::read_to_string(&inputs.status).map_err(failed("read", &inputs.status))?;
    let installed = installed(&status);
    let (cache, fetched) = (work.join("suites"), work.join("fetched"));
    for folder in [&cache, &fetched] {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    let asked = Apt::open(inputs, &cache).and_then(|apt| {
        if let Err(error) = apt.update() {
            let what = format!("not all of the system's suites can be asked for its package files: {error}");
            tell(&what, Weight::Lasting);
        }
        let mut names: Vec<String> = installed.iter().map(|(name, ..)| name.clone()).collect();
        names.dedup();
        let mut described = apt.described(&names)?;
        described.retain(|identity, _| installed.contains(identity));
        let lacking = described.iter().filter(|(_, file)| store.verify(&file.sha256).is_err());
        let lacking: Vec<Identity> = lacking.map(|(identity, _)| identity.clone()).collect();
        if !lacking.is_empty() {
            let what = format!("fetching {} of {} package files", lacking.len(), described.len());
            tell(&what, Weight::Passing);
            if let Err(error) = apt.fetch(&lacking, &fetched) {
                tell(&format!("not all package files can be fetched: {error}"), Weight::Lasting);
            }
        }
        Ok(described)
    });
    let described = asked.unwrap_or_else(|error| {
        tell(&format!("the system's suites cannot be asked for its package files: {error}"), Weight::Lasting);
        BTreeMap::new()
    });
    for path in self::described(&fetched)?.into_values() {
        store.put(&path)?;
    }
    Ok(judge(installed, &described, |file| store.has(&file.sha256)))
}

/// The same of a system with rpm: a file that its repositories have under an installed version's name is that package's when both have the
/// same header, and it is signed by one of the system's keys.
pub(super) fn find_rpm(
    inputs: &DnfInputs,
    work: &Path,
    store: &ArtifactStore,
    tell: &mut dyn FnMut(&str, Weight),
) -> Result<Found, BuildError> {
    let (cache, fetched) = (work.join("suites"), work.join("fetched"));
    fs::create_dir_all(&cache).map_err(failed("create", &cache))?;
    let dnf = Dnf::open(inputs, &cache)?;
    let asked = dnf.update().and_then(|()| {
        tell("fetching the package files of what is installed", Weight::Passing);
        dnf.fetch_installed(&fetched, &mut |unsigned| tell(unsigned, Weight::Lasting))
    });
    let files = asked.unwrap_or_else(|error| {
        tell(&format!("the system's repositories cannot be asked for its package files: {error}"), Weight::Lasting);
        Vec::new()
    });
    let mut described = BTreeMap::new();
    for path in files {
        let package = dnf::identify(&path)?;
        if dnf.installed().contains(&package) {
            let (sha256, size) = store.put(&path)?;
            described.insert(identity(package), Described { sha256, size });
        }
    }
    Ok(judge(installed_rpm(&dnf), &described, |_| true))
}

/// The installed packages of a system with rpm.
pub(super) fn installed_rpm(dnf: &Dnf) -> Vec<Identity> {
    dnf.installed().iter().cloned().map(identity).collect()
}

fn identity(package: dnf::Package) -> Identity {
    (package.order_name(), package.arch, package.version)
}

/// Which installed packages have a file, and which have none.
fn judge(
    installed: Vec<Identity>,
    described: &BTreeMap<Identity, Described>,
    is_there: impl Fn(&Described) -> bool,
) -> Found {
    let mut found = Found::default();
    for identity in installed {
        let file = described.get(&identity).filter(|file| is_there(file)).cloned();
        let (name, arch, version) = identity;
        match file {
            Some(Described { sha256, size }) => found.pool.push(PoolFile { name, version, arch, size, sha256 }),
            None => found.unpooled.push(PackageVersion { name, version, arch }),
        }
    }
    found.pool.sort();
    found.unpooled.sort();
    found
}

/// The installed packages of a dpkg status file.
pub(super) fn installed(status: &str) -> Vec<Identity> {
    let field = |stanza: &str, name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(|value| value.trim().to_owned()))
    };
    status
        .split("\n\n")
        .filter(|stanza| field(stanza, "Status").is_some_and(|status| status.ends_with(" installed")))
        .filter_map(|stanza| {
            Some((field(stanza, "Package")?, field(stanza, "Architecture")?, field(stanza, "Version")?))
        })
        .collect()
}

/// The package files of a folder by what they say they are; file names do not hold epochs reliably.
fn described(packages: &Path) -> Result<BTreeMap<Identity, PathBuf>, BuildError> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(packages).map_err(failed("read", packages))? {
        let path = entry.map_err(failed("read", packages))?.path();
        let output = Command::new("dpkg-deb")
            .args(["--show", "--showformat=${Package} ${Architecture} ${Version}"])
            .arg(&path)
            .output()
            .map_err(failed("run dpkg-deb on", &path))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split(' ').map(str::to_owned);
        if let (Some(name), Some(arch), Some(version)) = (words.next(), words.next(), words.next()) {
            files.insert((name, arch, version), path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use patchlab_check::Digest;

    use super::*;

    #[test]
    fn a_successors_pool_is_its_parents_with_what_the_order_brought() {
        let file = |name: &str, version: &str| PoolFile {
            name: name.into(),
            version: version.into(),
            arch: "amd64".into(),
            size: 1,
            sha256: Digest::of(format!("{name} {version}")),
        };
        let known = [file("b", "1"), file("a", "1"), file("a", "2")];
        let installed = |name: &str, version: &str| {
            format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
        };
        let status = installed("b", "1") + &installed("a", "2");
        let found = of_installed(super::installed(&(status + &installed("c", "3"))), &known);
        assert_eq!(found.pool, [file("a", "2"), file("b", "1")]);
        assert_eq!(found.unpooled.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn a_package_has_a_file_when_its_very_version_is_described_and_there() {
        let identity = |name: &str, version: &str| (name.to_owned(), "amd64".to_owned(), version.to_owned());
        let of = |text: &str| Described { sha256: Digest::of(text), size: 1 };
        let described =
            [(identity("b", "1"), of("b")), (identity("c", "2"), of("c")), (identity("d", "1"), of("d"))].into();
        let installed = ["d", "c", "b", "a"].map(|name| identity(name, "1")).to_vec();
        let found = judge(installed, &described, |file| *file != of("d"));
        assert_eq!(found.pool.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(found.unpooled.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "c", "d"]);
    }

    #[test]
    fn only_installed_packages_count() {
        let status = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\n\n\
                      Package: b\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n";
        assert_eq!(installed(status), [("a".into(), "amd64".into(), "1:2-3".into())]);
    }
}
