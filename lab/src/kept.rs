//! Clones kept of a validation: what control and patched clone were at its end, to be looked into later.
//!
//! ```text
//! DATA/kept/NAME/kept.json           the record
//!                tools.raw           the second disk of both clones
//!                control.state       memory and devices      (patched.* likewise)
//!                control.qcow2       a layer over the baseline's disk
//!                control.console     what its console said
//! ```
//!
//! The validation's worker saves both ([`save`]), its parent takes them over ([`KeptClones::adopt`]): the ledger first,
//! the name last. What is kept never changes; every look at it starts from the same moment, and it expires after
//! [`LIFETIME`].

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use patchlab_check::Digest;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use serde::{Deserialize, Serialize};

use crate::{
    applier::Role,
    ledger::{Ledger, LedgerError, Thing},
    machine::{Lab, LabError, Machine, Saved, SavedFile},
    places::Places,
    report::BaselineReport,
    verdict::Judgement,
};

/// How long kept clones are kept: 3 days. Two clones take what their memory has, about 1 GiB for guests of 512 MiB.
pub const LIFETIME: Duration = Duration::from_secs(3 * 24 * 3600);
/// Version of the record's form.
pub const SCHEMA: u32 = 1;
/// Bytes of a record that are read.
const RECORD_LIMIT: u64 = 1024 * 1024;
const RECORD: &str = "kept.json";
/// The image of the second disk of both clones, in their folder.
pub const TOOLS: &str = "tools.raw";

/// When the clones of a validation are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Never.
    #[default]
    Never,
    /// When the verdict is not `passed`.
    OnFailure,
    /// Whatever the verdict is.
    Always,
}

impl Keep {
    /// Whether the clones of a validation that ended like this are kept.
    pub fn wants(self, verdict: Judgement) -> bool {
        match self {
            Self::Never => false,
            Self::OnFailure => verdict != Judgement::Passed,
            Self::Always => true,
        }
    }
}

/// A clone that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedClone {
    /// Which of the two.
    pub role: Role,
    /// The machine.
    pub saved: Saved,
}

/// What is kept, and of what (`kept.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its name.
    pub name: String,
    /// The order's identifier.
    pub order: String,
    /// The order's digest.
    pub order_digest: Digest,
    /// The baseline's full name.
    pub baseline: String,
    /// The baseline's digest: the clones' disks are layers over its disk.
    pub baseline_digest: Digest,
    /// What the validation said of that baseline.
    pub verdict: Judgement,
    /// One line for people.
    pub reason: String,
    /// When it was kept.
    pub created: Timestamp,
    /// When `lab gc` takes it away.
    pub expires: Timestamp,
    /// The clones.
    pub clones: Vec<SavedClone>,
}

impl Record {
    /// A record of what is kept from now on; [`KeptClones::adopt`] gives it its name.
    pub fn new(order: (&str, Digest), report: &BaselineReport, clones: Vec<SavedClone>, now: Timestamp) -> Self {
        Self {
            schema: SCHEMA,
            name: name(order.0, &report.name, now),
            order: order.0.to_owned(),
            order_digest: order.1,
            baseline: report.name.clone(),
            baseline_digest: report.digest,
            verdict: report.verdict,
            reason: report.reason.clone(),
            created: now,
            // Only a clock beyond the calendar's end would fail here: then it is never too late.
            expires: now.checked_add(LIFETIME).unwrap_or(Timestamp::MAX),
            clones,
        }
    }
}

/// What is kept of one validation on one baseline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub record: Record,
    /// Where its files are.
    pub folder: PathBuf,
    /// Bytes it takes on the disk.
    pub size: u64,
}

impl Kept {
    /// Whether its time is over.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.record.expires <= now
    }

    /// The clone with that role.
    pub fn clone_of(&self, role: Role) -> Option<&SavedClone> {
        self.record.clones.iter().find(|clone| clone.role == role)
    }
}

/// Kept clones could not be found, kept or taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// No such name.
    #[error("no kept clones {wanted:?}; there {}: `patchlab lab validate --keep on-failure` keeps some", listed(.known))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Several begin like that.
    #[error("{wanted:?} is how the names of several kept clones begin: {}; say one of them whole", alike.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Those.
        alike: Vec<String>,
    },
    /// Somebody looks into them.
    #[error("kept clones {name} are in use by a `patchlab lab shell`: end that first")]
    InUse {
        /// Which.
        name: String,
    },
    /// A record cannot be read.
    #[error("record of kept clones {path}: {reason}; `patchlab lab rm {name}` takes them away")]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// Their name.
        name: String,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system said no.
    #[error("kept clones: cannot {action} {path}: {reason}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        reason: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeptError {
    let path = path.to_owned();
    move |reason| KeptError::Io { action, path, reason }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "are none".into() } else { format!("are {}", names.join(", ")) }
}

