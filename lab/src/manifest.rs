//! What a machine is made of: its packages, files, units, listening ports, kernels, accounts, configuration and disk use, as seen from
//! inside.
//!
//! One collector serves the baseline at its freeze and every clone afterwards, so that two manifests differ only where
//! the machines do. Comparing them is `diff`'s business.

mod accounts;
pub(crate) mod attributes;
mod collect;
mod configuration;
mod disk;
pub(crate) mod disks;
mod kernels;
mod packages;
mod restarts;

use std::collections::{BTreeMap, BTreeSet};

use patchlab_check::Digest;
use serde::{Deserialize, Serialize};

pub use self::{
    accounts::{Accounts, Group, Password, User},
    attributes::Attributes,
    collect::{collect, collect_since},
    configuration::{ConfigurationFile, LEFTOVERS, is_leftover},
    disk::{DiskUse, FileSystem},
    kernels::{BootMode, Kernels},
    restarts::Restarts,
};

/// The state of one machine at one moment. Sections that an older lab did not collect are absent, and nothing is said about them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form; [`Manifest::SCHEMA`].
    pub schema: u32,
    /// Release of the running kernel (`uname -r`).
    pub kernel: String,
    /// Installed packages by `name:arch`, as dpkg or rpm knows them; packages that dpkg removed with configuration left are here too. One of
    /// rpm's of which several versions can be installed at a time, as kernels, is `name@version:arch`.
    pub packages: BTreeMap<String, Package>,
    /// Files by absolute path, except under [`VOLATILE`]. Paths that are not UTF-8 are decoded lossily.
    pub files: BTreeMap<String, Entry>,
    /// Mount points of the file systems whose files are here: [`disks`] says which these are. An older lab listed the root's alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_systems: Option<BTreeSet<String>>,
    /// Extended attributes of files and folders that have any. An older lab did not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Attributes>,
    /// Loaded systemd units by name.
    pub units: BTreeMap<String, Unit>,
    /// Listening sockets, sorted.
    pub ports: Vec<Port>,
    /// Numbers that the kernel gives to whoever asks for none.
    #[serde(default)]
    pub given_ports: PortRange,
    /// Users and groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounts: Option<Accounts>,
    /// Kernels beside the running one, its modules, and how it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Kernels>,
    /// What disks hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUse>,
    /// Packages' configuration files by path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<BTreeMap<String, ConfigurationFile>>,
    /// What still runs of what was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
}

impl Manifest {
    /// The version of this form that this program writes.
    pub const SCHEMA: u32 = 1;
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Name without architecture.
    pub name: String,
    /// Architecture, e.g. `amd64`, `all`.
    pub arch: String,
    /// Full version.
    pub version: String,
    /// dpkg's status words, e.g. `install ok installed`, which all of rpm's have.
    pub status: String,
}

/// One file system object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, e.g. `0o755`.
    pub mode: u32,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Size in bytes; for files only, 0 for all else.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Digest of the content; for files only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Where a link points; for links only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The package (`name:arch`) that owns it, for paths that the package system knows. Folders shared by several packages have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
}

fn is_zero(size: &u64) -> bool {
    *size == 0
}

/// Kind of a file system object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, socket or pipe.
    Special,
}

/// A systemd unit's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `LoadState`, e.g. `loaded`, `not-found`, `masked`.
    pub load: String,
    /// `ActiveState`, e.g. `active`, `failed`.
    pub active: String,
    /// `SubState`, e.g. `running`, `exited`, `dead`.
    pub sub: String,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Address it is bound to, e.g. `0.0.0.0`, `[::]`, `127.0.0.1`.
    pub address: String,
    /// Port number.
    pub port: u16,
    /// Name of the process, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
}

/// A range of ports, both ends in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl Default for PortRange {
    /// What Linux gives when nobody says otherwise (`ip_local_port_range`, ip(7)).
    fn default() -> Self {
        Self { first: 32_768, last: 60_999 }
    }
}

impl PortRange {
    /// From `ip_local_port_range` in `/proc/sys/net/ipv4`, two numbers.
    pub fn of_line(line: &str) -> Option<Self> {
        let (first, last) = line.trim().split_once(char::is_whitespace)?;
        Some(Self { first: first.parse().ok()?, last: last.trim().parse().ok()? })
    }

    /// Whether a number is in it.
    pub fn has(self, number: u16) -> bool {
        (self.first..=self.last).contains(&number)
    }
}

impl Port {
    /// From a line of `ss -Hlntup`: `tcp LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=1,fd=6))`.
    pub fn of_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let protocol = words.next()?.to_owned();
        let (address, port) = words.nth(3)?.rsplit_once(':')?;
        let process = line.split_once("users:((\"").and_then(|(_, rest)| rest.split_once('"'));
        let process = process.map(|(name, _)| name.to_owned());
        Some(Self { protocol, address: address.into(), port: port.parse().ok()?, process })
    }
}

/// Path prefixes that no manifest covers, each with its reason. What lies below changes by merely running, or is not on
/// the machine's disk. The folder itself is not covered either.
pub const VOLATILE: &[(&str, &str)] = &[
    ("/proc", "kernel's view, not a disk"),
    ("/sys", "kernel's view, not a disk"),
    ("/dev", "made at boot"),
    ("/run", "in memory, made at boot"),
    ("/tmp", "scratch"),
    ("/var/tmp", "scratch"),
    ("/var/log", "logs grow by running"),
    ("/var/cache", "can be made again at any time"),
    ("/.snapshots", "copies of what was, which snapper makes at every change"),
    ("/var/lib/apt/lists", "index files, fetched again by every update"),
    ("/lost+found", "belongs to the file system"),
];
