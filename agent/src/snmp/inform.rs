//! Informs: hints to the manager that a table is worth reading. Their delivery never holds up a run. What the manager
//! has not confirmed waits in the state, in order, also over a restart of the agent; of a manager that stays away for
//! long, only the newest wait.

use std::{sync::Arc, time::Duration};

use async_snmp::{
    AuthProtocol, Client, DiscoveredEngine, EngineCache, MessageSize, Oid, PrivProtocol, Retry, UdpClient, UsmConfig,
    Value, VarBind,
};
use patchlab_protocol::{enrolment::InformSink, limits, mib};

use super::handler::Tables;
use crate::{
    journal::JournalError,
    record::Record,
    state::{Event, Notice, What},
};

/// How long one answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often an inform is sent again, with growing pauses.
const RETRIES: u32 = 3;
/// After how long a manager that did not confirm is tried again; grows with every failure up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
/// Longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Informs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InformError {
    /// The user's passphrases cannot be used.
    #[error("inform user: {0}")]
    User(async_snmp::CryptoError),
    /// The retry policy cannot be.
    #[error("inform retries: {0}")]
    Retry(#[from] async_snmp::RetryConfigError),
    /// The size limit cannot be.
    #[error("informs: {0}")]
    Size(#[from] async_snmp::MessageSizeError),
    /// The socket or the session cannot be made.
    #[error("informs to the manager: {0}")]
    Session(Box<async_snmp::Error>),
}

/// Sends informs to one manager.
pub struct Informer {
    client: UdpClient,
    host: String,
    tables: Arc<Tables>,
}

impl Informer {
    /// A session with the manager. Its engine id is the enrolled one: nobody else is asked who they are.
    ///
    /// # Errors
    /// When the session cannot be set up; whether the manager is there shows later.
    pub async fn new(sink: &InformSink, host: &str, tables: Arc<Tables>) -> Result<Self, InformError> {
        let user = &sink.user;
        let usm = UsmConfig::new(user.name.clone())
            .auth_priv(AuthProtocol::Sha256, user.auth.as_bytes(), PrivProtocol::Aes128, user.privacy.as_bytes())
            .map_err(InformError::User)?;
        let size = MessageSize::new(limits::PDU_BYTES)?;
        let manager = DiscoveredEngine::new(sink.engine_id.as_bytes().to_vec(), size).map_err(InformError::Session)?;
        let engines = Arc::new(EngineCache::new());
        engines.insert_discovered(sink.address, manager).map_err(InformError::Session)?;
        let retry = Retry::exponential(RETRIES).build()?;
        let client = Client::builder(sink.address, usm)
            .engine_cache(engines)
            .request_timeout(TIMEOUT)
            .retry(retry)
            .connect()
            .await
            .map_err(InformError::Session)?;
        Ok(Self { client, host: host.to_owned(), tables })
    }

    /// Sends what waits and what comes, for ever.
    ///
    /// # Errors
    /// When a confirmation could not be journaled.
    pub async fn deliver(self, record: Arc<Record>) -> Result<(), JournalError> {
        let mut changes = record.subscribe();
        let mut pause = PAUSE;
        loop {
            changes.borrow_and_update();
            let Some(notice) = record.read(|state| state.notices.front().cloned()) else {
                drop(changes.changed().await);
                continue;
            };
            let (kind, bindings) = bindings(&notice, &self.host, self.tables.pinned_version());
            let sent = self.client.send_inform(&Oid::from_slice(kind), self.tables.uptime(), bindings).await;
            match sent {
                Ok(_) => {
                    pause = PAUSE;
                    record.enter(Event::Confirmed { sequence: notice.sequence })?;
                }
                Err(error) => {
                    tracing::info!(sequence = notice.sequence, %error, "the manager did not confirm an inform; it waits");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// The notification and its objects.
fn bindings(notice: &Notice, host: &str, pinned: u32) -> (&'static [u32], Vec<VarBind>) {
    let scalar = |column, value| binding(mib::agent::GROUP, column, &[0], value);
    let mut bindings = vec![
        scalar(mib::agent::NOTIFICATION_SEQUENCE, Value::Gauge32(notice.sequence)),
        scalar(mib::agent::HOST, Value::OctetString(host.to_owned().into())),
    ];
    let (order, run, state, refusal, result) = match &notice.what {
        What::Started => return (mib::notification::AGENT_STARTED, bindings),
        What::Trust { root, revocation, refusal } => {
            let mut scalar = |column, value| bindings.push(binding(mib::trust::GROUP, column, &[0], value));
            scalar(mib::trust::ROOT_VERSION, Value::Gauge32(root.unwrap_or(pinned)));
            scalar(mib::trust::REVOCATION_VERSION, Value::Gauge32(*revocation));
            scalar(mib::trust::OFFER_REFUSAL, Value::Integer(refusal.map_or(0, |refusal| refusal as i32)));
            return (mib::notification::TRUST_CHANGED, bindings);
        }
        What::Inventory { digest } => {
            let digest = digest.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default();
            let value = Value::OctetString(digest.into());
            bindings.push(binding(mib::agent::GROUP, mib::agent::INVENTORY_DIGEST, &[0], value));
            return (mib::notification::INVENTORY_READ, bindings);
        }
        What::Run { order, run, state, refusal, result } => (order, run, state, refusal, result),
    };
    let mut cell = |column, value| bindings.push(binding(mib::run::ENTRY, column, &[*order, *run], value));
    cell(mib::run::STATE, Value::Integer(*state as i32));
    cell(mib::run::REFUSAL, Value::Integer(refusal.map_or(0, |refusal| refusal as i32)));
    if let Some((statement, signature)) = result {
        cell(mib::run::RESULT, Value::OctetString(statement.clone().into()));
        cell(mib::run::RESULT_SIGNATURE, Value::OctetString(hex::decode(signature).unwrap_or_default().into()));
    }
    (mib::notification::RUN_CHANGED, bindings)
}

fn binding(prefix: &[u32], column: u32, index: &[u32], value: Value) -> VarBind {
    VarBind::new(Oid::new(prefix.iter().copied().chain([column]).chain(index.iter().copied())), value)
}
