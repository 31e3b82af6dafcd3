//! The folder that an agent runs from, while it comes to be.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use patchlab_protocol::{
    SigningKey,
    admission::Admission,
    enrolment::{FILE_NAME, KEY_FILE, ROOT_FILE},
    key::KeyError,
};
use rustix::fs::{FlockOperation, flock};

use super::EnrolError;
use crate::journal::replace;

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The host is enrolled.
    #[error(
        "{path} is there: this host is enrolled already; to enrol it anew, under another name, move the folder away"
    )]
    Enrolled {
        /// The configuration.
        path: PathBuf,
    },
    /// Somebody else could put files there.
    #[error("{path} can be written by others (mode {mode:o}): run chmod 700 on it, and look at what is in it")]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another enrolment is at work.
    #[error("another patchlab-agent enroll works on {path}: wait until it has ended")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::File { action, path, source }
}

/// A folder without an `agent.toml`, which nobody else enrols into meanwhile.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes it where it is absent, mode 0700.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        if fs::symlink_metadata(path).is_err() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))?;
            // Its name is to survive a power cut as the key in it does.
            let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(above).and_then(|above| above.sync_all()).map_err(failed("sync", above))?;
        }
        let lock = File::open(path).map_err(failed("open", path))?;
        let mode = lock.metadata().map_err(failed("look at", path))?.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(FolderError::Exposed { path: path.to_owned(), mode });
        }
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| FolderError::Busy { path: path.to_owned() })?;
        let config = path.join(FILE_NAME);
        if fs::symlink_metadata(&config).is_ok() {
            return Err(FolderError::Enrolled { path: config });
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The host's key: the one that is there from an earlier try, by which the server knows the host again, or a new one.
    pub fn key(&self) -> Result<SigningKey, EnrolError> {
        let path = self.path.join(KEY_FILE);
        match SigningKey::read(&path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return Ok(other?),
        }
        let key = SigningKey::generate()?;
        replace(&path, key.to_pem()?.as_bytes()).map_err(failed("write", &path))?;
        Ok(key)
    }

    /// Writes what the host was given, each file whole or not at all, and last the one that makes an agent of the folder.
    pub fn keep(&self, admission: &Admission) -> Result<(), FolderError> {
        let files = [(ROOT_FILE, admission.root.to_bytes()), (FILE_NAME, admission.agent_toml.clone().into_bytes())];
        for (name, content) in files {
            let path = self.path.join(name);
            replace(&path, &content).map_err(failed("write", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_try_has_the_same_key_and_an_enrolled_host_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/patchlab-agent");
        let folder = Folder::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let key = folder.key().unwrap().public();
        assert_eq!(fs::metadata(path.join(KEY_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Folder::open(&path), Err(FolderError::Busy { .. })));
        drop(folder);
        assert_eq!(Folder::open(&path).unwrap().key().unwrap().public(), key);
        fs::write(path.join(FILE_NAME), "").unwrap();
        assert!(matches!(Folder::open(&path), Err(FolderError::Enrolled { .. })));
    }

    #[test]
    fn a_folder_in_which_others_write_and_a_key_that_others_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o777);
        assert!(matches!(Folder::open(dir.path()), Err(FolderError::Exposed { mode: 0o777, .. })));
        mode(dir.path(), 0o755);
        let folder = Folder::open(dir.path()).unwrap();
        folder.key().unwrap();
        mode(&dir.path().join(KEY_FILE), 0o644);
        assert!(matches!(folder.key(), Err(EnrolError::Key(KeyError::Exposed { .. }))));
    }
}
