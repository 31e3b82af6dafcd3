//! The kinds of steps, each with its expectations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::text::{AbsolutePath, HttpUrl, PackageName, Pattern, Percent, UnitName};

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
        }
    }
}

/// Expectations on a command's end and output; all given ones must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Exit status; absent means 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// Text that standard output must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_contains: Option<String>,
    /// Regular expression that must match somewhere in standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_matches: Option<Pattern>,
    /// Text that standard error must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_contains: Option<String>,
}

/// An HTTP/1.1 request (GET) over plain TCP. Redirects are not followed: they are what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Headers that must be present with that value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A TCP connection that must succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A systemd unit's active state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Unit name, with its suffix.
    pub name: UnitName,
    /// `ActiveState`, e.g. `active`, `inactive`.
    pub state: String,
}

/// A file's presence and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path.
    pub path: AbsolutePath,
    /// SHA-256 of its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<crate::Digest>,
    /// Text that it must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
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

/// A port on which something must listen, on any address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Port number.
    pub number: u16,
    /// Transport; absent means `tcp`.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
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

/// A number compared between control and patched. Shown; compared by a later version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name, e.g. `req_per_s`.
    pub name: String,
    /// Regular expression whose first group is the number.
    pub regex: Pattern,
    /// How much worse than the control is a failure, e.g. `"20%"`.
    pub worse_than_control: Percent,
}
