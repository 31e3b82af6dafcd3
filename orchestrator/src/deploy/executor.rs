//! The executor: takes the hosts of an activation one after the other, in an order that depends on order and host (so that no host
//! is always first), and stops at the first that does not end as it should.
//!
//! The hosts of an activation with a window are all told ahead of it, so that they need nobody when it opens; when the change fails on
//! one, those that have not begun are cancelled. Until the window opens nobody is asked anything.
//!
//! Idempotent by (order, host, run index), and journaled: every step is in the store before it is taken. A server that was killed
//! finds deployments that have not ended and takes them up again; a run that is under way is found on its host by its index.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Refusal, Refused,
    document::{Action, Release, RunResult, RunState},
};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{
    manager::{Manager, ManagerError},
    offers::{OfferError, Offers},
    result::{self, Expected, ResultError},
    row::{self, DeployError, Observer, Progress, Row, RunReport},
};
use crate::{
    audit::Event,
    gate,
    store::{
        Deployment, DeploymentState, Host, OrderState, Run, RunEnd, RunProgress, Stage, Store, StoreError, Verified,
    },
    window::{Window, measured},
};

/// Longest duration of a run on a host, told to the host with the row.
pub(super) const LIFETIME: Duration = Duration::from_secs(1800);

/// What the executor works with.
#[derive(Debug, Clone)]
pub struct Executor {
    /// The store.
    pub store: Arc<Store>,
    /// What hosts are to believe before they are told an order, and the way to them.
    pub offers: Offers,
    /// Every change of a deployment is told here: the number only counts.
    pub changes: watch::Sender<u64>,
}

/// A host did not end as it should, for a reason that is the executor's.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecuteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error(transparent)]
    Credentials(#[from] super::credentials::CredentialsError),
    #[error("{0}")]
    Result(#[from] ResultError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{0}")]
    Snapshot(String),
}

impl From<OfferError> for ExecuteError {
    fn from(error: OfferError) -> Self {
        match error {
            OfferError::Store(error) => Self::Store(error),
            OfferError::Deploy(error) => Self::Deploy(error),
            OfferError::Credentials(error) => Self::Credentials(error),
        }
    }
}

/// The hosts of an activation in the order in which they are taken.
pub fn sequence(order: &Digest, hosts: &[String]) -> Vec<String> {
    let mut hosts = hosts.to_vec();
    hosts.sort_by_key(|host| Digest::of([order.as_bytes().as_slice(), host.as_bytes()].concat()));
    hosts.dedup();
    hosts
}

/// Whether a run ended as its action wants.
pub fn ended_well(action: Action, state: RunState) -> bool {
    match action {
        Action::Apply => state == RunState::Succeeded,
        Action::Rollback => state == RunState::RolledBack,
    }
}

/// Whether a host is past the point up to which a run can be cancelled: its package manager works, or has.
pub fn has_begun(state: RunState) -> bool {
    use RunState::{Applying, Failed, Rebooting, RollbackFailed, RolledBack, RollingBack, Succeeded, Validating};
    matches!(state, Applying | Rebooting | Validating | RollingBack | Succeeded | Failed | RolledBack | RollbackFailed)
}

/// How a run did not end as it should: its last state on the host, and a sentence.
type Failure = (Option<RunState>, String);

/// The failure of a run that ended; none of one that ended as its action wants.
fn failure(action: Action, ended: &Run) -> Option<Failure> {
    if ended.verified == Verified::Yes && ended.state.is_some_and(|state| ended_well(action, state)) {
        return None;
    }
    let state = ended.state.map_or(ended.stage.name(), RunState::name);
    Some((ended.state, format!("{}: {state}: {}", ended.host, ended.reason)))
}

/// Whether nobody else may begin after a run ended so: the change failed there, or nobody knows. Who refuses changed nothing.
fn holds_up_others(ended: &Run) -> bool {
    ended.stage == Stage::Lost || ended.state.is_some_and(has_begun)
}

/// The state an order is in after a deployment, from what its hosts have now and how the deployment went.
pub fn settled(action: Action, carried: usize, ended: DeploymentState, way_back_failed: WayBack) -> OrderState {
    match (action, ended, carried) {
        _ if way_back_failed == WayBack::Failed => OrderState::RollbackFailed,
        (Action::Apply, DeploymentState::Done, _) => OrderState::Deployed,
        (Action::Apply, _, 0) => OrderState::Approved,
        (Action::Rollback, _, 0) => OrderState::RolledBack,
        (Action::Apply | Action::Rollback, _, _) => OrderState::Partly,
    }
}

/// Whether a host could not be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayBack {
    /// Every host that was to come back did, or was never tried.
    Open,
    /// One is neither here nor there.
    Failed,
}

