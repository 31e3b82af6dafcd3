//! The verdict as JSON: what `lab validate --json` writes, the gate decides on, and people and CI read.
//!
//! The one set of types for it, on both ends: [`crate::verdict`] fills in the words, [`crate::junit`] makes XML of them, and whoever
//! decides on a verdict reads it back by [`Report::from_json`]. Fields are added, never changed, within one [`SCHEMA`]; a reader
//! passes over those it does not know, so that a verdict of a later patchlab can still be decided on.

use jiff::civil::Date;
use patchlab_check::{Boots, Digest, Outcome};
use serde::{Deserialize, Serialize};

use crate::{
    diff::Diff,
    scenario::{Quarantine, Standing},
    verdict::{Judgement, MetricReport, Phase, Verdict},
};

/// Version of this form.
pub const SCHEMA: u32 = 1;
/// Largest verdict JSON read, bytes: it carries the output of every step on both clones.
pub const REPORT_BYTES: usize = 8 * 1024 * 1024;

/// What a validation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Digest of the order.
    pub order: Digest,
    /// Its identifier, for people.
    pub id: String,
    /// In all: the worst of the baselines.
    pub verdict: Judgement,
    /// One line for people.
    pub reason: String,
    /// One a baseline.
    pub baselines: Vec<BaselineReport>,
    /// Duration of the whole validation, milliseconds.
    pub total_ms: u64,
    /// Which of a rejected order's packages break it; absent when nobody looked, or there was nothing to split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bisection: Option<BisectionReport>,
}

/// Which of an order's packages break it, and which could ship without them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BisectionReport {
    /// The smallest sets of packages that fail.
    pub breaking: Vec<Breaking>,
    /// The most packages that were seen to pass together; empty when none were.
    pub passing: Vec<String>,
    /// How many sets were validated to find that out.
    pub tries: usize,
    /// Whether a limit of tries ended the search: the sets may then be larger than they need be.
    pub limited: bool,
}

/// A smallest set of packages that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breaking {
    /// Those that it is about.
    pub packages: Vec<String>,
    /// Those that they need, which had to go along.
    pub with: Vec<String>,
    /// The verdict's reason on this set; that of the whole order when the set is the whole.
    pub reason: String,
}

/// A file is no verdict that can be decided on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Too large.
    #[error("the verdict has {0} bytes, more than the limit of {limit}", limit = REPORT_BYTES)]
    TooLarge(usize),
    /// Another form.
    #[error("the verdict has schema {0}, this patchlab reads schema {SCHEMA}: validate the order again with this one")]
    Schema(u32),
    /// Something else.
    #[error("not a verdict of `patchlab lab validate --json`: {0}")]
    NotAVerdict(#[source] serde_json::Error),
}

impl Report {
    /// Reads a verdict, within the limits.
    ///
    /// # Errors
    /// It is larger than [`REPORT_BYTES`], is no verdict, or is one of another [`SCHEMA`].
    pub fn from_json(json: &[u8]) -> Result<Self, ReportError> {
        /// Read first: another schema may have other fields.
        #[derive(Deserialize)]
        struct Form {
            schema: u32,
        }
        if json.len() > REPORT_BYTES {
            return Err(ReportError::TooLarge(json.len()));
        }
        let form: Form = serde_json::from_slice(json).map_err(ReportError::NotAVerdict)?;
        if form.schema != SCHEMA {
            return Err(ReportError::Schema(form.schema));
        }
        serde_json::from_slice(json).map_err(ReportError::NotAVerdict)
    }
}

/// What was found on one baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineReport {
    /// `name@n`.
    pub name: String,
    /// Its digest.
    pub digest: Digest,
    /// On this baseline.
    pub verdict: Judgement,
    /// One line for people.
    pub reason: String,
    /// How the patched clone was made; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone: Option<CloneTimes>,
    /// The control that the patched clone was compared with, where that was remembered; absent where one stood beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Remembered>,
    /// Why it cannot be applied, of what kind that is; absent where it was applied, or where an older lab did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unapplied: Option<Unapplied>,
    /// All that speaks against it, in the order in which it was found; empty where it passed, or where an older lab told the worst alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objections: Vec<Objection>,
    /// What ran, phase by phase.
    pub scenarios: Vec<ScenarioReport>,
    /// How the way back went.
    pub rollback: RollbackReport,
    /// What the patch changed on the machine, or what one that failed half-way left there; absent when nothing was tried on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<Diff>,
    /// The package manager's transaction, canonical lines.
    #[serde(default)]
    pub transaction: Vec<String>,
    /// Whether the patch asked for a reboot.
    pub reboot_needed: bool,
    /// What the baseline boots; absent where nobody looked when it was frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boots: Option<Boots>,
    /// Duration of the apply, milliseconds.
    pub apply_ms: u64,
    /// Duration of the rollback, milliseconds.
    pub rollback_ms: u64,
    /// Duration of everything on this baseline, milliseconds.
    pub total_ms: u64,
    /// Of that, the time in which something was awaited of a guest, milliseconds; 0 where an older lab did not count it.
    #[serde(default)]
    pub guest_ms: u64,
    /// The last lines of the patched clone's journal, when the verdict is not `passed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub journal: Vec<String>,
    /// The name under which both clones were kept; absent when they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Scenarios that were not run, since the lab does not give what they require.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedScenario>,
    /// Scenarios in quarantine: they ran, and count only where that has expired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<QuarantinedScenario>,
}

