//! Brings the ledger and the host back together: what a dead owner left behind goes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::{
    kept::KeptClones,
    ledger::{Ledger, LedgerError, Locked, Thing, Undertaking},
    places::Places,
};

/// Whether to act or only to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Take away.
    Collect,
    /// Only say what would be taken away.
    DryRun,
}

/// Something that was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The undertaking it belongs to.
    pub undertaking: String,
    /// What it is, for people.
    pub what: String,
    /// Why it could not be taken away, or why nobody knows whether it is there; absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Takes away all that dead owners left behind, and says what it was. What living owners made is not touched.
pub fn collect(places: &Places, mode: Mode) -> Result<Vec<Leftover>, LedgerError> {
    let ledger = Ledger::open(places)?;
    let mut leftovers = Vec::new();
    let mut ended = Vec::new();
    let dead = collect_here(&ledger.lock()?, places, mode, &mut leftovers)?;
    // A libvirt that runs by itself may take its time to answer: nobody waits for the ledger meanwhile.
    for dead in dead {
        let all = dead.lent.iter().map(|machines| collect_thing(machines, places, mode, (&dead.id, &mut leftovers)));
        if all.fold(dead.here, Ended::and) == Ended::Whole {
            ended.push(dead.id);
        }
    }
    if mode == Mode::Collect {
        let locked = ledger.lock()?;
        ended.iter().try_for_each(|id| locked.end(id))?;
        locked.compact()?;
    }
    Ok(leftovers)
}

/// Whether anything of something is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Nothing.
    Whole,
    /// Something, or nobody knows.
    InPart,
}

impl Ended {
    fn and(self, other: Self) -> Self {
        if self == Self::Whole { other } else { Self::InPart }
    }
}

/// An undertaking whose owner is gone, when what was here of it is.
struct Dead {
    id: String,
    here: Ended,
    /// Its machines elsewhere, which are still to be asked for.
    lent: Vec<Thing>,
}

/// Takes away what dead owners left on this host.
fn collect_here(
    locked: &Locked<'_>,
    places: &Places,
    mode: Mode,
    leftovers: &mut Vec<Leftover>,
) -> Result<Vec<Dead>, LedgerError> {
    let undertakings = locked.open_undertakings()?;
    let (alive, dead): (Vec<_>, Vec<_>) =
        undertakings.into_iter().partition(|undertaking| undertaking.owner.is_alive());
    let dead = dead.into_iter().map(|undertaking| collect_undertaking(undertaking, places, mode, leftovers)).collect();
    collect_unannounced(&folders(&places.work, |_| true), &alive, mode, leftovers);
    // What is on its way to being kept, or away from it.
    collect_unannounced(&folders(&places.kept, |name| name.starts_with('.')), &alive, mode, leftovers);
    // Records of runs, likewise.
    collect_unannounced(&folders(&places.runs, |name| name.starts_with('.')), &alive, mode, leftovers);
    collect_expired(places, mode, leftovers);
    Ok(dead)
}

fn collect_undertaking(undertaking: Undertaking, places: &Places, mode: Mode, leftovers: &mut Vec<Leftover>) -> Dead {
    let Undertaking { id, things, .. } = undertaking;
    let (lent, here): (Vec<_>, Vec<_>) = things.into_iter().partition(|thing| matches!(thing, Thing::Machines { .. }));
    // Backwards: the processes that use a folder were begun after it.
    let ends = here.iter().rev().map(|thing| collect_thing(thing, places, mode, (&id, &mut *leftovers)));
    let here = ends.fold(Ended::Whole, Ended::and);
    Dead { id, here, lent }
}

fn collect_thing(
    thing: &Thing,
    places: &Places,
    mode: Mode,
    (undertaking, leftovers): (&str, &mut Vec<Leftover>),
) -> Ended {
    let failure = match is_left(thing, places) {
        Ok(false) => return Ended::Whole,
        Ok(true) if mode == Mode::DryRun => None,
        Ok(true) => remove(thing).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    };
    let ended = if failure.is_none() { Ended::Whole } else { Ended::InPart };
    leftovers.push(Leftover { undertaking: undertaking.to_owned(), what: describe(thing), failure });
    ended
}