impl Executor {
    /// Takes up every deployment and every preparation that has not ended: after a start of the server. Says how many deployments.
    pub fn resume(&self) -> Result<usize, StoreError> {
        let running = self.store.deployments_running()?;
        let count = running.len();
        for deployment in running {
            tracing::info!(order = deployment.order.short(), "taking a deployment up again");
            self.spawn(deployment);
        }
        self.prepare(self.store.preparations_open()?);
        Ok(count)
    }

    /// Carries a deployment out in the background.
    pub fn spawn(&self, deployment: Deployment) {
        let executor = self.clone();
        tokio::spawn(async move {
            if let Err(error) = executor.carry_out(&deployment).await {
                tracing::error!(%error, order = deployment.order.short(), "deployment cannot go on");
            }
            executor.told();
        });
    }

    async fn carry_out(&self, deployment: &Deployment) -> Result<(), StoreError> {
        let id = self.store.order(&deployment.order.to_string())?.id;
        let failure = match deployment.window {
            None => self.one_by_one(deployment).await?,
            Some(_) => self.together(deployment).await?,
        };
        let carried = self.store.hosts()?.iter().filter(|host| host.current_order == Some(deployment.order)).count();
        let way_back = match &failure {
            Some((Some(RunState::RollbackFailed), _)) => WayBack::Failed,
            _ => WayBack::Open,
        };
        let (state, reason) = match failure {
            None => (DeploymentState::Done, String::new()),
            Some((_, reason)) => (DeploymentState::Stopped, reason),
        };
        let next = settled(deployment.action, carried, state, way_back);
        let event = Event::new(
            "deployment-ended",
            id,
            json!({ "activation": deployment.activation, "state": state, "order": next, "reason": reason }),
        );
        self.store.end_deployment(deployment, state, next, &reason, &event)
    }

    /// Hosts one after the other, up to the first that does not end as it should.
    async fn one_by_one(&self, deployment: &Deployment) -> Result<Option<Failure>, StoreError> {
        for run in self.store.runs_of(&deployment.activation)? {
            if run.stage == Stage::Planned
                && let Err(refused) = self.not_revoked(deployment)?
            {
                return Ok(Some((None, format!("{}: {refused}", run.host))));
            }
            let ended = if run.stage.is_final() { run } else { self.one(deployment, run).await? };
            if let Some(failure) = failure(deployment.action, &ended) {
                return Ok(Some(failure));
            }
        }
        Ok(None)
    }

    /// All hosts ahead of their window. The first failure is told; one that holds up others has those cancelled that have not begun.
    async fn together(&self, deployment: &Deployment) -> Result<Option<Failure>, StoreError> {
        let mut hosts = JoinSet::new();
        for run in self.store.runs_of(&deployment.activation)? {
            let (executor, deployment) = (self.clone(), deployment.clone());
            hosts.spawn(
                async move { if run.stage.is_final() { Ok(run) } else { executor.one(&deployment, run).await } },
            );
        }
        let mut first = None;
        while let Some(joined) = hosts.join_next().await {
            let ended = match joined {
                Ok(ended) => ended?,
                Err(error) => {
                    first.get_or_insert((None, format!("a part of the server broke: {error}")));
                    continue;
                }
            };
            let Some(failure) = failure(deployment.action, &ended) else { continue };
            if holds_up_others(&ended) {
                self.cancel_rest(deployment, &failure.1)?;
            }
            first.get_or_insert(failure);
        }
        Ok(first)
    }

