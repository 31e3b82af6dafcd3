//! The result of one run on one host, signed by the host's enrolment key and chained per host.

use serde::{Deserialize, Serialize};

use super::{Action, Preparation};
use crate::{Digest, Refusal};

/// The state of a run on a host; the number is its value in the MIB, and stays what it is: newer states have the higher ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Told, nothing done.
    Received = 1,
    /// Getting documents and files.
    Fetching = 2,
    /// Checking signatures, digests, class and versions.
    Verifying = 3,
    /// The package manager works.
    Applying = 4,
    /// Production checks run.
    Validating = 5,
    /// The way back is being walked.
    RollingBack = 6,
    /// Done and checked.
    Succeeded = 7,
    /// The change or its checks failed.
    Failed = 8,
    /// Said no, by name; nothing was changed.
    Refused = 9,
    /// The old versions are back and the checks pass.
    RolledBack = 10,
    /// The way back failed: a person is needed.
    RollbackFailed = 11,
    /// Ended from outside or by its lifetime, or by the agent's own end.
    Aborted = 12,
    /// All is fetched and verified; its window is not open yet.
    WaitingWindow = 13,
    /// Somebody else changes packages: another run, or another program.
    WaitingLock = 14,
    /// Looking whether the host is in a state to be patched: power, room, updaters, and the package manager's simulation.
    Preflight = 15,
    /// The change is made; the host is about to boot, or was asked to.
    Rebooting = 16,
}

impl RunState {
    /// Every state, in order of its number.
    pub const ALL: [Self; 16] = [
        Self::Received,
        Self::Fetching,
        Self::Verifying,
        Self::Applying,
        Self::Validating,
        Self::RollingBack,
        Self::Succeeded,
        Self::Failed,
        Self::Refused,
        Self::RolledBack,
        Self::RollbackFailed,
        Self::Aborted,
        Self::WaitingWindow,
        Self::WaitingLock,
        Self::Preflight,
        Self::Rebooting,
    ];

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        match self {
            Self::Succeeded
            | Self::Failed
            | Self::Refused
            | Self::RolledBack
            | Self::RollbackFailed
            | Self::Aborted => true,
            Self::Received
            | Self::Fetching
            | Self::Verifying
            | Self::WaitingWindow
            | Self::WaitingLock
            | Self::Preflight
            | Self::Applying
            | Self::Rebooting
            | Self::Validating
            | Self::RollingBack => false,
        }
    }

    /// The state of a number in the MIB.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i64 == number)
    }

    /// Its name, as in the MIB's enumeration with dashes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Fetching => "fetching",
            Self::Verifying => "verifying",
            Self::Applying => "applying",
            Self::Validating => "validating",
            Self::RollingBack => "rolling-back",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::RollbackFailed => "rollback-failed",
            Self::Aborted => "aborted",
            Self::WaitingWindow => "waiting-window",
            Self::WaitingLock => "waiting-lock",
            Self::Preflight => "preflight",
            Self::Rebooting => "rebooting",
        }
    }
}

/// What a host says of one finished run. Compact JSON of at most [`crate::limits::RESULT_BYTES`] bytes, so that it and its signature fit one
/// PDU; signed as bytes by the host's enrolment key (plain Ed25519 over [`RunResult::signed_bytes`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// The host's enrolled name.
    pub host: String,
    /// The order's digest.
    pub order: Digest,
    /// The run index the manager chose.
    pub run: u32,
    /// What was to be done; absent when no activation could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// What was done without an activation; it changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
    /// The user id of the host's own operator, when he started it and no manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<u32>,
    /// How it ended.
    pub state: RunState,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// Start, seconds since 1970.
    pub started: i64,
    /// End, seconds since 1970.
    pub ended: i64,
    /// Digest of the package list before.
    pub before: Digest,
    /// Digest of the package list after.
    pub after: Digest,
    /// Production checks.
    pub checks: Checks,
    /// Why the host walked back by itself, as its order told it; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Digest of this host's previous signed result; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
    /// The newest audit head the host has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Digest>,
}

/// How far a run is, in percent, when its reboot was asked for: its boot loader knows what to take.
pub const REBOOT_ASKED_PERCENT: u8 = 89;

/// How many production checks passed and failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
}

/// Why a host walks back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The package manager failed, or did not end in time.
    Change,
    /// A production check failed.
    Checks,
    /// The host did not reboot, though the order asks for it.
    Reboot,
    /// The agent or the host ended while the change was made or checked.
    Interrupted,
}

/// Domain separation for result signatures.
pub const RESULT_CONTEXT: &[u8] = b"patchlab result 1\n";

impl RunResult {
    /// The bytes that are signed: a context line, then the statement as it travels.
    pub fn signed_bytes(statement: &[u8]) -> Vec<u8> {
        [RESULT_CONTEXT, statement].concat()
    }
}
