//! The way back that a host walks by itself, because the signed order says so: from files that were staged before the
//! change was made, with nothing from the network.

use std::time::Instant;

use patchlab_protocol::{
    Digest,
    document::{Action, Cause, Checks, OnFailure, Order, RunState},
};

use super::{
    attempt::{Attempt, Stop, blocking},
    work::Work,
};
use crate::{
    change::{Goal, Plan, compare, is_back},
    hooks::{Moment, Site, Told},
    packages::Installed,
    record::RecordError,
    state::{self, Failure, Run},
};

/// The failure after which a run in this row turns back; `None` when it must not, or nothing was changed yet.
fn failure(row: &Run, stop: &Stop) -> Option<Failure> {
    let cause = match row.state {
        RunState::Applying => Cause::Change,
        RunState::Rebooting => Cause::Reboot,
        RunState::Validating => Cause::Checks,
        _ => return None,
    };
    let is_told = row.action == Some(Action::Apply) && row.on_failure == OnFailure::RollBack;
    let reason = match stop {
        Stop::Failed { reason, .. } | Stop::Aborted(reason) if is_told => reason.clone(),
        _ => return None,
    };
    Some(Failure { cause, reason })
}

impl Attempt<'_> {
    /// Turns a run that stopped back, when its order says so: the state is journaled, and the lifetime counted anew.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn turn_back(&mut self, stop: &Stop) -> Result<TurnedBack, RecordError> {
        let row = self.engine.record.read(|state| state.run(self.order, self.run).cloned());
        let Some(failure) = row.and_then(|row| failure(&row, stop)) else { return Ok(TurnedBack::No) };
        tracing::warn!(order = self.order, run = self.run, reason = failure.reason, "rolling back, as the order says");
        self.change(|run| {
            run.state = RunState::RollingBack;
            run.percent = 50;
            "way back, by itself".clone_into(&mut run.phase);
            run.failure = Some(failure);
            run.goal = None;
        })?;
        self.deadline = Instant::now() + self.lifetime;
        Ok(TurnedBack::Yes)
    }

    /// Goes on with a way back that an earlier agent left.
    ///
    /// # Errors
    /// When it cannot be walked.
    pub async fn go_on_back(&self) -> Result<(RunState, Checks), Stop> {
        let digest = self.columns.digest;
        let staged = self.engine.staged.order(&digest).and_then(|order| order.statement::<Order>().ok());
        let order = staged.ok_or_else(|| Stop::failed("the staged order is not there any more"))?.predicate;
        self.name(&order);
        let _paused = self.keep_others_away().await?;
        Ok((RunState::RolledBack, self.walk_back(&order, digest, Site::Untouched).await?))
    }

    /// Brings the replaced versions back, and repeats the checks. The site's programs run before that unless they did; whatever they say,
    /// what failed is not left on the host.
    ///
    /// # Errors
    /// When not everything is as it was before: a person is needed.
    pub async fn walk_back(&self, order: &Order, digest: Digest, site: Site) -> Result<Checks, Stop> {
        let told = Told { order: digest, action: Some(Action::Rollback) };
        let left = match self.left_to_walk(order, digest).await {
            Ok(Some(work)) => Ok(Some(work)),
            nothing => {
                if site == Site::Prepared {
                    self.put_back(told).await;
                }
                nothing
            }
        };
        if let Some(work) = left? {
            if site == Site::Untouched
                && let Err(error) = self.hooks(told, Moment::Before).await?
            {
                tracing::warn!(%error, "rolling back all the same: the change failed");
            }
            self.change(|run| {
                run.goal = Some(work.goal.clone());
                run.items = state::items(&work.transaction);
            })?;
            self.transact(&work).await?;
        }
        self.check(order, Action::Rollback).await
    }

    /// What is to be done until everything is as it was before; nothing when it is.
    async fn left_to_walk(&self, order: &Order, digest: Digest) -> Result<Option<Work>, Stop> {
        let installed = self.installed().await.map_err(Stop::failed)?;
        match self.is_back(order, digest, &installed).await? {
            true => Ok(None),
            false => self.work_back(order, digest, &installed).await.map(Some).map_err(Stop::failed),
        }
    }

    /// Whether everything is as it was before already.
    async fn is_back(&self, order: &Order, digest: Digest, installed: &Installed) -> Result<bool, Stop> {
        // Of packages, a plan of the way back says no when it was walked; a script can be asked only by what was staged.
        let goal = match order.script {
            None => None,
            Some(_) => {
                let plan = self.plan(order, Action::Rollback, installed).map_err(Stop::failed)?;
                Some(self.staged_goal(&plan, digest)?)
            }
        };
        let (order, installed) = (order.clone(), installed.clone());
        let mut started = self.engine.marker(self.order, self.run);
        let looked = blocking(move || is_back(&order, &installed, goal.as_ref(), &mut started)).await?;
        looked.map_err(Stop::failed)
    }

    /// What a plan's way back is, from staged files.
    fn staged_goal(&self, plan: &Plan, digest: Digest) -> Result<Goal, Stop> {
        let mut files = Vec::new();
        for part in plan.parts() {
            let staged = self.engine.staged.file(&digest, &part.payload().sha256);
            files.push(staged.ok_or_else(|| Stop::failed(format!("{} is not staged", part.name())))?);
        }
        self.goal(plan, digest, files)
    }

    /// The order alone says what the way back is: these versions back, those packages gone, its script taken back, nothing else.
    ///
    /// # Errors
    /// When the host is on other versions, or a file is not staged, or something else would be changed.
    pub async fn work_back(&self, order: &Order, digest: Digest, installed: &Installed) -> Result<Work, Stop> {
        let action = Action::Rollback;
        let plan = self.plan(order, action, installed)?;
        let goal = self.staged_goal(&plan, digest)?;
        let transaction = self.simulate(&goal).await?;
        compare(&transaction, &plan, None, self.audience(), installed)?;
        Ok(Work { order: order.clone(), digest, action, plan, goal, transaction })
    }
}

/// Whether a run that stopped turned back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedBack {
    /// It did.
    Yes,
    /// It did not: it is not told to, or changed nothing.
    No,
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{Refusal, Refused};

    use super::*;

    #[test]
    fn a_run_turns_back_only_when_it_is_told_to_and_changed_something() {
        let row = |state, action, on_failure| Run { state, action: Some(action), on_failure, ..Run::received(1, 0) };
        let failed = || Stop::failed("no");
        let told = |state| failure(&row(state, Action::Apply, OnFailure::RollBack), &failed()).map(|found| found.cause);
        for state in RunState::ALL {
            let expected = match state {
                RunState::Applying => Some(Cause::Change),
                RunState::Rebooting => Some(Cause::Reboot),
                RunState::Validating => Some(Cause::Checks),
                _ => None,
            };
            assert_eq!(told(state), expected, "{state:?}");
            assert_eq!(failure(&row(state, Action::Apply, OnFailure::Leave), &failed()), None, "{state:?}");
            assert_eq!(failure(&row(state, Action::Rollback, OnFailure::RollBack), &failed()), None, "{state:?}");
        }
        let applying = row(RunState::Applying, Action::Apply, OnFailure::RollBack);
        let late = Stop::Aborted("its lifetime ended".into());
        assert_eq!(failure(&applying, &late).map(|found| found.reason), Some("its lifetime ended".into()));
        assert_eq!(failure(&applying, &Refused::new(Refusal::Busy, "").into()), None);
    }
}
