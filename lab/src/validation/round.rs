//! One round of scenarios on both clones, repeated where a regression must be believed twice.

use std::time::Duration;

use patchlab_check::{
    Outcome, Status, Target as _,
    target::{Ended, Ran, TargetError},
};

use super::{Broke, Clones, Control, Event, Validation, joined, lab, other, reboot::reboot_and_resume};
use crate::{
    applier::Role,
    control::Stage,
    machine::{LabError, Machine},
    report::{BaselineReport, QuarantinedScenario, ScenarioReport, SkippedScenario},
    runs::Point,
    scenario::{Check, CheckKind, Occasion, Progress, Scenario, ScenarioRun, Seat, Suspected, Turns},
    verdict::{ATTEMPTS, Attempt, CheckRun, Compared, Phase, Presence, Verdict, compare_scenario},
};

/// How long a check's collector may take in a guest with kvm; scaled by the accelerator's factor.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(60);

impl Validation<'_> {
    /// Those of `scenarios` to which the lab gives what they require. What is skipped, and what is in quarantine, is told and stands in
    /// the report.
    pub(super) fn runnable<'s>(&self, scenarios: Vec<&'s Scenario>, report: &mut BaselineReport) -> Vec<&'s Scenario> {
        let hardware = &self.baseline.record.hardware;
        let mut runnable = Vec::with_capacity(scenarios.len());
        for scenario in scenarios {
            let name = &scenario.name;
            if let Some(reason) = scenario.unmet(hardware, |wanted| self.others.contains_key(wanted)) {
                (self.observer)(Event::Note(&format!("{name} is skipped: {reason}")));
                report.skipped.push(SkippedScenario { name: name.clone(), reason });
                continue;
            }
            if let Some(quarantine) = &scenario.quarantine {
                let aside = QuarantinedScenario::of(name, quarantine, self.today);
                (self.observer)(Event::Note(&aside.to_string()));
                report.quarantined.push(aside);
            }
            runnable.push(scenario);
        }
        runnable
    }

    /// Runs every scenario once on both clones at the same time, and again where the comparison asks for it.
    pub(super) fn round(
        &self,
        scenarios: &[&Scenario],
        clones: &Clones<'_>,
        stage: Stage,
        report: &mut BaselineReport,
    ) -> Result<(), Broke> {
        self.phase(&format!("scenarios {}", stage.phase));
        let wanted =
            |scenario: &Scenario, point: &&Point| point.phase == stage.phase && point.scenario == scenario.name;
        for scenario in scenarios {
            if let Some(point) = self.until.filter(|point| wanted(scenario, point)) {
                return Err(self.reach(scenario, clones, (stage, point)));
            }
            let (compared, patched_clone) = self.compared(scenario, clones, stage)?;
            if let (Control::Remembered(_), true) = (&clones.control, compared.verdict != Verdict::Pass) {
                return Err(Broke::Disagrees(format!("{} {}: {}", scenario.name, stage.phase, compared.reason)));
            }
            let how = compared.reason.clone();
            report.scenarios.push(compared);
            match patched_clone {
                Presence::There => {}
                // There is nobody left to ask.
                Presence::Lost if self.counts(&scenario.name) => break,
                Presence::Lost => return Err(Broke::Unruly { scenario: scenario.name.clone(), how }),
            }
        }
        Ok(())
    }

    /// Brings both clones to the point in a scenario at which somebody wants to look at them. What its steps give on the way is told, and
    /// nothing comes of it.
    fn reach(&self, scenario: &Scenario, clones: &Clones<'_>, (stage, point): (Stage, &Point)) -> Broke {
        if !scenario.machines.is_empty() {
            (self.observer)(Event::Note(
                "the machines beside the clones are not kept: what is done with them shows on the clones alone",
            ));
        }
        match self.attempt(&scenario.before(&point.step), stage, clones) {
            Ok(Attempt { control: Ok(_), patched: Ok(_), .. }) => Broke::Reached(point.clone()),
            Ok(Attempt { control: Err(reason), .. } | Attempt { patched: Err(reason), .. }) => {
                other("scenarios", reason)
            }
            Err(broke) => broke,
        }
    }

    /// A scenario on both clones, again as long as comparing asks for it.
    fn compared(
        &self,
        scenario: &Scenario,
        clones: &Clones<'_>,
        stage: Stage,
    ) -> Result<(ScenarioReport, Presence), Broke> {
        let mut attempts = Vec::new();
        while attempts.len() < ATTEMPTS {
            if let (false, Some(taking_away)) = (attempts.is_empty(), scenario.taking_away()) {
                self.attempt(&taking_away, stage, clones)?;
            }
            let mut attempt = self.attempt(scenario, stage, clones)?;
            if is_gone(&attempt.patched) && !is_gone(&attempt.control) {
                if let Control::Remembered(_) = clones.control {
                    let gone = attempt.patched.ok().and_then(|run| run.gone).unwrap_or_default();
                    return Err(Broke::Disagrees(format!("{}: the patched clone was lost in {gone}", scenario.name)));
                }
                attempt.patched_clone = self.power_cycle(&clones.patched)?;
            }
            let patched_clone = attempt.patched_clone;
            attempts.push(attempt);
            match compare_scenario(scenario, stage.phase, &attempts) {
                Compared::Verdict(compared) => return Ok((compared, patched_clone)),
                Compared::Repeat if matches!(clones.control, Control::Remembered(_)) => {
                    let failed = attempts.last().and_then(failed_step).unwrap_or("a step".into());
                    return Err(Broke::Disagrees(format!("{} {}: {failed}", scenario.name, stage.phase)));
                }
                Compared::Repeat => (self.observer)(Event::Note(&format!(
                    "{}: a step fails on the patched clone alone, or a metric cannot be told yet; both once more",
                    scenario.name
                ))),
            }
        }
        Err(other("scenarios", format!("{ATTEMPTS} attempts were not enough to compare {}", scenario.name)))
    }

    /// Whether the patched clone, which was lost, comes back when its power is cycled: the second look at the same.
    pub(super) fn power_cycle(&self, machine: &Machine) -> Result<Presence, Broke> {
        (self.observer)(Event::Note("the patched clone is lost, the control is not: power cycled"));
        let back = machine.power_cycle(self.reboot_timeout()).and_then(|_| match machine.lost()? {
            None => Ok(()),
            Some(loss) => Err(LabError::Lost { machine: machine.name().to_owned(), loss }),
        });
        match back {
            Ok(()) => {}
            Err(error) if error.is_of_the_machine() => return Ok(Presence::Lost),
            // One that switched itself off has no power to be cycled.
            Err(error) => match machine.lost() {
                Ok(Some(_)) => return Ok(Presence::Lost),
                _ => return Err(lab("power cycle")(error)),
            },
        }
        // What applies started on it before, and does on the control: a machine on which it starts no more is of no more use.
        match self.of_guest(|| self.applier.resume(Role::Patched, machine)) {
            Ok(()) => Ok(Presence::There),
            Err(_) => Ok(Presence::Lost),
        }
    }

    fn attempt(&self, scenario: &Scenario, stage: Stage, clones: &Clones<'_>) -> Result<Attempt, Broke> {
        let turns = Turns::default();
        let seats = (turns.seat(Role::Control), turns.seat(Role::Patched));
        let (control, patched) = std::thread::scope(|scope| {
            let control = scope.spawn(|| {
                clones.control.is(
                    |machine| Ok(self.run_on(scenario, stage.phase, machine, (Role::Control, seats.0))),
                    |record, run| {
                        if let Ok(run) = run {
                            record.keep_run(stage, run.clone());
                        }
                    },
                    |record| Some(Ok(record.run(stage, &scenario.name)?.clone())),
                )
            });
            let patched = self.run_on(scenario, stage.phase, &clones.patched, (Role::Patched, seats.1));
            (joined(control), patched)
        });
        let control = control?;
        let checks = match (&control, &patched) {
            (Ok(one), Ok(other)) if one.gone.is_none() && other.gone.is_none() => {
                let check = |check: &Check| self.check(*check, scenario, (stage, clones));
                scenario.checks.iter().map(check).collect::<Result<_, _>>()?
            }
            // What broke is told by the steps.
            _ => Vec::new(),
        };
        Ok(Attempt { control, patched, checks, patched_clone: Presence::There })
    }

    /// A scenario on one clone; the error says how the machine broke.
    fn run_on(
        &self,
        scenario: &Scenario,
        phase: Phase,
        machine: &Machine,
        (role, seat): (Role, Seat<'_>),
    ) -> Result<ScenarioRun, String> {
        let mut observe = |progress: Progress<'_>| {
            if let Progress::Ended { step, outcome } = progress {
                (self.observer)(Event::Step { scenario: &scenario.name, step, role, status: outcome.status });
            }
        };
        let reboot = |timeout| self.of_guest(|| reboot_and_resume(self.applier, role, machine, timeout));
        let occasion = Occasion {
            lab: self.lab,
            scenario,
            machine,
            baseline: self.baseline,
            others: self.others,
            name: &[phase.name(), role.name()],
            reboot: &reboot,
            seat: Some(seat),
            suspected: if role == Role::Patched { Suspected::Yes } else { Suspected::No },
        };
        occasion.run(&mut observe).map_err(|error| scenario.redacted(error.to_string()))
    }

    /// A check on both clones.
    fn check(
        &self,
        check: Check,
        scenario: &Scenario,
        (stage, clones): (Stage, &Clones<'_>),
    ) -> Result<CheckRun, Broke> {
        let collector = check.kind.collector(self.baseline.record.frozen.at);
        let broke = |error: TargetError| other("checks", error);
        let which = (scenario.name.as_str(), check.kind);
        // Before it is compared: of a control it is kept, and compared with what a later validation reads.
        let read = |machine: &Machine| {
            collected((check.kind, collector.as_deref()), machine).map(|text| scenario.redacted(text))
        };
        let (control, patched) = std::thread::scope(|scope| {
            let control = scope.spawn(|| {
                clones.control.is(
                    |machine| read(machine).map_err(broke),
                    |record, text| record.keep_read(stage, which, text.clone()),
                    |record| record.read(stage, which).map(str::to_owned),
                )
            });
            let patched = read(&clones.patched);
            (joined(control), patched)
        });
        let patched = patched.map_err(|error| self.of_patched(clones, stage.phase, broke(error)));
        let (control, patched) = (control?, patched?);
        let (control, patched) = check.outcomes(&check.compare(&control, &patched));
        let (control, patched) = (redacted(scenario, control), redacted(scenario, patched));
        Ok(CheckRun { name: check.kind.step_name(), control, patched })
    }
}