    /// Cancels the runs of a deployment that have not begun.
    fn cancel_rest(&self, deployment: &Deployment, why: &str) -> Result<(), StoreError> {
        for run in self.store.runs_of(&deployment.activation)? {
            if !(run.stage.is_final() || run.stage == Stage::Cancelling || run.state.is_some_and(has_begun)) {
                self.cancel(&run, why, "server")?;
            }
        }
        Ok(())
    }

    /// Has a run end that has not begun. Journaled, and told to the host as soon as it answers.
    ///
    /// # Errors
    /// When the store cannot keep it.
    pub fn cancel(&self, run: &Run, why: &str, actor: &str) -> Result<Run, StoreError> {
        let detail = json!({ "run": run.run, "order": run.order, "activation": run.activation, "reason": why });
        let event = Event::new("run-cancelled", &run.host, detail).by(actor);
        let cancelled = self.store.cancel_run(run, why, &event)?;
        self.offers.bells.ring(&run.host);
        self.told();
        Ok(cancelled)
    }

    /// Whether none of its documents was revoked since it was activated; a host that was not told yet is then left alone.
    fn not_revoked(&self, deployment: &Deployment) -> Result<Result<(), Refused>, StoreError> {
        let order = (deployment.action == Action::Apply).then_some(deployment.order);
        let documents = [
            ("order", order),
            ("release", deployment.release),
            ("approval", deployment.approval),
            ("activation", Some(deployment.activation)),
        ];
        let waivers = deployment.release.map(|release| self.store.waivers_of_release(&release)).transpose()?;
        let waivers = waivers.iter().flatten().map(|waiver| ("waiver", Some(waiver.digest)));
        let documents = documents.into_iter().chain(waivers);
        Ok(gate::not_revoked(&self.offers.authority.standing().revoked(), documents))
    }

    /// One host. Only the store's own failure is an error: whatever the host does, the run has an end.
    async fn one(&self, deployment: &Deployment, run: Run) -> Result<Run, StoreError> {
        let followed = tokio::select! {
            followed = self.follow(deployment, &run) => followed,
            () = self.reverting(&run) => Err(DeployError::Reverted.into()),
        };
        if let Err(error) = followed {
            let error = match error {
                ExecuteError::Store(error) => return Err(error),
                other => other,
            };
            let stage = match &error {
                ExecuteError::Deploy(DeployError::Lost { .. } | DeployError::Manager(ManagerError::Silent { .. })) => {
                    Stage::Lost
                }
                _ => Stage::Finished,
            };
            let there = self.store.run(&run.order, &run.host, run.run)?;
            let refusal = match &error {
                ExecuteError::Refused(refused) => Some(refused.refusal),
                _ => there.refusal,
            };
            let end = RunEnd {
                progress: RunProgress {
                    stage,
                    state: there.state,
                    phase: there.phase,
                    percent: u32::try_from(there.percent).unwrap_or(0),
                    refusal,
                    reason: error.to_string(),
                },
                report: String::new(),
                signed: None,
                verified: Verified::No,
                heads: None,
                current_order: None,
            };
            let event = Event::new(
                "run-failed",
                &run.host,
                json!({ "run": run.run, "order": run.order, "reason": error.to_string() }),
            );
            self.store.end_run(&run, &end, &event)?;
        }
        let ended = self.store.run(&run.order, &run.host, run.run)?;
        self.snapshot_after(&ended)?;
        self.told();
        Ok(ended)
    }

