//! A file while it comes, perhaps from several places one after the other, and perhaps over several starts of the agent.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Seek as _, Write as _},
    mem,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use patchlab_protocol::Digest;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::{FetchError, Payload, Place, file_name};

/// How long the part of a file is kept that nobody asked for again: a week.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A file on its way. The bytes are hashed as they are written, into a file that nobody else can open, so what was verified
/// is what is installed. The digest is over the whole: of a part, nobody can say whether it is good.
///
/// It grows as `DIGEST.part` in a folder of parts, which outlives the run, and goes to its place when it is whole. What an earlier run left
/// there is hashed anew, and is as from somebody unknown.
#[derive(Debug)]
pub struct Partial {
    file: Payload,
    path: PathBuf,
    at: PathBuf,
    out: fs::File,
    hash: Sha256,
    have: u64,
    left: Left,
    /// Whose bytes these are.
    from: BTreeSet<Place>,
    /// Whose bytes were thrown away because the whole was altered.
    suspects: BTreeSet<Place>,
}

/// Whether a part of it was left by an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Something,
}

/// Where a file grows in the folder of parts.
pub fn part_of(parts: &Path, file: &Payload) -> PathBuf {
    parts.join(format!("{}.part", file.sha256))
}

/// Opens the part of a file, for this process alone; `None` when somebody has it, or has just put it in its place.
fn open(at: &Path) -> io::Result<Option<fs::File>> {
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(at)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let is_there = fs::metadata(at).is_ok_and(|there| file.metadata().is_ok_and(|mine| mine.ino() == there.ino()));
    Ok(is_there.then_some(file))
}

