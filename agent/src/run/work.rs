//! The second part of a run: the host is looked at, the permission is used up, the change is made by the package manager or by the
//! order's script, and the order's checks are repeated.

use std::{pin::pin, sync::Arc, time::Instant};

use patchlab_check::target::Ended;
use patchlab_protocol::{
    Audience, Digest, ItemState, Refusal, Refused,
    document::{Action, Checks, Order, Release, RunState, Waiver},
    inventory::{PackageId, Transaction},
    limits::settle,
};

use super::{
    Turn,
    attempt::{Attempt, Course, Stop, blocking, unfit},
    ready::{Fetched, Ready},
};
use crate::{
    boot,
    change::{ChangeError, Goal, Outcome, Plan, Stand, Twice, compare, difference, parts_of_way_back},
    hooks::{self, HookError, Moment, Told},
    packages::Installed,
    preflight::{self, Kernel, Needs},
    process, production,
    record::{RecordError, Undecided},
    state::{self, Event, Run},
    target::Watched,
    transition,
    updaters::Paused,
};

/// What is to be changed, and for which order.
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
    /// What the simulation said that it would do.
    pub transaction: Transaction,
}

impl Work {
    /// What the site's programs are told of it.
    pub fn told(&self) -> Told {
        Told { order: self.digest, action: Some(self.action) }
    }
}

/// All that must be settled before anything may be changed.
pub struct Prepared {
    /// What is to be done.
    pub work: Work,
    fetched: Fetched,
    /// To the run's end.
    _paused: Paused,
}

impl<'e> Attempt<'e> {
    /// What would be changed, while a run that is ready still has to wait: a difference is told then, and not
    /// in the window.
    ///
    /// # Errors
    /// When it would do something other than what was proven.
    pub async fn rehearse(&self, ready: &Ready) -> Result<(), Stop> {
        self.progress(RunState::Verifying, 41, "simulation")?;
        let installed = self.installed().await.map_err(unfit)?;
        let transaction = self.simulate(&ready.goal).await?;
        Ok(compare(&transaction, &ready.plan, ready.foreseen.release(), self.audience(), &installed)?)
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
        let transaction = self.simulate(&goal).await?;
        compare(&transaction, &plan, foreseen.release(), self.audience(), &installed)?;
        self.fit(&transaction, unpacked, foreseen.release())?;
        self.fit_to_boot(foreseen.action(), &transaction, foreseen.release()).await?;
        self.fit_to_reboot(foreseen.order(), foreseen.action()).await?;
        self.fit_to_fall_back(foreseen.order(), foreseen.action(), &transaction).await?;
        self.progress(RunState::Preflight, 44, "installed files")?;
        self.note_broken_files(&transaction, &installed).await;
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
        match waited.then(|| ready.goal.altered()).flatten() {
            Some(file) => Err(unfit(format!("{} was altered while the run waited: start it again", file.display()))),
            None => Ok(()),
        }
    }

    /// Whether there is room, and power still.
    ///
    /// # Errors
    /// When there is not.
    pub fn fit(&self, transaction: &Transaction, unpacked: u64, release: Option<&Release>) -> Result<(), Stop> {
        let grown = release.map(Release::growth).unwrap_or_default();
        let root = self.engine.target.root();
        let kernels = match Kernel::of(transaction) {
            Kernel::New => boot::places(root).map_err(|error| unfit(format!("look for kernels: {error}")))?,
            Kernel::AsIs => Vec::new(),
        };
        let needs = Needs::of(unpacked, &kernels, &grown);
        let found = preflight::look(root, &needs).map_err(unfit)?;
        preflight::judge(&needs, &found).map_err(unfit)
    }

    /// What going for the goal would change.
    ///
    /// # Errors
    /// When that cannot be said, or the goal cannot be reached.
    pub async fn simulate(&self, goal: &Goal) -> Result<Transaction, Stop> {
        let (packages, goal, deadline) = (Arc::clone(&self.engine.packages), goal.clone(), self.deadline);
        let mut started = self.engine.marker(self.order, self.run);
        let simulated = blocking(move || goal.simulate(&*packages, deadline, &mut started)).await?;
        self.forget_process()?;
        simulated.map_err(|error| match error {
            ChangeError::Refused(refused) => refused.into(),
            error => unfit(error),
        })
    }

    /// What was started for the run has ended.
    fn forget_process(&self) -> Result<(), RecordError> {
        if self.engine.record.read(|state| state.run(self.order, self.run).is_some_and(|run| run.process.is_some())) {
            self.change(|run| run.process = None)?;
        }
        Ok(())
    }

