//! A parcel: one baseline as one file, for another lab host.
//!
//! ```text
//! zstd( tar( seal.json       who vouches for it: opaque here, judged by the caller
//!            baseline.json   the record, whose digest the seal names
//!            blobs/DIGEST    every file that the record names, in its order, then its pool's, each once ) )
//! ```
//!
//! A baseline's memory is executable input, and root unpacks it. So nothing is believed before the caller has admitted the seal and the
//! record's digest, both in the first kilobytes; after that every byte is accounted for by the record: which blob comes next, how long it
//! is, and its digest. What is not so ends the import, names the part, and leaves the store as it was.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek as _, SeekFrom, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use patchlab_check::Digest;

use super::{
    Baseline, Baselines, PoolFile, Record, StoreError,
    record::RecordError,
    store::{RECORD, RECORD_LIMIT},
};
use crate::{
    artifact::{ArtifactError, ArtifactStore},
    ledger::LedgerError,
    room::{self, Bytes, NoRoom},
};

const SEAL: &str = "seal.json";
/// Bytes of a seal that are read.
const SEAL_LIMIT: u64 = 64 * 1024;
/// Most files of a baseline, and as many package files of its pool.
const FILES_LIMIT: usize = 100_000;
/// Most bytes of one baseline with its pool: 1 TiB.
const BYTES_LIMIT: u64 = 1 << 40;
/// Highest number that a baseline from elsewhere may have: there must be a next one.
const NUMBERS: u32 = 1_000_000;
/// Bytes after the last entry: a tar's end mark and its padding are 10 KiB.
const END_LIMIT: u64 = 64 * 1024;
/// zstd's levels go from 1 to 22; beyond its default, time grows faster than the gain.
const LEVEL: i32 = 3;
/// Memory that a decoder may be made to take: a window of 2^23 bytes. [`LEVEL`] needs 2 MiB.
const WINDOW_LOG: u32 = 23;
/// Files without which a baseline is none.
const NEEDED: [&str; 5] = ["disk.qcow2", "domain.xml", "manifest.json", "ram", "state"];

/// A parcel could not be written or is not taken in. The store is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParcelError {
    /// Whoever decides does not admit it.
    #[error("baseline file {parcel}: {reason}")]
    NotAdmitted {
        /// The file.
        parcel: PathBuf,
        /// Why.
        reason: String,
    },
    /// It ends too early.
    #[error("baseline file {parcel} is cut short: it ends in {part}: fetch it again")]
    CutShort {
        /// The file.
        parcel: PathBuf,
        /// Where.
        part: String,
    },
    /// A part is not what the record says.
    #[error("baseline file {parcel} was altered: {part} has digest {found}, not {expected}: fetch it again")]
    Altered {
        /// The file.
        parcel: PathBuf,
        /// Which part.
        part: String,
        /// What it has.
        found: Digest,
        /// What it must have.
        expected: Digest,
    },
    /// It is no baseline's file, or something else stands in it than must.
    #[error("baseline file {parcel}: {part}: {reason}")]
    Wrong {
        /// The file.
        parcel: PathBuf,
        /// Where.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// It is there already, and is not written over.
    #[error("{0} is there already: name another file, or remove it")]
    Taken(PathBuf),
    /// There is not enough room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact store.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system said no.
    #[error("baseline file: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ParcelError {
    let path = path.to_owned();
    move |source| ParcelError::Io { action, path, source }
}

/// What is offered: all that is known of a parcel when it is admitted or not.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The seal, as it is in the parcel.
    pub seal: &'a [u8],
    /// Digest of the record that is in the parcel: the baseline's own.
    pub record: Digest,
}

/// What became of an admitted parcel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// The baseline is in the store now.
    New(Baseline),
    /// It was there already.
    There(Baseline),
}

/// A part of a parcel that the record accounts for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blob {
    /// For people.
    part: String,
    digest: Digest,
    size: u64,
    /// Below the baseline's folder; package files go to the artifact store.
    file: Option<String>,
}

/// What follows the record, in this order.
fn blobs(record: &Record) -> Vec<Blob> {
    let files = record.files.iter().map(|(name, stored)| Blob {
        part: name.clone(),
        digest: stored.sha256,
        size: stored.size,
        file: Some(name.clone()),
    });
    let pool: BTreeMap<Digest, &PoolFile> = record.pool.iter().map(|file| (file.sha256, file)).collect();
    let pool = pool.into_values().map(|file| Blob {
        part: format!("{} {} of its pool", file.name, file.version),
        digest: file.sha256,
        size: file.size,
        file: None,
    });
    files.chain(pool).collect()
}

