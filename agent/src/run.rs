//! Runs: one at a time, each from its start to a signed result, whatever happens between.
//!
//! [`Engine::supervise`] waits for runs that a manager started. One is carried out ([`attempt`]), another that is
//! started meanwhile is refused as busy, unless the first only waits for its window. A run that an earlier agent left
//! under way is ended first, or goes on with its wait or its way back ([`Engine::recover`]).

pub mod attempt;
pub mod kernel;
pub mod own;
pub mod preparation;
pub mod ready;
pub mod reboot;
mod recovery;
pub mod result;
mod shipped;
pub mod waiting;
pub mod way_back;
pub mod work;

use std::{
    collections::BTreeSet,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use attempt::{Attempt, Course, Ending, ending};
use jiff::Timestamp;
use patchlab_protocol::{
    Digest, ItemState, Refusal, Refused, SigningKey,
    document::{Checks, Class, Preparation, RunState},
    enrolment::{PendingReboot, Uncovered, WithoutFallback},
};
use tokio::{
    sync::MutexGuard,
    task::{JoinError, JoinSet},
};
use tracing::{Instrument as _, Span};

use crate::{
    change::script::Rule,
    fetch::Downloads,
    host,
    packages::{Installed, PackageError, PackageManager},
    process::ProcessMark,
    production::Evaluate,
    record::{Record, RecordError},
    reserve::Reserve,
    staged::Staged,
    state::{Run, State},
    target::LocalTarget,
    transition,
    trust::Trust,
};

/// Carries out runs.
pub struct Engine {
    /// The host's enrolled name.
    pub host: String,
    /// Whom it believes.
    pub trust: Arc<Trust>,
    /// The host's enrolment key.
    pub key: SigningKey,
    /// What is remembered.
    pub record: Arc<Record>,
    /// The package manager.
    pub packages: Arc<dyn PackageManager>,
    /// How it fetches.
    pub downloads: Arc<Downloads>,
    /// Where files of a run are kept while it is under way; only the agent may look into it.
    pub files: PathBuf,
    /// Room for what must be written to a full disk.
    pub reserve: Reserve,
    /// Ways back that are kept.
    pub staged: Staged,
    /// This host, for production checks.
    pub target: LocalTarget,
    /// Where the site's own programs are.
    pub hooks: Option<PathBuf>,
    /// Whether it takes scripts.
    pub scripts: Rule,
    /// What becomes of an order whose kernel the host could not come back from.
    pub without_fallback: WithoutFallback,
    /// What becomes of an order that reboots the host where something waits for a reboot already.
    pub pending_reboot: PendingReboot,
    /// What becomes of an order whose kernel was proven on what the host does not boot.
    pub uncovered: Uncovered,
    /// How a step is evaluated. Without it, an order with production checks is refused.
    pub evaluate: Option<Evaluate>,
    /// Held by the run that works.
    pub turn: tokio::sync::Mutex<()>,
    /// Results are chained, so runs end one after the other.
    pub ends: tokio::sync::Mutex<()>,
}

/// The turn to work; a run that waits for its window has none.
pub type Turn<'e> = Option<MutexGuard<'e, ()>>;

/// A run could not be ended as it must.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The record could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A result could not be stated.
    #[error(transparent)]
    Result(#[from] result::TooLarge),
    /// A part of the agent broke.
    #[error("a run broke the agent: {0}")]
    Broken(#[from] JoinError),
}

/// Does what blocks elsewhere, in the span of who asks: its lines of the log name the same order.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// A run whose row is gone has nothing to be remembered in: the others go on.
fn go_on(done: Result<(), EngineError>) -> Result<(), EngineError> {
    match done {
        Err(EngineError::Record(error @ RecordError::Gone { .. })) => {
            tracing::error!(%error, "a run ended, and its row is gone");
            Ok(())
        }
        done => done,
    }
}

impl Engine {
    /// The host's class now: a release upgrade needs no restart of the agent.
    ///
    /// # Errors
    /// A refusal, when the system does not say what it is.
    pub fn class(&self) -> Result<Class, Refused> {
        host::class(self.target.root()).map_err(|error| Refused::new(Refusal::Preflight, error.to_string()))
    }

    /// What is installed now.
    ///
    /// # Errors
    /// When the package manager cannot say.
    pub async fn installed(&self) -> Result<Installed, PackageError> {
        let packages = Arc::clone(&self.packages);
        match blocking(move || packages.installed()).await {
            Ok(installed) => installed,
            Err(error) => {
                Err(PackageError::Run { program: "the package manager", source: io::Error::other(error.to_string()) })
            }
        }
    }

    /// Journals what a run starts, before it is waited for.
    fn marker(&self, order: u32, run: u32) -> impl FnMut(ProcessMark) + Send + 'static {
        let record = Arc::clone(&self.record);
        move |mark| {
            // Without the mark the next agent could not end an orphan; that is no reason to stop this one half-way.
            if let Err(error) = record.change_run(order, run, |run| run.process = Some(mark)) {
                tracing::error!(%error, "a process that was started could not be journaled");
            }
        }
    }

    /// Where a run's documents and files are.
    fn folder(&self, order: u32, run: u32) -> PathBuf {
        self.files.join(format!("{order}-{run}"))
    }

    /// Carries out runs for ever.
    ///
    /// # Errors
    /// When the record cannot be kept: then nothing more may be done.
    pub async fn supervise(self: Arc<Self>) -> Result<(), EngineError> {
        let mut changes = self.record.subscribe();
        let mut tasks = JoinSet::new();
        let mut taken = BTreeSet::new();
        loop {
            changes.borrow_and_update();
            for (order, run) in self.record.read(State::under_way) {
                if taken.contains(&(order, run)) {
                    continue;
                }
                // One that an earlier agent left is not started now: it waits its turn.
                let is_new =
                    self.record.read(|state| state.run(order, run).is_some_and(|row| row.state == RunState::Received));
                if let Some((order_now, run_now)) = self.at_work(&taken).filter(|_| is_new) {
                    let reason = format!("run {run_now} of order row {order_now} is under way");
                    let ending = Ending { reason, refusal: Some(Refusal::Busy), at: now() };
                    go_on(self.end(order, run, RunState::Refused, Checks::default(), ending).await)?;
                    continue;
                }
                taken.insert((order, run));
                let engine = Arc::clone(&self);
                tasks.spawn(async move { ((order, run), engine.execute(order, run).await) });
            }
            tokio::select! {
                Some(finished) = tasks.join_next() => {
                    let (run, done) = finished?;
                    go_on(done)?;
                    taken.remove(&run);
                }
                _ = changes.changed() => {}
            }
        }
    }

    /// The run among those that were taken up that keeps others from working.
    fn at_work(&self, taken: &BTreeSet<(u32, u32)>) -> Option<(u32, u32)> {
        let works = |state: &State, (order, run): (u32, u32)| {
            state.run(order, run).is_some_and(|row| transition::is_at_work(row.state))
        };
        self.record.read(|state| taken.iter().copied().find(|run| works(state, *run)))
    }

    async fn execute(&self, order: u32, run: u32) -> Result<(), EngineError> {
        let found = self.record.read(|state| {
            let row = state.orders.get(&order)?;
            let run = row.runs.get(&run)?;
            Some((row.columns.clone(), run.state, run.preparation, run.operator))
        });
        let Some((columns, state, preparation, operator)) = found else { return Ok(()) };
        let lifetime = Duration::from_secs(columns.lifetime.into());
        let folder = self.folder(order, run);
        let course = match state {
            RunState::WaitingWindow => Course::Waiting,
            RunState::RollingBack => Course::WayBack,
            RunState::Rebooting => Course::Rebooting,
            RunState::Received if operator.is_some() => Course::Own,
            _ => Course::Fresh,
        };
        // The run before has ended, or is about to.
        let mut turn = if course == Course::Waiting { None } else { Some(self.turn.lock().await) };
        self.reserve.keep();
        let deadline = Instant::now() + lifetime;
        let (columns, folder) = (&columns, folder.as_path());
        let attempt = Attempt { engine: self, order, run, columns, folder, course, preparation, lifetime, deadline };
        // Every line of the log that is about this run names its order.
        let span = tracing::info_span!("of", digest = %columns.digest.short(), id = tracing::field::Empty);
        let stopped = match course {
            Course::Rebooting => Box::pin(attempt.go_on_after_reboot().instrument(span.clone())).await,
            Course::WayBack => Box::pin(attempt.go_on_back().instrument(span.clone())).await,
            Course::Own => Box::pin(attempt.roll_back_by_itself(&mut turn).instrument(span.clone())).await,
            Course::Fresh | Course::Waiting => Box::pin(attempt.go(&mut turn).instrument(span.clone())).await,
        };
        if let Err(error) = fs::remove_dir_all(folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            let _of = span.enter();
            tracing::warn!(%error, path = %folder.display(), "files of a run could not be removed");
        }
        let row = self.record.read(|state| state.run(order, run).cloned());
        let (state, checks, ending) = ending(stopped, row.as_ref())?;
        self.end(order, run, state, checks, ending).instrument(span).await
    }

    /// Ends a run: the package list as it is, the result signed, all in one entry.
    async fn end(
        &self,
        order: u32,
        run: u32,
        state: RunState,
        checks: Checks,
        ending: Ending,
    ) -> Result<(), EngineError> {
        let installed = self.installed().await.map(|installed| installed.settled.digest()).ok();
        if let Some(row) = self.record.read(|known| known.run(order, run).cloned()) {
            self.rest_boot_loader(&row, state).await;
        }
        let _one_at_a_time = self.ends.lock().await;
        let found = self.record.read(|state| {
            let row = state.orders.get(&order)?;
            Some((row.columns.digest, row.runs.get(&run)?.clone(), state.result_head, state.audit_head))
        });
        let Some((digest, mut row, previous, audit)) = found else { return Ok(()) };
        row.state = state;
        row.percent = 100;
        state.name().clone_into(&mut row.phase);
        row.refusal = ending.refusal;
        row.set_error(&ending.reason);
        row.ended = Some(ending.at);
        row.before = row.before.or(installed);
        row.after = installed.or(row.after).or(row.before);
        (row.process, row.goal, row.boot) = (None, None, None);
        // What was only looked at stays to be done.
        let done = row.preparation.is_none();
        for item in row.items.iter_mut().filter(|item| done && item.state == ItemState::Pending) {
            item.state = ItemState::Failed;
        }
        let chain = result::Chain { host: &self.host, key: &self.key, previous, audit };
        result::sign(&mut row, digest, run, checks, &chain)?;
        let refusal = row.refusal.map_or("none", Refusal::name);
        tracing::info!(order, run, %digest, state = state.name(), %refusal, reason = %row.error, "run ended");
        self.record.change_run(order, run, |now| *now = row)?;
        self.forget_staged(&digest, state);
        Ok(())
    }

    /// Removes what was staged for an order when the way back was walked, or nothing led to it; what was fetched ahead is kept until
    /// then.
    fn forget_staged(&self, order: &Digest, ended: RunState) {
        let (applied, needed) = self.record.read(|state| {
            let names = |(row, _): &(u32, u32)| state.orders.get(row).is_some_and(|row| row.columns.digest == *order);
            let ahead = |run: &Run| run.preparation == Some(Preparation::Prefetch) && run.state == RunState::Succeeded;
            let rows = state.orders.values().filter(|row| row.columns.digest == *order);
            let ahead = rows.flat_map(|row| row.runs.values()).any(ahead);
            let applied = state.applied.contains(order);
            (applied, state.under_way().iter().any(names) || (ahead && !applied))
        });
        if needed || (applied && ended != RunState::RolledBack) {
            return;
        }
        if let Err(error) = self.staged.forget(order) {
            tracing::warn!(%error, "what was staged could not be removed");
        }
    }
}
