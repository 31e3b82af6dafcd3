//! One round of scenarios on both clones, repeated where a regression must be believed twice.

use std::{collections::BTreeSet, time::Duration};

use patchlab_check::{Outcome, Status, Target as _, target::TargetError};

use super::{Broke, Clones, Event, Validation, both, other};
use crate::{
    applier::Role,
    machine::Machine,
    report::BaselineReport,
    scenario::{Check, CheckKind, Progress, Scenario, ScenarioRun, differential, evaluate_check, run},
    verdict::{Attempt, CheckRun, Compared, Phase, compare_scenario},
};

/// Where a scenario's folder is in a guest. No manifest covers it, and, unlike `/run`, scripts may be run there.
const GUEST_DIR: &str = "/var/tmp/patchlab-scenarios";
/// How long a check's collector may take in a guest.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(120);
/// Findings of a check that are shown.
const SHOWN: usize = 10;

impl Validation<'_> {
    /// Runs every scenario once on both clones at the same time, and once more where the first comparison asks for it.
    pub(super) fn round(
        &self,
        scenarios: &[&Scenario],
        clones: &Clones,
        phase: Phase,
        report: &mut BaselineReport,
    ) -> Result<(), Broke> {
        self.phase(&format!("scenarios {phase}"));
        for scenario in scenarios {
            let mut attempts = vec![self.attempt(scenario, clones)?];
            let compared = match compare_scenario(scenario, phase, &attempts) {
                Compared::Verdict(compared) => compared,
                Compared::Repeat => {
                    (self.observer)(Event::Note(&format!(
                        "{}: a step fails on the patched clone alone; both once more",
                        scenario.name
                    )));
                    attempts.push(self.attempt(scenario, clones)?);
                    match compare_scenario(scenario, phase, &attempts) {
                        Compared::Verdict(compared) => compared,
                        Compared::Repeat => return Err(other("scenarios", "two attempts were not enough to compare")),
                    }
                }
            };
            report.scenarios.push(compared);
        }
        Ok(())
    }

    fn attempt(&self, scenario: &Scenario, clones: &Clones) -> Result<Attempt, Broke> {
        let run = |role| self.run_on(scenario, role, clones.of(role));
        let (control, patched) = both(run);
        let checks = match (&control, &patched) {
            (Ok(_), Ok(_)) => scenario
                .checks
                .iter()
                .filter_map(|check| self.check(*check, clones).transpose())
                .collect::<Result<_, _>>()?,
            // What broke is told by the steps.
            _ => Vec::new(),
        };
        Ok(Attempt { control, patched, checks })
    }

    /// A scenario on one clone; the error says how the machine broke.
    fn run_on(&self, scenario: &Scenario, role: Role, machine: &Machine) -> Result<ScenarioRun, String> {
        let dir = format!("{GUEST_DIR}/{}", scenario.name);
        for file in scenario.files().map_err(|error| error.to_string())? {
            let bytes = std::fs::read(&file.path).map_err(|error| format!("{}: {error}", file.path.display()))?;
            // Whoever may read a file of the folder may run it, if it is meant to be run.
            let mode = if file.mode & 0o111 == 0 { 0o644 } else { 0o755 };
            machine.put_file(&format!("{dir}/{}", file.relative), &bytes, mode).map_err(|error| error.to_string())?;
        }
        let mut observe = |progress: Progress<'_>| {
            if let Progress::Ended { step, outcome } = progress {
                (self.observer)(Event::Step { scenario: &scenario.name, step, role, status: outcome.status });
            }
        };
        run(scenario, &machine.guest(), &dir, &mut observe).map_err(|error| error.to_string())
    }

    /// A check on both clones; `None` for a kind that this version does not evaluate.
    fn check(&self, check: Check, clones: &Clones) -> Result<Option<CheckRun>, Broke> {
        let found = |role| findings(check.kind, clones.of(role));
        let (control, patched) = both(found);
        let broke = |error: TargetError| other("checks", error);
        let (Some(control), Some(patched)) = (control.map_err(broke)?, patched.map_err(broke)?) else {
            return Ok(None);
        };
        let statuses = differential(check.level, &control, &patched);
        Ok(Some(CheckRun {
            name: format!("check {}", check.kind.name()),
            control: outcome(statuses.0, &control),
            patched: outcome(statuses.1, &patched),
        }))
    }
}

fn findings(kind: CheckKind, machine: &Machine) -> Result<Option<BTreeSet<String>>, TargetError> {
    let text = match kind.collector() {
        Some(command) => machine.guest().run(command, None, COLLECT_TIMEOUT)?.stdout,
        None if kind == CheckKind::SerialPanic => std::fs::read(machine.serial_log())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| TargetError {
                action: format!("read {}", machine.serial_log().display()),
                reason: error.to_string(),
            })?,
        None => return Ok(None),
    };
    Ok(evaluate_check(kind, &text))
}

fn outcome(status: Status, findings: &BTreeSet<String>) -> Outcome {
    let shown: Vec<&str> = findings.iter().take(SHOWN).map(String::as_str).collect();
    let reason = match status {
        Status::Pass | Status::Skip => String::new(),
        Status::Fail => format!("{} found: {}", findings.len(), shown.join("; ")),
    };
    Outcome { status, exit: None, ms: 0, output: shown.join("\n"), reason }
}
