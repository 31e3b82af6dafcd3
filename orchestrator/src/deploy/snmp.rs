//! The manager over `snmp2`, SNMPv3 authPriv with SHA-256 and AES-128.
//!
//! What the library leaves to its user, and where it is done here: a session has one socket, one request at a time, no timeout
//! and no retry, and a late answer fails the *next* request. So a session that missed an answer is thrown away with its
//! socket, and the next try opens another. Key derivation takes 4 to 11 ms: it is done once, on a blocking thread,
//! for the engine id known from enrolment; no discovery is asked for, so nobody can answer in the host's place.

use std::{net::SocketAddr, time::Duration};

use patchlab_protocol::{
    enrolment::{EngineId, SnmpUser},
    limits,
};
use snmp2::{AsyncSession, Pdu, v3};
use tokio::sync::Mutex;

use super::manager::{Answer, Manager, ManagerError, Oid, Value};

/// How long to wait for an answer, and how often to ask.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For each try.
    pub wait: Duration,
    /// In all.
    pub tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { wait: Duration::from_millis(1500), tries: 4 }
    }
}

/// One host, by SNMPv3.
pub struct SnmpManager {
    host: String,
    address: SocketAddr,
    security: v3::Security,
    patience: Patience,
    session: Mutex<Option<AsyncSession>>,
}

impl std::fmt::Debug for SnmpManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnmpManager").field("host", &self.host).field("address", &self.address).finish_non_exhaustive()
    }
}

/// What a request asks.
enum Ask<'a> {
    Get(&'a [Oid]),
    Next(&'a Oid),
    Set(&'a [(Oid, Value)]),
}

impl Ask<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Get(_) => "get",
            Self::Next(_) => "get-next",
            Self::Set(_) => "set",
        }
    }
}

impl SnmpManager {
    /// A manager for a host; derives the user's keys, and sends nothing yet.
    pub async fn new(
        host: impl Into<String>,
        address: SocketAddr,
        engine: &EngineId,
        user: &SnmpUser,
        patience: Patience,
    ) -> Result<Self, ManagerError> {
        let host = host.into();
        let (engine, user) = (engine.clone(), user.clone());
        let broken = |reason: String| ManagerError::Security { host: host.clone(), reason };
        let security = tokio::task::spawn_blocking(move || {
            v3::Security::new(user.name.as_bytes(), user.auth.as_bytes())
                .with_auth_protocol(v3::AuthProtocol::Sha256)
                .with_auth(v3::Auth::AuthPriv {
                    cipher: v3::Cipher::Aes128,
                    privacy_password: user.privacy.into_bytes(),
                })
                .with_engine_id(engine.as_bytes())
        })
        .await
        .map_err(|error| broken(error.to_string()))?
        .map_err(|error| broken(error.to_string()))?;
        Ok(Self { host, address, security, patience, session: Mutex::new(None) })
    }

