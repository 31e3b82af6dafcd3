//! The approval: a person's yes to an order and its release.

use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    envelope::{Predicate, Subject},
};

/// A person's yes, signed with a key that the server never holds. Subjects: the order, the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Who says so, for people; the signature says who it was.
    pub approver: String,
    /// The order.
    pub order: Digest,
    /// The release.
    pub release: Digest,
    /// Most hosts that may get it under this approval.
    pub hosts_at_most: u32,
    /// When it was given.
    pub at: jiff::Timestamp,
    /// Not valid after.
    pub not_after: jiff::Timestamp,
}

impl Predicate for Approval {
    const TYPE: &'static str = "urn:patchlab:approval:1";

    /// The order and its release.
    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new("order", self.order), Subject::new("release", self.release)]
    }
}
