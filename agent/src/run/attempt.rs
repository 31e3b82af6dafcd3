//! One run from its start to its end, step by step: fetch and verify ([`super::ready`]), wait ([`super::waiting`]), look,
//! act and check ([`super::work`]); or only look or fetch ([`super::preparation`]).

use std::{
    path::Path,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Audience, Refusal, Refused,
    document::{Action, Checks, Order, Preparation, RunState},
};

use super::{Engine, Turn, now, way_back::TurnedBack, work::Work};
use crate::{
    hooks::Site,
    packages::{Installed, PackageError},
    record::RecordError,
    state::{Columns, Run},
};

/// Why a run did not go on.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Said no; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Ended from outside or by its lifetime.
    #[error("{0}")]
    Aborted(String),
    /// The change or its checks failed.
    #[error("{reason}")]
    Failed {
        /// What failed.
        reason: String,
        /// Checks so far.
        checks: Checks,
    },
    /// The agent cannot remember what it does, so it must not do it.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Stop {
    /// The change failed.
    pub fn failed(reason: impl ToString) -> Self {
        Self::Failed { reason: reason.to_string(), checks: Checks::default() }
    }
}

/// The host is in no state to be patched, or something that is needed could not be had.
pub fn unfit(reason: impl ToString) -> Stop {
    Refused::new(Refusal::Preflight, reason.to_string()).into()
}

/// Where a run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// It was just started.
    Fresh,
    /// It waited for its window, in this agent or in an earlier one: what it was made ready from is there, and may have
    /// grown old.
    Waiting,
    /// An earlier agent left it on its way back.
    WayBack,
    /// An earlier agent left it rebooting the host.
    Rebooting,
    /// The host's own operator just started it.
    Own,
}

/// A run under way.
pub struct Attempt<'e> {
    /// The engine.
    pub engine: &'e Engine,
    /// Order row.
    pub order: u32,
    /// Run index.
    pub run: u32,
    /// What the manager said.
    pub columns: &'e Columns,
    /// Where its documents and files are kept.
    pub folder: &'e Path,
    /// Where it comes from.
    pub course: Course,
    /// What it does without an activation.
    pub preparation: Option<Preparation>,
    /// Its longest duration.
    pub lifetime: Duration,
    /// When that ends.
    pub deadline: Instant,
}

impl<'e> Attempt<'e> {
    /// Goes the whole way. What it returns is how the run ended well: its final state and checks.
    ///
    /// # Errors
    /// Why it did not.
    pub async fn go(mut self, turn: &mut Turn<'e>) -> Result<(RunState, Checks), Stop> {
        match self.preparation {
            Some(Preparation::Probe) => return self.unless_stopped(self.probe()).await,
            Some(Preparation::Prefetch) => return self.unless_stopped(self.prefetch()).await,
            None => {}
        }
        let ready = self.unless_stopped(self.make_ready()).await?;
        if self.must_wait(&ready) {
            if self.course == Course::Fresh {
                self.unless_stopped(self.rehearse(&ready)).await?;
            }
            self.await_window(&ready, turn).await?;
        }
        let prepared = self.unless_stopped(self.preflight(ready, turn)).await?;
        let Work { order, digest, action, .. } = &prepared.work;
        let done = match self.act(&prepared).await {
            Ok(()) => self.reboot_and_check(order, *action).await,
            Err(stop) => Err(stop),
        };
        match done {
            Ok(checks) if *action == Action::Apply => Ok((RunState::Succeeded, checks)),
            Ok(checks) => Ok((RunState::RolledBack, checks)),
            Err(stop) if self.turn_back(&stop)? == TurnedBack::No => Err(stop),
            Err(_) => Ok((RunState::RolledBack, self.walk_back(order, *digest, Site::Untouched).await?)),
        }
    }

    async fn reboot_and_check(&self, order: &Order, action: Action) -> Result<Checks, Stop> {
        if action == Action::Apply {
            self.reboot(order).await?;
        }
        self.check(order, action).await
    }

