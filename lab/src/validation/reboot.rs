//! The reboot of both clones that follows a patch.

use std::time::Duration;

use super::{Broke, Clones, Control, Event, Validation, joined, lab, millis, other, pass::REBOOTED};
use crate::{
    applier::{Applier, ApplierError, NextBoot, Role},
    machine::Machine,
    report::BaselineReport,
    scenario::RebootError,
    verdict::{self, Phase, Verdict},
};

/// Time for a reboot with kvm; scaled by the accelerator's factor.
const REBOOT_TIMEOUT: Duration = Duration::from_secs(60);

impl Validation<'_> {
    pub(super) fn reboot_timeout(&self) -> Duration {
        REBOOT_TIMEOUT * self.baseline.record.hardware.accelerator.factor()
    }

    /// Reboots both clones. A patched one that does not come back, while the control does, stands in the report.
    pub(super) fn reboot(&self, clones: &Clones<'_>, report: &mut BaselineReport) -> Result<(), Broke> {
        self.phase("reboot");
        let timeout = self.reboot_timeout();
        let reboot =
            |role, machine: &Machine| self.of_guest(|| reboot_and_resume(self.applier, role, machine, timeout));
        let broke = |error: RebootError| match error {
            RebootError::Lab(source) => lab("reboot")(source),
            RebootError::Applier(error) => other("reboot", error),
        };
        let (control, patched) = std::thread::scope(|scope| {
            let control = scope.spawn(|| {
                clones.control.is(
                    |machine| reboot(Role::Control, machine).map(millis).map_err(broke),
                    |record, ms| record.keep_reboot(REBOOTED, *ms),
                    |record| record.reboot_ms(REBOOTED),
                )
            });
            let patched = reboot(Role::Patched, &clones.patched);
            (joined(control), patched)
        });
        let control_ms = control?;
        let Err(error) = patched else { return Ok(()) };
        let is_lost = match &error {
            RebootError::Lab(error) => error.is_of_the_machine() || matches!(clones.patched.lost(), Ok(Some(_))),
            // What applies started again on the control.
            RebootError::Applier(_) => true,
        };
        if !is_lost {
            return Err(broke(error));
        }
        if let Control::Remembered(_) = clones.control {
            return Err(Broke::Disagrees(format!("the patched clone does not come back from its reboot: {error}")));
        }
        let error = match self.fallen_back(&clones.patched, error) {
            Ok(reason) => {
                report.scenarios.push(verdict::of_the_machine(
                    Phase::Rebooted,
                    verdict::BOOTS,
                    &reason,
                    Verdict::Regression,
                ));
                return Ok(());
            }
            Err(error) => error,
        };
        let back = self.power_cycle(&clones.patched)?;
        report.scenarios.push(verdict::lost_in_reboot(control_ms, &error.to_string(), back));
        Ok(())
    }

    /// What the patched clone's own agent says of a reboot that went wrong; the error again when it does not. A clone that tried a kernel
    /// once is given the time to come back from it by itself, as a host would.
    fn fallen_back(&self, patched: &Machine, error: RebootError) -> Result<String, RebootError> {
        let on_trial = self.applier.next_boot(patched) == NextBoot::KernelOnTrial;
        let error = match error {
            RebootError::Lab(error) if on_trial && error.is_of_the_machine() => {
                (self.observer)(Event::Note(&format!(
                    "{error}: waits for the kernel of before, which should come by itself"
                )));
                let returned = || -> Result<(), RebootError> {
                    patched.await_return(self.reboot_timeout())?;
                    Ok(self.applier.resume(Role::Patched, patched)?)
                };
                // What it came back from stands, also when nothing is said of it.
                self.of_guest(returned).err().unwrap_or(RebootError::Lab(error))
            }
            error => error,
        };
        match error {
            RebootError::Applier(ApplierError::Failed { reason, .. }) => Ok(reason),
            error => Err(error),
        }
    }
}

/// Reboots a clone and starts again what applies: the one way in which a clone reboots. How long its reboot took.
pub(super) fn reboot_and_resume(
    applier: &dyn Applier,
    role: Role,
    machine: &Machine,
    timeout: Duration,
) -> Result<Duration, RebootError> {
    let took = machine.reboot(timeout)?;
    applier.resume(role, machine)?;
    Ok(took)
}
