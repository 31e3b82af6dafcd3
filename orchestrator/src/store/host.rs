//! Managed hosts as enrolled. Their SNMP credentials are not here but in files of their own.

use std::net::SocketAddr;

use jiff::Timestamp;
use patchlab_protocol::{Digest, PublicKey, enrolment::EngineId};
use rusqlite::{Row as SqlRow, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{HostTrust, Store, StoreError, failed, optional_parsed, optional_text, parsed, text, trust};
use crate::audit::Event;

/// A host to enrol.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewHost {
    /// Its name; activations name it.
    pub name: String,
    /// The site it is at.
    pub site: String,
    /// Where its agent answers SNMP.
    pub address: SocketAddr,
    /// Its agent's SNMP engine.
    pub engine_id: EngineId,
    /// Its enrolment key: signs results.
    pub public_key: PublicKey,
    /// Digest of the root document it pins.
    pub root: Digest,
    /// Base URI it fetches documents and files from.
    pub payload_uri: String,
}

/// A managed host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// What was enrolled.
    #[serde(flatten)]
    pub enrolled: NewHost,
    /// Its class, as its agent says; `None` before the first contact.
    pub class: Option<String>,
    /// Digest of its newest verified result.
    pub result_head: Option<Digest>,
    /// The newest audit head it has signed.
    pub audit_head: Option<Digest>,
    /// The order it has.
    pub current_order: Option<Digest>,
    /// Last contact, RFC 3339.
    pub seen_at: Option<String>,
    /// What it believes, and what became of what it is owed.
    pub trust: HostTrust,
    /// RFC 3339.
    pub enrolled_at: String,
}

impl Store {
    /// Enrols a host.
    pub fn enrol(&self, host: &NewHost, event: &Event) -> Result<(), StoreError> {
        if self
            .hosts()?
            .iter()
            .any(|there| there.enrolled.name == host.name || there.enrolled.engine_id == host.engine_id)
        {
            return Err(StoreError::Conflict {
                what: "host",
                name: host.name.clone(),
                next: "names and engine ids are unique: choose another",
            });
        }
        self.change("enrol a host", event, |transaction| insert(transaction, host, event.at))
    }

    /// Every host, by name.
    pub fn hosts(&self) -> Result<Vec<Host>, StoreError> {
        self.rows("list hosts", "SELECT * FROM host ORDER BY name", [], host_row)
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Result<Host, StoreError> {
        self.rows("find a host", "SELECT * FROM host WHERE name = ?1", [name], host_row)?
            .pop()
            .ok_or_else(|| StoreError::NotFound { what: "host", name: name.to_owned() })
    }

    /// Notes that a host answered, and the class it says it is of. A sighting changes nothing that needs an audit row.
    pub fn seen(&self, name: &str, class: &str, at: Timestamp) -> Result<(), StoreError> {
        self.read()
            .execute("UPDATE host SET class = ?2, seen_at = ?3 WHERE name = ?1", params![name, class, at.to_string()])
            .map_err(failed("note a sighting"))?;
        Ok(())
    }

    /// The row index of an order in a host's order table: chosen once, then kept.
    pub fn order_row(&self, host: &str, order: &Digest) -> Result<u32, StoreError> {
        let connection = self.read();
        let run = |sql: &str| connection.query_row(sql, params![host, order.to_string()], |row| row.get::<_, u32>(0));
        match run("SELECT row FROM order_row WHERE host = ?1 AND patch_order = ?2") {
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                run("INSERT INTO order_row SELECT ?1, coalesce(max(row), 0) + 1, ?2 FROM order_row WHERE host = ?1
                 RETURNING row")
            }
            other => other,
        }
        .map_err(failed("choose a row index"))
    }
}

/// Inside a transaction.
pub(super) fn insert(transaction: &Transaction<'_>, host: &NewHost, at: Timestamp) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO host (name, site, address, engine_id, public_key, root, payload_uri, enrolled_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                host.name,
                host.site,
                host.address.to_string(),
                host.engine_id.to_string(),
                host.public_key.to_string(),
                host.root.to_string(),
                host.payload_uri,
                at.to_string()
            ],
        )
        .map_err(failed("enrol a host"))?;
    Ok(())
}

fn host_row(row: &SqlRow<'_>) -> Result<Host, StoreError> {
    Ok(Host {
        enrolled: NewHost {
            name: text(row, "name")?,
            site: text(row, "site")?,
            address: parsed(row, "address")?,
            engine_id: parsed(row, "engine_id")?,
            public_key: parsed(row, "public_key")?,
            root: parsed(row, "root")?,
            payload_uri: text(row, "payload_uri")?,
        },
        class: optional_text(row, "class")?,
        result_head: optional_parsed(row, "result_head")?,
        audit_head: optional_parsed(row, "audit_head")?,
        current_order: optional_parsed(row, "current_order")?,
        seen_at: optional_text(row, "seen_at")?,
        trust: trust::host_trust(row)?,
        enrolled_at: text(row, "enrolled_at")?,
    })
}
