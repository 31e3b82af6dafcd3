//! What an agent does first: runs that an earlier one left under way are ended in order, and what it left half-way is finished.

use std::{
    collections::BTreeSet,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    document::{Action, Cause, Checks, OnFailure, Order, RunState},
    limits::SETTLE,
};
use tracing::{Instrument as _, Span};

use super::{Engine, EngineError, attempt::Ending, blocking, now};
use crate::{
    change::{self, Goal},
    fetch,
    hooks::{self, HookError, Moment, Told},
    packages::Installed,
    process,
    record::RecordError,
    state::{Failure, Run, State},
    transition,
    updaters::Paused,
};

/// How long the package manager is tried all the same, when whoever holds a lock has not let it go in [`SETTLE`].
const LOCKED: Duration = Duration::from_secs(10);

/// What became of what an earlier agent left.
struct Cleaned {
    /// For people.
    reason: String,
    /// What stayed half-way: a later agent tries again.
    left: Option<Box<Goal>>,
}

impl Engine {
    /// Settles every run that an earlier agent left under way: its package manager is stopped, what is half-way is
    /// finished, the state is `aborted`, and the result is signed. A run that waited for its window is left: it goes on
    /// waiting; so is one that rebooted the host. One that is to be rolled back on failure, and had begun, is turned back.
    ///
    /// It may be dropped at any point: the next agent does it then.
    ///
    /// # Errors
    /// When the record cannot be kept.
    pub async fn recover(&self) -> Result<(), EngineError> {
        let mut tried = false;
        for (order, run) in self.record.read(State::under_way) {
            let Some(row) = self.record.read(|state| state.run(order, run).cloned()) else { continue };
            tried |= transition::touches_packages(row.state);
            self.recover_run((order, run), row).instrument(self.span(order, run)).await?;
        }
        if !tried {
            self.finish_what_was_left().await?;
        }
        if let Err(error) = self.clear_files() {
            tracing::warn!(%error, path = %self.files.display(), "left-over files could not be removed");
        }
        Ok(())
    }

    async fn recover_run(&self, (order, run): (u32, u32), row: Run) -> Result<(), EngineError> {
        match row.state {
            RunState::WaitingWindow => {
                tracing::info!(order, run, "the run goes on waiting for its window");
                return Ok(());
            }
            RunState::Rebooting => {
                tracing::info!(order, run, "the run goes on after its reboot");
                return Ok(());
            }
            _ => {}
        }
        tracing::warn!(order, run, state = row.state.name(), "the agent ended during this run");
        let Cleaned { reason, left } = self.clean_up((order, run), &row).await?;
        if row.on_failure == OnFailure::RollBack && transition::touches_packages(row.state) {
            tracing::warn!(order, run, reason, "rolling back, as the order says");
            self.record.change_run(order, run, |run| {
                run.failure.get_or_insert(Failure { cause: Cause::Interrupted, reason });
                run.state = RunState::RollingBack;
                (run.process, run.goal) = (None, None);
            })?;
            return Ok(());
        }
        let ending = Ending { reason, refusal: None, at: now() };
        self.end(order, run, RunState::Aborted, Checks::default(), ending).await?;
        if let Some(goal) = left {
            self.record.change_run(order, run, |run| run.goal = Some(*goal))?;
        }
        Ok(())
    }

    /// Names a run's order in every line of the log: by its id, where the order's document is on the disk.
    fn span(&self, order: u32, run: u32) -> Span {
        let Some(digest) = self.record.read(|state| state.orders.get(&order).map(|row| row.columns.digest)) else {
            return Span::none();
        };
        let span = tracing::info_span!("of", digest = %digest.short(), id = tracing::field::Empty);
        let fetched = || fetch::kept_document(&self.folder(order, run).join(format!("{digest}.json")), &digest);
        let kept = self.staged.order(&digest).or_else(fetched);
        if let Some(order) = kept.and_then(|order| order.statement::<Order>().ok()) {
            span.record("id", &*order.predicate.id);
        }
        span
    }