    /// Whether all that is needed is on the disk still, as it was verified: what is used up does not come back.
    async fn still_there(&self, work: &Work) -> Result<(), Stop> {
        let (staged, goal, digest) = (self.engine.staged.clone(), work.goal.clone(), work.digest);
        let is_kept = work.action == Action::Apply && work.order.stages_way_back();
        let way_back = if is_kept { parts_of_way_back(&work.order) } else { Vec::new() };
        let looked = blocking(move || match goal.altered() {
            Some(file) => Err(format!("{} was altered, or is gone: start the run again", file.display())),
            None if is_kept && staged.order(&digest).is_none() => {
                Err("the staged order is not there any more: start the run again".to_owned())
            }
            None => match way_back.iter().find(|part| staged.file(&digest, &part.payload().sha256).is_none()) {
                Some(part) => Err(format!("{} is not staged any more: start the run again", part.name())),
                None => Ok(()),
            },
        });
        looked.await?.map_err(unfit)
    }

    /// The point of no return: the permission is used up and the run begins, in one entry. Permission is asked for once more in the same
    /// moment: fetching may have taken hours, and meanwhile the activation may have expired, a document may have been revoked, or
    /// the run have been aborted. After it, aborts are turned away.
    fn begin(&self, prepared: &Prepared) -> Result<(), Stop> {
        let (order, run, work) = (self.order, self.run, &prepared.work);
        let (working, phase) = match work.action {
            Action::Apply => (RunState::Applying, work.goal.phase().to_owned()),
            Action::Rollback => (RunState::RollingBack, format!("{}, way back", work.goal.phase())),
        };
        let mut waived = Vec::new();
        let entered = self.engine.record.decide(|state| {
            let found = state.run(order, run).ok_or(RecordError::Gone { order, run })?;
            if found.abort_asked.is_some() {
                return Err(Stop::Aborted("aborted by the manager".into()));
            }
            let authorized = self.authorize(&prepared.fetched, state)?;
            waived = authorized.release().map(waivers).unwrap_or_default();
            let row = Run {
                state: transition::next(found.state, working).map_err(RecordError::from)?,
                percent: 45,
                phase: phase.clone(),
                goal: Some(work.goal.clone()),
                process: None,
                on_failure: authorized.on_failure(),
                ..found.clone()
            };
            Ok(Event::Begun {
                activation: authorized.activation(),
                applied: (authorized.action() == Action::Apply).then(|| authorized.digest()),
                floor: authorized.newest_time(),
                order,
                run,
                row: Box::new(row),
            })
        });
        entered.map_err(|error| match error {
            Undecided::No(stop) => stop,
            Undecided::Journal(error) => Stop::Record(error.into()),
        })?;
        tracing::info!(order, run, state = working.name(), phase, "run");
        for waiver in waived {
            tracing::warn!(order, run, %waiver, "the lab did not pass this order: it is released by a waiver");
        }
        Ok(())
    }

    /// The change is made.
    ///
    /// # Errors
    /// When the run does not go on to its checks.
    pub async fn act(&self, prepared: &Prepared) -> Result<(), Stop> {
        let work = &prepared.work;
        self.prepare_site(work).await?;
        if let Err(stop) = self.begin_prepared(prepared).await {
            self.put_back(work.told()).await;
            return Err(stop);
        }
        self.transact(work).await
    }

    async fn begin_prepared(&self, prepared: &Prepared) -> Result<(), Stop> {
        self.pin(&prepared.work).await?;
        self.still_there(&prepared.work).await?;
        self.as_foreseen(&prepared.work).await?;
        self.begin(prepared)
    }

    /// Whether the package manager would do still what it said it would: the site's programs had their time, and others may have changed
    /// packages meanwhile.
    async fn as_foreseen(&self, work: &Work) -> Result<(), Stop> {
        let installed = self.installed().await.map_err(unfit)?;
        let now = installed.settled.digest();
        let row = self.engine.record.read(|state| state.run(self.order, self.run).cloned());
        if row.is_some_and(|row| row.before == Some(now)) && installed.unsettled.packages().next().is_none() {
            return Ok(());
        }
        let transaction = self.simulate(&work.goal).await?;
        if transaction != work.transaction {
            let difference = difference(&transaction.lines(), &work.transaction.lines());
            let reason = format!("packages changed between the simulation and the work: now {difference}");
            return Err(Refused::new(Refusal::TransactionDiffers, reason).into());
        }
        self.change(|run| run.before = Some(now))?;
        Ok(())
    }

