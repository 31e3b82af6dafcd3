//! Machines that are lost: that cannot be asked any more, or do what nobody asked them to.
//!
//! A guest may hang, panic, switch itself off, fill the host's disk, or end the agent through which the lab speaks with it; what it says of
//! itself is worth nothing then. So it is looked at from outside: its console, its emulator, and whether a command in it is still obeyed.
//! Whose fault that is, is not said here: a validation compares with the control.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    sync::{PoisonError, mpsc},
    time::{Duration, Instant},
};

use patchlab_check::target::Ended;
use virt::{
    domain::{DomainPausedReason, DomainStateReason},
    enumutil::Enum,
};

use super::{FailureKind, Guest, GuestError, LabError, Machine, failed, failures_in};
use crate::room::Bytes;

/// How long a machine may be silent, with kvm; scaled by the accelerator's factor. An agent that is upgraded is away for less.
const SILENCE: Duration = Duration::from_secs(6);
/// How often a machine is looked at from outside while it is watched.
const LOOK: Duration = Duration::from_millis(500);
/// How often a machine that is watched is asked whether it is still the same boot.
const PULSE: Duration = Duration::from_secs(5);
/// How long an answer to that may take.
const PULSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Where the kernel says which boot this is (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Bytes of the emulator's log that are read, from its end.
const LOG_BYTES: u64 = 16 * 1024;

/// How a machine was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// Its kernel or its init gave up.
    #[error("its console says {line:?}")]
    Broken {
        /// How.
        kind: FailureKind,
        /// The console's line.
        line: String,
    },
    /// It is off, and nobody switched it off but itself.
    #[error("it switched itself off")]
    Off,
    /// It booted again, and nobody asked it to.
    #[error("it rebooted, and nothing asked it to")]
    Rebooted,
    /// No command is obeyed in it.
    #[error("it runs, and no command is obeyed in it for {} s ({reason})", silent.as_secs())]
    Silent {
        /// For how long.
        silent: Duration,
        /// What the last attempt gave.
        reason: String,
    },
    /// What was to act in it ended.
    #[error("{0}")]
    Ended(String),
    /// It wrote more to its disk than the host has room for.
    #[error("it wrote {written} to its disk, until the host had {free} left")]
    Disk {
        /// What its layer held.
        written: Bytes,
        /// What was left.
        free: Bytes,
    },
}

impl Machine {
    /// How long it may be silent before it counts as lost.
    pub fn silence(&self) -> Duration {
        SILENCE * self.hardware.accelerator.factor()
    }

    /// How the machine was lost, if it was: what console and emulator show counts at once, silence when it lasts for
    /// [`Self::silence`].
    ///
    /// # Errors
    /// The lab broke.
    pub fn lost(&self) -> Result<Option<Loss>, LabError> {
        let _awaiting = self.guest_time.awaiting();
        let (begun, patience) = (Instant::now(), self.silence());
        loop {
            if let Some(loss) = self.seen()? {
                return Ok(Some(loss));
            }
            let silent = begun.elapsed();
            match self.obeys(patience.saturating_sub(silent)) {
                Ok(boot) => return Ok(self.is_other_boot(&boot).then_some(Loss::Rebooted)),
                Err(reason) if silent >= patience => return Ok(Some(Loss::Silent { silent, reason })),
                Err(_) => std::thread::sleep(LOOK.min(patience.saturating_sub(silent))),
            }
        }
    }

