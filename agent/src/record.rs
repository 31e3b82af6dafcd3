//! The one place where state is read and changed: journal first, then memory, then whoever waits is told.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use patchlab_protocol::document::RunState;
use tokio::sync::watch;

use crate::{
    journal::{Journal, JournalError},
    ledger::{Ledger, LedgerError, Standing},
    state::{Event, Run, State},
    transition,
};

/// State, its journal, and those who wait for a change.
#[derive(Debug)]
pub struct Record {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    journal: Journal,
    ledger: Ledger,
    changed: Option<Instant>,
}

impl Record {
    /// Opens the record in the state folder, with its ledger. A state that was turned back is put
    /// right from the ledger.
    ///
    /// # Errors
    /// When the journal or the ledger cannot be read or written, or the ledger is behind.
    pub fn open(folder: &Path, ledger: &Path) -> Result<Self, OpenError> {
        let (journal, state) = Journal::open(folder)?;
        let (ledger, standing) = Ledger::open(ledger, &state)?;
        let inner = Mutex::new(Inner { state, journal, ledger, changed: None });
        let record = Self { inner, version: watch::Sender::new(0) };
        if let Standing::TurnedBack(kept) = standing {
            let generation = kept.generation;
            tracing::warn!(generation, "the state folder was turned back under the agent; the ledger is believed");
            record.enter(Event::Restored(kept))?;
        } else if record.read(|state| state.generation == 0) {
            record.enter(Event::LedgerBegun)?;
        }
        Ok(record)
    }

    /// A panic while the lock was held left memory at worst behind the journal, never ahead of it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// When the state last changed in this process.
    pub fn changed(&self) -> Option<Instant> {
        self.lock().changed
    }

    /// A counter that grows with every change; wait on it.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Enters an event that does not depend on what is there.
    ///
    /// # Errors
    /// When the journal could not be written: then nothing was changed and nothing may be done.
    pub fn enter(&self, event: Event) -> Result<(), JournalError> {
        self.decide(|_| Ok::<_, JournalError>(event)).map_err(|error| match error {
            Undecided::No(error) | Undecided::Journal(error) => error,
        })
    }