/// The first thing that fails on the patched clone, for people.
fn failed_step(attempt: &Attempt) -> Option<String> {
    let steps = attempt.patched.as_ref().ok()?.steps.iter().map(|step| (&step.name, &step.outcome));
    let mut all = steps.chain(attempt.checks.iter().map(|check| (&check.name, &check.patched)));
    let (name, outcome) = all.find(|(_, outcome)| outcome.status == Status::Fail)?;
    Some(format!("{name}: {}", outcome.reason))
}

fn is_gone(run: &Result<ScenarioRun, String>) -> bool {
    run.as_ref().is_ok_and(|run| run.gone.is_some())
}

fn redacted(scenario: &Scenario, outcome: Outcome) -> Outcome {
    let (output, reason) = (scenario.redacted(outcome.output), scenario.redacted(outcome.reason));
    Outcome { output, reason, ..outcome }
}

/// What a check reads: the collector's output, or the serial log.
fn collected((check, collector): (CheckKind, Option<&str>), machine: &Machine) -> Result<String, TargetError> {
    let timeout = COLLECT_TIMEOUT * machine.hardware().accelerator.factor();
    match collector {
        Some(command) => read(check, command, machine.guest().run(command, None, timeout)?, timeout),
        None => {
            is_on_the_console(check, machine.guest().run(ASKS_FOR_CONSOLE, None, timeout)?)?;
            machine.console().map_err(|error| TargetError {
                action: format!("{}: read {}", check.step_name(), machine.serial_log().display()),
                reason: error.to_string(),
            })
        }
    }
}

