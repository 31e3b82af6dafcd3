//! Orders, their verdicts, releases and approvals, and the states an order goes through.

use jiff::Timestamp;
use patchlab_lab::report::Report;
use patchlab_protocol::{
    Digest, Envelope,
    document::{Action, Approval, Order},
};
use rusqlite::{Connection, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use super::{
    DocumentKind, Store, StoreError, document, failed, first, named, number, optional_text, parsed, text, waiver,
};
use crate::audit::Event;

named! {
    /// Where an order is on its way.
    OrderState {
        /// Received; its signature and its files were checked.
        Submitted = "submitted",
        /// The lab passed it.
        Validated = "validated",
        /// The lab rejected it: draft another one.
        Rejected = "rejected",
        /// The signer signed the lab's proof.
        Released = "released",
        /// A person said yes.
        Approved = "approved",
        /// It is being carried to hosts.
        Active = "active",
        /// Every host it was activated for has it.
        Deployed = "deployed",
        /// Some hosts have it.
        Partly = "partly",
        /// It is being taken back.
        RollingBack = "rolling-back",
        /// No host has it any more.
        RolledBack = "rolled-back",
        /// A way back failed: a person is needed.
        RollbackFailed = "rollback-failed",
    }
}

impl OrderState {
    /// Whether `next` may follow. A rejection is final: another verdict over the same order would be shopping for one. It is released all the
    /// same, by waivers alone, where somebody answers for all that the lab found.
    pub fn allows(self, next: Self) -> bool {
        use OrderState::{
            Active, Approved, Deployed, Partly, Rejected, Released, RollbackFailed, RolledBack, RollingBack, Submitted,
            Validated,
        };
        match self {
            Submitted => matches!(next, Validated | Rejected),
            Validated => matches!(next, Released | Rejected),
            Rejected => matches!(next, Released),
            Released => matches!(next, Approved),
            // A second person may approve for more hosts; nobody has it yet.
            Approved => matches!(next, Approved | Active | RollingBack),
            // Hosts that have it may have to be brought back while others still wait for their window.
            Active => matches!(next, Deployed | Partly | Approved | RollingBack),
            Deployed | Partly | RolledBack => matches!(next, Approved | Active | RollingBack),
            RollbackFailed => matches!(next, RollingBack),
            RollingBack => matches!(next, RolledBack | Partly | Deployed | RollbackFailed),
        }
    }

    /// Where an order is as long as a deployment of it is under way.
    pub fn while_under_way(action: Action) -> Self {
        match action {
            Action::Apply => Self::Active,
            Action::Rollback => Self::RollingBack,
        }
    }
}

/// An order as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OrderRow {
    /// Its digest.
    pub digest: Digest,
    /// Its name for people.
    pub id: String,
    /// One line.
    pub title: String,
    /// Where it is.
    pub state: OrderState,
    /// Why it is there, for people.
    pub reason: String,
    /// When it came, RFC 3339.
    pub submitted_at: String,
    /// When its state last changed, RFC 3339.
    pub changed_at: String,
    /// Why it was revoked, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
    /// The id of the released order that replaces it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<String>,
    /// How many waivers its newest release rests on; 0 where the lab passed it, or it has none.
    #[serde(default)]
    pub waivers: u64,
}

impl OrderRow {
    /// What nobody may overlook where its state is told: that it is out by somebody's word and not by the lab's, or that another one has
    /// taken its place.
    pub fn marks(&self) -> Vec<&'static str> {
        let waived = (self.waivers > 0).then_some("waived");
        let superseded = self.superseded.as_ref().map(|_| "superseded");
        waived.into_iter().chain(superseded).collect()
    }

    /// Its state as it is told: an order that was revoked is nothing else first.
    pub fn standing(&self) -> &'static str {
        if self.revoked.is_some() { "revoked" } else { self.state.name() }
    }
}

/// What a release is tied to beside its order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ties<'a> {
    /// The waivers that it rests on.
    pub waivers: &'a [Digest],
    /// Orders that its order replaces: from now on nobody gets those any more.
    pub supersedes: &'a [Digest],
}

/// A verdict as it came from the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerdictRow {
    /// `passed`, `rejected`, …
    pub verdict: String,
    /// The whole verdict JSON.
    pub json: String,
    /// When it came, RFC 3339.
    pub at: String,
}

/// An approval as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApprovalRow {
    /// Its digest.
    pub digest: Digest,
    /// The release it speaks of.
    pub release: Digest,
    /// Who.
    pub approver: String,
    /// Most hosts.
    pub hosts_at_most: u64,
    /// RFC 3339.
    pub not_after: String,
}

