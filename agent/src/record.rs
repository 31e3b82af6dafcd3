//! The one place where state is read and changed: journal first, then memory, then whoever waits is told.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use patchlab_protocol::{Refusal, document::RunState};
use tokio::sync::{mpsc, watch};

use crate::{
    journal::{Journal, JournalError},
    ledger::{Ledger, LedgerError, Standing},
    state::{Event, Run, State},
    transition,
};

/// Notices kept for a manager that does not answer; more are dropped, since the tables are the truth.
const NOTICES: usize = 256;

/// Something a manager may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its sequence number.
    pub sequence: u32,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The agent started.
    Started,
    /// An offered root or revocation list was decided on.
    Trust {
        /// Version of the root in force, when it is not the pinned one.
        root: Option<u32>,
        /// Version of the revocation list in force, 0 for none.
        revocation: u32,
        /// Why it was refused.
        refusal: Option<Refusal>,
    },
    /// A run moved.
    Run {
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
        /// Where it is now.
        state: RunState,
        /// Why it was refused.
        refusal: Option<Refusal>,
        /// Statement and signature (hexadecimal digits), at the end.
        result: Option<(String, String)>,
    },
}

/// State, its journal, and those who wait for a change.
#[derive(Debug)]
pub struct Record {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    notices: mpsc::Sender<Notice>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    journal: Journal,
    ledger: Ledger,
    aborts: BTreeSet<(u32, u32)>,
    changed: Option<Instant>,
}

impl Record {
    /// Opens the record in the state folder, with its ledger; notices come out of the receiver. A state that was turned back is put
    /// right from the ledger.
    ///
    /// # Errors
    /// When the journal or the ledger cannot be read or written, or the ledger is behind.
    pub fn open(folder: &Path, ledger: &Path) -> Result<(Self, mpsc::Receiver<Notice>), OpenError> {
        let (journal, state) = Journal::open(folder)?;
        let (ledger, standing) = Ledger::open(ledger, &state)?;
        let (notices, receiver) = mpsc::channel(NOTICES);
        let inner = Mutex::new(Inner { state, journal, ledger, aborts: BTreeSet::new(), changed: None });
        let record = Self { inner, version: watch::Sender::new(0), notices };
        if let Standing::TurnedBack(kept) = standing {
            let generation = kept.generation;
            tracing::warn!(generation, "the state folder was turned back under the agent; the ledger is believed");
            record.enter(Event::Restored(kept))?;
        } else if record.read(|state| state.generation == 0) {
            record.enter(Event::LedgerBegun)?;
        }
        Ok((record, receiver))
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
        let before = std::mem::replace(&mut inner.state, after);
        inner.changed = Some(Instant::now());
        let Inner { state, journal, .. } = &mut *inner;
        if let Err(error) = journal.fold(state) {
            // The event itself is safe; the next fold tries again.
            tracing::warn!(%error, "the journal could not be folded");
        }
        let notices = notices(&before, &inner.state, &event);
        drop(inner);
        for notice in notices {
            if self.notices.try_send(notice).is_err() {
                tracing::debug!("a notice was dropped: the manager does not keep up");
            }
        }
        self.version.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Asks for the abort of a run.
    ///
    /// # Errors
    /// `None` when there is no such run, its state when it is too late.
    pub fn abort(&self, order: u32, run: u32) -> Result<(), Option<RunState>> {
        let mut inner = self.lock();
        let state = inner.state.run(order, run).ok_or(None)?.state;
        if state.is_final() {
            return Ok(());
        }
        if !transition::abortable(state) {
            return Err(Some(state));
        }
        inner.aborts.insert((order, run));
        drop(inner);
        self.version.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Whether a run was asked to abort.
    pub fn is_aborted(&self, order: u32, run: u32) -> bool {
        self.lock().aborts.contains(&(order, run))
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
                transition::next(before.state, row.state)?;
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

/// What the change is worth telling.
fn notices(before: &State, after: &State, event: &Event) -> Vec<Notice> {
    let moved = |order: u32, run: u32| {
        let row = after.run(order, run)?;
        (before.run(order, run).map(|row| row.state) != Some(row.state)).then(|| What::Run {
            order,
            run,
            state: row.state,
            refusal: row.refusal,
            result: (!row.result.is_empty()).then(|| (row.result.clone(), row.signature.clone())),
        })
    };
    let what: Vec<What> = match event {
        Event::Started => vec![What::Started],
        Event::Set(change) => change.starts.iter().filter_map(|(order, run)| moved(*order, *run)).collect(),
        Event::Run { order, run, .. } => moved(*order, *run).into_iter().collect(),
        Event::Offered { refusal, .. } => vec![What::Trust {
            root: after.root.map(|root| root.version),
            revocation: after.revocation.map_or(0, |list| list.version),
            refusal: *refusal,
        }],
        Event::Snapshot(_)
        | Event::Used { .. }
        | Event::Seen { .. }
        | Event::Root { .. }
        | Event::Revoked { .. }
        | Event::LedgerBegun
        | Event::Restored(_) => Vec::new(),
    };
    // Each raised the sequence by one, in this order.
    let first = after.sequence.wrapping_sub(what.len() as u32).wrapping_add(1);
    (0..).zip(what).map(|(n, what)| Notice { sequence: first.wrapping_add(n), what }).collect()
}
