//! Whom this server believes and what it no longer believes: its roots, from the one that its first hosts pinned to the one
//! in force, and the revocation list in force. Both are taken by the protocol's own rules, kept before they count, and then
//! owed to every host.
//!
//! [`Standing`] is what is in force at a moment, and decides, purely, what a host is to be offered next.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Envelope, KeyId, Ledger, Refused, Role,
    document::Root,
    limits,
    trust::{Known, revoke, successor},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::{
    revocation::List,
    root::{self, InForce, RootFileError},
};
use crate::{
    audit::Event,
    gate,
    place::{PlaceError, write_private},
    store::{Store, StoreError},
};

/// What is in force at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The root in force.
    current: InForce,
    /// Those before it, oldest first.
    earlier: Vec<InForce>,
    /// The revocation list in force.
    list: Option<List>,
}

/// What a host says it believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Version of its root.
    pub root_version: u32,
    /// Digest of its root.
    pub root: Option<Digest>,
    /// Version of its revocation list; 0 for none.
    pub revocation_version: u32,
    /// Digest of its revocation list.
    pub revocation: Option<Digest>,
}

impl Held {
    /// What a host believes that was enrolled and took nothing since: the root it pinned.
    pub fn pinned(root: Digest) -> Self {
        Self { root_version: 0, root: Some(root), revocation_version: 0, revocation: None }
    }
}

/// What a host is to be offered next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It believes what this server believes.
    Nothing,
    /// The successor of its root.
    Root(Digest),
    /// The revocation list.
    Revocation(Digest),
    /// Something is owed to it that it would not take; why, and what to do.
    Stuck(String),
}

impl Standing {
    /// From the roots of a data folder, oldest first; `None` without any.
    pub fn new(mut roots: Vec<InForce>, list: Option<List>) -> Option<Self> {
        let current = roots.pop()?;
        Some(Self { current, earlier: roots, list })
    }

    /// The root in force.
    pub fn root(&self) -> &InForce {
        &self.current
    }

    /// Every root, oldest first.
    pub fn roots(&self) -> impl Iterator<Item = &InForce> {
        self.earlier.iter().chain([&self.current])
    }

    /// The revocation list in force.
    pub fn list(&self) -> Option<&List> {
        self.list.as_ref()
    }

    /// What the gate asks an agent's rule with: nothing is used up here, and what is revoked is.
    pub fn ledger(&self) -> Ledger {
        Ledger { revoked: self.revoked(), ..Ledger::default() }
    }

    /// Every revoked document.
    pub fn revoked(&self) -> Vec<Digest> {
        self.list.iter().flat_map(|list| &list.says.revoked).map(|revoked| revoked.document).collect()
    }

    /// What a host that holds this is to be offered next. The list comes first where its root lets it: a revocation stops
    /// something, and cannot wait for roots. Where the list was signed by a key that only a later root lists, the roots come
    /// first.
    pub fn next(&self, held: &Held) -> Next {
        let Some(at) = self.roots().position(|root| Some(root.digest) == held.root) else {
            let said = held.root.map_or_else(|| "none".into(), |digest| digest.short());
            return Next::Stuck(format!("its root document ({said}) is none of this server's: enrol it again"));
        };
        let mut from = self.roots().skip(at);
        let (believed, newer) = (from.next(), from.next());
        let owed = match self.owed(held) {
            Ok(owed) => owed,
            Err(reason) => return newer.map_or(Next::Stuck(reason), |root| Next::Root(root.digest)),
        };
        match (owed, newer) {
            (Some(list), _) if believed.is_some_and(|root| list.counts_under(&root.root)) => {
                Next::Revocation(list.digest)
            }
            (_, Some(root)) => Next::Root(root.digest),
            (Some(list), None) => Next::Stuck(format!(
                "revocation list {} is signed by nobody whom root {} lists: patchlab revocation sign, then import it again",
                list.says.version, self.current.root.version
            )),
            (None, None) => Next::Nothing,
        }
    }

    /// What a host took between believing `before` and believing `now`: its roots, oldest first, then its list. Nothing of what it
    /// lost, as when its disk is reverted.
    pub fn taken(&self, before: &Held, now: &Held) -> Vec<Digest> {
        let at = |held: &Held| self.roots().position(|root| Some(root.digest) == held.root);
        let roots = match (at(before), at(now)) {
            (Some(before), Some(now)) if before < now => before + 1..now + 1,
            _ => 0..0,
        };
        let list = now.revocation.filter(|_| now.revocation_version > before.revocation_version);
        self.roots().take(roots.end).skip(roots.start).map(|root| root.digest).chain(list).collect()
    }