    /// Sends a request until it is answered, and gives the answer to `read` while it lies in the session's buffer.
    async fn ask<T>(
        &self,
        ask: Ask<'_>,
        read: impl Fn(&Pdu<'_>) -> Result<T, snmp2::Error> + Send,
    ) -> Result<T, ManagerError> {
        let mut slot = self.session.lock().await;
        let mut missed = 0;
        // An agent whose clock or boots moved answers with a report first: that costs a round, not a try.
        let mut rounds = 0;
        while missed < self.patience.tries {
            let mut session = match slot.take() {
                Some(session) => session,
                None => self.open().await?,
            };
            match tokio::time::timeout(self.patience.wait, send(&mut session, &ask)).await {
                Err(_) => missed += 1,
                Ok(Ok(answer)) => {
                    self.check(&ask, &answer)?;
                    let value = read(&answer).map_err(|error| self.security_error(&error))?;
                    *slot = Some(session);
                    return Ok(value);
                }
                Ok(Err(snmp2::Error::AuthUpdated)) if rounds < 4 => {
                    rounds += 1;
                    *slot = Some(session);
                }
                // Strangers' and late datagrams; ICMP's word that nobody listens (yet) comes as a failed receive.
                Ok(Err(error)) if is_noise(&error) => {
                    missed += 1;
                    tracing::debug!(host = self.host, %error, "SNMP answer dropped");
                    tokio::time::sleep(self.patience.wait / 4).await;
                }
                Ok(Err(error)) => return Err(self.security_error(&error)),
            }
        }
        Err(ManagerError::Silent {
            host: self.host.clone(),
            tries: missed,
            wait_ms: u64::try_from(self.patience.wait.as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn open(&self) -> Result<AsyncSession, ManagerError> {
        let socket = |reason: String| ManagerError::Socket { host: self.host.clone(), reason };
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| socket(error.to_string()))?;
        let first = i32::from_le_bytes(random) & 0x3fff_ffff;
        AsyncSession::new_v3(self.address, first, self.security.clone())
            .await
            .map_err(|error| socket(error.to_string()))
    }

    fn check(&self, ask: &Ask<'_>, answer: &Pdu<'_>) -> Result<(), ManagerError> {
        if answer.error_status == 0 {
            return Ok(());
        }
        let at = (answer.error_index as usize).saturating_sub(1);
        let oid = match ask {
            Ask::Get(oids) => oids.get(at).map(Oid::to_string),
            Ask::Next(oid) => Some(oid.to_string()),
            Ask::Set(values) => values.get(at).map(|(oid, _)| oid.to_string()),
        };
        Err(ManagerError::Refused {
            host: self.host.clone(),
            action: ask.name(),
            status: error_status(answer.error_status),
            oid: oid.unwrap_or_else(|| "the request".into()),
        })
    }

    fn security_error(&self, error: &snmp2::Error) -> ManagerError {
        ManagerError::Security { host: self.host.clone(), reason: error.to_string() }
    }
}

impl Manager for SnmpManager {
    fn get<'a>(&'a self, oids: &'a [Oid]) -> Answer<'a, Vec<Option<Value>>> {
        Box::pin(self.ask(Ask::Get(oids), |pdu| {
            let found: Vec<_> = pdu.varbinds.clone().map(|(_, value)| owned(&value)).collect();
            Ok(found)
        }))
    }

    fn next<'a>(&'a self, oid: &'a Oid) -> Answer<'a, Option<(Oid, Value)>> {
        Box::pin(self.ask(Ask::Next(oid), |pdu| {
            let Some((name, value)) = pdu.varbinds.clone().next() else { return Ok(None) };
            let arcs = name
                .iter()
                .map(|arcs| arcs.map(|arc| u32::try_from(arc).unwrap_or(u32::MAX)).collect::<Vec<_>>())
                .ok_or(snmp2::Error::AsnIntOverflow)?;
            Ok(owned(&value).map(|value| (Oid(arcs), value)))
        }))
    }

    fn set<'a>(&'a self, values: &'a [(Oid, Value)]) -> Answer<'a, ()> {
        Box::pin(async move {
            // Names, values and about 150 bytes of SNMPv3 header; the agent would answer tooBig, this says by how much.
            let bytes = 160 + values.iter().map(|(oid, value)| 8 + oid.0.len() * 2 + size(value)).sum::<usize>();
            if bytes > limits::PDU_BYTES {
                return Err(ManagerError::TooLarge { host: self.host.clone(), bytes });
            }
            self.ask(Ask::Set(values), |_| Ok(())).await
        })
    }
}

async fn send<'s>(session: &'s mut AsyncSession, ask: &Ask<'_>) -> Result<Pdu<'s>, snmp2::Error> {
    let name = |oid: &Oid| {
        let arcs: Vec<u64> = oid.0.iter().copied().map(u64::from).collect();
        snmp2::Oid::from(&arcs).map_err(|_| snmp2::Error::AsnInvalidLen)
    };
    match ask {
        Ask::Get(oids) => {
            let names = oids.iter().map(name).collect::<Result<Vec<_>, _>>()?;
            session.get_many(&names.iter().collect::<Vec<_>>()).await
        }
        Ask::Next(oid) => session.getnext(&name(oid)?).await,
        Ask::Set(values) => {
            let names = values.iter().map(|(oid, _)| name(oid)).collect::<Result<Vec<_>, _>>()?;
            let borrowed: Vec<_> =
                names.iter().zip(values.iter()).map(|(name, (_, value))| (name, lent(value))).collect();
            session.set(&borrowed).await
        }
    }
}

fn is_noise(error: &snmp2::Error) -> bool {
    use snmp2::Error::{
        AsnEof, AsnInvalidLen, AsnParse, AsnUnsupportedType, AsnWrongType, AuthFailure, AuthUpdated, CommunityMismatch,
        Receive, RequestIdMismatch, Send,
    };
    matches!(
        error,
        AsnEof
            | AsnInvalidLen
            | AsnParse
            | AsnUnsupportedType
            | AsnWrongType
            | AuthUpdated
            | CommunityMismatch
            | Receive
            | RequestIdMismatch
            | Send
            | AuthFailure(
                v3::AuthErrorKind::EngineBootsMismatch
                    | v3::AuthErrorKind::EngineTimeMismatch
                    | v3::AuthErrorKind::EngineBootsNotProvided
            )
    )
}

fn lent(value: &Value) -> snmp2::Value<'_> {
    match value {
        Value::Integer(n) => snmp2::Value::Integer(*n),
        Value::Unsigned(n) => snmp2::Value::Unsigned32(u32::try_from(*n).unwrap_or(u32::MAX)),
        Value::Octets(bytes) => snmp2::Value::OctetString(bytes),
    }
}

fn owned(value: &snmp2::Value<'_>) -> Option<Value> {
    match value {
        snmp2::Value::Integer(n) => Some(Value::Integer(*n)),
        snmp2::Value::Unsigned32(n) | snmp2::Value::Counter32(n) | snmp2::Value::Timeticks(n) => {
            Some(Value::Unsigned(u64::from(*n)))
        }
        snmp2::Value::Counter64(n) => Some(Value::Unsigned(*n)),
        snmp2::Value::OctetString(bytes) => Some(Value::Octets(bytes.to_vec())),
        // noSuchObject, noSuchInstance, endOfMibView, and types that PATCHLAB-MIB has none of.
        _ => None,
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Integer(_) | Value::Unsigned(_) => 9,
        Value::Octets(bytes) => bytes.len(),
    }
}

/// Names of error statuses, RFC 3416.
fn error_status(status: u32) -> &'static str {
    const NAMES: [&str; 19] = [
        "noError",
        "tooBig",
        "noSuchName",
        "badValue",
        "readOnly",
        "genErr",
        "noAccess",
        "wrongType",
        "wrongLength",
        "wrongEncoding",
        "wrongValue",
        "noCreation",
        "inconsistentValue",
        "resourceUnavailable",
        "commitFailed",
        "undoFailed",
        "authorizationError",
        "notWritable",
        "inconsistentName",
    ];
    NAMES.get(status as usize).copied().unwrap_or("an unknown error")
}