/// Asks a guest whether its kernel's messages go to the serial line that is written down: every console that does has a line (proc(5)). A
/// system that somebody else made may show them on a screen alone.
const ASKS_FOR_CONSOLE: &str = "grep -q '^ttyS0 ' /proc/consoles";

/// What the guest said to that: a log to which nothing is written is no good news.
fn is_on_the_console(check: CheckKind, ran: Ran) -> Result<(), TargetError> {
    if ran.ended == Ended::ByItself && ran.exit == Some(0) {
        return Ok(());
    }
    let said = ran.stderr.trim().chars().take(200).collect::<String>();
    Err(TargetError {
        action: format!("{}: ask for its console", check.step_name()),
        reason: format!(
            "its console is not on ttyS0 (/proc/consoles){}: have it boot with console=ttyS0, or leave this check out",
            if said.is_empty() { said } else { format!(": {said}") }
        ),
    })
}

/// What a collector wrote. One that failed looked at nothing: its silence is no good news.
fn read(check: CheckKind, command: &str, ran: Ran, timeout: Duration) -> Result<String, TargetError> {
    let reason = match (ran.ended, ran.exit) {
        (Ended::ByItself, Some(0)) => return Ok(ran.stdout),
        (Ended::ByTimeout, _) => format!("no end after {} s", timeout.as_secs()),
        (Ended::ByItself, exit) => {
            let exit = exit.map_or_else(|| "ended by a signal".to_owned(), |code| format!("exit {code}"));
            format!("{exit}: {}", ran.stderr.trim().chars().take(400).collect::<String>())
        }
    };
    // What every collector begins with says nothing.
    let own = command.split_once("# looks\n").map_or(command, |(_, own)| own);
    Err(TargetError {
        action: format!("{}: run {}", check.step_name(), own.trim().chars().take(200).collect::<String>()),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_console_that_nobody_writes_down_is_no_good_news() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("consoles");
        let asked = |consoles: &str| {
            std::fs::write(&file, consoles).unwrap();
            let command = ASKS_FOR_CONSOLE.replace("/proc/consoles", file.to_str().unwrap());
            let out = std::process::Command::new("/bin/sh").args(["-c", &command]).output().unwrap();
            let (stdout, stderr) = (String::new(), String::from_utf8(out.stderr).unwrap());
            let ran = Ran { exit: out.status.code(), stdout, stderr, written: 0, ended: Ended::ByItself };
            is_on_the_console(CheckKind::SerialPanic, ran)
        };
        let screen = "tty0                 -WU (EC p  )    4:7\n";
        let serial = "ttyS0                -W- (EC p a)    4:64\n";
        assert!(asked(serial).is_ok() && asked(&format!("{screen}{serial}")).is_ok());
        for elsewhere in [screen, "", "ttyS1                -W- (EC p a)    4:65\n"] {
            let error = asked(elsewhere).unwrap_err();
            assert_eq!(error.action, "check serial-panic: ask for its console");
            assert!(error.reason.starts_with("its console is not on ttyS0"), "{}", error.reason);
        }
    }

    #[test]
    fn a_collector_that_cannot_look_fails_by_name() {
        let timeout = Duration::from_secs(60);
        let collector = CheckKind::JournalErrors.collector(Timestamp::UNIX_EPOCH).unwrap();
        // A guest without the program: a folder of programs that has none.
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/bin/uname", dir.path().join("uname")).unwrap();
        let out =
            std::process::Command::new("/bin/sh").args(["-c", &collector]).env("PATH", dir.path()).output().unwrap();
        let ran = Ran {
            exit: out.status.code(),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
            written: 0,
            ended: Ended::ByItself,
        };
        let error = read(CheckKind::JournalErrors, &collector, ran.clone(), timeout).unwrap_err();
        assert!(error.action.contains("check journal-errors: run need journalctl"), "{}", error.action);
        assert_eq!(error.reason, "exit 1: there is no program journalctl: have the recipe install it");
        let well = Ran { exit: Some(0), ..ran };
        assert_eq!(read(CheckKind::JournalErrors, &collector, well, timeout).unwrap().lines().count(), 1);
    }
}
