//! The journal: one JSON event a line, synced to the disk before anything it announces is done.
//!
//! At start the events are folded and written back as one snapshot, beside the old file and then over it. A last line
//! without its end is what a crash leaves: that event was never acted on, it is dropped. Any other line that cannot be
//! read is an error, since the ledger must not be lost in silence.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::{
    reserve::insist,
    state::{Event, State},
};

/// The file's name in the state folder.
pub const FILE_NAME: &str = "journal.jsonl";
/// Largest journal that is read, bytes.
pub const BYTES: u64 = 256 * 1024 * 1024;
/// When the journal has grown by this many bytes it is folded.
const FOLD_BYTES: u64 = 16 * 1024 * 1024;

/// The journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("journal {path}: cannot {action}; free or repair the disk, then start the agent again")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line in the middle cannot be read.
    #[error("journal {path}, line {line}, is damaged: restore the file, or enrol the host again with a new root")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        source: serde_json::Error,
    },
    /// The ledger that is written before it.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    /// Larger than [`BYTES`].
    #[error("journal {path} has {bytes} bytes, more than the limit of {BYTES}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// The open journal, at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    whole: u64,
    /// Bytes since the last snapshot.
    grown: u64,
    tail: Tail,
}

/// What the file ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// A whole line.
    Whole,
    /// Perhaps a part of a line that could not be written: the next would be joined to it, and the journal damaged.
    Torn,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::File { action, path, source }
}

/// The state that a journal file holds; an absent file holds nothing.
///
/// # Errors
/// When it cannot be read, is too large, or is damaged before its last line.
pub fn read(path: &Path) -> Result<State, JournalError> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => {
            let bytes = file.metadata().map_err(failed("stat", path))?.len();
            if bytes > BYTES {
                return Err(JournalError::TooLarge { path: path.to_owned(), bytes });
            }
            // A crash may leave half a character; only a whole line counts.
            let mut raw = Vec::new();
            file.take(BYTES).read_to_end(&mut raw).map_err(failed("read", path))?;
            let whole = raw.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            text.push_str(&String::from_utf8_lossy(&raw[..whole]));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("open", path)(error)),
    }
    let mut state = State::default();
    for (number, line) in text.lines().enumerate() {
        let event: Event = serde_json::from_str(line).map_err(|source| JournalError::Damaged {
            path: path.to_owned(),
            line: number + 1,
            source,
        })?;
        state.apply(&event);
    }
    Ok(state)
}

impl Journal {
    /// Opens the journal in `folder`, folded to one snapshot, and says what it held.
    ///
    /// # Errors
    /// As [`read`], and when the folder cannot be written.
    pub fn open(folder: &Path) -> Result<(Self, State), JournalError> {
        let path = folder.join(FILE_NAME);
        let state = read(&path)?;
        let (file, whole) = rewrite(&path, &state)?;
        Ok((Self { path, file, whole, grown: 0, tail: Tail::Whole }, state))
    }

    /// Enters an event. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When it could not be written: then nothing it announces may be done.
    pub fn enter(&mut self, event: &Event) -> Result<(), JournalError> {
        let (line, path) = (encode(event, &self.path)?, self.path.clone());
        insist(&path, || self.append(&line)).map_err(failed("write", &path))?;
        self.whole += line.len() as u64;
        self.grown += line.len() as u64;
        Ok(())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.tail == Tail::Torn {
            self.file.set_len(self.whole)?;
        }
        self.tail = Tail::Torn;
        self.file.write_all(line)?;
        self.file.sync_data()?;
        self.tail = Tail::Whole;
        Ok(())
    }

    /// Folds the journal to a snapshot of `state` when it has grown much.
    ///
    /// # Errors
    /// When the snapshot could not be written; the old file is as it was.
    pub fn fold(&mut self, state: &State) -> Result<(), JournalError> {
        if self.grown > FOLD_BYTES {
            (self.file, self.whole) = rewrite(&self.path, state)?;
            (self.grown, self.tail) = (0, Tail::Whole);
        }
        Ok(())
    }
}

fn encode(event: &Event, path: &Path) -> Result<Vec<u8>, JournalError> {
    let mut line = serde_json::to_vec(event).map_err(|error| failed("encode for", path)(io::Error::other(error)))?;
    line.push(b'\n');
    Ok(line)
}