/// Saves clones into `folder`, in their worker; nothing is left there when that fails. `tools` is the image of their
/// second disk.
pub fn save(
    lab: &Lab,
    clones: Vec<(Role, Machine)>,
    tools: Option<&Path>,
    folder: &Path,
) -> Result<Vec<SavedClone>, LabError> {
    let all = || -> Result<Vec<SavedClone>, LabError> {
        let broken = |action, path: &Path| {
            let path = path.to_owned();
            move |source| LabError::Io { action, path, source }
        };
        fs::create_dir_all(folder).map_err(broken("create", folder))?;
        // Both at the same moment, as far as that goes.
        clones.iter().try_for_each(|(_, machine)| machine.pause())?;
        let saved = clones
            .into_iter()
            .map(|(role, machine)| Ok(SavedClone { role, saved: machine.save(lab, folder)? }))
            .collect::<Result<Vec<_>, LabError>>()?;
        let tools = tools.map_or_else(|| lab.empty_tools(), |path| Ok(path.to_owned()))?;
        fs::rename(&tools, folder.join(TOOLS)).map_err(broken("keep", &tools))?;
        Ok(saved)
    };
    all().inspect_err(|_| {
        // Half of it is of no use, and the disk may be full.
        let _ = fs::remove_dir_all(folder);
    })
}

/// The kept clones of a lab.
#[derive(Debug, Clone)]
pub struct KeptClones {
    places: Places,
}

/// Held while kept clones must not be taken away.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl KeptClones {
    /// Those of a lab.
    pub fn open(places: &Places) -> Self {
        Self { places: places.clone() }
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<Kept>, KeptError> {
        self.names()?.iter().map(|name| self.load(name)).collect()
    }

    /// Those whose time is over; what cannot be read is left to people, for it may be somebody's only evidence.
    pub(crate) fn expired(&self, now: Timestamp) -> Result<Vec<Kept>, KeptError> {
        let readable = self.names()?.into_iter().filter_map(|name| self.load(&name).ok());
        Ok(readable.filter(|kept| kept.is_expired(now)).collect())
    }

    /// Those with that name, or the only ones whose name begins like that.
    pub fn get(&self, wanted: &str) -> Result<Kept, KeptError> {
        self.load(&self.find(wanted)?)
    }

    /// Those whose disks are layers over a baseline's: it cannot go before they do.
    pub fn needing(&self, baseline: &Digest) -> Result<Vec<Kept>, KeptError> {
        let mut all = self.list()?;
        all.retain(|kept| kept.record.baseline_digest == *baseline);
        Ok(all)
    }

    /// Keeps them from being taken away, until the hold is dropped or this process ends.
    pub fn hold(&self, kept: &Kept) -> Result<Hold, KeptError> {
        lock(&kept.folder, &kept.record.name, FlockOperation::NonBlockingLockShared)
    }

    /// Takes over what a worker saved in `folder`, under the record's name, or the next free one like it.
    pub fn adopt(&self, folder: &Path, mut record: Record) -> Result<Kept, KeptError> {
        record.name = self.free(&record.name);
        let partial = self.places.kept.join(format!(".{}", record.name));
        let home = self.places.kept.join(&record.name);
        let ledger = Ledger::open(&self.places)?;
        let id = format!("keep-{}", record.name);
        ledger.begin(&id)?;
        ledger.creating(&id, Thing::Folder { path: partial.clone() })?;
        let placed = place(folder, &record, &partial).and_then(|()| {
            // The last act: a name stands for all of it or does not exist.
            fs::rename(&partial, &home).map_err(failed("put in place", &home))
        });
        if placed.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        ledger.end(&id)?;
        placed?;
        self.load(&record.name)
    }

    /// Takes them away. The name may stand for what can no longer be read.
    pub fn remove(&self, wanted: &str) -> Result<String, KeptError> {
        let name = self.find(wanted)?;
        let home = self.places.kept.join(&name);
        let _lock = match lock(&home, &name, FlockOperation::NonBlockingLockExclusive) {
            Err(KeptError::Io { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        // Out of the list first: half of it must not look like all of it. A partial one goes with the next `lab gc`.
        let partial = self.places.kept.join(format!(".{name}"));
        fs::rename(&home, &partial).map_err(failed("remove", &home))?;
        fs::remove_dir_all(&partial).map_err(failed("remove", &partial))?;
        Ok(name)
    }

    fn find(&self, wanted: &str) -> Result<String, KeptError> {
        let names = self.names()?;
        if names.iter().any(|name| name == wanted) {
            return Ok(wanted.to_owned());
        }
        let alike: Vec<&String> = names.iter().filter(|name| name.starts_with(wanted) && !wanted.is_empty()).collect();
        match alike[..] {
            [] => Err(KeptError::Unknown { wanted: wanted.to_owned(), known: names }),
            [one] => Ok(one.clone()),
            _ => {
                let alike = alike.into_iter().cloned().collect();
                Err(KeptError::Ambiguous { wanted: wanted.to_owned(), alike })
            }
        }
    }

    fn names(&self) -> Result<Vec<String>, KeptError> {
        let dir = &self.places.kept;
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("read", dir))?,
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .filter(|name: &io::Result<String>| !name.as_ref().is_ok_and(|name| name.starts_with('.')))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed("read", dir))?;
        names.sort();
        Ok(names)
    }

    fn load(&self, name: &str) -> Result<Kept, KeptError> {
        let folder = self.places.kept.join(name);
        let path = folder.join(RECORD);
        let wrong = |reason: String| KeptError::Record { path: path.clone(), reason, name: name.to_owned() };
        let length = fs::metadata(&path).map_err(|error| wrong(error.to_string()))?.len();
        if length > RECORD_LIMIT {
            return Err(wrong(format!("{length} bytes are too many")));
        }
        let text = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let record: Record = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        // The name is the folder's: a record that says another was moved by hand.
        let size = fs::read_dir(&folder)
            .map_err(failed("read", &folder))?
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|file| file.blocks() * 512)
            .sum();
        Ok(Kept { record: Record { name: name.to_owned(), ..record }, folder, size })
    }

    fn free(&self, wanted: &str) -> String {
        let taken = |name: &str| self.places.kept.join(name).exists();
        let mut numbered = (2_u32..).map(|number| format!("{wanted}-{number}"));
        if taken(wanted) {
            numbered.find(|name| !taken(name)).unwrap_or_else(|| wanted.to_owned())
        } else {
            wanted.into()
        }
    }
}

