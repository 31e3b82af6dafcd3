//! Runs: one at a time, each from its start to a signed result, whatever happens between.
//!
//! [`Engine::supervise`] waits for runs that a manager started. One is carried out ([`attempt`]), another that is
//! started meanwhile is refused as busy. A run that an earlier agent left under way is ended first
//! ([`Engine::recover`]).

pub mod attempt;
pub mod plan;
pub mod result;

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use attempt::{Attempt, Ending, SETTLE, ending};
use jiff::Timestamp;
use patchlab_protocol::{
    ItemState, Refusal, SigningKey,
    document::{Action, Checks, Class, RunState},
};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::{
    fetch,
    hooks::{self, HookError, Moment, Told},
    packages::{Goal, Installed, PackageError, PackageManager},
    process,
    production::Evaluate,
    record::{Record, RecordError},
    target::LocalTarget,
    transition,
    trust::Trust,
};

/// Carries out runs.
pub struct Engine {
    /// The host's enrolled name.
    pub host: String,
    /// Its class.
    pub class: Class,
    /// Whom it believes.
    pub trust: Arc<Trust>,
    /// The host's enrolment key.
    pub key: SigningKey,
    /// What is remembered.
    pub record: Arc<Record>,
    /// The package manager.
    pub packages: Arc<dyn PackageManager>,
    /// Where files of a run are kept while it is under way; only the agent may look into it.
    pub files: PathBuf,
    /// This host, for production checks.
    pub target: LocalTarget,
    /// Where the site's own programs are.
    pub hooks: Option<PathBuf>,
    /// How a step is evaluated. Without it, an order with production checks is refused.
    pub evaluate: Option<Evaluate>,
    /// Results are chained, so runs end one after the other.
    pub ends: tokio::sync::Mutex<()>,
}

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
    Broken(#[from] tokio::task::JoinError),
}

/// The run under way, as (row, run index), and its task.
type Active = ((u32, u32), JoinHandle<Result<(), EngineError>>);

/// Milliseconds since 1970.
pub fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Finishes what a package manager left half-way. A package whose files were being replaced cannot be configured: there
/// the transaction is carried on, from the files that were verified for it.
fn finish(packages: &dyn PackageManager, goal: Option<&Goal>) -> Result<(), PackageError> {
    let deadline = Instant::now() + SETTLE;
    let Err(error) = packages.settle(deadline) else { return Ok(()) };
    let Some(goal) = goal.filter(|goal| goal.install.iter().all(|file| fetch::is_what_its_name_says(file))) else {
        return Err(error);
    };
    tracing::warn!(%error, "packages are half-way; carrying the transaction on");
    packages.resume(goal, deadline)
}

impl Engine {
    /// What is installed now.
    ///
    /// # Errors
    /// When the package manager cannot say.
    pub async fn installed(&self) -> Result<Installed, PackageError> {
        let packages = Arc::clone(&self.packages);
        match tokio::task::spawn_blocking(move || packages.installed()).await {
            Ok(installed) => installed,
            Err(error) => {
                Err(PackageError::Run { program: "dpkg-query", source: std::io::Error::other(error.to_string()) })
            }
        }
    }

