//! One run from its start to its end, step by step: fetch, verify, simulate, act, check.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patchlab_check::target::Ended;
use patchlab_protocol::{
    Authorized, Digest, Envelope, ItemState, Refusal, Refused,
    authorization::{Documents, Identity, authorize, newest_signed_time},
    document::{Action, Checks, PackageFile, RunState},
    inventory::Transaction,
};

use super::{
    Engine, finish, now,
    plan::{Plan, compare, plan},
};
use crate::{
    fetch::{FetchError, Place},
    hooks::{self, HookError, Moment, Told},
    packages::{Committed, Goal, Installed, PackageError},
    preflight::{self, Kernel, Needs},
    production,
    record::{RecordError, Undecided},
    state::{self, Columns, Event, Run},
    updaters::{self, Paused},
};

/// How long finishing what was left half-way may take, after a run's own time is over.
pub const SETTLE: Duration = Duration::from_secs(300);

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
    fn failed(reason: impl ToString) -> Self {
        Self::Failed { reason: reason.to_string(), checks: Checks::default() }
    }
}

fn preflight(reason: impl ToString) -> Stop {
    Refused::new(Refusal::Preflight, reason.to_string()).into()
}

/// A run under way.
pub struct Attempt<'e> {
    /// The engine.
    pub engine: &'e Engine,
    /// Order row.
    pub order: u32,
    /// Run index.
    pub run: u32,
    /// When its lifetime ends.
    pub deadline: Instant,
}

/// The documents of a run, as fetched.
struct Fetched {
    order: Envelope,
    release: Option<Envelope>,
    approval: Option<Envelope>,
    activation: Option<Envelope>,
}

impl Fetched {
    fn documents(&self) -> Documents<'_> {
        Documents {
            order: &self.order,
            release: self.release.as_ref(),
            approval: self.approval.as_ref(),
            activation: self.activation.as_ref(),
        }
    }
}

/// All that must be settled before the package manager may work.
struct Prepared {
    fetched: Fetched,
    authorized: Authorized,
    plan: Plan,
    goal: Goal,
    transaction: Transaction,
    /// To the run's end.
    _paused: Paused,
}

