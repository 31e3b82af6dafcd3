//! Whom this host believes, and how that changes: roots and revocation lists that are offered over SNMP, fetched by
//! digest and taken only by the rules of [`patchlab_protocol::trust`].

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Envelope, Refusal, Refused, Role,
    authorization::{raises_floor, signed},
    document::Root,
    limits,
    trust::{Known, revoke, root_in_force, successor},
};
use serde::{Deserialize, Serialize};

use crate::{
    fetch::Downloads,
    journal::JournalError,
    record::Record,
    state::{Event, Offer},
};

/// A document in force, for those who ask which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InForce {
    /// Its version.
    pub version: u32,
    /// Its digest.
    pub digest: Digest,
}

/// The root in force, and the offers to change it.
pub struct Trust {
    record: Arc<Record>,
    downloads: Arc<Downloads>,
    root: Mutex<Arc<Root>>,
}

/// What the agent remembers of newer roots does not follow from the pinned one.
#[derive(Debug, thiserror::Error)]
#[error("a root that was taken does not follow the pinned one ({0}); enrol the host again")]
pub struct BrokenChain(#[from] Refused);

impl Trust {
    /// The trust that begins with the pinned root; every root taken since is verified again.
    ///
    /// # Errors
    /// When one of them does not follow.
    pub fn new(pinned: Root, record: Arc<Record>, downloads: Arc<Downloads>) -> Result<Self, BrokenChain> {
        let root = record.read(|state| root_in_force(pinned, &state.roots))?;
        Ok(Self { record, downloads, root: Mutex::new(Arc::new(root)) })
    }

    /// The root in force.
    pub fn root(&self) -> Arc<Root> {
        Arc::clone(&self.root.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes or refuses offers for ever.
    ///
    /// # Errors
    /// When that could not be journaled.
    pub async fn supervise(self: Arc<Self>) -> Result<(), JournalError> {
        let mut changes = self.record.subscribe();
        loop {
            changes.borrow_and_update();
            match self.record.read(|state| state.offer.clone()) {
                Some(offer) => self.settle(&offer).await?,
                None => drop(changes.changed().await),
            }
        }
    }

    /// Decides on an offer: the root first, since a new one may sign the list. The list is tried whatever became of the root: it can only stop
    /// something.
    async fn settle(&self, offer: &Offer) -> Result<(), JournalError> {
        let mut refused = None;
        if let Some(digest) = offer.root {
            refused = said_no(self.take_root(offer, &digest).await)?;
        }
        if let Some(digest) = offer.revocation {
            let list = said_no(self.take_revocation(offer, &digest).await)?;
            refused = refused.or(list);
        }
        let (refusal, reason) = refused.map_or((None, String::new()), |no| (Some(no.refusal), no.reason));
        self.record.enter(Event::Offered { offer: offer.clone(), refusal, reason })
    }

    async fn take_root(&self, offer: &Offer, digest: &Digest) -> Result<(), Stop> {
        let taken = self.record.read(|state| state.root.map(|root| root.digest));
        if taken == Some(*digest) {
            return Ok(());
        }
        let envelope = self.fetch(offer, digest, &[Role::Root]).await?;
        let next = successor(&self.root(), &envelope)?;
        if self.record.read(|state| state.roots.len()) >= limits::ROOT_SUCCESSORS {
            let reason = format!("{} roots followed the pinned one: enrol the host again", limits::ROOT_SUCCESSORS);
            return Err(Refused::new(Refusal::Preflight, reason).into());
        }
        self.record.enter(Event::Root { version: next.version, envelope: Box::new(envelope) })?;
        tracing::info!(version = next.version, digest = %digest.short(), "a new root is in force");
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    async fn take_revocation(&self, offer: &Offer, digest: &Digest) -> Result<(), Stop> {
        let envelope = self.fetch(offer, digest, &[Role::Operator, Role::Root]).await?;
        let list = self.record.read(|state| {
            let known = Known {
                version: state.revocation.map_or(0, |list| list.version),
                digest: state.revocation.map(|list| list.digest),
                revoked: &state.revoked,
            };
            revoke(&self.root(), &known, &envelope)
        })?;
        let documents: Vec<Digest> = list.revoked.iter().map(|revoked| revoked.document).collect();
        tracing::info!(version = list.version, documents = documents.len(), "a new revocation list is in force");
        let at = raises_floor(list.at, Timestamp::now());
        self.record.enter(Event::Revoked { version: list.version, digest: *digest, documents, at })?;
        Ok(())
    }

    /// A document that somebody in one of these roles must have signed.
    async fn fetch(&self, offer: &Offer, digest: &Digest, roles: &[Role]) -> Result<Envelope, Refused> {
        let root = self.root();
        let is_signed = |envelope: &Envelope| roles.iter().any(|role| signed(&root, envelope, *role));
        let fetched = async { self.downloads.sources(&offer.uri)?.document(digest, &is_signed).await };
        fetched.await.map_err(|error| {
            let refusal = if error.is_altered() { Refusal::BadSignature } else { Refusal::Preflight };
            Refused::new(refusal, error.to_string())
        })
    }
}

/// The refusal of an offered document, if it was refused.
fn said_no(taken: Result<(), Stop>) -> Result<Option<Refused>, JournalError> {
    match taken {
        Ok(()) => Ok(None),
        Err(Stop::Refused(refused)) => {
            tracing::warn!(refusal = %refused.refusal, reason = %refused.reason, "an offered document was refused");
            Ok(Some(refused))
        }
        Err(Stop::Journal(error)) => Err(error),
    }
}

enum Stop {
    Refused(Refused),
    Journal(JournalError),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<JournalError> for Stop {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}