/// What is wrong with a record that comes from elsewhere; `None` when it may be followed.
fn senseless(record: &Record) -> Option<String> {
    let is_name = |name: &str| {
        name.len() <= 64
            && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
            && !name.starts_with('.')
    };
    let is_below = |file: &&String| {
        let mut parts = Path::new(file.as_str()).components();
        file.as_str() != RECORD && !file.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if !is_name(&record.name) || record.name.is_empty() || !(1..=NUMBERS).contains(&record.number) {
        return Some(format!("no baseline is called {:?}", record.full_name()));
    }
    if let Some(file) = record.files.keys().find(|file| !is_below(file)) {
        return Some(format!("it names a file {file:?}, which is not below its folder"));
    }
    if let Some(missing) = NEEDED.iter().find(|needed| !record.files.contains_key(**needed)) {
        return Some(format!("it names no {missing}"));
    }
    if record.files.len() > FILES_LIMIT || record.pool.len() > FILES_LIMIT {
        return Some(format!("it names more than {FILES_LIMIT} files"));
    }
    let bytes = blobs(record).iter().try_fold(0_u64, |sum, blob| sum.checked_add(blob.size));
    match bytes {
        Some(bytes) if bytes <= BYTES_LIMIT => None,
        _ => Some(format!("its files are larger than {}", Bytes(BYTES_LIMIT))),
    }
}

impl Baselines {
    /// Writes a baseline with its pool to one new file, and reads each part as it was stored or fails. `seal` gives what vouches for it.
    ///
    /// # Errors
    /// There is no such baseline, some of it was altered, the file is there already, or cannot be written; then there is none.
    pub fn export(
        &self,
        wanted: &str,
        seal: &mut dyn FnMut(&Baseline) -> Vec<u8>,
        parcel: &Path,
    ) -> Result<Baseline, ParcelError> {
        let baseline = self.get(wanted)?;
        let artifacts = ArtifactStore::open(&self.places.artifacts)?;
        if parcel.exists() {
            return Err(ParcelError::Taken(parcel.to_owned()));
        }
        let folder = parcel.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".patchlab-export-")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(failed("create a file in", folder))?;
        let unwritten = |error| failed("write", parcel)(error);
        let mut encoder = zstd::stream::write::Encoder::new(file, LEVEL).map_err(unwritten)?;
        encoder.include_checksum(true).map_err(unwritten)?;
        let mut tar = tar::Builder::new(encoder);
        add(&mut tar, SEAL, &mut seal(&baseline).as_slice()).map_err(unwritten)?;
        let record = fs::read(baseline.file(RECORD)).map_err(failed("read", &baseline.file(RECORD)))?;
        add(&mut tar, RECORD, &mut record.as_slice()).map_err(unwritten)?;
        for blob in blobs(&baseline.record) {
            add_blob(&mut tar, &baseline, &artifacts, &blob, parcel)?;
        }
        let file = tar.into_inner().and_then(|encoder| encoder.finish()).map_err(unwritten)?;
        file.as_file().sync_all().map_err(unwritten)?;
        file.persist_noclobber(parcel).map_err(|error| unwritten(error.error))?;
        Ok(baseline)
    }

    /// Takes a parcel in, if `admit` says yes to its seal and its record's digest, and every part is what the record says. Where its number
    /// is taken it gets the next.
    ///
    /// # Errors
    /// It is not admitted, it is cut short, altered or no parcel, or there is no room; the store is then as it was, except that package files
    /// that were whole may have come.
    pub fn import(
        &self,
        parcel: &Path,
        admit: &mut dyn FnMut(Offer<'_>) -> Result<(), String>,
    ) -> Result<Imported, ParcelError> {
        let file = File::open(parcel).map_err(failed("open", parcel))?;
        let mut decoder = zstd::stream::read::Decoder::new(file).map_err(failed("read", parcel))?;
        decoder.window_log_max(WINDOW_LOG).map_err(failed("read", parcel))?;
        let decoder = RefCell::new(decoder);
        let mut archive = tar::Archive::new(Shared(&decoder));
        let entries = archive.entries().map_err(failed("read", parcel))?.raw(true);
        let mut parts = Parts { parcel, entries };
        let seal = parts.small(SEAL, SEAL_LIMIT)?;
        let text = parts.small(RECORD, RECORD_LIMIT)?;
        let digest = Digest::of(&text);
        admit(Offer { seal: &seal, record: digest })
            .map_err(|reason| ParcelError::NotAdmitted { parcel: parcel.to_owned(), reason })?;
        let wrong = |part: &str, reason: String| ParcelError::Wrong {
            parcel: parcel.to_owned(),
            part: part.to_owned(),
            reason,
        };
        let record = Record::read(&text).map_err(|error| match error {
            RecordError::Newer { schema } => {
                StoreError::Newer { baseline: digest.short(), part: "record", schema, known: Record::SCHEMA }.into()
            }
            RecordError::Senseless(reason) => wrong(RECORD, reason),
        })?;
        if let Some(reason) = senseless(&record) {
            return Err(wrong(RECORD, reason));
        }
        if let Some(there) = self.known_as(digest)? {
            // Whoever imports it again may do so because it is broken.
            return Ok(Imported::There(self.verify(&there.full_name())?));
        }
        let size: u64 = blobs(&record).iter().map(|blob| blob.size).sum();
        room::require(&self.places.baselines, Bytes(size), &format!("importing baseline {}", record.full_name()))?;
        let id = format!("i-{}-{}", digest.short(), std::process::id());
        self.in_work_folder(&id, |work| {
            let staged = work.join("baseline");
            fs::create_dir_all(&staged).map_err(failed("create", &staged))?;
            self.unpack(&mut parts, &record, work, &staged)?;
            ended(Shared(&decoder), parcel)?;
            Ok(Imported::New(self.adopt_as(&staged, record, text, Some(digest))?))
        })
    }

    fn unpack<R: Read>(
        &self,
        parts: &mut Parts<'_, R>,
        record: &Record,
        work: &Path,
        staged: &Path,
    ) -> Result<(), ParcelError> {
        let artifacts = ArtifactStore::open(&self.places.artifacts)?;
        for blob in blobs(record) {
            let path = blob.file.as_ref().map_or_else(|| work.join("package"), |file| staged.join(file));
            parts.blob(&blob, &path)?;
            // One that is there but altered is replaced.
            if blob.file.is_none() && artifacts.verify(&blob.digest).is_err() {
                artifacts.put(&path)?;
            }
        }
        parts.end()
    }
}

fn add(tar: &mut tar::Builder<impl Write>, name: &str, text: &mut &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(text.len() as u64), name, text)
}

