//! The second part of a run: the host is looked at, the permission is used up, the package manager works, and the order's
//! checks are repeated.

use std::{sync::Arc, time::Instant};

use patchlab_check::target::Ended;
use patchlab_protocol::{
    Digest, ItemState, Refusal, Refused,
    document::{Action, Checks, OnFailure, Order, RunState},
    inventory::{PackageId, Transaction},
    limits::settle,
};

use super::{
    Turn,
    attempt::{Attempt, Course, Stop, blocking, unfit},
    finish,
    plan::{Plan, compare},
    ready::{Fetched, Ready},
};
use crate::{
    fetch,
    hooks::{self, HookError, Moment, Told},
    packages::{Committed, Goal, Installed, PackageError},
    preflight::{self, Kernel, Needs},
    production,
    record::Undecided,
    state::{self, Event},
    updaters::Paused,
};

/// What the package manager is to do, and for which order.
pub struct Work {
    /// The order.
    pub order: Order,
    /// Its digest.
    pub digest: Digest,
    /// Which way.
    pub action: Action,
    /// How everything is to stand afterwards.
    pub plan: Plan,
    /// With the files in their places.
    pub goal: Goal,
    /// What the package manager said that it would do.
    pub transaction: Transaction,
}

/// All that must be settled before the package manager may work.
pub struct Prepared {
    /// What it is to do.
    pub work: Work,
    fetched: Fetched,
    /// To the run's end.
    _paused: Paused,
}

impl<'e> Attempt<'e> {
    /// What the package manager would do, while a run that is ready still has to wait: a difference is told then, and not
    /// in the window.
    ///
    /// # Errors
    /// When it would do something other than what was proven.
    pub async fn rehearse(&self, ready: &Ready) -> Result<(), Stop> {
        self.progress(RunState::Verifying, 41, "simulation")?;
        let installed = self.installed().await.map_err(unfit)?;
        let transaction = self.simulate(&ready.goal, &ready.plan).await?;
        Ok(compare(&transaction, &ready.plan, ready.foreseen.release(), &installed)?)
    }

    /// Looks whether the host is in a state to be patched now, and waits for what will pass.
    ///
    /// # Errors
    /// When the host must refuse.
    pub async fn preflight(&self, ready: Ready, turn: &mut Turn<'e>) -> Result<Prepared, Stop> {
        self.take_turn(turn).await?;
        // Whatever was permitted before the wait: revoked or expired meanwhile, nothing more is done for it.
        self.engine.record.read(|state| self.authorize(&ready.fetched, state))?;
        let paused = self.await_locks(RunState::WaitingLock).await?;
        self.progress(RunState::Preflight, 43, "power")?;
        self.await_mains().await?;
        self.progress(RunState::Preflight, 44, "simulation")?;
        let installed = self.installed().await.map_err(unfit)?;
        self.unchanged(&ready, &installed)?;
        let Ready { fetched, foreseen, plan, goal, unpacked } = ready;
        let transaction = self.simulate(&goal, &plan).await?;
        compare(&transaction, &plan, foreseen.release(), &installed)?;
        self.fit(&transaction, unpacked)?;
        self.fit_to_fall_back(foreseen.order(), foreseen.action(), &transaction).await?;
        self.change(|run| {
            run.before = Some(installed.settled.digest());
            run.items = state::items(&transaction);
        })?;
        let (order, digest, action) = (foreseen.order().clone(), foreseen.digest(), foreseen.action());
        let work = Work { order, digest, action, plan, goal, transaction };
        Ok(Prepared { work, fetched, _paused: paused })
    }

    /// Whether the host, and what was fetched for it, are as they were when the run was made ready: that may be days ago.
    fn unchanged(&self, ready: &Ready, installed: &Installed) -> Result<(), Stop> {
        let plan = self.plan(ready.foreseen.order(), ready.foreseen.action(), installed)?;
        if plan != ready.plan {
            let reason = "what is installed changed while the run waited: start it again";
            return Err(Refused::new(Refusal::VersionsDiffer, reason).into());
        }
        // Without a wait they were hashed a moment ago, as they were written.
        let waited = self.course == Course::Waiting;
        match ready.goal.install.iter().find(|file| waited && !fetch::is_what_its_name_says(file)) {
            Some(file) => Err(unfit(format!("{} was altered while the run waited: start it again", file.display()))),
            None => Ok(()),
        }
    }

