//! What a host does with a released order ahead of its activation: a probe looks what apply would refuse, a prefetch fetches and keeps
//! everything. Neither changes anything, uses anything up, or runs the site's own programs.

use patchlab_protocol::{
    Refused,
    document::{Action, Checks, RunState},
    limits,
};

use super::attempt::{Attempt, Stop, unfit};
use crate::{
    change::{compare, parts, script},
    state,
};

impl Attempt<'_> {
    /// Goes the way of an apply up to the package manager's start, and runs the order's checks on the host as it is. A lock that apply
    /// would wait for is not waited for, and named when it may be the reason for a refusal; a battery is told.
    ///
    /// # Errors
    /// What apply would be refused for, a file of what it replaces that is not what was shipped, or a check that fails.
    pub async fn probe(&self) -> Result<(RunState, Checks), Stop> {
        let installed = self.installed().await.map_err(unfit)?;
        self.change(|run| run.before = Some(installed.settled.digest()))?;
        let mut sources = self.sources()?;
        let (_, foreseen) = self.proven(&mut sources).await?;
        let plan = self.plan(foreseen.order(), Action::Apply, &installed).map_err(|stop| self.while_at_work(stop))?;
        self.progress(RunState::Fetching, 10, "files")?;
        let (files, unpacked) = self.files(&mut sources, &plan, &foreseen.digest()).await?;
        let goal = self.goal(&plan, foreseen.digest(), files)?;
        self.progress(RunState::Verifying, 40, "files")?;
        self.progress(RunState::Preflight, 44, "simulation")?;
        let transaction = self.simulate(&goal).await?;
        compare(&transaction, &plan, foreseen.release(), self.audience(), &installed)?;
        self.fit(&transaction, unpacked, foreseen.release())?;
        self.fit_to_boot(Action::Apply, &transaction, foreseen.release()).await?;
        self.fit_to_reboot(foreseen.order(), Action::Apply).await?;
        self.fit_to_fall_back(foreseen.order(), Action::Apply, &transaction).await?;
        self.change(|run| run.items = state::items(&transaction))?;
        self.progress(RunState::Preflight, 80, "installed files")?;
        self.probe_files(&transaction, &installed).await?;
        self.progress(RunState::Preflight, 90, "production checks")?;
        Ok((RunState::Succeeded, self.run_checks(foreseen.order()).await?))
    }

    /// A refusal may come of what somebody has half-way at this moment.
    fn while_at_work(&self, stop: Stop) -> Stop {
        match (stop, self.engine.who_changes_packages()) {
            (Stop::Refused(refused), Some(who)) => {
                let reason = format!("{who}, probe again when that has ended: {}", refused.reason);
                Refused::new(refused.refusal, reason).into()
            }
            (stop, _) => stop,
        }
    }

    /// Fetches and verifies every file of an order, those that bring the replaced versions back too, and keeps them. What is installed
    /// does not matter yet: another order may have to come first.
    ///
    /// # Errors
    /// When the order may not be fetched, or not everything can be had and kept.
    pub async fn prefetch(&self) -> Result<(RunState, Checks), Stop> {
        let installed = self.installed().await.map_err(unfit)?;
        self.change(|run| run.before = Some(installed.settled.digest()))?;
        let mut sources = self.sources()?;
        let (fetched, foreseen) = self.proven(&mut sources).await?;
        let order = foreseen.order();
        script::takes(order, self.engine.scripts)?;
        let files = parts(order);
        if files.len() > 2 * limits::FILES_PER_ORDER {
            return Err(unfit(format!("order {} names {} files, too many to keep", order.id, files.len())));
        }
        self.progress(RunState::Fetching, 10, "files, and those of the way back")?;
        self.keep(&mut sources, &fetched.order, &files).await?;
        self.progress(RunState::Verifying, 99, "everything is here")?;
        Ok((RunState::Succeeded, Checks::default()))
    }
}