/// What is in a folder, by name.
fn folders(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| is_wanted(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

/// Kept clones whose time is over.
fn collect_expired(places: &Places, mode: Mode, leftovers: &mut Vec<Leftover>) {
    let kept = KeptClones::open(places);
    for one in kept.expired(jiff::Timestamp::now()).into_iter().flatten() {
        let failure = match mode {
            Mode::DryRun => None,
            Mode::Collect => kept.remove(&one.record.name).err().map(|error| error.to_string()),
        };
        let what = format!("kept clones {}, expired {}", one.record.name, one.record.expires);
        leftovers.push(Leftover { undertaking: "kept".into(), what, failure });
    }
}

/// Folders that no line announces: the ledger itself was lost.
fn collect_unannounced(paths: &[PathBuf], alive: &[Undertaking], mode: Mode, leftovers: &mut Vec<Leftover>) {
    for path in paths {
        let thing = Thing::Folder { path: path.clone() };
        if alive.iter().any(|undertaking| undertaking.things.contains(&thing)) {
            continue;
        }
        let known = leftovers.iter().any(|leftover| leftover.what == describe(&thing));
        if known || !path.exists() {
            continue;
        }
        let failure = match mode {
            Mode::DryRun => None,
            Mode::Collect => remove(&thing).err().map(|error| error.to_string()),
        };
        leftovers.push(Leftover { undertaking: "unannounced".into(), what: describe(&thing), failure });
    }
}

fn describe(thing: &Thing) -> String {
    match thing {
        Thing::Folder { path } => format!("folder {}", path.display()),
        Thing::Process { process } => format!("process {}", process.pid),
        Thing::Veth { name } => format!("network link {name}"),
        Thing::Machines { uri, prefix } => format!("machines {prefix}* at {uri}"),
    }
}

/// Whether it is there, for all that can be known.
///
/// # Errors
/// Who would know does not say, or its disk is not there: it may be.
fn is_left(thing: &Thing, places: &Places) -> io::Result<bool> {
    match thing {
        Thing::Folder { path } if !path.exists() => match absent_root(path, places) {
            None => Ok(false),
            Some(root) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("its disk is not there: mount it, or create {} if it is gone for good", root.display()),
            )),
        },
        _ => exists(thing),
    }
}

/// Where a folder that is not there would lie, when that is not there either: on another disk than the data folder's, maybe not mounted.
fn absent_root<'t>(folder: &'t Path, places: &Places) -> Option<&'t Path> {
    let data = places.lab.parent().unwrap_or(&places.lab);
    folder.parent().filter(|root| !folder.starts_with(data) && !root.exists())
}

/// Whether it is there.
///
/// # Errors
/// Who would know does not say: it may be.
fn exists(thing: &Thing) -> io::Result<bool> {
    match thing {
        Thing::Folder { path } => Ok(path.exists()),
        Thing::Process { process } => Ok(process.is_alive()),
        Thing::Veth { name } => Ok(Path::new("/sys/class/net").join(name).exists()),
        Thing::Machines { uri, prefix } => crate::machine::has(uri, prefix).map_err(io::Error::other),
    }
}

