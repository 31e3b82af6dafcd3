//! Preparations: a host looks at an order, or fetches it, ahead of its activation.

use patchlab_protocol::{
    Digest, Refusal,
    document::{Preparation, RunState},
};
use rusqlite::{Row as SqlRow, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Store, StoreError, Verified, failed, number, optional_text, parsed, run, text};
use crate::audit::Event;

/// A preparation as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PreparationRow {
    /// The order.
    pub order: Digest,
    /// The host.
    pub host: String,
    /// The run index.
    pub run: u32,
    /// What is done.
    pub what: Preparation,
    /// The release it rests on.
    pub release: Digest,
    /// Where it is on the host.
    pub state: Option<RunState>,
    /// What the host is doing.
    pub phase: String,
    /// Why the host said no.
    pub refusal: Option<Refusal>,
    /// For people.
    pub reason: String,
    /// Whether its result counts.
    pub verified: Verified,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339; absent while it is under way.
    pub ended_at: Option<String>,
}

/// How a preparation ended.
#[derive(Debug, Clone)]
pub struct PreparationEnd {
    /// Where it ended on the host; `None` when it was not reached.
    pub state: Option<RunState>,
    /// Why the host said no.
    pub refusal: Option<Refusal>,
    /// For people.
    pub reason: String,
    /// Whether that counts.
    pub verified: Verified,
    /// The host's new result head and the audit head it signed.
    pub heads: Option<(Digest, Option<Digest>)>,
}

impl Store {
    /// Plans a preparation on each of `hosts`, before anybody is told.
    pub fn prepare(
        &self,
        order: &Digest,
        release: &Digest,
        what: Preparation,
        hosts: &[String],
        event: &Event,
    ) -> Result<Vec<PreparationRow>, StoreError> {
        let indexes = self.change("plan a preparation", event, |transaction| {
            let mut indexes = Vec::new();
            for host in hosts {
                let index = run::next_index(transaction, order, host)?;
                let (order, release) = (order.to_string(), release.to_string());
                let (pending, at) = (Verified::Pending.name(), event.at.to_string());
                transaction
                    .execute(
                        "INSERT INTO preparation VALUES (?1, ?2, ?3, ?4, ?5, NULL, '', NULL, '', ?6, ?7, NULL)",
                        params![order, host, index, what.name(), release, pending, at],
                    )
                    .map_err(failed("plan a preparation"))?;
                indexes.push((host.clone(), index));
            }
            Ok(indexes)
        })?;
        let mut all = self.preparations_of(order)?;
        all.retain(|row| indexes.iter().any(|(host, run)| (host, *run) == (&row.host, row.run)));
        Ok(all)
    }

    /// The preparations of an order, oldest first.
    pub fn preparations_of(&self, order: &Digest) -> Result<Vec<PreparationRow>, StoreError> {
        let sql = "SELECT * FROM preparation WHERE patch_order = ?1 ORDER BY rowid";
        self.rows("list preparations", sql, [order.to_string()], row)
    }

    /// Every preparation that has not ended, oldest first.
    pub fn preparations_open(&self) -> Result<Vec<PreparationRow>, StoreError> {
        let sql = "SELECT * FROM preparation WHERE ended_at IS NULL ORDER BY rowid";
        self.rows("list preparations", sql, [], row)
    }

    /// Notes how far a preparation is. The agent's tables are the truth, so this needs no audit row.
    pub fn note_preparation(&self, row: &PreparationRow, state: RunState, phase: &str) -> Result<(), StoreError> {
        let sql = "UPDATE preparation SET state = ?4, phase = ?5 WHERE patch_order = ?1 AND host = ?2 AND run = ?3";
        self.read()
            .execute(sql, params![row.order.to_string(), row.host, row.run, state.name(), phase])
            .map_err(failed("note a preparation"))?;
        Ok(())
    }

    /// Ends a preparation, and moves its host's heads.
    pub fn end_preparation(&self, row: &PreparationRow, end: &PreparationEnd, event: &Event) -> Result<(), StoreError> {
        self.change("end a preparation", event, |transaction| {
            transaction
                .execute(
                    "UPDATE preparation SET state = ?4, phase = '', refusal = ?5, reason = ?6, verified = ?7, ended_at = ?8
                     WHERE patch_order = ?1 AND host = ?2 AND run = ?3",
                    params![
                        row.order.to_string(),
                        row.host,
                        row.run,
                        end.state.map(RunState::name),
                        end.refusal.map(Refusal::name),
                        end.reason,
                        end.verified.name(),
                        event.at.to_string()
                    ],
                )
                .map_err(failed("end a preparation"))?;
            run::move_heads(transaction, &row.host, end.heads)
        })
    }
}

/// A column that holds one of an enumeration's names.
fn name<T: DeserializeOwned>(row: &SqlRow<'_>, column: &'static str) -> Result<Option<T>, StoreError> {
    let named = optional_text(row, column)?.map(serde_json::Value::String);
    let corrupt = |error: serde_json::Error| StoreError::Corrupt { what: column, value: error.to_string() };
    named.map(serde_json::from_value).transpose().map_err(corrupt)
}

fn row(row: &SqlRow<'_>) -> Result<PreparationRow, StoreError> {
    let nothing = || StoreError::Corrupt { what: "what", value: String::new() };
    Ok(PreparationRow {
        order: parsed(row, "patch_order")?,
        host: text(row, "host")?,
        run: u32::try_from(number(row, "run")?).unwrap_or(u32::MAX),
        what: name(row, "what")?.ok_or_else(nothing)?,
        release: parsed(row, "release")?,
        state: name(row, "state")?,
        phase: text(row, "phase")?,
        refusal: name(row, "refusal")?,
        reason: text(row, "reason")?,
        verified: parsed(row, "verified")?,
        started_at: text(row, "started_at")?,
        ended_at: optional_text(row, "ended_at")?,
    })
}
