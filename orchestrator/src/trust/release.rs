//! The release that a verdict carries: what the signer signs, after [`crate::gate`] let the verdict through. Pure but
//! for [`read`].

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patchlab_check::Status;
use patchlab_lab::{
    diff::{DiskChange, DiskPlace},
    report::{BaselineReport, Report, RollbackClass, RollbackStatus, ScenarioReport, StepReport},
    verdict::{Judgement, Verdict},
};
use patchlab_protocol::{
    Envelope,
    document::{BaselineProof, Growth, Order, Proof, Release, Rollback, TestResult},
    envelope::{EnvelopeError, Subject},
    limits,
};

/// A file holds no release.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseFileError {
    /// Not readable.
    #[error("release {path}: {source} (`patchlab lab validate --sign-key` writes one beside a passing order)", path = path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not an envelope.
    #[error("release {path}: {source}", path = path.display())]
    NotAnEnvelope {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: EnvelopeError,
    },
}

/// Reads a release's envelope from a file, within the limits. Nobody has verified it.
///
/// # Errors
/// It cannot be read, or is no envelope.
pub fn read(path: &Path) -> Result<Envelope, ReleaseFileError> {
    let failed = |source| ReleaseFileError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(limits::DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    Envelope::from_bytes(&bytes).map_err(|source| ReleaseFileError::NotAnEnvelope { path: path.to_owned(), source })
}

/// The release over `order` that the lab's verdict carries.
pub fn release(report: &Report, order: &Order, at: Timestamp) -> Release {
    Release {
        result: match report.verdict {
            Judgement::Passed => TestResult::Passed,
            _ => TestResult::Failed,
        },
        configuration: report.baselines.iter().map(|b| Subject::new(b.name.clone(), b.digest)).collect(),
        passed_tests: tests(report, Status::Pass),
        failed_tests: tests(report, Status::Fail),
        warned_tests: Vec::new(),
        proof: Proof {
            order: report.order,
            class: order.class.clone(),
            at,
            not_after: None,
            baselines: report.baselines.iter().map(proof).collect(),
            waivers: Vec::new(),
        },
    }
}

/// The same of an order that the lab did not pass, and that is to ship by waivers. What the lab blames it for is told apart from what fails
/// without it, too: each of the former must be waived.
pub fn waived(report: &Report, order: &Order, waivers: Vec<Envelope>, at: Timestamp) -> Release {
    let mut said = release(report, order, at);
    let blamed = blamed(report);
    said.result = TestResult::Warned;
    said.passed_tests.retain(|test| !blamed.contains(test));
    said.warned_tests = said.failed_tests.into_iter().filter(|test| !blamed.contains(test)).collect();
    said.failed_tests = blamed;
    said.proof.waivers = waivers;
    said
}

/// Every step that the patch broke, by the lab's word, in a scenario that counts.
fn blamed(report: &Report) -> Vec<String> {
    let mut names = Vec::new();
    for baseline in &report.baselines {
        for scenario in baseline.scenarios.iter().filter(|scenario| baseline.quarantine(&scenario.name).is_none()) {
            let broken = scenario.steps.iter().filter(|step| step.verdict == Some(Verdict::Regression));
            names.extend(broken.map(|step| test(baseline, scenario, step)));
        }
    }
    names
}

/// Every step that ended so on a patched clone. The name says on which baseline and in which phase: the same step runs on each and
/// in each, and "passed" three times over would say less than which three.
fn tests(report: &Report, status: Status) -> Vec<String> {
    let mut names = Vec::new();
    for baseline in &report.baselines {
        for scenario in &baseline.scenarios {
            let ended = scenario.steps.iter().filter(|step| step.patched.as_ref().is_some_and(|o| o.status == status));
            names.extend(ended.map(|step| test(baseline, scenario, step)));
        }
    }
    names
}

/// A step's name in a release.
fn test(baseline: &BaselineReport, scenario: &ScenarioReport, step: &StepReport) -> String {
    format!("{}/{}/{}/{}", baseline.name, scenario.phase.name(), scenario.name, step.name)
}

fn proof(baseline: &BaselineReport) -> BaselineProof {
    BaselineProof {
        name: baseline.name.clone(),
        digest: baseline.digest,
        transaction: baseline.transaction.clone(),
        apply_ms: baseline.apply_ms,
        rollback_ms: baseline.rollback_ms,
        reboot_needed: baseline.reboot_needed,
        rollback: match (baseline.rollback.status, baseline.rollback.class) {
            (RollbackStatus::Proven, Some(RollbackClass::SnapshotOnly | RollbackClass::Impossible))
            | (RollbackStatus::Failed, _) => Rollback::Failed,
            (RollbackStatus::Proven, _) => Rollback::Proven,
            (RollbackStatus::Skipped, _) => Rollback::Skipped,
        },
        grown: baseline.diff.iter().flat_map(|diff| &diff.disk).filter_map(growth).collect(),
        boots: baseline.boots.clone(),
    }
}

/// A file system that holds more on the patched clone than on the control.
fn growth(change: &DiskChange) -> Option<Growth> {
    let more = change.to.checked_sub(change.from).filter(|more| *more > 0 && change.of == DiskPlace::FileSystem);
    more.map(|bytes| Growth { path: change.path.clone(), bytes })
}

#[cfg(test)]
mod tests {
    use patchlab_check::Outcome;
    use patchlab_lab::verdict::Phase;
    use patchlab_protocol::Digest;

    use super::*;
    use crate::gate::tests::{order, passed};

    fn ran(phase: Phase, steps: &[(&str, Status)]) -> ScenarioReport {
        let outcome = |status| Outcome {
            status,
            exit: None,
            ms: 1,
            output: String::new(),
            reason: String::new(),
            samples: Vec::new(),
        };
        ScenarioReport {
            name: "web-smoke".into(),
            phase,
            verdict: Verdict::Pass,
            reason: String::new(),
            steps: steps
                .iter()
                .map(|(name, status)| StepReport {
                    name: (*name).into(),
                    verdict: None,
                    control: None,
                    patched: Some(outcome(*status)),
                    metric: None,
                    failed: None,
                })
                .collect(),
        }
    }

    #[test]
    fn a_step_is_named_once_with_its_baseline_and_phase() {
        let mut report = passed(Digest::of("order"));
        report.baselines[0].scenarios = vec![
            ran(Phase::Applied, &[("front page", Status::Pass), ("load", Status::Skip)]),
            ran(Phase::RolledBack, &[("front page", Status::Pass), ("config", Status::Fail)]),
        ];
        let said = release(&report, &order(), "2026-05-01T12:00:00Z".parse().unwrap());
        assert_eq!(said.passed_tests, ["b@1/applied/web-smoke/front page", "b@1/rolled-back/web-smoke/front page"]);
        assert_eq!(said.failed_tests, ["b@1/rolled-back/web-smoke/config"]);
        assert_eq!(said.proof.baselines[0].rollback, Rollback::Proven);
    }

    #[test]
    fn only_a_passing_verdict_makes_a_passing_release() {
        for judgement in Judgement::ALL {
            let mut report = passed(Digest::of("order"));
            report.verdict = judgement;
            let said = release(&report, &order(), Timestamp::UNIX_EPOCH);
            assert_eq!(said.result == TestResult::Passed, judgement == Judgement::Passed, "{judgement}");
        }
    }
}
