//! The two sides of a validation: the patched clone, and what it is compared with.

use std::sync::{Mutex, PoisonError};

use super::{Against, Broke, Event, Validation, joined, lab, other};
use crate::{
    applier::Role,
    control::ControlRecord,
    machine::{CloneSpec, Machine},
    report::{BaselineReport, CloneTimes},
};

/// Both sides.
pub(super) struct Clones<'a> {
    pub(super) control: Control<'a>,
    pub(super) patched: Machine,
}

/// What the patched clone is compared with.
pub(super) enum Control<'a> {
    /// A machine, and what it was found to be until now.
    Beside(Box<Machine>, Mutex<ControlRecord>),
    /// What one was found to be under the same conditions.
    Remembered(&'a ControlRecord),
}

impl Validation<'_> {
    /// Makes them.
    pub(super) fn clones(&self, report: &mut BaselineReport) -> Result<Clones<'_>, Broke> {
        self.phase("clone");
        let (control, patched) = std::thread::scope(|scope| {
            let control = scope.spawn(|| match self.against {
                Against::Beside => {
                    let notes = ControlRecord::begun(jiff::Timestamp::now());
                    Ok(Control::Beside(Box::new(self.make(Role::Control)?), Mutex::new(notes)))
                }
                Against::Remembered(record) => Ok(Control::Remembered(record)),
            });
            let patched = self.make(Role::Patched);
            (joined(control), patched)
        });
        let clones = Clones { control: control?, patched: patched? };
        let made = clones.patched.report();
        report.clone = Some(CloneTimes {
            rung: made.rung.name().to_owned(),
            fallback: made.fallback.clone(),
            ready_ms: made.ready_ms,
            handshake_ms: made.handshake_ms,
        });
        Ok(clones)
    }

    fn make(&self, role: Role) -> Result<Machine, Broke> {
        let spec = CloneSpec {
            name: role.name().to_owned(),
            tools: self.applier.tools().map(Into::into),
            forwards: self.applier.forwards(role),
        };
        let machine = self.lab.clone_baseline(self.baseline, &spec).map_err(lab("clone"))?;
        if let Some(reason) = &machine.report().fallback {
            (self.observer)(Event::Note(&format!("{} was booted instead of cloned: {reason}", role.name())));
        }
        if let Some(handshake) = machine.handshake() {
            (self.observer)(Event::Evidence(&format!("{}: {handshake}", role.name())));
        }
        for line in self.of_guest(|| self.applier.prepare(role, &machine)).map_err(|error| other("prepare", error))? {
            (self.observer)(Event::Evidence(&format!("{}: {line}", role.name())));
        }
        Ok(machine)
    }
}

impl Clones<'_> {
    /// The machines that there are.
    pub(super) fn machines(&self) -> impl Iterator<Item = (Role, &Machine)> {
        let control = self.control.machine().map(|machine| (Role::Control, machine));
        control.into_iter().chain([(Role::Patched, &self.patched)])
    }

    /// Does the same on both at the same time; nothing for a control that is remembered.
    pub(super) fn both<T: Send>(&self, work: impl Fn(Role, &Machine) -> T + Sync) -> (Option<T>, T) {
        std::thread::scope(|scope| {
            let control = self.control.machine().map(|machine| scope.spawn(|| work(Role::Control, machine)));
            let patched = work(Role::Patched, &self.patched);
            (control.map(joined), patched)
        })
    }
}

impl Control<'_> {
    /// The machine, where there is one.
    pub(super) fn machine(&self) -> Option<&Machine> {
        match self {
            Self::Beside(machine, _) => Some(machine),
            Self::Remembered(_) => None,
        }
    }

    /// What it is in a stage: found out now and written down, or remembered.
    pub(super) fn is<T>(
        &self,
        find_out: impl FnOnce(&Machine) -> Result<T, Broke>,
        write_down: impl FnOnce(&mut ControlRecord, &T),
        remember: impl FnOnce(&ControlRecord) -> Option<T>,
    ) -> Result<T, Broke> {
        match self {
            Self::Beside(machine, notes) => {
                let found = find_out(machine)?;
                write_down(&mut notes.lock().unwrap_or_else(PoisonError::into_inner), &found);
                Ok(found)
            }
            Self::Remembered(record) => {
                let unknown = || Broke::Disagrees("this is not remembered of the control".to_owned());
                remember(record).ok_or_else(unknown)
            }
        }
    }
}
