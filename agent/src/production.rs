//! The order's production checks, on this host, after the change: the lab's own steps.

use std::time::{Duration, Instant};

use patchlab_check::{Outcome, Status, Step, Target, target::TargetError};
use patchlab_protocol::document::{Checks, ProductionCheck};

/// Evaluates a step on a target within a budget; scripts and relative paths do not exist on a managed host.
pub type Evaluate = fn(&Step, &dyn Target, Duration) -> Result<Outcome, TargetError>;

/// What the checks said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// How many passed and failed.
    pub checks: Checks,
    /// Why the first one failed.
    pub first_failure: Option<String>,
}

/// Runs every check, one after the other, until `deadline`. A check that does not apply here (skip) counts as neither; one that could
/// not be carried out counts as failed, since nothing else says that the host is well.
pub fn run(checks: &[ProductionCheck], target: &dyn Target, deadline: Instant, evaluate: Evaluate) -> Verdict {
    let mut verdict = Verdict::default();
    for check in checks {
        let budget = deadline.saturating_duration_since(Instant::now());
        let failure = if budget.is_zero() {
            Some("no time was left for it".to_owned())
        } else {
            match evaluate(&check.step, target, budget) {
                Ok(Outcome { status: Status::Skip, .. }) => continue,
                Ok(Outcome { status: Status::Pass, .. }) => None,
                Ok(outcome) => Some(outcome.reason),
                Err(error) => Some(error.to_string()),
            }
        };
        match failure {
            None => verdict.checks.passed += 1,
            Some(reason) => {
                verdict.checks.failed += 1;
                let name = format!("{}/{}", check.scenario, check.step.name);
                verdict.first_failure.get_or_insert(format!("check {name} failed: {reason}"));
            }
        }
    }
    verdict
}
