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
    /// Where it stands and what for.
    #[serde(default, skip_serializing_if = "Tags::is_default")]
    pub tags: Tags,
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
            tags: self.tags.clone(),
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

/// The file that explains every key, with its default and its unit.
const EXPLAINED: &str = include_str!("../../../agent/etc/agent.toml");

/// A configuration cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum UnwritableToml {
    /// A value has no written form.
    #[error(transparent)]
    Value(#[from] toml::ser::Error),
    /// The file that explains every key lacks one, or has it in a form that cannot be filled in.
    #[error("agent.toml cannot be filled in as it should be")]
    Unexplained,
}

/// The content of `agent.toml`: its explained form, filled in.
///
/// # Errors
/// When a value has no written form.
pub fn agent_toml(agent: &Enrolment) -> Result<String, UnwritableToml> {
    let text = filled(EXPLAINED, &toml::Table::try_from(agent)?);
    let reads = toml::from_str::<Enrolment>(&text).is_ok_and(|read| read == *agent);
    if reads { Ok(text) } else { Err(UnwritableToml::Unexplained) }
}

/// An explained file with these values. A key that has none is a comment, and so is a part of the file without values that needs some.
fn filled(explained: &str, values: &toml::Table) -> String {
    let mut parts: Vec<(Option<&str>, Vec<&str>)> = vec![(None, Vec::new())];
    for line in explained.lines() {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(path) => parts.push((Some(path), Vec::new())),
            None => parts.iter_mut().last().into_iter().for_each(|(_, lines)| lines.push(line)),
        }
    }
    let mut text = String::new();
    for (path, lines) in parts {
        let mut above = path.into_iter().flat_map(|path| path.split('.'));
        let table = above.try_fold(values, |table, key| table.get(key)?.as_table());
        let needs = lines.iter().any(|line| matches!(key(line), Some((_, Written::Set))));
        let absent = if table.is_none() && needs { "# " } else { "" };
        if let Some(path) = path {
            text.push_str(&format!("{absent}[{path}]\n"));
        }
        for line in lines {
            let value = |key: &str| table?.get(key).filter(|value| !value.is_table());
            let line = match key(line) {
                Some((key, written)) => match (value(key), written) {
                    (Some(value), _) => format!("{key} = {value}"),
                    (None, Written::Set) => format!("# {line}"),
                    (None, Written::Comment) => line.to_owned(),
                },
                None => line.to_owned(),
            };
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

/// How a key stands in an explained file.
enum Written {
    /// With a value.
    Set,
    /// As a comment, with its default or an example.
    Comment,
}

/// The key that a line is about, if it is about one.
fn key(line: &str) -> Option<(&str, Written)> {
    let (line, written) = line.strip_prefix("# ").map_or((line, Written::Set), |line| (line, Written::Comment));
    let (key, _) = line.split_once(" = ")?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_key.then_some((key, written))
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
            tags: Tags::default(),
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

    /// The explained configuration of a host that has everything.
    fn everything() -> Enrolment {
        let mut agent: Enrolment = toml::from_str(EXPLAINED).unwrap();
        agent.ledger_dir = Some("/srv/ledger".into());
        agent.hooks = Some("/etc/hooks".into());
        agent.engine_id = agent.inform.as_ref().map(|sink| sink.engine_id.clone());
        agent.deployer.auth = "with \"quotes\" and \\".into();
        agent.packages.root = "/srv/other".into();
        agent.fetch.sources = vec!["http://192.0.2.10:8470/".into(), "http://192.0.2.11:8470/".into()];
        agent.fetch.rate = Some("10MiB/s".parse().unwrap());
        agent.boot.pending_reboot = enrolment::PendingReboot::TakeAlong;
        agent.scripts.allow = true;
        agent.tags = Tags { location: "hall-2".into(), function: "web".into() };
        agent
    }

    #[test]
    fn what_a_host_is_given_says_its_values_and_explains_the_others() {
        let full = agent_toml(&everything()).unwrap();
        assert_eq!(toml::from_str::<Enrolment>(&full).unwrap(), everything());
        assert!(full.contains("\nallow = true\n") && full.contains("\nlocation = \"hall-2\"\n"), "{full}");

        let bare =
            Enrolment { key_administrator: None, inform: None, ..toml::from_str::<Enrolment>(EXPLAINED).unwrap() };
        let text = agent_toml(&bare).unwrap();
        assert_eq!(toml::from_str::<Enrolment>(&text).unwrap(), bare);
        for line in [
            "# [inform]",
            "# [inform.user]",
            "# [key_administrator]",
            "[scripts]",
            "# allow = false",
            "# rate = \"10MiB/s\"",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        // No line of the explained file is lost.
        assert_eq!(text.lines().count(), EXPLAINED.lines().count());
        assert_eq!(full.lines().count(), EXPLAINED.lines().count());
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
