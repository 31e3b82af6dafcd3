//! Machines: clones of a baseline under libvirt, made inside a worker.
//!
//! [`Lab`] is the connection to libvirt; [`Lab::clone_baseline`] takes the clone ladder and gives a [`Machine`], whose inside
//! is a [`Guest`]; [`PreparedClones`] have some wait before they are asked for; [`Lab::resume`] goes on from one that was saved
//! ([`Machine::save`]). Dropping a machine destroys it. All calls block; a caller with an executor moves them off it.

mod budget;
mod clone;
mod domain;
mod foreign;
mod guest;
mod guest_time;
mod handshake;
mod lan;
mod libvirt;
mod loss;
mod panel;
mod prepared;
mod saved;
mod serial;
mod steward;
mod stream;
mod terminal;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use virt::domain::Domain;

pub use self::{
    clone::{CloneReport, CloneSpec, Rung},
    domain::{Forward, GUEST_ADDRESS, GUEST_MAC, HOST_ADDRESS, Hardware, Protocol, Screen, TOOLS_BYTES},
    guest::{Answer, Guest, GuestError},
    guest_time::{Awaiting, GuestTime},
    handshake::Handshake,
    lan::Lan,
    libvirt::{Lab, Versions},
    loss::Loss,
    prepared::{Prepared, PreparedClones, wanted},
    saved::{Saved, SavedFile},
    serial::{Failure, FailureKind, LOG_HEAD, LOG_TAIL, ends, failures, failures_in, last_lines, said},
    steward::CLONE_DISK,
    terminal::{TERMINAL, Terminal, Tty},
};
pub(crate) use self::{
    clone::{DiskFate, Plan, Template, unfit},
    domain::{Description, MACHINE, Memory, Opening, Owner},
    foreign::{end_all, has, look},
    stream::Carried,
};
use budget::Budget;
pub(crate) use domain::escape;
#[cfg(test)]
pub(crate) use foreign::ANSWER_TIMEOUT;
pub(crate) use foreign::{Elsewhere, asked_within, elsewhere};
pub(crate) use handshake::{FROZEN_PROOF, rehearse};
use libvirt::{Traces, flatten};
pub(crate) use libvirt::{installed_qemu, start_events};
use panel::Panel;
use steward::{Steward, Ward};