/// The same for every parcel: who wrote it and when is the seal's business.
fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

/// Adds a part that still is what the record says.
fn add_blob(
    tar: &mut tar::Builder<impl Write>,
    baseline: &Baseline,
    artifacts: &ArtifactStore,
    blob: &Blob,
    parcel: &Path,
) -> Result<(), ParcelError> {
    let path = blob.file.as_ref().map_or_else(|| artifacts.path(&blob.digest), |file| baseline.file(file));
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (baseline, file) = (baseline.full_name(), blob.part.clone());
            return Err(StoreError::Missing { baseline, file }.into());
        }
        other => other.map_err(failed("read", &path))?,
    };
    let length = file.metadata().map_err(failed("read", &path))?.len();
    let mut through = Through { from: file.take(length), to: io::sink(), hash: Hash::default() };
    tar.append_data(&mut header(length), format!("blobs/{}", blob.digest), &mut through)
        .map_err(failed("write", parcel))?;
    let found = through.hash.digest();
    if found == blob.digest {
        return Ok(());
    }
    let (baseline, file, expected) = (baseline.full_name(), blob.part.clone(), blob.digest);
    Err(StoreError::Altered { baseline, file, found, expected }.into())
}

/// A source that is read by one after the other: the archive first, then what comes after it.
struct Shared<'a, R>(&'a RefCell<R>);

impl<R: Read> Read for Shared<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

/// The parts of a parcel, in their order.
struct Parts<'a, R: Read> {
    parcel: &'a Path,
    entries: tar::Entries<'a, R>,
}

