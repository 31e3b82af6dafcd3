//! The kinds of steps, each with its expectations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Repeat,
    errand::Errand,
    expect::Expect,
    metric::Metric,
    text::{AbsolutePath, FileMode, HttpUrl, JsonQuery, PackageName, Pattern, UnitName},
    wait::Wait,
};

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Runs a command.
    Run {
        /// Shell command line, run in the scenario's folder. Exit 77 means: skip.
        command: String,
        /// What it must give.
        expect: Expect,
        /// A number in its output, compared with the control's.
        metric: Option<Metric>,
    },
    /// Sends an HTTP request from the machine itself.
    Http(Http),
    /// Opens a TCP connection from the machine itself.
    Tcp(Tcp),
    /// Looks at a systemd unit.
    Unit(Unit),
    /// Looks at a file.
    File(File),
    /// Looks at an installed package.
    Package(Package),
    /// Looks for a listening port.
    Port(Port),
    /// Looks again and again until something holds.
    Wait(Wait),
    /// What the lab alone does.
    Errand(Errand),
}

impl Kind {
    /// The word it is written with.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Unit(_) => "unit",
            Self::File(_) => "file",
            Self::Package(_) => "package",
            Self::Port(_) => "port",
            Self::Wait(_) => "wait",
            Self::Errand(errand) => errand.name(),
        }
    }

    /// The number that it is to say of the machine, if any.
    pub fn metric(&self) -> Option<&Metric> {
        match self {
            Self::Run { metric, .. } => metric.as_ref(),
            _ => None,
        }
    }

    /// How often it is done when nothing is said: a metric needs several samples to mean anything.
    pub(super) fn usual_repeat(&self) -> Repeat {
        if self.metric().is_some() { Repeat(Metric::REPEAT) } else { Repeat::default() }
    }
}

/// An HTTP/1.1 request (GET) over plain TCP. Redirects are not followed: they are what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// `http://HOST[:PORT]/PATH`.
    pub url: HttpUrl,
    /// Expected status; absent means 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Text that the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
    /// Regular expression that must match somewhere in the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_matches: Option<Pattern>,
    /// Values in the body, which must be one JSON document, by query.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub body_json: BTreeMap<JsonQuery, serde_json::Value>,
    /// Headers that must be present with that value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A TCP connection that must succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A systemd unit's active state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Unit name, with its suffix.
    pub name: UnitName,
    /// `ActiveState`, e.g. `active`, `inactive`.
    pub state: String,
}

/// A file's presence and content. Links are followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path.
    pub path: AbsolutePath,
    /// Whether it must be there; absent means `present`.
    #[serde(default, skip_serializing_if = "Presence::is_default")]
    pub state: Presence,
    /// Its permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FileMode>,
    /// SHA-256 of its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<crate::Digest>,
    /// Text that it must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Regular expression that must match somewhere in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Pattern>,
}

/// Whether a file must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// There, as a file or a folder.
    #[default]
    Present,
    /// Not there, not even as a link that leads nowhere.
    Absent,
}

impl Presence {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Package name.
    pub name: PackageName,
    /// The version it must have, whole, with epoch and revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it must be there; absent means `installed`.
    #[serde(default, skip_serializing_if = "Installed::is_default")]
    pub state: Installed,
}

/// Whether a package must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Installed {
    /// Fully installed.
    #[default]
    Installed,
    /// Not installed.
    Absent,
}

impl Installed {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A port on which something must listen, on any address, or nothing on all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Port number.
    pub number: u16,
    /// Transport; absent means `tcp`.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// Whether something must listen; absent means `open`.
    #[serde(default, skip_serializing_if = "Listening::is_default")]
    pub state: Listening,
}

/// Whether something must listen on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Listening {
    /// Something listens.
    #[default]
    Open,
    /// Nothing does.
    Closed,
}

impl Listening {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
