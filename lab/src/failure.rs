//! What a validation holds against somebody, one line each: phase, step, command, exit code, and what the control did.
//!
//! Pure: a report and what is known of its scenarios in, failures out. Terminals, pages, JUnit and the annotations of CI say the
//! same sentence, because all ask here.

use std::fmt;

use patchlab_check::{Outcome, Status};

use crate::{
    report::{BaselineReport, ScenarioReport, StepReport},
    runs::Tested,
    verdict::{Phase, Verdict},
};

/// Whose a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The patch's: it holds without, and not with it.
    Patch,
    /// The scenario's owner's: it fails without the patch.
    Owner,
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
}

/// Everything that did not hold on a baseline, in the order in which it ran.
pub fn failures<'a>(report: &'a BaselineReport, tested: &'a [Tested]) -> Vec<Failure<'a>> {
    let steps = report.scenarios.iter().flat_map(|ran| ran.steps.iter().map(move |step| (ran, step)));
    steps.filter_map(|(ran, step)| failure(&report.name, ran, step, tested)).collect()
}

fn failure<'a>(
    baseline: &'a str,
    ran: &'a ScenarioReport,
    step: &'a StepReport,
    tested: &'a [Tested],
) -> Option<Failure<'a>> {
    let verdict = step.verdict?;
    Some(Failure {
        blame: blame(verdict, step.control.as_ref())?,
        baseline,
        phase: ran.phase,
        scenario: &ran.name,
        step: &step.name,
        tested: tested.iter().find(|tested| tested.name == ran.name),
        verdict,
        control: step.control.as_ref(),
        patched: step.patched.as_ref(),
    })
}

/// A step that fails on the control is its owner's business, whatever the patch did to it; an unstable one is the patch's, until
/// the control was the one that failed.
fn blame(verdict: Verdict, control: Option<&Outcome>) -> Option<Blame> {
    let control_fails = control.is_some_and(|outcome| outcome.status == Status::Fail);
    match verdict {
        Verdict::Pass => None,
        Verdict::Fixed | Verdict::PreExisting => Some(Blame::Owner),
        Verdict::Flaky if control_fails => Some(Blame::Owner),
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
            (None, _) => f.write_str("; it did not run on the control"),
            (Some(Status::Pass), exit) => write!(f, "; the control passes{exit}"),
            (Some(Status::Fail), exit) => write!(f, "; the control fails{exit}"),
            (Some(Status::Skip), _) => f.write_str("; the control skips it"),
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
    use crate::{
        runs::TestedStep,
        verdict::{Judgement, tests::baseline},
    };

    fn outcome(status: Status, exit: Option<i32>, reason: &str) -> Option<Outcome> {
        Some(Outcome { status, exit, ms: 1, output: String::new(), reason: reason.into(), samples: Vec::new() })
    }

    fn step(verdict: Verdict, control: Option<Outcome>, patched: Option<Outcome>) -> StepReport {
        StepReport { name: "config".into(), verdict: Some(verdict), control, patched, metric: None }
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
            steps: vec![TestedStep { name: "config".into(), does: does.into(), line: 9 }],
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
        assert_eq!(of(Verdict::Missing, Pass, Skip), Some(Blame::Lab));
    }

    #[test]
    fn a_control_that_fails_or_did_not_run_is_said() {
        let fixed =
            report(step(Verdict::Fixed, outcome(Status::Fail, Some(7), ""), outcome(Status::Pass, Some(0), "")));
        let said = failures(&fixed, &[])[0].to_string();
        assert_eq!(said, "fixed after the patch: web-smoke/config: passes (exit 0); the control fails (exit 7)");
        let missing = report(step(Verdict::Missing, None, None));
        let said = failures(&missing, &[])[0].to_string();
        assert!(said.ends_with("did not run; it did not run on the control"), "{said}");
    }
}
