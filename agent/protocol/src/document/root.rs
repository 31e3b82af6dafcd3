//! The root document: whose signature counts for what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Audience, PublicKey, Role,
    envelope::{Predicate, Subject},
};

/// Keys with role and audience, thresholds, version and expiry. Signed by its own root keys; a successor also by the old ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Grows by one with every successor.
    pub version: u32,
    /// Refuses every apply after; a rollback stays possible.
    pub expires: jiff::Timestamp,
    /// Where this root is pinned: hosts, or the clones of one validation. Keys of any other audience do not count.
    pub audience: Audience,
    /// The keys.
    pub keys: Vec<RootKey>,
    /// Signatures needed for a role; absent means 1.
    pub thresholds: BTreeMap<Role, u32>,
}

impl Predicate for Root {
    const TYPE: &'static str = "urn:patchlab:root:1";

    /// The keys, by the digest of their public halves.
    fn subjects(&self) -> Vec<Subject> {
        self.keys
            .iter()
            .map(|key| Subject::new(key.holder.clone(), crate::Digest::of(key.public.to_string())))
            .collect()
    }
}

/// One key of the root document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKey {
    /// Who holds it, for people.
    pub holder: String,
    /// What its signature is good for.
    pub roles: Vec<Role>,
    /// Where it counts.
    pub audience: Audience,
    /// `ed25519`.
    pub scheme: Scheme,
    /// The public half.
    pub public: PublicKey,
}

/// Signature scheme: one for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// Ed25519, RFC 8032.
    Ed25519,
}

impl Root {
    /// How many signatures a role needs; never less than one.
    pub fn threshold(&self, role: Role) -> usize {
        self.thresholds.get(&role).map_or(1, |n| (*n).max(1) as usize)
    }

    /// The keys that count for `role` here.
    pub fn keys(&self, role: Role) -> impl Iterator<Item = &PublicKey> {
        self.keys
            .iter()
            .filter(move |key| key.audience == self.audience && key.roles.contains(&role))
            .map(|key| &key.public)
    }
}
