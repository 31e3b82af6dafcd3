//! What the lab is about to create on this host, written down before it is created.
//!
//! The ledger is a file of JSON lines, each on the disk before the act it announces. A process that dies leaves its lines
//! behind; [`crate::gc`] reads them and takes away what they name. Everything belongs to an *undertaking* (one worker, one
//! build) with an owner, the process that began it: what a living owner made is never touched.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::places::Places;

/// Lines longer than this are not ours.
const LINE_LIMIT: usize = 64 * 1024;

/// The ledger could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("the lab's ledger: cannot {action} {path}")]
pub struct LedgerError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError { action, path, source }
}

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks after boot.
    pub start: u64,
    /// Which boot.
    pub boot: String,
}

impl Process {
    /// The calling process.
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that has the number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start = start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))?;
        Ok(Self { pid, start, boot })
    }

    /// Whether this very process still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self) && !is_zombie(self.pid)
    }
}

/// Field 22 of `/proc/PID/stat`; the name in parentheses may hold spaces and parentheses itself.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().starts_with('Z')))
        .unwrap_or(true)
}

/// Something on this host that must not outlive its undertaking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Thing {
    /// A folder with all that is in it.
    Folder {
        /// Its path.
        path: PathBuf,
    },
    /// A process; all that runs in its namespace dies with it.
    Process {
        /// Which.
        process: Process,
    },
    /// A network link of this host's end.
    Veth {
        /// Its name.
        name: String,
    },
    /// Machines at a libvirt that runs by itself.
    Machines {
        /// Connection URI.
        uri: String,
        /// With what their names begin.
        prefix: String,
    },
}

/// What an undertaking takes of this host while it lasts, whether it uses all of it already or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takes {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, bytes.
    pub disk: u64,
    /// The folder whose disk that is.
    pub folder: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line {
    Begun {
        id: String,
        owner: Process,
        at: jiff::Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        takes: Option<Takes>,
    },
    Creating {
        id: String,
        thing: Thing,
    },
    Ended {
        id: String,
    },
}

/// What one owner set out to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undertaking {
    /// Name, unique in the ledger.
    pub id: String,
    /// The process that answers for it.
    pub owner: Process,
    /// All that it may have made, in order.
    pub things: Vec<Thing>,
    /// What others leave to it.
    pub takes: Option<Takes>,
}

/// Room that others leave to the calling process, until this is dropped or the process ends.
#[derive(Debug)]
pub struct Booked {
    ledger: Ledger,
    id: String,
}

impl Drop for Booked {
    fn drop(&mut self) {
        if let Err(error) = self.ledger.end(&self.id) {
            tracing::warn!(%error, "others leave room until this program ends");
        }
    }
}

/// The ledger, open for appending. Several processes may hold it open.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
    lock: PathBuf,
}

/// Held while nobody else may write; released on drop, and by the kernel when the process dies.
#[derive(Debug)]
pub struct Locked<'a> {
    ledger: &'a Ledger,
    _lock: File,
}

impl Ledger {
    /// Opens the ledger, made when absent.
    pub fn open(places: &Places) -> Result<Self, LedgerError> {
        fs::create_dir_all(&places.lab).map_err(failed("create", &places.lab))?;
        Ok(Self { path: places.lab.join("ledger.jsonl"), lock: places.lab.join("ledger.lock") })
    }

    /// Waits until nobody else writes.
    pub fn lock(&self) -> Result<Locked<'_>, LedgerError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.lock)
            .map_err(failed("open", &self.lock))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed("lock", &self.lock)(error.into()))?;
        Ok(Locked { ledger: self, _lock: file })
    }

    /// Writes down that the calling process begins `id`.
    pub fn begin(&self, id: &str) -> Result<(), LedgerError> {
        self.begin_taking(id, None)
    }

    fn begin_taking(&self, id: &str, takes: Option<Takes>) -> Result<(), LedgerError> {
        let owner = Process::current().map_err(failed("identify the process for", &self.path))?;
        self.lock()?.append(&Line::Begun { id: id.to_owned(), owner, at: jiff::Timestamp::now(), takes })
    }

    /// Writes down what the calling process is about to take of this host.
    pub fn book(&self, takes: Takes) -> Result<Booked, LedgerError> {
        let mut bytes = [0; 4];
        getrandom::fill(&mut bytes)
            .map_err(|error| failed("draw a name in", &self.path)(io::Error::other(error.to_string())))?;
        let id = format!("takes-{}", hex::encode(bytes));
        self.begin_taking(&id, Some(takes))?;
        Ok(Booked { ledger: self.clone(), id })
    }

    /// What other processes that live have booked.
    pub fn booked_by_others(&self) -> Result<Vec<Takes>, LedgerError> {
        let open = self.lock()?.open_undertakings()?;
        let others = open.into_iter().filter(|one| one.owner.pid != std::process::id() && one.owner.is_alive());
        Ok(others.filter_map(|one| one.takes).collect())
    }

    /// Writes down that `id` is about to create `thing`.
    pub fn creating(&self, id: &str, thing: Thing) -> Result<(), LedgerError> {
        self.lock()?.append(&Line::Creating { id: id.to_owned(), thing })
    }

    /// Writes down that nothing of `id` is left.
    pub fn end(&self, id: &str) -> Result<(), LedgerError> {
        self.lock()?.append(&Line::Ended { id: id.to_owned() })
    }
}

