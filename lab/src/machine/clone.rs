//! The clone ladder: from a running template in well under a second, or by a cold boot when the template does not fit.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::PoisonError,
    time::{Duration, Instant},
};

use patchlab_check::Digest;
use serde::{Deserialize, Serialize};
use virt::sys;

use super::{
    Carried, Description, Forward, Hardware, Lab, LabError, MACHINE, Machine, Memory, Opening, Owner, Panel, Prepared,
    TOOLS_BYTES, Versions, failed, handshake, with_source,
};
use crate::{
    accelerator::Accelerator,
    baseline::{Baseline, hold},
};

/// What a clone is to be.
#[derive(Debug, Clone, Default)]
pub struct CloneSpec {
    /// Its name and host name: letters, digits, dashes. A number is appended when it is taken.
    pub name: String,
    /// A raw image of exactly [`TOOLS_BYTES`] bytes, shown as a second, read-only disk (`/dev/vdb`).
    pub tools: Option<PathBuf>,
    /// Ports of the worker that lead into the guest.
    pub forwards: Vec<Forward>,
}

/// How a machine came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Its memory is mapped copy-on-write from a running template's.
    TemplateClone,
    /// Its memory and devices were loaded from what was saved of a machine.
    SaveImage,
    /// It booted its own disk.
    ColdBoot,
}

impl Rung {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TemplateClone => "template-clone",
            Self::SaveImage => "save-image",
            Self::ColdBoot => "cold-boot",
        }
    }
}

/// How a machine was made, and how fast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneReport {
    /// The rung taken.
    pub rung: Rung,
    /// Why a higher rung was not, when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// libvirt's start of the emulator, milliseconds.
    pub start_ms: u64,
    /// Loading of the device state, milliseconds; 0 for a cold boot.
    pub incoming_ms: u64,
    /// From the request to the guest's first answer, milliseconds; a prepared clone was started and loaded before the request.
    pub ready_ms: u64,
    /// The handshake after it, milliseconds.
    pub handshake_ms: u64,
}

/// All that the start of one machine needs.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) hardware: Hardware,
    pub(crate) memory: Memory,
    pub(crate) disk: PathBuf,
    pub(crate) fate: DiskFate,
    pub(crate) tools: PathBuf,
    pub(crate) forwards: Vec<Forward>,
    pub(crate) ready_units: Vec<String>,
    pub(crate) flags: sys::virDomainCreateFlags,
    pub(crate) rung: Rung,
}

/// A frozen machine's files, and what a machine made of them is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Template<'a> {
    /// Where its `disk.qcow2`, `ram` and `state` are.
    pub(crate) folder: &'a Path,
    pub(crate) hardware: &'a Hardware,
    pub(crate) ready_units: &'a [String],
}

impl<'a> From<&'a Baseline> for Template<'a> {
    fn from(baseline: &'a Baseline) -> Self {
        let record = &baseline.record;
        Self { folder: &baseline.folder, hardware: &record.hardware, ready_units: &record.ready_units }
    }
}

/// What becomes of a machine's disk when it is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskFate {
    /// It goes: a layer.
    Remove,
    /// It stays: a template's.
    Keep,
}

/// How long the steps of a template clone may take, with kvm.
pub(super) const CLONE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a cold boot may take until the agent answers, with kvm.
pub(super) const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

impl Lab {
    /// A running clone of a baseline, by the highest rung that works; with its handshake done.
    pub fn clone_baseline(&self, baseline: &Baseline, spec: &CloneSpec) -> Result<Machine, LabError> {
        let frozen = &baseline.record.frozen;
        let fallback =
            match unfit(&frozen.versions.qemu, &frozen.host_cpu, &self.versions().qemu, &baseline.record.hardware) {
                None => match self.template_clone(baseline, spec) {
                    Ok(machine) => return self.introduce(machine),
                    Err(error) => with_source(&error),
                },
                Some(reason) => reason,
            };
        tracing::warn!(baseline = %baseline.record.name, reason = %fallback, "no template clone: cold boot");
        self.boot(baseline, spec, Some(fallback)).and_then(|machine| self.introduce(machine))
    }

    /// A machine that boots a baseline's disk by its own bootloader and kernel; with its handshake done.
    pub fn cold_boot(&self, baseline: &Baseline, spec: &CloneSpec) -> Result<Machine, LabError> {
        self.boot(baseline, spec, None).and_then(|machine| self.introduce(machine))
    }

    /// A machine that boots a baseline's disk and keeps the identity that it finds there: what is made of it is to be the baseline's
    /// successor ([`Machine::into_disk`]), nobody's sibling.
    pub fn boot_unintroduced(&self, baseline: &Baseline, spec: &CloneSpec) -> Result<Machine, LabError> {
        self.boot(baseline, spec, None)
    }

