//! Hosts that are virtual machines themselves, and the snapshots that are taken of them: each is written down before it is taken, and so is
//! each way that leads from it.

use std::time::Duration;

use jiff::Timestamp;
use patchlab_lab::snapshot::{Guest, Layer, Stillness};
use patchlab_protocol::Digest;
use rusqlite::{Connection, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError, failed, first, from_json, named, number, optional_parsed, optional_text, order, parsed, text,
    to_i64,
};
use crate::audit::Event;

/// The machine that a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostMachine {
    /// Whose, and which.
    #[serde(flatten)]
    pub guest: Guest,
    /// How long a snapshot is kept after an order went well, seconds.
    pub keep_s: u64,
}

impl HostMachine {
    /// How long a snapshot is kept after an order went well.
    pub fn keep(&self) -> Duration {
        Duration::from_secs(self.keep_s)
    }
}

named! {
    /// Where a snapshot is.
    SnapshotState {
        /// About to be taken.
        Taking = "taking",
        /// Its host works above it.
        Taken = "taken",
        /// Its host is being brought back to it.
        Reverting = "reverting",
        /// What was written since is being written to what is below.
        Merging = "merging",
        /// Its host was brought back to it.
        Reverted = "reverted",
        /// Its host goes on without it.
        Merged = "merged",
        /// It was not taken.
        Untaken = "untaken",
    }
}

impl SnapshotState {
    /// Whether `next` may follow. What was cut off is done again.
    pub fn allows(self, next: Self) -> bool {
        use SnapshotState::{Merged, Merging, Reverted, Reverting, Taken, Taking, Untaken};
        match self {
            Taking => matches!(next, Taking | Taken | Untaken),
            Taken => matches!(next, Taken | Reverting | Merging),
            Reverting => matches!(next, Reverting | Reverted),
            // What could not be merged is still there to go back to, as long as libvirt says so.
            Merging => matches!(next, Merging | Merged | Taken),
            Reverted | Merged | Untaken => false,
        }
    }

    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Reverted | Self::Merged | Self::Untaken)
    }
}

/// A snapshot as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number.
    pub number: u64,
    /// The host.
    pub host: String,
    /// The order that it was taken before.
    pub order: Digest,
    /// The run.
    pub run: u32,
    /// Its name.
    pub name: String,
    /// The machine, as it was then.
    pub guest: Guest,
    /// Its disks.
    pub layers: Vec<Layer>,
    /// In what state they are; `None` before it was taken.
    pub stillness: Option<Stillness>,
    /// The order that the host had.
    pub had: Option<Digest>,
    /// Digest of what was installed.
    pub inventory: Option<Digest>,
    /// The head of the host's results.
    pub result_head: Option<Digest>,
    /// Where it is.
    pub state: SnapshotState,
    /// For people.
    pub reason: String,
    /// When it was taken, RFC 3339.
    pub at: String,
    /// When it is merged; `None` while somebody has to say what becomes of it.
    pub merge_at: Option<String>,
    /// RFC 3339.
    pub ended_at: Option<String>,
}

/// What a host was when its snapshot was to be taken.
#[derive(Debug, Clone)]
pub struct NewSnapshot<'a> {
    /// The order.
    pub order: Digest,
    /// The run.
    pub run: u32,
    /// Its name.
    pub name: &'a str,
    /// The machine.
    pub guest: &'a Guest,
    /// Its disks.
    pub layers: &'a [Layer],
    /// Digest of what is installed.
    pub inventory: Option<Digest>,
}

/// What is new about a snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotMove {
    /// Where it is.
    pub state: SnapshotState,
    /// For people.
    pub reason: String,
    /// When it is merged.
    pub merge_at: Option<Timestamp>,
}

