//! New keys for the SNMP users that a host shares with the manager, by the agent's own `usmUserTable` (RFC 3414, 5).
//!
//! What the keys are to become is on the disk before the host is told, and one SET makes all of it or nothing. When its answer is lost, nobody
//! knows which keys count: both are tried until the new ones were seen to ([`Offers::manager`] does that for everybody), and a rotation that
//! is asked for again goes on with the same new ones. No key crosses the network: what does is the difference to the old one (`KeyChange`).

use patchlab_protocol::{
    enrolment::{EngineId, SnmpUser},
    key::KeyError,
    mib::user as column,
    usm,
};

use super::{
    credentials::{Credentials, CredentialsError, NextKeys},
    manager::{Manager, ManagerError, Oid, Value},
    offers::Offers,
    snmp::{Patience, SnmpManager},
};
use crate::{enrol, store::Host};

/// Keys were not seen to be changed.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The host's credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] KeyError),
    /// Enrolled without somebody who may.
    #[error(
        "{0} was enrolled without a key administrator, so its keys change by another enrolment alone: enrol it under a new name, and install \
         the folder that this writes"
    )]
    NoAdministrator(String),
    /// It is not known which keys count.
    #[error(
        "{host}: whether the keys were changed is not known yet: {source}; old and new ones are tried until the host answers: run \
         patchlab host rotate-keys {host} again then"
    )]
    Unknown {
        /// The host.
        host: String,
        /// What was said last.
        source: ManagerError,
    },
    /// The keys do not fit each other.
    #[error("{0}: its keys have not the length that they must have")]
    Length(String),
}

/// Gives a host's deployer and key administrator new keys, and waits until they are seen to count.
///
/// # Errors
/// When that was not seen.
pub async fn rotate(offers: &Offers, host: &Host) -> Result<(), RotationError> {
    let name = &host.enrolled.name;
    let _turn = offers.turns.wait(name).await;
    let path = offers.data.credentials(name);
    let mut held = Credentials::read(&path)?;
    let Some(administrator) = held.key_administrator.clone() else {
        return Err(RotationError::NoAdministrator(name.clone()));
    };
    let unknown = |source| RotationError::Unknown { host: name.clone(), source };
    let begun = held.next.is_some();
    let next = match held.next.take() {
        Some(next) => next,
        None => NextKeys {
            deployer: enrol::user(&held.deployer.name)?,
            key_administrator: enrol::user(&administrator.name)?,
        },
    };
    held.next = Some(next.clone());
    held.write(&path)?;
    let new = speak(host, &next.key_administrator).await.map_err(unknown)?;
    if !begun || lock(&new).await.is_err() {
        let old = speak(host, &administrator).await.map_err(unknown)?;
        let told = match lock(&old).await {
            Ok(lock) => {
                let engine = &host.enrolled.engine_id;
                let users = [(&held.deployer, &next.deployer), (&administrator, &next.key_administrator)];
                let values = changes(engine, lock, users)?.ok_or_else(|| RotationError::Length(name.clone()))?;
                old.set(&values).await
            }
            Err(error) => Err(error),
        };
        // When it was done and only the answer was lost, the new keys count.
        if let Err(error) = told
            && lock(&new).await.is_err()
        {
            return Err(unknown(error));
        }
    }
    let deployer = speak(host, &next.deployer).await.map_err(unknown)?;
    deployer.get(&[who()]).await.map_err(unknown)?;
    lock(&new).await.map_err(unknown)?;
    Ok(held.settled().write(&path)?)
}

/// A manager with this user's keys.
///
/// # Errors
/// When they cannot be used.
pub async fn speak(host: &Host, user: &SnmpUser) -> Result<SnmpManager, ManagerError> {
    let enrolled = &host.enrolled;
    SnmpManager::new(&enrolled.name, enrolled.address, &enrolled.engine_id, user, Patience::default()).await
}

/// What every deployer may read: the host's name.
pub fn who() -> Oid {
    Oid::of(patchlab_protocol::mib::agent::GROUP, patchlab_protocol::mib::agent::HOST, &[0])
}

/// The spin lock, which the key administrator alone sees.
async fn lock(manager: &SnmpManager) -> Result<i64, ManagerError> {
    let found = manager.get(&[Oid::of(column::GROUP, column::SPIN_LOCK, &[0])]).await?;
    let number = found.first().and_then(Option::as_ref).and_then(Value::number);
    number.ok_or_else(|| ManagerError::Security {
        host: "the host".into(),
        reason: "its key administrator does not see the keys".into(),
    })
}

/// What one SET says: under the lock, every user's two keys. `None` when a key is not as long as it must be.
fn changes(
    engine: &EngineId,
    lock: i64,
    users: [(&SnmpUser, &SnmpUser); 2],
) -> Result<Option<Vec<(Oid, Value)>>, KeyError> {
    let mut values = vec![(Oid::of(column::GROUP, column::SPIN_LOCK, &[0]), Value::Integer(lock))];
    for (old, new) in users {
        let row = index(engine, &old.name);
        let keys = [
            (column::AUTH_KEY_CHANGE, usm::AUTH_KEY_BYTES, &old.auth, &new.auth),
            (column::PRIVACY_KEY_CHANGE, usm::PRIVACY_KEY_BYTES, &old.privacy, &new.privacy),
        ];
        for (number, length, old, new) in keys {
            let [old, new] = [old, new].map(|passphrase| usm::localized(passphrase, engine));
            let mut random = vec![0; length];
            getrandom::fill(&mut random).map_err(|error| KeyError::Entropy(error.to_string()))?;
            let Some(change) = usm::key_change(&old[..length], &new[..length], &random) else { return Ok(None) };
            values.push((Oid::of(column::ENTRY, number, &row), Value::Octets(change)));
        }
    }
    Ok(Some(values))
}

/// The index of a user's row: engine id and name, each as its length and its bytes.
fn index(engine: &EngineId, name: &str) -> Vec<u32> {
    let string = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        std::iter::once(length).chain(bytes.iter().map(|byte| u32::from(*byte))).collect::<Vec<_>>()
    };
    [string(engine.as_bytes()), string(name.as_bytes())].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_leads_from_the_old_keys_to_the_new_ones_and_fits() {
        let engine = EngineId::generate().unwrap();
        let user = |name: &str| enrol::user(name).unwrap();
        let [old, new, keys, next] = [user("deployer"), user("deployer"), user("keys"), user("keys")];
        let values = changes(&engine, 7, [(&old, &new), (&keys, &next)]).unwrap().unwrap();
        assert_eq!(values[0].1, Value::Integer(7));
        let (oid, value) = &values[1];
        let row = oid.index_in(column::ENTRY, column::AUTH_KEY_CHANGE).unwrap();
        assert_eq!(row[0] as usize, engine.as_bytes().len());
        let made = usm::changed(&usm::localized(&old.auth, &engine), value.octets().unwrap()).unwrap();
        assert_eq!(made, usm::localized(&new.auth, &engine));
        assert_eq!(values.len(), 5);
        let bytes: usize =
            values.iter().map(|(oid, value)| oid.0.len() * 2 + value.octets().map_or(4, <[u8]>::len)).sum();
        assert!(bytes < 800, "{bytes} bytes");
    }
}