impl Attempt<'_> {
    /// Goes the whole way. What it returns is how the run ended well: its final state and checks.
    pub async fn go(&self, columns: &Columns, folder: &Path) -> Result<(RunState, Checks), Stop> {
        // From here to the package manager's start nothing is changed: it may be dropped at any point.
        let prepared = tokio::select! {
            biased;
            () = self.engine.record.aborted(self.order, self.run) => return Err(Stop::Aborted("aborted by the manager".into())),
            () = tokio::time::sleep_until(self.deadline.into()) => return Err(Stop::Aborted("its lifetime ended".into())),
            prepared = self.prepare(columns, folder) => prepared?,
        };
        let action = prepared.authorized.action();
        self.act(&prepared).await?;
        let checks = self.check(&prepared, action).await?;
        Ok((if action == Action::Apply { RunState::Succeeded } else { RunState::RolledBack }, checks))
    }

    fn change(&self, change: impl FnOnce(&mut Run)) -> Result<Run, RecordError> {
        self.engine.record.change_run(self.order, self.run, change)
    }

    fn progress(&self, state: RunState, percent: u8, phase: &str) -> Result<(), RecordError> {
        tracing::info!(order = self.order, run = self.run, state = state.name(), phase, "run");
        self.change(|run| {
            run.state = state;
            run.percent = percent;
            phase.clone_into(&mut run.phase);
        })?;
        Ok(())
    }

    async fn prepare(&self, columns: &Columns, folder: &Path) -> Result<Prepared, Stop> {
        let installed = self.installed().await.map_err(preflight)?;
        self.change(|run| run.before = Some(installed.settled.digest()))?;
        self.progress(RunState::Fetching, 2, "documents")?;
        let place = Place::new(&columns.uri).map_err(preflight)?;
        let order = place.document(&columns.digest).await.map_err(|error| document_refusal("order", &error))?;
        let [release, approval, activation] = [
            self.optional(&place, "release", columns.release).await?,
            self.optional(&place, "approval", columns.approval).await?,
            self.optional(&place, "activation", columns.activation).await?,
        ];
        self.progress(RunState::Verifying, 6, "signatures")?;
        let fetched = Fetched { order, release, approval, activation };
        self.see_time(&fetched)?;
        let authorized = self.engine.record.read(|state| self.authorize(&fetched, state))?;
        self.change(|run| run.action = Some(authorized.action()))?;
        let plan = self.plan(&authorized, &installed)?;

        self.progress(RunState::Fetching, 10, "files")?;
        let (install, unpacked) = self.files(&place, &plan, folder).await?;
        let goal = Goal { install, remove: plan.remove.clone() };
        self.progress(RunState::Verifying, 40, "simulation")?;
        let paused = updaters::pause(self.engine.target.root()).map_err(preflight)?;
        let transaction = self.simulate(&goal, &plan).await?;
        compare(&transaction, &plan, authorized.release(), &installed)?;
        self.fit(&transaction, unpacked)?;
        self.change(|run| run.items = state::items(&transaction))?;
        Ok(Prepared { fetched, authorized, plan, goal, transaction, _paused: paused })
    }

    fn authorize(&self, fetched: &Fetched, state: &state::State) -> Result<Authorized, Refused> {
        let engine = self.engine;
        let identity = Identity { host: &engine.host, class: &engine.class };
        authorize(&engine.trust.root(), &identity, &fetched.documents(), &state.ledger(), Timestamp::now())
    }

    /// A newer signed time is remembered even when the documents are then refused: the clock can never have been before
    /// it.
    fn see_time(&self, fetched: &Fetched) -> Result<(), RecordError> {
        let Some(at) = newest_signed_time(&self.engine.trust.root(), &fetched.documents()) else { return Ok(()) };
        if self.engine.record.read(|state| state.time_floor < Some(at)) {
            self.engine.record.enter(Event::Seen { at })?;
        }
        Ok(())
    }

    /// Uses the permission up. It is asked for once more, in the same moment in which it is entered as used: fetching
    /// may have taken hours, and meanwhile the activation may have expired, or a document may have been revoked.
    fn use_up(&self, prepared: &Prepared) -> Result<(), Stop> {
        let entered = self.engine.record.decide(|state| {
            let authorized = self.authorize(&prepared.fetched, state)?;
            Ok(Event::Used {
                activation: authorized.activation(),
                applied: (authorized.action() == Action::Apply).then(|| authorized.digest()),
                floor: authorized.newest_time(),
            })
        });
        entered.map_err(|error| match error {
            Undecided::No(refused) => Stop::Refused(refused),
            Undecided::Journal(error) => Stop::Record(error.into()),
        })
    }

    fn plan(&self, authorized: &Authorized, installed: &Installed) -> Result<Plan, Stop> {
        let order = authorized.order();
        if authorized.action() == Action::Apply {
            let succeeded = self.engine.record.read(|state| state.succeeded.clone());
            if let Some(missing) = order.after.iter().find(|digest| !succeeded.contains(digest)) {
                return Err(preflight(format!("order {} must have succeeded here before", missing.short())));
            }
        }
        if !order.production.is_empty() && self.engine.evaluate.is_none() {
            return Err(preflight("the order has production checks, which this build of the agent cannot carry out"));
        }
        Ok(plan(order, authorized.action(), installed)?)
    }

    /// A document that the row names. One that the server does not have is missing, as if the row did not name it.
    async fn optional(&self, place: &Place, what: &str, digest: Option<Digest>) -> Result<Option<Envelope>, Stop> {
        let Some(digest) = digest else { return Ok(None) };
        match place.document(&digest).await {
            Ok(envelope) => Ok(Some(envelope)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(document_refusal(what, &error)),
        }
    }

    /// Whether the host is in a state to be patched.
    fn fit(&self, transaction: &Transaction, unpacked: u64) -> Result<(), Stop> {
        let found = preflight::look(self.engine.target.root()).map_err(preflight)?;
        let needs = Needs { unpacked, kernel: Kernel::of(transaction) };
        preflight::judge(&needs, &found).map_err(preflight)
    }

    /// Fetches the plan's files; with what they take when they are unpacked, bytes.
    async fn files(&self, place: &Place, plan: &Plan, folder: &Path) -> Result<(Vec<PathBuf>, u64), Stop> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| preflight(format!("cannot make {}: {error}", folder.display())))?;
        let total: u64 = plan.files.iter().map(|file| file.size).sum();
        room_for(folder, total)?;
        let mut paths = Vec::new();
        let (mut before, mut told, mut unpacked) = (0, 10, 0_u64);
        for file in &plan.files {
            let mut percent = told;
            let progress =
                |have: u64| percent = 10 + u8::try_from((before + have) * 30 / total.max(1)).unwrap_or(30).min(30);
            let path = place.package(file, folder, progress).await.map_err(preflight)?;
            if percent > told {
                told = percent;
                self.change(|run| run.percent = percent)?;
            }
            unpacked = unpacked.saturating_add(self.identify(file, &path).await?);
            before += file.size;
            paths.push(path);
        }
        Ok((paths, unpacked))
    }

    /// The drafter may err: a file must be what the order calls it. With what it takes when it is unpacked, bytes.
    async fn identify(&self, file: &PackageFile, path: &Path) -> Result<u64, Stop> {
        let (packages, path) = (Arc::clone(&self.engine.packages), path.to_owned());
        let found = blocking(move || packages.identify(&path)).await?.map_err(preflight)?;
        if (found.id.name.as_str(), found.id.arch.as_str(), found.version.as_str())
            == (&*file.name, &*file.arch, &*file.version)
        {
            return Ok(found.unpacked);
        }
        let reason =
            format!("file {} is {} {}, the order calls it {}", file.sha256.short(), found.id, found.version, file.name);
        Err(preflight(reason))
    }

    async fn simulate(&self, goal: &Goal, plan: &Plan) -> Result<Transaction, Stop> {
        if plan.files.is_empty() && plan.remove.is_empty() {
            return Ok(Transaction::default());
        }
        let (packages, goal, deadline) = (Arc::clone(&self.engine.packages), goal.clone(), self.deadline);
        blocking(move || packages.simulate(&goal, deadline)).await?.map_err(preflight)
    }

    async fn installed(&self) -> Result<Installed, PackageError> {
        self.engine.installed().await
    }

    /// The point of no return: the permission is used up and the state journaled, then the package manager works.
    async fn act(&self, prepared: &Prepared) -> Result<(), Stop> {
        self.hooks(prepared, Moment::Before).await?.map_err(preflight)?;
        self.use_up(prepared)?;
        let (working, phase) = match prepared.authorized.action() {
            Action::Apply => (RunState::Applying, "package manager"),
            Action::Rollback => (RunState::RollingBack, "package manager, way back"),
        };
        self.change(|run| run.goal = Some(prepared.goal.clone()))?;
        self.progress(working, 45, phase)?;
        // An abort that came before that is the last one; after it, aborts are turned away.
        if self.engine.record.is_aborted(self.order, self.run) {
            return Err(Stop::Aborted("aborted by the manager".into()));
        }
        let committed = self.commit(&prepared.goal).await?;
        let reboot = self.engine.packages.reboot(&prepared.transaction);
        let installed = self.installed().await.map_err(Stop::failed)?;
        let missed = prepared.plan.missed(&installed);
        self.change(|run| {
            run.process = None;
            run.exit = committed.finished.exit;
            run.transaction_ms = u64::try_from(committed.duration.as_millis()).unwrap_or(u64::MAX);
            run.reboot = reboot;
            run.percent = 85;
            run.after = Some(installed.settled.digest());
            for item in &mut run.items {
                let id = patchlab_protocol::inventory::PackageId::new(&item.name, &item.arch);
                let reached = installed.settled.version(&id).unwrap_or_default() == item.to;
                item.state = if reached { ItemState::Done } else { ItemState::Failed };
            }
        })?;
        // Whatever came of it, what the site prepared is put back; a failed transaction is the better reason.
        let put_back = self.hooks(prepared, Moment::After).await?;
        self.judge(&committed, &missed)?;
        put_back.map_err(Stop::failed)
    }

    /// Runs the site's own programs.
    async fn hooks(&self, prepared: &Prepared, moment: Moment) -> Result<Result<(), HookError>, Stop> {
        let Some(folder) = self.engine.hooks.clone() else { return Ok(Ok(())) };
        let told = Told { order: prepared.authorized.digest(), action: Some(prepared.authorized.action()) };
        // What is put back has time to be, also when the run's own is over.
        let deadline =
            if moment == Moment::Before { self.deadline } else { self.deadline.max(Instant::now() + SETTLE) };
        blocking(move || hooks::run(&folder, moment, &told, deadline)).await
    }

    fn judge(&self, committed: &Committed, missed: &[String]) -> Result<(), Stop> {
        if committed.finished.ended == Ended::ByTimeout {
            return Err(Stop::Aborted(format!(
                "its lifetime ended while the package manager worked; {}",
                list(missed)
            )));
        }
        if !committed.finished.succeeded() {
            return Err(Stop::failed(format!("the package manager failed: {}", committed.finished.last_words())));
        }
        if missed.is_empty() { Ok(()) } else { Err(Stop::failed(list(missed))) }
    }

    async fn commit(&self, goal: &Goal) -> Result<Committed, Stop> {
        let (packages, goal, deadline) = (Arc::clone(&self.engine.packages), goal.clone(), self.deadline);
        let (record, order, run) = (Arc::clone(&self.engine.record), self.order, self.run);
        let done = blocking(move || {
            let committed = packages.commit(&goal, deadline, &mut |mark| {
                // Without the mark the next agent could not end an orphan; that is no reason to stop this one half-way.
                if let Err(error) = record.change_run(order, run, |run| run.process = Some(mark)) {
                    tracing::error!(%error, "the package manager's process could not be journaled");
                }
            })?;
            // What failed by itself would fail again; what ran out of time is finished.
            let again = (committed.finished.ended == Ended::ByTimeout).then_some(&goal);
            if !committed.finished.succeeded()
                && let Err(error) = finish(&*packages, again)
            {
                tracing::warn!(%error, "packages were left half-way");
            }
            Ok::<_, PackageError>(committed)
        });
        done.await?.map_err(Stop::failed)
    }

    async fn check(&self, prepared: &Prepared, action: Action) -> Result<Checks, Stop> {
        let checks = prepared.authorized.order().production.clone();
        match action {
            Action::Apply => self.progress(RunState::Validating, 90, "production checks")?,
            Action::Rollback => self.progress(RunState::RollingBack, 90, "production checks")?,
        }
        let Some(evaluate) = self.engine.evaluate else { return Ok(Checks::default()) };
        let (target, deadline) = (self.engine.target.clone(), self.deadline);
        let verdict = blocking(move || Ok::<_, Stop>(production::run(&checks, &target, deadline, evaluate))).await??;
        match verdict.first_failure {
            None => Ok(verdict.checks),
            Some(reason) => Err(Stop::Failed { reason, checks: verdict.checks }),
        }
    }
}