    /// The list, when the host has an older one or none.
    fn owed(&self, held: &Held) -> Result<Option<&List>, String> {
        match &self.list {
            Some(list) if held.revocation == Some(list.digest) => Ok(None),
            Some(list) if held.revocation_version < list.says.version => Ok(Some(list)),
            None if held.revocation_version == 0 => Ok(None),
            known => Err(format!(
                "it has revocation list {}, this server {}: import the newer one here",
                held.revocation_version,
                known.as_ref().map_or(0, |list| list.says.version)
            )),
        }
    }

    fn known<'a>(&self, revoked: &'a [Digest]) -> Known<'a> {
        Known {
            version: self.list.as_ref().map_or(0, |list| list.says.version),
            digest: self.list.as_ref().map(|list| list.digest),
            revoked,
        }
    }
}

/// Most documents that an audit row names; the list itself names all.
const NAMED: usize = 32;

/// A root or a list was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// By the protocol's rules, as a host would say.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The roots in the data folder.
    #[error(transparent)]
    Root(#[from] RootFileError),
    /// A root could not be kept.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// More than any host follows.
    #[error(
        "{} roots followed the first one, and hosts follow no more: begin anew with patchlab root init",
        limits::ROOT_SUCCESSORS
    )]
    TooManyRoots,
}

/// A root or a list that was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenIn {
    /// Its version.
    pub version: u32,
    /// Its digest.
    pub digest: Digest,
    /// Those of its signers that count.
    pub signers: Vec<KeyId>,
    /// Hosts that are owed something now.
    pub waiting: u64,
    /// What this means for things that were made under what was in force before.
    pub warnings: Vec<String>,
}

/// What is in force, shared by all who ask and changed by one at a time.
#[derive(Debug)]
pub struct Authority {
    document: PathBuf,
    store: Arc<Store>,
    standing: RwLock<Arc<Standing>>,
    changing: Mutex<()>,
    changes: watch::Sender<u64>,
}

impl Authority {
    /// Reads what is in force; every root and the list are verified again. A root that was kept and not entered before a
    /// server was killed is entered now.
    ///
    /// # Errors
    /// There is no root, or something does not follow.
    pub fn open(document: PathBuf, store: Arc<Store>) -> Result<Self, AuthorityError> {
        let roots = root::read_all(&document)?;
        for successor in roots.iter().skip(1) {
            enter_root(&store, successor, &[], "server")?;
        }
        let list = match store.revocation()? {
            Some(envelope) => Some(List::read(envelope).map_err(|error| StoreError::Corrupt {
                what: "the revocation list in force",
                value: error.to_string(),
            })?),
            None => None,
        };
        let absent = || RootFileError::Absent(document.display().to_string());
        let standing = Standing::new(roots, list).ok_or_else(absent)?;
        Ok(Self {
            document,
            store,
            standing: RwLock::new(Arc::new(standing)),
            changing: Mutex::new(()),
            changes: watch::Sender::new(0),
        })
    }