impl Store {
    /// Says which machine a host is; `None`: none that a snapshot is taken of.
    pub fn set_machine(&self, host: &str, machine: Option<&HostMachine>, event: &Event) -> Result<(), StoreError> {
        self.change("note a host's machine", event, |transaction| {
            if let Some(open) = open(transaction, host)? {
                return Err(StoreError::Conflict {
                    what: "snapshot",
                    name: open.name,
                    next: "it is of the machine that the host has now: merge it or revert to it first",
                });
            }
            transaction
                .execute("DELETE FROM host_machine WHERE host = ?1", [host])
                .map_err(failed("forget a host's machine"))?;
            let Some(HostMachine { guest, keep_s }) = machine else { return Ok(()) };
            let taken = "SELECT host FROM host_machine WHERE libvirt = ?1 AND domain = ?2";
            let by =
                first(transaction, "find a machine", taken, [&guest.libvirt, &guest.domain], |row| text(row, "host"))?;
            if let Some(by) = by {
                return Err(StoreError::Conflict {
                    what: "machine",
                    name: format!("{} of host {by}", guest.domain),
                    next: "a machine is one host: `patchlab host machine --forget` it there first",
                });
            }
            transaction
                .execute(
                    "INSERT INTO host_machine VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![host, guest.libvirt, guest.domain, json(&guest.outside), to_i64(*keep_s)],
                )
                .map_err(failed("note a host's machine"))?;
            Ok(())
        })
    }

    /// The machine that a host is, when somebody said so.
    pub fn machine(&self, host: &str) -> Result<Option<HostMachine>, StoreError> {
        first(&self.read(), "find a host's machine", "SELECT * FROM host_machine WHERE host = ?1", [host], machine_row)
    }

    /// Every snapshot that has not ended, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, StoreError> {
        let sql = "SELECT * FROM snapshot WHERE ended_at IS NULL ORDER BY number";
        self.rows("list snapshots", sql, [], snapshot_row)
    }

    /// A host's snapshot that has not ended.
    pub fn open_snapshot(&self, host: &str) -> Result<Option<Snapshot>, StoreError> {
        open(&self.read(), host)
    }

    /// A snapshot by its number.
    pub fn snapshot(&self, number: u64) -> Result<Snapshot, StoreError> {
        find(&self.read(), number)
    }

    /// Writes down that a snapshot of a host is about to be taken.
    pub fn plan_snapshot(&self, host: &str, new: &NewSnapshot<'_>, event: &Event) -> Result<Snapshot, StoreError> {
        self.change("plan a snapshot", event, |transaction| {
            transaction
                .execute(
                    "INSERT INTO snapshot (host, patch_order, run, name, guest, layers, inventory, had, result_head, state,
                                           reason, at)
                     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, current_order, result_head, ?8, '', ?9 FROM host WHERE name = ?1",
                    params![
                        host,
                        new.order.to_string(),
                        new.run,
                        new.name,
                        json(new.guest),
                        json(&new.layers),
                        new.inventory.map(|digest| digest.to_string()),
                        SnapshotState::Taking.name(),
                        event.at.to_string()
                    ],
                )
                .map_err(failed("plan a snapshot"))?;
            let number = u64::try_from(transaction.last_insert_rowid()).unwrap_or(0);
            find(transaction, number)
        })
    }

    /// Writes down that a snapshot was taken, and how still its disks were.
    pub fn snapshot_taken(&self, snapshot: &Snapshot, stillness: Stillness, event: &Event) -> Result<(), StoreError> {
        self.change("note a snapshot", event, |transaction| {
            let moved = SnapshotMove { state: SnapshotState::Taken, reason: String::new(), merge_at: None };
            advance(transaction, snapshot, &moved, event)?;
            transaction
                .execute(
                    "UPDATE snapshot SET stillness = ?2 WHERE number = ?1",
                    params![to_i64(snapshot.number), json(&stillness)],
                )
                .map_err(failed("note a snapshot"))?;
            Ok(())
        })
    }

    /// Moves a snapshot on.
    pub fn move_snapshot(&self, snapshot: &Snapshot, moved: &SnapshotMove, event: &Event) -> Result<(), StoreError> {
        self.change("move a snapshot on", event, |transaction| advance(transaction, snapshot, moved, event))
    }

    /// When a snapshot is merged. That is a plan, and needs no row in the audit log.
    pub fn merge_snapshot_at(&self, snapshot: &Snapshot, at: Timestamp, reason: &str) -> Result<(), StoreError> {
        self.read()
            .execute(
                "UPDATE snapshot SET merge_at = ?2, reason = ?3 WHERE number = ?1",
                params![to_i64(snapshot.number), at.to_string(), reason],
            )
            .map_err(failed("plan the end of a snapshot"))?;
        Ok(())
    }

    /// Writes down that a host is what it was before its snapshot's order: it has the order that it had then.
    pub fn snapshot_reverted(&self, snapshot: &Snapshot, reason: &str, event: &Event) -> Result<(), StoreError> {
        self.change("note that a host was reverted", event, |transaction| {
            let moved = SnapshotMove { state: SnapshotState::Reverted, reason: reason.to_owned(), merge_at: None };
            advance(transaction, snapshot, &moved, event)?;
            transaction
                .execute(
                    "UPDATE host SET current_order = ?2 WHERE name = ?1",
                    params![snapshot.host, snapshot.had.map(|order| order.to_string())],
                )
                .map_err(failed("note the order a host has"))?;
            let taken_back = format!("{} was reverted to its snapshot from before it", snapshot.host);
            order::taken_back(transaction, &snapshot.order, &taken_back, event.at)
        })
    }
}