    /// Whether there is room, and power still.
    ///
    /// # Errors
    /// When there is not.
    pub fn fit(&self, transaction: &Transaction, unpacked: u64) -> Result<(), Stop> {
        let found = preflight::look(self.engine.target.root()).map_err(unfit)?;
        let needs = Needs { unpacked, kernel: Kernel::of(transaction) };
        preflight::judge(&needs, &found).map_err(unfit)
    }

    /// What the package manager would do.
    ///
    /// # Errors
    /// When it cannot say, or the goal cannot be reached.
    pub async fn simulate(&self, goal: &Goal, plan: &Plan) -> Result<Transaction, Stop> {
        if plan.files.is_empty() && plan.remove.is_empty() {
            return Ok(Transaction::new(self.engine.packages.system(), []));
        }
        let (packages, goal, deadline) = (Arc::clone(&self.engine.packages), goal.clone(), self.deadline);
        blocking(move || packages.simulate(&goal, deadline)).await?.map_err(unfit)
    }

    /// Uses the permission up. It is asked for once more, in the same moment in which it is entered as used: fetching
    /// may have taken hours, and meanwhile the activation may have expired, or a document may have been revoked.
    fn use_up(&self, prepared: &Prepared) -> Result<OnFailure, Stop> {
        let mut on_failure = OnFailure::Leave;
        let entered = self.engine.record.decide(|state| {
            let authorized = self.authorize(&prepared.fetched, state)?;
            on_failure = authorized.on_failure();
            Ok(Event::Used {
                activation: authorized.activation(),
                applied: (authorized.action() == Action::Apply).then(|| authorized.digest()),
                floor: authorized.newest_time(),
            })
        });
        entered.map(|()| on_failure).map_err(|error| match error {
            Undecided::No(refused) => Stop::Refused(refused),
            Undecided::Journal(error) => Stop::Record(error.into()),
        })
    }

    /// The point of no return: the permission is used up and the state journaled.
    fn begin(&self, prepared: &Prepared) -> Result<(), Stop> {
        let on_failure = self.use_up(prepared)?;
        let (working, phase) = match prepared.work.action {
            Action::Apply => (RunState::Applying, "package manager"),
            Action::Rollback => (RunState::RollingBack, "package manager, way back"),
        };
        self.change(|run| run.goal = Some(prepared.work.goal.clone()))?;
        self.progress(working, 45, phase)?;
        // An abort that came before that is the last one; after it, aborts are turned away.
        if self.engine.record.is_aborted(self.order, self.run) {
            return Err(Stop::Aborted("aborted by the manager".into()));
        }
        self.change(|run| run.on_failure = on_failure)?;
        Ok(())
    }

    /// The package manager works.
    ///
    /// # Errors
    /// When the run does not go on to its checks.
    pub async fn act(&self, prepared: &Prepared) -> Result<(), Stop> {
        self.progress(RunState::Preflight, 44, "the site's own programs")?;
        self.hooks(&prepared.work, Moment::Before).await?.map_err(unfit)?;
        let begun = match self.pin(&prepared.work).await {
            Ok(()) => self.begin(prepared),
            Err(stop) => Err(stop),
        };
        if let Err(stop) = begun {
            // What the site prepared is put back; why the run stops is the better reason.
            if let Err(error) = self.hooks(&prepared.work, Moment::After).await? {
                tracing::warn!(%error, "what was prepared could not be put back");
            }
            return Err(stop);
        }
        self.transact(&prepared.work).await
    }

    /// One transaction, whatever comes of it written down.
    ///
    /// # Errors
    /// When not everything stands as it must afterwards.
    pub async fn transact(&self, work: &Work) -> Result<(), Stop> {
        let committed = self.commit(&work.goal).await?;
        let reboot = self.engine.packages.reboot(&work.transaction);
        let installed = self.installed().await.map_err(Stop::failed)?;
        let missed = work.plan.missed(&installed);
        self.change(|run| {
            run.process = None;
            run.exit = committed.finished.exit;
            run.transaction_ms = u64::try_from(committed.duration.as_millis()).unwrap_or(u64::MAX);
            run.reboot = reboot;
            run.percent = 85;
            run.after = Some(installed.settled.digest());
            for item in &mut run.items {
                let id = PackageId::new(&item.name, &item.arch);
                let reached = installed.settled.version(&id).unwrap_or_default() == item.to;
                item.state = if reached { ItemState::Done } else { ItemState::Failed };
            }
        })?;
        // Whatever came of it, what the site prepared is put back; a failed transaction is the better reason.
        let put_back = self.hooks(work, Moment::After).await?;
        judge(&committed, &missed)?;
        put_back.map_err(Stop::failed)
    }