/// Why an order cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unapplied {
    /// The package manager or the agent refuses it, before anything is changed.
    Refused,
    /// It was tried on the machine and failed there: a package's script, an order's script.
    Failed,
    /// It was tried on the machine, and did not end in its time.
    Endless,
    /// It was applied, and the checks that hosts repeat fail.
    Unsound,
}

/// Something that speaks against an order on a baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objection {
    /// How bad it is.
    pub judgement: Judgement,
    /// What it is about.
    pub about: About,
    /// One line for people.
    pub reason: String,
}

/// What an objection is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// Applying the order.
    Apply,
    /// What a scenario found; or, by [`crate::verdict::THE_MACHINE`], the machine itself.
    Scenario {
        /// Its name.
        name: String,
        /// When it ran.
        phase: Phase,
        /// What both clones said together.
        verdict: Verdict,
    },
    /// The way back.
    Rollback,
    /// That nothing meaningful passed.
    Evidence,
}

/// A scenario that was not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedScenario {
    /// Its name.
    pub name: String,
    /// What it requires, and why that is not given.
    pub reason: String,
}

/// A scenario in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedScenario {
    /// Its name.
    pub name: String,
    /// Whether the quarantine held on the day.
    pub standing: Standing,
    /// Who mends it.
    pub owner: String,
    /// The last day, e.g. `2027-01-31`.
    pub until: String,
    /// Where it is written down why.
    pub ticket: String,
}

impl QuarantinedScenario {
    /// As it is on a day in UTC.
    pub fn of(name: &str, quarantine: &Quarantine, today: Date) -> Self {
        let Quarantine { owner, until, ticket } = quarantine.clone();
        Self { name: name.to_owned(), standing: quarantine.standing(today), owner, until: until.to_string(), ticket }
    }

    /// Whether what it finds counts for nothing.
    pub fn holds(&self) -> bool {
        self.standing == Standing::Holds
    }
}

impl std::fmt::Display for QuarantinedScenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, owner, until, ticket, .. } = self;
        match self.standing {
            Standing::Holds => {
                write!(f, "{name} is in quarantine until {until}, owner {owner}, {ticket}: it runs and rejects nothing")
            }
            Standing::Expired => {
                write!(f, "{name}: its quarantine until {until}, owner {owner}, {ticket} has expired: it counts again")
            }
        }
    }
}

impl BaselineReport {
    /// The quarantine that a scenario is in, where that holds: what it finds counts for nothing.
    pub fn quarantine(&self, scenario: &str) -> Option<&QuarantinedScenario> {
        self.quarantined.iter().find(|aside| aside.name == scenario && aside.holds())
    }

    /// What of the scenarios is not as it would be otherwise, one line each: those that were skipped, and those in quarantine.
    pub fn aside(&self) -> Vec<String> {
        let skipped = self.skipped.iter().map(|aside| format!("{} was skipped: {}", aside.name, aside.reason));
        skipped.chain(self.quarantined.iter().map(ToString::to_string)).collect()
    }

    /// What is known before anything ran: nothing, so the lab's failure until something better is known.
    pub fn begun(name: String, digest: Digest) -> Self {
        Self {
            name,
            digest,
            verdict: Judgement::LabError,
            reason: String::new(),
            clone: None,
            control: None,
            unapplied: None,
            objections: Vec::new(),
            scenarios: Vec::new(),
            rollback: RollbackReport::skipped("the patch was not applied"),
            diff: None,
            transaction: Vec::new(),
            reboot_needed: false,
            boots: None,
            apply_ms: 0,
            rollback_ms: 0,
            total_ms: 0,
            guest_ms: 0,
            journal: Vec::new(),
            kept: None,
            skipped: Vec::new(),
            quarantined: Vec::new(),
        }
    }
}

