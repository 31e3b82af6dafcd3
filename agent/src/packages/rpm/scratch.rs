//! A copy of the database, on which rpm carries out for the records alone what it is to do later in earnest.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

use super::super::{PackageError, prepare};
use crate::lock;

/// Where the copy is, as seen from inside the root: rpm finds a database only there. Nothing else is in it.
pub const PLACE: &str = "/var/cache/patchlab-agent/rpmdb";

/// A copy, to the end of this.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    /// Copies the database in `database`; a transaction under way is waited for, and none begins meanwhile.
    ///
    /// # Errors
    /// When it cannot be copied, or somebody works on it to the deadline.
    pub fn copy(database: &Path, lock: &Path, folder: PathBuf, deadline: Instant) -> Result<Self, PackageError> {
        let failed = |source| PackageError::Prepare { path: folder.clone(), source };
        remove(&folder).map_err(failed)?;
        prepare(&folder)?;
        let scratch = Self { folder: folder.clone() };
        let _shared = match lock::open(lock).map_err(failed)? {
            Some(file) => Some(
                lock::share(file, deadline)
                    .map_err(failed)?
                    .ok_or_else(|| PackageError::Locked { path: lock.to_owned() })?,
            ),
            None => None,
        };
        for entry in fs::read_dir(database).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() && is_data(&entry.file_name().to_string_lossy()) {
                fs::copy(entry.path(), folder.join(entry.file_name())).map_err(failed)?;
            }
        }
        Ok(scratch)
    }
}

/// Locks and shared memory belong to whoever uses the database now.
fn is_data(name: &str) -> bool {
    !(name.starts_with('.') || name.starts_with("__db") || name.ends_with("-shm"))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(%error, path = %self.folder.display(), "a copy of the package database could not be removed");
        }
    }
}
