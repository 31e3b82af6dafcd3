//! The inform sink: hosts' hints that something changed. It wakes whoever polls that host and proves nothing: tables are truth.
//!
//! Informs are localized to this engine's id, which is made once and survives in the keys folder with its boots. Every host
//! has a user of its own, so who sent an inform is known by the user that signed it: addresses say nothing behind slirp or NAT.
//! The receiver takes its users when it is made, so a newly enrolled host makes another receiver on the same port; an inform
//! lost in between is sent again.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_snmp::{
    AuthProtocol, AuthoritativeEngine, PrivProtocol, SecurityLevel,
    notification::{Notification, NotificationAcceptance, NotificationEnvelope, NotificationReceiver},
    v3::PersistedAuthoritativeEngine,
};
use patchlab_protocol::enrolment::{EngineId, SnmpUser};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::place::{PlaceError, write_private};

/// How often the port is tried again when the set of senders changes.
const REBIND_TRIES: u32 = 50;
/// How long between two tries.
const REBIND_PAUSE: Duration = Duration::from_millis(100);

/// Who may send informs: host and its inform user.
pub type Senders = Vec<(String, SnmpUser)>;

/// The sink could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The engine's file.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The engine's file says nonsense.
    #[error("manager engine {path}: {reason}; hosts' inform keys are localized to the id in it, so restore it from a backup", path = path.display())]
    Engine {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The port.
    #[error("inform sink on {address}: {reason}; choose another with --informs")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
}

/// The manager's own engine, as kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptEngine {
    engine_id: EngineId,
    boots: u32,
}

/// Wakes pollers, by host.
#[derive(Debug, Clone, Default)]
pub struct Bells {
    hosts: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    heard: watch::Sender<BTreeSet<String>>,
}

impl Bells {
    /// The bell of a host, for whoever follows a run there.
    pub fn of(&self, host: &str) -> Arc<Notify> {
        let mut bells = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(bells.entry(host.to_owned()).or_default())
    }

    /// Rings it: every poller that listens wakes, and it is kept for one that does not listen just now.
    pub fn ring(&self, host: &str) {
        let bell = self.of(host);
        bell.notify_waiters();
        bell.notify_one();
        self.heard.send_modify(|heard| {
            heard.insert(host.to_owned());
        });
    }

    /// The hosts that rang since this was last asked, as soon as there are any: for the one who waits for hosts to come back.
    pub async fn heard(&self) -> BTreeSet<String> {
        // The sender is here, so waiting does not fail.
        let _ = self.heard.subscribe().wait_for(|heard| !heard.is_empty()).await;
        self.heard.send_replace(BTreeSet::new())
    }
}

