//! Ending all that runs, when a person or a CI runner says so ([`super::stop`]).
//!
//! The first signal ends every worker, and the validation then ends by itself: folders and the ledger's lines go, records say
//! `interrupted`. A second one ends this program at once; the kernel ends its workers, and `lab gc` takes away their folders.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use patchlab_lab::ledger::Process;
use rustix::process::{Pid, Signal, kill_process};

use super::stop::Stops;

/// Exit code of a program that was interrupted: 128 and the signal's number, as shells count.
const INTERRUPTED: i32 = 130;

/// Workers that run, and whether they are to.
#[derive(Debug, Clone, Default)]
pub struct Halt(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_called: bool,
    workers: Vec<Process>,
}

impl Halt {
    /// Ends all that runs, and whatever still starts.
    pub fn call(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_called = true;
        state.workers.drain(..).for_each(|worker| end(&worker));
    }

    /// Whether all is to end.
    pub fn is_called(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_called
    }

    /// A worker runs: it ends when all is to end, which may be now.
    pub fn enter(&self, worker: &Process) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_called {
            end(worker);
        } else {
            state.workers.push(worker.clone());
        }
    }

    /// A worker is about to be ended by its owner.
    pub fn leave(&self, worker: &Process) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).workers.retain(|other| other != worker);
    }

    /// Calls it, and then `told`, on the first of the words that end a program; ends this program on the second.
    pub fn on_signals(&self, told: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let halt = self.clone();
        let mut stops = Stops::listen().context("listen for signals")?;
        let listen = move || {
            stops.await_next();
            halt.call();
            told();
            stops.await_next();
            std::process::exit(INTERRUPTED);
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).context("listen for signals")?;
        Ok(())
    }
}

/// The kernel ends everything in the worker's namespace with it.
pub(super) fn end(worker: &Process) {
    let pid = i32::try_from(worker.pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|_| worker.is_alive()) {
        // Already gone is as good.
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    #[test]
    fn what_runs_ends_and_so_does_what_starts_too_late() {
        let halt = Halt::default();
        let start = || Command::new("sleep").arg("600").spawn().unwrap();
        let (mut early, mut gone, mut late) = (start(), start(), start());
        let of = |child: &std::process::Child| Process::of(child.id()).unwrap();
        halt.enter(&of(&early));
        halt.enter(&of(&gone));
        halt.leave(&of(&gone));
        assert!(!halt.is_called());
        halt.call();
        halt.enter(&of(&late));
        assert!(halt.is_called());
        for child in [&mut early, &mut late] {
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        assert_eq!(gone.try_wait().unwrap(), None, "its owner ends it");
        gone.kill().unwrap();
        gone.wait().unwrap();
    }
}
