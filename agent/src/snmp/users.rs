//! `usmUserTable` of SNMP-USER-BASED-SM-MIB (RFC 3414, 5): the agent's users, whose keys the key administrator changes.
//!
//! The users are the enrolment's: rows come and go with it alone (`permanent`), and the protocols are those that are compiled in. A key that
//! changes is on the disk before the SET is answered, by the old one, and counts from the next message on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use async_snmp::{
    BoxFuture, GetNextResult, GetResult, HandlerResult, MibHandler, Oid, OidTable, PreparedSet, RequestContext,
    SetCommitError, SetCommitResult, SetTestError, SetTestResult, SetUndoResult, Value, VarBind,
};
use patchlab_protocol::{enrolment::EngineId, mib::user as column, usm};

use super::keys::{Keys, Octets, User, Users};

/// Longest `usmUserPublic`, bytes.
const PUBLIC_BYTES: usize = 32;

/// Which of a user's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// For authentication.
    Auth,
    /// For privacy.
    Privacy,
}

/// What one variable binding changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Nothing: as it is.
    AsIs,
    /// The spin lock was this, and is one more.
    SpinLock(u32),
    /// A user's key is this one now.
    Key(usize, Use, Octets),
    /// A user's public value.
    Public(usize, Octets),
}

/// The index of a user's row.
fn index(engine: &EngineId, name: &str) -> Vec<u32> {
    let string = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        std::iter::once(length).chain(bytes.iter().map(|byte| u32::from(*byte))).collect::<Vec<_>>()
    };
    [string(engine.as_bytes()), string(name.as_bytes())].concat()
}

/// Every object, in order.
pub fn objects(users: &Users, engine: &EngineId) -> OidTable<Value> {
    let lock = i32::try_from(users.spin_lock).unwrap_or(0);
    let mut values =
        vec![(Oid::new(column::GROUP.iter().copied().chain([column::SPIN_LOCK, 0])), Value::Integer(lock))];
    for user in &users.users {
        let index = index(engine, &user.name);
        let mut cell = |number: u32, value| {
            values.push((Oid::new(column::ENTRY.iter().copied().chain([number]).chain(index.iter().copied())), value));
        };
        let identity = |arcs: &[u32]| Value::ObjectIdentifier(Oid::from_slice(arcs));
        // Keys are never read (RFC 3414: a zero-length string).
        let hidden = || Value::OctetString(Vec::new().into());
        cell(column::SECURITY_NAME, Value::OctetString(user.name.clone().into_bytes().into()));
        cell(column::CLONE_FROM, identity(&[0, 0]));
        cell(column::AUTH_PROTOCOL, identity(column::SHA_256));
        cell(column::AUTH_KEY_CHANGE, hidden());
        cell(column::OWN_AUTH_KEY_CHANGE, hidden());
        cell(column::PRIVACY_PROTOCOL, identity(column::AES_128));
        cell(column::PRIVACY_KEY_CHANGE, hidden());
        cell(column::OWN_PRIVACY_KEY_CHANGE, hidden());
        cell(column::PUBLIC, Value::OctetString(user.public.0.clone().into()));
        cell(column::STORAGE_TYPE, Value::Integer(4));
        cell(column::STATUS, Value::Integer(1));
    }
    values.into_iter().collect()
}

/// Reads one variable binding of a SET by this user.
///
/// # Errors
/// The SNMP error for it.
pub fn parse(users: &Users, engine: &EngineId, by: &[u8], oid: &Oid, value: &Value) -> Result<Write, SetTestError> {
    let arcs = oid.arcs();
    if arcs.strip_prefix(column::GROUP) == Some(&[column::SPIN_LOCK, 0]) {
        return match value {
            Value::Integer(number) if u32::try_from(*number) == Ok(users.spin_lock) => {
                Ok(Write::SpinLock(users.spin_lock))
            }
            Value::Integer(..0) => Err(SetTestError::WrongValue),
            Value::Integer(_) => Err(SetTestError::InconsistentValue),
            _ => Err(SetTestError::WrongType),
        };
    }
    let Some([number, row @ ..]) = arcs.strip_prefix(column::ENTRY) else { return Err(SetTestError::NoCreation) };
    let found = users.users.iter().enumerate().find(|(_, user)| index(engine, &user.name) == row);
    let (place, user) = found.ok_or(SetTestError::NoCreation)?;
    let own = || if user.name.as_bytes() == by { Ok(()) } else { Err(SetTestError::NoAccess) };
    match *number {
        column::AUTH_KEY_CHANGE => change(place, user, Use::Auth, value),
        column::PRIVACY_KEY_CHANGE => change(place, user, Use::Privacy, value),
        column::OWN_AUTH_KEY_CHANGE => own().and_then(|()| change(place, user, Use::Auth, value)),
        column::OWN_PRIVACY_KEY_CHANGE => own().and_then(|()| change(place, user, Use::Privacy, value)),
        column::PUBLIC => match value {
            Value::OctetString(bytes) if bytes.len() <= PUBLIC_BYTES => {
                Ok(Write::Public(place, Octets(bytes.to_vec())))
            }
            Value::OctetString(_) => Err(SetTestError::WrongLength),
            _ => Err(SetTestError::WrongType),
        },
        // Keys were cloned at enrolment: later writes succeed and do nothing (RFC 3414).
        column::CLONE_FROM => match value {
            Value::ObjectIdentifier(_) => Ok(Write::AsIs),
            _ => Err(SetTestError::WrongType),
        },
        column::STORAGE_TYPE => as_is(value, 4),
        column::STATUS => as_is(value, 1),
        _ => Err(SetTestError::NotWritable),
    }
}