    /// Watches the machine until `over` has something or its other side is gone, or until it is lost. `others` looks at more, now and
    /// then.
    ///
    /// # Errors
    /// The lab broke.
    pub fn watch(
        &self,
        over: &mpsc::Receiver<()>,
        others: &mut dyn FnMut() -> Option<Loss>,
    ) -> Result<Option<Loss>, LabError> {
        let mut heard = Instant::now();
        let mut asked = Instant::now();
        while over.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
            if let Some(loss) = self.seen()? {
                return Ok(Some(loss));
            }
            if asked.elapsed() < PULSE {
                continue;
            }
            match self.pulse() {
                Ok(boot) if self.is_other_boot(&boot) => return Ok(Some(Loss::Rebooted)),
                Ok(_) => heard = Instant::now(),
                Err(error) if heard.elapsed() >= self.silence() => {
                    return Ok(Some(Loss::Silent { silent: heard.elapsed(), reason: error.reason }));
                }
                Err(_) => {}
            }
            if let Some(loss) = others() {
                return Ok(Some(loss));
            }
            asked = Instant::now();
        }
        Ok(None)
    }

    /// Remembers which boot this is: from now on another one is a loss.
    pub(super) fn remember_boot(&self, boot: &str) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = Some(boot.to_owned());
    }

    /// Remembers that nobody knows which boot this is.
    pub(super) fn forget_boot(&self) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_other_boot(&self, boot: &str) -> bool {
        self.boot.lock().unwrap_or_else(PoisonError::into_inner).as_deref().is_some_and(|known| known != boot)
    }

    /// What can be seen without asking it.
    pub(super) fn seen(&self) -> Result<Option<Loss>, LabError> {
        if let Some(loss) = self.ward.loss() {
            return Ok(Some(loss));
        }
        let fatal = |kind: FailureKind| matches!(kind, FailureKind::Panic | FailureKind::Emergency);
        let said = failures_in(&self.serial, self.overlooked());
        let found = said.map_err(failed("read", &self.serial))?.into_iter().find(|failure| fatal(failure.kind));
        if let Some(failure) = found {
            return Ok(Some(Loss::Broken { kind: failure.kind, line: failure.line }));
        }
        let stopped = |reason: String| LabError::Stopped { machine: self.name.clone(), reason };
        // Not by its state: virt 0.5 gives one of a domain that libvirt does not know, too.
        if !self.domain.is_active().unwrap_or(false) {
            return match ended_by(&self.log()).as_deref() {
                Some("shutdown") => Ok(Some(Loss::Off)),
                Some(word) => Err(stopped(format!("its emulator ended: {word}"))),
                None => Err(stopped("its emulator is gone".into())),
            };
        }
        let (_, reason) = self.domain.state().map_err(|error| stopped(error.message().to_owned()))?;
        let halted = Enum::Known(DomainStateReason::Paused(Enum::Known(DomainPausedReason::IOError)));
        match reason == halted {
            true => Err(stopped("its emulator cannot write its disk: is this host's full?".into())),
            false => Ok(None),
        }
    }

    /// Which boot it says this is. No process is started for that.
    fn pulse(&self) -> Result<String, GuestError> {
        let bytes = self.guest().read_file(BOOT_ID, 64, PULSE_TIMEOUT)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Runs a command in it the way steps do: which boot it says this is, or why it does not.
    fn obeys(&self, timeout: Duration) -> Result<String, String> {
        let ran = self.guest().run_within(&format!("cat {BOOT_ID}"), "/", (timeout, timeout));
        let ran = ran.map_err(|error| error.reason)?;
        match (ran.ended, ran.exit) {
            (Ended::ByItself, Some(0)) => Ok(ran.stdout.trim().to_owned()),
            (Ended::ByTimeout, _) => Err(format!("cat had not ended after {} s", timeout.as_secs())),
            (_, exit) => Err(format!("cat: exit {exit:?}: {}", ran.stderr.trim())),
        }
    }

    /// Which boot this is, by its own word.
    pub(super) fn boot_id(guest: &Guest, timeout: Duration) -> Result<String, GuestError> {
        let bytes = guest.script(&format!("cat {BOOT_ID}"), &[], timeout)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

/// By what an emulator ended, as libvirt wrote it down: `shutdown` when the guest switched itself off, `crashed`, `destroyed`.
fn ended_by(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    last_reason(&String::from_utf8_lossy(&bytes))
}

/// `2026-01-02 03:04:05.678+0000: shutting down, reason=shutdown`
fn last_reason(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|line| line.contains(": shutting down, reason="))?;
    Some(line.rsplit_once('=')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_an_emulator_ended_is_read_from_its_log() {
        let log = "2026-01-02 03:04:05.678+0000: starting up libvirt\n\
                   2026-01-02 03:05:05.678+0000: shutting down, reason=crashed\n\
                   2026-01-02 03:06:05.678+0000: starting up libvirt\nqemu: terminating on signal 15\n\
                   2026-01-02 03:07:05.678+0000: shutting down, reason=shutdown\n";
        assert_eq!(last_reason(log).as_deref(), Some("shutdown"));
        assert_eq!(last_reason("2026: starting up\n"), None);
        assert_eq!(ended_by(Path::new("/nobody")), None);
    }

    #[test]
    fn a_loss_says_what_was_seen() {
        let silent = Loss::Silent { silent: Duration::from_secs(48), reason: "not connected".into() };
        assert_eq!(silent.to_string(), "it runs, and no command is obeyed in it for 48 s (not connected)");
        let disk = Loss::Disk { written: Bytes(3 << 30), free: Bytes(400 << 20) };
        assert_eq!(disk.to_string(), "it wrote 3.0 GiB to its disk, until the host had 400 MiB left");
    }
}