/// Replaces the file by one snapshot, whole or not at all, and opens it for appending; with its length in bytes.
fn rewrite(path: &Path, state: &State) -> Result<(File, u64), JournalError> {
    let line = encode(&Event::Snapshot(Box::new(state.clone())), path)?;
    insist(path, || replace(path, &line)).map_err(failed("replace", path))?;
    let file = OpenOptions::new().append(true).open(path).map_err(failed("open", path))?;
    Ok((file, line.len() as u64))
}

/// Writes a private file beside `path`, syncs it, and renames it over `path`.
///
/// # Errors
/// When the file system said no; the old file is as it was.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::reserve::Reserve;

    fn started(journal: &mut Journal, times: u32) {
        for _ in 0..times {
            journal.enter(&Event::Started).unwrap();
        }
    }

    #[test]
    fn what_was_entered_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, state) = Journal::open(folder.path()).unwrap();
        assert_eq!(state, State::default());
        started(&mut journal, 3);
        drop(journal);
        let (mut journal, state) = Journal::open(folder.path()).unwrap();
        assert_eq!(state.sequence, 3);
        started(&mut journal, 1);
        assert_eq!(read(&folder.path().join(FILE_NAME)).unwrap().sequence, 4);
    }

    #[test]
    fn an_event_that_a_full_disk_cut_short_does_not_damage_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        started(&mut journal, 1);
        journal.file.write_all(b"\"star").unwrap();
        journal.tail = Tail::Torn;
        started(&mut journal, 1);
        assert_eq!(read(&folder.path().join(FILE_NAME)).unwrap().sequence, 2);
    }

    /// A file system of 4 MiB, until it is dropped.
    struct Small(tempfile::TempDir);

    impl Small {
        /// `None` where nobody may mount one.
        fn new() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(folder.path());
            mount.output().is_ok_and(|mounted| mounted.status.success()).then_some(Self(folder))
        }

        fn fill(&self) {
            let mut file = File::create(self.0.path().join("everything")).unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
        }
    }

    impl Drop for Small {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).output();
        }
    }

    #[test]
    fn on_a_full_disk_what_happened_is_entered_from_the_reserve() {
        let Some(disk) = Small::new() else {
            eprintln!(
                "SKIP on_a_full_disk_what_happened_is_entered_from_the_reserve: nobody may mount a file system here"
            );
            return;
        };
        let (folder, reserve) = (disk.0.path(), Reserve::of(disk.0.path()));
        let (mut journal, _) = Journal::open(folder).unwrap();
        disk.fill();
        let refused = (0..2000).find_map(|_| journal.enter(&Event::Started).err());
        assert!(refused.unwrap().to_string().contains("cannot write"));
        fs::remove_file(folder.join("everything")).unwrap();
        reserve.keep();
        disk.fill();
        started(&mut journal, 2000);
        let before = read(&folder.join(FILE_NAME)).unwrap().sequence;
        drop(journal);
        let (mut journal, state) = Journal::open(folder).unwrap();
        assert_eq!(state.sequence, before, "and an agent that starts reads it");
        started(&mut journal, 1);
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_a_damaged_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        fs::write(&path, "\"started\"\n\"star").unwrap();
        assert_eq!(Journal::open(folder.path()).unwrap().1.sequence, 1);
        fs::write(&path, "\"started\"\n\"star\n\"started\"\n").unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Damaged { line: 2, .. })));
    }

    /// What agents of before the waiting states wrote, in real runs.
    #[test]
    fn a_journal_of_an_earlier_version_is_read_to_its_end() {
        let state = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals").join(name);
            read(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        use patchlab_protocol::document::RunState;
        let ended = state("runs.jsonl");
        let run = |index| ended.run(1, index).unwrap_or_else(|| panic!("run {index}"));
        assert_eq!([run(1).state, run(2).state], [RunState::Failed, RunState::RolledBack]);
        assert_eq!((run(1).abort_asked, ended.orders[&1].columns.not_before), (None, None));
        let killed = state("under-way.jsonl");
        assert_eq!(killed.under_way(), [(3, 1)]);
        assert_eq!(killed.run(3, 1).map(|run| run.state), Some(RunState::Applying));
    }
}
