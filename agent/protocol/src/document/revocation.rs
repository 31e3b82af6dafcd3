//! The revocation list: documents that count no more.

use serde::{Deserialize, Serialize};

use crate::{
    Audience, Digest,
    envelope::{Predicate, Subject},
};

/// Every document that was revoked, with why. Signed by an operator or by the root: a revocation only ever stops
/// something. Its rules are in [`crate::trust::revoke`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Grows with every list; an older list is refused.
    pub version: u32,
    /// Where it counts: the audience of the root.
    pub audience: Audience,
    /// When it was signed.
    pub at: jiff::Timestamp,
    /// What is revoked, all that the lists before named included.
    pub revoked: Vec<Revoked>,
}

/// One revoked document: an order, a release, an approval or an activation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// The document.
    pub document: Digest,
    /// Why, for people.
    pub reason: String,
}

impl Predicate for Revocation {
    const TYPE: &'static str = "urn:patchlab:revocation:1";

    /// Every document it revokes.
    fn subjects(&self) -> Vec<Subject> {
        self.revoked.iter().map(|revoked| Subject::new("revoked", revoked.document)).collect()
    }
}
