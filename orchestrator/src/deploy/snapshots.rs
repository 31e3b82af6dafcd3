//! Snapshots of hosts that are virtual machines themselves: taken before an order's apply is told to the host, kept until it is known that
//! nobody needs them, and the way back when nothing else is one. A host goes back to its own disks from before the order, never to a
//! baseline's.
//!
//! What is to be done is written down by whoever decides it, and done here: [`keep`] looks at what is written, so a server that was
//! killed goes on where it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use patchlab_lab::snapshot::{self, SnapshotError, Standing};
use patchlab_protocol::{Digest, document::RunState};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use super::{
    executor::{ExecuteError, Executor, has_begun},
    manager::Manager,
    row, survey,
};
use crate::{
    audit::Event,
    store::{HostMachine, NewSnapshot, Run, Snapshot, SnapshotMove, SnapshotState, Stage, StoreError, Verified},
};

/// Longest time between two looks at what is due.
const LOOK: Duration = Duration::from_secs(60);
/// Time until a merge that failed is tried again.
const AGAIN: SignedDuration = SignedDuration::from_mins(10);
/// How long a host that was reverted may take to boot and answer.
const BOOT_WITHIN: Duration = Duration::from_secs(900);

/// What becomes of a snapshot when its run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its host was not changed: nobody will want to go back.
    Needless,
    /// All went well, or was brought back: it is kept for a while.
    Kept,
    /// The host is in no state that anybody planned: somebody has to say.
    Held,
}

/// What becomes of the snapshot from before a run that has ended.
pub fn fate(run: &Run) -> Fate {
    let begun = run.stage == Stage::Lost || run.state.is_some_and(has_begun);
    match run.state {
        _ if !begun => Fate::Needless,
        Some(RunState::Succeeded | RunState::RolledBack) if run.verified == Verified::Yes => Fate::Kept,
        _ => Fate::Held,
    }
}

/// Whether a snapshot was taken before this very run.
fn is_of(snapshot: &Snapshot, run: &Run) -> bool {
    (snapshot.order, snapshot.run) == (run.order, run.run)
}

/// Runs what may block elsewhere.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(format!("a part of the server broke: {error}")),
    }
}