/// How a clone was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneTimes {
    /// The rung of the clone ladder, e.g. `template`.
    pub rung: String,
    /// Why it was not a higher one, when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Until the first guest command was answered, milliseconds.
    pub ready_ms: u64,
    /// The handshake after it, milliseconds.
    pub handshake_ms: u64,
}

/// A control that an earlier validation saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The run that saw it.
    pub run: String,
    /// When it was made.
    pub at: jiff::Timestamp,
}

/// A scenario on both clones, in one phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Its name.
    pub name: String,
    /// When it ran.
    pub phase: Phase,
    /// The worst of its steps.
    pub verdict: Verdict,
    /// Which step, and why; empty for pass.
    pub reason: String,
    /// Its steps, then its checks.
    pub steps: Vec<StepReport>,
}

/// A step on both clones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// Its name; checks are named `check KIND`.
    pub name: String,
    /// What the two say together; absent when both skipped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// On the control clone; absent when it did not run there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Outcome>,
    /// On the patched clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patched: Option<Outcome>,
    /// Its metric on both, over all attempts; absent when it has none, or did not pass on both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricReport>,
    /// How often it failed; absent where it was done once on both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// How often a step failed, of how many times it was done on both clones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// On the control.
    pub control: usize,
    /// On the patched clone.
    pub patched: usize,
    /// How often both did it.
    pub of: usize,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { control, patched, of } = self;
        write!(f, "{patched} of {of} times on the patched clone, {control} of {of} on the control")
    }
}

/// How the way back went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackReport {
    /// In a word.
    pub status: RollbackStatus,
    /// How sure the way back is; absent when it was not walked, or an older lab did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<RollbackClass>,
    /// Why it failed or was skipped; empty when proven.
    pub reason: String,
    /// What differs after it from the baseline and from the control; where it is proven, only what does not outlive a reboot, and amounts.
    /// Absent when nothing does, or it was not walked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<Box<Diff>>,
}

impl RollbackReport {
    /// The way back was not walked.
    pub fn skipped(reason: impl Into<String>) -> Self {
        Self { status: RollbackStatus::Skipped, class: None, reason: reason.into(), diff: None }
    }

    /// The package manager, with all that the order and the baseline's pool give it, did not bring the machine back: a snapshot of the
    /// whole disk would.
    pub fn failed(reason: impl Into<String>) -> Self {
        Self {
            status: RollbackStatus::Failed,
            class: Some(RollbackClass::SnapshotOnly),
            reason: reason.into(),
            diff: None,
        }
    }

    /// The order could not be taken back: on the control there was nothing to take back.
    pub fn broke(error: impl std::fmt::Display) -> Self {
        Self::failed(format!("{error}; the control had nothing to take back"))
    }

    /// It was walked, and left this behind, which the control, as it has become, does not show.
    pub fn differs(left: &[String]) -> Self {
        Self::failed(format!("the machine is not as before: {}; the control shows none of it", left.join("; ")))
    }

    /// It was walked, and the machine is as it was.
    pub fn proven(over: Over) -> Self {
        let class = match over {
            Over::Unchanged => RollbackClass::Proven,
            Over::Written => RollbackClass::ProvenAfterWrites,
        };
        Self { status: RollbackStatus::Proven, class: Some(class), reason: String::new(), diff: None }
    }

    /// With what differs after it.
    pub fn leaving(self, diff: Diff) -> Self {
        Self { diff: Some(Box::new(diff)).filter(|diff| !diff.is_empty()), ..self }
    }
}

/// Over what data the rollback went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The baseline's, as far as no scenario's steps changed it.
    Unchanged,
    /// What `[[after-writes]]` steps wrote on the patched machine.
    Written,
}

/// How sure the way back is: what `rollback` in an order promises, as the lab found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackClass {
    /// It was walked, and every file was as before.
    Proven,
    /// The same, over data written after the patch.
    ProvenAfterWrites,
    /// The package manager does not go back (a package refuses its downgrade, a file of the old version is missing) or leaves something
    /// behind: only a snapshot of the machine brings it back.
    SnapshotOnly,
    /// Nothing brings it back, since the change goes beyond the disk (firmware). The lab cannot find this out: an order says it.
    Impossible,
}

impl RollbackClass {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::ProvenAfterWrites => "proven-after-writes",
            Self::SnapshotOnly => "snapshot-only",
            Self::Impossible => "impossible",
        }
    }
}

/// Whether the way back was walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackStatus {
    /// It was, and the clone equalled the baseline's manifest.
    Proven,
    /// It failed, or the clone was not as before.
    Failed,
    /// It was not tried.
    Skipped,
}

impl RollbackStatus {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl std::fmt::Display for RollbackStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
