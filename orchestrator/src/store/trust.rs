//! What hosts are to believe, and what each of them does: roots, the revocation list, what was offered and what became of it.

use jiff::Timestamp;
use patchlab_protocol::{Digest, Envelope};
use rusqlite::{Connection, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use super::{DocumentKind, Store, StoreError, failed, first, named, optional_parsed, optional_text, parsed, text};
use crate::{
    audit::Event,
    trust::{authority::Held, revocation::List, root::InForce},
};

named! {
    /// What became of the roots and revocation lists that a host is owed.
    OfferState {
        /// It was not asked yet.
        Waiting = "waiting",
        /// It believes what this server believes.
        Current = "current",
        /// It did not answer; it is asked again.
        Silent = "silent",
        /// It refused what it was offered; it is offered it again.
        Refused = "refused",
        /// It cannot be offered what it is owed; why says what to do.
        Stuck = "stuck",
    }
}

/// What a host believes, and what became of what it is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTrust {
    /// What it believes; `None` before it said so.
    pub held: Option<Held>,
    /// What became of the newest offer.
    pub offer: OfferState,
    /// Why, for people.
    pub reason: String,
    /// When that was, RFC 3339.
    pub at: Option<String>,
}

impl HostTrust {
    /// Whether it will not come right by being asked again.
    pub fn needs_somebody(&self) -> bool {
        matches!(self.offer, OfferState::Refused | OfferState::Stuck)
    }
}

impl Store {
    /// Takes a revocation list in; hosts that do not have it are owed it. Says how many those are.
    pub fn take_revocation(&self, list: &List, event: &Event) -> Result<u64, StoreError> {
        self.change("store a revocation list", event, |transaction| {
            replace(transaction, DocumentKind::Revocation, &list.envelope, event.at)?;
            let digest = list.digest.to_string();
            transaction
                .execute(
                    "INSERT INTO revocation VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                    params![list.says.version, digest, event.at.to_string()],
                )
                .map_err(failed("store a revocation list"))?;
            for revoked in &list.says.revoked {
                transaction
                    .execute(
                        "INSERT INTO revoked VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                        params![revoked.document.to_string(), revoked.reason, list.says.version],
                    )
                    .map_err(failed("store a revocation"))?;
            }
            owe(transaction, "revocation_in_force IS NOT ?1", &digest)
        })
    }

    /// The revocation list in force, as signed.
    pub fn revocation(&self) -> Result<Option<Envelope>, StoreError> {
        let newest = first(
            &self.read(),
            "read the revocation list",
            "SELECT digest FROM revocation ORDER BY version DESC LIMIT 1",
            [],
            |row| parsed::<Digest>(row, "digest"),
        )?;
        newest.map(|digest| self.envelope(&digest)).transpose()
    }

    /// Takes a root in; hosts that do not have it are owed it. Says how many those are. One that is there changes nothing.
    pub fn take_root(&self, root: &InForce, event: &Event) -> Result<u64, StoreError> {
        let digest = root.digest.to_string();
        if self.document(&root.digest)?.is_some() {
            return self.owed_root(&digest);
        }
        self.change("store a root document", event, |transaction| {
            replace(transaction, DocumentKind::Root, &root.envelope, event.at)?;
            owe(transaction, "root_in_force IS NOT ?1", &digest)
        })
    }

    fn owed_root(&self, digest: &str) -> Result<u64, StoreError> {
        self.read()
            .query_row("SELECT count(*) FROM host WHERE root_in_force IS NOT ?1", [digest], |row| row.get::<_, u32>(0))
            .map(u64::from)
            .map_err(failed("count hosts"))
    }

    /// Notes what a host believes and what became of what it is owed. With an event when that changed something.
    pub fn note_trust(&self, host: &str, trust: &HostTrust, event: Option<&Event>) -> Result<(), StoreError> {
        match event {
            Some(event) => {
                self.change("note what a host believes", event, |transaction| note(transaction, host, trust))
            }
            None => note(&self.read(), host, trust),
        }
    }
}

/// Puts a document in, or in the place of the same one with fewer signatures.
fn replace(connection: &Connection, kind: DocumentKind, envelope: &Envelope, at: Timestamp) -> Result<(), StoreError> {
    connection
        .execute(
            "INSERT INTO document VALUES (?1, ?2, ?3, ?4) ON CONFLICT (digest) DO UPDATE SET envelope = ?3",
            params![envelope.digest().to_string(), kind.name(), envelope.to_bytes(), at.to_string()],
        )
        .map_err(failed("store a document"))?;
    Ok(())
}

/// Every host of which that holds is owed something.
fn owe(connection: &Connection, which: &'static str, digest: &str) -> Result<u64, StoreError> {
    let sql = format!("UPDATE host SET offer = '{}', offer_reason = '' WHERE {which}", OfferState::Waiting.name());
    connection.execute(&sql, [digest]).map(|rows| rows as u64).map_err(failed("owe hosts a document"))
}

fn note(connection: &Connection, host: &str, trust: &HostTrust) -> Result<(), StoreError> {
    let action = "note what a host believes";
    connection
        .execute(
            "UPDATE host SET offer = ?2, offer_reason = ?3, offer_at = ?4 WHERE name = ?1",
            params![host, trust.offer.name(), trust.reason, trust.at],
        )
        .map_err(failed(action))?;
    let Some(held) = &trust.held else { return Ok(()) };
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
    connection
        .execute(
            "UPDATE host SET root_version = ?2, root_in_force = ?3, revocation_version = ?4, revocation_in_force = ?5
             WHERE name = ?1",
            params![host, held.root_version, text(held.root), held.revocation_version, text(held.revocation)],
        )
        .map_err(failed(action))?;
    Ok(())
}

pub(super) fn host_trust(row: &SqlRow<'_>) -> Result<HostTrust, StoreError> {
    let version = |column| row.get::<_, Option<u32>>(column).map_err(failed("what a host believes"));
    let held = match version("root_version")? {
        Some(root_version) => Some(Held {
            root_version,
            root: optional_parsed(row, "root_in_force")?,
            revocation_version: version("revocation_version")?.unwrap_or(0),
            revocation: optional_parsed(row, "revocation_in_force")?,
        }),
        None => None,
    };
    Ok(HostTrust {
        held,
        offer: parsed(row, "offer")?,
        reason: text(row, "offer_reason")?,
        at: optional_text(row, "offer_at")?,
    })
}