    /// What is in force now.
    pub fn standing(&self) -> Arc<Standing> {
        Arc::clone(&self.standing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Told whenever hosts may be owed something.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says that hosts may be owed something: another one was enrolled.
    pub fn told(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn put(&self, standing: Standing) {
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(standing);
        self.told();
    }

    /// Takes a revocation list in. The one in force again adds its signatures to those that are known: a list that was signed
    /// by a key which no root lists any more counts again by another's.
    ///
    /// # Errors
    /// It does not follow the one in force, or could not be kept.
    pub fn revoke(&self, envelope: &Envelope, actor: &str) -> Result<TakenIn, AuthorityError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = self.standing();
        let (root, revoked) = (&standing.current.root, standing.revoked());
        let says = revoke(root, &standing.known(&revoked), envelope)?;
        let same = standing.list.as_ref().filter(|list| list.digest == envelope.digest());
        if same.is_none() {
            gate::not_ahead("the revocation list", says.at, Timestamp::now())?;
        }
        let mut kept = same.map_or_else(|| envelope.clone(), |list| list.envelope.clone());
        kept.absorb(envelope, signing_keys(root));
        let list = List { digest: kept.digest(), envelope: kept, says };
        let signers = list.envelope.signers(signing_keys(root));
        let new: Vec<_> = list.says.revoked.iter().filter(|one| !revoked.contains(&one.document)).collect();
        let named: Vec<_> = new.iter().take(NAMED).map(|one| one.document).collect();
        let reason = new.first().map(|one| one.reason.as_str()).unwrap_or_default();
        let detail = json!({
            "digest": list.digest, "new": new.len(), "documents": named, "reason": reason, "signers": signers,
        });
        let subject = format!("revocation list {}", list.says.version);
        let waiting = self.store.take_revocation(&list, &Event::new("revocation-taken", subject, detail).by(actor))?;
        let warnings = self.still_out(&list)?;
        let taken = TakenIn { version: list.says.version, digest: list.digest, signers, waiting, warnings };
        self.put(Standing { list: Some(list), ..(*standing).clone() });
        Ok(taken)
    }

    /// Takes the successor of the root in force in. One that was taken before changes nothing.
    ///
    /// # Errors
    /// It does not follow the root in force, or could not be kept.
    pub fn succeed(&self, envelope: &Envelope, actor: &str) -> Result<TakenIn, AuthorityError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = self.standing();
        let next = match standing.roots().find(|root| root.digest == envelope.digest()) {
            Some(there) => there.clone(),
            None => {
                let root = successor(&standing.current.root, envelope)?;
                if standing.earlier.len() >= limits::ROOT_SUCCESSORS {
                    return Err(AuthorityError::TooManyRoots);
                }
                InForce { envelope: envelope.clone(), digest: envelope.digest(), root }
            }
        };
        let signers = root_signers(&standing, &next);
        let warnings = self.warnings(&standing, &next)?;
        let mut roots: Vec<InForce> = standing.roots().cloned().collect();
        if !roots.contains(&next) {
            // The file first: the signer and the next start follow the files, and enter what is not entered.
            write_private(&root::successor_path(&self.document, next.root.version), &next.envelope.to_bytes())?;
            roots.push(next.clone());
        }
        let waiting = enter_root(&self.store, &next, &signers, actor)?;
        if let Some(changed) = Standing::new(roots, standing.list.clone()) {
            self.put(changed);
        }
        Ok(TakenIn { version: next.root.version, digest: next.digest, signers, waiting, warnings })
    }

    /// Revoked orders that hosts have: a revocation stops, and brings nothing back.
    fn still_out(&self, list: &List) -> Result<Vec<String>, StoreError> {
        let hosts = self.store.hosts()?;
        let mut warnings = Vec::new();
        for order in self.store.orders()? {
            let named = list.says.revoked.iter().any(|revoked| revoked.document == order.digest);
            let there = hosts.iter().filter(|host| named && host.current_order == Some(order.digest));
            let hosts: Vec<String> = there.map(|host| format!("--host {}", host.enrolled.name)).collect();
            if !hosts.is_empty() {
                let (count, id, hosts) = (hosts.len(), &order.id, hosts.join(" "));
                warnings.push(format!("{count} hosts have {id}: patchlab order rollback {id} {hosts} --key FILE"));
            }
        }
        Ok(warnings)
    }

    /// What no longer counts under a root.
    fn warnings(&self, standing: &Standing, next: &InForce) -> Result<Vec<String>, StoreError> {
        let mut warnings = Vec::new();
        if let Some(list) = standing.list.as_ref().filter(|list| !list.counts_under(&next.root)) {
            warnings.push(format!(
                "revocation list {} is signed by nobody whom root {} lists: hosts that are enrolled from now on do not take \
                 it; add a signature with patchlab revocation sign, and import it again",
                list.says.version, next.root.version
            ));
        }
        let held: Vec<Digest> = self.store.hosts()?.into_iter().filter_map(|host| host.current_order).collect();
        for order in self.store.orders()?.into_iter().filter(|order| held.contains(&order.digest)) {
            let envelope = self.store.envelope(&order.digest)?;
            if !patchlab_protocol::authorization::signed(&next.root, &envelope, Role::Drafter) {
                warnings.push(format!(
                    "{} hosts have order {}, which no drafter of root {} signed: it cannot be rolled back until one does \
                     (patchlab order submit, the same order, with his key)",
                    held.iter().filter(|digest| **digest == order.digest).count(),
                    order.id,
                    next.root.version
                ));
            }
        }
        Ok(warnings)
    }
}

fn enter_root(store: &Store, root: &InForce, signers: &[KeyId], actor: &str) -> Result<u64, StoreError> {
    let detail = json!({
        "digest": root.digest, "expires": root.root.expires, "keys": root.root.keys.len(), "signers": signers,
    });
    let event = Event::new("root-taken", format!("root {}", root.root.version), detail).by(actor);
    store.take_root(root, &event)
}

/// Those who may sign a revocation list.
fn signing_keys(root: &Root) -> impl Iterator<Item = &patchlab_protocol::PublicKey> + Clone {
    root.keys.iter().filter(|key| key.audience == root.audience).filter_map(|key| {
        let may = key.roles.contains(&Role::Operator) || key.roles.contains(&Role::Root);
        may.then_some(&key.public)
    })
}

/// Root keys, old and new, that signed a root.
fn root_signers(standing: &Standing, next: &InForce) -> Vec<KeyId> {
    let old = standing.roots().flat_map(|root| root.root.keys(Role::Root));
    next.envelope.signers(old.chain(next.root.keys(Role::Root)))
}

#[cfg(test)]
mod tests;
