//! The keys of the agent's users, localized to its engine (RFC 3414, 2.6): made from the enrolment's passphrases once, changed by
//! `usmUserTable`, and on the disk before they count.
//!
//! What is kept counts as long as the enrolment says the same engine and passphrases, so a host that is enrolled anew has its new ones. It
//! lies in the ledger's folder: on a disk that is reverted to a snapshot, keys that were given up would be good again.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use patchlab_protocol::{
    Digest,
    enrolment::{EngineId, SnmpUser},
    usm,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::seal::Seal;
use crate::{journal::replace, reserve::insist};

/// The file's name in the ledger's folder.
pub const FILE_NAME: &str = "snmp-users.json";
/// Largest file that is read, bytes.
const BYTES: u64 = 64 * 1024;

/// The keys cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file system said no.
    #[error("SNMP users {path}: cannot {action}; mount, free or repair its disk, then start the agent again")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It holds no keys. To go back to the enrolment's would make good again what was given up.
    #[error("SNMP users {path} is damaged: restore it, or remove it and enrol the host again, with new passphrases")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Secret or public bytes of a user, as hexadecimal digits on the disk.
#[derive(Clone, PartialEq, Eq)]
pub struct Octets(pub Vec<u8>);

/// Keys stay out of logs.
impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A user as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Of what it was made: engine and passphrases.
    enrolled: Digest,
    /// Localized, for authentication.
    pub auth: Octets,
    /// Localized, for privacy.
    pub privacy: Octets,
    /// `usmUserPublic`.
    pub public: Octets,
}

impl User {
    fn of(user: &SnmpUser, engine: &EngineId) -> Self {
        let privacy = usm::localized(&user.privacy, engine);
        Self {
            name: user.name.clone(),
            enrolled: enrolled(user, engine),
            auth: Octets(usm::localized(&user.auth, engine).to_vec()),
            privacy: Octets(privacy[..usm::PRIVACY_KEY_BYTES].to_vec()),
            public: Octets(Vec::new()),
        }
    }

    fn is_whole(&self) -> bool {
        let lengths = [self.auth.0.len(), self.privacy.0.len()];
        lengths == [usm::AUTH_KEY_BYTES, usm::PRIVACY_KEY_BYTES] && self.public.0.len() <= 32
    }
}

fn enrolled(user: &SnmpUser, engine: &EngineId) -> Digest {
    Digest::of(format!("{engine}\n{}\n{}\n{}\n", user.name, user.auth, user.privacy))
}

/// All users, and the lock that changes of them take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    /// `usmUserSpinLock`.
    pub spin_lock: u32,
    /// Every user, in the enrolment's order.
    pub users: Vec<User>,
}

/// The keys in force.
pub struct Keys {
    path: PathBuf,
    engine: EngineId,
    now: RwLock<InForce>,
}

struct InForce {
    users: Arc<Users>,
    seals: BTreeMap<Vec<u8>, Arc<Seal>>,
}

impl Keys {
    /// The keys of these users: those that are kept in `folder`, and new ones for who is enrolled anew.
    ///
    /// # Errors
    /// When they cannot be read or kept.
    pub fn open(folder: &Path, engine: &EngineId, enrolment: &[&SnmpUser]) -> Result<Self, KeysError> {
        let path = folder.join(FILE_NAME);
        let kept = read(&path)?;
        let users = enrolment.iter().map(|user| {
            let same = kept.users.iter().find(|kept| kept.enrolled == enrolled(user, engine));
            same.cloned().unwrap_or_else(|| User::of(user, engine))
        });
        let users = Users { users: users.collect(), spin_lock: kept.spin_lock };
        if users != kept {
            write(&path, &users)?;
        }
        let in_force = seal_with(users, &path)?;
        Ok(Self { engine: engine.clone(), now: RwLock::new(in_force), path })
    }

    /// The engine that they are localized to.
    pub fn engine(&self) -> &EngineId {
        &self.engine
    }

