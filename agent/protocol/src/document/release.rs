//! The release: the lab's proof over an order's digest.

use std::collections::BTreeMap;

use patchlab_check::Boots;
use serde::{Deserialize, Serialize};

use super::Class;
use crate::{
    Digest, Envelope,
    envelope::{Predicate, Subject},
    limits,
};

/// An in-toto `test-result/v0.1` predicate with our own proof beside its fields. Subject: the order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Release {
    /// `PASSED` releases, and `WARNED` does with waivers of all that failed; `FAILED` is evidence of a rejection and releases nothing.
    pub result: TestResult,
    /// What was tested on, one entry a baseline, `name` and digest.
    pub configuration: Vec<Subject>,
    /// `baseline/phase/scenario/step` names that passed on a patched clone; phases are `applied`, `rebooted` and `rolled-back`.
    pub passed_tests: Vec<String>,
    /// Names, formed alike, that failed on a patched clone. Of a `WARNED` release only those that the lab blames the order for: each must
    /// be waived.
    pub failed_tests: Vec<String>,
    /// Of a `WARNED` release: names that failed on a patched clone and do not count against the order, since they failed on the control
    /// too, or are in quarantine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warned_tests: Vec<String>,
    /// What the lab measured and proved.
    pub proof: Proof,
}

impl Predicate for Release {
    const TYPE: &'static str = "https://in-toto.io/attestation/test-result/v0.1";

    /// The order.
    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new("order", self.proof.order)]
    }

    fn check(&self) -> Result<(), String> {
        let waivers = &self.proof.waivers;
        if self.result != TestResult::Warned && !(waivers.is_empty() && self.warned_tests.is_empty()) {
            return Err("a release has waivers, and its result is not WARNED".into());
        }
        if waivers.len() > limits::WAIVERS_PER_RELEASE {
            return Err(format!("it has {} waivers, more than {}", waivers.len(), limits::WAIVERS_PER_RELEASE));
        }
        let large = |waiver: &&Envelope| waiver.to_bytes().len() > limits::WAIVER_BYTES;
        match waivers.iter().find(large) {
            Some(waiver) => {
                Err(format!("its waiver {} is over {} bytes", waiver.digest().short(), limits::WAIVER_BYTES))
            }
            None => waivers.iter().try_for_each(Envelope::check).map_err(|error| format!("a waiver: {error}")),
        }
    }
}

/// `result` of the in-toto predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TestResult {
    /// Every baseline passed.
    Passed,
    /// At least one did not.
    Failed,
    /// At least one did not, and a person answers for each failure by a waiver.
    Warned,
}

/// What the lab proved beyond the tests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The order's digest (again, beside the subject).
    pub order: Digest,
    /// The class it holds for.
    pub class: Class,
    /// When the validation ended.
    pub at: jiff::Timestamp,
    /// Not valid for apply after this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<jiff::Timestamp>,
    /// One a baseline.
    pub baselines: Vec<BaselineProof>,
    /// Waivers of what failed, at most [`limits::WAIVERS_PER_RELEASE`]; an agent from before cannot read a release that has one, and
    /// refuses it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waivers: Vec<Envelope>,
}

/// What was measured on one baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineProof {
    /// `name@n`.
    pub name: String,
    /// The baseline's digest.
    pub digest: Digest,
    /// The package manager's transaction, as the agent simulated and then did it; canonical text, one line a package, sorted:
    /// `install|upgrade|downgrade|remove NAME ARCH FROM -> TO` (`-` for none).
    pub transaction: Vec<String>,
    /// Duration of the apply in the lab, milliseconds.
    pub apply_ms: u64,
    /// Duration of the rollback in the lab, milliseconds.
    pub rollback_ms: u64,
    /// Whether the patch asked for a reboot.
    pub reboot_needed: bool,
    /// How the rollback went.
    pub rollback: Rollback,
    /// File systems that held more after the patch than on the control, by more than the lab's tolerance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grown: Vec<Growth>,
    /// What it boots, where that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boots: Option<Boots>,
}

/// A file system that holds more than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// Where it is mounted on the baseline, e.g. `/`.
    pub path: String,
    /// By how much, bytes.
    pub bytes: u64,
}

impl Release {
    /// What the baselines boot on which the order was proven, where that was looked at.
    pub fn boots(&self) -> impl Iterator<Item = &Boots> {
        self.proof.baselines.iter().filter_map(|baseline| baseline.boots.as_ref())
    }

    /// What the patch took on each file system, the most of all baselines: bytes by mount point.
    pub fn growth(&self) -> BTreeMap<String, u64> {
        let all = self.proof.baselines.iter().flat_map(|baseline| &baseline.grown);
        all.fold(BTreeMap::new(), |mut most, Growth { path, bytes }| {
            let there = most.entry(path.clone()).or_default();
            *there = (*there).max(*bytes);
            most
        })
    }
}

/// Whether the way back was walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rollback {
    /// It was, and the clone equalled the baseline's manifest.
    Proven,
    /// It failed.
    Failed,
    /// It was not tried.
    Skipped,
}
