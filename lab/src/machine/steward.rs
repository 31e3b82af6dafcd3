//! The steward of a lab: sees to it that its machines take no more of this host than they may.
//!
//! What a guest writes lands on the host: its console in a log, its disk in a layer. The log is kept within bounds. A layer may grow to the
//! disk's whole size, which nobody sets aside for every clone: each is admitted with [`CLONE_DISK`], may take more while there is room, and
//! is ended when it did and the host has next to none left. Others on this host go on.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use virt::domain::Domain;

use super::{DiskFate, Loss, serial};
use crate::room::{self, Bytes};

/// What a clone writes to its disk in a usual validation, bytes: what it is admitted with.
pub const CLONE_DISK: u64 = 256 << 20;
/// What stays free on the disk of the lab's work, bytes: more than a guest writes between two looks.
const RESERVE: u64 = 512 << 20;
/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The steward. Dropped, it stops.
#[derive(Debug)]
pub(super) struct Steward {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A machine in the steward's care, until it is dropped.
#[derive(Debug)]
pub(super) struct Ward {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    machines: Vec<Arc<Watched>>,
    closed: bool,
}

#[derive(Debug)]
struct Watched {
    name: String,
    domain: Domain,
    console: PathBuf,
    /// Its layer; none where its disk is to stay whatever becomes of it.
    layer: Option<PathBuf>,
    loss: Mutex<Option<Loss>>,
}

impl Steward {
    /// Begins to look after the machines of a lab that works in this folder.
    pub(super) fn new(work: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (looking, work) = (Arc::clone(&shared), work.to_owned());
        let thread = std::thread::Builder::new().name("steward".into()).spawn(move || looking.tend(&work))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes a machine into its care.
    pub(super) fn take(&self, name: &str, domain: &Domain, console: &Path, (disk, fate): (&Path, DiskFate)) -> Ward {
        let layer = (fate == DiskFate::Remove).then(|| disk.to_owned());
        let (name, domain, console, loss) = (name.to_owned(), domain.clone(), console.to_owned(), Mutex::default());
        let watched = Arc::new(Watched { name, domain, console, layer, loss });
        self.shared.lock().machines.push(Arc::clone(&watched));
        Ward { shared: Arc::clone(&self.shared), watched }
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What it broke of is in the log.
            let _ = thread.join();
        }
    }
}

impl Ward {
    /// How the steward ended it, if it did.
    pub(super) fn loss(&self) -> Option<Loss> {
        self.watched.loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        self.shared.lock().machines.retain(|other| !Arc::ptr_eq(other, &self.watched));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tend(&self, work: &Path) {
        let mut state = self.lock();
        while !state.closed {
            let machines = state.machines.clone();
            drop(state);
            for machine in &machines {
                if let Err(error) = serial::bound(&machine.console) {
                    tracing::warn!(machine = %machine.name, %error, "its console's log cannot be kept within bounds");
                }
            }
            // A file system that does not say how much is free gets the benefit of the doubt.
            if let Ok(free) = room::free(work) {
                let written: Vec<u64> = machines.iter().map(|machine| machine.written()).collect();
                if let Some(place) = too_much(&written, free.0) {
                    machines[place].end(Loss::Disk { written: Bytes(written[place]), free });
                }
            }
            state = self.lock();
            if !state.closed {
                state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl Watched {
    /// Bytes that its layer holds.
    fn written(&self) -> u64 {
        let metadata = self.layer.as_ref().and_then(|layer| fs::metadata(layer).ok());
        // Blocks of 512 bytes (stat(2)).
        metadata.map_or(0, |found| found.blocks() * 512)
    }

    fn end(&self, loss: Loss) {
        let mut known = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return;
        }
        tracing::warn!(machine = %self.name, %loss, "ended");
        *known = Some(loss);
        drop(known);
        if let Err(error) = self.domain.destroy() {
            tracing::warn!(machine = %self.name, error = error.message(), "cannot be ended");
        }
    }
}

/// Which machine is ended, by what each has `written` and what is `free`: of those that took more than they were admitted with the
/// largest, when next to nothing is left.
fn too_much(written: &[u64], free: u64) -> Option<usize> {
    let beyond = written.iter().enumerate().filter(|(_, bytes)| **bytes > CLONE_DISK);
    beyond.max_by_key(|(_, bytes)| **bytes).map(|(place, _)| place).filter(|_| free < RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_beyond_its_share_is_ended_and_only_when_nothing_is_left() {
        let (share, much) = (CLONE_DISK, 4 * CLONE_DISK);
        assert_eq!(too_much(&[much, share], RESERVE), None, "there is room");
        assert_eq!(too_much(&[share, much, 2 * share], RESERVE - 1), Some(1));
        assert_eq!(too_much(&[share, share], 0), None, "they take what they were promised");
        assert_eq!(too_much(&[], 0), None);
    }
}
