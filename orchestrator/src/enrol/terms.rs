//! What an administrator decides about a host, and what comes of it: its configuration, and what the server keeps of it. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use patchlab_protocol::{
    PublicKey,
    description::Tags,
    enrolment::{
        self, BadEnrolment, Booting, Enrolment, Fetching, InformSink, KEY_FILE, Packages, PinnedRoot, ROOT_FILE,
        Scripts,
    },
};
use serde::{Deserialize, Serialize};

use super::Material;
use crate::{pipeline::EnrolmentTerms, store::NewHost};

/// What is decided about a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostTerms {
    /// The site it is at.
    pub site: String,
    /// Where its agent answers SNMP, as the server reaches it.
    pub address: SocketAddr,
    /// The server's address as the host reaches it; as bound when absent.
    pub member: Option<IpAddr>,
    /// Where the agent listens; when absent, all addresses of the family of `address`, at its port.
    pub listen: Option<SocketAddr>,
    /// Where the agent keeps its state.
    pub state_dir: PathBuf,
    /// Where the agent keeps what must not go back with a disk; the state folder when absent.
    pub ledger_dir: Option<PathBuf>,
    /// Whether orders may change it by scripts.
    pub scripts: Scripts,
}

/// Nothing comes of these terms.
#[derive(Debug, thiserror::Error)]
pub enum TermsError {
    /// Nobody reaches a server at "all addresses".
    #[error(
        "the server listens for {what} on every address ({bound}): say by which one the host reaches it, with --member IP"
    )]
    Everywhere {
        /// What for.
        what: &'static str,
        /// As bound.
        bound: SocketAddr,
    },
    /// The configuration could not be.
    #[error(transparent)]
    Enrolment(#[from] BadEnrolment),
}

impl HostTerms {
    /// An address of the server as the host reaches it.
    ///
    /// # Errors
    /// When it is bound to every address, and the terms name none.
    pub fn seen(&self, what: &'static str, bound: SocketAddr) -> Result<SocketAddr, TermsError> {
        let seen = SocketAddr::new(self.member.unwrap_or(bound.ip()), bound.port());
        if seen.ip().is_unspecified() { Err(TermsError::Everywhere { what, bound }) } else { Ok(seen) }
    }

    /// Where the agent listens.
    fn listens(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| enrolment::everywhere(self.address))
    }

    /// The host's configuration.
    ///
    /// # Errors
    /// When it could not be one.
    pub fn enrolment(&self, host: &str, server: &EnrolmentTerms, material: &Material) -> Result<Enrolment, TermsError> {
        let users = &material.credentials;
        let agent = Enrolment {
            host: host.to_owned(),
            listen: self.listens(),
            state_dir: self.state_dir.clone(),
            ledger_dir: self.ledger_dir.clone(),
            hooks: None,
            engine_id: Some(material.engine_id.clone()),
            root: PinnedRoot { path: ROOT_FILE.into(), digest: server.root_digest },
            host_key: KEY_FILE.into(),
            monitor: material.monitor.clone(),
            deployer: users.deployer.clone(),
            key_administrator: users.key_administrator.clone(),
            inform: Some(InformSink {
                address: self.seen("informs", server.informs)?,
                engine_id: server.manager_engine_id.clone(),
                user: users.inform.clone(),
            }),
            packages: Packages::default(),
            fetch: Fetching::default(),
            boot: Booting::default(),
            scripts: self.scripts.clone(),
            tags: Tags::default(),
        };
        agent.check()?;
        Ok(agent)
    }

    /// What the server keeps of the host with that key.
    ///
    /// # Errors
    /// When the server could not be reached by it.
    pub fn host(
        &self,
        name: &str,
        server: &EnrolmentTerms,
        material: &Material,
        key: PublicKey,
    ) -> Result<NewHost, TermsError> {
        Ok(NewHost {
            name: name.to_owned(),
            site: self.site.clone(),
            address: self.address,
            engine_id: material.engine_id.clone(),
            public_key: key,
            root: server.root_digest,
            payload_uri: format!("http://{}", self.seen("payloads", server.payload)?),
        })
    }
}

/// What agent.toml says at its end where it does not let scripts change the host.
const NO_SCRIPTS: &str = "
# Orders may change this host by scripts that they ship, and not by packages alone, when this says true. The lab proves scripts as it
# proves packages, but nobody can say beforehand what one is going to do here.
#[scripts]
#allow = true
";

/// The content of `agent.toml`.
///
/// # Errors
/// When a value has no written form.
pub fn agent_toml(agent: &Enrolment) -> Result<String, toml::ser::Error> {
    let mut text = toml::to_string(agent)?;
    if !agent.scripts.allow {
        text.push_str(NO_SCRIPTS);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(member: Option<IpAddr>) -> HostTerms {
        HostTerms {
            site: "main".into(),
            address: "192.0.2.7:1161".parse().unwrap(),
            member,
            listen: None,
            state_dir: enrolment::DEFAULT_STATE_DIR.into(),
            ledger_dir: None,
            scripts: Scripts::default(),
        }
    }

    #[test]
    fn a_host_is_told_an_address_that_it_can_reach() {
        let everywhere: SocketAddr = "0.0.0.0:8471".parse().unwrap();
        assert!(matches!(terms(None).seen("payloads", everywhere), Err(TermsError::Everywhere { .. })));
        let member: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(terms(Some(member)).seen("payloads", everywhere).unwrap().to_string(), "192.0.2.1:8471");
        let bound: SocketAddr = "127.0.0.1:8471".parse().unwrap();
        assert_eq!(terms(None).seen("payloads", bound).unwrap(), bound);
    }

    #[test]
    fn a_host_listens_in_the_family_that_it_is_reached_in() {
        for (reached, listens) in [("192.0.2.7:1161", "0.0.0.0:1161"), ("[2001:db8::7]:161", "[::]:161")] {
            let terms = HostTerms { address: reached.parse().unwrap(), ..terms(None) };
            assert_eq!(terms.listens().to_string(), listens);
        }
        let told = HostTerms { listen: Some("192.0.2.9:161".parse().unwrap()), ..terms(None) };
        assert_eq!(told.listens().to_string(), "192.0.2.9:161");
    }
}