    async fn follow(&self, deployment: &Deployment, run: &Run) -> Result<(), ExecuteError> {
        let host = self.store.host(&run.host)?;
        // A run that was never begun has no phase.
        if run.stage == Stage::Cancelling && run.phase.is_empty() {
            return Err(DeployError::Cancelled.into());
        }
        let about_to = RunProgress {
            stage: Stage::Pushing,
            state: run.state,
            phase: "pushing".into(),
            percent: 0,
            refusal: None,
            reason: String::new(),
        };
        let detail = json!({ "run": run.run, "order": run.order, "activation": run.activation });
        self.store.journal_run(run, &about_to, &Event::new("run-pushing", &run.host, detail))?;
        self.told();

        let manager = self.offers.manager(&host).await?;
        let row = self.row(deployment, &host)?;
        let mut watcher = Watcher { executor: self, run, bell: self.offers.bells.of(&run.host) };
        // A run that is under way is followed, and its host waited for as long as it may take; one that is not is not begun with what
        // was revoked meanwhile.
        match self.reach(&manager, &host, run, &row, &mut watcher).await {
            Err(ExecuteError::Deploy(DeployError::Manager(error)))
                if error.is_passing() && matches!(run.stage, Stage::Running | Stage::Cancelling) => {}
            other => other?,
        }
        if let Err(refused) = self.not_revoked(deployment)?.and_then(|()| in_time(&row, &run.host))
            && run.stage != Stage::Running
            && row::progress(&manager, row.index, run.run).await?.is_none()
        {
            return Err(refused.into());
        }
        if deployment.action == Action::Apply
            && let Some(machine) = self.store.machine(&run.host)?
            && row::progress(&manager, row.index, run.run).await?.is_none()
        {
            when_it_opens(&row, &mut watcher).await?;
            self.snapshot_before(run, machine, &manager).await?;
        }
        let report = row::push_and_run(&manager, &row, run.run, &mut watcher).await?;
        self.end(run, deployment, &host, &manager, report).await
    }

    /// Meets a host, waiting for one that is away as long as it would be waited for at the push, or as long as its window is open:
    /// nothing is told to a host that was not first brought to the newest revocation list.
    async fn reach(
        &self,
        manager: &dyn Manager,
        host: &Host,
        run: &Run,
        row: &Row,
        watcher: &mut Watcher<'_>,
    ) -> Result<(), ExecuteError> {
        let until = tokio::time::Instant::now() + row::reach(row);
        loop {
            let error = match self.meet(manager, host).await {
                Err(ExecuteError::Deploy(DeployError::Manager(error))) if error.is_passing() => error,
                other => return other,
            };
            if run.stage == Stage::Planned && watcher.is_cancelled() {
                return Err(DeployError::Cancelled.into());
            }
            if tokio::time::Instant::now() >= until {
                // What was never told cannot have begun.
                let missed = in_time(row, &run.host).err().filter(|_| run.stage == Stage::Planned);
                return Err(missed.map_or_else(|| DeployError::Manager(error).into(), ExecuteError::Refused));
            }
            let _ = tokio::time::timeout(row::POLL, watcher.bell.notified()).await;
        }
    }

    /// Makes sure that this is the host that was enrolled, brings it to the newest root and revocation list, and tells it the newest
    /// audit head.
    pub(super) async fn meet(&self, manager: &dyn Manager, host: &Host) -> Result<(), ExecuteError> {
        let said = row::scalars(manager).await?;
        if said.host != host.enrolled.name {
            return Err(DeployError::NotTheHost(format!("it calls itself {:?}", said.host)).into());
        }
        if !self.offers.authority.standing().roots().any(|root| said.root == Some(root.digest)) {
            return Err(DeployError::NotTheHost("its root document is none of this server's".into()).into());
        }
        self.store.seen(&host.enrolled.name, &said.class, Timestamp::now())?;
        match self.offers.bring(host, manager).await {
            // What a host does not take it does not obey either: it decides for itself.
            Ok(_) | Err(OfferError::Deploy(DeployError::Manager(ManagerError::Refused { .. }))) => {}
            Err(error) => return Err(error.into()),
        }
        let head = self.store.audit_head()?;
        Ok(row::put_audit_head(manager, &head).await?)
    }