impl<'a, R: Read> Parts<'a, R> {
    /// The next part, which must have that name and at most that many bytes.
    fn next(&mut self, name: &str, part: &str, limit: u64) -> Result<tar::Entry<'a, R>, ParcelError> {
        let wrong =
            |reason: String| ParcelError::Wrong { parcel: self.parcel.to_owned(), part: part.to_owned(), reason };
        let entry = match self.entries.next() {
            None => return Err(ParcelError::CutShort { parcel: self.parcel.to_owned(), part: part.to_owned() }),
            Some(entry) => entry.map_err(|error| unread(self.parcel, part, error))?,
        };
        let found = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if found != name || !entry.header().entry_type().is_file() {
            return Err(wrong(format!("expected {name:?}, found {found:?}")));
        }
        if entry.size() > limit {
            return Err(wrong(format!("{} bytes are more than {limit}", entry.size())));
        }
        Ok(entry)
    }

    fn small(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, ParcelError> {
        let mut entry = self.next(name, name, limit)?;
        let size = entry.size();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).map_err(|error| unread(self.parcel, name, error))?;
        match text.len() as u64 == size {
            true => Ok(text),
            false => Err(ParcelError::CutShort { parcel: self.parcel.to_owned(), part: name.to_owned() }),
        }
    }

    /// Writes the next part to a file, with holes where it has nothing but zeros.
    fn blob(&mut self, blob: &Blob, path: &Path) -> Result<(), ParcelError> {
        let entry = self.next(&format!("blobs/{}", blob.digest), &blob.part, blob.size)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        let file = File::create(path).map_err(failed("create", path))?;
        let to = Sparse { file, length: 0, failure: None };
        let mut through = Through { from: entry, to, hash: Hash::default() };
        let copied = io::copy(&mut through, &mut io::sink());
        if let Some(error) = through.to.failure.take() {
            return Err(failed("write", path)(error));
        }
        let copied = copied.map_err(|error| unread(self.parcel, &blob.part, error))?;
        through.to.finish().map_err(failed("write", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(failed("open to readers", path))?;
        let (parcel, part, found) = (self.parcel.to_owned(), blob.part.clone(), through.hash.digest());
        if copied < blob.size {
            return Err(ParcelError::CutShort { parcel, part });
        }
        match found == blob.digest {
            true => Ok(()),
            false => Err(ParcelError::Altered { parcel, part, found, expected: blob.digest }),
        }
    }

    fn end(&mut self) -> Result<(), ParcelError> {
        match self.entries.next() {
            None => Ok(()),
            Some(_) => Err(after(self.parcel)),
        }
    }
}

fn after(parcel: &Path) -> ParcelError {
    let reason = "there is more than its record names".to_owned();
    ParcelError::Wrong { parcel: parcel.to_owned(), part: "its end".to_owned(), reason }
}

/// Reads what is left, which is next to nothing: only then its compression's own checksum is looked at.
fn ended(rest: impl Read, parcel: &Path) -> Result<(), ParcelError> {
    let mut rest = BufReader::new(rest).take(END_LIMIT + 1);
    let left = io::copy(&mut rest, &mut io::sink()).map_err(|error| unread(parcel, "its end", error))?;
    if left > END_LIMIT { Err(after(parcel)) } else { Ok(()) }
}

fn unread(parcel: &Path, part: &str, error: io::Error) -> ParcelError {
    let (parcel, part) = (parcel.to_owned(), part.to_owned());
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ParcelError::CutShort { parcel, part },
        _ => ParcelError::Wrong { parcel, part, reason: format!("it was altered, or is no baseline's file: {error}") },
    }
}

/// A digest in the making.
#[derive(Default)]
struct Hash(sha2::Sha256);

impl Hash {
    fn digest(&self) -> Digest {
        use sha2::Digest as _;
        let bytes: [u8; 32] = self.0.clone().finalize().into();
        bytes.into()
    }
}

/// Hands on what it reads, and writes it somewhere else too.
struct Through<R, W> {
    from: R,
    to: W,
    hash: Hash,
}

impl<R: Read, W: Write> Read for Through<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use sha2::Digest as _;
        let read = self.from.read(buffer)?;
        self.hash.0.update(&buffer[..read]);
        self.to.write_all(&buffer[..read])?;
        Ok(read)
    }
}

/// A new file that is written from front to end, with holes for zeros. Remembers its own failures: whoever copies from a part to a file must
/// know which of the two it was.
struct Sparse {
    file: File,
    length: u64,
    failure: Option<io::Error>,
}

impl Sparse {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        match bytes.iter().all(|byte| *byte == 0) {
            true => self.file.seek(SeekFrom::Current(bytes.len() as i64)).map(drop),
            false => self.file.write_all(bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)
    }
}

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map(|()| bytes.len()).map_err(|error| {
            let said = io::Error::new(error.kind(), error.to_string());
            self.failure = Some(error);
            said
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
