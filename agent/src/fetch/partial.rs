//! A file while it comes, perhaps from several places one after the other.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Seek as _, Write as _},
    mem,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use patchlab_protocol::Digest;
use sha2::{Digest as _, Sha256};

use super::{FetchError, Payload, Place, file_name};

/// A file on its way. The bytes are hashed as they are written, into a file that nobody else can open, so what was verified
/// is what is installed. The digest is over the whole: of a part, nobody can say whether it is good.
#[derive(Debug)]
pub struct Partial {
    file: Payload,
    path: PathBuf,
    out: fs::File,
    hash: Sha256,
    have: u64,
    /// Whose bytes these are.
    from: BTreeSet<Place>,
    /// Whose bytes were thrown away because the whole was altered.
    suspects: BTreeSet<Place>,
}

impl Partial {
    /// An empty one in `folder`, in place of whatever has its name there.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn new(file: Payload, folder: &Path) -> Result<Self, FetchError> {
        let path = folder.join(file_name(&file.sha256));
        let disk = |source| FetchError::Disk { path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(error)),
            _ => {}
        }
        let out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(disk)?;
        let (from, suspects) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { file, path, out, hash: Sha256::new(), have: 0, from, suspects })
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
        self.from.iter().any(|other| other != place)
    }

    /// Throws away what is there.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn start_over(&mut self) -> Result<(), FetchError> {
        self.out.set_len(0).and_then(|()| self.out.rewind()).map_err(|error| self.disk(error))?;
        self.from.clear();
        (self.hash, self.have) = (Sha256::new(), 0);
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
        self.out.sync_all().map_err(|error| self.disk(error))?;
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
        let mut part = Partial::new(file, folder.path()).unwrap();
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
    fn a_part_is_not_the_whole_and_a_new_one_takes_the_place_of_an_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new("http://127.0.0.1:1").unwrap();
        let file = file("a package");
        for _ in 0..2 {
            let mut part = Partial::new(file, folder.path()).unwrap();
            part.take(b"a pack", &place).unwrap();
            let reason = part.wrong().unwrap();
            assert!(reason.contains("it has 6 bytes") && reason.contains("expected 9"), "{reason}");
        }
    }
}
