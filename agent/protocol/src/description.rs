//! What a host is and does: kind of machine, where it stands and what for, services and listening ports; in canonical text, the form in
//! which agent and server compare and name it by digest.

mod kernel;

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

pub use self::kernel::{KERNELS, Kernel, KernelState};
use crate::Digest;

/// Most services and most ports told of a host.
pub const LINES: usize = 512;
/// Most long-running jobs told of a host.
pub const JOBS: usize = 128;
/// Longest name of a unit that is told, bytes.
pub const UNIT_BYTES: usize = 200;
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

/// A job that takes a while, week by week at the same hour.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The unit, with a star for what is another number or hash each time: `session-*.scope`.
    pub unit: String,
    /// The hour of the week in which it begins, from Monday 00:00 UTC on, 1 to 168.
    pub hour: u32,
    /// How long it usually takes, minutes.
    pub minutes: u32,
    /// What it keeps busy meanwhile, per cent of one processor.
    pub processors_percent: u32,
    /// In how many weeks it was seen.
    pub weeks: u32,
}

/// Where a host stands and what for, as its configuration says. Empty: not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// Jobs that take a while, in the order of the week.
    #[serde(default)]
    pub jobs: Vec<Job>,
    /// The kernel that runs it and those on its disk; none when it does not say.
    #[serde(default)]
    pub kernels: Vec<Kernel>,
}

impl Description {
    /// One line a service, a port, a job and a kernel: what a table says, a row each.
    pub fn lines(&self) -> Vec<String> {
        let services = self.services.iter().map(ToString::to_string);
        let ports = self.ports.iter().map(ToString::to_string);
        let jobs = self.jobs.iter().map(ToString::to_string);
        services.chain(ports).chain(jobs).chain(self.kernels.iter().map(ToString::to_string)).collect()
    }

    /// The digest of everything it says.
    pub fn digest(&self) -> Digest {
        digest(&self.machine, &self.tags, &self.lines())
    }

    /// Put together from a host's own words. Lines of a kind that is not known here are passed over.
    pub fn of(machine: String, tags: Tags, lines: &[String]) -> Self {
        let services = lines.iter().filter_map(|line| line.parse().ok()).collect();
        let ports = lines.iter().filter_map(|line| line.parse().ok()).collect();
        let jobs = lines.iter().filter_map(|line| line.parse().ok()).collect();
        let kernels = lines.iter().filter_map(|line| line.parse().ok()).collect();
        Self { machine, tags, services, ports, jobs, kernels }
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

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, hour, minutes, processors_percent, weeks } = self;
        write!(f, "job {unit} {hour} {minutes} {processors_percent} {weeks}")
    }
}

impl FromStr for Job {
    type Err = NotThis;

    fn from_str(line: &str) -> Result<Self, NotThis> {
        let ["job", unit, hour, minutes, processors, weeks] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(NotThis);
        };
        let number = |word: &str| word.parse::<u32>().map_err(|_| NotThis);
        Ok(Self {
            unit: unit.into(),
            hour: number(hour).ok().filter(|hour| (1..=168).contains(hour)).ok_or(NotThis)?,
            minutes: number(minutes)?,
            processors_percent: number(processors)?,
            weeks: number(weeks)?,
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
            jobs: vec![Job { unit: "backup.service".into(), hour: 26, minutes: 45, processors_percent: 180, weeks: 3 }],
            kernels: vec![Kernel { release: "6.1.0-28-amd64".into(), state: KernelState::Running }],
        };
        let lines = [
            "service nginx.service enabled active",
            "port tcp 80 :: nginx.service",
            "job backup.service 26 45 180 3",
            "kernel 6.1.0-28-amd64 running",
        ];
        assert_eq!(said.lines(), lines);
        assert!("job backup.service 169 45 180 3".parse::<Job>().is_err(), "there is no such hour");
        assert_eq!(Description::of("kvm".into(), said.tags.clone(), &said.lines()), said);
        let newer = [said.lines(), vec!["sensor 17 C".into()]].concat();
        assert_eq!(Description::of("kvm".into(), said.tags.clone(), &newer), said);
        assert_ne!(digest("kvm", &said.tags, &newer), said.digest());
        let elsewhere = Description { tags: Tags { location: "hall 3".into(), ..said.tags.clone() }, ..said.clone() };
        assert_ne!(elsewhere.digest(), said.digest());
    }
}
