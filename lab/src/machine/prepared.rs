//! Prepared clones: started, their devices loaded, and paused, before anybody asks for them.
//!
//! What is left to do when one is needed is to let it go on and to give it an identity. A clone that waits has touched next to no
//! memory of its own; one that runs may come to touch all that its guest has. So how many wait is a matter of memory
//! ([`wanted`]), looked at all the time: under pressure they are the first to go, since another can be made in a quarter of a second.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{CloneSpec, Lab, LabError, Machine, clone::millis};
use crate::{baseline::Baseline, host_memory::HostMemory};

/// A clone that waits, paused. Dropping it takes it away.
#[derive(Debug)]
pub struct Prepared {
    machine: Machine,
    timeout: Duration,
}

impl Prepared {
    pub(super) fn new(machine: Machine, timeout: Duration) -> Self {
        Self { machine, timeout }
    }

    /// Lets it go on and gives it an identity. Its report counts from here.
    pub fn go(self, lab: &Lab) -> Result<Machine, LabError> {
        let begun = Instant::now();
        let mut machine = self.wake()?;
        machine.report.ready_ms = millis(begun);
        lab.introduce(machine)
    }

    /// Lets it go on until its guest answers.
    pub(crate) fn wake(self) -> Result<Machine, LabError> {
        self.machine.go_on(self.timeout)?;
        Ok(self.machine)
    }

    /// Memory that it alone accounts for while it waits, in KiB.
    pub fn pss_kib(&self) -> Result<u64, LabError> {
        self.machine.pss_kib()
    }
}

/// Memory that is left to the host whatever waits, MiB.
const RESERVE_MIB: u64 = 1024;
/// Above this share of time spent waiting for memory, percent, nothing is prepared.
const PRESSURE: f64 = 5.0;

/// How many clones of guests with `guest_mib` may wait, at most `most`: each must find room for all of its guest's memory once it
/// runs, and the host keeps its reserve.
pub fn wanted(host: HostMemory, guest_mib: u64, most: usize) -> usize {
    if host.pressure > PRESSURE {
        return 0;
    }
    let room = host.available_mib.saturating_sub(RESERVE_MIB) / guest_mib.max(1);
    usize::try_from(room).unwrap_or(usize::MAX).min(most)
}

/// What is to be done about those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// So many, the oldest, are taken away.
    LetGo(usize),
    /// One more is made.
    Prepare,
    /// Nothing, until something changes.
    Wait,
    /// Nothing any more.
    End,
}

/// `waiting` wait, and `wanted` may; none ever again where that is absent.
fn next(waiting: usize, wanted: Option<usize>) -> Next {
    match (waiting.saturating_sub(wanted.unwrap_or(0)), wanted) {
        (0, None) => Next::End,
        (0, Some(wanted)) if waiting < wanted => Next::Prepare,
        (0, Some(_)) => Next::Wait,
        (surplus, _) => Next::LetGo(surplus),
    }
}

/// How often the host's memory is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Clones of one baseline that wait for whoever needs one next. Somebody must [`tend`](Self::tend) them, in a thread of its own.
pub struct PreparedClones<'a> {
    lab: &'a Lab,
    baseline: &'a Baseline,
    spec: &'a (dyn Fn() -> CloneSpec + Sync),
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Prepared>,
    /// No more are wanted: the end, or one could not be prepared and those that follow could not either.
    closed: bool,
}

impl<'a> PreparedClones<'a> {
    /// At most `most` clones of `baseline`, each as `spec` says at the time.
    pub fn new(lab: &'a Lab, baseline: &'a Baseline, spec: &'a (dyn Fn() -> CloneSpec + Sync), most: usize) -> Self {
        Self { lab, baseline, spec, most, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Keeps as many waiting as memory allows, until it is [`close`](Self::close)d. A clone that cannot be prepared ends it too, with a
    /// reason in the log: whoever takes one then gets it made on demand, by whatever rung works.
    pub fn tend(&self) {
        let guest_mib = self.baseline.record.hardware.memory_mib;
        loop {
            // A host that does not say how much memory it has gets none prepared.
            let wanted = HostMemory::now().map_or(0, |host| wanted(host, guest_mib, self.most));
            let mut state = self.lock();
            // Taking machines away and making them takes time: whoever needs one does not wait for that.
            match next(state.waiting.len(), if state.closed { None } else { Some(wanted) }) {
                Next::End => return,
                Next::LetGo(surplus) => {
                    let surplus: Vec<Prepared> = state.waiting.drain(..surplus).collect();
                    drop(state);
                    drop(surplus);
                    continue;
                }
                Next::Wait => {
                    drop(self.changed.wait_timeout(state, LOOK));
                    continue;
                }
                Next::Prepare => drop(state),
            }
            match self.lab.prepare_clone(self.baseline, &(self.spec)()) {
                Ok(prepared) => self.lock().waiting.push_back(prepared),
                Err(error) => {
                    tracing::warn!(baseline = %self.baseline.full_name(), %error, "no clones are prepared");
                    self.lock().closed = true;
                }
            }
            self.changed.notify_all();
        }
    }

    /// The one that has waited longest, going; or one made on demand where none waits.
    pub fn take(&self) -> Result<Machine, LabError> {
        let prepared = self.lock().waiting.pop_front();
        let machine = match prepared.map(|prepared| prepared.go(self.lab)) {
            Some(Ok(machine)) => Ok(machine),
            // What waited may have died while it did.
            Some(Err(_)) | None => self.lab.clone_baseline(self.baseline, &(self.spec)()),
        };
        // Now that it goes: preparing the next one before would have slowed it down.
        self.changed.notify_all();
        machine
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Waits until `count` of them wait; false when that did not happen in time.
    pub fn await_waiting(&self, count: usize, timeout: Duration) -> bool {
        let state = self.lock();
        let short = |state: &mut State| state.waiting.len() < count && !state.closed;
        let waited = self.changed.wait_timeout_while(state, timeout, short);
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting.len() >= count
    }

    /// The end: those that wait are taken away.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_wait_as_could_all_run_and_none_under_pressure() {
        let host = |available_mib, pressure| HostMemory { available_mib, pressure };
        assert_eq!(wanted(host(8192, 0.0), 512, 4), 4);
        assert_eq!(wanted(host(2048, 0.0), 512, 4), 2);
        assert_eq!(wanted(host(1500, 0.0), 512, 4), 0);
        assert_eq!(wanted(host(500, 0.0), 512, 4), 0);
        assert_eq!(wanted(host(8192, 12.5), 512, 4), 0);
    }

    #[test]
    fn those_that_wait_are_let_go_when_fewer_are_wanted() {
        assert_eq!(next(4, Some(2)), Next::LetGo(2));
        assert_eq!(next(4, Some(0)), Next::LetGo(4));
        assert_eq!(next(2, Some(2)), Next::Wait);
        assert_eq!(next(0, Some(0)), Next::Wait);
        assert_eq!(next(1, Some(2)), Next::Prepare);
        assert_eq!(next(3, None), Next::LetGo(3));
        assert_eq!(next(0, None), Next::End);
    }
}
