//! The activation: now, here, this.

use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    envelope::{Predicate, Subject},
};

/// Permission for one action on named hosts, for hours. Subject: the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// The order.
    pub order: Digest,
    /// What to do.
    pub action: Action,
    /// The site the hosts are at.
    pub site: String,
    /// The wave, counted from 1.
    pub wave: u32,
    /// The hosts, by their enrolled names.
    pub hosts: Vec<String>,
    /// When it was given.
    pub at: jiff::Timestamp,
    /// Not valid before.
    pub not_before: jiff::Timestamp,
    /// Not valid after.
    pub not_after: jiff::Timestamp,
}

impl Predicate for Activation {
    const TYPE: &'static str = "urn:patchlab:activation:1";

    /// The order.
    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new("order", self.order)]
    }
}

/// What a host is to do with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Install what it names.
    Apply,
    /// Bring back what it replaced.
    Rollback,
}
