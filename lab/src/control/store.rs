//! Where records of controls are kept between validations: `DATA/lab/controls/KEY.json`, which no worker sees. What a worker found out is
//! taken from its folder by its parent, and given to the next worker by a copy.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use patchlab_check::Digest;
use rustix::fs::OFlags;

use super::{ControlRecord, RECORD_BYTES, SCHEMA};
use crate::places::Places;

/// The record's name in a worker's folder.
const IN_WORKER: &str = "control.json";
/// Records that are kept, the newest.
const RECORDS: usize = 64;

/// Whether a control is remembered from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// It is.
    Yes,
    /// It is not: something failed on it or was measured, or its worker said nothing of it.
    No,
}

/// The records of a lab.
#[derive(Debug, Clone)]
pub struct Controls {
    folder: PathBuf,
}

impl Controls {
    /// Those of a lab.
    pub fn open(places: &Places) -> Self {
        Self { folder: places.lab.join("controls") }
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// Whether something is remembered under these conditions.
    pub fn has(&self, key: &Digest) -> bool {
        self.path(key).is_file()
    }

    /// What is remembered under these conditions; of a record that cannot be read, nothing.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, key: &Digest) -> io::Result<Option<ControlRecord>> {
        match plain(&self.path(key)) {
            Ok(bytes) => Ok(read(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over what the worker with this folder found out under these conditions, as seen in that run.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn adopt(&self, key: &Digest, worker: &Path, run: &str) -> io::Result<Adopted> {
        let found = match plain(&worker.join(IN_WORKER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Adopted::No),
            found => found?,
        };
        let Some(mut record) = read(&found).filter(ControlRecord::is_well) else { return Ok(Adopted::No) };
        run.clone_into(&mut record.run);
        if let Some(older) = self.get(key)? {
            record = record.beside(older);
        }
        // What commands printed is nobody's business but the lab's.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        file.persist(self.path(key)).map_err(|error| error.error)?;
        self.retain()?;
        Ok(Adopted::Yes)
    }

    /// Takes the oldest away when there are too many.
    fn retain(&self) -> io::Result<()> {
        let mut known: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "json") {
                known.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        known.sort_unstable();
        let too_many = known.len().saturating_sub(RECORDS);
        known.into_iter().take(too_many).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// Puts a record into a worker's folder: for the worker, or by it.
///
/// # Errors
/// It cannot be written.
pub fn put(record: &ControlRecord, worker: &Path) -> io::Result<()> {
    fs::write(worker.join(IN_WORKER), serde_json::to_vec(record)?)
}

/// The record that a worker was given.
///
/// # Errors
/// It is not there, or is none.
pub fn given(worker: &Path) -> io::Result<ControlRecord> {
    let none = || io::Error::other("the record of the control cannot be read");
    read(&plain(&worker.join(IN_WORKER))?).ok_or_else(none)
}

fn read(bytes: &[u8]) -> Option<ControlRecord> {
    serde_json::from_slice(bytes).ok().filter(|record: &ControlRecord| record.schema == SCHEMA)
}

/// The bytes of a plain file in a folder that is not trusted: no link is followed, no pipe waited for, and no more read than a record may
/// have.
fn plain(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > RECORD_BYTES {
        return Err(io::Error::other(format!("{} is no plain file of up to {RECORD_BYTES} bytes", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}
