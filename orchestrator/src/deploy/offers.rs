//! Every host is owed the newest root and the newest revocation list. They are offered at every visit ([`super::visits`]) until the
//! host has them, and once more before an order is carried to it; what became of that is noted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::OwnedMutexGuard;

use super::{
    credentials::{Credentials, CredentialsError},
    manager::{Manager, ManagerError},
    rotation,
    row::DeployError,
    sink::Bells,
    snmp::SnmpManager,
    trust::{self, Ended, Offered, Said},
};
use crate::{
    audit::Event,
    place::Data,
    store::{Host, HostTrust, OfferState, Store, StoreError},
    trust::authority::{Authority, Held, Standing},
};

/// What hosts are owed, carried to them.
#[derive(Debug, Clone)]
pub struct Offers {
    /// The store.
    pub store: Arc<Store>,
    /// Credentials lie here.
    pub data: Data,
    /// What is in force.
    pub authority: Arc<Authority>,
    /// Informs ring here.
    pub bells: Bells,
    /// Whose turn it is with a host.
    pub turns: Turns,
}

/// One at a time offers a host anything: its visits and its deployments come when they will, and of two at once neither could tell
/// what became of its own offer.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>);

impl Turns {
    /// Waits for the turn with a host; it ends with what is given back.
    pub(super) async fn wait(&self, host: &str) -> OwnedMutexGuard<()> {
        let turn =
            Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(host.to_owned()).or_default());
        turn.lock_owned().await
    }
}

/// A host could not be offered what it is owed.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The way to the host.
    #[error(transparent)]
    Deploy(#[from] DeployError),
    /// Its credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl Offers {
    /// A manager for an enrolled host.
    ///
    /// # Errors
    /// Its credentials cannot be read or used.
    pub async fn manager(&self, host: &Host) -> Result<SnmpManager, OfferError> {
        let path = self.data.credentials(&host.enrolled.name);
        let credentials = Credentials::read(&path)?;
        let speak = async |user| rotation::speak(host, user).await.map_err(DeployError::from);
        if let Some(next) = &credentials.next {
            // A change of keys was begun, and nobody saw yet that it was done: whoever is answered by the new ones has seen it.
            let _turn = self.turns.wait(&host.enrolled.name).await;
            let manager = speak(&next.deployer).await?;
            if manager.get(&[rotation::who()]).await.is_ok() {
                let now = Credentials::read(&path)?;
                if now == credentials {
                    now.settled().write(&path)?;
                }
                return Ok(manager);
            }
        }
        Ok(speak(&credentials.deployer).await?)
    }

    /// Brings a host to what is in force here, and notes what came of it.
    ///
    /// # Errors
    /// When it is not the host that was enrolled, or the store cannot keep it. That the host is away is noted, and is an error too.
    pub async fn bring(&self, host: &Host, manager: &dyn Manager) -> Result<OfferState, OfferError> {
        let _turn = self.turns.wait(&host.enrolled.name).await;
        let standing = self.authority.standing();
        let offered = match trust::bring(manager, &host.enrolled.payload_uri, &standing).await {
            Ok(offered) => offered,
            Err(error) => {
                self.note(host, &standing, &failed(&error))?;
                return Err(error.into());
            }
        };
        if let Err(error) = self.recognize(host, &offered.said) {
            if let OfferError::Deploy(error) = &error {
                self.note(host, &standing, &failed(error))?;
            }
            return Err(error);
        }
        let trust = became(&offered);
        self.note(host, &standing, &trust)?;
        Ok(trust.offer)
    }

    /// Asks a host who it is, and notes that it answered.
    ///
    /// # Errors
    /// When it cannot be asked, is not the host that was enrolled, or the store cannot keep it.
    pub async fn meet(&self, host: &Host, manager: &dyn Manager) -> Result<(), OfferError> {
        let said = trust::read(manager).await?;
        self.recognize(host, &said)
    }

    /// That it answered is noted with its class, when it is the host that was enrolled.
    fn recognize(&self, host: &Host, said: &Said) -> Result<(), OfferError> {
        if said.host != host.enrolled.name {
            return Err(DeployError::NotTheHost(format!("it calls itself {:?}", said.host)).into());
        }
        Ok(self.store.seen(&host.enrolled.name, &said.class, Timestamp::now())?)
    }

    /// What became of an offer, with a row in the audit log when it is news. What a host took is what it believes beyond what was
    /// noted before, so nothing is lost when it went away after taking it.
    fn note(&self, host: &Host, standing: &Standing, trust: &HostTrust) -> Result<(), StoreError> {
        let name = &host.enrolled.name;
        let before = self.store.host(name)?.trust;
        let held = trust.held.as_ref();
        let pinned = || Held::pinned(host.enrolled.root);
        let taken =
            held.map(|held| standing.taken(&before.held.clone().unwrap_or_else(pinned), held)).unwrap_or_default();
        let refused = matches!(trust.offer, OfferState::Refused | OfferState::Stuck);
        let news = refused && (before.offer, &before.reason) != (trust.offer, &trust.reason);
        let event = match (taken.is_empty(), news) {
            (false, _) => Some("offer-taken"),
            (true, true) => Some("offer-refused"),
            (true, false) => None,
        };
        let detail = json!({
            "taken": taken, "root": held.map(|held| held.root_version),
            "revocation": held.map(|held| held.revocation_version), "reason": trust.reason,
        });
        let event = event.map(|event| Event::new(event, name, detail).by(format!("host:{name}")));
        self.store.note_trust(name, trust, event.as_ref())
    }
}

fn now() -> Option<String> {
    Some(Timestamp::now().to_string())
}

/// What became of an offer to a host that answered.
fn became(offered: &Offered) -> HostTrust {
    let (offer, reason) = match &offered.ended {
        Ended::Current => (OfferState::Current, String::new()),
        Ended::Refused(refusal, reason) => (OfferState::Refused, format!("{refusal}: {reason}")),
        Ended::Undecided => (OfferState::Waiting, "it did not decide in time; it is asked again".into()),
        Ended::Stuck(reason) => (OfferState::Stuck, reason.clone()),
    };
    HostTrust { held: Some(offered.said.held.clone()), offer, reason, at: now() }
}

/// The same of one that could not be asked.
fn failed(error: &DeployError) -> HostTrust {
    let offer = match error {
        DeployError::Manager(ManagerError::Silent { .. } | ManagerError::Socket { .. }) => OfferState::Silent,
        _ => OfferState::Stuck,
    };
    HostTrust { held: None, offer, reason: error.to_string(), at: now() }
}
