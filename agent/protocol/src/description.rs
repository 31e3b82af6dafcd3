//! What a host is and does: kind of machine, where it stands and what for, services and listening ports; in canonical text, the form in
//! which agent and server compare and name it by digest.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Most services and most ports told of a host.
pub const LINES: usize = 512;
/// Longest line, bytes (SnmpAdminString).
pub const LINE_BYTES: usize = 255;
/// Longest tag, bytes.
pub const TAG_BYTES: usize = 64;

/// A service, as systemd calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The unit, e.g. `nginx.service`.
    pub unit: String,
    /// Whether it starts by itself: `enabled`, `disabled`, `static`, `masked`, …; `-` when nobody says.
    pub enabled: String,
    /// What it does now: `active`, `inactive`, `failed`, …; `-` when nobody says.
    pub active: String,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port that something listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its number.
    pub port: u16,
    /// The address, `0.0.0.0` or `::` for every one.
    pub address: IpAddr,
    /// The unit whose process listens; `None` when it was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// Where a host stands and what for, as its configuration says. Empty: not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// Where it stands, e.g. `hall-2`.
    pub location: String,
    /// What it is for, e.g. `web`.
    pub function: String,
}

impl Tags {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether both are short, and fit on one line.
    pub fn fit(&self) -> bool {
        [&self.location, &self.function].iter().all(|tag| tag.len() <= TAG_BYTES && !tag.contains(char::is_control))
    }
}

/// A host, described.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `physical`, `container`, or whose virtual machine it is: `kvm`, `vmware`, …; `virtual` when that is not known. Empty when nothing is.
    pub machine: String,
    /// Where it stands and what for.
    pub tags: Tags,
    /// Services that start by themselves or run, sorted.
    pub services: Vec<Service>,
    /// Ports that something listens on, sorted.
    pub ports: Vec<Port>,
}

impl Description {
    /// One line a service and a port, sorted: what a table says, a row each.
    pub fn lines(&self) -> Vec<String> {
        let services = self.services.iter().map(ToString::to_string);
        services.chain(self.ports.iter().map(ToString::to_string)).collect()
    }

    /// The digest of everything it says.
    pub fn digest(&self) -> Digest {
        digest(&self.machine, &self.tags, &self.lines())
    }

    /// Put together from a host's own words. Lines of a kind that is not known here are passed over.
    pub fn of(machine: String, tags: Tags, lines: &[String]) -> Self {
        let services = lines.iter().filter_map(|line| line.parse().ok()).collect();
        let ports = lines.iter().filter_map(|line| line.parse().ok()).collect();
        Self { machine, tags, services, ports }
    }
}

/// The digest of a description in its own words, also of lines whose kind is not known here.
pub fn digest(machine: &str, tags: &Tags, lines: &[String]) -> Digest {
    let head = format!("machine {machine}\nlocation {}\nfunction {}\n", tags.location, tags.function);
    Digest::of(lines.iter().fold(head, |text, line| text + line + "\n"))
}

/// A line is not of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a line of this kind")]
pub struct NotThis;

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {} {} {}", self.unit, self.enabled, self.active)
    }
}

impl FromStr for Service {
    type Err = NotThis;

    fn from_str(line: &str) -> Result<Self, NotThis> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["service", unit, enabled, active] => {
                Ok(Self { unit: unit.into(), enabled: enabled.into(), active: active.into() })
            }
            _ => Err(NotThis),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.unit.as_deref().unwrap_or("-");
        write!(f, "port {} {} {} {unit}", self.transport, self.port, self.address)
    }
}

impl FromStr for Port {
    type Err = NotThis;

    fn from_str(line: &str) -> Result<Self, NotThis> {
        let ["port", transport, port, address, unit] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(NotThis);
        };
        Ok(Self {
            transport: [Transport::Tcp, Transport::Udp].into_iter().find(|t| t.name() == transport).ok_or(NotThis)?,
            port: port.parse().map_err(|_| NotThis)?,
            address: address.parse().map_err(|_| NotThis)?,
            unit: (unit != "-").then(|| unit.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_they_were_made_of_and_newer_kinds_are_passed_over() {
        let said = Description {
            machine: "kvm".into(),
            tags: Tags { location: "hall 2".into(), function: "web".into() },
            services: vec![Service {
                unit: "nginx.service".into(),
                enabled: "enabled".into(),
                active: "active".into(),
            }],
            ports: vec![Port {
                transport: Transport::Tcp,
                port: 80,
                address: "::".parse().unwrap(),
                unit: Some("nginx.service".into()),
            }],
        };
        assert_eq!(said.lines(), ["service nginx.service enabled active", "port tcp 80 :: nginx.service"]);
        assert_eq!(Description::of("kvm".into(), said.tags.clone(), &said.lines()), said);
        let newer = [said.lines(), vec!["sensor 17 C".into()]].concat();
        assert_eq!(Description::of("kvm".into(), said.tags.clone(), &newer), said);
        assert_ne!(digest("kvm", &said.tags, &newer), said.digest());
        let elsewhere = Description { tags: Tags { location: "hall 3".into(), ..said.tags.clone() }, ..said.clone() };
        assert_ne!(elsewhere.digest(), said.digest());
    }
}