    fn row(&self, deployment: &Deployment, host: &Host) -> Result<Row, ExecuteError> {
        // What is begun later than that would not end in the window, by what the lab measured.
        let window = match deployment.window {
            None => None,
            Some(Window { opens, closes }) => {
                let release = deployment.release.map(|release| self.store.envelope(&release)).transpose()?;
                let release = release.and_then(|release| release.statement::<Release>().ok()).map(|it| it.predicate);
                let needs = measured(deployment.action, release.as_ref());
                Some(Window { opens, closes: Window { opens, closes }.last_begin(needs) })
            }
        };
        Ok(Row {
            window,
            preparation: None,
            index: self.store.order_row(&host.enrolled.name, &deployment.order)?,
            order: deployment.order,
            release: deployment.release,
            approval: deployment.approval,
            activation: Some(deployment.activation),
            uri: host.enrolled.payload_uri.clone(),
            lifetime: LIFETIME,
        })
    }

    /// Takes a report in: what counts, what the host has now, and the chain of its results.
    async fn end(
        &self,
        run: &Run,
        deployment: &Deployment,
        host: &Host,
        manager: &dyn Manager,
        report: RunReport,
    ) -> Result<(), ExecuteError> {
        let expected = Expected {
            host: &host.enrolled.name,
            key: &host.enrolled.public_key,
            order: &run.order,
            run: run.run,
            state: report.state,
        };
        let checked = match result::verify(report.signed.as_ref(), &expected) {
            Ok(result) => self.chain(host, manager, &result).await?.map(|()| result),
            Err(error) => Err(error),
        };
        let (verified, reason) = match &checked {
            Ok(_) => (Verified::Yes, said(&report)),
            Err(error) => (Verified::No, error.to_string()),
        };
        let heads = match (&checked, &report.signed) {
            (Ok(result), Some(signed)) => Some((result::digest(signed), result.audit)),
            _ => None,
        };
        let current_order = match (deployment.action, report.state) {
            _ if verified != Verified::Yes => None,
            (Action::Apply, RunState::Succeeded) => Some(Some(run.order)),
            (Action::Rollback, RunState::RolledBack) => Some(None),
            _ => None,
        };
        let detail = json!({
            "run": run.run, "order": run.order, "action": deployment.action, "state": report.state, "refusal": report.refusal,
            "reason": reason, "verified": verified, "result": heads.map(|(head, _)| head), "before": report.before,
            "after": report.after, "duration_ms": report.duration_ms,
        });
        let end = RunEnd {
            progress: RunProgress {
                stage: Stage::Finished,
                state: Some(report.state),
                phase: String::new(),
                percent: 100,
                refusal: report.refusal,
                reason,
            },
            report: serde_json::to_string(&report).unwrap_or_default(),
            signed: report.signed.map(|signed| (signed.statement, signed.signature)),
            verified,
            heads,
            current_order,
        };
        let event = Event::new("run-ended", &run.host, detail).by(format!("host:{}", run.host));
        Ok(self.store.end_run(run, &end, &event)?)
    }

    /// Whether a result stands in its place in the host's chain. Signed results that this server had no part in (somebody pushed an
    /// order past it) are taken note of.
    pub(super) async fn chain(
        &self,
        host: &Host,
        manager: &dyn Manager,
        newest: &RunResult,
    ) -> Result<Result<(), ResultError>, ExecuteError> {
        if newest.previous == host.result_head {
            return Ok(Ok(()));
        }
        let others = row::results(manager).await?;
        let between =
            match result::bridge(host.result_head, newest, &others, &host.enrolled.name, &host.enrolled.public_key) {
                Ok(between) => between,
                Err(error) => return Ok(Err(error)),
            };
        for result in between {
            self.store.foreign_result(&host.enrolled.name, &result)?;
        }
        Ok(Ok(()))
    }

