//! The SNMP side: SNMPv3 with authentication and privacy only, no community, on one UDP port.
//!
//! [`view`] says what every object reads as, [`write`] what a SET would change; both are pure. [`handler`] joins them to the
//! record, [`identity`] keeps engine id and boots, [`inform`] tells the manager. [`keys`] keeps the users' keys, [`users`] is the table by
//! which they change, and [`front`], which managers reach, has the engine see none of them: it changes every message's [`seal`].

pub mod counters;
pub mod front;
pub mod handler;
pub mod host;
pub mod identity;
pub mod inform;
pub mod keys;
pub mod seal;
pub mod users;
pub mod view;
pub mod write;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use async_snmp::{
    Agent, AuthProtocol, AuthoritativeEngine, BuiltinMib, CryptoError, MasterKeys, Oid, PrivProtocol, SecurityLevel,
    SecurityModel, VacmBuilder,
};
use patchlab_protocol::{enrolment::Enrolment, limits, mib};

use counters::{Counters, Counting};
use front::{Front, Secrets};
use handler::Tables;
use host::HostTable;
use keys::{Keys, KeysError};
use seal::Seal;
use tokio::net::UdpSocket;
use users::UserTable;

/// `internet`: everything that SNMP agents speak of.
const INTERNET: &[u32] = &[1, 3, 6, 1];
/// `snmpEngine` of SNMP-FRAMEWORK-MIB (RFC 3411): who the agent is.
const ENGINE: &[u32] = &[1, 3, 6, 1, 6, 3, 10, 2, 1];
/// Where the engine is: nobody outside this host reaches it, and whoever inside does has no key. Not 127.0.0.1, where its ports would be in the
/// way of others'.
const INSIDE: Ipv4Addr = Ipv4Addr::new(127, 161, 0, 1);

/// The SNMP engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SnmpError {
    /// The address cannot be taken.
    #[error("cannot answer SNMP on {listen}/udp: {source}; is another agent running there?")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The way from the address to the engine.
    #[error("SNMP front: {0}; is the loopback interface up?")]
    Front(io::Error),
    /// The engine is not set up as it must.
    #[error("SNMP engine: {0}; is the loopback interface up?")]
    Engine(Box<async_snmp::Error>),
    /// The engine's secret cannot be made.
    #[error("SNMP engine's secret: {0}")]
    Secret(String),
    /// The users' keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A user's passphrase cannot be used.
    #[error("SNMP user {name}: {reason}")]
    User {
        /// The user.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// What answers SNMP: the engine, and the front that managers reach.
pub struct Answering {
    /// The engine.
    pub engine: Agent,
    /// The front.
    pub front: Arc<Front>,
}

/// Takes the enrolment's address, and sets the engine up behind it.
///
/// # Errors
/// When the address cannot be taken or a user cannot be set up.
pub async fn bind(
    enrolment: &Enrolment,
    engine: AuthoritativeEngine,
    keys: Arc<Keys>,
    tables: Arc<Tables>,
) -> Result<Answering, SnmpError> {
    let listen = enrolment.listen;
    // Before the ports inside are taken: none of them may be this one.
    let socket = UdpSocket::bind(listen).await.map_err(|source| SnmpError::Listen { listen, source })?;
    let mut secrets = Secrets::new();
    let mut passphrases = Vec::new();
    for user in enrolment.users() {
        let (passphrase, seal) = secret(engine.engine_id())?;
        secrets.insert(user.name.clone().into_bytes(), Arc::new(seal));
        passphrases.push((user.name.clone(), passphrase));
    }
    let engine_id = engine.engine_id().to_vec();
    let counting = Counting::default();
    let counters = |place| Arc::new(Counters::below(place, Arc::clone(&counting)));
    let host = HostTable::new(enrolment.packages.root.clone(), enrolment.tags.clone(), enrolment.state_dir.clone());
    let mut builder = Agent::builder()
        .bind(SocketAddr::from((INSIDE, 0)).to_string())
        .max_message_size(limits::PDU_BYTES)
        .max_concurrent_requests(Some(64))
        .recv_buffer_size(None)
        .authoritative_engine(engine)
        .handler(Oid::from_slice(INTERNET), tables)
        .handler(Oid::from_slice(mib::host::GROUP), Arc::new(host))
        .without_builtin_handler(BuiltinMib::UsmStats)
        .handler(Oid::from_slice(counters::USM), counters(counters::USM))
        .handler(Oid::from_slice(counters::TARGET), counters(counters::TARGET))
        .handler(Oid::from_slice(mib::user::GROUP), Arc::new(UserTable::new(Arc::clone(&keys))))
        .vacm(|vacm| access(vacm, enrolment));
    for (name, passphrase) in passphrases {
        builder = builder
            .usm_user(name.clone(), |usm| usm.with_master_keys(passphrase))
            .map_err(|error| SnmpError::User { name, reason: error.to_string() })?;
    }
    let engine = builder.build().await.map_err(SnmpError::Engine)?;
    let inside = (engine.local_addr(), engine_id);
    let front = Front::before(inside, socket, secrets, keys).await.map_err(SnmpError::Front)?;
    counting.get_or_init(|| (engine.clone(), front.below_level()));
    Ok(Answering { engine, front: Arc::new(front) })
}

/// What one user's messages bear inside until this start ends: a passphrase of 256 random bits that nobody sees.
fn secret(engine: &[u8]) -> Result<(MasterKeys, Seal), SnmpError> {
    let failed = |error: CryptoError| SnmpError::Secret(error.to_string());
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| SnmpError::Secret(error.to_string()))?;
    let keys = MasterKeys::new(AuthProtocol::Sha256, hex::encode(random).as_bytes())
        .and_then(|keys| keys.with_privacy_same_password(PrivProtocol::Aes128))
        .map_err(failed)?;
    let (auth, privacy) = keys.localize(engine).map_err(failed)?;
    let privacy = privacy.ok_or_else(|| SnmpError::Secret("no key for privacy".into()))?;
    Ok((keys, Seal::of(auth, privacy)))
}

/// Who may see and write what (RFC 3415): three views, and nothing below authPriv. The keys are seen and changed by the key administrator
/// alone, who sees and changes nothing of PATCHLAB-MIB.
fn access(vacm: VacmBuilder, enrolment: &Enrolment) -> VacmBuilder {
    let (level, usm) = (SecurityLevel::AuthPriv, SecurityModel::Usm);
    let oid = Oid::from_slice;
    let mut vacm = vacm
        .group(enrolment.monitor.name.clone(), usm, "monitors")
        .group(enrolment.deployer.name.clone(), usm, "deployers")
        .access("monitors", usm, level, |access| access.read_view("all"))
        .access("deployers", usm, level, |access| access.read_view("all").write_view("patchlab"))
        .access("key administrators", usm, level, |access| access.read_view("who and keys").write_view("keys"))
        .view("all", |view| view.include(oid(INTERNET)).exclude(oid(mib::user::GROUP)))
        .view("patchlab", |view| view.include(oid(mib::OBJECTS)))
        .view("keys", |view| view.include(oid(mib::user::GROUP)))
        .view("who and keys", |view| {
            let who = view.include(oid(view::SYSTEM)).include(oid(ENGINE)).include(oid(counters::USM));
            who.include(oid(mib::user::GROUP))
        });
    if let Some(user) = &enrolment.key_administrator {
        vacm = vacm.group(user.name.clone(), usm, "key administrators");
    }
    vacm
}
