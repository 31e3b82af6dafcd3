//! The artifact store: package files by their SHA-256. A baseline's pool, an order's files and a site's downloads are all here.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_check::Digest;

use crate::room::{self, Bytes};

/// A folder of files, each named by its digest. Files are put in whole or not at all, and never changed.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    dir: PathBuf,
}

/// An artifact could not be stored or taken.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not there.
    #[error("artifact {digest} is missing from {dir}: draft the order again, or build its baseline again")]
    Missing {
        /// Its digest.
        digest: Digest,
        /// The store.
        dir: PathBuf,
    },
    /// There, with another content.
    #[error(
        "artifact {digest} in {dir} was altered: its content now has digest {found}: remove that file, then draft the order \
         again, or build its baseline again"
    )]
    Altered {
        /// The digest it is named by.
        digest: Digest,
        /// The digest it has.
        found: Digest,
        /// The store.
        dir: PathBuf,
    },
    /// No room for it. The store is as it was.
    #[error(
        "artifact store {dir}: the disk is full: {file} needs {needed}, and {free} are free: make room there, or choose \
         another folder with --data DIR"
    )]
    Full {
        /// The store.
        dir: PathBuf,
        /// What was to be stored.
        file: PathBuf,
        /// Its size.
        needed: Bytes,
        /// What was free when it failed, without the part that was written.
        free: Bytes,
    },
    /// The file system said no.
    #[error("artifact store: {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.to_owned();
    move |source| ArtifactError::Io { action, path, source }
}

impl ArtifactStore {
    /// Opens the store in `dir`, made when absent.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ArtifactError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        Ok(Self { dir })
    }

    /// Copies a file in and says its digest and size in bytes. Storing the same content again changes nothing.
    ///
    /// # Errors
    /// The file cannot be read, or the store not written; a full disk is named as such. The store is then as it was.
    pub fn put(&self, source: &Path) -> Result<(Digest, u64), ArtifactError> {
        self.copy_in(source).map_err(|error| match error {
            ArtifactError::Io { source: cause, .. } if room::is_full(&cause) => ArtifactError::Full {
                dir: self.dir.clone(),
                file: source.to_owned(),
                needed: Bytes(fs::metadata(source).map_or(0, |metadata| metadata.len())),
                free: room::free(&self.dir).unwrap_or(Bytes(0)),
            },
            other => other,
        })
    }

    fn copy_in(&self, source: &Path) -> Result<(Digest, u64), ArtifactError> {
        let mut temporary = tempfile::Builder::new()
            .prefix(".incoming-")
            .tempfile_in(&self.dir)
            .map_err(failed("create a file in", &self.dir))?;
        let mut input = fs::File::open(source).map_err(failed("read", source))?;
        io::copy(&mut input, temporary.as_file_mut()).map_err(failed("copy", source))?;
        temporary.as_file().sync_all().map_err(failed("write", temporary.path()))?;
        let (digest, size) = Digest::of_file(temporary.path()).map_err(failed("read", temporary.path()))?;
        let path = self.path(&digest);
        set_readable(temporary.path()).map_err(failed("change the mode of", temporary.path()))?;
        temporary.persist(&path).map_err(|error| failed("rename to", &path)(error.error))?;
        Ok((digest, size))
    }

    /// Where the artifact is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Whether it is there, by name alone.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Its path, after reading the whole file and comparing its digest.
    pub fn verify(&self, digest: &Digest) -> Result<PathBuf, ArtifactError> {
        let path = self.path(digest);
        match Digest::of_file(&path) {
            Ok((found, _)) if found == *digest => Ok(path),
            Ok((found, _)) => Err(ArtifactError::Altered { digest: *digest, found, dir: self.dir.clone() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ArtifactError::Missing { digest: *digest, dir: self.dir.clone() })
            }
            Err(error) => Err(failed("read", &path)(error)),
        }
    }
}

/// Package files are public; the lab's worker reads them as another user.
fn set_readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}