    pub(super) fn told(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Waits for the window of a host of which a snapshot is taken: what is written to its disks after that is lost when it goes back.
async fn when_it_opens(row: &Row, watcher: &mut Watcher<'_>) -> Result<(), DeployError> {
    let Some(window) = row.window else { return Ok(()) };
    while let Ok(left) = Duration::try_from(window.opens.duration_since(Timestamp::now()))
        && !left.is_zero()
    {
        if watcher.is_cancelled() {
            return Err(DeployError::Cancelled);
        }
        let _ = tokio::time::timeout(left, watcher.bell.notified()).await;
    }
    Ok(())
}

/// Whether there is time left to begin in a row's window.
fn in_time(row: &Row, host: &str) -> Result<(), Refused> {
    match row.window {
        Some(window) if Timestamp::now() > window.closes => {
            let reason =
                format!("{host} was not reached before {}, the last moment to begin in its window", window.closes);
            Err(Refused::new(Refusal::OutsideWindow, reason))
        }
        _ => Ok(()),
    }
}

/// What a report says, in one line.
pub(super) fn said(report: &RunReport) -> String {
    match (report.refusal, report.error.is_empty()) {
        (Some(refusal), _) if report.reason.is_empty() => refusal.to_string(),
        (Some(_), _) => report.reason.clone(),
        (None, false) => report.error.clone(),
        (None, true) => String::new(),
    }
}

/// Writes down how a run goes, and listens for its host's bell.
struct Watcher<'a> {
    executor: &'a Executor,
    run: &'a Run,
    bell: Arc<Notify>,
}

impl Watcher<'_> {
    fn note(&self, progress: &RunProgress) {
        // Progress is for people; the journal entries that matter are made elsewhere and are not ignored.
        if let Err(error) = self.executor.store.note_run(self.run, progress) {
            tracing::warn!(%error, host = self.run.host, "progress not stored");
        }
        self.executor.told();
    }
}

impl Observer for Watcher<'_> {
    fn started(&mut self) {
        self.note(&RunProgress {
            stage: Stage::Running,
            state: None,
            phase: "started".into(),
            percent: 0,
            refusal: None,
            reason: String::new(),
        });
    }

    fn is_cancelled(&mut self) -> bool {
        let run = self.run;
        let there = self.executor.store.run(&run.order, &run.host, run.run);
        there.is_ok_and(|there| there.stage == Stage::Cancelling)
    }

    fn known(&mut self) -> Option<Digest> {
        self.executor.store.host(&self.run.host).ok()?.result_head
    }

    fn goes_on(&mut self) {
        tracing::info!(host = self.run.host, run = self.run.run, "it has begun, and is not cancelled");
    }

    fn moved(&mut self, progress: &Progress) {
        self.note(&RunProgress {
            stage: Stage::Running,
            state: Some(progress.state),
            phase: progress.phase.clone(),
            percent: progress.percent,
            refusal: None,
            reason: String::new(),
        });
    }

    fn hint(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.bell.notified())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_host_is_always_first_and_none_is_taken_twice() {
        let hosts: Vec<String> = (0..8).map(|n| format!("web-{n}")).collect();
        let firsts: std::collections::HashSet<String> =
            (0..64).map(|n| sequence(&Digest::of(format!("order {n}")), &hosts)[0].clone()).collect();
        assert!(firsts.len() > 4, "{firsts:?}");
        let twice = [hosts.clone(), hosts.clone()].concat();
        assert_eq!(sequence(&Digest::of("x"), &twice).len(), 8);
        let mut reversed = hosts.clone();
        reversed.reverse();
        assert_eq!(sequence(&Digest::of("x"), &reversed), sequence(&Digest::of("x"), &hosts));
    }

    #[test]
    fn an_order_settles_by_what_its_hosts_have() {
        use DeploymentState::{Done, Stopped};
        use OrderState::{Approved, Deployed, Partly, RollbackFailed, RolledBack};
        let table = [
            (Action::Apply, 2, Done, WayBack::Open, Deployed),
            (Action::Apply, 1, Stopped, WayBack::Open, Partly),
            (Action::Apply, 0, Stopped, WayBack::Open, Approved),
            (Action::Rollback, 1, Done, WayBack::Open, Partly),
            (Action::Rollback, 0, Done, WayBack::Open, RolledBack),
            (Action::Rollback, 2, Stopped, WayBack::Open, Partly),
            (Action::Rollback, 1, Stopped, WayBack::Failed, RollbackFailed),
        ];
        for (action, carried, ended, way_back, expected) in table {
            assert_eq!(settled(action, carried, ended, way_back), expected, "{action:?} {carried} {ended:?}");
        }
    }
}