    /// Ends what an earlier agent started for a run and finishes what is half-way; says what happened, for people.
    async fn clean_up(&self, (order, run): (u32, u32), row: &Run) -> Result<Cleaned, EngineError> {
        let mut reason = format!("the agent ended while the run was {}", row.state.name());
        let mut left = None;
        if let Some(orphan) = row.process.clone() {
            let ended = blocking(move || process::end_orphan(&orphan)).await?;
            if let Err(error) = ended {
                reason = format!("{reason}; what it had started could not be ended: {error}");
            }
        }
        if transition::touches_packages(row.state) {
            match self.finish((order, run), row.goal.clone()).await? {
                Ok(None) => {}
                Ok(Some(stands)) => reason = format!("{reason}; {stands}"),
                Err(error) => {
                    reason = format!("{reason}; {error}");
                    left = row.goal.clone().map(Box::new);
                }
            }
        }
        if transition::is_prepared(row.state) && row.preparation.is_none() {
            // What was prepared for the run is put back, as at any other end.
            if let Some(Err(hook)) = self.after_hooks((order, run), row.action).await? {
                reason = format!("{reason}; {hook}");
            }
        }
        Ok(Cleaned { reason, left })
    }

    /// Finishes what is half-way, once nobody else changes packages; where the host stands then, where that can be said.
    async fn finish(
        &self,
        (order, run): (u32, u32),
        goal: Option<Goal>,
    ) -> Result<Result<Option<String>, change::ChangeError>, EngineError> {
        let paused = self.await_others(order, run).await;
        let time = if paused.is_some() { SETTLE } else { LOCKED };
        let (packages, mut started) = (Arc::clone(&self.packages), self.marker(order, run));
        let settle = move || change::recover(&*packages, goal.as_ref(), time, &mut started);
        Ok(blocking(settle).await?)
    }

    /// Waits until nobody else changes packages, for [`SETTLE`] at most; `None` when somebody still may.
    async fn await_others(&self, order: u32, run: u32) -> Option<Paused> {
        let waits = |who: &str| {
            tracing::warn!(order, run, "packages are finished later: {who}");
            Ok::<(), RecordError>(())
        };
        match tokio::time::timeout(SETTLE, self.await_locks(waits)).await {
            Ok(Ok(paused)) => Some(paused),
            Ok(Err(error)) => {
                tracing::warn!(order, run, %error, "others who change packages could not be waited for");
                None
            }
            Err(_) => {
                tracing::warn!(order, run, "others change packages for too long");
                None
            }
        }
    }

    /// Packages that a run left half-way which ended before, because nobody could finish them then: tried again at every start.
    async fn finish_what_was_left(&self) -> Result<(), EngineError> {
        let kept = |state: &State| {
            let runs =
                state.orders.iter().flat_map(|(order, row)| row.runs.iter().map(|(run, row)| (*order, *run, row)));
            let kept = runs.filter(|(_, _, run)| run.state.is_final() && (run.goal.is_some() || run.process.is_some()));
            kept.map(|(order, run, _)| (order, run)).collect::<Vec<_>>()
        };
        let installed = match self.installed().await {
            Ok(installed) => installed,
            Err(error) => {
                tracing::warn!(%error, "nobody can say what was left half-way");
                return Ok(());
            }
        };
        let left = self.record.read(|state| left(state, &installed));
        if let Some((order, run, row)) = left
            && !self.finish_later((order, run), row, &installed).instrument(self.span(order, run)).await?
        {
            return Ok(());
        }
        for (order, run) in self.record.read(kept) {
            self.record.change_run(order, run, |run| (run.goal, run.process) = (None, None))?;
        }
        Ok(())
    }

    /// Whether what a run left half-way is whole now.
    async fn finish_later(
        &self,
        (order, run): (u32, u32),
        row: Run,
        installed: &Installed,
    ) -> Result<bool, EngineError> {
        let half_way = installed.unsettled.to_string();
        tracing::warn!(order, run, half_way = half_way.trim(), "packages of this run are half-way");
        if let Some(orphan) = row.process.clone() {
            let ended = blocking(move || process::end_orphan(&orphan)).await?;
            if let Err(error) = ended {
                tracing::warn!(order, run, %error, "what was started for them could not be ended");
            }
        }
        let goal = row.goal.clone().filter(|_| is_only_of(&row, installed));
        match self.finish((order, run), goal).await? {
            Ok(_) => {
                tracing::info!(order, run, "its packages are whole now");
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(order, run, %error, "its packages stay half-way, until the next start");
                Ok(false)
            }
        }
    }

