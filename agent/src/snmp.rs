//! The SNMP side: SNMPv3 with authentication and privacy only, no community, on one UDP port.
//!
//! [`view`] says what every object reads as, [`write`] what a SET would change; both are pure. [`handler`] joins them to the
//! record, [`identity`] keeps engine id and boots, [`inform`] tells the manager.

pub mod handler;
pub mod identity;
pub mod inform;
pub mod view;
pub mod write;

use std::{net::SocketAddr, sync::Arc};

use async_snmp::{
    Agent, AuthProtocol, AuthoritativeEngine, Oid, PrivProtocol, SecurityLevel, SecurityModel, UsmUser, VacmBuilder,
};
use patchlab_protocol::{
    enrolment::{Enrolment, SnmpUser},
    limits, mib,
};

use handler::Tables;

/// `internet`: everything that SNMP agents speak of.
const INTERNET: &[u32] = &[1, 3, 6, 1];

/// The SNMP engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SnmpError {
    /// The address cannot be taken, or the engine is not set up as it must.
    #[error("cannot answer SNMP on {listen}/udp: {source}; is another agent running there?")]
    Start {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: Box<async_snmp::Error>,
    },
    /// A user's passphrase cannot be used.
    #[error("SNMP user {name}: {reason}")]
    User {
        /// The user.
        name: String,
        /// Why not.
        reason: String,
    },
}

/// The SNMP agent, bound to its address.
///
/// # Errors
/// When the address cannot be taken or a user cannot be set up.
pub async fn bind(enrolment: &Enrolment, engine: AuthoritativeEngine, tables: Arc<Tables>) -> Result<Agent, SnmpError> {
    let mut builder = Agent::builder()
        .bind(enrolment.listen.to_string())
        .max_message_size(limits::PDU_BYTES)
        .max_concurrent_requests(Some(64))
        .recv_buffer_size(None)
        .authoritative_engine(engine)
        .handler(Oid::from_slice(INTERNET), tables)
        .vacm(|vacm| access(vacm, &enrolment.monitor.name, &enrolment.deployer.name));
    for user in [&enrolment.monitor, &enrolment.deployer] {
        builder = builder
            .usm_user(user.name.clone(), |usm| auth_priv(usm, user))
            .map_err(|error| SnmpError::User { name: user.name.clone(), reason: error.to_string() })?;
    }
    builder.build().await.map_err(|source| SnmpError::Start { listen: enrolment.listen, source })
}

fn auth_priv(usm: UsmUser, user: &SnmpUser) -> async_snmp::CryptoResult<UsmUser> {
    usm.auth_priv(AuthProtocol::Sha256, user.auth.as_bytes(), PrivProtocol::Aes128, user.privacy.as_bytes())
}

/// Who may see and write what (RFC 3415). Nothing is granted below authPriv.
fn access(vacm: VacmBuilder, monitor: &str, deployer: &str) -> VacmBuilder {
    let level = SecurityLevel::AuthPriv;
    vacm.group(monitor.to_owned(), SecurityModel::Usm, "monitors")
        .group(deployer.to_owned(), SecurityModel::Usm, "deployers")
        .access("monitors", SecurityModel::Usm, level, |access| access.read_view("all"))
        .access("deployers", SecurityModel::Usm, level, |access| access.read_view("all").write_view("patchlab"))
        .view("all", |view| view.include(Oid::from_slice(INTERNET)))
        .view("patchlab", |view| view.include(Oid::from_slice(mib::OBJECTS)))
}
