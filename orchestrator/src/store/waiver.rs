//! Waivers: what somebody answers for that the lab found against an order, and which release rests on it.

use patchlab_protocol::{
    Digest, Envelope,
    document::{Waived, Waiver},
};
use rusqlite::{Connection, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use super::{
    DocumentKind, Store, StoreError, document, failed, from_json, number, optional_parsed, optional_text, parsed, text,
};
use crate::audit::Event;

/// A waiver as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaiverRow {
    /// Its digest.
    pub digest: Digest,
    /// The baseline, `name@n`.
    pub baseline: String,
    /// What is waived there.
    pub waived: Waived,
    /// The class of hosts.
    pub class: String,
    /// Most hosts.
    pub hosts_at_most: u64,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// When it was given, RFC 3339.
    pub at: String,
    /// Until when, RFC 3339.
    pub not_after: String,
    /// The newest release that rests on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Digest>,
    /// Why it was revoked, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
}

impl WaiverRow {
    /// Who waived what, why, for how many hosts: a line for people, without its time.
    pub fn line(&self) -> String {
        let Self { baseline, waived, owner, reason, hosts_at_most, .. } = self;
        let revoked = self.revoked.as_ref().map_or_else(String::new, |why| format!(" (revoked: {why})"));
        format!("{owner} waived {waived} on {baseline} for at most {hosts_at_most} hosts: {reason}{revoked}")
    }
}

const COLUMNS: &str = "SELECT waiver.*,
    (SELECT release FROM release_waiver WHERE waiver = waiver.digest ORDER BY rowid DESC LIMIT 1) AS release,
    (SELECT revoked.reason FROM revoked WHERE revoked.document = waiver.digest) AS revoked FROM waiver";

impl Store {
    /// Takes a waiver in. The same again changes nothing.
    pub fn waive(&self, envelope: &Envelope, waiver: &Waiver, event: &Event) -> Result<Digest, StoreError> {
        let digest = envelope.digest();
        if self.document(&digest)?.is_some() {
            return Ok(digest);
        }
        let waived = serde_json::to_string(&waiver.waived)
            .map_err(|error| StoreError::Corrupt { what: "a waiver", value: error.to_string() })?;
        self.change("store a waiver", event, |transaction| {
            document::put(transaction, DocumentKind::Waiver, envelope, event.at)?;
            transaction
                .execute(
                    "INSERT INTO waiver VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                    params![
                        digest.to_string(),
                        waiver.order.to_string(),
                        waiver.baseline,
                        waived,
                        waiver.class.to_string(),
                        waiver.hosts_at_most,
                        waiver.owner,
                        waiver.reason,
                        waiver.at.to_string(),
                        waiver.not_after.to_string(),
                        event.at.to_string()
                    ],
                )
                .map_err(failed("store a waiver"))?;
            Ok(digest)
        })
    }

    /// An order's waivers, newest first.
    pub fn waivers(&self, order: &Digest) -> Result<Vec<WaiverRow>, StoreError> {
        self.rows(
            "read waivers",
            &format!("{COLUMNS} WHERE patch_order = ?1 ORDER BY waiver.rowid DESC"),
            [order.to_string()],
            waiver_row,
        )
    }

    /// The waivers that a release rests on; none where the lab passed the order.
    pub fn waivers_of_release(&self, release: &Digest) -> Result<Vec<WaiverRow>, StoreError> {
        self.rows(
            "read the waivers of a release",
            &format!(
                "{COLUMNS} WHERE digest IN (SELECT waiver FROM release_waiver WHERE release = ?1) ORDER BY waiver.rowid"
            ),
            [release.to_string()],
            waiver_row,
        )
    }
}

/// Says which waivers a release rests on.
pub(super) fn rests_on(connection: &Connection, release: &Digest, waivers: &[Digest]) -> Result<(), StoreError> {
    for waiver in waivers {
        connection
            .execute(
                "INSERT INTO release_waiver VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                [release.to_string(), waiver.to_string()],
            )
            .map_err(failed("store what a release rests on"))?;
    }
    Ok(())
}

fn waiver_row(row: &SqlRow<'_>) -> Result<WaiverRow, StoreError> {
    Ok(WaiverRow {
        digest: parsed(row, "digest")?,
        baseline: text(row, "baseline")?,
        waived: from_json(row, "waived")?,
        class: text(row, "class")?,
        hosts_at_most: number(row, "hosts_at_most")?,
        owner: text(row, "owner")?,
        reason: text(row, "reason")?,
        at: text(row, "given_at")?,
        not_after: text(row, "not_after")?,
        release: optional_parsed(row, "release")?,
        revoked: optional_text(row, "revoked")?,
    })
}