    /// Runs the site's own programs.
    ///
    /// # Errors
    /// When the agent broke; what the programs say is in the answer.
    pub async fn hooks(&self, work: &Work, moment: Moment) -> Result<Result<(), HookError>, Stop> {
        let Some(folder) = self.engine.hooks.clone() else { return Ok(Ok(())) };
        let told = Told { order: work.digest, action: Some(work.action) };
        // What is put back has time to be, also when the run's own is over.
        let after = || self.deadline.max(Instant::now() + settle(self.lifetime));
        let deadline = if moment == Moment::Before { self.deadline } else { after() };
        blocking(move || hooks::run(&folder, moment, &told, deadline)).await
    }

    async fn commit(&self, goal: &Goal) -> Result<Committed, Stop> {
        let (packages, goal, deadline) = (Arc::clone(&self.engine.packages), goal.clone(), self.deadline);
        let (record, order, run) = (Arc::clone(&self.engine.record), self.order, self.run);
        let time = settle(self.lifetime);
        let done = blocking(move || {
            let committed = packages.commit(&goal, deadline, &mut |mark| {
                // Without the mark the next agent could not end an orphan; that is no reason to stop this one half-way.
                if let Err(error) = record.change_run(order, run, |run| run.process = Some(mark)) {
                    tracing::error!(%error, "the package manager's process could not be journaled");
                }
            })?;
            // What failed by itself would fail again; what ran out of time or was killed is finished.
            let finished = &committed.finished;
            let again = (finished.ended == Ended::ByTimeout || finished.exit.is_none()).then_some(&goal);
            if !committed.finished.succeeded()
                && let Err(error) = finish(&*packages, again, time)
            {
                tracing::warn!(%error, "packages were left half-way");
            }
            Ok::<_, PackageError>(committed)
        });
        done.await?.map_err(Stop::failed)
    }

    /// Repeats the order's production checks.
    ///
    /// # Errors
    /// When one fails.
    pub async fn check(&self, order: &Order, action: Action) -> Result<Checks, Stop> {
        match action {
            Action::Apply => self.progress(RunState::Validating, 90, "production checks")?,
            Action::Rollback => self.progress(RunState::RollingBack, 90, "production checks")?,
        }
        self.run_checks(order).await
    }

    /// Runs an order's production checks on the host as it is.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run_checks(&self, order: &Order) -> Result<Checks, Stop> {
        let checks = order.production.clone();
        let Some(evaluate) = self.engine.evaluate else { return Ok(Checks::default()) };
        let (target, deadline) = (self.engine.target.clone(), self.deadline);
        let verdict = blocking(move || Ok::<_, Stop>(production::run(&checks, &target, deadline, evaluate))).await??;
        match verdict.first_failure {
            None => Ok(verdict.checks),
            Some(reason) => Err(Stop::Failed { reason, checks: verdict.checks }),
        }
    }
}

fn judge(committed: &Committed, missed: &[String]) -> Result<(), Stop> {
    if committed.finished.ended == Ended::ByTimeout {
        let said = committed.finished.last_words();
        let said = if said.is_empty() { said } else { format!("; it said last: {said}") };
        let reason = format!("its lifetime ended while the package manager worked; {}{said}", list(missed));
        return Err(Stop::Aborted(reason));
    }
    if !committed.finished.succeeded() {
        return Err(Stop::failed(format!("the package manager failed: {}", committed.finished.last_words())));
    }
    if !committed.failed_scripts.is_empty() {
        return Err(Stop::failed(format!("scripts of packages failed: {}", committed.failed_scripts.join("; "))));
    }
    if missed.is_empty() { Ok(()) } else { Err(Stop::failed(list(missed))) }
}

fn list(missed: &[String]) -> String {
    let shown = missed.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    if missed.is_empty() {
        "every package is where it should be".into()
    } else {
        format!("not where they should be: {shown}")
    }
}