fn list(missed: &[String]) -> String {
    let shown = missed.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    if missed.is_empty() {
        "every package is where it should be".into()
    } else {
        format!("not where they should be: {shown}")
    }
}

/// An altered document is a bad signature: what was signed is not what came.
fn document_refusal(what: &str, error: &FetchError) -> Stop {
    let refusal = if matches!(error, FetchError::Altered { .. }) { Refusal::BadSignature } else { Refusal::Preflight };
    Refused::new(refusal, format!("{what}: {error}")).into()
}

/// Whether the files fit, with a tenth to spare.
fn room_for(folder: &Path, bytes: u64) -> Result<(), Stop> {
    let disk = rustix::fs::statvfs(folder).map_err(|error| preflight(format!("{}: {error}", folder.display())))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes.saturating_add(bytes / 10) {
        return Ok(());
    }
    Err(preflight(format!("{} bytes are needed in {}, {free} are free", bytes, folder.display())))
}

/// Blocking work off the runtime. It is never cancelled: its own deadline ends it.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<Result<T, E>, Stop> {
    let span = tracing::Span::current();
    let work = move || span.in_scope(work);
    tokio::task::spawn_blocking(work).await.map_err(|error| Stop::failed(format!("a part of the agent broke: {error}")))
}

/// The end of a run that went its way or stopped: what stands in its row.
pub fn ending(
    stopped: Result<(RunState, Checks), Stop>,
    was: RunState,
) -> Result<(RunState, Checks, Ending), RecordError> {
    let ending = |reason: String, refusal| Ending { reason, refusal, at: now() };
    Ok(match stopped {
        Ok((state, checks)) => (state, checks, ending(String::new(), None)),
        Err(Stop::Refused(refused)) => {
            (RunState::Refused, Checks::default(), ending(refused.reason, Some(refused.refusal)))
        }
        Err(Stop::Aborted(reason)) => (RunState::Aborted, Checks::default(), ending(reason, None)),
        Err(Stop::Failed { reason, checks }) => {
            let state = match was {
                RunState::RollingBack => RunState::RollbackFailed,
                RunState::Applying | RunState::Validating => RunState::Failed,
                // Nothing was changed yet.
                _ => RunState::Aborted,
            };
            (state, checks, ending(reason, None))
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