/// Takes away what nobody asked for again.
fn forget_old(parts: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parts)? {
        let entry = entry?;
        let age = SystemTime::now().duration_since(entry.metadata()?.modified()?).unwrap_or_default();
        if age > KEPT {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Partial {
    /// For `folder`, in place of whatever has its name there; what an earlier run left in `parts`, on the same file system, is gone on with.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn new(file: Payload, folder: &Path, parts: &Path) -> Result<Self, FetchError> {
        let path = folder.join(file_name(&file.sha256));
        let disk = |source| FetchError::Disk { path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(error)),
            _ => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parts).map_err(disk)?;
        if let Err(error) = forget_old(parts) {
            tracing::warn!(%error, parts = %parts.display(), "old parts of files could not be removed");
        }
        let at = part_of(parts, &file);
        let (at, out) = match open(&at).map_err(disk)? {
            Some(out) => (at, out),
            None => {
                let own = folder.join(format!("{}.part", file.sha256));
                let out =
                    fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&own);
                (own, out.map_err(disk)?)
            }
        };
        let (from, suspects) = (BTreeSet::new(), BTreeSet::new());
        let mut part = Self { file, path, at, out, hash: Sha256::new(), have: 0, left: Left::Nothing, from, suspects };
        part.take_up().map_err(|error| part.disk(error))?;
        Ok(part)
    }

    /// Hashes what is there. More than there should be, or all of it and another, is nothing to go on with.
    fn take_up(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = self.out.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            self.hash.update(&buffer[..read]);
            self.have += read as u64;
            if self.have > self.file.size {
                break;
            }
        }
        if self.have >= self.file.size && self.wrong().is_some() {
            self.out.set_len(0)?;
            self.out.rewind()?;
            (self.hash, self.have) = (Sha256::new(), 0);
        }
        if self.have > 0 {
            self.left = Left::Something;
            tracing::info!(file = %self.file.sha256.short(), have = self.have, "a part was here already");
        }
        Ok(())
    }

    fn disk(&self, source: io::Error) -> FetchError {
        FetchError::Disk { path: self.path.clone(), source }
    }

    /// How many bytes are there.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// How many there must be.
    pub fn size(&self) -> u64 {
        self.file.size
    }

    /// Takes what came next, from `place`.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn take(&mut self, bytes: &[u8], place: &Place) -> Result<(), FetchError> {
        if !self.from.contains(place) {
            self.from.insert(place.clone());
        }
        self.out.write_all(bytes).map_err(|error| self.disk(error))?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// What is wrong with it, once nothing more comes.
    pub fn wrong(&self) -> Option<String> {
        let found = Digest::from_bytes(&self.hash.clone().finalize());
        let whole = self.have == self.file.size && found == Some(self.file.sha256);
        let reason = || format!("it has {} bytes and another digest, expected {} bytes", self.have, self.file.size);
        (!whole).then(reason)
    }

    /// Whether others than `place` have a part in it.
    pub fn is_mixed(&self, place: &Place) -> bool {
        self.left == Left::Something || self.from.iter().any(|other| other != place)
    }

    /// Throws away what is there.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn start_over(&mut self) -> Result<(), FetchError> {
        self.out.set_len(0).and_then(|()| self.out.rewind()).map_err(|error| self.disk(error))?;
        self.from.clear();
        (self.hash, self.have, self.left) = (Sha256::new(), 0, Left::Nothing);
        Ok(())
    }

    /// Throws away what is there, and remembers whose it was: one of them sent altered bytes.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn start_over_without_suspects(&mut self) -> Result<(), FetchError> {
        self.suspects.append(&mut self.from);
        self.start_over()
    }

    /// Those of the suspects that sent altered bytes, now that others made it whole without them.
    pub fn convicted(&mut self) -> BTreeSet<Place> {
        let suspects = mem::take(&mut self.suspects);
        suspects.difference(&self.from).cloned().collect()
    }

    /// Keeps it; says where.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn keep(self) -> Result<PathBuf, FetchError> {
        let kept = self.out.sync_all().and_then(|()| fs::rename(&self.at, &self.path));
        kept.map_err(|error| self.disk(error))?;
        Ok(self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> Payload {
        Payload { size: content.len() as u64, sha256: Digest::of(content) }
    }

    #[test]
    fn who_sent_altered_bytes_is_known_when_the_whole_came_without_them() {
        let folder = tempfile::tempdir().unwrap();
        let [liar, honest] = ["http://127.0.0.1:1", "http://127.0.0.1:2"].map(|uri| Place::new(uri).unwrap());
        let file = file("a package");
        let mut part = Partial::new(file, folder.path(), &folder.path().join("parts")).unwrap();
        part.take(b"a sto", &liar).unwrap();
        assert!(!part.is_mixed(&liar) && part.is_mixed(&honest));
        part.take(b"kage", &honest).unwrap();
        assert!(part.wrong().is_some() && part.is_mixed(&honest));
        part.start_over_without_suspects().unwrap();
        assert_eq!((part.have(), part.is_mixed(&honest)), (0, false));
        part.take(b"a package", &honest).unwrap();
        assert_eq!(part.wrong(), None);
        assert_eq!(part.convicted(), BTreeSet::from([liar]));
        assert_eq!(fs::read(part.keep().unwrap()).unwrap(), b"a package");
    }

    #[test]
    fn a_part_is_not_the_whole_and_what_an_earlier_run_left_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("parts");
        let place = Place::new("http://127.0.0.1:1").unwrap();
        let file = file("a package");
        let mut part = Partial::new(file, folder.path(), &parts).unwrap();
        part.take(b"a pack", &place).unwrap();
        let reason = part.wrong().unwrap();
        assert!(reason.contains("it has 6 bytes") && reason.contains("expected 9"), "{reason}");
        // While somebody is at it, another begins anew.
        let other = Partial::new(file, folder.path(), &parts).unwrap();
        assert_eq!(other.have(), 0);
        drop((part, other));
        let mut part = Partial::new(file, folder.path(), &parts).unwrap();
        assert_eq!((part.have(), part.is_mixed(&place)), (6, true), "nobody knows whose bytes these are");
        part.take(b"age", &place).unwrap();
        assert_eq!(part.wrong(), None);
        let kept = part.keep().unwrap();
        assert_eq!(fs::read(kept).unwrap(), b"a package");
        assert_eq!(fs::read_dir(&parts).unwrap().count(), 0);
        // All of it, but not what it should be.
        fs::write(parts.join(format!("{}.part", file.sha256)), "a stowage").unwrap();
        assert_eq!(Partial::new(file, folder.path(), &parts).unwrap().have(), 0);
    }
}