    /// The users as they are now.
    pub fn users(&self) -> Arc<Users> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).users)
    }

    /// What seals a user's messages now.
    pub fn seal(&self, user: &[u8]) -> Option<Arc<Seal>> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).seals.get(user).cloned()
    }

    /// Puts other keys in force, which are on the disk first.
    ///
    /// # Errors
    /// When they cannot be kept; nothing has changed then.
    pub fn change(&self, users: Users) -> Result<(), KeysError> {
        let next = seal_with(users, &self.path)?;
        write(&self.path, &next.users)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

fn seal_with(users: Users, path: &Path) -> Result<InForce, KeysError> {
    let damaged = |reason: String| KeysError::Damaged { path: path.to_owned(), reason };
    let seals = users.users.iter().map(|user| {
        if !user.is_whole() {
            return Err(damaged(format!("the keys of {} have not the length of keys", user.name)));
        }
        let seal = Seal::new(&user.auth.0, &user.privacy.0).map_err(|error| damaged(error.to_string()))?;
        Ok((user.name.clone().into_bytes(), Arc::new(seal)))
    });
    Ok(InForce { seals: seals.collect::<Result<_, _>>()?, users: Arc::new(users) })
}

fn write(path: &Path, users: &Users) -> Result<(), KeysError> {
    let failed = |source| KeysError::File { action: "write", path: path.to_owned(), source };
    let bytes = serde_json::to_vec(users).map_err(|error| failed(error.into()))?;
    insist(path, || replace(path, &bytes)).map_err(failed)
}

fn read(path: &Path) -> Result<Users, KeysError> {
    let failed = |source| KeysError::File { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(BYTES).read_to_end(&mut bytes).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Users::default()),
        Err(error) => return Err(failed(error)),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| KeysError::Damaged { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use async_snmp::{AuthProtocol, LocalizedKey};

    use super::*;

    fn user(name: &str, auth: &str) -> SnmpUser {
        SnmpUser { name: name.into(), auth: auth.into(), privacy: "some privacy".into() }
    }

    fn changed(keys: &Keys) -> Octets {
        let mut users = (*keys.users()).clone();
        users.users[0].auth = Octets(vec![7; 32]);
        keys.change(users).unwrap();
        Octets(vec![7; 32])
    }

    #[test]
    fn changed_keys_stay_until_the_host_is_enrolled_anew() {
        let folder = tempfile::tempdir().unwrap();
        let engine = EngineId::generate().unwrap();
        let (one, two) = (user("one", "first passphrase"), user("two", "other passphrase"));
        let keys = Keys::open(folder.path(), &engine, &[&one, &two]).unwrap();
        let by_library =
            LocalizedKey::from_password(AuthProtocol::Sha256, one.auth.as_bytes(), engine.as_bytes()).unwrap();
        assert_eq!(keys.users().users[0].auth.0, by_library.as_bytes());
        let new = changed(&keys);
        let again = Keys::open(folder.path(), &engine, &[&one, &two]).unwrap();
        assert_eq!(again.users(), keys.users());
        assert_eq!(again.users().users[0].auth, new);
        let anew = Keys::open(folder.path(), &engine, &[&user("one", "next passphrase"), &two]).unwrap();
        assert_ne!(anew.users().users[0].auth, new);
        assert_eq!(anew.users().users[1], keys.users().users[1]);
        let elsewhere = Keys::open(folder.path(), &EngineId::generate().unwrap(), &[&one]).unwrap();
        assert_ne!(elsewhere.users().users[0].auth, new, "another engine has other keys");
    }

    #[test]
    fn a_damaged_file_does_not_bring_old_keys_back() {
        let folder = tempfile::tempdir().unwrap();
        let engine = EngineId::generate().unwrap();
        let one = user("one", "first passphrase");
        changed(&Keys::open(folder.path(), &engine, &[&one]).unwrap());
        let path = folder.path().join(FILE_NAME);
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [whole.replace("0707", ""), whole.replace('}', ""), String::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(Keys::open(folder.path(), &engine, &[&one]), Err(KeysError::Damaged { .. })));
        }
    }
}