    /// A template clone that has done all it can do before somebody needs it, and waits.
    ///
    /// # Errors
    /// It could not be made, or this host cannot clone the template: then only a cold boot helps, which nobody prepares.
    pub fn prepare_clone(&self, baseline: &Baseline, spec: &CloneSpec) -> Result<Prepared, LabError> {
        let frozen = &baseline.record.frozen;
        match unfit(&frozen.versions.qemu, &frozen.host_cpu, &self.versions().qemu, &baseline.record.hardware) {
            None => self.prepare(&baseline.into(), spec),
            Some(reason) => Err(LabError::Unfit { baseline: baseline.full_name(), reason }),
        }
    }

    /// A clone of a template, paused and without an identity of its own.
    pub(crate) fn prepare(&self, template: &Template<'_>, spec: &CloneSpec) -> Result<Prepared, LabError> {
        let begun = Instant::now();
        let timeout = CLONE_TIMEOUT * template.hardware.accelerator.factor();
        let memory = self.template_memory(template)?;
        let mut machine = self.start(template, spec, memory, sys::VIR_DOMAIN_START_PAUSED, Rung::TemplateClone)?;
        machine.report.start_ms = millis(begun);
        let loading = Instant::now();
        machine.load(&template.folder.join("state"), Carried::Devices, timeout)?;
        machine.report.incoming_ms = millis(loading);
        Ok(Prepared::new(machine, timeout))
    }

    fn template_clone(&self, baseline: &Baseline, spec: &CloneSpec) -> Result<Machine, LabError> {
        let begun = Instant::now();
        let mut machine = self.prepare(&baseline.into(), spec)?.wake()?;
        machine.report.ready_ms = millis(begun);
        Ok(machine)
    }

    /// The template's memory file. Before 8.2, QEMU opens it for writing, though it never writes: then every worker needs a
    /// copy, made once.
    fn template_memory(&self, template: &Template<'_>) -> Result<Memory, LabError> {
        let file = template.folder.join("ram");
        if opens_read_only(&self.versions().qemu) {
            return Ok(Memory::Clone(file, Opening::ReadOnly));
        }
        let copy = self.places.work.join(format!("ram-{}", Digest::of(file.display().to_string()).short()));
        let _one_at_a_time = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !copy.exists() {
            let partial = copy.with_extension("partial");
            fs::copy(&file, &partial).map_err(failed("copy", &file))?;
            fs::rename(&partial, &copy).map_err(failed("rename", &partial))?;
        }
        Ok(Memory::Clone(copy, Opening::ReadWrite))
    }

    fn boot(&self, baseline: &Baseline, spec: &CloneSpec, fallback: Option<String>) -> Result<Machine, LabError> {
        let begun = Instant::now();
        let hardware = self.bootable(&baseline.record.hardware, &baseline.record.frozen.versions);
        let template = Template { hardware: &hardware, ..baseline.into() };
        let mut machine = self.start(&template, spec, Memory::Plain, sys::VIR_DOMAIN_NONE, Rung::ColdBoot)?;
        machine.report.start_ms = millis(begun);
        machine.report.fallback = fallback;
        let timeout = BOOT_TIMEOUT * machine.hardware.accelerator.factor();
        machine.wait_agent(timeout)?;
        machine.report.ready_ms = millis(begun);
        machine.wait_units(timeout.saturating_sub(begun.elapsed()))?;
        Ok(machine)
    }

    /// Gives a machine an identity of its own.
    pub(crate) fn introduce(&self, mut machine: Machine) -> Result<Machine, LabError> {
        let begun = Instant::now();
        let timeout = CLONE_TIMEOUT * machine.hardware.accelerator.factor();
        let handshake = handshake::shake(&machine.guest(), &machine.name, timeout)?;
        let mut introduced = self.introduced.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = introduced.admit(&machine.name, &handshake);
        drop(introduced);
        admitted.map_err(|reason| LabError::Handshake { machine: machine.name.clone(), reason })?;
        machine.remember_boot(&handshake.boot_id);
        machine.handshake = Some(handshake);
        machine.report.handshake_ms = millis(begun);
        Ok(machine)
    }

    fn start(
        &self,
        template: &Template<'_>,
        spec: &CloneSpec,
        memory: Memory,
        flags: sys::virDomainCreateFlags,
        rung: Rung,
    ) -> Result<Machine, LabError> {
        let tools = match &spec.tools {
            Some(path) => check_tools(path)?.to_owned(),
            None => self.empty_tools()?,
        };
        let hold = hold(template.folder).map_err(failed("hold", template.folder))?;
        let name = self.free_name(&spec.name);
        let disk = self.layer(&template.folder.join("disk.qcow2"), &name)?;
        let hardware = Hardware { accelerator: self.usable(template.hardware), ..template.hardware.clone() };
        let (forwards, ready_units) = (spec.forwards.clone(), template.ready_units.to_vec());
        let fate = DiskFate::Remove;
        let plan = Plan { name, hardware, memory, disk, fate, tools, forwards, ready_units, flags, rung };
        let mut machine = self.start_as(plan)?;
        machine.hold = hold;
        Ok(machine)
    }

