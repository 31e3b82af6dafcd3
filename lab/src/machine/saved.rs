//! A machine saved whole, memory, devices and disk of one moment in files, and machines that go on from there.
//!
//! The second rung of the clone ladder. A template's memory is a file that its clones map; a clone's own memory is a
//! private mapping, so here all of it is written out with the devices' state, and read back into memory of the new
//! machine's own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use virt::sys;

use super::{
    Carried, Hardware, Lab, LabError, Machine, Memory, Plan, Rung, Versions,
    clone::{BOOT_TIMEOUT, CLONE_TIMEOUT, DiskFate, millis, unfit},
    failed, with_source,
};
use crate::accelerator::host_cpu;

/// How long writing a machine's whole state may take: some hundred MiB, beside others who write.
const SAVE_TIMEOUT: Duration = Duration::from_secs(300);

/// A machine as it was at one moment; its files are in a folder, named by [`Saved::file`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Its name and host name.
    pub machine: String,
    /// What it was made of. A machine that goes on from here is made of the same.
    pub hardware: Hardware,
    /// What ran it.
    pub versions: Versions,
    /// The host's processor; matters under kvm.
    pub host_cpu: String,
}

/// A file of a saved machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedFile {
    /// Memory and devices, as QEMU's migration stream.
    State,
    /// Its disk: a layer over its baseline's.
    Disk,
    /// What its console said.
    Console,
}

impl SavedFile {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::State, Self::Disk, Self::Console];
}

impl Saved {
    /// One of its files in the folder it was saved to.
    pub fn file(&self, folder: &Path, file: SavedFile) -> PathBuf {
        named(folder, &self.machine, file)
    }
}

fn named(folder: &Path, machine: &str, file: SavedFile) -> PathBuf {
    let suffix = match file {
        SavedFile::State => "state",
        SavedFile::Disk => "qcow2",
        SavedFile::Console => "console",
    };
    folder.join(format!("{machine}.{suffix}"))
}

impl Machine {
    /// Stops its processors and writes its memory, devices, disk and console to `folder`, which must be on the file
    /// system of its lab's own folder. It does not run again.
    pub fn save(self, lab: &Lab, folder: &Path) -> Result<Saved, LabError> {
        let file = |file| named(folder, &self.name, file);
        self.write_state(&file(SavedFile::State), Carried::DevicesAndMemory, SAVE_TIMEOUT)?;
        // QEMU has handed its disk over: what it held of it in memory is in the file.
        let disk = file(SavedFile::Disk);
        fs::rename(&self.disk, &disk).map_err(failed("keep", &self.disk))?;
        let console = file(SavedFile::Console);
        fs::copy(&self.serial, &console).map_err(failed("copy", &self.serial))?;
        let (machine, hardware) = (self.name.clone(), self.hardware.clone());
        self.destroy()?;
        Ok(Saved { machine, hardware, versions: lab.versions().clone(), host_cpu: host_cpu() })
    }

    /// Lets a machine whose state is loaded go on, until its guest agent answers.
    pub(super) fn go_on(&self, timeout: Duration) -> Result<(), LabError> {
        self.domain.resume().map_err(|error| LabError::Libvirt {
            action: "resume",
            subject: self.name.clone(),
            reason: error.message().to_owned(),
        })?;
        self.await_monitor("running", "query-status", timeout, |status| Ok(status["status"] == "running"))?;
        self.wait_agent(timeout)
    }
}

impl Lab {
    /// A machine that goes on from the moment in which `saved` was saved, on a new layer over its disk: `folder` never
    /// changes.
    /// `tools` is the image that was its second disk. Where the state does not fit this host, the disk is booted
    /// instead, and the report says why.
    ///
    /// It keeps the identity it was saved with.
    pub fn resume(&self, saved: &Saved, folder: &Path, tools: &Path) -> Result<Machine, LabError> {
        let fallback = match unfit(&saved.versions.qemu, &saved.host_cpu, &self.versions().qemu, &saved.hardware) {
            None => match self.go_on_from(saved, folder, tools) {
                Ok(machine) => return Ok(machine),
                Err(error) => with_source(&error),
            },
            Some(reason) => reason,
        };
        tracing::warn!(machine = %saved.machine, reason = %fallback, "its saved state is of no use here: cold boot of its disk");
        let begun = Instant::now();
        let mut machine = self.start_saved(saved, folder, tools, Memory::Plain)?;
        machine.report.start_ms = millis(begun);
        machine.report.fallback = Some(fallback);
        machine.wait_agent(BOOT_TIMEOUT * machine.hardware.accelerator.factor())?;
        machine.report.ready_ms = millis(begun);
        Ok(machine)
    }

    fn go_on_from(&self, saved: &Saved, folder: &Path, tools: &Path) -> Result<Machine, LabError> {
        let begun = Instant::now();
        let timeout = CLONE_TIMEOUT * saved.hardware.accelerator.factor();
        let mut machine = self.start_saved(saved, folder, tools, Memory::Saved)?;
        machine.report.start_ms = millis(begun);
        let loading = Instant::now();
        machine.load(&saved.file(folder, SavedFile::State), Carried::DevicesAndMemory, timeout)?;
        machine.report.incoming_ms = millis(loading);
        machine.go_on(timeout)?;
        machine.report.ready_ms = millis(begun);
        Ok(machine)
    }

    fn start_saved(&self, saved: &Saved, folder: &Path, tools: &Path, memory: Memory) -> Result<Machine, LabError> {
        let (flags, rung, hardware) = match memory {
            Memory::Saved => (sys::VIR_DOMAIN_START_PAUSED, Rung::SaveImage, saved.hardware.clone()),
            _ => (sys::VIR_DOMAIN_NONE, Rung::ColdBoot, self.bootable(&saved.hardware, &saved.versions)),
        };
        self.start_as(Plan {
            name: saved.machine.clone(),
            hardware: Hardware { accelerator: self.usable(&saved.hardware), ..hardware },
            memory,
            disk: self.layer(&saved.file(folder, SavedFile::Disk), &saved.machine)?,
            fate: DiskFate::Remove,
            tools: tools.to_owned(),
            forwards: Vec::new(),
            ready_units: Vec::new(),
            flags,
            rung,
        })
    }
}
