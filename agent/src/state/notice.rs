//! Notices: what a manager is told, and has not confirmed yet.

use patchlab_protocol::{Digest, Refusal, document::RunState};
use serde::{Deserialize, Serialize};

/// Something that a manager is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notice {
    /// Its sequence number.
    pub sequence: u32,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The agent started.
    Started,
    /// An offered root or revocation list was decided on.
    Trust {
        /// Version of the root in force, when it is not the pinned one.
        root: Option<u32>,
        /// Version of the revocation list in force, 0 for none.
        revocation: u32,
        /// Why it was refused.
        refusal: Option<Refusal>,
    },
    /// What is installed was read anew.
    Inventory {
        /// Its digest; `None` when the package manager could not say.
        digest: Option<Digest>,
    },
    /// A run moved.
    Run {
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
        /// Where it is now.
        state: RunState,
        /// Why it was refused.
        refusal: Option<Refusal>,
        /// Statement and signature (hexadecimal digits), at the end.
        result: Option<(String, String)>,
    },
}
