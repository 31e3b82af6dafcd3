//! Verdicts as JUnit XML, for CI: one suite a baseline, one case a step and phase, and a case each for apply and rollback.
//!
//! `regression` and `flaky` are failures; `lab-error`, `missing` and an order that cannot be applied are errors; what failed
//! before as well is skipped with its reason, since the patch is not to blame, and so is what a scenario in quarantine finds. A scenario
//! that was skipped, or is in quarantine, has a case that says so.

use std::time::Duration;

use patchlab_check::Outcome;
use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use crate::{
    failure::{Blame, Failure, failures, first_line},
    report::{BaselineReport, Report, RollbackStatus, ScenarioReport, StepReport},
    runs::Tested,
    verdict::{Judgement, Phase, Verdict},
};

/// The XML could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the JUnit report could not be written: {source}")]
pub struct JunitError {
    #[from]
    source: quick_junit::SerializeError,
}

/// The XML text of verdicts; `tested` is what is known of their scenarios.
///
/// # Errors
/// The XML writer said no.
pub fn render(reports: &[Report], tested: &[Tested]) -> Result<String, JunitError> {
    let ids: Vec<&str> = reports.iter().map(|report| report.id.as_str()).collect();
    let mut document = Document::new(format!("patchlab {}", ids.join(" ")));
    document.set_time(Duration::from_millis(reports.iter().map(|report| report.total_ms).max().unwrap_or(0)));
    for report in reports {
        // One order's suites are named by their baselines; several orders' by both.
        let of = |name: &str| if reports.len() == 1 { name.to_owned() } else { format!("{}.{name}", report.id) };
        if report.baselines.is_empty() {
            let mut suite = TestSuite::new(of("validation"));
            suite.add_test_case(case("verdict", &of("validation"), judged(report.verdict, &report.reason), 0));
            document.add_test_suite(suite);
        }
        for baseline in &report.baselines {
            document.add_test_suite(suite(baseline, &of(&baseline.name), tested));
        }
    }
    Ok(document.to_string()?)
}

fn suite(baseline: &BaselineReport, name: &str, tested: &[Tested]) -> TestSuite {
    let mut suite = TestSuite::new(name);
    suite.set_time(Duration::from_millis(baseline.total_ms));
    let of = |part: &str| format!("{name}.{part}");
    let verdict = judged(baseline.verdict, &first_line(baseline, tested));
    suite.add_test_case(case("verdict", &of("validation"), verdict, baseline.apply_ms));
    for (name, reason) in baseline.skipped.iter().map(|aside| (&aside.name, &aside.reason)) {
        suite.add_test_case(case("requires", &of(name), skipped(reason), 0));
    }
    for aside in &baseline.quarantined {
        suite.add_test_case(case("quarantine", &of(&aside.name), skipped(&aside.to_string()), 0));
    }
    let failures = failures(baseline, tested);
    for scenario in &baseline.scenarios {
        for step in &scenario.steps {
            let is_it = |failure: &&Failure<'_>| {
                (failure.phase, failure.scenario, failure.step)
                    == (scenario.phase, scenario.name.as_str(), step.name.as_str())
            };
            let failure = failures.iter().find(is_it);
            suite.add_test_case(step_case(scenario, step, &of(&scenario.name), failure));
        }
    }
    let rollback = match baseline.rollback.status {
        RollbackStatus::Proven => TestCaseStatus::success(),
        RollbackStatus::Failed => failed(NonSuccessKind::Failure, "rollback", &baseline.rollback.reason),
        RollbackStatus::Skipped => skipped(&baseline.rollback.reason),
    };
    suite.add_test_case(case("rollback", &of("validation"), rollback, baseline.rollback_ms));
    suite
}

/// `failure` is what did not hold.
fn step_case(scenario: &ScenarioReport, step: &StepReport, class: &str, failure: Option<&Failure<'_>>) -> TestCase {
    let name = match scenario.phase {
        Phase::Applied => step.name.clone(),
        later => format!("{} ({later})", step.name),
    };
    let reason = step.patched.as_ref().map_or("", |outcome| outcome.reason.as_str());
    let said = failure.map_or_else(|| reason.to_owned(), ToString::to_string);
    let status = match step.verdict {
        _ if failure.is_some_and(|failure| failure.blame == Blame::Quarantine) => {
            skipped(&format!("in quarantine, counts for nothing: {said}"))
        }
        Some(Verdict::Pass | Verdict::Fixed) => TestCaseStatus::success(),
        Some(Verdict::PreExisting) => skipped(&format!("fails without the patch, too: {reason}")),
        Some(word @ (Verdict::Regression | Verdict::Flaky)) => failed(NonSuccessKind::Failure, word.name(), &said),
        Some(word @ (Verdict::LabError | Verdict::Missing)) => {
            failed(NonSuccessKind::Error, word.name(), &broke(&said, reason, &scenario.reason))
        }
        None => skipped(reason),
    };
    let mut case = case(&name, class, status, step.patched.as_ref().map_or(0, |outcome| outcome.ms));
    if step.verdict != Some(Verdict::Pass) {
        case.set_system_out(format!("control: {}\npatched: {}\n", shown(&step.control), shown(&step.patched)));
    }
    case
}

/// What a step is held for that says nothing of the patch: of one whose clone said nothing, the scenario knows why.
fn broke(said: &str, reason: &str, scenario: &str) -> String {
    if reason.is_empty() && !scenario.is_empty() { format!("{said}; {scenario}") } else { said.to_owned() }
}

fn shown(outcome: &Option<Outcome>) -> String {
    match outcome {
        None => "did not run".into(),
        Some(outcome) => {
            let exit = outcome.exit.map_or(String::new(), |exit| format!(", exit {exit}"));
            format!("{}{exit}\n{}", outcome.status, outcome.output)
        }
    }
}

fn case(name: &str, class: &str, status: TestCaseStatus, ms: u64) -> TestCase {
    let mut case = TestCase::new(name, status);
    case.set_classname(class).set_time(Duration::from_millis(ms));
    case
}

fn judged(judgement: Judgement, reason: &str) -> TestCaseStatus {
    match judgement {
        Judgement::Passed => TestCaseStatus::success(),
        Judgement::Rejected => failed(NonSuccessKind::Failure, judgement.name(), reason),
        Judgement::Inapplicable | Judgement::LabError | Judgement::Missing => {
            failed(NonSuccessKind::Error, judgement.name(), reason)
        }
    }
}

fn failed(kind: NonSuccessKind, word: &str, reason: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(word).set_message(reason);
    status
}

fn skipped(reason: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(reason);
    status
}

#[cfg(test)]
mod tests;
