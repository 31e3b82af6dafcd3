//! The pool: the very package files a baseline was installed from. Rollback payloads come from here.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BuildError, PoolFile, failed};
use crate::artifact::ArtifactStore;

/// An installed package as dpkg's status says: name, architecture, version.
type Installed = (String, String, String);

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

/// The pool of a system by its dpkg status: of the files that are known, those it was installed from. Pure.
///
/// # Errors
/// An installed package's file is not among them.
pub(super) fn of_status(status: &str, known: &[PoolFile]) -> Result<Vec<PoolFile>, BuildError> {
    let installed = installed(status);
    let is_file_of = |file: &&PoolFile, (name, arch, version): &Installed| {
        file.name == *name && file.arch == *arch && file.version == *version
    };
    let (mut pool, mut missing) = (Vec::new(), Vec::new());
    for package in &installed {
        match known.iter().find(|file| is_file_of(file, package)) {
            Some(file) => pool.push(file.clone()),
            None => missing.push(format!("{} {} {}", package.0, package.2, package.1)),
        }
    }
    pool.sort();
    let count = missing.len();
    missing.into_iter().next().map_or(Ok(pool), |first| Err(BuildError::PoolIncomplete { count, first }))
}

/// The installed packages of a dpkg status file.
fn installed(status: &str) -> Vec<Installed> {
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
fn described(packages: &Path) -> Result<BTreeMap<Installed, PathBuf>, BuildError> {
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
        assert_eq!(of_status(&status, &known).unwrap(), [file("a", "2"), file("b", "1")]);
        let error = of_status(&(status + &installed("c", "3")), &known).unwrap_err();
        assert!(matches!(&error, BuildError::PoolIncomplete { count: 1, first } if first == "c 3 amd64"), "{error}");
    }

    #[test]
    fn only_installed_packages_count() {
        let status = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:2-3\n\n\
                      Package: b\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n";
        assert_eq!(installed(status), [("a".into(), "amd64".into(), "1:2-3".into())]);
    }
}