    /// Starts a machine on a disk of its own.
    pub(crate) fn start_as(&self, plan: Plan) -> Result<Machine, LabError> {
        let serial = self.places.work.join(format!("{}.console", plan.name));
        // The log of a machine stays when it goes, and one of the same name goes on with it.
        let anothers = fs::metadata(&serial).map_or(0, |log| log.len());
        let prefix = self.lent.as_ref().map_or("", |lent| &lent.prefix);
        let known_as = format!("{prefix}{}", plan.name);
        let socket = self.places.work.join(format!("{}.net", plan.name));
        let owner = match &self.lent {
            None => Owner::Worker(&plan.forwards),
            Some(lent) => Owner::Lender { socket: &socket, security: &lent.security },
        };
        let description = Description {
            name: &known_as,
            hardware: &plan.hardware,
            memory: plan.memory,
            disk: &plan.disk,
            tools: &plan.tools,
            serial: &serial,
            owner,
        };
        let ends_with_us = self.lent.as_ref().map_or(0, |_| sys::VIR_DOMAIN_START_AUTODESTROY);
        let domain = self.create(&description, plan.flags | ends_with_us)?;
        let panel = self.lent.as_ref().map(|_| Panel::join(&socket, &plan.forwards)).transpose()?;
        let ward = self.steward.take(&plan.name, &domain, &serial, (&plan.disk, plan.fate));
        let report =
            CloneReport { rung: plan.rung, fallback: None, start_ms: 0, incoming_ms: 0, ready_ms: 0, handshake_ms: 0 };
        Ok(Machine {
            name: plan.name,
            known_as,
            domain,
            hardware: plan.hardware,
            disk: plan.disk,
            fate: plan.fate,
            serial,
            traces: self.traces.clone(),
            report,
            handshake: None,
            ready_units: plan.ready_units,
            guest_time: self.guest_time.clone(),
            anothers,
            overlooked: anothers.into(),
            boot: Default::default(),
            ward,
            _panel: panel,
            hold: None,
        })
    }

    /// What boots cold of what was made by another QEMU: this one need not know that one's name for the type of machine.
    pub(super) fn bootable(&self, hardware: &Hardware, made_by: &Versions) -> Hardware {
        match made_by.qemu == self.versions().qemu {
            true => hardware.clone(),
            false => Hardware { machine: MACHINE.into(), ..hardware.clone() },
        }
    }

    /// A baseline frozen under kvm may be booted cold where there is none.
    pub(super) fn usable(&self, hardware: &Hardware) -> Accelerator {
        match hardware.accelerator {
            Accelerator::Kvm if !Accelerator::Kvm.opens() => Accelerator::Tcg,
            other => other,
        }
    }

    fn free_name(&self, wanted: &str) -> String {
        // Claimed by its disk's file at once: another thread may ask for the same name.
        let claim = |name: &str| {
            let file = self.places.work.join(format!("{name}.qcow2"));
            !matches!(fs::File::create_new(file), Err(error) if error.kind() == io::ErrorKind::AlreadyExists)
        };
        if claim(wanted) {
            return wanted.to_owned();
        }
        loop {
            let name = format!("{wanted}-{}", self.next_number());
            if claim(&name) {
                return name;
            }
        }
    }
}

/// Why a state that was made by that QEMU on that processor is of no use with this QEMU here; `None` when it is.
pub(crate) fn unfit(made_by: &str, made_on: &str, here: &str, hardware: &Hardware) -> Option<String> {
    if made_by != here {
        return Some(format!("it was frozen under QEMU {made_by}, this host has {here}"));
    }
    if hardware.accelerator == Accelerator::Kvm && !Accelerator::Kvm.opens() {
        return Some("it was frozen under kvm, which this host does not offer to the lab".into());
    }
    if hardware.accelerator == Accelerator::Kvm && made_on != crate::accelerator::host_cpu() {
        return Some(format!("it was frozen on another processor ({made_on})"));
    }
    None
}

/// Whether this QEMU can map a file that it may not write to (`rom=off`, 8.2).
fn opens_read_only(qemu: &str) -> bool {
    let mut numbers = qemu.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (8, 2)
}

fn check_tools(path: &Path) -> Result<&Path, LabError> {
    let found = fs::metadata(path).map_err(failed("read", path))?.len();
    if found == TOOLS_BYTES { Ok(path) } else { Err(LabError::ToolsSize { path: path.to_owned(), found }) }
}

pub(super) fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_qemu_needs_a_file_of_its_own() {
        assert_eq!(["7.2.0", "8.1.5", "8.2.0", "10.0.2"].map(opens_read_only), [false, false, true, true]);
    }

    #[test]
    fn another_qemu_needs_a_cold_boot_and_says_so() {
        let hardware =
            Hardware { memory_mib: 1, vcpus: 1, accelerator: Accelerator::Tcg, machine: "q35".into(), screen: None };
        assert_eq!(unfit("10.0.2", "x", "10.0.2", &hardware), None);
        let reason = unfit("10.0.2", "x", "7.2.0", &hardware).unwrap();
        assert!(reason.contains("10.0.2") && reason.contains("7.2.0"), "{reason}");
    }
}