pub(crate) fn remove(thing: &Thing) -> io::Result<()> {
    match thing {
        Thing::Folder { path } => match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
        Thing::Process { process } => match i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
            Some(pid) if process.is_alive() => Ok(kill_process(pid, Signal::KILL)?),
            _ => Ok(()),
        },
        Thing::Veth { name } => {
            let output = Command::new("ip").args(["link", "delete", "dev", name]).output()?;
            if output.status.success() || !exists(thing)? {
                return Ok(());
            }
            Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
        Thing::Machines { uri, prefix } => crate::machine::end_all(uri, prefix).map_err(io::Error::other),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{ledger::Process, machine::ANSWER_TIMEOUT};

    /// A ledger as a process that is gone now left it: the lines of a living one, with another start time.
    fn orphan(places: &Places, id: &str, things: &[Thing]) {
        let ledger = Ledger::open(places).unwrap();
        ledger.begin(id).unwrap();
        for thing in things {
            ledger.creating(id, thing.clone()).unwrap();
        }
        let path = places.lab.join("ledger.jsonl");
        let start = Process::current().unwrap().start;
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&format!("\"start\":{start}"), "\"start\":1")).unwrap();
    }

    #[test]
    fn a_dead_owners_folder_goes_and_a_living_ones_stays() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        let (dead, alive) = (places.work.join("dead"), places.work.join("alive"));
        fs::create_dir_all(dead.join("deep")).unwrap();
        fs::create_dir_all(&alive).unwrap();
        orphan(&places, "dead", &[Thing::Folder { path: dead.clone() }]);
        let ledger = Ledger::open(&places).unwrap();
        ledger.begin("alive").unwrap();
        ledger.creating("alive", Thing::Folder { path: alive.clone() }).unwrap();

        let found = collect(&places, Mode::DryRun).unwrap();
        assert_eq!((found.len(), dead.exists()), (1, true));
        assert_eq!(collect(&places, Mode::Collect).unwrap(), found);
        assert_eq!((dead.exists(), alive.exists()), (false, true));
        assert_eq!(collect(&places, Mode::Collect).unwrap(), []);
    }

    #[test]
    fn machines_at_a_libvirt_that_does_not_answer_are_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        let uri = format!("test://{}/gone.xml", dir.path().display());
        orphan(&places, "dead", &[Thing::Machines { uri: uri.clone(), prefix: "patchlab-dead-".into() }]);
        for _ in 0..2 {
            let left = collect(&places, Mode::Collect).unwrap();
            assert_eq!(left[0].what, format!("machines patchlab-dead-* at {uri}"));
            assert!(left[0].failure.is_some(), "{left:?}");
        }
    }

    #[test]
    fn a_folder_on_a_disk_that_is_not_mounted_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(&dir.path().join("data"));
        let root = dir.path().join("fast/patchlab-work-1");
        let folder = root.join("dead");
        let gone = places.work.join("gone");
        orphan(&places, "dead", &[Thing::Folder { path: folder.clone() }, Thing::Folder { path: gone }]);
        // Twice: it is in the ledger still. The data folder's own disk is there, or there would be no ledger.
        for mode in [Mode::DryRun, Mode::Collect, Mode::Collect] {
            let left = collect(&places, mode).unwrap();
            assert_eq!((left.len(), left[0].what.as_str()), (1, format!("folder {}", folder.display()).as_str()));
            let why = left[0].failure.as_deref().unwrap();
            assert!(why.contains("its disk is not there") && why.contains(&root.display().to_string()), "{why}");
        }
        // The disk is back.
        fs::create_dir_all(folder.join("layers")).unwrap();
        assert_eq!(collect(&places, Mode::Collect).unwrap()[0].failure, None);
        assert_eq!((folder.exists(), collect(&places, Mode::Collect).unwrap()), (false, vec![]));
        // One that was taken away by somebody, on a disk that is there, is no news.
        orphan(&places, "dead", &[Thing::Folder { path: folder }]);
        assert_eq!(collect(&places, Mode::Collect).unwrap(), []);
    }

    #[test]
    fn a_libvirt_that_hangs_hinders_nobody_who_needs_the_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        let socket = dir.path().join("socket");
        // It lets everybody in, and says nothing.
        let _hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let uri = format!("qemu+unix:///system?socket={}", socket.display());
        let machines = |prefix: &str| Thing::Machines { uri: uri.clone(), prefix: prefix.into() };
        orphan(&places, "dead", &[machines("patchlab-dead-"), machines("patchlab-too-")]);
        let folder = places.work.join("dead");
        fs::create_dir_all(&folder).unwrap();
        let began = Instant::now();
        let asking = std::thread::spawn({
            let places = places.clone();
            move || collect(&places, Mode::Collect).unwrap()
        });
        // What is here goes before anybody is asked.
        while folder.exists() {
            assert!(began.elapsed() < ANSWER_TIMEOUT, "the folder is still there");
            std::thread::yield_now();
        }
        let ledger = Ledger::open(&places).unwrap();
        ledger.begin("alive").unwrap();
        assert!(!asking.is_finished() && began.elapsed() < ANSWER_TIMEOUT, "the ledger was held");
        let silent = |left: &[Leftover]| {
            let said = left.iter().filter_map(|left| left.failure.as_deref());
            said.filter(|why| why.contains("does not answer within 20 s")).count()
        };
        let left = asking.join().unwrap();
        assert_eq!(silent(&left), 2, "{left:?}");
        // Nobody waits twice for the same, and nothing is forgotten.
        let left = collect(&places, Mode::DryRun).unwrap();
        assert_eq!((left.len(), silent(&left)), (2, 2), "{left:?}");
        assert!(began.elapsed() < ANSWER_TIMEOUT * 2, "{:?}", began.elapsed());
    }

    #[test]
    fn a_folder_that_no_line_announces_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        fs::create_dir_all(places.work.join("lost")).unwrap();
        assert_eq!(collect(&places, Mode::Collect).unwrap().len(), 1);
        assert!(!places.work.join("lost").exists());
    }
}
