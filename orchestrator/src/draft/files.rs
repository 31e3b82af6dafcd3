//! Package files: what they say they are, and their way into the artifact store.

use std::{
    io,
    path::{Component, Path, PathBuf},
    process::Command,
};

use patchlab_check::PackageSystem;
use patchlab_lab::{
    ArtifactStore,
    apt::AptError,
    dnf::{self, DnfError},
};
use patchlab_protocol::document::{Origin, PackageFile};

use super::{DraftError, Transaction};
use crate::order::File;

/// A package file made locally.
#[derive(Debug, Clone)]
pub(super) struct Local {
    /// Absolute path, so that the package manager takes it for a file and not for a name.
    pub path: PathBuf,
    identity: Identity,
}

/// What a package file says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    name: String,
    version: String,
    arch: String,
}

/// A package file in the artifact store.
#[derive(Debug, Clone)]
pub(super) struct Fetched(PackageFile);

impl Fetched {
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn version(&self) -> &str {
        &self.0.version
    }

    pub(super) fn is_local(&self) -> bool {
        self.0.origin == Origin::Local
    }

    /// Its entry in the order's file.
    pub(super) fn written(&self, artifacts: &ArtifactStore, out: &Path) -> Result<File, DraftError> {
        let path = artifacts.path(&self.0.sha256);
        let name = self.0.name.parse().map_err(|error| DraftError::Package {
            path: path.clone(),
            problem: format!("its name is not one: {error}"),
        })?;
        Ok(File {
            name,
            version: self.0.version.clone(),
            arch: self.0.arch.clone(),
            size: self.0.size,
            sha256: self.0.sha256,
            origin: self.0.origin,
            path: Some(relative(&path, out)),
        })
    }
}

/// A local package file, with what it says it is.
pub(super) fn local(path: &Path, system: PackageSystem) -> Result<Local, DraftError> {
    let path =
        path.canonicalize().map_err(|source| DraftError::Io { action: "read", path: path.to_owned(), source })?;
    Ok(Local { identity: identify(&path, system)?, path })
}

/// Asks what a package file is: dpkg-deb(1) or rpm(8).
fn identify(path: &Path, system: PackageSystem) -> Result<Identity, DraftError> {
    match system {
        PackageSystem::Dpkg => identify_deb(path),
        PackageSystem::Rpm => {
            let package = dnf::identify(path).map_err(|error| match error {
                DnfError::Refused { reason, .. } => {
                    DraftError::Package { path: path.to_owned(), problem: format!("not an rpm package: {reason}") }
                }
                other => other.into(),
            })?;
            Ok(Identity { name: package.order_name(), version: package.version, arch: package.arch })
        }
    }
}

fn identify_deb(path: &Path) -> Result<Identity, DraftError> {
    let output = Command::new("dpkg-deb")
        .args(["--showformat", "${Package}\\n${Version}\\n${Architecture}\\n", "--show"])
        .arg(path)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|source| AptError::NoApt { source: io::Error::new(source.kind(), format!("dpkg-deb: {source}")) })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().map(str::to_owned);
    match (output.status.success(), lines.next(), lines.next(), lines.next()) {
        (true, Some(name), Some(version), Some(arch)) => Ok(Identity { name, version, arch }),
        _ => Err(DraftError::Package {
            path: path.to_owned(),
            problem: format!("not a Debian package: {}", String::from_utf8_lossy(&output.stderr).trim()),
        }),
    }
}

/// Puts the file of every package of the transaction into the store; a file that is not in it is an error, one too many is not
/// taken.
pub(super) fn store(
    transaction: &Transaction,
    system: PackageSystem,
    downloads: &[PathBuf],
    locals: &[Local],
    artifacts: &ArtifactStore,
) -> Result<Vec<Fetched>, DraftError> {
    let mut found: Vec<(Identity, &Path, Origin)> = Vec::new();
    for path in downloads {
        found.push((identify(path, system)?, path, Origin::VendorSigned));
    }
    // A local file comes first where apt copied it: its origin is what was given, not what was fetched.
    let given = locals.iter().map(|local| (local.identity.clone(), local.path.as_path(), Origin::Local));
    let found: Vec<_> = given.chain(found).collect();
    let mut fetched = Vec::new();
    for installation in &transaction.install {
        let wanted = Identity {
            name: installation.name.clone(),
            version: installation.to.clone(),
            arch: installation.arch.clone(),
        };
        let (_, path, origin) =
            found.iter().find(|(identity, ..)| *identity == wanted).ok_or_else(|| DraftError::NotFetched {
                name: wanted.name.clone(),
                version: wanted.version.clone(),
                arch: wanted.arch.clone(),
            })?;
        let (sha256, size) = artifacts.put(path)?;
        let Identity { name, version, arch } = wanted;
        fetched.push(Fetched(PackageFile { name, version, arch, size, sha256, origin: *origin }));
    }
    Ok(fetched)
}

/// `path` as seen from the folder of the file `from`; absolute where there is no way.
pub(super) fn relative(path: &Path, from: &Path) -> String {
    let absolute =
        |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let folder = match from.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => absolute(parent),
        _ => absolute(Path::new(".")),
    };
    let path = absolute(path);
    let (mut left, mut right) = (folder.components().peekable(), path.components().peekable());
    while left.peek().is_some() && left.peek() == right.peek() {
        left.next();
        right.next();
    }
    let up = left.map(|_| Component::ParentDir);
    up.chain(right).collect::<PathBuf>().display().to_string()
}
