//! The audit log's chain: every row carries the digest of the row before it, so that an altered, deleted or reordered row
//! shows. Hosts keep the newest head they were told and sign it into their results: a rewritten history contradicts the fleet.
//!
//! Pure: rows in, findings out. Rows are appended by [`crate::store`], in the transaction that changes what they speak of.

use std::collections::BTreeSet;

use jiff::Timestamp;
use patchlab_protocol::Digest;
use serde::{Deserialize, Serialize};

/// Something that happened, to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// Who: `server`, `local` (a client on the socket), a key id, a host.
    pub actor: String,
    /// What: a short name of kebab-case words.
    pub event: &'static str,
    /// On what: an order id, a host.
    pub subject: String,
    /// The particulars.
    pub detail: serde_json::Value,
}

impl Event {
    /// An event of the server itself.
    pub fn new(event: &'static str, subject: impl Into<String>, detail: serde_json::Value) -> Self {
        Self { at: Timestamp::now(), actor: "server".into(), event, subject: subject.into(), detail }
    }

    /// The same, by somebody else.
    pub fn by(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }
}

/// One row of the log, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its number, from 1 without gaps.
    pub seq: u64,
    /// When, RFC 3339.
    pub at: String,
    /// Who.
    pub actor: String,
    /// What.
    pub event: String,
    /// On what.
    pub subject: String,
    /// The particulars: JSON text, exactly as digested.
    pub detail: String,
    /// Digest of the row before; [`genesis`] for the first.
    pub previous: Digest,
    /// Digest of this row.
    pub digest: Digest,
}

/// What the first row follows.
pub fn genesis() -> Digest {
    Digest::of(b"patchlab audit 1\n")
}

impl Row {
    /// The row that follows `previous`.
    pub fn after(previous: Option<&Row>, event: &Event) -> Self {
        let mut row = Self {
            seq: previous.map_or(1, |row| row.seq + 1),
            at: event.at.to_string(),
            actor: event.actor.clone(),
            event: event.event.to_owned(),
            subject: event.subject.clone(),
            detail: event.detail.to_string(),
            previous: previous.map_or_else(genesis, |row| row.digest),
            digest: genesis(),
        };
        row.digest = row.computed();
        row
    }

    /// The digest of what the row says now. A JSON array, so that no field can flow into its neighbour.
    pub fn computed(&self) -> Digest {
        let fields =
            (self.seq, &self.at, &self.actor, &self.event, &self.subject, &self.detail, self.previous.to_string());
        // Numbers and strings: serialisation cannot fail.
        Digest::of(serde_json::to_vec(&fields).unwrap_or_default())
    }
}

/// An audit head that a host signed into a result: the chain must contain it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The host.
    pub host: String,
    /// The head it had seen.
    pub head: Digest,
}

/// What is wrong with the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "finding")]
pub enum Finding {
    /// The row's content is not what was digested.
    #[error("row {seq} was altered: its content no longer has its digest")]
    Altered {
        /// The row.
        seq: u64,
    },
    /// Rows are missing.
    #[error("rows {from} to {to} are missing")]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// A row stands where another stood.
    #[error("row {seq} does not follow the row before it: rows were reordered, replaced or inserted")]
    Unchained {
        /// The row.
        seq: u64,
    },
    /// A host has seen a head that is not in the log.
    #[error("host {host} has seen audit head {head}, which is not in this log: its end was cut off or rewritten")]
    Contradicted {
        /// The host.
        host: String,
        /// The head.
        head: Digest,
    },
}

/// What is wrong with a log, row by row; empty when nothing is. `rows` are in order of their number.
pub fn verify(rows: &[Row], witnesses: &[Witness]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut expected, mut head) = (1, genesis());
    for row in rows {
        if row.seq > expected {
            findings.push(Finding::Missing { from: expected, to: row.seq - 1 });
        } else if row.previous != head || row.seq < expected {
            findings.push(Finding::Unchained { seq: row.seq });
        }
        if row.computed() != row.digest {
            findings.push(Finding::Altered { seq: row.seq });
        }
        expected = row.seq + 1;
        head = row.digest;
    }
    let heads: BTreeSet<Digest> = rows.iter().map(|row| row.digest).chain([genesis()]).collect();
    let known = |head: &Digest| heads.contains(head);
    findings.extend(
        witnesses
            .iter()
            .filter(|witness| !known(&witness.head))
            .map(|witness| Finding::Contradicted { host: witness.host.clone(), head: witness.head }),
    );
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for n in 0..5 {
            let event = Event::new("order-submitted", format!("PO-{n}"), serde_json::json!({ "n": n }));
            rows.push(Row::after(rows.last(), &event));
        }
        rows
    }

    #[test]
    fn an_untouched_log_has_no_findings() {
        assert_eq!(verify(&log(), &[]), []);
        assert_eq!(verify(&[], &[]), []);
    }

    #[test]
    fn every_altered_field_shows_and_says_which_row() {
        let alter: [fn(&mut Row); 5] = [
            |row| row.at.push('0'),
            |row| row.actor = "mallory".into(),
            |row| row.event = "order-released".into(),
            |row| row.subject.clear(),
            |row| row.detail = "{}".into(),
        ];
        for change in alter {
            let mut rows = log();
            change(&mut rows[2]);
            assert_eq!(verify(&rows, &[]), [Finding::Altered { seq: 3 }]);
        }
    }

    #[test]
    fn an_altered_row_with_a_fresh_digest_breaks_the_next_one() {
        let mut rows = log();
        rows[2].detail = "{}".into();
        rows[2].digest = rows[2].computed();
        assert_eq!(verify(&rows, &[]), [Finding::Unchained { seq: 4 }]);
    }

    #[test]
    fn deleted_and_reordered_rows_show() {
        let mut rows = log();
        rows.remove(1);
        assert_eq!(verify(&rows, &[])[0], Finding::Missing { from: 2, to: 2 });
        let mut rows = log();
        let (one, two) = (rows[1].seq, rows[2].seq);
        (rows[1].seq, rows[2].seq) = (two, one);
        rows.swap(1, 2);
        assert!(verify(&rows, &[]).contains(&Finding::Altered { seq: 2 }));
    }

    #[test]
    fn a_cut_off_end_contradicts_the_hosts() {
        let rows = log();
        let witness = Witness { host: "web-1".into(), head: rows[4].digest };
        assert_eq!(verify(&rows, std::slice::from_ref(&witness)), []);
        assert_eq!(
            verify(&rows[..4], std::slice::from_ref(&witness)),
            [Finding::Contradicted { host: "web-1".into(), head: rows[4].digest }]
        );
    }
}
