//! Signed documents by digest: exactly the bytes that were verified.

use jiff::Timestamp;
use patchlab_protocol::{Digest, Envelope};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Store, StoreError, failed, named};

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