/// Serialisation of texts and numbers cannot fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn open(connection: &Connection, host: &str) -> Result<Option<Snapshot>, StoreError> {
    let sql = "SELECT * FROM snapshot WHERE host = ?1 AND ended_at IS NULL";
    first(connection, "find a snapshot", sql, [host], snapshot_row)
}

fn find(connection: &Connection, number: u64) -> Result<Snapshot, StoreError> {
    let sql = "SELECT * FROM snapshot WHERE number = ?1";
    first(connection, "find a snapshot", sql, [to_i64(number)], snapshot_row)?
        .ok_or_else(|| StoreError::NotFound { what: "snapshot", name: number.to_string() })
}

fn advance(
    connection: &Connection,
    snapshot: &Snapshot,
    moved: &SnapshotMove,
    event: &Event,
) -> Result<(), StoreError> {
    let there = find(connection, snapshot.number)?;
    if !there.state.allows(moved.state) {
        return Err(StoreError::Transition {
            what: "snapshot",
            name: there.name,
            from: there.state.name(),
            to: moved.state.name(),
        });
    }
    connection
        .execute(
            "UPDATE snapshot SET state = ?2, reason = ?3, merge_at = ?4, ended_at = ?5 WHERE number = ?1",
            params![
                to_i64(snapshot.number),
                moved.state.name(),
                moved.reason,
                moved.merge_at.map(|at| at.to_string()),
                moved.state.is_final().then(|| event.at.to_string())
            ],
        )
        .map_err(failed("move a snapshot on"))?;
    Ok(())
}

fn machine_row(row: &SqlRow<'_>) -> Result<HostMachine, StoreError> {
    let guest =
        Guest { libvirt: text(row, "libvirt")?, domain: text(row, "domain")?, outside: from_json(row, "outside")? };
    Ok(HostMachine { guest, keep_s: number(row, "keep_s")? })
}

fn snapshot_row(row: &SqlRow<'_>) -> Result<Snapshot, StoreError> {
    let stillness = optional_text(row, "stillness")?;
    Ok(Snapshot {
        number: number(row, "number")?,
        host: text(row, "host")?,
        order: parsed(row, "patch_order")?,
        run: u32::try_from(number(row, "run")?).unwrap_or(u32::MAX),
        name: text(row, "name")?,
        guest: from_json(row, "guest")?,
        layers: from_json(row, "layers")?,
        stillness: stillness.map(|_| from_json(row, "stillness")).transpose()?,
        had: optional_parsed(row, "had")?,
        inventory: optional_parsed(row, "inventory")?,
        result_head: optional_parsed(row, "result_head")?,
        state: parsed(row, "state")?,
        reason: text(row, "reason")?,
        at: text(row, "at")?,
        merge_at: optional_text(row, "merge_at")?,
        ended_at: optional_text(row, "ended_at")?,
    })
}