const COLUMNS: &str = "SELECT digest, id, title, state, reason, submitted_at, changed_at,
    (SELECT revoked.reason FROM revoked WHERE revoked.document = patch_order.digest) AS revoked,
    (SELECT count(*) FROM release_waiver WHERE release_waiver.release = (SELECT release.digest FROM release
        WHERE release.patch_order = patch_order.digest ORDER BY release.rowid DESC LIMIT 1)) AS waivers,
    (SELECT newer.id FROM superseded JOIN patch_order AS newer ON newer.digest = superseded.newer
        WHERE superseded.older = patch_order.digest AND superseded.newer NOT IN (SELECT document FROM revoked)
        ORDER BY superseded.rowid DESC LIMIT 1) AS superseded FROM patch_order";

impl Store {
    /// Takes an order in. The same order again is no error; another one by the same id is.
    pub fn submit(&self, envelope: &Envelope, order: &Order, event: &Event) -> Result<OrderRow, StoreError> {
        let digest = envelope.digest();
        if let Ok(there) = self.order(&order.id) {
            return if there.digest == digest {
                Ok(there)
            } else {
                Err(StoreError::Conflict {
                    what: "order",
                    name: order.id.clone(),
                    next: "orders are immutable: give the new one another id",
                })
            };
        }
        self.change("store an order", event, |transaction| {
            document::put(transaction, DocumentKind::Order, envelope, event.at)?;
            transaction
                .execute(
                    "INSERT INTO patch_order VALUES (?1, ?2, ?3, ?4, '', ?5, ?5)",
                    params![
                        digest.to_string(),
                        order.id,
                        order.title,
                        OrderState::Submitted.name(),
                        event.at.to_string()
                    ],
                )
                .map_err(failed("store an order"))?;
            find(transaction, &order.id)
        })
    }

    /// An order by its id or its digest.
    pub fn order(&self, name: &str) -> Result<OrderRow, StoreError> {
        find(&self.read(), name)
    }

    /// Every order, newest first.
    pub fn orders(&self) -> Result<Vec<OrderRow>, StoreError> {
        self.rows("list orders", &format!("{COLUMNS} ORDER BY rowid DESC"), [], order_row)
    }

    /// Moves an order on, when its state allows it.
    pub fn advance(&self, digest: &Digest, next: OrderState, reason: &str, event: &Event) -> Result<(), StoreError> {
        self.change("move an order on", event, |transaction| advance(transaction, digest, next, reason, event.at))
    }

    /// Takes the lab's verdict in and moves the order on: a pass validates, a rejection rejects, anything else leaves it.
    pub fn judge(
        &self,
        digest: &Digest,
        verdict: &Report,
        json: &str,
        next: Option<OrderState>,
        event: &Event,
    ) -> Result<(), StoreError> {
        self.change("store a verdict", event, |transaction| {
            transaction
                .execute(
                    "INSERT INTO verdict (patch_order, verdict, json, at) VALUES (?1, ?2, ?3, ?4)",
                    params![digest.to_string(), verdict.verdict.name(), json, event.at.to_string()],
                )
                .map_err(failed("store a verdict"))?;
            match next {
                Some(next) => advance(transaction, digest, next, &verdict.reason, event.at),
                None => Ok(()),
            }
        })
    }

    /// The newest verdict on an order.
    pub fn verdict(&self, digest: &Digest) -> Result<Option<VerdictRow>, StoreError> {
        first(
            &self.read(),
            "read a verdict",
            "SELECT verdict, json, at FROM verdict WHERE patch_order = ?1 ORDER BY number DESC LIMIT 1",
            [digest.to_string()],
            |row| Ok(VerdictRow { verdict: text(row, "verdict")?, json: text(row, "json")?, at: text(row, "at")? }),
        )
    }

    /// Takes a release in, and what it is tied to.
    pub fn release(
        &self,
        order: &Digest,
        envelope: &Envelope,
        ties: Ties<'_>,
        event: &Event,
    ) -> Result<Digest, StoreError> {
        self.change("store a release", event, |transaction| {
            let there = find(transaction, &order.to_string())?;
            if there.state == OrderState::Rejected && ties.waivers.is_empty() {
                let (from, to) = (there.state.name(), OrderState::Released.name());
                return Err(StoreError::Transition { what: "order", name: there.id, from, to });
            }
            let digest = document::put(transaction, DocumentKind::Release, envelope, event.at)?;
            transaction
                .execute(
                    "INSERT INTO release VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                    params![digest.to_string(), order.to_string(), event.at.to_string()],
                )
                .map_err(failed("store a release"))?;
            waiver::rests_on(transaction, &digest, ties.waivers)?;
            for older in ties.supersedes {
                transaction
                    .execute(
                        "INSERT INTO superseded VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                        [older.to_string(), order.to_string()],
                    )
                    .map_err(failed("store what an order replaces"))?;
            }
            advance(transaction, order, OrderState::Released, "", event.at)?;
            Ok(digest)
        })
    }