    /// Runs the site's programs after the work that is not done; why it is not is the better reason.
    pub async fn put_back(&self, told: Told) {
        match self.hooks(told, Moment::After).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what was prepared could not be put back"),
            Err(error) => tracing::warn!(%error, "what was prepared could not be put back"),
        }
    }

    /// Runs what the site has before the work; an abort ends it. What was prepared when it stops is put back.
    ///
    /// # Errors
    /// When a program refuses, or the run is aborted.
    pub async fn prepare_site(&self, work: &Work) -> Result<(), Stop> {
        self.progress(RunState::Preflight, 44, "the site's own programs")?;
        let stop = match self.hooks_before(work).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if error.site == hooks::Site::Untouched => return Err(unfit(error)),
            Ok(Err(error)) => unfit(error),
            Err(stop) => stop,
        };
        self.put_back(work.told()).await;
        Err(stop)
    }

    async fn hooks_before(&self, work: &Work) -> Result<Result<(), HookError>, Stop> {
        let mut prepared = pin!(self.hooks(work.told(), Moment::Before));
        let stop = tokio::select! {
            biased;
            done = &mut prepared => return done,
            stop = self.aborted() => stop,
        };
        let mut changes = self.engine.record.subscribe();
        loop {
            changes.borrow_and_update();
            let row = self.engine.record.read(|state| state.run(self.order, self.run).cloned());
            if let Some(started) = row.and_then(|row| row.process) {
                // It must not go on beside what puts it back.
                blocking(move || process::end_orphan(&started)).await?.map_err(unfit)?;
            }
            tokio::select! {
                biased;
                ended = &mut prepared => {
                    drop(ended?);
                    return Err(stop);
                }
                _ = changes.changed() => {}
            }
        }
    }

    /// One transaction, whatever comes of it written down; whatever that is, what the site prepared is put back.
    ///
    /// # Errors
    /// When not everything stands as it must afterwards.
    pub async fn transact(&self, work: &Work) -> Result<(), Stop> {
        match self.go_for(work).await {
            Ok(()) => self.hooks(work.told(), Moment::After).await?.map_err(Stop::failed),
            Err(stop) => {
                self.put_back(work.told()).await;
                Err(stop)
            }
        }
    }

    async fn go_for(&self, work: &Work) -> Result<(), Stop> {
        let mut done = self.once(work).await?;
        let duration = done.outcome.committed.duration;
        let mut judged = judge(work, &done);
        if judged.is_ok() && self.is_done_twice(work) {
            let state = if work.action == Action::Apply { RunState::Applying } else { RunState::RollingBack };
            self.progress(state, 70, "again")?;
            done = self.once(work).await?;
            judged = judge(work, &done).map_err(not_idempotent);
        }
        self.change(|run| {
            run.process = None;
            run.exit = done.outcome.committed.finished.exit;
            run.transaction_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            run.reboot = work.goal.reboot(&*self.engine.packages, &work.transaction);
            run.percent = 85;
            run.after = Some(done.after);
            for item in &mut run.items {
                item.state = if done.stand.has(item) { ItemState::Done } else { ItemState::Failed };
            }
        })?;
        judged
    }

    /// A machine of the lab does twice what a host may do twice, so that this is proven, too.
    fn is_done_twice(&self, work: &Work) -> bool {
        self.engine.trust.root().audience == Audience::Lab && work.goal.twice() == Twice::Proven
    }

    async fn once(&self, work: &Work) -> Result<Done, Stop> {
        let before = self.installed().await.map_err(Stop::failed)?.all();
        let outcome = self.commit(&work.goal).await?;
        let installed = self.installed().await.map_err(Stop::failed)?;
        let after = installed.settled.digest();
        // A script may change packages as it likes: what it does has no transaction.
        let beside = match &work.goal {
            Goal::Packages(_) => beside(&work.transaction, &before.changes_to(&installed.all(), installed.system)),
            Goal::Script(_) => Vec::new(),
        };
        Ok(Done { stand: work.plan.stand(installed, &outcome), outcome, after, beside })
    }

    /// Runs the site's own programs.
    ///
    /// # Errors
    /// When the agent broke; what the programs say is in the answer.
    pub async fn hooks(&self, told: Told, moment: Moment) -> Result<Result<(), HookError>, Stop> {
        let Some(folder) = self.engine.hooks.clone() else { return Ok(Ok(())) };
        // What is put back has time to be, also when the run's own is over.
        let after = || self.deadline.max(Instant::now() + settle(self.lifetime));
        let deadline = if moment == Moment::Before { self.deadline } else { after() };
        let mut started = self.engine.marker(self.order, self.run);
        let ran = blocking(move || hooks::run(&folder, moment, &told, deadline, &mut started)).await;
        self.forget_process()?;
        ran
    }

    async fn commit(&self, goal: &Goal) -> Result<Outcome, Stop> {
        let (packages, goal, deadline) = (Arc::clone(&self.engine.packages), goal.clone(), self.deadline);
        let (time, mut started) = (settle(self.lifetime), self.engine.marker(self.order, self.run));
        let done = blocking(move || goal.commit(&*packages, deadline, time, &mut started));
        done.await?.map_err(Stop::failed)
    }

    /// Looks at the files of what was changed, and repeats the order's production checks.
    ///
    /// # Errors
    /// When a file is not what was shipped, or a check fails.
    pub async fn check(&self, order: &Order, action: Action) -> Result<Checks, Stop> {
        let state = match action {
            Action::Apply => RunState::Validating,
            Action::Rollback => RunState::RollingBack,
        };
        self.progress(state, 88, "installed files")?;
        self.check_files().await?;
        self.progress(state, 90, "production checks")?;
        self.run_checks(order).await
    }

    /// Runs an order's production checks on the host as it is.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run_checks(&self, order: &Order) -> Result<Checks, Stop> {
        let checks = order.production.clone();
        let Some(evaluate) = self.engine.evaluate else { return Ok(Checks::default()) };
        let target = Watched::new(self.engine.target.clone(), self.engine.marker(self.order, self.run));
        let deadline = self.deadline;
        let verdict = blocking(move || Ok::<_, Stop>(production::run(&checks, &target, deadline, evaluate))).await??;
        match verdict.first_failure {
            None => Ok(verdict.checks),
            Some(reason) => Err(Stop::Failed { reason, checks: verdict.checks }),
        }
    }
}

