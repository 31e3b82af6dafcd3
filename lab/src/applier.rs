//! How a patch gets onto a machine: the caller's business. The orchestrator's applier speaks SNMP to the agent inside, exactly as
//! in production; the lab only says when.

use std::{path::Path, time::Duration};

use crate::machine::{Forward, Machine};

/// Which of the two clones of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Left as it is; its agent stays idle.
    Control,
    /// Gets the patch.
    Patched,
}

impl Role {
    /// Its name, as in reports and machine names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Patched => "patched",
        }
    }
}

/// Puts one patch onto machines and takes it off again. Calls may block; both clones are prepared at the same time.
pub trait Applier: Send + Sync {
    /// The image of the read-only second disk that every clone gets.
    fn tools(&self) -> Option<&Path>;

    /// The guest ports that the applier wants to reach on a clone.
    fn forwards(&self, role: Role) -> Vec<Forward>;

    /// Gives the clone an identity of its own and starts what applies; returns the evidence, one line each.
    fn prepare(&self, role: Role, machine: &Machine) -> Result<Vec<String>, ApplierError>;

    /// Starts again what a reboot of the clone ended, and follows it to the end where it was to go on after that.
    fn resume(&self, role: Role, machine: &Machine) -> Result<(), ApplierError>;

    /// What the next reboot of the clone takes: a kernel that is tried once comes back from a panic by itself.
    fn next_boot(&self, machine: &Machine) -> NextBoot;

    /// Puts the patch on.
    fn apply(&self, machine: &Machine) -> Result<Applied, ApplierError>;

    /// Takes it off again.
    fn rollback(&self, machine: &Machine) -> Result<Applied, ApplierError>;
}

/// What a clone's next reboot takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextBoot {
    /// What it always does.
    AsEver,
    /// A kernel that is tried once.
    KernelOnTrial,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Applied {
    /// The package manager's transaction, one canonical line a package.
    pub transaction: Vec<String>,
    /// How long it took, checks on the machine included.
    pub duration: Duration,
    /// Whether the machine asks for a reboot.
    pub reboot_needed: bool,
    /// What the applier's own checks on the machine found wrong after the change, when they did. The change is on; the scenarios
    /// say what it broke, and whether the control has it too.
    pub complaint: Option<String>,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum ApplierError {
    /// The order cannot be applied to this baseline: it says so before anything is changed.
    #[error("the order cannot be applied here: {reason}")]
    Inapplicable {
        /// The agent's refusal and its sentence.
        reason: String,
    },
    /// It was tried on the machine, and failed there: a statement about the patch.
    #[error("{action} failed on the machine: {reason}")]
    Failed {
        /// Apply or rollback.
        action: &'static str,
        /// The agent's error.
        reason: String,
    },
    /// It was tried on the machine, and did not come to an end in its time: a statement about the patch.
    #[error("{action} failed on the machine: {reason}")]
    Endless {
        /// Apply or rollback.
        action: &'static str,
        /// The agent's error.
        reason: String,
    },
    /// The machine was lost while it was tried: a statement about the patch, when it is lost twice and the control is not.
    #[error("{action}: the machine was lost: {how}")]
    Lost {
        /// Apply or rollback.
        action: &'static str,
        /// What was seen of it, and what it was at.
        how: String,
    },
    /// The lab's own side broke: no statement about the patch.
    #[error("{action}: {reason}")]
    Lab {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
}
