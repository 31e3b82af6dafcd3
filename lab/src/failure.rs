//! What a validation holds against somebody, one line each: phase, step, command, exit code, and what the control did.
//!
//! Pure: a report and what is known of its scenarios in, failures out. Terminals, pages, JUnit and the annotations of CI say the
//! same sentence, because all ask here.

use std::fmt;

use patchlab_check::{Outcome, Status};

use crate::{
    report::{BaselineReport, Failed, Report, ScenarioReport, StepReport},
    runs::Tested,
    verdict::{Judgement, Phase, Verdict},
};

/// Whose a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The patch's: it holds without, and not with it.
    Patch,
    /// The scenario's owner's: it fails without the patch.
    Owner,
    /// Nobody's: the scenario is in quarantine, so what it finds counts for nothing.
    Quarantine,
    /// The lab's: it says nothing about either.
    Lab,
}

/// A step that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure<'a> {
    /// Whose it is.
    pub blame: Blame,
    /// The baseline's full name.
    pub baseline: &'a str,
    /// When.
    pub phase: Phase,
    /// The scenario.
    pub scenario: &'a str,
    /// The step, or `check KIND`.
    pub step: &'a str,
    /// What is known of the scenario beyond its name.
    pub tested: Option<&'a Tested>,
    /// What both clones say together.
    pub verdict: Verdict,
    /// What the control did.
    pub control: Option<&'a Outcome>,
    /// What the patched clone did.
    pub patched: Option<&'a Outcome>,
    /// How often it failed, where it was done more than once.
    pub failed: Option<Failed>,
}

/// Everything that did not hold on a baseline, in the order in which it ran.
pub fn failures<'a>(report: &'a BaselineReport, tested: &'a [Tested]) -> Vec<Failure<'a>> {
    let steps = report.scenarios.iter().flat_map(|ran| ran.steps.iter().map(move |step| (ran, step)));
    steps.filter_map(|(ran, step)| failure(report, ran, step, tested)).collect()
}

/// What a baseline's verdict is held for, in one line: the first that is the patch's, or else the verdict's reason.
pub fn first_line(report: &BaselineReport, tested: &[Tested]) -> String {
    let first = failures(report, tested).into_iter().find(|failure| failure.blame == Blame::Patch);
    let first = first.filter(|_| report.verdict == Judgement::Rejected);
    first.map_or_else(|| report.reason.clone(), |failure| failure.to_string())
}

/// The same of a whole verdict, with the baseline that it is about.
pub fn headline(report: &Report, tested: &[Tested]) -> String {
    let worst = report.baselines.iter().find(|baseline| baseline.verdict == report.verdict);
    match worst.filter(|_| report.verdict == Judgement::Rejected) {
        Some(baseline) => format!("{}: {}", baseline.name, first_line(baseline, tested)),
        None => report.reason.clone(),
    }
}

fn failure<'a>(
    report: &'a BaselineReport,
    ran: &'a ScenarioReport,
    step: &'a StepReport,
    tested: &'a [Tested],
) -> Option<Failure<'a>> {
    let verdict = step.verdict?;
    let blame = blame(step)?;
    Some(Failure {
        blame: if report.quarantine(&ran.name).is_some() { Blame::Quarantine } else { blame },
        baseline: &report.name,
        phase: ran.phase,
        scenario: &ran.name,
        step: &step.name,
        tested: tested.iter().find(|tested| tested.name == ran.name),
        verdict,
        control: step.control.as_ref(),
        patched: step.patched.as_ref(),
        failed: step.failed,
    })
}

/// A step that fails without the patch is its owner's business, as long as it does not fail with it; an unstable one that failed on the
/// patched clone is the patch's, whatever the control did.
fn blame(step: &StepReport) -> Option<Blame> {
    let shown = step.patched.as_ref().is_some_and(|outcome| outcome.status == Status::Fail);
    let patched_failed = shown || step.failed.is_some_and(|failed| failed.patched > 0);
    match step.verdict? {
        Verdict::Pass => None,
        Verdict::Fixed | Verdict::PreExisting => Some(Blame::Owner),
        Verdict::Flaky if !patched_failed => Some(Blame::Owner),
        Verdict::Flaky | Verdict::Regression => Some(Blame::Patch),
        Verdict::Missing | Verdict::LabError => Some(Blame::Lab),
    }
}

