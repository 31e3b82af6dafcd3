//! Room that can be made on the lab's disk when something that is about to begin would not fit: what has had its time goes in any case, then,
//! in the order in which they are missed least, what can be fetched again and the oldest records; no more of it than is needed, and nothing
//! where all of it would not do. What people keep on purpose (clones, baselines, package files) never goes by itself: it is named, with how
//! much it holds and the command that takes it away.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    baseline::Baselines,
    gc,
    kept::KeptClones,
    places::Places,
    room::{self, Bytes, NoRoom},
    runs::{Runs, State, size},
};

/// Records of runs that stay, the newest.
const RECORDS: usize = 20;

/// Something that may go when room is short; the first kind is missed least.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Sparable {
    /// Index files of repositories, in this folder with a lock of its own: they are fetched again.
    Index(PathBuf),
    /// The record of a run that ended; the older it is, the smaller its id.
    Record(String),
}

/// Demands room for `what` on the disk of the lab's work folder, and makes it where that can be done. What went, for people.
///
/// # Errors
/// There is less, and too little that may go.
pub fn require(places: &Places, needed: Bytes, what: &str) -> Result<Vec<String>, NoRoom> {
    let free = || room::free(&places.work).unwrap_or(needed);
    if free() >= needed {
        return Ok(Vec::new());
    }
    let mut gone = Vec::new();
    // What dead workers left and what has expired.
    for leftover in gc::collect(places, gc::Mode::Collect).into_iter().flatten().filter(|left| left.failure.is_none()) {
        gone.push(leftover.what);
    }
    let missing = Bytes(needed.0.saturating_sub(free().0));
    for (sparable, size) in chosen(sparables(places), missing) {
        match take_away(places, &sparable) {
            Ok(true) => gone.push(format!("{}, {size}", described(&sparable))),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, ?sparable, "could not be taken away"),
        }
    }
    let free = free();
    if free >= needed {
        return Ok(gone);
    }
    Err(NoRoom { what: what.to_owned(), folder: places.work.clone(), needed, free, held: held(places) })
}

/// Those that go so that `missing` bytes come free: the first of them in their order that are enough; none, when all are not.
fn chosen(mut sparables: Vec<(Sparable, Bytes)>, missing: Bytes) -> Vec<(Sparable, Bytes)> {
    sparables.sort();
    let mut sum = 0_u64;
    let enough = sparables.iter().position(|(_, size)| {
        sum = sum.saturating_add(size.0);
        sum >= missing.0
    });
    match enough {
        Some(last) if missing.0 > 0 => sparables.into_iter().take(last + 1).collect(),
        _ => Vec::new(),
    }
}

fn sparables(places: &Places) -> Vec<(Sparable, Bytes)> {
    let folders = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let index = folders(places.index.clone()).flat_map(folders).filter(|path| path.is_dir());
    let index = index.map(|path| (Sparable::Index(path.clone()), Bytes(size(&path))));
    let (runs, _) = Runs::open(places).list().unwrap_or_default();
    let records = runs.into_iter().skip(RECORDS).filter(|run| run.state() != State::Running);
    index.chain(records.map(|run| (Sparable::Record(run.record.id), Bytes(run.size)))).collect()
}

fn described(sparable: &Sparable) -> String {
    match sparable {
        Sparable::Index(path) => format!("index files {}", path.display()),
        Sparable::Record(id) => format!("record {id}"),
    }
}

/// Whether it went: what somebody uses stays.
fn take_away(places: &Places, sparable: &Sparable) -> io::Result<bool> {
    match sparable {
        Sparable::Index(folder) => empty(folder),
        Sparable::Record(id) => Runs::open(places).remove(id).map(|()| true).map_err(io::Error::other),
    }
}

/// Empties a folder of index files but for its lock, which whoever reads them holds.
fn empty(folder: &Path) -> io::Result<bool> {
    let lock = File::options().create(true).append(true).open(folder.join("lock"))?;
    if lock.try_lock().is_err() {
        return Ok(false);
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => fs::remove_dir_all(entry.path())?,
            _ if entry.file_name() == "lock" => {}
            _ => fs::remove_file(entry.path())?,
        }
    }
    Ok(true)
}

/// What people keep on purpose, how much that holds, and how it goes.
fn held(places: &Places) -> Vec<String> {
    let kept: u64 = KeptClones::open(places).list().into_iter().flatten().map(|kept| kept.size).sum();
    let store = Baselines::open(places);
    let of_files = |baseline: crate::Baseline| baseline.record.files.values().map(|file| file.size).sum::<u64>();
    let baselines: u64 = store.list().into_iter().flatten().map(of_files).sum();
    let held = [
        (kept, "kept clones", "patchlab lab kept, patchlab lab rm NAME"),
        (baselines, "baselines", "patchlab baseline prune, patchlab baseline rm NAME"),
        (size(&places.artifacts), "package files", "they stay while orders may need them"),
    ];
    let is_something = |(bytes, ..): &(u64, &str, &str)| *bytes >= 1 << 20;
    let told = |(bytes, what, how): (u64, &str, &str)| format!("{what} hold {} ({how})", Bytes(bytes));
    held.into_iter().filter(is_something).map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str) -> Sparable {
        Sparable::Index(name.into())
    }

    fn record(id: &str) -> Sparable {
        Sparable::Record(id.into())
    }

    #[test]
    fn what_is_missed_least_goes_first_and_no_more_than_is_needed() {
        let all = || vec![(record("2"), Bytes(10)), (record("1"), Bytes(10)), (index("/a"), Bytes(50))];
        let of = |missing| chosen(all(), Bytes(missing)).into_iter().map(|(what, _)| what).collect::<Vec<_>>();
        assert_eq!(of(0), []);
        assert_eq!(of(50), [index("/a")]);
        assert_eq!(of(51), [index("/a"), record("1")]);
        assert_eq!(of(70), [index("/a"), record("1"), record("2")]);
        assert_eq!(of(71), [], "nothing goes in vain");
    }

    #[test]
    fn index_files_that_somebody_reads_stay() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        let folder = places.index.join("apt/0123");
        fs::create_dir_all(folder.join("lists")).unwrap();
        fs::write(folder.join("lists/a"), [1; 100_000]).unwrap();
        fs::write(folder.join("lock"), "").unwrap();
        let found = sparables(&places);
        assert!(
            matches!(&found[..], [(Sparable::Index(path), size)] if *path == folder && size.0 >= 100_000),
            "{found:?}"
        );
        let reader = File::open(folder.join("lock")).unwrap();
        reader.lock().unwrap();
        assert!(!take_away(&places, &found[0].0).unwrap());
        assert!(folder.join("lists/a").exists());
        drop(reader);
        assert!(take_away(&places, &found[0].0).unwrap());
        assert!(!folder.join("lists").exists() && folder.join("lock").exists());
    }

    #[test]
    fn where_there_is_room_nothing_goes_and_where_none_can_be_made_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        let folder = places.index.join("apt/0123");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a"), "1").unwrap();
        fs::create_dir_all(&places.artifacts).unwrap();
        fs::write(places.artifacts.join("x"), vec![1; 2 << 20]).unwrap();
        assert_eq!(require(&places, Bytes(1), "a validation"), Ok(Vec::new()));
        let error = require(&places, Bytes(u64::MAX), "a validation").unwrap_err().to_string();
        assert!(folder.join("a").exists(), "nothing goes in vain");
        assert!(error.contains("a validation needs") && error.contains("package files hold 2 MiB"), "{error}");
    }
}
