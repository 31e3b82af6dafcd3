//! Deployments: an activation being carried to its hosts, one run a host.

use patchlab_protocol::{
    Digest, Envelope,
    document::{Action, Activation},
};
use rusqlite::{Connection, Row as SqlRow, params};
use serde::{Deserialize, Serialize};

use super::{DocumentKind, OrderState, Stage, Store, StoreError, Verified, document, failed, named, optional_parsed};
use super::{optional_text, order, parsed, run, text};
use crate::{audit::Event, window::Window};

named! {
    /// Where a deployment is.
    DeploymentState {
        /// Hosts remain.
        Running = "running",
        /// Every host ended as it should.
        Done = "done",
        /// A host did not, and the rest were left alone.
        Stopped = "stopped",
    }
}

/// An activation being carried out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deployment {
    /// Digest of the activation.
    pub activation: Digest,
    /// Digest of the order.
    pub order: Digest,
    /// Apply or rollback.
    pub action: Action,
    /// The release it rests on; none for a rollback.
    pub release: Option<Digest>,
    /// The approval it rests on; none for a rollback.
    pub approval: Option<Digest>,
    /// Its window; none when it counts from its signing on.
    #[serde(default)]
    pub window: Option<Window>,
    /// Where it is.
    pub state: DeploymentState,
    /// Why it stopped.
    pub reason: String,
    /// When it was activated, RFC 3339.
    pub at: String,
    /// When it ended, RFC 3339.
    pub ended_at: Option<String>,
}

/// A deployment with its signed document, which alone says when it counts.
const COLUMNS: &str = "SELECT activation.*, document.envelope FROM activation JOIN document USING (digest)";

impl Store {
    /// Takes an activation in (`rests_on`: release and approval, for apply), with a planned run for each of `hosts` in the given order, and moves the order on: all that a
    /// killed server needs to carry on. The same activation again changes nothing.
    pub fn activate(
        &self,
        envelope: &Envelope,
        activation: &Activation,
        rests_on: Option<(Digest, Digest)>,
        hosts: &[String],
        event: &Event,
    ) -> Result<Deployment, StoreError> {
        let digest = envelope.digest();
        if let Ok(there) = self.deployment(&digest) {
            return Ok(there);
        }
        self.change("store an activation", event, |transaction| {
            document::put(transaction, DocumentKind::Activation, envelope, event.at)?;
            let next = OrderState::while_under_way(activation.action);
            let reason = format!("{} of {} hosts", action_name(activation.action), hosts.len());
            order::advance(transaction, &activation.order, next, &reason, event.at)?;
            transaction
                .execute(
                    "INSERT INTO activation VALUES (?1, ?2, ?3, ?6, ?7, ?4, '', ?5, NULL)",
                    params![
                        digest.to_string(),
                        activation.order.to_string(),
                        action_name(activation.action),
                        DeploymentState::Running.name(),
                        event.at.to_string(),
                        rests_on.map(|(release, _)| release.to_string()),
                        rests_on.map(|(_, approval)| approval.to_string())
                    ],
                )
                .map_err(failed("store an activation"))?;
            for (position, host) in hosts.iter().enumerate() {
                plan_run(transaction, activation, &digest, host, position, event)?;
            }
            Ok(())
        })?;
        self.deployment(&digest)
    }

    /// A deployment by the digest of its activation.
    pub fn deployment(&self, activation: &Digest) -> Result<Deployment, StoreError> {
        self.rows(
            "find a deployment",
            &format!("{COLUMNS} WHERE activation.digest = ?1"),
            [activation.to_string()],
            deployment_row,
        )?
        .pop()
        .ok_or_else(|| StoreError::NotFound { what: "activation", name: activation.to_string() })
    }

    /// Every deployment that has not ended, oldest first.
    pub fn deployments_running(&self) -> Result<Vec<Deployment>, StoreError> {
        self.rows(
            "list deployments",
            &format!("{COLUMNS} WHERE activation.state = ?1 ORDER BY activation.rowid"),
            [DeploymentState::Running.name()],
            deployment_row,
        )
    }

    /// The hosts that were activated for apply under an approval.
    pub fn hosts_under(&self, approval: &Digest) -> Result<Vec<String>, StoreError> {
        self.rows(
            "list hosts of an approval",
            "SELECT DISTINCT run.host FROM run JOIN activation ON run.activation = activation.digest
             WHERE activation.approval = ?1 AND run.stage <> 'skipped'",
            [approval.to_string()],
            |row| text(row, "host"),
        )
    }