/// What was done, and where the host stands.
struct Done {
    outcome: Outcome,
    stand: Stand,
    /// Digest of the package list.
    after: Digest,
    /// What else changed, as lines of a transaction. A package manager that waits for its own lock plans anew when it has it.
    beside: Vec<String>,
}

/// The lines of what was done that are about packages which the simulation does not name.
fn beside(foreseen: &Transaction, done: &Transaction) -> Vec<String> {
    let is_named = |id: &PackageId| foreseen.changes().iter().any(|change| change.id.base_name() == id.base_name());
    let other = done.changes().iter().filter(|change| !is_named(&change.id)).cloned();
    Transaction::new(done.system(), other).lines()
}

/// What somebody answers for that the lab found, and why.
fn waivers(release: &Release) -> Vec<String> {
    let said = release.proof.waivers.iter().filter_map(|waiver| waiver.statement::<Waiver>().ok());
    said.map(|said| format!("{}: {}", said.predicate, said.predicate.reason)).collect()
}

fn judge(work: &Work, done: &Done) -> Result<(), Stop> {
    let (committed, worker, stands) = (&done.outcome.committed, work.goal.worker(), done.stand.told());
    let said = committed.finished.last_words();
    if committed.finished.ended == Ended::ByTimeout {
        let said = if said.is_empty() { said } else { format!("; it said last: {said}") };
        return Err(Stop::Aborted(format!("its lifetime ended while {worker} worked; {stands}{said}")));
    }
    if !committed.finished.succeeded() {
        return Err(Stop::failed(match &done.stand {
            Stand::Packages(..) => format!("{worker} failed: {said}"),
            Stand::Script(..) => {
                let exit = committed.finished.exit.map_or_else(|| "killed".to_owned(), |exit| format!("exit {exit}"));
                let said = if said.is_empty() { "it said nothing".to_owned() } else { format!("it said: {said}") };
                format!("{worker} failed ({exit}); {stands}; {said}")
            }
        }));
    }
    if !committed.failed_scripts.is_empty() {
        return Err(Stop::failed(format!("scripts of packages failed: {}", committed.failed_scripts.join("; "))));
    }
    if let Some(missed) = done.stand.missed() {
        return Err(Stop::failed(missed));
    }
    match done.beside.as_slice() {
        [] => Ok(()),
        beside => {
            let shown = beside.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
            Err(Stop::failed(format!("more was changed than what was simulated: {shown}")))
        }
    }
}

/// A script that a host could not run again after it was interrupted.
fn not_idempotent(stop: Stop) -> Stop {
    let reason =
        |reason: String| format!("it is not idempotent: run again on a host that it had brought there, {reason}");
    match stop {
        Stop::Failed { reason: why, checks } => Stop::Failed { reason: reason(why), checks },
        Stop::Aborted(why) => Stop::Aborted(reason(why)),
        other => other,
    }
}
