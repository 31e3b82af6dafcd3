//! Stage 5, audit: the story of every order from verdict to rollback, as one static HTML page and as JSON.
//!
//! [`Bundle`] is read from the store by the server; clients get it as JSON and render the page themselves ([`html`]), so that
//! a report needs nothing but the API. [`run`] is the page of one run of the lab.

pub(crate) mod filters;
mod headline;
mod html;
pub mod run;
pub mod style;

use jiff::Timestamp;
use patchlab_lab::report::Report;
use patchlab_protocol::{Digest, Envelope, document::Order};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use headline::told;
pub use html::html;

use crate::{
    audit,
    store::{ApprovalRow, Deployment, Host, OrderRow, PreparationRow, Run, Store, StoreError, WaiverRow},
    trust::{authority::Standing, rotation::expiry},
};

/// Version of the JSON.
pub const SCHEMA: &str = "patchlab-report-1";

/// Everything there is to tell.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bundle {
    /// [`SCHEMA`].
    pub schema: String,
    /// When it was read, RFC 3339.
    pub at: String,
    /// Every order, newest first.
    pub orders: Vec<OrderStory>,
    /// Every host.
    pub hosts: Vec<Host>,
    /// The audit log.
    pub audit: Vec<audit::Row>,
    /// What is wrong with it.
    pub audit_findings: Vec<audit::Finding>,
    /// Whom hosts are to believe.
    pub trust: TrustStory,
}

/// What is in force, and what somebody must do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustStory {
    /// Version of the root.
    pub root_version: u32,
    /// Its digest.
    pub root: Digest,
    /// No apply is allowed after that.
    pub expires: Timestamp,
    /// Version of the revocation list; 0 for none.
    pub revocation_version: u32,
    /// What must be done.
    pub warnings: Vec<String>,
}

impl TrustStory {
    /// From what is in force and what hosts have of it. Pure.
    pub fn new(standing: &Standing, hosts: &[Host], now: Timestamp) -> Self {
        let root = standing.root();
        let mut warnings: Vec<String> = expiry(root.root.expires, now).warning(root.root.version).into_iter().collect();
        warnings.extend(
            hosts
                .iter()
                .filter(|host| host.trust.needs_somebody())
                .map(|host| format!("{}: {}: {}", host.enrolled.name, host.trust.offer, host.trust.reason)),
        );
        Self {
            root_version: root.root.version,
            root: root.digest,
            expires: root.root.expires,
            revocation_version: standing.list().map_or(0, |list| list.says.version),
            warnings,
        }
    }
}

/// One order's story.
#[derive(Debug, Serialize, Deserialize)]
pub struct OrderStory {
    /// Where it is.
    pub order: OrderRow,
    /// What it says.
    pub document: Value,
    /// The newest verdict, as the lab wrote it.
    pub verdict: Option<Value>,
    /// The newest release.
    pub release: Option<Digest>,
    /// Waivers, newest first.
    #[serde(default)]
    pub waivers: Vec<WaiverRow>,
    /// Approvals, newest first.
    pub approvals: Vec<ApprovalRow>,
    /// Deployments, newest first.
    pub deployments: Vec<Deployment>,
    /// Runs, oldest first.
    pub runs: Vec<Run>,
    /// What hosts did ahead of an activation, oldest first.
    #[serde(default)]
    pub preparations: Vec<PreparationRow>,
}

impl OrderStory {
    /// Reads an order's story.
    pub fn read(store: &Store, order: OrderRow) -> Result<Self, StoreError> {
        let envelope: Envelope = store.envelope(&order.digest)?;
        let corrupt = |value: String| StoreError::Corrupt { what: "an order", value };
        let written = envelope.statement::<Order>().map_err(|error| corrupt(error.to_string()))?.predicate;
        let verdict = match store.verdict(&order.digest)? {
            Some(row) => Some(serde_json::from_str(&row.json).map_err(|error| corrupt(error.to_string()))?),
            None => None,
        };
        Ok(Self {
            document: serde_json::to_value(written).map_err(|error| corrupt(error.to_string()))?,
            verdict,
            release: store.newest_release(&order.digest)?,
            waivers: store.waivers(&order.digest)?,
            approvals: store.approvals(&order.digest)?,
            deployments: store.deployments_of(&order.digest)?,
            runs: store.runs_of_order(&order.digest)?,
            preparations: store.preparations_of(&order.digest)?,
            order,
        })
    }

    /// The newest verdict, as far as this program can read it.
    pub fn report(&self) -> Option<Report> {
        self.verdict.as_ref().and_then(|verdict| serde_json::from_value(verdict.clone()).ok())
    }
}

impl Bundle {
    /// Reads everything.
    pub fn read(store: &Store, standing: &Standing) -> Result<Self, StoreError> {
        let hosts = store.hosts()?;
        let orders =
            store.orders()?.into_iter().map(|order| OrderStory::read(store, order)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            schema: SCHEMA.into(),
            at: Timestamp::now().to_string(),
            orders,
            trust: TrustStory::new(standing, &hosts, Timestamp::now()),
            hosts,
            audit: store.audit(0, u32::MAX)?,
            audit_findings: store.audit_verify()?.1,
        })
    }
}
