//! Where baselines are kept, and under which names.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use patchlab_check::Digest;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    Baseline, Record, StoreError,
    names::{self, Names, NamesFile},
    record::RecordError,
};
use crate::{
    kept::KeptClones,
    ledger::{Ledger, LedgerError, Thing},
    places::Places,
};

/// Bytes of a record that are read: 16 MiB.
pub(super) const RECORD_LIMIT: u64 = 16 * 1024 * 1024;

/// Name of the record in a baseline's folder.
pub(super) const RECORD: &str = "baseline.json";

/// A baseline, or why it cannot be read.
pub(super) type Loaded = Result<Baseline, StoreError>;

/// The stored baselines.
#[derive(Debug, Clone)]
pub struct Baselines {
    pub(super) places: Places,
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}

fn unwritten(staged: &Path, error: serde_json::Error) -> StoreError {
    failed("write the record in", staged)(error.into())
}

/// A record's text with another number. What a later patchlab added stays.
fn renumbered(text: &[u8], record: &Record) -> serde_json::Result<Vec<u8>> {
    let mut value: serde_json::Value = serde_json::from_slice(text)?;
    value["number"] = record.number.into();
    if let Some(original) = record.original {
        value["original"] = serde_json::to_value(original)?;
    }
    serde_json::to_vec_pretty(&value)
}

/// A try at the lock of one baseline, which is on its record's file.
enum Lock {
    Held(fs::File),
    /// Somebody else has it, in a way that excludes this one.
    Busy,
    /// There is no record: an altered one, or a machine's folder that is no baseline yet.
    Absent,
}