    /// Decides on an event by the state as it is, and enters it before the state can change again.
    ///
    /// # Errors
    /// What `choose` says, or that the journal could not be written; nothing was changed then.
    pub fn decide<E>(&self, choose: impl FnOnce(&State) -> Result<Event, E>) -> Result<(), Undecided<E>> {
        let mut inner = self.lock();
        let event = choose(&inner.state).map_err(Undecided::No)?;
        let mut after = inner.state.clone();
        after.apply(&event);
        // The ledger first: one that is ahead of the journal by an event that was never acted on does no harm.
        if after.generation != inner.state.generation {
            inner.ledger.keep(&after).map_err(JournalError::from).map_err(Undecided::Journal)?;
        }
        inner.journal.enter(&event).map_err(Undecided::Journal)?;
        inner.state = after;
        // A confirmed notice is in no table.
        if !matches!(event, Event::Confirmed { .. }) {
            inner.changed = Some(Instant::now());
        }
        let Inner { state, journal, .. } = &mut *inner;
        if let Err(error) = journal.fold(state) {
            // The event itself is safe; the next fold tries again.
            tracing::warn!(%error, "the journal could not be folded");
        }
        drop(inner);
        self.version.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Asks for the abort of a run; one that ended, or was asked before, is left as it is. Journaled: a run that goes on
    /// over a restart stays aborted.
    ///
    /// # Errors
    /// When there is no such run, it is too late, or the journal could not be written.
    pub fn abort(&self, order: u32, run: u32, at: i64) -> Result<(), AbortError> {
        let entered = self.decide(|state| {
            let row = state.run(order, run).ok_or(NoAbort::Gone)?;
            match row.state {
                state if state.is_final() || row.abort_asked.is_some() => Err(NoAbort::Nothing),
                state if !transition::abortable(state) => Err(NoAbort::TooLate(state)),
                _ => Ok(Event::AbortAsked { order, run, at }),
            }
        });
        match entered {
            Ok(()) | Err(Undecided::No(NoAbort::Nothing)) => Ok(()),
            Err(Undecided::No(NoAbort::Gone)) => Err(RecordError::Gone { order, run }.into()),
            Err(Undecided::No(NoAbort::TooLate(state))) => Err(AbortError::TooLate(state)),
            Err(Undecided::Journal(error)) => Err(RecordError::Journal(error).into()),
        }
    }

    /// Whether a run was asked to abort.
    pub fn is_aborted(&self, order: u32, run: u32) -> bool {
        self.read(|state| state.run(order, run).is_some_and(|row| row.abort_asked.is_some()))
    }

    /// Waits until a run is asked to abort.
    pub async fn aborted(&self, order: u32, run: u32) {
        let mut versions = self.subscribe();
        while !self.is_aborted(order, run) {
            if versions.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Changes a run's row; a change of its state must be a legal move.
    ///
    /// # Errors
    /// When the run is gone, the move is illegal, or the journal could not be written.
    pub fn change_run(&self, order: u32, run: u32, change: impl FnOnce(&mut Run)) -> Result<Run, RecordError> {
        let mut changed = None;
        self.decide(|state| {
            let before = state.run(order, run).ok_or(RecordError::Gone { order, run })?;
            let mut row = before.clone();
            change(&mut row);
            if row.state != before.state {
                match before.preparation {
                    Some(_) => transition::next_in_preparation(before.state, row.state)?,
                    None => transition::next(before.state, row.state)?,
                };
            }
            changed = Some(row.clone());
            Ok(Event::Run { order, run, row: Box::new(row) })
        })
        .map_err(|error| match error {
            Undecided::No(error) => error,
            Undecided::Journal(error) => RecordError::Journal(error),
        })?;
        changed.ok_or(RecordError::Gone { order, run })
    }
}

/// The record cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Why an abort is not entered.
enum NoAbort {
    Gone,
    Nothing,
    TooLate(RunState),
}

/// A run could not be asked to abort.
#[derive(Debug, thiserror::Error)]
pub enum AbortError {
    /// It is past the point from which it goes on to its end.
    #[error("the run is {} already", .0.name())]
    TooLate(RunState),
    /// The row is gone, or the journal could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// An event was not entered.
#[derive(Debug)]
pub enum Undecided<E> {
    /// The decision was no.
    No(E),
    /// The journal could not be written.
    Journal(JournalError),
}

/// A run's row could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The row is not there any more.
    #[error("run {run} of order row {order} is not there")]
    Gone {
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
    },
    /// An illegal move.
    #[error(transparent)]
    Transition(#[from] transition::TransitionError),
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::{Change, tests::columns};

    fn record_with_run(folder: &Path, path: &[RunState]) -> Record {
        let record = Record::open(folder, folder).unwrap();
        let orders = BTreeMap::from([(7, Some(columns()))]);
        record.enter(Event::Set(Change { orders, starts: vec![(7, 1)], ..Change::default() })).unwrap();
        for state in path {
            record.change_run(7, 1, |run| run.state = *state).unwrap();
        }
        record
    }

    #[test]
    fn an_abort_survives_a_restart() {
        use RunState::{Fetching, Verifying, WaitingWindow};
        let folder = tempfile::tempdir().unwrap();
        let record = record_with_run(folder.path(), &[Fetching, Verifying, WaitingWindow]);
        assert!(!record.is_aborted(7, 1));
        record.abort(7, 1, 5).unwrap();
        drop(record);
        let record = Record::open(folder.path(), folder.path()).unwrap();
        assert!(record.is_aborted(7, 1));
        assert!(matches!(record.abort(7, 2, 5), Err(AbortError::Record(RecordError::Gone { order: 7, run: 2 }))));
    }

    #[test]
    fn an_abort_comes_too_late_once_the_package_manager_works() {
        use RunState::{Applying, Fetching, Preflight, Verifying};
        let folder = tempfile::tempdir().unwrap();
        let record = record_with_run(folder.path(), &[Fetching, Verifying, Preflight, Applying]);
        assert!(matches!(record.abort(7, 1, 5), Err(AbortError::TooLate(Applying))));
        assert!(!record.is_aborted(7, 1));
    }
}