    /// Removes what was fetched for runs that ended, and left nothing half-way.
    fn clear_files(&self) -> io::Result<()> {
        let needed: BTreeSet<PathBuf> = self.record.read(|state| {
            let runs =
                state.orders.iter().flat_map(|(order, row)| row.runs.iter().map(|(run, row)| (*order, *run, row)));
            let needed = runs.filter(|(_, _, row)| !row.state.is_final() || row.goal.is_some());
            needed.map(|(order, run, _)| self.folder(order, run)).collect()
        });
        let entries = match fs::read_dir(&self.files) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if !needed.contains(&path) {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(())
    }

    async fn after_hooks(
        &self,
        (order, run): (u32, u32),
        action: Option<Action>,
    ) -> Result<Option<Result<(), HookError>>, EngineError> {
        let mut started = self.marker(order, run);
        let digest = self.record.read(|state| state.orders.get(&order).map(|row| row.columns.digest));
        let (Some(folder), Some(order)) = (self.hooks.clone(), digest) else { return Ok(None) };
        let told = Told { order, action };
        let run = move || hooks::run(&folder, Moment::After, &told, Instant::now() + SETTLE, &mut started);
        Ok(Some(blocking(run).await?))
    }
}

/// The run that may have left what is half-way: the newest that went for packages, when it was cut off, and one of its packages is.
fn left(state: &State, installed: &Installed) -> Option<(u32, u32, Run)> {
    use RunState::{Aborted, Failed, RollbackFailed, RolledBack, Succeeded};
    let runs = state.orders.iter().flat_map(|(order, row)| row.runs.iter().map(|(run, row)| (*order, *run, row)));
    let went = runs.filter(|(_, _, row)| {
        let worked = matches!(row.state, Aborted | Failed | RollbackFailed | RolledBack | Succeeded);
        worked && row.preparation.is_none() && !row.items.is_empty()
    });
    let (order, run, row) = went.max_by_key(|(_, _, row)| row.ended)?;
    let cut_off = matches!(row.state, Aborted | RollbackFailed);
    let is_its = installed.unsettled.packages().any(|(id, version)| is_of(row, &id.name, &id.arch, version));
    (cut_off && is_its).then(|| (order, run, row.clone()))
}

/// Whether all that is half-way was left by a run: only then may its transaction be carried on.
fn is_only_of(row: &Run, installed: &Installed) -> bool {
    installed.unsettled.packages().all(|(id, version)| is_of(row, &id.name, &id.arch, version))
}

fn is_of(row: &Run, name: &str, arch: &str, version: &str) -> bool {
    row.items.iter().any(|item| item.name == name && item.arch == arch && [&*item.from, &*item.to].contains(&version))
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{Item, ItemState, PackageSystem};

    use super::*;
    use crate::state::{Change, Columns, Event, tests::columns};

    fn state(ended: &[(u32, RunState)]) -> State {
        let mut state = State::default();
        for (order, ends) in ended {
            let columns = Columns { digest: patchlab_protocol::Digest::of(order.to_string()), ..columns() };
            let orders = [(*order, Some(columns))].into();
            state.apply(&Event::Set(Change { orders, starts: vec![(*order, 1)], ..Change::default() }));
            let item = |(from, to): (&str, &str)| Item {
                name: "web".into(),
                arch: "all".into(),
                from: from.into(),
                to: to.into(),
                state: ItemState::Failed,
            };
            let items = vec![item(("1", "2"))];
            let row = Run { state: *ends, items, ended: Some(i64::from(*order)), ..Run::received(1, 0) };
            state.apply(&Event::Run { order: *order, run: 1, row: Box::new(row) });
        }
        state
    }

    #[test]
    fn only_what_the_newest_run_left_when_it_was_cut_off_is_finished_later() {
        use RunState::{Aborted, Failed, RollbackFailed, Succeeded};
        let installed = |unsettled: &str| Installed {
            system: Some(PackageSystem::Dpkg),
            settled: "".parse().unwrap(),
            unsettled: unsettled.parse().unwrap(),
            sources: std::collections::BTreeMap::new(),
        };
        let found = |ended: &[(u32, RunState)], unsettled: &str| {
            left(&state(ended), &installed(unsettled))
                .map(|(order, _, row)| (order, is_only_of(&row, &installed(unsettled))))
        };
        assert_eq!(found(&[(1, Aborted)], "web all 2\n"), Some((1, true)));
        assert_eq!(found(&[(1, RollbackFailed)], "lib all 5\nweb all 1\n"), Some((1, false)));
        assert_eq!(found(&[(1, Aborted)], ""), None);
        assert_eq!(found(&[(1, Aborted)], "web all 3\n"), None, "somebody else was there");
        assert_eq!(found(&[(1, Failed)], "web all 2\n"), None, "it failed by itself, and would again");
        assert_eq!(found(&[(1, Aborted), (2, Succeeded)], "web all 2\n"), None);
    }
}