    /// The hosts that were activated for apply of an order, under any approval.
    pub fn hosts_of(&self, order: &Digest) -> Result<Vec<String>, StoreError> {
        self.rows(
            "list hosts of an order",
            "SELECT DISTINCT run.host FROM run JOIN activation ON run.activation = activation.digest
             WHERE activation.patch_order = ?1 AND activation.action = ?2 AND run.stage <> 'skipped'",
            [order.to_string(), action_name(Action::Apply).to_owned()],
            |row| text(row, "host"),
        )
    }

    /// An order's deployments, newest first.
    pub fn deployments_of(&self, order: &Digest) -> Result<Vec<Deployment>, StoreError> {
        self.rows(
            "list deployments",
            &format!("{COLUMNS} WHERE activation.patch_order = ?1 ORDER BY activation.rowid DESC"),
            [order.to_string()],
            deployment_row,
        )
    }

    /// Ends a deployment: runs that were never begun are skipped, the order moves on, unless others of its deployments still run.
    pub fn end_deployment(
        &self,
        deployment: &Deployment,
        state: DeploymentState,
        order_state: OrderState,
        reason: &str,
        event: &Event,
    ) -> Result<(), StoreError> {
        self.change("end a deployment", event, |transaction| {
            transaction
                .execute(
                    "UPDATE activation SET state = ?2, reason = ?3, ended_at = ?4 WHERE digest = ?1",
                    params![deployment.activation.to_string(), state.name(), reason, event.at.to_string()],
                )
                .map_err(failed("end a deployment"))?;
            transaction
                .execute(
                    "UPDATE run SET stage = ?2, reason = ?3, ended_at = ?4 WHERE activation = ?1 AND stage IN (?5, ?6)",
                    params![
                        deployment.activation.to_string(),
                        Stage::Skipped.name(),
                        "left alone: a host before it did not end as it should",
                        event.at.to_string(),
                        Stage::Planned.name(),
                        Stage::Cancelling.name()
                    ],
                )
                .map_err(failed("skip runs"))?;
            let next = others(transaction, deployment)?.unwrap_or(order_state);
            order::settle(transaction, &deployment.order, next, reason, event.at)
        })
    }
}

/// The state of an order as long as others of its deployments run.
fn others(connection: &Connection, ended: &Deployment) -> Result<Option<OrderState>, StoreError> {
    let sql = "SELECT action FROM activation WHERE patch_order = ?1 AND digest <> ?2 AND state = ?3 ORDER BY action DESC LIMIT 1";
    let of = params![ended.order.to_string(), ended.activation.to_string(), DeploymentState::Running.name()];
    let found = super::first(connection, "list deployments", sql, of, |row| action(text(row, "action")?))?;
    Ok(found.map(OrderState::while_under_way))
}

fn plan_run(
    connection: &Connection,
    activation: &Activation,
    digest: &Digest,
    host: &str,
    position: usize,
    event: &Event,
) -> Result<(), StoreError> {
    let index = run::next_index(connection, &activation.order, host)?;
    connection
        .execute(
            "INSERT INTO run (patch_order, host, run, activation, position, stage, phase, percent, reason, verified,
                              started_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, '', 0, '', ?7, ?8)",
            params![
                activation.order.to_string(),
                host,
                index,
                digest.to_string(),
                super::to_i64(position as u64),
                Stage::Planned.name(),
                Verified::Pending.name(),
                event.at.to_string()
            ],
        )
        .map_err(failed("plan a run"))?;
    Ok(())
}

fn deployment_row(row: &SqlRow<'_>) -> Result<Deployment, StoreError> {
    let envelope: Vec<u8> = row.get("envelope").map_err(failed("read an activation"))?;
    let corrupt = |value: String| StoreError::Corrupt { what: "an activation", value };
    let envelope = Envelope::from_bytes(&envelope).map_err(|error| corrupt(error.to_string()))?;
    let signed = envelope.statement::<Activation>().map_err(|error| corrupt(error.to_string()))?.predicate;
    Ok(Deployment {
        activation: parsed(row, "digest")?,
        order: parsed(row, "patch_order")?,
        action: action(text(row, "action")?)?,
        window: Window::of(&signed),
        release: optional_parsed(row, "release")?,
        approval: optional_parsed(row, "approval")?,
        state: parsed(row, "state")?,
        reason: text(row, "reason")?,
        at: text(row, "at")?,
        ended_at: optional_text(row, "ended_at")?,
    })
}

fn action(name: String) -> Result<Action, StoreError> {
    match name.as_str() {
        "apply" => Ok(Action::Apply),
        "rollback" => Ok(Action::Rollback),
        _ => Err(StoreError::Corrupt { what: "action", value: name }),
    }
}

/// An action's name, as stored and shown.
pub fn action_name(action: Action) -> &'static str {
    match action {
        Action::Apply => "apply",
        Action::Rollback => "rollback",
    }
}
