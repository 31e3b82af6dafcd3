//! The ledger: what must not go back when the disk under the agent is reverted to a snapshot.
//!
//! Used permissions, the time floor, newer roots, revocations and the head of the results are part of the [`State`],
//! and kept a second time in a file of their own, which may lie on another disk. A generation counts their changes.
//! When the ledger is ahead of the journal, the journal's disk was turned back, and the ledger is believed; when it is
//! behind or gone, the ledger's own disk was, and the agent does not start, because a permission that was used could be
//! used again.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patchlab_protocol::{Digest, Envelope};
use serde::{Deserialize, Serialize};

use crate::{journal::replace, reserve::insist, state::State, trust::InForce};

/// The file's name in the ledger's folder.
pub const FILE_NAME: &str = "ledger.json";
/// Largest ledger that is read, bytes.
const BYTES: u64 = 64 * 1024 * 1024;
/// Notices may have gone out since the ledger was last written: their numbers are not used again after a revert.
const SEQUENCE_GAP: u32 = 1024;

/// The ledger cannot be read or written, or is not the newest.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system said no.
    #[error("ledger {path}: cannot {action}; mount, free or repair its disk, then start the agent again")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no ledger.
    #[error("ledger {path} is damaged: restore it, or enrol the host again with a new root")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        source: serde_json::Error,
    },
    /// The journal knows more than it.
    #[error(
        "ledger {path} is at change {found}, the journal knows of {known}: its disk is not mounted or was turned back; mount the right one, or \
         enrol the host again with a new root"
    )]
    Behind {
        /// The file.
        path: PathBuf,
        /// The ledger's generation; 0 when there is no file.
        found: u64,
        /// The journal's.
        known: u64,
    },
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Counts the changes.
    pub generation: u64,
    /// Activations used.
    pub consumed: Vec<Digest>,
    /// Orders whose apply was begun.
    pub applied: Vec<Digest>,
    /// Documents revoked.
    pub revoked: Vec<Digest>,
    /// The revocation list in force.
    pub revocation: Option<InForce>,
    /// The newest signed time seen.
    pub time_floor: Option<Timestamp>,
    /// The roots that followed the pinned one, in order.
    pub roots: Vec<Envelope>,
    /// The root in force, when it is not the pinned one.
    pub root: Option<InForce>,
    /// The newest audit head shown to the host.
    pub audit_head: Option<Digest>,
    /// Digest of the newest signed result.
    pub result_head: Option<Digest>,
    /// Sequence number of the newest notification.
    pub sequence: u32,
}

impl Kept {
    /// The ledger's part of a state.
    pub fn of(state: &State) -> Self {
        Self {
            generation: state.generation,
            consumed: state.consumed.clone(),
            applied: state.applied.clone(),
            revoked: state.revoked.clone(),
            revocation: state.revocation,
            time_floor: state.time_floor,
            roots: state.roots.clone(),
            root: state.root,
            audit_head: state.audit_head,
            result_head: state.result_head,
            sequence: state.sequence,
        }
    }

    /// Puts it over a state that was turned back.
    pub fn restore(&self, state: &mut State) {
        let kept = self.clone();
        state.generation = kept.generation;
        state.consumed = kept.consumed;
        state.applied = kept.applied;
        state.revoked = kept.revoked;
        state.revocation = kept.revocation;
        state.time_floor = kept.time_floor;
        state.roots = kept.roots;
        state.root = kept.root;
        state.audit_head = kept.audit_head;
        state.result_head = kept.result_head;
        state.sequence = kept.sequence.max(state.sequence).wrapping_add(SEQUENCE_GAP);
    }
}

/// Where the journal and the ledger stand to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// They agree.
    Agreed,
    /// The journal's disk was turned back: this is what it no longer knows.
    TurnedBack(Box<Kept>),
}

/// The ledger in a folder.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// Compares the ledger in `folder` with what the journal holds.
    ///
    /// # Errors
    /// When it cannot be read, or is behind the journal.
    pub fn open(folder: &Path, state: &State) -> Result<(Self, Standing), LedgerError> {
        let ledger = Self { path: folder.join(FILE_NAME) };
        let kept = ledger.read()?;
        let found = kept.as_ref().map_or(0, |kept| kept.generation);
        if found < state.generation {
            return Err(LedgerError::Behind { path: ledger.path, found, known: state.generation });
        }
        let ahead = kept.filter(|kept| kept.generation > state.generation);
        Ok((ledger, ahead.map_or(Standing::Agreed, |kept| Standing::TurnedBack(Box::new(kept)))))
    }

    fn read(&self) -> Result<Option<Kept>, LedgerError> {
        let failed = |source| LedgerError::File { action: "read", path: self.path.clone(), source };
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes).map_err(failed)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| LedgerError::Damaged { path: self.path.clone(), source })
    }

    /// Writes the ledger's part of `state`. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When it could not be written: then nothing that it announces may be done.
    pub fn keep(&self, state: &State) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::File { action: "write", path: self.path.clone(), source };
        let text = serde_json::to_vec(&Kept::of(state)).map_err(|error| failed(error.into()))?;
        insist(&self.path, || replace(&self.path, &text)).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Event;

    fn used(name: &str) -> Event {
        let floor = "2026-03-01T12:00:00Z".parse().unwrap();
        Event::Used { activation: Digest::of(name), applied: None, floor }
    }

    #[test]
    fn a_ledger_ahead_of_the_journal_is_believed_and_one_behind_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::default();
        state.apply(&Event::LedgerBegun);
        state.apply(&used("one"));
        let (ledger, _) = Ledger::open(folder.path(), &State::default()).unwrap();
        ledger.keep(&state).unwrap();
        assert_eq!(Ledger::open(folder.path(), &state).unwrap().1, Standing::Agreed);

        let mut reverted = State::default();
        let Standing::TurnedBack(kept) = Ledger::open(folder.path(), &reverted).unwrap().1 else { panic!("agreed") };
        kept.restore(&mut reverted);
        assert_eq!((&reverted.consumed, reverted.time_floor), (&state.consumed, state.time_floor));
        assert!(reverted.sequence > state.sequence);

        state.apply(&used("two"));
        assert!(matches!(Ledger::open(folder.path(), &state), Err(LedgerError::Behind { found: 2, known: 3, .. })));
        fs::remove_file(folder.path().join(FILE_NAME)).unwrap();
        assert!(matches!(Ledger::open(folder.path(), &state), Err(LedgerError::Behind { found: 0, known: 3, .. })));
    }

    #[test]
    fn a_damaged_ledger_is_an_error_and_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(Ledger::open(folder.path(), &State::default()), Err(LedgerError::Damaged { .. })));
    }
}