impl Failure<'_> {
    /// What the step does: its command, as far as that is known.
    pub fn does(&self) -> Option<&str> {
        self.tested?.step(self.step).map(|(_, step)| step.does.as_str()).filter(|does| !does.is_empty())
    }

    /// Who answers for the scenario.
    pub fn owner(&self) -> &str {
        self.tested.map_or("its owner", |tested| tested.owner.as_str())
    }

    /// The first line of the step's command; a script may have many.
    fn command(&self) -> String {
        let Some(does) = self.does() else { return String::new() };
        let mut lines = does.lines();
        let first = lines.next().unwrap_or_default();
        let more = if lines.next().is_some() { " …" } else { "" };
        format!(", `{first}{more}`")
    }
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, phase, scenario, step, .. } = self;
        write!(f, "{verdict} {phase}: {scenario}/{step}{}: {}", self.command(), what(self.patched))?;
        match (self.control.map(|outcome| outcome.status), exit(self.control)) {
            (None, _) => f.write_str("; it did not run on the control")?,
            (Some(Status::Pass), exit) => write!(f, "; the control passes{exit}")?,
            (Some(Status::Fail), exit) => write!(f, "; the control fails{exit}")?,
            (Some(Status::Skip), _) => f.write_str("; the control skips it")?,
        }
        let is_unsteady = |failed: &Failed| match verdict {
            Verdict::Flaky => true,
            Verdict::Fixed => failed.control < failed.of,
            _ => false,
        };
        match self.failed.filter(is_unsteady) {
            Some(failed) => write!(f, "; it failed {failed}"),
            None => Ok(()),
        }
    }
}

/// What a clone did, in a few words.
fn what(outcome: Option<&Outcome>) -> String {
    let Some(outcome) = outcome else { return "did not run".into() };
    let word = match outcome.status {
        Status::Pass => "passes",
        Status::Fail => "fails",
        Status::Skip => "is skipped",
    };
    let exit = exit(Some(outcome));
    let reason = outcome.reason.lines().next().unwrap_or_default();
    match reason {
        "" => format!("{word}{exit}"),
        // The reason says the exit code by itself.
        reason if reason.starts_with("exit ") => format!("{word}, {reason}"),
        reason => format!("{word}{exit}, {reason}"),
    }
}

fn exit(outcome: Option<&Outcome>) -> String {
    outcome.and_then(|outcome| outcome.exit).map_or_else(String::new, |code| format!(" (exit {code})"))
}

#[cfg(test)]
mod tests {
    use patchlab_check::Digest;

    use super::*;
    use crate::{runs::TestedStep, scenario::Standing, verdict::tests::baseline};

    fn outcome(status: Status, exit: Option<i32>, reason: &str) -> Option<Outcome> {
        Some(Outcome { status, exit, ms: 1, output: String::new(), reason: reason.into(), samples: Vec::new() })
    }

    fn step(verdict: Verdict, control: Option<Outcome>, patched: Option<Outcome>) -> StepReport {
        StepReport { name: "config".into(), verdict: Some(verdict), control, patched, metric: None, failed: None }
    }

    fn report(step: StepReport) -> BaselineReport {
        let ran = ScenarioReport {
            name: "web-smoke".into(),
            phase: Phase::Applied,
            verdict: Verdict::Regression,
            reason: String::new(),
            steps: vec![step],
        };
        baseline("web@1", Judgement::Rejected, vec![ran])
    }

    fn tested(does: &str) -> Vec<Tested> {
        vec![Tested {
            name: "web-smoke".into(),
            owner: "qa-web".into(),
            summary: String::new(),
            digest: Digest::of(""),
            file: "scenario.toml".into(),
            steps: vec![TestedStep { name: "config".into(), does: does.into(), line: 9, file: None }],
        }]
    }

