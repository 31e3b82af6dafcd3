//! The next revocation list: composed where its signer's key is, which is not at the server. Pure.
//!
//! A list names everything that the list before it named, so it is always made from that one. Whether it counts is
//! [`patchlab_protocol::trust::revoke`]'s to say, at the server and at every host alike.

use jiff::Timestamp;
use patchlab_protocol::{
    Audience, Digest, Envelope, Role,
    authorization::signed,
    document::{Revocation, Revoked, Root},
    envelope::EnvelopeError,
    limits,
};

/// Longest reason, characters: a list of thousands must fit a document.
pub const REASON_CHARACTERS: usize = 120;

/// A revocation list as signed, with what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// As signed.
    pub envelope: Envelope,
    /// What it says.
    pub says: Revocation,
    /// Its digest.
    pub digest: Digest,
}

/// The next list cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NextListError {
    /// It would say nothing.
    #[error("no document is named: a revocation says which")]
    Nothing,
    /// It would say nothing new.
    #[error("{document} is revoked already ({reason})", document = document.short())]
    Already {
        /// The document.
        document: Digest,
        /// Why, as the list says.
        reason: String,
    },
    /// A reason that is none, or too long.
    #[error("a reason has 1 to {REASON_CHARACTERS} characters, on one line: every host keeps it")]
    Reason,
    /// More than hosts take.
    #[error(
        "a revocation list names at most {} documents: rotate the keys that signed those instead",
        limits::REVOKED_DOCUMENTS
    )]
    TooMany,
    /// Larger than a document may be.
    #[error("{0}; shorter reasons make a smaller list")]
    TooLarge(EnvelopeError),
}

impl List {
    /// Reads a list as signed; says nothing about by whom.
    ///
    /// # Errors
    /// When it is no revocation list.
    pub fn read(envelope: Envelope) -> Result<Self, EnvelopeError> {
        let says = envelope.statement::<Revocation>()?.predicate;
        let digest = envelope.digest();
        Ok(Self { envelope, says, digest })
    }

    /// Whether enough operators, or enough of the root's keys, signed it under this root.
    pub fn counts_under(&self, root: &Root) -> bool {
        signed(root, &self.envelope, Role::Operator) || signed(root, &self.envelope, Role::Root)
    }
}

/// The list that follows `before` and revokes these documents too.
///
/// # Errors
/// It would say nothing new, or more than fits.
pub fn next(
    before: Option<&Revocation>,
    documents: &[Digest],
    reason: &str,
    at: Timestamp,
) -> Result<Revocation, NextListError> {
    let reason = reason.trim();
    if !(1..=REASON_CHARACTERS).contains(&reason.chars().count()) || reason.chars().any(char::is_control) {
        return Err(NextListError::Reason);
    }
    if documents.is_empty() {
        return Err(NextListError::Nothing);
    }
    let mut revoked = before.map(|list| list.revoked.clone()).unwrap_or_default();
    for document in documents {
        if let Some(there) = revoked.iter().find(|there| there.document == *document) {
            return Err(NextListError::Already { document: *document, reason: there.reason.clone() });
        }
        revoked.push(Revoked { document: *document, reason: reason.to_owned() });
    }
    if revoked.len() > limits::REVOKED_DOCUMENTS {
        return Err(NextListError::TooMany);
    }
    let version = before.map_or(0, |list| list.version).saturating_add(1);
    let list = Revocation { version, audience: Audience::Production, at, revoked };
    // With every signature it may carry, it must still be a document that a host fetches.
    let bytes = Envelope::unsigned(list.clone()).to_bytes().len() as u64;
    let signatures = limits::SIGNATURES_PER_ENVELOPE as u64 * 200;
    match bytes + signatures <= limits::DOCUMENT_BYTES {
        true => Ok(list),
        false => Err(NextListError::TooLarge(EnvelopeError::TooLarge { bytes: bytes + signatures })),
    }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{
        SigningKey,
        trust::{Known, revoke},
    };

    use super::*;
    use crate::gate::tests::{key, root};

    fn documents(names: &[&str]) -> Vec<Digest> {
        names.iter().map(Digest::of).collect()
    }

    #[test]
    fn every_list_names_what_the_one_before_named_so_hosts_take_them_in_turn() {
        let mut before: Option<List> = None;
        for (version, name) in [(1, "a"), (2, "b"), (3, "c")] {
            let says = next(before.as_ref().map(|list| &list.says), &documents(&[name]), "withdrawn", Timestamp::now());
            let list = List::read(Envelope::sign(says.unwrap(), &key(Role::Operator))).unwrap();
            assert_eq!((list.says.version, list.says.revoked.len()), (version, version as usize));
            let named: Vec<Digest> =
                before.iter().flat_map(|list| &list.says.revoked).map(|revoked| revoked.document).collect();
            let known = Known {
                version: before.as_ref().map_or(0, |list| list.says.version),
                digest: before.as_ref().map(|list| list.digest),
                revoked: &named,
            };
            revoke(&root(), &known, &list.envelope).unwrap();
            before = Some(list);
        }
    }

    #[test]
    fn a_list_that_says_nothing_new_or_too_much_is_not_made() {
        let first = next(None, &documents(&["a"]), " withdrawn\n", Timestamp::now()).unwrap();
        assert_eq!(first.revoked[0].reason, "withdrawn");
        let again = next(Some(&first), &documents(&["b", "a"]), "withdrawn", Timestamp::now());
        assert!(matches!(again, Err(NextListError::Already { .. })), "{again:?}");
        assert!(matches!(
            next(None, &documents(&["b", "b"]), "x", Timestamp::now()),
            Err(NextListError::Already { .. })
        ));
        assert!(matches!(next(None, &[], "withdrawn", Timestamp::now()), Err(NextListError::Nothing)));
        for reason in ["", "  ", "two\nlines", &"x".repeat(REASON_CHARACTERS + 1)] {
            assert!(matches!(next(None, &documents(&["b"]), reason, Timestamp::now()), Err(NextListError::Reason)));
        }
        let many: Vec<Digest> = (0..=limits::REVOKED_DOCUMENTS).map(|n| Digest::of(n.to_string())).collect();
        assert!(matches!(next(None, &many, "x", Timestamp::now()), Err(NextListError::TooMany)));
        let long = "x".repeat(REASON_CHARACTERS);
        assert!(matches!(next(None, &many[1..], &long, Timestamp::now()), Err(NextListError::TooLarge(_))));
        assert!(next(None, &many[..2_000], &long, Timestamp::now()).is_ok(), "two thousand fit whatever is said");
    }

    #[test]
    fn a_list_counts_by_an_operator_or_the_root_and_by_nobody_else() {
        let says = next(None, &documents(&["a"]), "withdrawn", Timestamp::now()).unwrap();
        for (role, counts) in
            [(Role::Operator, true), (Role::Root, true), (Role::Drafter, false), (Role::Releaser, false)]
        {
            let list = List::read(Envelope::sign(says.clone(), &key(role))).unwrap();
            assert_eq!(list.counts_under(&root()), counts, "{role:?}");
        }
        let unsigned = List::read(Envelope::unsigned(says.clone())).unwrap();
        assert!(!unsigned.counts_under(&root()));
        let stranger = SigningKey::from_seed(&[99; 32]);
        assert!(!List::read(Envelope::sign(says, &stranger)).unwrap().counts_under(&root()));
    }
}
