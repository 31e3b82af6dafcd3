//! The file that says which baseline a name means: a line each, `debian-12-web@1 DIGEST`.
//!
//! Whoever reads it sees a whole file, since it is replaced and never written over. Whoever changes it holds its lock from reading
//! to replacing: of two that change it at once, the second would take back what the first did.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use patchlab_check::Digest;
use rustix::fs::{FlockOperation, flock};

use super::{StoreError, store::failed};

/// Names and numbers, with what each means.
pub(super) type Names = BTreeMap<(String, u32), Digest>;

/// The file of names in a store's folder.
#[derive(Debug)]
pub(super) struct NamesFile<'a> {
    folder: &'a Path,
}

/// The names, with their lock held.
#[derive(Debug)]
pub(super) struct LockedNames<'a> {
    /// As they are, and as they are to be.
    pub(super) names: Names,
    file: NamesFile<'a>,
    _lock: File,
}

impl<'a> NamesFile<'a> {
    pub(super) fn of(folder: &'a Path) -> Self {
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("names")
    }

    /// The names as they are now. A file that is not there has none.
    pub(super) fn read(&self) -> Result<Names, StoreError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Names::new()),
            other => other.map_err(failed("read", &path))?,
        };
        text.lines()
            .map(|line| {
                parse(line).ok_or_else(|| StoreError::Record { path: path.clone(), reason: format!("{line:?}") })
            })
            .collect()
    }

    /// The names, once nobody else changes them.
    pub(super) fn lock(self) -> Result<LockedNames<'a>, StoreError> {
        fs::create_dir_all(self.folder).map_err(failed("create", self.folder))?;
        let path = self.folder.join(".names.lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(failed("open", &path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed("lock", &path)(error.into()))?;
        Ok(LockedNames { names: self.read()?, file: self, _lock: lock })
    }
}

impl LockedNames<'_> {
    /// The number that comes after all of that name.
    pub(super) fn next_number(&self, name: &str) -> u32 {
        next_number(&self.names, name)
    }

    /// Replaces the file.
    pub(super) fn write(&self) -> Result<(), StoreError> {
        let path = self.file.path();
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".names-")
                .permissions(fs::Permissions::from_mode(0o644))
                .tempfile_in(self.file.folder)?;
            for ((name, number), digest) in &self.names {
                writeln!(file, "{name}@{number} {digest}")?;
            }
            file.as_file().sync_all()?;
            file.persist(&path).map(drop).map_err(|error| error.error)
        };
        write().map_err(failed("write", &path))
    }
}

/// The number that comes after all of that name.
pub(super) fn next_number(names: &Names, name: &str) -> u32 {
    names.keys().filter(|(known, _)| known == name).map(|(_, number)| *number).max().unwrap_or(0) + 1
}

/// `debian-12-web@1 DIGEST`.
fn parse(line: &str) -> Option<((String, u32), Digest)> {
    let (full, digest) = line.split_once(' ')?;
    let (name, number) = full.rsplit_once('@')?;
    Some(((name.to_owned(), number.parse().ok()?), digest.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    #[test]
    fn of_two_that_change_the_names_at_once_neither_takes_back_what_the_other_did() {
        const ROUNDS: u32 = 25;
        let dir = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(2);
        let add_all = |name: &str| {
            for number in 1..=ROUNDS {
                barrier.wait();
                let mut locked = NamesFile::of(dir.path()).lock().unwrap();
                locked.names.insert((name.to_owned(), number), Digest::of(name));
                locked.write().unwrap();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| add_all("web"));
            scope.spawn(|| add_all("mail"));
        });
        let names = NamesFile::of(dir.path()).read().unwrap();
        assert_eq!(names.len(), 2 * ROUNDS as usize, "{names:?}");
    }
}
