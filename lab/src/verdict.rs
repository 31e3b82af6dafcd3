//! Verdicts: what control and patched clone say together. Pure functions: results in, words and reasons out.
//!
//! Comparison is step by step, so that a step which was broken before cannot hide one that the patch broke; a scenario's
//! verdict is the worst of its steps', a baseline's [`Judgement`] follows from its scenarios, the apply and the rollback, and
//! the whole validation is as bad as its worst baseline.

mod baseline;
mod metric;
mod scenario;

use patchlab_check::Status;
use serde::{Deserialize, Serialize};

pub use baseline::{Applied, Facts, Judged, Policy, PreExisting, judge, objections, overall};
pub use metric::{Found, LEAST_SAMPLES, MetricReport, Spread, compare_metric};
pub use scenario::{
    Attempt, BOOTS, CheckRun, Compared, KEEPS_TIME, Lives, Presence, THE_MACHINE, compare_scenario,
    has_counter_evidence, has_evidence, lost, lost_in_reboot, of_the_machine,
};

/// How often a clone that broke is made again before the verdict is `lab-error`.
pub const LAB_ERROR_REQUEUES: usize = 1;

/// How often a scenario is run at most on both clones in one phase: a step is decided by two attempts, a metric that cannot be told may have more
/// samples.
pub const ATTEMPTS: usize = 4;

/// What two clones say of a step, or of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds on both.
    Pass,
    /// The patch made it hold.
    Fixed,
    /// It did not hold before either.
    PreExisting,
    /// Nothing ran.
    Missing,
    /// The lab broke.
    LabError,
    /// The results were not the same twice, and the patched clone failed once.
    Flaky,
    /// The patch broke it.
    Regression,
}

impl Verdict {
    /// Every verdict, from best to worst.
    pub const ALL: [Self; 7] =
        [Self::Pass, Self::Fixed, Self::PreExisting, Self::Missing, Self::LabError, Self::Flaky, Self::Regression];

    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fixed => "fixed",
            Self::PreExisting => "pre-existing",
            Self::Missing => "missing",
            Self::LabError => "lab-error",
            Self::Flaky => "flaky",
            Self::Regression => "regression",
        }
    }

    fn badness(self) -> usize {
        Self::ALL.iter().position(|verdict| *verdict == self).unwrap_or(Self::ALL.len())
    }

    /// The worse of two.
    pub fn worse(self, other: Self) -> Self {
        if other.badness() > self.badness() { other } else { self }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a validation says of an order, on one baseline or in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// Ship it.
    Passed,
    /// It breaks something, is unstable, or cannot be taken back.
    Rejected,
    /// It cannot be applied.
    Inapplicable,
    /// The lab broke, which says nothing about the patch.
    LabError,
    /// Nothing meaningful ran.
    Missing,
}

impl Judgement {
    /// Every judgement, from best to worst: the order in which the worst wins.
    pub const ALL: [Self; 5] = [Self::Passed, Self::Missing, Self::LabError, Self::Inapplicable, Self::Rejected];

    /// The exit code of `lab validate`. (5, refused, is the gate's, which knows more than a verdict.)
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Rejected => 1,
            Self::Missing => 2,
            Self::Inapplicable => 3,
            Self::LabError => 4,
        }
    }

    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Rejected => "rejected",
            Self::Inapplicable => "inapplicable",
            Self::LabError => "lab-error",
            Self::Missing => "missing",
        }
    }

    /// The judgement of a word in reports.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|judgement| judgement.name() == name)
    }

    /// The worse of two.
    pub fn worse(self, other: Self) -> Self {
        let badness = |wanted: Self| Self::ALL.iter().position(|judgement| *judgement == wanted);
        if badness(other) > badness(self) { other } else { self }
    }
}

impl std::fmt::Display for Judgement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// When in a validation a scenario ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// While the patch is applied: no scenario runs then, but the machine may be lost.
    Applying,
    /// After the patch was applied.
    Applied,
    /// After the reboot that followed.
    Rebooted,
    /// Before the rollback, which is to go over what these steps write.
    AfterWrites,
    /// After the rollback.
    RolledBack,
}

impl Phase {
    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Applying => "applying",
            Self::Applied => "applied",
            Self::Rebooted => "rebooted",
            Self::AfterWrites => "after-writes",
            Self::RolledBack => "rolled-back",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Applying => "while the patch is applied",
            Self::Applied => "after the patch",
            Self::Rebooted => "after the reboot",
            Self::AfterWrites => "as it writes before the rollback",
            Self::RolledBack => "after the rollback",
        })
    }
}

/// What one clone said of a step, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The step ran to its end.
    Ran(Status),
    /// The machine or the way to it broke.
    LabError,
    /// It did not run.
    Nothing,
}

/// What follows from a step's observations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// This; `None` when both clones say that it does not apply to them.
    Is(Option<Verdict>),
    /// A regression is only believed when it shows twice: both clones once more.
    Repeat,
}

/// One observation: the design's table, with skips. A step that only the control skips and the patched clone fails is blamed on
/// the patch; one that passed on the control and is skipped on the patched clone was not tested.
pub fn compare(control: Side, patched: Side) -> Option<Verdict> {
    use Status::{Fail, Pass, Skip};
    Some(match (control, patched) {
        (Side::LabError, _) | (_, Side::LabError) => Verdict::LabError,
        (Side::Nothing, _) | (_, Side::Nothing) => Verdict::Missing,
        (Side::Ran(control), Side::Ran(patched)) => match (control, patched) {
            (Skip, Skip) => return None,
            (Pass | Skip, Pass) => Verdict::Pass,
            (Fail, Pass) => Verdict::Fixed,
            (Pass | Skip, Fail) => Verdict::Regression,
            (Fail, Fail | Skip) => Verdict::PreExisting,
            (Pass, Skip) => Verdict::Missing,
        },
    })
}

/// Decides on a step from all of its observations (control, patched), oldest first. What was not the same twice is flaky when the patched clone
/// failed once, and else the worst that was seen: fixed, when the control failed.
pub fn decide(observations: &[(Side, Side)]) -> Decision {
    let mut verdicts = observations.iter().map(|(control, patched)| compare(*control, *patched));
    let Some(first) = verdicts.next() else { return Decision::Is(Some(Verdict::Missing)) };
    let rest: Vec<Option<Verdict>> = verdicts.collect();
    let any = |wanted: Verdict| first == Some(wanted) || rest.contains(&Some(wanted));
    // Never blames the patch, never passes.
    if any(Verdict::LabError) {
        return Decision::Is(Some(Verdict::LabError));
    }
    let stable = observations.iter().all(|observation| *observation == observations[0]);
    let failed = observations.iter().any(|(_, patched)| *patched == Side::Ran(Status::Fail));
    match first {
        // Where the patched clone never failed, it is the control that was not the same twice: nothing to hold against the patch.
        _ if !stable && !failed => {
            Decision::Is([first].into_iter().chain(rest).flatten().reduce(|one, other| one.worse(other)))
        }
        _ if !stable => Decision::Is(Some(Verdict::Flaky)),
        Some(Verdict::Regression) if rest.is_empty() => Decision::Repeat,
        verdict => Decision::Is(verdict),
    }
}

#[cfg(test)]
pub(crate) mod tests;
