//! The rollback that the host's own operator started: from staged files, with nothing from the network. The signed order alone says
//! what it is: these versions back, those packages gone, nothing else.

use patchlab_protocol::{
    Refusal, Refused, Role,
    authorization::signed,
    document::{Checks, Order, RunState},
};

use super::{
    Turn,
    attempt::{Attempt, Stop, unfit},
    work::Work,
};
use crate::{hooks::Site, updaters::Paused};

impl<'e> Attempt<'e> {
    /// Rolls the order of its row back.
    ///
    /// # Errors
    /// When the host must refuse, or not everything is as it was before.
    pub async fn roll_back_by_itself(self, turn: &mut Turn<'e>) -> Result<(RunState, Checks), Stop> {
        let (work, _paused) = self.unless_stopped(self.look_back(turn)).await?;
        self.prepare_site(&work).await?;
        self.progress(RunState::RollingBack, 45, "package manager, way back")?;
        if self.engine.record.is_aborted(self.order, self.run) {
            self.put_back(work.told()).await;
            return Err(Stop::Aborted("aborted by the manager".into()));
        }
        Ok((RunState::RolledBack, self.walk_back(&work.order, work.digest, Site::Prepared).await?))
    }

    /// Whether the way back can be walked: who signed the order, what is installed, what is staged, what the package manager would do.
    async fn look_back(&self, turn: &mut Turn<'e>) -> Result<(Work, Paused), Stop> {
        self.progress(RunState::Fetching, 5, "the staged order")?;
        let digest = self.columns.digest;
        let staged =
            self.engine.staged.order(&digest).ok_or_else(|| unfit("the staged order is not there any more"))?;
        self.progress(RunState::Verifying, 10, "signature")?;
        let order = staged.statement::<Order>().map_err(unfit)?.predicate;
        if !signed(&self.engine.trust.root(), &staged, Role::Drafter) {
            let reason = format!("order {} is not signed by a key that may draft here", order.id);
            return Err(Refused::new(Refusal::BadSignature, reason).into());
        }
        self.name(&order);
        self.take_turn(turn).await?;
        let paused = self.await_locks(RunState::WaitingLock).await?;
        self.progress(RunState::Preflight, 44, "simulation")?;
        let installed = self.installed().await.map_err(unfit)?;
        let before = installed.settled.digest();
        self.change(|run| run.before = Some(before))?;
        let work = self.work_back(&order, digest, &installed).await?;
        self.note_broken_files(&work.transaction, &installed).await;
        Ok((work, paused))
    }
}
