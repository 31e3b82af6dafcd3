//! What changes whom an agent believes: the pinned root, its successors, and the revocation list. Pure.
//!
//! A root is replaced only by its successor, signed by enough keys of the root in force *and* by enough of its own, so
//! that whoever holds a stolen server key or SNMP credentials cannot replace it, and a host that was away for years
//! still comes from its pinned root to the newest one, a version at a time (the way of the TUF specification, 5.3).
//! Expiry plays no part here: an expired root refuses apply, and being replaced is how that ends.

use crate::{
    Digest, Envelope, Refusal, Refused, Role,
    authorization::signed,
    document::{Revocation, Root},
    limits,
};

/// Why a root document is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Its digest is not the pinned one.
    #[error("the root document is {found}, pinned is {pinned}", found = found.short(), pinned = pinned.short())]
    NotPinned {
        /// The digest found.
        found: Digest,
        /// The digest expected.
        pinned: Digest,
    },
    /// It is no root document, or is not signed by its own root keys.
    #[error("the root document is not valid: {0}")]
    Invalid(String),
}

/// Reads a root document pinned by its digest, and checks that its own root keys signed it.
///
/// # Errors
/// When it is another one, or not a root document that its own keys signed.
pub fn pinned_root(envelope: &Envelope, pinned: Digest) -> Result<Root, RootError> {
    let found = envelope.digest();
    if found != pinned {
        return Err(RootError::NotPinned { found, pinned });
    }
    let root: Root = envelope.statement().map_err(|error| RootError::Invalid(error.to_string()))?.predicate;
    if !signed(&root, envelope, Role::Root) {
        return Err(RootError::Invalid("not signed by enough of its root keys".into()));
    }
    Ok(root)
}

/// Reads the successor of the root in force.
///
/// # Errors
/// `bad-signature` when the old threshold or its own is not met, it is no root document or is for another audience; `stale` when it is not
/// the very next version.
pub fn successor(current: &Root, envelope: &Envelope) -> Result<Root, Refused> {
    let root: Root = envelope
        .statement()
        .map_err(|error| Refused::new(Refusal::BadSignature, format!("root document: {error}")))?
        .predicate;
    for (keys, whose) in [(current, "the root in force"), (&root, "its own")] {
        if !signed(keys, envelope, Role::Root) {
            let needed = keys.threshold(Role::Root);
            let reason = format!("root {} is not signed by {needed} root keys of {whose}", root.version);
            return Err(Refused::new(Refusal::BadSignature, reason));
        }
    }
    if root.audience != current.audience {
        return Err(Refused::new(Refusal::BadSignature, format!("root {} is for another audience", root.version)));
    }
    let expected = current.version.saturating_add(1);
    if root.version != expected {
        let reason = format!("root {} was offered, {expected} follows the one in force", root.version);
        return Err(Refused::new(Refusal::Stale, reason));
    }
    Ok(root)
}

/// The root in force: the pinned one, followed through its successors one by one.
///
/// # Errors
/// As [`successor`], for the first that does not follow.
pub fn root_in_force(pinned: Root, successors: &[Envelope]) -> Result<Root, Refused> {
    successors.iter().try_fold(pinned, |current, envelope| successor(&current, envelope))
}

/// What a host keeps of the revocation list in force.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its version; 0 when there was none yet.
    pub version: u32,
    /// Its digest.
    pub digest: Option<Digest>,
    /// What it revokes.
    pub revoked: &'a [Digest],
}

/// Reads a revocation list that is to follow the known one. The same list again is accepted and changes nothing.
///
/// # Errors
/// `bad-signature` when neither enough operators nor enough root keys signed it, or it is for another audience or no such list; `stale`
/// when it is older, another one of the same version, or takes a revocation back.
pub fn revoke(root: &Root, known: &Known<'_>, envelope: &Envelope) -> Result<Revocation, Refused> {
    let refuse = |refusal, reason: String| Err(Refused::new(refusal, reason));
    let list: Revocation = match envelope.statement() {
        Ok(statement) => statement.predicate,
        Err(error) => return refuse(Refusal::BadSignature, format!("revocation list: {error}")),
    };
    if !signed(root, envelope, Role::Operator) && !signed(root, envelope, Role::Root) {
        let reason = format!("revocation list {} is signed neither by operators nor by the root here", list.version);
        return refuse(Refusal::BadSignature, reason);
    }
    if list.audience != root.audience {
        return refuse(Refusal::BadSignature, format!("revocation list {} is for another audience", list.version));
    }
    if list.revoked.len() > limits::REVOKED_DOCUMENTS {
        let reason = format!("it revokes {} documents, more than {}", list.revoked.len(), limits::REVOKED_DOCUMENTS);
        return refuse(Refusal::BadSignature, reason);
    }
    let same = known.digest == Some(envelope.digest());
    if list.version < known.version || list.version == known.version && !same {
        let reason = format!("revocation list {} was offered, {} is in force", list.version, known.version);
        return refuse(Refusal::Stale, reason);
    }
    let kept = |digest: &&Digest| !list.revoked.iter().any(|revoked| revoked.document == **digest);
    if let Some(dropped) = known.revoked.iter().find(kept) {
        let reason = format!("revocation list {} no longer names document {}", list.version, dropped.short());
        return refuse(Refusal::Stale, reason);
    }
    Ok(list)
}