    #[test]
    fn the_first_line_names_phase_step_command_exit_code_and_what_the_control_did() {
        let pass = || outcome(Status::Pass, Some(0), "");
        let fail = outcome(Status::Fail, Some(1), "exit 1, expected 0");
        let report = report(step(Verdict::Regression, pass(), fail));
        let (known, script) = (tested("nginx -t"), tested("set -e\nnginx -t"));
        let said = |tested| failures(&report, tested)[0].to_string();
        let after = "fails, exit 1, expected 0; the control passes (exit 0)";
        assert_eq!(said(&known), format!("regression after the patch: web-smoke/config, `nginx -t`: {after}"));
        assert_eq!(said(&script), format!("regression after the patch: web-smoke/config, `set -e …`: {after}"));
        assert_eq!(said(&[]), format!("regression after the patch: web-smoke/config: {after}"));
        assert_eq!(first_line(&report, &known), said(&known), "and so does the verdict's");
    }

    #[test]
    fn what_fails_on_the_control_is_its_owners_and_a_pass_is_nobodys() {
        let of = |verdict, control, patched| {
            let report = report(step(verdict, outcome(control, None, ""), outcome(patched, None, "")));
            failures(&report, &tested("x")).first().map(|failure| failure.blame)
        };
        use Status::{Fail, Pass, Skip};
        assert_eq!(of(Verdict::Pass, Pass, Pass), None);
        assert_eq!(of(Verdict::Regression, Pass, Fail), Some(Blame::Patch));
        assert_eq!(of(Verdict::PreExisting, Fail, Fail), Some(Blame::Owner));
        assert_eq!(of(Verdict::Fixed, Fail, Pass), Some(Blame::Owner));
        assert_eq!(of(Verdict::Flaky, Fail, Pass), Some(Blame::Owner));
        assert_eq!(of(Verdict::Flaky, Pass, Fail), Some(Blame::Patch));
        assert_eq!(of(Verdict::Flaky, Fail, Fail), Some(Blame::Patch), "it failed with the patch");
        let counted = |patched| {
            let (fail, pass) = (outcome(Fail, None, ""), outcome(Pass, None, ""));
            let failed = Some(Failed { control: 1, patched, of: 2 });
            let report = report(StepReport { failed, ..step(Verdict::Flaky, fail, pass) });
            failures(&report, &[])[0].blame
        };
        assert_eq!((counted(0), counted(1)), (Blame::Owner, Blame::Patch), "shown is one attempt of several");
        assert_eq!(of(Verdict::Missing, Pass, Skip), Some(Blame::Lab));
    }

    #[test]
    fn what_a_scenario_in_quarantine_finds_is_nobodys_until_that_has_expired() {
        let mut report =
            report(step(Verdict::Regression, outcome(Status::Pass, None, ""), outcome(Status::Fail, None, "")));
        let aside = |standing| crate::report::QuarantinedScenario {
            name: "web-smoke".into(),
            standing,
            owner: "qa-web".into(),
            until: "2027-01-31".into(),
            ticket: "QA-7".into(),
        };
        report.quarantined = vec![aside(Standing::Holds)];
        assert_eq!(failures(&report, &[])[0].blame, Blame::Quarantine);
        let said = "web-smoke is in quarantine until 2027-01-31, owner qa-web, QA-7: it runs and rejects nothing";
        assert_eq!(report.aside(), [said]);
        report.quarantined = vec![aside(Standing::Expired)];
        assert_eq!(failures(&report, &[])[0].blame, Blame::Patch);
    }

    #[test]
    fn a_control_that_fails_or_did_not_run_is_said() {
        let fixed =
            report(step(Verdict::Fixed, outcome(Status::Fail, Some(7), ""), outcome(Status::Pass, Some(0), "")));
        let said = failures(&fixed, &[])[0].to_string();
        assert_eq!(said, "fixed after the patch: web-smoke/config: passes (exit 0); the control fails (exit 7)");
        let failed = Some(Failed { control: 1, patched: 0, of: 2 });
        let unsteady = step(Verdict::Fixed, outcome(Status::Fail, None, ""), outcome(Status::Pass, None, ""));
        let said = failures(&report(StepReport { failed, ..unsteady }), &[])[0].to_string();
        assert!(said.ends_with("it failed 0 of 2 times on the patched clone, 1 of 2 on the control"), "{said}");
        let missing = report(step(Verdict::Missing, None, None));
        let said = failures(&missing, &[])[0].to_string();
        assert!(said.ends_with("did not run; it did not run on the control"), "{said}");
    }
}