fn as_is(value: &Value, now: i32) -> Result<Write, SetTestError> {
    match value {
        Value::Integer(number) if *number == now => Ok(Write::AsIs),
        Value::Integer(_) => Err(SetTestError::InconsistentValue),
        _ => Err(SetTestError::WrongType),
    }
}

fn change(place: usize, user: &User, key: Use, value: &Value) -> Result<Write, SetTestError> {
    let Value::OctetString(value) = value else { return Err(SetTestError::WrongType) };
    let old = match key {
        Use::Auth => &user.auth,
        Use::Privacy => &user.privacy,
    };
    let new = usm::changed(&old.0, value).ok_or(SetTestError::WrongLength)?;
    Ok(Write::Key(place, key, Octets(new)))
}

/// Whether a binding may join those before it in the same SET.
///
/// # Errors
/// When another one changes the same key: each is by the old one.
pub fn admit(before: &[Write], write: &Write) -> Result<(), SetTestError> {
    let Write::Key(place, key, _) = write else { return Ok(()) };
    let twice = before.iter().any(|write| matches!(write, Write::Key(at, of, _) if at == place && of == key));
    if twice { Err(SetTestError::InconsistentValue) } else { Ok(()) }
}

/// The users after a whole SET.
pub fn resolve(mut users: Users, writes: &[Write]) -> Users {
    for write in writes {
        match write {
            Write::AsIs => {}
            // TestAndIncr: after its largest value comes 0 (RFC 2579).
            Write::SpinLock(was) => users.spin_lock = (was + 1) & 0x7fff_ffff,
            Write::Key(place, key, new) => {
                if let Some(user) = users.users.get_mut(*place) {
                    match key {
                        Use::Auth => user.auth = new.clone(),
                        Use::Privacy => user.privacy = new.clone(),
                    }
                }
            }
            Write::Public(place, public) => {
                if let Some(user) = users.users.get_mut(*place) {
                    user.public = public.clone();
                }
            }
        }
    }
    users
}

/// The table over the keys in force.
pub struct UserTable {
    keys: Arc<Keys>,
    pending: Mutex<Weak<Mutex<Vec<Write>>>>,
}

impl UserTable {
    /// Of these keys.
    pub fn new(keys: Arc<Keys>) -> Self {
        Self { keys, pending: Mutex::new(Weak::new()) }
    }

    fn objects(&self) -> OidTable<Value> {
        objects(&self.keys.users(), self.keys.engine())
    }

    /// The bindings of the SET under way, as in [`super::handler`].
    fn pending(&self) -> Arc<Mutex<Vec<Write>>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Mutex::new(Vec::new()));
            *pending = Arc::downgrade(&new);
            new
        })
    }
}

impl MibHandler for UserTable {
    fn get<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetResult>> {
        Box::pin(
            async move { Ok(self.objects().get(oid).cloned().map_or(GetResult::NoSuchInstance, GetResult::Value)) },
        )
    }

    fn get_next<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetNextResult>> {
        Box::pin(async move {
            let next = self.objects().get_next(oid).map(|(oid, value)| VarBind::new(oid.clone(), value.clone()));
            Ok(next.map_or(GetNextResult::EndOfMibView, GetNextResult::Value))
        })
    }

    fn test_set<'a>(&'a self, by: &'a RequestContext, oid: &'a Oid, value: &'a Value) -> BoxFuture<'a, SetTestResult> {
        Box::pin(async move {
            let by = by.security_name().as_bytes();
            let write = parse(&self.keys.users(), self.keys.engine(), by, oid, value)?;
            let pending = self.pending();
            {
                let mut before = pending.lock().map_err(|_| SetTestError::GeneralFailure)?;
                admit(&before, &write)?;
                before.push(write);
            }
            Ok(Box::new(Binding { keys: Arc::clone(&self.keys), set: pending }) as Box<dyn PreparedSet>)
        })
    }
}

/// One binding of a SET. The first that is committed commits all; the others find nothing left to do.
struct Binding {
    keys: Arc<Keys>,
    set: Arc<Mutex<Vec<Write>>>,
}

