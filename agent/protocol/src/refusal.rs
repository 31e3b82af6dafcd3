//! Why an agent, or the server's gate, says no. The names are part of the protocol: they stand in the MIB, logs and
//! reports.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $name:literal),* $(,)?) => {
        /// A named refusal; the number is its value in the MIB (`PatchlabRefusal`; 0 is none).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Refusal { $($(#[$doc])* $variant = $number),* }

        impl Refusal {
            /// Every refusal, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name, as in the MIB.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

refusals! {
    /// A signature is missing, does not verify, or is by a key that may not sign this here.
    BadSignature = 1 "bad-signature",
    /// No release over this very order.
    NotReleased = 2 "not-released",
    /// No approval of this order and release, or for fewer hosts.
    NotApproved = 3 "not-approved",
    /// No activation of this order for this host and action.
    NotActive = 4 "not-active",
    /// The order is for another class of hosts.
    NotMyClass = 5 "not-my-class",
    /// A document, or the root, is past its time, or the clock is more than ten minutes before the time floor.
    Expired = 6 "expired",
    /// This order or activation was used before.
    Consumed = 7 "consumed",
    /// A document was revoked.
    Revoked = 8 "revoked",
    /// The package manager would do something other than what the lab proved.
    TransactionDiffers = 9 "transaction-differs",
    /// The host has other versions than the order replaces.
    VersionsDiffer = 10 "versions-differ",
    /// The window is closed.
    OutsideWindow = 11 "outside-window",
    /// Another run is under way.
    Busy = 12 "busy",
    /// The host is in no state to be patched, or a document or payload could not be had.
    Preflight = 13 "preflight",
    /// A root or revocation list that is not newer than the one in force.
    Stale = 14 "stale",
}

impl Refusal {
    /// The refusal of a number in the MIB.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.iter().copied().find(|refusal| *refusal as i64 == number)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refusal and the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}: {reason}")]
pub struct Refused {
    /// Which.
    pub refusal: Refusal,
    /// What exactly, on what, and what to do.
    pub reason: String,
}

impl Refused {
    /// A refusal with its reason.
    pub fn new(refusal: Refusal, reason: impl Into<String>) -> Self {
        Self { refusal, reason: reason.into() }
    }
}