fn lock(folder: &Path, operation: FlockOperation) -> Result<Lock, StoreError> {
    let path = folder.join(RECORD);
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::Absent),
        other => other.map_err(failed("open", &path))?,
    };
    match flock(&file, operation) {
        Ok(()) => Ok(Lock::Held(file)),
        Err(Errno::WOULDBLOCK) => Ok(Lock::Busy),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// Keeps a baseline from being taken away until what this gives is dropped. For the machines that are made from its folder.
pub(crate) fn hold(folder: &Path) -> io::Result<Option<fs::File>> {
    match lock(folder, FlockOperation::NonBlockingLockShared) {
        Ok(Lock::Held(file)) => Ok(Some(file)),
        Ok(Lock::Absent) => Ok(None),
        Ok(Lock::Busy) => Err(io::Error::other("the baseline is being taken away")),
        Err(StoreError::Io { source, .. }) => Err(source),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Whether a machine that was made from a baseline runs.
pub(super) fn is_used(folder: &Path) -> Result<bool, StoreError> {
    Ok(matches!(lock(folder, FlockOperation::NonBlockingLockExclusive)?, Lock::Busy))
}

impl Baselines {
    /// The baselines of a lab.
    pub fn open(places: &Places) -> Self {
        Self { places: places.clone() }
    }

    /// All of them, by name and number.
    pub fn list(&self) -> Result<Vec<Baseline>, StoreError> {
        self.each()?.into_iter().map(|(_, loaded)| loaded).collect()
    }

    /// Those that can be read, by name and number, and what is wrong with the others.
    pub fn list_readable(&self) -> Result<(Vec<Baseline>, Vec<StoreError>), StoreError> {
        let (mut readable, mut wrong) = (Vec::new(), Vec::new());
        for (_, loaded) in self.each()? {
            match loaded {
                Ok(baseline) => readable.push(baseline),
                Err(error) => wrong.push(error),
            }
        }
        Ok((readable, wrong))
    }

    /// Each of them by full name, also those that cannot be read.
    pub(super) fn each(&self) -> Result<Vec<(String, Loaded)>, StoreError> {
        let full_names = self.names()?.into_iter().map(|((name, number), digest)| (format!("{name}@{number}"), digest));
        Ok(full_names.map(|(name, digest)| (name.clone(), self.load(&name, digest))).collect())
    }

    /// The one with that full name, or the newest of that name, or the one with that digest (or its first 12 digits).
    pub fn get(&self, wanted: &str) -> Result<Baseline, StoreError> {
        let (name, digest) = self.find(wanted)?;
        self.load(&name, digest)
    }

    /// Full name and digest, as the file of names has them.
    fn find(&self, wanted: &str) -> Result<(String, Digest), StoreError> {
        let names = self.names()?;
        let newest = names.iter().filter(|((name, _), _)| name == wanted).max_by_key(|((_, number), _)| *number);
        let exact = names.iter().find(|((name, number), digest)| {
            format!("{name}@{number}") == wanted || (wanted.len() >= 12 && digest.to_string().starts_with(wanted))
        });
        match newest.or(exact) {
            Some(((name, number), digest)) => Ok((format!("{name}@{number}"), *digest)),
            None => {
                let known = names.keys().map(|(name, number)| format!("{name}@{number}")).collect();
                Err(StoreError::Unknown { wanted: wanted.into(), known })
            }
        }
    }

    /// Reads every file of a baseline again and compares digests; the first that differs is the error.
    pub fn verify(&self, wanted: &str) -> Result<Baseline, StoreError> {
        let baseline = self.get(wanted)?;
        let name = baseline.full_name();
        for (file, stored) in &baseline.record.files {
            let path = baseline.file(file);
            let (found, _) = match Digest::of_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(StoreError::Missing { baseline: name, file: file.clone() });
                }
                other => other.map_err(failed("read", &path))?,
            };
            if found != stored.sha256 {
                let (file, expected) = (file.clone(), stored.sha256);
                return Err(StoreError::Altered { baseline: name, file, found, expected });
            }
        }
        Ok(baseline)
    }

    /// Takes a baseline away, an altered one too, and says its full name and digest; unless kept clones or machines that run need it:
    /// their disks are layers over its disk. Its package files stay in the artifact store: orders may need them.
    pub fn remove(&self, wanted: &str) -> Result<(String, Digest), StoreError> {
        let (name, digest) = self.find(wanted)?;
        let needing = KeptClones::open(&self.places).needing(&digest)?;
        if !needing.is_empty() {
            let kept = needing.into_iter().map(|kept| kept.record.name).collect();
            return Err(StoreError::Needed { baseline: name, kept });
        }
        // Held to the end: nobody makes a machine from what is half gone.
        let _alone = match lock(&self.folder(digest), FlockOperation::NonBlockingLockExclusive)? {
            Lock::Busy => return Err(StoreError::InUse { baseline: name }),
            held => held,
        };
        let mut locked = NamesFile::of(&self.places.baselines).lock()?;
        locked.names.retain(|_, known| *known != digest);
        locked.write()?;
        drop(locked);
        let folder = self.folder(digest);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &folder)(error)),
            _ => Ok((name, digest)),
        }
    }

    /// The one that was built from the same inputs, whole as far as lengths tell. An altered one is none.
    pub(super) fn built_from(&self, inputs: Digest) -> Result<Option<Baseline>, StoreError> {
        let whole = |baseline: &Baseline| {
            let mut files = baseline.record.files.iter();
            files.all(|(file, stored)| fs::metadata(baseline.file(file)).is_ok_and(|found| found.len() == stored.size))
        };
        let newest_first = self.names()?.into_iter().rev();
        let mut readable =
            newest_first.filter_map(|((name, number), digest)| self.load(&format!("{name}@{number}"), digest).ok());
        Ok(readable.find(|baseline| baseline.record.inputs == inputs && whole(baseline)))
    }

    /// The next number for a name.
    pub(super) fn next_number(&self, name: &str) -> Result<u32, StoreError> {
        Ok(names::next_number(&self.names()?, name))
    }

    /// Puts a finished folder in its place and gives it its name. Its number is the record's, or the next of that name where
    /// another baseline has that. The folder must lie on the store's file system.
    pub fn adopt(&self, staged: &Path, record: Record) -> Result<Baseline, StoreError> {
        let text = serde_json::to_vec_pretty(&record).map_err(|error| unwritten(staged, error))?;
        self.adopt_as(staged, record, text, None)
    }

    /// The same for a record whose text is given and stays as it is, unless it needs another number: then it says what its digest was.
    pub(super) fn adopt_as(
        &self,
        staged: &Path,
        mut record: Record,
        mut text: Vec<u8>,
        original: Option<Digest>,
    ) -> Result<Baseline, StoreError> {
        // One call for all files of the folder: they are large, and most are on the disk already.
        let folder = fs::File::open(staged).map_err(failed("open", staged))?;
        rustix::fs::syncfs(&folder).map_err(|error| failed("write out", staged)(error.into()))?;
        let mut locked = NamesFile::of(&self.places.baselines).lock()?;
        if locked.names.contains_key(&(record.name.clone(), record.number)) {
            (record.number, record.original) = (locked.next_number(&record.name), original);
            text = renumbered(&text, &record).map_err(|error| unwritten(staged, error))?;
        }
        let digest = Digest::of(&text);
        let path = staged.join(RECORD);
        let mut file = fs::File::create(&path).map_err(failed("create", &path))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &path))?;
        let home = self.folder(digest);
        if !locked.names.values().any(|known| *known == digest) {
            // What a process left that died before it could give it a name.
            match fs::remove_dir_all(&home) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &home)(error)),
                _ => {}
            }
        }
        fs::rename(staged, &home).map_err(failed("put in place", &home))?;
        locked.names.insert((record.name.clone(), record.number), digest);
        locked.write()?;
        Ok(Baseline { digest, folder: home, record })
    }

    /// The one with that digest, here or where it came from.
    pub(super) fn known_as(&self, digest: Digest) -> Result<Option<Baseline>, StoreError> {
        let all = self.names()?.into_iter();
        let mut readable =
            all.filter_map(|((name, number), digest)| self.load(&format!("{name}@{number}"), digest).ok());
        Ok(readable.find(|baseline| baseline.digest == digest || baseline.record.original == Some(digest)))
    }

    /// Does something in a work folder that goes afterwards, however that ended, and is in the ledger until then.
    pub(super) fn in_work_folder<T, E: From<StoreError> + From<LedgerError>>(
        &self,
        id: &str,
        make: impl FnOnce(&Path) -> Result<T, E>,
    ) -> Result<T, E> {
        let ledger = Ledger::open(&self.places)?;
        let work = self.places.work.join(id);
        ledger.begin(id)?;
        ledger.creating(id, Thing::Folder { path: work.clone() })?;
        let made = make(&work);
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &work)(error).into()),
            _ => {}
        }
        ledger.end(id)?;
        made
    }

    /// The baseline of that full name; its record must have that very digest.
    fn load(&self, name: &str, digest: Digest) -> Result<Baseline, StoreError> {
        let folder = self.folder(digest);
        let path = folder.join(RECORD);
        let wrong = |reason: String| StoreError::Record { path: path.clone(), reason };
        let length = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { baseline: name.to_owned(), file: RECORD.into() });
            }
            other => other.map_err(failed("read", &path))?.len(),
        };
        if length > RECORD_LIMIT {
            return Err(wrong(format!("{length} bytes are too many")));
        }
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let found = Digest::of(&text);
        if found != digest {
            return Err(StoreError::Altered {
                baseline: name.to_owned(),
                file: RECORD.into(),
                found,
                expected: digest,
            });
        }
        let record = Record::read(&text).map_err(|error| match error {
            RecordError::Newer { schema } => {
                StoreError::Newer { baseline: name.to_owned(), part: "record", schema, known: Record::SCHEMA }
            }
            RecordError::Senseless(reason) => wrong(reason),
        })?;
        Ok(Baseline { digest, folder, record })
    }

    fn folder(&self, digest: Digest) -> PathBuf {
        self.places.baselines.join(digest.to_string())
    }

    fn names(&self) -> Result<Names, StoreError> {
        NamesFile::of(&self.places.baselines).read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        baseline::{Policy, StoredFile},
        gc::Mode,
    };

    fn record(number: u32, disk: &[u8]) -> Record {
        let file = StoredFile { sha256: Digest::of(disk), size: disk.len() as u64 };
        Record { number, inputs: file.sha256, files: [("disk.qcow2".into(), file)].into(), ..Record::empty() }
    }

    fn staged(store: &Baselines, disk: &[u8]) -> PathBuf {
        let staged = store.places.baselines.join(".staged");
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("disk.qcow2"), disk).unwrap();
        staged
    }

    fn store() -> (tempfile::TempDir, Baselines) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        fs::create_dir_all(&places.baselines).unwrap();
        let store = Baselines::open(&places);
        for (number, disk) in [(1, b"one"), (2, b"two")] {
            let staged = staged(&store, disk);
            store.adopt(&staged, record(number, disk)).unwrap();
        }
        (dir, store)
    }

    #[test]
    fn a_name_means_the_newest_and_a_full_name_or_digest_that_one() {
        let (_dir, store) = store();
        assert_eq!(store.get("web").unwrap().record.number, 2);
        let first = store.get("web@1").unwrap();
        assert_eq!(store.get(&first.digest.short()).unwrap(), first);
        assert_eq!(store.built_from(Digest::of(b"one")).unwrap(), Some(first));
        assert_eq!(store.next_number("web").unwrap(), 3);
        let error = store.get("mail").unwrap_err().to_string();
        assert!(error.contains("web@1, web@2"), "{error}");
    }

    #[test]
    fn verify_names_the_altered_file() {
        let (_dir, store) = store();
        let baseline = store.verify("web@1").unwrap();
        fs::write(baseline.file("disk.qcow2"), "on3").unwrap();
        let error = store.verify("web@1").unwrap_err();
        assert!(matches!(&error, StoreError::Altered { file, .. } if file == "disk.qcow2"), "{error}");
        fs::remove_file(baseline.file("disk.qcow2")).unwrap();
        assert!(matches!(store.verify("web@1").unwrap_err(), StoreError::Missing { .. }));
        assert_eq!(store.built_from(Digest::of(b"one")).unwrap(), None);
        fs::write(baseline.file(RECORD), serde_json::to_vec(&record(1, b"evil")).unwrap()).unwrap();
        assert!(matches!(store.get("web@1").unwrap_err(), StoreError::Altered { file, .. } if file == RECORD));
    }

    #[test]
    fn a_manifest_is_read_as_it_was_or_not_at_all() {
        let (_dir, store) = store();
        let mut baseline = store.get("web").unwrap();
        assert!(
            matches!(baseline.manifest().unwrap_err(), StoreError::Missing { file, .. } if file == "manifest.json")
        );
        let text = r#"{"schema":1,"kernel":"6.1","packages":{},"files":{},"units":{},"ports":[]}"#;
        fs::write(baseline.file("manifest.json"), text).unwrap();
        assert!(baseline.manifest().is_err(), "no record names it");
        let stored = StoredFile { sha256: Digest::of(text), size: text.len() as u64 };
        baseline.record.files.insert("manifest.json".into(), stored);
        assert_eq!(baseline.manifest().unwrap().kernel, "6.1");
        fs::write(baseline.file("manifest.json"), text.replace("6.1", "6.6")).unwrap();
        assert!(matches!(baseline.manifest().unwrap_err(), StoreError::Altered { .. }));
    }

    #[test]
    fn a_removed_one_is_gone_even_when_it_was_altered() {
        let (_dir, store) = store();
        let second = store.get("web@2").unwrap();
        fs::write(second.file(RECORD), "{}").unwrap();
        assert!(matches!(store.get("web").unwrap_err(), StoreError::Altered { baseline, .. } if baseline == "web@2"));
        assert!(store.built_from(Digest::of(b"one")).unwrap().is_some(), "an altered one blocks no other");
        let (readable, wrong) = store.list_readable().unwrap();
        assert_eq!((readable.len(), readable[0].record.number, wrong.len()), (1, 1, 1));
        assert_eq!(store.remove("web").unwrap(), ("web@2".into(), second.digest));
        assert!(!second.folder.exists());
        assert_eq!(store.get("web").unwrap().record.number, 1);
    }

    #[test]
    fn a_number_that_is_taken_is_not_taken_again() {
        let (_dir, store) = store();
        let first = store.get("web@1").unwrap();
        let third = store.adopt(&staged(&store, b"three"), record(1, b"three")).unwrap();
        assert_eq!((third.record.number, store.get("web").unwrap()), (3, third));
        assert_eq!(store.get("web@1").unwrap(), first);
        store.remove("web@2").unwrap();
        assert_eq!(store.adopt(&staged(&store, b"two"), record(2, b"two")).unwrap().record.number, 2);
    }

    #[test]
    fn a_record_of_a_later_form_is_named_as_such() {
        let (_dir, store) = store();
        let later = Record { schema: Record::SCHEMA + 1, ..record(3, b"three") };
        store.adopt(&staged(&store, b"three"), later).unwrap();
        let error = store.get("web").unwrap_err();
        assert!(
            matches!(&error, StoreError::Newer { baseline, schema, .. } if baseline == "web@3" && *schema == Record::SCHEMA + 1)
        );
        assert!(store.get("web@2").is_ok());
    }

    #[test]
    fn one_that_a_machine_was_made_from_is_not_taken_away() {
        let (_dir, store) = store();
        let first = store.get("web@1").unwrap();
        let holds = [hold(&first.folder).unwrap(), hold(&first.folder).unwrap()];
        let error = store.remove("web@1").unwrap_err();
        assert!(matches!(&error, StoreError::InUse { baseline } if baseline == "web@1"), "{error}");
        let policy = Policy { keep: 1, budget: None };
        let pruning = store.prune(policy, Mode::Collect).unwrap();
        assert!(pruning.baselines.iter().all(|one| one.stays), "{pruning:?}");
        drop(holds);
        let foretold = store.prune(policy, Mode::DryRun).unwrap();
        assert!(first.folder.exists());
        assert_eq!(store.prune(policy, Mode::Collect).unwrap(), foretold);
        let stays: Vec<_> = foretold.baselines.iter().map(|one| (one.baseline.as_str(), one.stays)).collect();
        assert_eq!((stays.as_slice(), first.folder.exists()), ([("web@1", false), ("web@2", true)].as_slice(), false));
    }

    #[test]
    fn pruning_leaves_the_unreadable_to_people_and_takes_what_has_no_name() {
        let empty = tempfile::tempdir().unwrap();
        let nothing =
            Baselines::open(&Places::of_data(empty.path())).prune(Policy { keep: 1, budget: None }, Mode::Collect);
        assert_eq!(nothing.unwrap(), Default::default());
        let (_dir, store) = store();
        let nameless = store.places.baselines.join(Digest::of("nameless").to_string());
        fs::create_dir(&nameless).unwrap();
        let first = store.get("web@1").unwrap();
        fs::write(first.file(RECORD), "{}").unwrap();
        let pruning = store.prune(Policy { keep: 1, budget: None }, Mode::Collect).unwrap();
        assert!(pruning.unreadable[0].starts_with("web@1: "), "{pruning:?}");
        assert_eq!(
            (first.folder.exists(), nameless.exists(), &pruning.nameless),
            (true, false, &vec![nameless.clone()])
        );
        assert!(store.get("web@2").is_ok());
    }
}