/// A machine could not be made or used: the lab's failure, never the patch's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// libvirt said no.
    #[error("libvirt: cannot {action} {subject}: {reason}")]
    Libvirt {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// libvirt's own words.
        reason: String,
    },
    /// A libvirt that runs by itself says nothing.
    #[error(
        "libvirt at {uri} does not answer within {} s (it runs and hangs, or is stopped: `systemctl restart libvirtd`)",
        timeout.as_secs()
    )]
    Silent {
        /// Where.
        uri: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// QEMU's monitor said no.
    #[error("machine {machine}: monitor command {command}: {reason}")]
    Monitor {
        /// Which machine.
        machine: String,
        /// What it was told.
        command: String,
        /// What it answered.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("machine {machine}: {event} did not happen within {} s{evidence}", timeout.as_secs())]
    Timeout {
        /// Which machine.
        machine: String,
        /// What was waited for.
        event: String,
        /// How long.
        timeout: Duration,
        /// What is known beside; starts with `: ` when there is anything.
        evidence: String,
    },
    /// The machine is lost.
    #[error("machine {machine} is lost: {loss}")]
    Lost {
        /// Which machine.
        machine: String,
        /// How.
        loss: Loss,
    },
    /// The machine was stopped from outside, or its emulator broke.
    #[error("machine {machine} was stopped: {reason}")]
    Stopped {
        /// Which machine.
        machine: String,
        /// What is known of it.
        reason: String,
    },
    /// A unit that has to be active failed.
    #[error("machine {machine}: {unit} failed; its journal ends: {said}")]
    FailedUnit {
        /// Which machine.
        machine: String,
        /// The unit.
        unit: String,
        /// The last lines of its journal.
        said: String,
    },
    /// A baseline's template is of no use on this host.
    #[error("baseline {baseline} cannot be cloned here: {reason}; it can be booted")]
    Unfit {
        /// Which baseline.
        baseline: String,
        /// Why.
        reason: String,
    },
    /// The guest agent.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The clone did not get an identity of its own.
    #[error("machine {machine}: handshake failed: {reason}")]
    Handshake {
        /// Which machine.
        machine: String,
        /// Why.
        reason: String,
    },
    /// The second disk does not fit.
    #[error("tools disk {path} has {found} bytes, not {TOOLS_BYTES}: template and clones must agree on its size")]
    ToolsSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        found: u64,
    },
    /// The file system said no.
    #[error("lab: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl LabError {
    /// Whether it is the machine's word on itself (it panicked, a unit of it failed, or it did not answer in time) rather than the
    /// lab's failure.
    pub fn is_of_the_machine(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Lost { .. } | Self::FailedUnit { .. })
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LabError {
    let path = path.to_owned();
    move |source| LabError::Io { action, path, source }
}

/// An error with what caused it.
pub(crate) fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// How often a machine's state is asked for while it changes.
const POLL: Duration = Duration::from_millis(4);

/// A running machine. Dropping it destroys it and takes away its files.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// Its name at libvirt.
    known_as: String,
    domain: Domain,
    hardware: Hardware,
    disk: PathBuf,
    fate: DiskFate,
    serial: PathBuf,
    traces: Traces,
    report: CloneReport,
    handshake: Option<Handshake>,
    ready_units: Vec<String>,
    guest_time: GuestTime,
    /// Bytes of its console log that another machine of its name wrote.
    anothers: u64,
    /// Bytes of its console log that do not say whether it lives: those of another machine, and those before its power was cycled.
    overlooked: AtomicU64,
    /// Which boot it is, as far as somebody knows.
    boot: Mutex<Option<String>>,
    ward: Ward,
    /// What gives it its network, where its own emulator does not.
    _panel: Option<Panel>,
    /// Keeps its baseline where it is: its disk is a layer over that one's.
    hold: Option<fs::File>,
}

impl Machine {
    /// Its name, unique in its lab; also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its inside.
    pub fn guest(&self) -> Guest {
        Guest::new(self.domain.clone(), self.name.clone(), self.guest_time.clone())
    }

    /// How it was made, and how fast.
    pub fn report(&self) -> &CloneReport {
        &self.report
    }

    /// The proof that it is nobody's twin.
    pub fn handshake(&self) -> Option<&Handshake> {
        self.handshake.as_ref()
    }

    /// What it is made of.
    pub fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// Its console log.
    pub fn serial_log(&self) -> &Path {
        &self.serial
    }