    /// Up to the package manager's start nothing is changed: what is done until then may be dropped at any point.
    ///
    /// # Errors
    /// As the work, or that the run was aborted, or its lifetime ended.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            stop = self.aborted() => Err(stop),
            () = tokio::time::sleep_until(self.deadline.into()) => {
                let row = self.engine.record.read(|state| state.run(self.order, self.run).cloned());
                let doing = row.map(|row| format!(" ({}: {})", row.state.name(), row.phase)).unwrap_or_default();
                Err(Stop::Aborted(format!("its lifetime ended{doing}")))
            }
            done = work => done,
        }
    }

    /// Comes back when the manager aborts the run.
    pub async fn aborted(&self) -> Stop {
        self.engine.record.aborted(self.order, self.run).await;
        Stop::Aborted("aborted by the manager".into())
    }

    /// Changes the run's row.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn change(&self, change: impl FnOnce(&mut Run)) -> Result<Run, RecordError> {
        self.engine.record.change_run(self.order, self.run, change)
    }

    /// Says where the run is. One that waited for its window before is made ready again without being told: it still
    /// waits.
    ///
    /// # Errors
    /// When the journal cannot be written, or a run cannot move like this.
    pub fn progress(&self, state: RunState, percent: u8, phase: &str) -> Result<(), RecordError> {
        tracing::info!(order = self.order, run = self.run, state = state.name(), phase, "run");
        if self.course == Course::Waiting && matches!(state, RunState::Fetching | RunState::Verifying) {
            return Ok(());
        }
        self.change(|run| {
            run.state = state;
            run.percent = percent;
            phase.clone_into(&mut run.phase);
        })?;
        Ok(())
    }

    /// Names the order in every line of the log that follows, now that it is known.
    pub fn name(&self, order: &Order) {
        tracing::Span::current().record("id", &*order.id);
    }

    /// For whom the root in force is.
    pub fn audience(&self) -> Audience {
        self.engine.trust.root().audience
    }

    /// What is installed.
    ///
    /// # Errors
    /// When the package manager cannot say.
    pub async fn installed(&self) -> Result<Installed, PackageError> {
        self.engine.installed().await
    }
}

/// Blocking work off the runtime. It is never cancelled: its own deadline ends it.
///
/// # Errors
/// When it broke.
pub async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<Result<T, E>, Stop> {
    let span = tracing::Span::current();
    let work = move || span.in_scope(work);
    tokio::task::spawn_blocking(work).await.map_err(|error| Stop::failed(format!("a part of the agent broke: {error}")))
}

/// The end of a run that went its way or stopped: what stands in its row, which was `row` before.
///
/// # Errors
/// When the run stopped because nothing could be remembered any more.
pub fn ending(
    stopped: Result<(RunState, Checks), Stop>,
    row: Option<&Run>,
) -> Result<(RunState, Checks, Ending), RecordError> {
    let ending = |reason: String, refusal| Ending { reason, refusal, at: now() };
    let was = row.map_or(RunState::Received, |row| row.state);
    let failure = row.and_then(|row| row.failure.as_ref());
    let operator = row.and_then(|row| row.operator).map(|uid| format!("by the host's operator, uid {uid}"));
    let why = |reason: String| match failure {
        None => match &operator {
            Some(operator) if reason.is_empty() => operator.clone(),
            Some(operator) => format!("{reason} ({operator})"),
            None => reason,
        },
        Some(failure) if reason.is_empty() => format!("rolled back, as the order says: {}", failure.reason),
        Some(failure) => format!("the way back failed: {reason}; it was walked because {}", failure.reason),
    };
    Ok(match stopped {
        Ok((state, checks)) => {
            let unprotected = row.and_then(|row| row.unprotected.as_ref()).filter(|_| state == RunState::Succeeded);
            let said = unprotected.map(|unable| format!("its kernel was booted without a way back: {unable}"));
            (state, checks, ending(why(said.unwrap_or_default()), None))
        }
        Err(Stop::Refused(refused)) => {
            (RunState::Refused, Checks::default(), ending(why(refused.reason), Some(refused.refusal)))
        }
        // Whoever walks back by itself was not asked to, and is not asked again: a person is needed.
        Err(Stop::Aborted(reason)) if failure.is_some() => {
            (RunState::RollbackFailed, Checks::default(), ending(why(reason), None))
        }
        Err(Stop::Aborted(reason)) => (RunState::Aborted, Checks::default(), ending(why(reason), None)),
        Err(Stop::Failed { reason, checks }) => {
            let state = match was {
                RunState::RollingBack => RunState::RollbackFailed,
                RunState::Applying | RunState::Rebooting | RunState::Validating => RunState::Failed,
                // A check failed on the host as it is.
                RunState::Preflight if row.is_some_and(|row| row.preparation.is_some()) => RunState::Failed,
                // Nothing was changed yet.
                _ => RunState::Aborted,
            };
            (state, checks, ending(why(reason), None))
        }
        Err(Stop::Record(error)) => return Err(error),
    })
}

/// How a run ended, beside its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The sentence for people.
    pub reason: String,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// When, milliseconds since 1970.
    pub at: i64,
}