    /// The newest release of an order.
    pub fn newest_release(&self, order: &Digest) -> Result<Option<Digest>, StoreError> {
        first(
            &self.read(),
            "read a release",
            "SELECT digest FROM release WHERE patch_order = ?1 ORDER BY rowid DESC LIMIT 1",
            [order.to_string()],
            |row| parsed(row, "digest"),
        )
    }

    /// Takes an approval in.
    pub fn approve(&self, envelope: &Envelope, approval: &Approval, event: &Event) -> Result<Digest, StoreError> {
        self.change("store an approval", event, |transaction| {
            let digest = document::put(transaction, DocumentKind::Approval, envelope, event.at)?;
            transaction
                .execute(
                    "INSERT INTO approval VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
                    params![
                        digest.to_string(),
                        approval.order.to_string(),
                        approval.release.to_string(),
                        approval.approver,
                        approval.hosts_at_most,
                        approval.not_after.to_string(),
                        event.at.to_string()
                    ],
                )
                .map_err(failed("store an approval"))?;
            let reason = format!("approved by {} for {} hosts", approval.approver, approval.hosts_at_most);
            advance(transaction, &approval.order, OrderState::Approved, &reason, event.at)?;
            Ok(digest)
        })
    }

    /// An order's approvals, newest first.
    pub fn approvals(&self, order: &Digest) -> Result<Vec<ApprovalRow>, StoreError> {
        self.rows(
            "read approvals",
            "SELECT * FROM approval WHERE patch_order = ?1 ORDER BY rowid DESC",
            [order.to_string()],
            |row| {
                Ok(ApprovalRow {
                    digest: parsed(row, "digest")?,
                    release: parsed(row, "release")?,
                    approver: text(row, "approver")?,
                    hosts_at_most: number(row, "hosts_at_most")?,
                    not_after: text(row, "not_after")?,
                })
            },
        )
    }
}

fn order_row(row: &SqlRow<'_>) -> Result<OrderRow, StoreError> {
    Ok(OrderRow {
        digest: parsed(row, "digest")?,
        id: text(row, "id")?,
        title: text(row, "title")?,
        state: parsed(row, "state")?,
        reason: text(row, "reason")?,
        submitted_at: text(row, "submitted_at")?,
        changed_at: text(row, "changed_at")?,
        revoked: optional_text(row, "revoked")?,
        superseded: optional_text(row, "superseded")?,
        waivers: number(row, "waivers")?,
    })
}

fn find(connection: &Connection, name: &str) -> Result<OrderRow, StoreError> {
    let sql = format!("{COLUMNS} WHERE id = ?1 OR digest = ?1");
    first(connection, "find an order", &sql, [name], order_row)?
        .ok_or_else(|| StoreError::NotFound { what: "order", name: name.to_owned() })
}

/// Moves an order on inside a transaction. Staying where it is needs no transition.
pub(super) fn advance(
    connection: &Connection,
    digest: &Digest,
    next: OrderState,
    reason: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    let order = find(connection, &digest.to_string())?;
    if order.state != next && !order.state.allows(next) {
        return Err(StoreError::Transition {
            what: "order",
            name: order.id,
            from: order.state.name(),
            to: next.name(),
        });
    }
    settle(connection, digest, next, reason, at)
}

/// Writes down that an order was taken back from a host without this server, unless it is under way: then its deployment says so.
pub(super) fn taken_back(
    connection: &Connection,
    digest: &Digest,
    reason: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    let order = match find(connection, &digest.to_string()) {
        // An order that never came by here.
        Err(StoreError::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    if !matches!(order.state, OrderState::Deployed | OrderState::Partly | OrderState::RollbackFailed) {
        return Ok(());
    }
    let carried: i64 = connection
        .query_row("SELECT count(*) FROM host WHERE current_order = ?1", [digest.to_string()], |row| row.get(0))
        .map_err(failed("count hosts"))?;
    let next = if carried == 0 { OrderState::RolledBack } else { OrderState::Partly };
    settle(connection, &order.digest, next, reason, at)
}

/// Writes down where an order is by what became of its deployments: a fact, which nobody is asked about.
pub(super) fn settle(
    connection: &Connection,
    digest: &Digest,
    next: OrderState,
    reason: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection
        .execute(
            "UPDATE patch_order SET state = ?2, reason = ?3, changed_at = ?4 WHERE digest = ?1",
            params![digest.to_string(), next.name(), reason, at.to_string()],
        )
        .map_err(failed("move an order on"))?;
    Ok(())
}