/// Looks after snapshots, for ever: merges those that are due, brings hosts back.
pub async fn keep(executor: Executor) {
    let mut changes = executor.changes.subscribe();
    let mut under_way: JoinSet<u64> = JoinSet::new();
    let mut begun: BTreeMap<u64, (Snapshot, Instant)> = BTreeMap::new();
    let mut busy = BTreeSet::new();
    loop {
        changes.borrow_and_update();
        let open = executor.store.snapshots().unwrap_or_else(|error| {
            tracing::error!(%error, "snapshots of hosts are not looked after now");
            Vec::new()
        });
        for open in open {
            // What led nowhere is not begun again at every change of something else.
            let just = begun.get(&open.number).is_some_and(|(as_it_was, at)| *as_it_was == open && at.elapsed() < LOOK);
            if !just && !busy.contains(&open.number) && executor.is_due(&open) {
                busy.insert(open.number);
                begun.insert(open.number, (open.clone(), Instant::now()));
                let executor = executor.clone();
                under_way.spawn(async move {
                    if let Err(error) = executor.carry(&open).await {
                        tracing::error!(%error, host = open.host, "a snapshot cannot be looked after");
                    }
                    executor.told();
                    open.number
                });
            }
        }
        tokio::select! {
            Some(done) = under_way.join_next(), if !under_way.is_empty() => match done {
                Ok(number) => drop(busy.remove(&number)),
                // One that panicked said so, and is begun again with the others.
                Err(_) => busy.clear(),
            },
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Executor {
    /// Whether there is something to do with a snapshot.
    fn is_due(&self, open: &Snapshot) -> bool {
        let has_ended = || self.store.run(&open.order, &open.host, open.run).is_ok_and(|run| run.stage.is_final());
        match open.state {
            SnapshotState::Reverting | SnapshotState::Merging => true,
            // Whoever was to take it is gone.
            SnapshotState::Taking => has_ended(),
            SnapshotState::Taken => match open.merge_at.as_deref().map(str::parse::<Timestamp>) {
                Some(Ok(at)) => at <= Timestamp::now(),
                // Of a run that ended while nobody was there to say what becomes of it.
                _ => open.reason.is_empty() && has_ended(),
            },
            SnapshotState::Reverted | SnapshotState::Merged | SnapshotState::Untaken => false,
        }
    }

    async fn carry(&self, open: &Snapshot) -> Result<(), StoreError> {
        let open = self.store.snapshot(open.number)?;
        match open.state {
            SnapshotState::Taking => self.find_out(&open).await.map(drop),
            SnapshotState::Taken if open.merge_at.is_none() => {
                self.snapshot_after(&self.store.run(&open.order, &open.host, open.run)?)
            }
            SnapshotState::Taken => {
                self.begin_merge(&open, "server")?;
                self.merge(&self.store.snapshot(open.number)?).await
            }
            SnapshotState::Merging => self.merge(&open).await,
            SnapshotState::Reverting => self.bring_back(&open).await,
            SnapshotState::Reverted | SnapshotState::Merged | SnapshotState::Untaken => Ok(()),
        }
    }

    /// Takes a snapshot of the machine that a host is, before anything is told to it; nothing twice for a run.
    pub(super) async fn snapshot_before(
        &self,
        run: &Run,
        machine: HostMachine,
        manager: &dyn Manager,
    ) -> Result<(), ExecuteError> {
        let name = &run.host;
        if let Some(open) = self.store.open_snapshot(name)? {
            match open.state {
                SnapshotState::Taken if is_of(&open, run) => return Ok(()),
                // Whoever was to take it was killed.
                SnapshotState::Taking if is_of(&open, run) => match self.find_out(&open).await? {
                    SnapshotState::Taken => return Ok(()),
                    SnapshotState::Untaken => {}
                    _ => {
                        let reason = self.store.snapshot(open.number)?.reason;
                        return Err(ExecuteError::Snapshot(format!(
                            "whether its snapshot {} was taken cannot be found out: {reason}; nothing was told to the host",
                            open.name
                        )));
                    }
                },
                SnapshotState::Merging => self.merged(&open).await?,
                SnapshotState::Taken if open.merge_at.is_some() => {
                    self.begin_merge(&open, "server")?;
                    self.merged(&open).await?;
                }
                _ => {
                    return Err(ExecuteError::Snapshot(format!(
                        "its snapshot {} from before another order is {}{}: say what becomes of it first (`patchlab host revert {name}`, \
                         or `patchlab host merge {name}`); nothing was told to the host",
                        open.name,
                        open.state,
                        if open.reason.is_empty() { String::new() } else { format!(" ({})", open.reason) }
                    )));
                }
            }
        }
        let inventory = survey::inventory(manager).await?;
        let (guest, short) = (machine.guest, format!("patchlab-{}-{}", run.order.short(), run.run));
        let failed = |reason: String| {
            ExecuteError::Snapshot(format!("no snapshot of it could be taken: {reason}; nothing was told to the host"))
        };
        let layers = {
            let (guest, short) = (guest.clone(), short.clone());
            blocking(move || snapshot::layers(&guest, &short)).await.map_err(failed)?
        };
        let detail =
            json!({ "snapshot": short, "order": run.order, "run": run.run, "machine": guest, "layers": layers });
        let new =
            NewSnapshot { order: run.order, run: run.run, name: &short, guest: &guest, layers: &layers, inventory };
        let planned = self.store.plan_snapshot(name, &new, &Event::new("snapshot-planned", name, detail))?;
        let taken = {
            let planned = planned.clone();
            blocking(move || snapshot::take(&planned.guest, &planned.name, &planned.layers)).await
        };
        match taken {
            Ok(stillness) => {
                let detail = json!({ "snapshot": short, "stillness": stillness });
                Ok(self.store.snapshot_taken(&planned, stillness, &Event::new("snapshot-taken", name, detail))?)
            }
            Err(reason) => match self.find_out(&planned).await? {
                SnapshotState::Taken => Ok(()),
                _ => Err(failed(reason)),
            },
        }
    }

    /// Finds out whether a snapshot was taken whose taker did not say so.
    async fn find_out(&self, planned: &Snapshot) -> Result<SnapshotState, StoreError> {
        let standing = {
            let planned = planned.clone();
            blocking(move || snapshot::standing(&planned.guest, &planned.layers)).await
        };
        let event = |name: &'static str| Event::new(name, &planned.host, json!({ "snapshot": planned.name }));
        match standing {
            Ok(Standing::Above) => {
                // Nobody knows any more whether the guest held still.
                self.store.snapshot_taken(planned, snapshot::Stillness::PowerLoss, &event("snapshot-taken"))?;
                Ok(SnapshotState::Taken)
            }
            Ok(Standing::Below) => {
                let moved = SnapshotMove { state: SnapshotState::Untaken, reason: String::new(), merge_at: None };
                self.store.move_snapshot(planned, &moved, &event("snapshot-not-taken"))?;
                Ok(SnapshotState::Untaken)
            }
            Err(reason) if reason == planned.reason => Ok(SnapshotState::Taking),
            Err(reason) => {
                let moved = SnapshotMove { state: SnapshotState::Taking, reason, merge_at: None };
                self.store.move_snapshot(planned, &moved, &event("snapshot-unknown"))?;
                Ok(SnapshotState::Taking)
            }
        }
    }

    /// Says what becomes of the snapshot from before a run that has ended.
    pub(super) fn snapshot_after(&self, run: &Run) -> Result<(), StoreError> {
        let open = self.store.open_snapshot(&run.host)?;
        let of_this = |open: &Snapshot| open.state == SnapshotState::Taken && is_of(open, run);
        let Some(open) = open.filter(of_this) else { return Ok(()) };
        let now = Timestamp::now();
        match fate(run) {
            Fate::Needless => self.store.merge_snapshot_at(&open, now, "the host was not changed"),
            Fate::Kept => {
                let keep = self.store.machine(&run.host)?.map_or(Duration::ZERO, |machine| machine.keep());
                let until =
                    now.checked_add(SignedDuration::try_from(keep).unwrap_or(SignedDuration::ZERO)).unwrap_or(now);
                self.store.merge_snapshot_at(&open, until, run.state.map_or("", RunState::name))
            }
            Fate::Held => {
                let state = run.state.map_or(run.stage.name(), RunState::name);
                let detail = json!({ "snapshot": open.name, "run": state });
                let moved = SnapshotMove { state: SnapshotState::Taken, reason: state.to_owned(), merge_at: None };
                self.store.move_snapshot(&open, &moved, &Event::new("snapshot-held", &run.host, detail))
            }
        }
    }

    /// Writes down that a host is to go back to its snapshot; [`keep`] does it.
    ///
    /// # Errors
    /// There is none to go back to.
    pub fn begin_revert(&self, host: &str, actor: &str) -> Result<Snapshot, StoreError> {
        let open = self.taken(host)?;
        let detail = json!({ "snapshot": open.name, "order": open.order, "run": open.run });
        let moved = SnapshotMove { state: SnapshotState::Reverting, reason: "machine".into(), merge_at: None };
        self.store.move_snapshot(&open, &moved, &Event::new("host-reverting", host, detail).by(actor))?;
        self.told();
        self.store.snapshot(open.number)
    }

    /// Writes down that a host goes on without its snapshot; [`keep`] does it.
    ///
    /// # Errors
    /// There is none.
    pub fn begin_merge_of(&self, host: &str, actor: &str) -> Result<Snapshot, StoreError> {
        let open = self.taken(host)?;
        self.begin_merge(&open, actor)?;
        self.store.snapshot(open.number)
    }

    fn taken(&self, host: &str) -> Result<Snapshot, StoreError> {
        let host = self.store.host(host)?.enrolled.name;
        self.store
            .open_snapshot(&host)?
            .ok_or_else(|| StoreError::NotFound { what: "snapshot of host", name: host.clone() })
    }

    fn begin_merge(&self, open: &Snapshot, actor: &str) -> Result<(), StoreError> {
        let moved = SnapshotMove { state: SnapshotState::Merging, reason: open.reason.clone(), merge_at: None };
        let event = Event::new("snapshot-merging", &open.host, json!({ "snapshot": open.name })).by(actor);
        self.store.move_snapshot(open, &moved, &event)?;
        self.told();
        Ok(())
    }

    async fn merge(&self, open: &Snapshot) -> Result<(), StoreError> {
        let merged = {
            let open = open.clone();
            blocking(move || snapshot::merge(&open.guest, &open.layers)).await
        };
        let (state, name, reason, merge_at) = match merged {
            Ok(()) => (SnapshotState::Merged, "snapshot-merged", String::new(), None),
            Err(reason) => {
                tracing::warn!(reason, host = open.host, snapshot = open.name, "not merged");
                let again = Timestamp::now().checked_add(AGAIN).ok();
                (SnapshotState::Taken, "snapshot-not-merged", reason, again)
            }
        };
        let detail = json!({ "snapshot": open.name, "reason": reason });
        let moved = SnapshotMove { state, reason, merge_at };
        self.store.move_snapshot(open, &moved, &Event::new(name, &open.host, detail))
    }

    /// Waits until a merge has ended.
    async fn merged(&self, open: &Snapshot) -> Result<(), ExecuteError> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let there = self.store.snapshot(open.number)?;
            match there.state {
                SnapshotState::Merged => return Ok(()),
                SnapshotState::Merging => {}
                _ => {
                    return Err(ExecuteError::Snapshot(format!(
                        "its snapshot {} from before another order could not be merged: {}; nothing was told to the host",
                        there.name, there.reason
                    )));
                }
            }
            // The sender is this executor's own.
            let _ = changes.changed().await;
        }
    }

    /// Comes back when the host of a run is being reverted, and nobody is to follow the run any more.
    pub(super) async fn reverting(&self, run: &Run) {
        if !matches!(self.store.machine(&run.host), Ok(Some(_))) {
            return std::future::pending().await;
        }
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let is_reverting = |open: &Snapshot| open.state == SnapshotState::Reverting && is_of(open, run);
            if self.store.open_snapshot(&run.host).is_ok_and(|open| open.as_ref().is_some_and(is_reverting)) {
                return;
            }
            let _ = changes.changed().await;
        }
    }

    /// Brings a host back to its snapshot, and waits until it answers.
    async fn bring_back(&self, open: &Snapshot) -> Result<(), StoreError> {
        // Whoever follows its run must not tell it the order once more.
        let mut changes = self.changes.subscribe();
        while !self.store.run(&open.order, &open.host, open.run)?.stage.is_final() {
            let _ = changes.changed().await;
        }
        let reverted = {
            let open = open.clone();
            blocking(move || snapshot::revert(&open.guest, &open.layers)).await
        };
        if let Err(reason) = reverted {
            tracing::error!(reason, host = open.host, snapshot = open.name, "not reverted");
            let detail = json!({ "snapshot": open.name, "reason": reason });
            let moved = SnapshotMove { state: SnapshotState::Taken, reason, merge_at: None };
            return self.store.move_snapshot(open, &moved, &Event::new("host-not-reverted", &open.host, detail));
        }
        let waits = SnapshotMove { state: SnapshotState::Reverting, reason: "boot".into(), merge_at: None };
        let detail = json!({ "snapshot": open.name });
        self.store.move_snapshot(open, &waits, &Event::new("host-machine-reverted", &open.host, detail))?;
        self.told();
        let reason = match self.looked_at(open).await {
            Ok(()) => String::new(),
            Err(ExecuteError::Store(error)) => return Err(error),
            Err(error) => error.to_string(),
        };
        let detail = json!({
            "snapshot": open.name, "order": open.order, "layers": open.layers, "inventory": open.inventory, "reason": reason,
        });
        self.store.snapshot_reverted(open, &reason, &Event::new("host-reverted", &open.host, detail))?;
        self.offers.bells.ring(&open.host);
        Ok(())
    }

    /// Waits for a host that was reverted, and sees that it is what it was, and that what must not go back did not.
    async fn looked_at(&self, open: &Snapshot) -> Result<(), ExecuteError> {
        let host = self.store.host(&open.host)?;
        let until = Instant::now() + BOOT_WITHIN;
        let manager = self.offers.manager(&host).await?;
        while let Err(error) = self.meet(&manager, &host).await {
            if matches!(error, ExecuteError::Store(_)) || Instant::now() >= until {
                return Err(error);
            }
            tokio::time::sleep(row::POLL).await;
        }
        let said = row::scalars(&manager).await?;
        if said.result_head != host.result_head && said.result_head == open.result_head {
            return Err(ExecuteError::Snapshot(
                "its agent has forgotten its newest results: the ledger went back with the disk. Put `ledger_dir` of its agent.toml on a \
                 disk that stays outside, and enrol it anew"
                    .into(),
            ));
        }
        let inventory = survey::inventory(&manager).await?;
        if inventory != open.inventory {
            let shown = |digest: Option<Digest>| digest.map_or_else(|| "nothing".into(), |digest| digest.short());
            return Err(ExecuteError::Snapshot(format!(
                "what is installed there ({}) is not what was when the snapshot was taken ({})",
                shown(inventory),
                shown(open.inventory)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_snapshot_follows_from_what_became_of_its_host() {
        let run = |stage, state, verified| Run {
            order: Digest::of("order"),
            host: "web-1".into(),
            run: 1,
            activation: Digest::of("activation"),
            position: 0,
            stage,
            state,
            phase: String::new(),
            percent: 0,
            refusal: None,
            reason: String::new(),
            report: None,
            verified,
            started_at: String::new(),
            ended_at: None,
        };
        use RunState::{Aborted, Failed, Refused, RollbackFailed, RolledBack, Succeeded};
        use Stage::{Finished, Lost};
        for (stage, state, verified, expected) in [
            (Finished, Some(Succeeded), Verified::Yes, Fate::Kept),
            (Finished, Some(RolledBack), Verified::Yes, Fate::Kept),
            // Whose word that is nobody knows.
            (Finished, Some(Succeeded), Verified::No, Fate::Held),
            (Finished, Some(Failed), Verified::Yes, Fate::Held),
            (Finished, Some(RollbackFailed), Verified::Yes, Fate::Held),
            (Finished, Some(RunState::Applying), Verified::No, Fate::Held),
            (Lost, None, Verified::No, Fate::Held),
            (Lost, Some(RunState::Fetching), Verified::No, Fate::Held),
            (Finished, Some(Refused), Verified::Yes, Fate::Needless),
            (Finished, Some(Aborted), Verified::Yes, Fate::Needless),
            (Finished, None, Verified::No, Fate::Needless),
        ] {
            assert_eq!(fate(&run(stage, state, verified)), expected, "{stage} {state:?} {verified}");
        }
    }
}
