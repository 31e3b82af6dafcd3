//! Signed documents by digest: exactly the bytes that were verified.

use jiff::Timestamp;
use patchlab_protocol::{Digest, Envelope};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Store, StoreError, failed, first, named, optional_text, parsed};
use crate::audit::Event;

named! {
    /// What a document is.
    DocumentKind {
        /// A root document.
        Root = "root",
        /// An order.
        Order = "order",
        /// A release.
        Release = "release",
        /// An approval.
        Approval = "approval",
        /// An activation.
        Activation = "activation",
        /// A revocation list.
        Revocation = "revocation",
        /// A waiver.
        Waiver = "waiver",
    }
}

impl Store {
    /// The envelope of a document; `None` when there is none by that digest.
    pub fn document(&self, digest: &Digest) -> Result<Option<(DocumentKind, Vec<u8>)>, StoreError> {
        self.read()
            .query_row("SELECT kind, envelope FROM document WHERE digest = ?1", [digest.to_string()], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?))
            })
            .optional()
            .map_err(failed("read a document"))?
            .map(|(kind, bytes): (String, Vec<u8>)| Ok((super::parse("kind of document", kind)?, bytes)))
            .transpose()
    }

    /// The envelope of a document that must be there.
    pub fn envelope(&self, digest: &Digest) -> Result<Envelope, StoreError> {
        let (_, bytes) = self
            .document(digest)?
            .ok_or_else(|| StoreError::NotFound { what: "document", name: digest.to_string() })?;
        Envelope::from_bytes(&bytes)
            .map_err(|error| StoreError::Corrupt { what: "a document's envelope", value: error.to_string() })
    }
}

impl Store {
    /// Puts a document in the place of the same one with fewer signatures.
    pub fn sign_again(&self, envelope: &Envelope, event: &Event) -> Result<(), StoreError> {
        self.change("add signatures to a document", event, |transaction| {
            transaction
                .execute(
                    "UPDATE document SET envelope = ?2 WHERE digest = ?1",
                    params![envelope.digest().to_string(), envelope.to_bytes()],
                )
                .map_err(failed("add signatures to a document"))?;
            Ok(())
        })
    }

    /// What a document is, for people: `order PO-1`, `release of PO-1`; `None` when there is none by that digest.
    pub fn what_is(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        let sql = "SELECT kind, (SELECT id FROM patch_order WHERE digest = coalesce(
                       (SELECT patch_order FROM release WHERE release.digest = document.digest),
                       (SELECT patch_order FROM approval WHERE approval.digest = document.digest),
                       (SELECT patch_order FROM activation WHERE activation.digest = document.digest),
                       (SELECT patch_order FROM waiver WHERE waiver.digest = document.digest),
                       document.digest)) AS id
                   FROM document WHERE digest = ?1";
        first(&self.read(), "say what a document is", sql, [digest.to_string()], |row| {
            let (kind, id) = (parsed::<DocumentKind>(row, "kind")?, optional_text(row, "id")?);
            Ok(match id {
                Some(id) if kind == DocumentKind::Order => format!("order {id}"),
                Some(id) => format!("{kind} of {id}"),
                None => kind.to_string(),
            })
        })
    }
}

/// Puts a document in; the same digest again keeps the first envelope.
pub(super) fn put(
    connection: &Connection,
    kind: DocumentKind,
    envelope: &Envelope,
    at: Timestamp,
) -> Result<Digest, StoreError> {
    let digest = envelope.digest();
    connection
        .execute(
            "INSERT INTO document VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            params![digest.to_string(), kind.name(), envelope.to_bytes(), at.to_string()],
        )
        .map_err(failed("store a document"))?;
    Ok(digest)
}