impl PreparedSet for Binding {
    fn commit<'a>(&'a mut self, by: &'a RequestContext, _: &'a Oid, _: &'a Value) -> BoxFuture<'a, SetCommitResult> {
        Box::pin(async move {
            let writes = std::mem::take(&mut *self.set.lock().map_err(|_| SetCommitError::Failed)?);
            if writes.iter().all(|write| *write == Write::AsIs) {
                return Ok(());
            }
            let users = resolve((*self.keys.users()).clone(), &writes);
            let names = writes
                .iter()
                .filter_map(|write| if let Write::Key(at, ..) = write { users.users.get(*at) } else { None });
            let names: BTreeSet<&str> = names.map(|user| &*user.name).collect();
            let by = String::from_utf8_lossy(by.security_name().as_bytes()).into_owned();
            if !names.is_empty() {
                tracing::info!(?names, by, "keys of SNMP users change");
            }
            self.keys.change(users).map_err(|error| {
                tracing::error!(%error, "keys of SNMP users could not be kept: the old ones stay");
                SetCommitError::Failed
            })
        })
    }

    /// Only the first binding's commit can fail, and then nothing was changed.
    fn undo<'a>(&'a mut self, _: &'a RequestContext, _: &'a Oid, _: &'a Value) -> BoxFuture<'a, SetUndoResult> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::enrolment::SnmpUser;

    use super::*;

    fn keys() -> (tempfile::TempDir, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let engine = EngineId::from_bytes(b"an engine").unwrap();
        let user =
            |name: &str| SnmpUser { name: name.into(), auth: "some words".into(), privacy: "some privacy".into() };
        let keys = Keys::open(folder.path(), &engine, &[&user("deployer"), &user("keys")]).unwrap();
        (folder, keys)
    }

    fn cell(number: u32, name: &str) -> Oid {
        let row = index(&EngineId::from_bytes(b"an engine").unwrap(), name);
        Oid::new(column::ENTRY.iter().copied().chain([number]).chain(row))
    }

    fn octets(bytes: &[u8]) -> Value {
        Value::OctetString(bytes.to_vec().into())
    }

    #[test]
    fn values_are_checked_by_type_length_row_and_requester() {
        let (_folder, keys) = keys();
        let users = keys.users();
        let said = |oid: &Oid, value: &Value| parse(&users, keys.engine(), b"keys", oid, value);
        let change = octets(&[1; 64]);
        assert!(matches!(said(&cell(column::AUTH_KEY_CHANGE, "deployer"), &change), Ok(Write::Key(0, Use::Auth, _))));
        assert!(matches!(said(&cell(column::OWN_AUTH_KEY_CHANGE, "keys"), &change), Ok(Write::Key(1, Use::Auth, _))));
        let refused = [
            (cell(column::OWN_AUTH_KEY_CHANGE, "deployer"), change.clone(), SetTestError::NoAccess),
            (cell(column::AUTH_KEY_CHANGE, "deployer"), octets(&[1; 63]), SetTestError::WrongLength),
            (cell(column::PRIVACY_KEY_CHANGE, "deployer"), change.clone(), SetTestError::WrongLength),
            (cell(column::AUTH_KEY_CHANGE, "deployer"), Value::Integer(1), SetTestError::WrongType),
            (cell(column::AUTH_KEY_CHANGE, "nobody"), change, SetTestError::NoCreation),
            (cell(column::PUBLIC, "keys"), octets(&[0; 33]), SetTestError::WrongLength),
            (cell(column::STATUS, "deployer"), Value::Integer(6), SetTestError::InconsistentValue),
            (cell(column::AUTH_PROTOCOL, "deployer"), Value::Integer(1), SetTestError::NotWritable),
        ];
        for (oid, value, error) in refused {
            assert_eq!(said(&oid, &value), Err(error), "{oid}");
        }
        let lock = Oid::new(column::GROUP.iter().copied().chain([column::SPIN_LOCK, 0]));
        assert_eq!(said(&lock, &Value::Integer(0)), Ok(Write::SpinLock(0)));
        assert_eq!(said(&lock, &Value::Integer(1)), Err(SetTestError::InconsistentValue));
        assert_eq!(said(&lock, &Value::Integer(-1)), Err(SetTestError::WrongValue));
    }

    #[test]
    fn a_set_changes_all_it_says_and_no_key_twice() {
        let (_folder, keys) = keys();
        let before = (*keys.users()).clone();
        let key = |byte| Write::Key(0, Use::Auth, Octets(vec![byte; 32]));
        let writes = [Write::SpinLock(i32::MAX as u32), key(1), Write::Public(0, Octets(b"done".to_vec()))];
        assert_eq!(admit(&writes, &key(2)), Err(SetTestError::InconsistentValue));
        assert_eq!(admit(&writes, &Write::Key(1, Use::Auth, Octets(vec![2; 32]))), Ok(()));
        let after = resolve(before.clone(), &writes);
        assert_eq!(
            (after.spin_lock, &*after.users[0].auth.0, &*after.users[0].public.0),
            (0, &[1; 32][..], &b"done"[..])
        );
        assert_eq!(after.users[1], before.users[1]);
        let shown = objects(&after, keys.engine());
        let hidden = [column::AUTH_KEY_CHANGE, column::OWN_PRIVACY_KEY_CHANGE].map(|number| cell(number, "deployer"));
        assert!(hidden.iter().all(|oid| shown.get(oid) == Some(&octets(b""))));
    }
}