/// Moves the worker's files and writes the record beside them.
fn place(from: &Path, record: &Record, to: &Path) -> Result<(), KeptError> {
    let kept = to.parent().unwrap_or(to);
    fs::create_dir_all(kept).map_err(failed("create", kept))?;
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            bring(from, record, to).map_err(failed("copy", from))?;
        }
        moved => moved.map_err(failed("move", from))?,
    }
    // Its worker may still live, and may no longer be ours: from here on it can change no name in this folder.
    let found = fs::symlink_metadata(to).map_err(failed("look at", to))?;
    if !found.is_dir() {
        return Err(failed("take over", from)(io::Error::other("its worker left something else than a folder")));
    }
    lchown(to, Some(rustix::process::geteuid().as_raw()), Some(found.gid())).map_err(failed("take over", to))?;
    // The memory of a machine is nobody's business but the lab's.
    fs::set_permissions(to, fs::Permissions::from_mode(0o750)).map_err(failed("restrict", to))?;
    let path = to.join(RECORD);
    let text = serde_json::to_vec_pretty(record).map_err(|error| failed("write", &path)(error.into()))?;
    // Written beside and renamed: a link that lies there under that name is replaced, not followed.
    let mut file = tempfile::NamedTempFile::new_in(to).map_err(failed("write", &path))?;
    file.write_all(&text).map_err(failed("write", &path))?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).map_err(failed("restrict", &path))?;
    lchown(file.path(), None, Some(found.gid())).map_err(failed("hand over", &path))?;
    file.persist(&path).map_err(|error| failed("write", &path)(error.error))?;
    let folder = File::open(to).map_err(failed("open", to))?;
    rustix::fs::syncfs(&folder).map_err(|error| failed("write out", to)(error.into()))
}

/// Copies what is kept from another disk: the files that the record speaks of, plain ones alone, since the folder is a worker's.
fn bring(from: &Path, record: &Record, to: &Path) -> io::Result<()> {
    let saved = |clone: &SavedClone| SavedFile::ALL.map(|file| clone.saved.file(Path::new(""), file));
    let tools = PathBuf::from(TOOLS);
    let names = record.clones.iter().flat_map(saved).chain([tools]);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let folder = openat(CWD, from, flags | OFlags::DIRECTORY, Mode::empty())?;
    let whose = File::from(folder.try_clone()?).metadata()?;
    fs::create_dir(to)?;
    std::os::unix::fs::chown(to, Some(whose.uid()), Some(whose.gid()))?;
    for name in names {
        let mut file = match openat(&folder, &name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other(format!("{} is no plain file", name.display())));
        }
        let path = to.join(&name);
        let mut copy = File::create_new(&path)?;
        io::copy(&mut file, &mut copy)?;
        copy.set_permissions(found.permissions())?;
        std::os::unix::fs::fchown(&copy, Some(found.uid()), Some(found.gid()))?;
    }
    Ok(())
}

fn lock(folder: &Path, name: &str, operation: FlockOperation) -> Result<Hold, KeptError> {
    let path = folder.join(RECORD);
    let file = File::open(&path).map_err(failed("open", &path))?;
    match flock(&file, operation) {
        Ok(()) => Ok(Hold { _lock: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(KeptError::InUse { name: name.to_owned() }),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

/// A name that tells people what it is: order, baseline, and the time.
fn name(order: &str, baseline: &str, now: Timestamp) -> String {
    let plain = |text: &str| -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '-' };
        text.trim_start_matches('.').chars().map(safe).take(40).collect()
    };
    format!("{}-{}-{}", plain(order), plain(baseline), now.strftime("%m%d-%H%M%S"))
}

#[cfg(test)]
mod tests;
