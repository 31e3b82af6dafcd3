//! What a run waits for before it changes anything: its window, its turn, the package manager's lock, the mains. Each wait
//! can be aborted, and each but the window's ends with the run's lifetime.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patchlab_protocol::document::RunState;

use super::{
    Engine, Turn,
    attempt::{Attempt, Course, Stop, unfit},
    ready::Ready,
};
use crate::{
    lock::{self, Kind},
    preflight::{self, Power},
    record::RecordError,
    updaters::{self, NotPaused, Paused},
};

/// Longest time between two looks at the clock while a run waits for its window: somebody may set the clock, and a host
/// that sleeps wakes up later than its timers think.
const CLOCK: Duration = Duration::from_secs(30);
/// Time between two looks at the power supplies. The kernel tells of them too, by a protocol that is much for so little.
const SUPPLIES: Duration = Duration::from_secs(5);

/// How long until `opens`, at most [`CLOCK`]; `None` when that is now, or was.
fn until(opens: Timestamp, now: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(now.duration_until(opens)).ok().filter(|left| !left.is_zero())?;
    Some(left.min(CLOCK))
}

impl Engine {
    /// Waits until nobody else changes packages, and keeps automatic updaters from beginning to. `waits` is told for whom.
    ///
    /// # Errors
    /// When a lock cannot be asked for, or what `waits` says.
    pub async fn await_locks(&self, mut waits: impl FnMut(&str) -> Result<(), RecordError>) -> Result<Paused, Stop> {
        let paused = loop {
            match updaters::pause(self.target.root()) {
                Ok(paused) => break paused,
                Err(NotPaused::AtWork { name, lock, kind }) => {
                    waits(&format!("the automatic updater {name} is at work"))?;
                    freed(lock, kind).await?;
                }
                Err(error) => return Err(unfit(error)),
            }
        };
        let others = updaters::not_paused(self.target.root());
        if !others.is_empty() {
            tracing::warn!(
                updaters = others.join(", "),
                "automatic updaters that cannot be paused may begin meanwhile"
            );
        }
        for path in self.packages.locks() {
            let failed = |error: io::Error| unfit(format!("lock {}: {error}", path.display()));
            let Some(file) = lock::open(&path).map_err(failed)? else { continue };
            if let Some(holder) = lock::holder(&file).map_err(failed)? {
                waits(&format!("{holder} holds {}", path.display()))?;
                lock::freed(file, Kind::Record).await.map_err(failed)?;
            }
        }
        Ok(paused)
    }
}

impl Engine {
    /// Who changes packages at this moment, for people; nobody when that is not known.
    pub fn who_changes_packages(&self) -> Option<String> {
        if let Err(NotPaused::AtWork { name, .. }) = updaters::pause(self.target.root()) {
            return Some(format!("the automatic updater {name} is at work"));
        }
        self.packages.locks().into_iter().find_map(|path| {
            let file = lock::open(&path).ok()??;
            let holder = lock::holder(&file).ok()??;
            Some(format!("{holder} holds {}", path.display()))
        })
    }
}

async fn freed(path: PathBuf, kind: Kind) -> Result<(), Stop> {
    let failed = |error: io::Error| unfit(format!("lock {}: {error}", path.display()));
    match lock::open(&path).map_err(failed)? {
        Some(file) => lock::freed(file, kind).await.map_err(failed),
        None => Ok(()),
    }
}

impl<'e> Attempt<'e> {
    /// Whether a run that is ready has to wait for its window, or did when an earlier agent ended.
    pub fn must_wait(&self, ready: &Ready) -> bool {
        self.course == Course::Waiting || until(ready.foreseen.opens(), Timestamp::now()).is_some()
    }

    /// Waits for the window of a run that is ready. Others may work meanwhile; the run's lifetime is counted anew.
    ///
    /// # Errors
    /// When the run is aborted, or the journal cannot be written.
    pub async fn await_window(&mut self, ready: &Ready, turn: &mut Turn<'e>) -> Result<(), Stop> {
        let opens = ready.foreseen.opens();
        *turn = None;
        self.progress(RunState::WaitingWindow, 42, &format!("its window opens at {opens}"))?;
        let open = async {
            while let Some(left) = until(opens, Timestamp::now()) {
                tokio::time::sleep(left).await;
            }
        };
        tokio::select! {
            biased;
            stop = self.aborted() => return Err(stop),
            () = open => {}
        }
        self.course = Course::Waiting;
        self.deadline = Instant::now() + self.lifetime;
        Ok(())
    }

    /// Waits until no other run works.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn take_turn(&self, turn: &mut Turn<'e>) -> Result<(), Stop> {
        if turn.is_some() {
            return Ok(());
        }
        if let Ok(mine) = self.engine.turn.try_lock() {
            *turn = Some(mine);
            return Ok(());
        }
        self.progress(RunState::WaitingLock, 42, "another run is under way")?;
        *turn = Some(self.engine.turn.lock().await);
        Ok(())
    }

    /// Waits until nobody else changes packages, and keeps automatic updaters from beginning to. A run that waits is in
    /// `state`.
    ///
    /// # Errors
    /// When a lock cannot be asked for.
    pub async fn await_locks(&self, state: RunState) -> Result<Paused, Stop> {
        self.engine.await_locks(|who| self.progress(state, 42, who)).await
    }

    /// Waits until nobody else changes packages, in the midst of a run, and keeps automatic updaters from beginning to.
    ///
    /// # Errors
    /// When somebody does until its lifetime ends.
    pub async fn keep_others_away(&self) -> Result<Paused, Stop> {
        let waits = |who: &str| {
            tracing::info!(order = self.order, run = self.run, who, "waiting for others who change packages");
            self.change(|run| run.phase = format!("waits: {who}")).map(drop)
        };
        match tokio::time::timeout_at(self.deadline.into(), self.engine.await_locks(waits)).await {
            Ok(Ok(paused)) => Ok(paused),
            // It is too late to refuse.
            Ok(Err(Stop::Refused(refused))) => Err(Stop::failed(refused.reason)),
            Ok(Err(stop)) => Err(stop),
            Err(_) => Err(Stop::failed("somebody else holds a lock to the end of its lifetime")),
        }
    }

    /// Waits until the host does not run on its battery.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub async fn await_mains(&self) -> Result<(), Stop> {
        if preflight::power(self.engine.target.root()) == Power::Mains {
            return Ok(());
        }
        self.progress(RunState::Preflight, 43, "the host runs on its battery: waiting for the mains")?;
        while preflight::power(self.engine.target.root()) == Power::Battery {
            tokio::time::sleep(SUPPLIES).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_looked_at_again_long_before_a_far_window() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let after = |seconds: i64| until(now + jiff::SignedDuration::from_secs(seconds), now);
        assert_eq!(after(3), Some(Duration::from_secs(3)));
        assert_eq!(after(100_000), Some(CLOCK));
        assert_eq!(after(0), None);
        assert_eq!(after(-100), None);
    }
}