impl Locked<'_> {
    /// Undertakings that have not ended.
    pub fn open_undertakings(&self) -> Result<Vec<Undertaking>, LedgerError> {
        let path = &self.ledger.path;
        match File::open(path) {
            Ok(file) => replay(BufReader::new(file)).map_err(failed("read", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed("open", path)(error)),
        }
    }

    /// Writes down that nothing of `id` is left.
    pub fn end(&self, id: &str) -> Result<(), LedgerError> {
        self.append(&Line::Ended { id: id.to_owned() })
    }

    /// Forgets all that has ended.
    pub fn compact(&self) -> Result<(), LedgerError> {
        let path = &self.ledger.path;
        let open = self.open_undertakings()?;
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))
            .map_err(failed("write beside", path))?;
        for undertaking in open {
            let Undertaking { id, owner, takes, .. } = undertaking.clone();
            let begun = Line::Begun { id, owner, at: jiff::Timestamp::now(), takes };
            write_line(file.as_file_mut(), &begun).map_err(failed("write beside", path))?;
            for thing in undertaking.things {
                let line = Line::Creating { id: undertaking.id.clone(), thing };
                write_line(file.as_file_mut(), &line).map_err(failed("write beside", path))?;
            }
        }
        file.as_file().sync_all().map_err(failed("write beside", path))?;
        file.persist(path).map_err(|error| failed("replace", path)(error.error))?;
        Ok(())
    }

    fn append(&self, line: &Line) -> Result<(), LedgerError> {
        let path = &self.ledger.path;
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).open(path).map_err(failed("open", path))?;
        // A line cut short by a crash must not swallow this one.
        file.write_all(b"\n").map_err(failed("write", path))?;
        write_line(&mut file, line).map_err(failed("write", path))?;
        file.sync_data().map_err(failed("write", path))
    }
}

fn write_line(file: &mut File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

/// What the lines say is open. Lines cut short by a crash are skipped: what they announced was not begun.
fn replay(mut reader: impl io::BufRead) -> io::Result<Vec<Undertaking>> {
    let mut open: BTreeMap<String, Undertaking> = BTreeMap::new();
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(open.into_values().collect());
        }
        if bytes.len() > LINE_LIMIT {
            continue;
        }
        match serde_json::from_slice(&bytes) {
            Ok(Line::Begun { id, owner, takes, .. }) => {
                open.insert(id.clone(), Undertaking { id, owner, things: Vec::new(), takes });
            }
            Ok(Line::Creating { id, thing }) => {
                if let Some(undertaking) = open.get_mut(&id) {
                    undertaking.things.push(thing);
                }
            }
            Ok(Line::Ended { id }) => {
                open.remove(&id);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&Places::of_data(dir.path())).unwrap();
        (dir, ledger)
    }

    #[test]
    fn what_has_not_ended_is_open_also_after_compaction() {
        let (_dir, ledger) = ledger();
        let thing = Thing::Folder { path: "/x".into() };
        ledger.begin("a").unwrap();
        ledger.begin("b").unwrap();
        ledger.creating("a", thing.clone()).unwrap();
        ledger.creating("b", Thing::Veth { name: "v".into() }).unwrap();
        ledger.end("b").unwrap();
        for _ in 0..2 {
            let open = ledger.lock().unwrap().open_undertakings().unwrap();
            assert_eq!(open.len(), 1);
            assert_eq!((open[0].id.as_str(), &open[0].things), ("a", &vec![thing.clone()]));
            assert!(open[0].owner.is_alive());
            ledger.lock().unwrap().compact().unwrap();
        }
    }

    #[test]
    fn what_others_that_live_have_booked_counts_until_they_end() {
        let (_dir, ledger) = ledger();
        let takes = Takes { memory_mib: 1400, disk: 1 << 30, folder: "/x".into() };
        let booked = ledger.book(takes.clone()).unwrap();
        assert_eq!(ledger.booked_by_others().unwrap(), [], "its own it knows");
        // As another process wrote it: the first of this machine, or one that is gone.
        let written = fs::read_to_string(&ledger.path).unwrap();
        let (own, first) = (Process::current().unwrap(), Process::of(1).unwrap());
        let as_of = |other: &Process| {
            let [own, other] = [&own, other].map(|process| serde_json::to_string(process).unwrap());
            fs::write(&ledger.path, written.replace(&own, &other)).unwrap();
        };
        as_of(&first);
        ledger.lock().unwrap().compact().unwrap();
        assert_eq!(ledger.booked_by_others().unwrap(), [takes]);
        as_of(&Process { start: first.start + 1, ..first });
        assert_eq!(ledger.booked_by_others().unwrap(), []);
        fs::write(&ledger.path, written).unwrap();
        drop(booked);
        assert!(ledger.lock().unwrap().open_undertakings().unwrap().is_empty());
    }

    #[test]
    fn a_line_cut_short_swallows_nothing() {
        let (_dir, ledger) = ledger();
        ledger.begin("a").unwrap();
        let mut file = OpenOptions::new().append(true).open(&ledger.path).unwrap();
        file.write_all(br#"{"event":"creating","id":"a","thi"#).unwrap();
        ledger.creating("a", Thing::Veth { name: "v".into() }).unwrap();
        let open = ledger.lock().unwrap().open_undertakings().unwrap();
        assert_eq!(open[0].things, [Thing::Veth { name: "v".into() }]);
    }

    #[test]
    fn a_later_process_with_the_same_number_is_another() {
        let mut process = Process::current().unwrap();
        assert!(process.is_alive());
        process.start -= 1;
        assert!(!process.is_alive());
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time(stat), Some(4711));
    }
}