    /// What its console said.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn console(&self) -> io::Result<String> {
        said(&self.serial, self.anothers)
    }

    /// The last lines that its console said.
    pub fn last_lines(&self, lines: usize) -> Vec<String> {
        last_lines(&self.serial, lines).unwrap_or_default()
    }

    /// How far its clock is from the lab's. The guest's answer is taken for one from the middle of the way there and back.
    ///
    /// # Errors
    /// It does not say.
    pub fn clock_off(&self) -> Result<Duration, GuestError> {
        let nanoseconds = handshake::clock_lacks_ns(&self.guest())?.unsigned_abs();
        Ok(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// Its disk: a layer over its baseline's.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Writes a file into the guest; `mode` are permission bits.
    pub fn put_file(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), GuestError> {
        self.guest().put_file(path, bytes, mode)
    }

    /// Writes small files into a folder, all at once: each process costs a guest under software emulation more than their bytes do.
    ///
    /// # Errors
    /// They are too large together, the guest's agent does not answer, or the guest's disk says no.
    pub fn put_files(&self, dir: &str, files: &[(&str, &[u8])], mode: u32) -> Result<(), GuestError> {
        self.guest().put_files(dir, files, mode)
    }

    /// Takes a picture of its screen, a PNG, to `to`.
    ///
    /// # Errors
    /// It has no screen, or the file cannot be written.
    pub fn screenshot(&self, to: &Path) -> Result<(), LabError> {
        self.monitor("screendump", json!({ "filename": to, "format": "png" })).map(drop)
    }

    /// Reboots the guest by its own init and waits until its baseline's units are active again. How long it took.
    pub fn reboot(&self, timeout: Duration) -> Result<Duration, LabError> {
        let begun = Instant::now();
        let _awaiting = self.guest_time.awaiting();
        let guest = self.guest();
        let boot_id = || Self::boot_id(&guest, Duration::from_secs(20));
        let before = boot_id()?;
        self.forget_boot();
        // The agent dies while it answers: what it says does not matter.
        let _ = guest.script("systemctl reboot", &[], Duration::from_secs(20));
        loop {
            self.check_alive("a reboot", begun, timeout)?;
            match boot_id() {
                Ok(now) if now != before => {
                    self.remember_boot(&now);
                    break;
                }
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        self.wait_units(timeout.saturating_sub(begun.elapsed()))?;
        Ok(begun.elapsed())
    }

    /// Resets the machine, as its power button does, and waits until its baseline's units are active again. What its console said before
    /// does not matter any more. How long it took.
    ///
    /// # Errors
    /// It does not come back in time, or the lab broke.
    pub fn power_cycle(&self, timeout: Duration) -> Result<Duration, LabError> {
        let begun = Instant::now();
        let _awaiting = self.guest_time.awaiting();
        let guest = self.guest();
        self.overlook();
        self.forget_boot();
        self.monitor("system_reset", json!({}))?;
        while guest.ping().is_err() {
            self.check_alive("its first answer after its power was cycled", begun, timeout)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.remember_boot(&Self::boot_id(&guest, Duration::from_secs(20))?);
        self.wait_units(timeout.saturating_sub(begun.elapsed()))?;
        Ok(begun.elapsed())
    }

    /// Waits until a machine whose kernel panicked has rebooted by itself and its baseline's units are active again. What its console
    /// says until then does not matter. How long it took.
    ///
    /// # Errors
    /// It does not come back in time, or the lab broke.
    pub fn await_return(&self, timeout: Duration) -> Result<Duration, LabError> {
        let begun = Instant::now();
        let _awaiting = self.guest_time.awaiting();
        let guest = self.guest();
        self.forget_boot();
        loop {
            self.overlook();
            if guest.ping().is_ok() {
                break;
            }
            self.check_alive("its return by itself", begun, timeout)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        self.remember_boot(&Self::boot_id(&guest, Duration::from_secs(20))?);
        self.wait_units(timeout.saturating_sub(begun.elapsed()))?;
        Ok(begun.elapsed())
    }

    /// From now on what the console said so far does not say whether the machine lives.
    fn overlook(&self) {
        self.overlooked.store(fs::metadata(&self.serial).map_or(0, |log| log.len()), Ordering::Relaxed);
    }

    /// Shuts the guest down by its own init and waits until the machine is off.
    ///
    /// # Errors
    /// It is not off in time, or its console shows a failure.
    pub fn shut_down(&self, timeout: Duration) -> Result<(), LabError> {
        let begun = Instant::now();
        let _awaiting = self.guest_time.awaiting();
        // The agent dies while it answers: what it says does not matter.
        let _ = self.guest().script("systemctl poweroff", &[], Duration::from_secs(20));
        while self.domain.is_active().unwrap_or(false) {
            match self.check_alive("the end of its shutdown", begun, timeout) {
                // It went off between the two looks.
                Err(LabError::Lost { .. } | LabError::Stopped { .. }) if !self.domain.is_active().unwrap_or(false) => {
                    break;
                }
                other => other?,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Memory that this machine alone accounts for, in KiB: its process's proportional set size.
    pub fn pss_kib(&self) -> Result<u64, LabError> {
        let pid = self.emulator_pid()?;
        let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        text.lines()
            .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| failed("find Pss in", &path)(io::ErrorKind::InvalidData.into()))
    }

    /// The emulator's command line, as libvirt made it.
    pub fn command_line(&self) -> Result<Vec<String>, LabError> {
        let path = PathBuf::from(format!("/proc/{}/cmdline", self.emulator_pid()?));
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
    }

    /// Ends a machine that is off and writes its disk, with all that it was a layer over, to `to`: a disk of its own.
    ///
    /// # Errors
    /// It still runs, or the file cannot be written.
    pub fn into_disk(self, to: &Path) -> Result<(), LabError> {
        // One that is off is no longer known to libvirt. A disk that is still written to is locked by QEMU, and qemu-img says so.
        if self.domain.is_active().unwrap_or(false) {
            let source = io::Error::other("the machine still runs");
            return Err(failed("take the disk of", &self.disk)(source));
        }
        flatten(&self.disk, to)?;
        self.destroy()
    }

    /// Destroys it and takes away its files. The console log stays.
    pub fn destroy(self) -> Result<(), LabError> {
        self.destroy_now()
    }

    fn destroy_now(&self) -> Result<(), LabError> {
        if self.domain.is_active().unwrap_or(false) {
            self.domain.destroy().map_err(|error| LabError::Libvirt {
                action: "destroy",
                subject: self.name.clone(),
                reason: error.message().to_owned(),
            })?;
        }
        if self.fate == DiskFate::Keep {
            return Ok(());
        }
        match fs::remove_file(&self.disk) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.disk)(error)),
            _ => Ok(()),
        }
    }

    /// The emulator's process, by the file in which libvirt keeps its number.
    fn emulator_pid(&self) -> Result<u32, LabError> {
        let path = self.traces.state.join(format!("{}.pid", self.known_as));
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        text.trim().parse().map_err(|_| failed("understand", &path)(io::ErrorKind::InvalidData.into()))
    }

    /// Stops its processors.
    pub(crate) fn pause(&self) -> Result<(), LabError> {
        let broken = |error: virt::error::Error| LabError::Libvirt {
            action: "pause",
            subject: self.name.clone(),
            reason: error.message().to_owned(),
        };
        self.domain.suspend().map_err(broken)
    }

    /// libvirt's description of it, as it runs.
    pub(crate) fn description(&self) -> Result<String, LabError> {
        self.domain.xml_desc(0).map_err(|error| LabError::Libvirt {
            action: "describe",
            subject: self.name.clone(),
            reason: error.message().to_owned(),
        })
    }

    /// One monitor command.
    pub(crate) fn monitor(&self, command: &str, arguments: Value) -> Result<Value, LabError> {
        let refused = |reason: &str| LabError::Monitor {
            machine: self.name.clone(),
            command: command.to_owned(),
            reason: reason.to_owned(),
        };
        let request = json!({ "execute": command, "arguments": arguments }).to_string();
        let answer = self.domain.qemu_monitor_command(&request, 0).map_err(|error| refused(error.message()))?;
        let mut answer: Value = serde_json::from_str(&answer).map_err(|error| refused(&error.to_string()))?;
        match answer["error"]["desc"].as_str() {
            Some(reason) => Err(refused(reason)),
            None => Ok(answer["return"].take()),
        }
    }

    /// Polls the monitor until `reached` says yes.
    pub(crate) fn await_monitor(
        &self,
        event: &str,
        command: &str,
        timeout: Duration,
        mut reached: impl FnMut(&Value) -> Result<bool, String>,
    ) -> Result<(), LabError> {
        let begun = Instant::now();
        loop {
            let state = self.monitor(command, json!({}))?;
            let reason = match reached(&state) {
                Ok(true) => return Ok(()),
                Ok(false) if begun.elapsed() < timeout => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Ok(false) => {
                    let (machine, event) = (self.name.clone(), event.to_owned());
                    return Err(LabError::Timeout { machine, event, timeout, evidence: format!(": {state}") });
                }
                Err(reason) => reason,
            };
            return Err(LabError::Monitor { machine: self.name.clone(), command: command.to_owned(), reason });
        }
    }

    /// Waits for the first answer of the guest agent.
    pub(crate) fn wait_agent(&self, timeout: Duration) -> Result<(), LabError> {
        self.wait_agent_while(timeout, |_| Ok(()))
    }

    /// Waits for the first answer of the guest agent as long as what the console says gives hope.
    pub(crate) fn wait_agent_while(
        &self,
        timeout: Duration,
        mut hope: impl FnMut(&str) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        let begun = Instant::now();
        let _awaiting = self.guest_time.awaiting();
        let guest = self.guest();
        loop {
            match guest.ping() {
                Ok(()) => return Ok(()),
                Err(_) => self.check_alive("the guest agent's first answer", begun, timeout)?,
            }
            hope(&self.console().unwrap_or_default())?;
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the units that make this baseline ready are active. A failed one ends the wait at once.
    pub(crate) fn wait_units(&self, timeout: Duration) -> Result<(), LabError> {
        if self.ready_units.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let _awaiting = self.guest_time.awaiting();
        let guest = self.guest();
        let script = r#"systemctl show --property=Id,ActiveState --value -- "$@"; exit 0"#;
        let units: Vec<&str> = self.ready_units.iter().map(String::as_str).collect();
        loop {
            let shown = guest.script(script, &units, Duration::from_secs(60))?;
            let shown = String::from_utf8_lossy(&shown).into_owned();
            let words: Vec<&str> = shown.split_whitespace().collect();
            if words.iter().filter(|word| **word == "active").count() == units.len() {
                return Ok(());
            }
            if let Some(position) = words.iter().position(|word| *word == "failed") {
                let unit = words.get(position.saturating_sub(1)).copied().unwrap_or_default();
                return Err(self.failed_unit(&guest, unit));
            }
            self.check_alive(&format!("units active ({})", words.join(" ")), begun, timeout)?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A unit that has to be active failed, in its own last words. That it did stands, whether or not its journal can be read.
    fn failed_unit(&self, guest: &Guest, unit: &str) -> LabError {
        let script = r#"journalctl --unit "$1" --lines 20 --output cat --no-pager | grep -v '^$' | tail -n 6"#;
        let said = guest.script(script, &[unit], Duration::from_secs(60)).unwrap_or_default();
        let said: Vec<String> = String::from_utf8_lossy(&said).lines().map(|line| line.trim().to_owned()).collect();
        LabError::FailedUnit { machine: self.name.clone(), unit: unit.to_owned(), said: said.join("; ") }
    }

    /// Fails when the time is over, the console shows a failure, or the machine does not run.
    fn check_alive(&self, event: &str, begun: Instant, timeout: Duration) -> Result<(), LabError> {
        if begun.elapsed() > timeout {
            let last = self.last_lines(1).pop().unwrap_or_default();
            let last = last.trim();
            let evidence = if last.is_empty() { String::new() } else { format!(": its console ends with {last:?}") };
            return Err(LabError::Timeout { machine: self.name.clone(), event: event.into(), timeout, evidence });
        }
        match self.seen()? {
            None => Ok(()),
            Some(loss) => Err(LabError::Lost { machine: self.name.clone(), loss }),
        }
    }

    /// Bytes of its console log that no longer say whether it lives.
    fn overlooked(&self) -> u64 {
        self.overlooked.load(Ordering::Relaxed)
    }

    /// The emulator's log.
    fn log(&self) -> PathBuf {
        self.traces.logs.join(format!("{}.log", self.known_as))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.destroy_now() {
            tracing::warn!(machine = %self.name, %error, "left for the end of its worker");
        }
    }
}
