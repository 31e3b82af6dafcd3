//! Words from outside that end a program: SIGINT, SIGTERM, and SIGHUP where whoever started it does not want it to outlive its terminal.

use std::{fs, io};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

/// Awaits those words. From its making on they end nothing by themselves.
#[derive(Debug)]
pub struct Stops {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Stops {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel has no more to listen with.
    pub fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // Under nohup(1) the signal is ignored, and must stay so.
        let status = fs::read_to_string("/proc/self/status")?;
        let (interrupt, terminate, hangup) = {
            let _inside = runtime.enter();
            let hangup = if is_hangup_ignored(&status) { None } else { Some(signal(SignalKind::hangup())?) };
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, hangup)
        };
        Ok(Self { runtime, interrupt, terminate, hangup })
    }

    /// Waits for the next one.
    pub fn await_next(&mut self) {
        let Self { runtime, interrupt, terminate, hangup } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hung_up => {} }
        });
    }
}

/// Whether SIGHUP is among the ignored signals of a process (`SigIgn` in proc_pid_status(5)).
fn is_hangup_ignored(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nohup_is_understood() {
        assert!(is_hangup_ignored("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!is_hangup_ignored("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!is_hangup_ignored(""));
    }
}