    /// Ends every run that an earlier agent left under way: its package manager is stopped, what is half-way is
    /// finished, the state is `aborted`, and the result is signed.
    ///
    /// # Errors
    /// When the record cannot be kept.
    pub async fn recover(&self) -> Result<(), EngineError> {
        for (order, run) in self.record.read(crate::state::State::under_way) {
            let Some(row) = self.record.read(|state| state.run(order, run).cloned()) else { continue };
            let digest = self.record.read(|state| state.orders.get(&order).map(|row| row.columns.digest.short()));
            let digest = digest.unwrap_or_default();
            tracing::warn!(order, run, %digest, state = row.state.name(), "the agent ended during this run; ending it");
            let mut reason = format!("the agent ended while the run was {}", row.state.name());
            if let Some(orphan) = row.process.clone() {
                let ended = tokio::task::spawn_blocking(move || process::end_orphan(&orphan)).await?;
                if let Err(error) = ended {
                    reason = format!("{reason}; its package manager could not be ended: {error}");
                }
            }
            if transition::touches_packages(row.state) {
                let (packages, goal) = (Arc::clone(&self.packages), row.goal.clone());
                let settled = tokio::task::spawn_blocking(move || finish(&*packages, goal.as_ref())).await?;
                if let Err(error) = settled {
                    reason = format!("{reason}; {error}");
                }
                // What was prepared for the run is put back, as at any other end.
                if let Some(Err(hook)) = self.after_hooks(order, row.action).await? {
                    reason = format!("{reason}; {hook}");
                }
            }
            let ending = Ending { reason, refusal: None, at: now() };
            self.end(order, run, RunState::Aborted, Checks::default(), ending).await?;
        }
        // Whatever was fetched is fetched again.
        match fs::remove_dir_all(&self.files) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.files.display(), "left-over files could not be removed");
            }
            _ => {}
        }
        Ok(())
    }

    async fn after_hooks(
        &self,
        order: u32,
        action: Option<Action>,
    ) -> Result<Option<Result<(), HookError>>, EngineError> {
        let digest = self.record.read(|state| state.orders.get(&order).map(|row| row.columns.digest));
        let (Some(folder), Some(order)) = (self.hooks.clone(), digest) else { return Ok(None) };
        let run = move || hooks::run(&folder, Moment::After, &Told { order, action }, Instant::now() + SETTLE);
        Ok(Some(tokio::task::spawn_blocking(run).await?))
    }

    /// Carries out runs for ever.
    ///
    /// # Errors
    /// When the record cannot be kept: then nothing more may be done.
    pub async fn supervise(self: Arc<Self>) -> Result<(), EngineError> {
        let mut changes = self.record.subscribe();
        let mut active: Option<Active> = None;
        loop {
            changes.borrow_and_update();
            for (order, run) in self.record.read(crate::state::State::under_way) {
                match &active {
                    Some((current, _)) if *current == (order, run) => {}
                    Some(((order_now, run_now), _)) => {
                        let reason = format!("run {run_now} of order row {order_now} is under way");
                        let ending = Ending { reason, refusal: Some(Refusal::Busy), at: now() };
                        self.end(order, run, RunState::Refused, Checks::default(), ending).await?;
                    }
                    None => {
                        let engine = Arc::clone(&self);
                        let task = tokio::spawn(async move { engine.execute(order, run).await });
                        active = Some(((order, run), task));
                    }
                }
            }
            match &mut active {
                None => drop(changes.changed().await),
                Some((_, task)) => tokio::select! {
                    finished = task => { finished??; active = None; }
                    _ = changes.changed() => {}
                },
            }
        }
    }

    async fn execute(&self, order: u32, run: u32) -> Result<(), EngineError> {
        let Some(columns) = self.record.read(|state| state.orders.get(&order).map(|row| row.columns.clone())) else {
            return Ok(());
        };
        let deadline = Instant::now() + Duration::from_secs(columns.lifetime.into());
        let folder = self.files.join(format!("{order}-{run}"));
        let attempt = Attempt { engine: self, order, run, deadline };
        // Every line of the log that is about this run names its order.
        let span = tracing::info_span!("of", digest = %columns.digest.short());
        let stopped = Box::pin(attempt.go(&columns, &folder).instrument(span)).await;
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %folder.display(), "files of a run could not be removed");
        }
        let was = self.record.read(|state| state.run(order, run).map(|row| row.state)).unwrap_or(RunState::Received);
        let (state, checks, ending) = ending(stopped, was)?;
        self.end(order, run, state, checks, ending).await
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
        (row.process, row.goal) = (None, None);
        for item in row.items.iter_mut().filter(|item| item.state == ItemState::Pending) {
            item.state = ItemState::Failed;
        }
        let chain = result::Chain { host: &self.host, key: &self.key, previous, audit };
        result::sign(&mut row, digest, run, checks, &chain)?;
        let refusal = row.refusal.map_or("none", Refusal::name);
        tracing::info!(order, run, %digest, state = state.name(), %refusal, reason = %row.error, "run ended");
        self.record.change_run(order, run, |now| *now = row)?;
        Ok(())
    }
}
