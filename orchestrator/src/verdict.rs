//! The lab's verdict JSON as the pipeline reads it: what the gate decides on and what goes into a release. Fields that
//! only people read stay in the JSON; unknown ones are none of our business here.

use jiff::Timestamp;
use patchlab_protocol::{
    Digest,
    document::{BaselineProof, Order, Proof, Release, Rollback, TestResult},
    envelope::Subject,
};
use serde::Deserialize;

use crate::store::named;

/// Largest verdict JSON taken, bytes: it carries output of every step on both clones.
pub const VERDICT_BYTES: usize = 8 * 1024 * 1024;

named! {
    /// What the lab says in all.
    Judgement {
        /// Ship it.
        Passed = "passed",
        /// The patch breaks something, or cannot be taken back.
        Rejected = "rejected",
        /// It cannot be applied.
        Inapplicable = "inapplicable",
        /// The lab broke: says nothing about the patch.
        LabError = "lab-error",
        /// Nothing meaningful ran.
        Missing = "missing",
    }
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Verdict {
    /// Digest of the order.
    pub order: Digest,
    /// In all.
    pub verdict: Judgement,
    /// One line for people.
    #[serde(default)]
    pub reason: String,
    /// One a baseline.
    #[serde(default)]
    pub baselines: Vec<Baseline>,
}

/// What was found on one baseline.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Baseline {
    /// `name@n`.
    pub name: String,
    /// Its digest.
    pub digest: Digest,
    /// On this one.
    pub verdict: Judgement,
    /// Canonical lines, see [`BaselineProof::transaction`].
    #[serde(default)]
    pub transaction: Vec<String>,
    /// Milliseconds.
    #[serde(default)]
    pub apply_ms: u64,
    /// Milliseconds.
    #[serde(default)]
    pub rollback_ms: u64,
    /// Whether the patch asked for a reboot.
    #[serde(default)]
    pub reboot_needed: bool,
    /// How the way back went.
    pub rollback: RollbackFound,
    /// What ran.
    #[serde(default)]
    pub scenarios: Vec<Scenario>,
}

/// How the way back went.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RollbackFound {
    /// In a word.
    pub status: Rollback,
}

/// A scenario's steps.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// Its steps.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// A step on the patched clone.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// How it ended there; absent when it never ran.
    #[serde(default)]
    pub patched: Option<StepFound>,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StepFound {
    /// In a word.
    pub status: patchlab_check::Status,
}

/// The verdict JSON is not one.
#[derive(Debug, thiserror::Error)]
pub enum VerdictError {
    /// Too large.
    #[error("the verdict has {0} bytes, more than the limit of {limit}", limit = VERDICT_BYTES)]
    TooLarge(usize),
    /// Not a verdict.
    #[error("not a verdict of `patchlab lab validate --json`: {0}")]
    NotAVerdict(#[source] serde_json::Error),
}

impl Verdict {
    /// Reads a verdict, within the limits.
    pub fn from_json(json: &[u8]) -> Result<Self, VerdictError> {
        if json.len() > VERDICT_BYTES {
            return Err(VerdictError::TooLarge(json.len()));
        }
        serde_json::from_slice(json).map_err(VerdictError::NotAVerdict)
    }

    /// The release that this verdict carries: what the signer signs, after [`crate::gate`] let it through.
    pub fn release(&self, order: &Order, at: Timestamp) -> Release {
        let named = |status: patchlab_check::Status| {
            self.baselines
                .iter()
                .flat_map(|baseline| &baseline.scenarios)
                .flat_map(|scenario| scenario.steps.iter().map(move |step| (scenario, step)))
                .filter(|(_, step)| step.patched.as_ref().is_some_and(|found| found.status == status))
                .map(|(scenario, step)| format!("{}/{}", scenario.name, step.name))
                .collect::<Vec<_>>()
        };
        Release {
            result: match self.verdict {
                Judgement::Passed => TestResult::Passed,
                _ => TestResult::Failed,
            },
            configuration: self.baselines.iter().map(|b| Subject::new(b.name.clone(), b.digest)).collect(),
            passed_tests: named(patchlab_check::Status::Pass),
            failed_tests: named(patchlab_check::Status::Fail),
            proof: Proof {
                order: self.order,
                class: order.class.clone(),
                at,
                not_after: None,
                baselines: self.baselines.iter().map(Baseline::proof).collect(),
            },
        }
    }
}

impl Baseline {
    fn proof(&self) -> BaselineProof {
        BaselineProof {
            name: self.name.clone(),
            digest: self.digest,
            transaction: self.transaction.clone(),
            apply_ms: self.apply_ms,
            rollback_ms: self.rollback_ms,
            reboot_needed: self.reboot_needed,
            rollback: self.rollback.status,
        }
    }
}