/// The running sink.
#[derive(Debug)]
pub struct Sink {
    /// The engine id informs are localized to.
    pub engine_id: EngineId,
    /// Where it listens, with the port it got.
    pub address: SocketAddr,
    senders: watch::Sender<Senders>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sink {
    /// Opens the sink. `kept` is the file of the engine's id and boots; made when absent.
    pub async fn open(kept: &Path, address: SocketAddr, senders: Senders, bells: Bells) -> Result<Self, SinkError> {
        let (engine, engine_id) = engine(kept)?;
        let first = receiver(&engine, address, &senders).await?;
        let address = first.local_addr();
        let (sender, receive) = watch::channel(senders);
        let first = (first, receive.borrow().clone());
        let task = tokio::spawn(listen(engine, address, first, receive, bells));
        Ok(Self { engine_id, address, senders: sender, task })
    }

    /// Takes another set of senders.
    pub fn set_senders(&self, senders: Senders) {
        self.senders.send_replace(senders);
    }
}

/// Reads or makes the engine; its boots are on disk before it speaks.
fn engine(kept: &Path) -> Result<(AuthoritativeEngine, EngineId), SinkError> {
    let wrong = |reason: String| SinkError::Engine { path: kept.to_owned(), reason };
    let path = kept.to_owned();
    let persist = move |state: &PersistedAuthoritativeEngine| -> Result<(), PlaceError> {
        let bad = |error: String| PlaceError::io("write", &path)(io::Error::other(error));
        let engine_id = EngineId::from_bytes(state.engine_id()).map_err(|error| bad(error.to_string()))?;
        let kept = KeptEngine { engine_id, boots: state.engine_boots() };
        write_private(&path, &serde_json::to_vec(&kept).map_err(|error| bad(error.to_string()))?)
    };
    let made = match std::fs::read(kept) {
        Ok(bytes) => {
            let there: KeptEngine = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
            let previous = PersistedAuthoritativeEngine::new(there.engine_id.as_bytes().to_vec(), there.boots)
                .map_err(|error| wrong(error.to_string()))?;
            AuthoritativeEngine::restart(previous, persist)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = EngineId::generate().map_err(|error| wrong(error.to_string()))?;
            AuthoritativeEngine::install(id.as_bytes().to_vec(), persist)
        }
        Err(error) => return Err(PlaceError::io("read", kept)(error).into()),
    }
    .map_err(|error| wrong(error.to_string()))?;
    let id = EngineId::from_bytes(made.engine_id()).map_err(|error| wrong(error.to_string()))?;
    Ok((made, id))
}

async fn receiver(
    engine: &AuthoritativeEngine,
    address: SocketAddr,
    senders: &Senders,
) -> Result<NotificationReceiver, SinkError> {
    let bind = |reason: String| SinkError::Bind { address, reason };
    let mut builder = NotificationReceiver::builder()
        .bind(address.to_string())
        .authoritative_engine(engine.clone())
        .acceptance_policy(|envelope: &NotificationEnvelope<'_>| {
            if envelope.security_level == Some(SecurityLevel::AuthPriv) {
                NotificationAcceptance::Accept
            } else {
                NotificationAcceptance::Reject
            }
        });
    for (_, user) in senders {
        builder = builder
            .usm_user(user.name.clone(), |config| {
                config.auth_priv(
                    AuthProtocol::Sha256,
                    user.auth.as_bytes(),
                    PrivProtocol::Aes128,
                    user.privacy.as_bytes(),
                )
            })
            .map_err(|error| bind(error.to_string()))?;
    }
    builder.build().await.map_err(|error| bind(error.to_string()))
}

/// Takes the port again. A process that is being started may hold the old socket for a moment longer than we do.
async fn again(
    engine: &AuthoritativeEngine,
    address: SocketAddr,
    senders: &Senders,
) -> Result<NotificationReceiver, SinkError> {
    let mut left = REBIND_TRIES;
    loop {
        match receiver(engine, address, senders).await {
            Err(error) if left > 0 => {
                tracing::warn!(%error, "trying again");
                left -= 1;
                tokio::time::sleep(REBIND_PAUSE).await;
            }
            other => return other,
        }
    }
}

async fn listen(
    engine: AuthoritativeEngine,
    address: SocketAddr,
    // With the senders it was made for: others may have been set before this task first ran.
    first: (NotificationReceiver, Senders),
    mut senders: watch::Receiver<Senders>,
    bells: Bells,
) {
    let mut current = Some(first);
    loop {
        let (receiver, known) = match current.take() {
            Some(first) => first,
            None => {
                let known = senders.borrow_and_update().clone();
                match again(&engine, address, &known).await {
                    Ok(receiver) => (receiver, known),
                    Err(error) => {
                        // Polling goes on without hints; the next enrolment tries again.
                        tracing::error!(%error, "no informs until the next enrolment");
                        if senders.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                }
            }
        };
        loop {
            tokio::select! {
                changed = senders.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                received = receiver.recv() => match received {
                    Ok(received) => hint(&received.notification, &known, &bells),
                    Err(error) => tracing::debug!(%error, "inform dropped"),
                },
            }
        }
    }
}

fn hint(notification: &Notification, known: &Senders, bells: &Bells) {
    let (Notification::InformV3 { username, .. } | Notification::TrapV3 { username, .. }) = notification else {
        return;
    };
    if let Some((host, _)) = known.iter().find(|(_, user)| user.name.as_bytes() == username.as_ref()) {
        tracing::debug!(host, "inform");
        bells.ring(host);
    }
}
