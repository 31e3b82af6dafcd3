//! What an enrolled host is given: the agent's one configuration file and the files it names.
//!
//! The orchestrator writes it (for a managed host at enrolment, for a lab clone at every validation), the agent reads
//! it. All of a host's identity may lie in one folder, by convention `/etc/patchlab-agent/`:
//!
//! ```text
//! agent.toml   this file, mode 0600: it holds passphrases
//! root.json    the root document, pinned below by its digest
//! host.pem     the host's Ed25519 enrolment key, mode 0600
//! ```
//!
//! Relative paths are relative to the folder of the file that names them.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use patchlab_check::written;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, PackageSystem, Rate, description::Tags, limits};

/// The file's name, by convention.
pub const FILE_NAME: &str = "agent.toml";
/// The root document's file in the same folder.
pub const ROOT_FILE: &str = "root.json";
/// The enrolment key's file in the same folder.
pub const KEY_FILE: &str = "host.pem";
/// Where the agent listens unless told otherwise: 161/udp on every IPv4 address.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 161);

/// Every address of the host's own of the family that it is reached by, at that port.
pub fn everywhere(reached: SocketAddr) -> SocketAddr {
    let ip = match reached.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, reached.port())
}
/// Where the agent keeps boots, ledger, runs and journal unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/patchlab-agent";
/// Shortest passphrase, characters (RFC 3414, 11.2).
pub const PASSPHRASE_CHARACTERS: usize = 8;

/// An enrolled host's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The name the host is enrolled by: activations name it.
    pub host: String,
    /// Address and UDP port to answer SNMP on, IPv4 or IPv6; port 0 takes a free one, which is logged and stands in the
    /// state folder.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Order and run rows, journal, fetched files.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Boots, used permissions, time floor, newer roots and revocations: what must not go back when the host's disk is
    /// reverted to a snapshot, so it belongs on another disk then. Absent: the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger_dir: Option<PathBuf>,
    /// The site's own programs around the package manager's work, in `before.d` and `after.d` below it. Absent: none
    /// are run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<PathBuf>,
    /// SNMP engine id; absent: one is made from random bytes at the first start and kept in the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<EngineId>,
    /// The root document.
    pub root: PinnedRoot,
    /// The host's enrolment key (PKCS#8 PEM, mode 0600): signs results.
    pub host_key: PathBuf,
    /// May read every table.
    pub monitor: SnmpUser,
    /// May read, and write orders and runs. That alone neither installs nor downgrades anything.
    pub deployer: SnmpUser,
    /// May read and change the keys of these users by `usmUserTable` (RFC 3414), its own as well, and nothing of PATCHLAB-MIB. Absent: keys
    /// change by another enrolment alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_administrator: Option<SnmpUser>,
    /// Where informs go; absent: none are sent. Tables are truth, informs are hints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inform: Option<InformSink>,
    /// The package manager.
    #[serde(default, skip_serializing_if = "Packages::is_default")]
    pub packages: Packages,
    /// How documents and package files are fetched.
    #[serde(default, skip_serializing_if = "Fetching::is_default")]
    pub fetch: Fetching,
    /// How new kernels are booted.
    #[serde(default, skip_serializing_if = "Booting::is_default")]
    pub boot: Booting,
    /// Whether orders may change the host by scripts.
    #[serde(default, skip_serializing_if = "Scripts::is_default")]
    pub scripts: Scripts,
    /// Where the host stands and what for.
    #[serde(default, skip_serializing_if = "Tags::is_default")]
    pub tags: Tags,
}

/// The root document and the digest it must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PinnedRoot {
    /// The signed envelope, JSON.
    pub path: PathBuf,
    /// Digest of the document (of its payload, as every document is named).
    pub digest: Digest,
}

/// An SNMPv3 user: authPriv, HMAC-192-SHA-256 and AES-128, nothing else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnmpUser {
    /// User name, 1 to 32 bytes.
    pub name: String,
    /// Authentication passphrase, at least 8 characters.
    pub auth: String,
    /// Privacy passphrase, at least 8 characters.
    pub privacy: String,
}

/// Passphrases stay out of logs.
impl fmt::Debug for SnmpUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnmpUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where informs go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InformSink {
    /// The manager's address and UDP port.
    pub address: SocketAddr,
    /// The manager's engine id: the receiver of an inform is its authority, and the user's keys are localized to it.
    pub engine_id: EngineId,
    /// The user, known to the manager.
    pub user: SnmpUser,
}

/// The package manager's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Packages {
    /// The system to change. Anything but `/` is another system's tree, with its own package database: for tests and
    /// images.
    pub root: PathBuf,
    /// Its package system. Absent: what os-release(5) there says, and otherwise its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<Packaging>,
}

/// What manages a host's packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Packaging {
    /// dpkg, with apt.
    Dpkg,
    /// rpm.
    Rpm,
    /// Nothing that the agent knows: orders change the host by scripts alone.
    None,
}

impl From<Packaging> for Option<PackageSystem> {
    fn from(said: Packaging) -> Self {
        match said {
            Packaging::Dpkg => Some(PackageSystem::Dpkg),
            Packaging::Rpm => Some(PackageSystem::Rpm),
            Packaging::None => None,
        }
    }
}

impl Default for Packages {
    fn default() -> Self {
        Self { root: PathBuf::from("/"), system: None }
    }
}

impl Packages {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How documents and package files are fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fetching {
    /// Places near the host, `http://ADDRESS[:PORT][/PATH]`, that are asked first, in this order; at most [`limits::SOURCES`]. The
    /// place that an order's row names comes after them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Most that is fetched in a second, by everything this agent fetches together. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
}

impl Fetching {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How new kernels are booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Booting {
    /// What becomes of an order that brings a kernel and reboots where the boot loader could not come back from it.
    pub without_fallback: WithoutFallback,
    /// What becomes of an order that reboots the host where something waits for a reboot since before it.
    pub pending_reboot: PendingReboot,
    /// What becomes of an order that brings a kernel, where the host boots what none of the lab's baselines did.
    pub uncovered: Uncovered,
}

impl Booting {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether orders may change the host by scripts. A script does whatever it likes: what the lab proves of it holds for its baselines,
/// and no package manager says beforehand what it is going to do here. So it takes the host's own word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scripts {
    /// Whether they may.
    pub allow: bool,
}

impl Scripts {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of an order that brings a kernel and reboots, on a host that could not come back from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutFallback {
    /// The host refuses it before anything is changed.
    #[default]
    Refuse,
    /// The host reboots all the same, and its result says that there was no way back.
    GoOn,
}

/// What becomes of an order that brings a kernel, on a host whose kernel is of another flavour than on the baselines that it was proven on, or
/// that builds modules for it which none of them had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Uncovered {
    /// The host refuses it before anything is changed: nobody proved it for such a host.
    #[default]
    Refuse,
    /// It goes on, and says so in its log.
    GoOn,
}

/// What becomes of an order that reboots the host, where something else waits for a reboot already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PendingReboot {
    /// The host refuses it before anything is changed: what waits was not in the lab, and would take effect with what was.
    #[default]
    Refuse,
    /// Its reboot takes along what waits.
    TakeAlong,
}

/// An SNMP engine id: 5 to 32 bytes, neither all zero nor all ones (RFC 3411), written as hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EngineId(Vec<u8>);

/// Not an engine id.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an SNMP engine id: expected 10 to 64 hexadecimal digits, neither all 0 nor all f")]
pub struct BadEngineId {
    text: String,
}

impl EngineId {
    /// An engine id from its bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadEngineId> {
        let uniform = bytes.iter().all(|b| *b == 0) || bytes.iter().all(|b| *b == 0xff);
        if (5..=32).contains(&bytes.len()) && !uniform {
            Ok(Self(bytes.to_vec()))
        } else {
            Err(BadEngineId { text: hex::encode(&bytes[..bytes.len().min(40)]) })
        }
    }

    /// A new one under enterprise 32473: RFC 3411 format 5 (octets), 8 random bytes.
    pub fn generate() -> Result<Self, crate::key::KeyError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| crate::key::KeyError::Entropy(error.to_string()))?;
        let enterprise = (0x8000_0000_u32 | 32473).to_be_bytes();
        Ok(Self([&enterprise[..], &[5], &random[..]].concat()))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine:{self}")
    }
}

impl FromStr for EngineId {
    type Err = BadEngineId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadEngineId { text: text.chars().take(80).collect() };
        let bytes = hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|_| bad())?;
        Self::from_bytes(&bytes).map_err(|_| bad())
    }
}

impl schemars::JsonSchema for EngineId {
    fn schema_name() -> Cow<'static, str> {
        "EngineId".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let description = "an SNMP engine id: 10 to 64 hexadecimal digits";
        schemars::json_schema!({ "type": "string", "description": description, "pattern": "^(0x)?([0-9a-fA-F]{2}){5,32}$" })
    }
}

impl Serialize for EngineId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EngineId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn default_listen() -> SocketAddr {
    DEFAULT_LISTEN
}

fn default_state_dir() -> PathBuf {
    PathBuf::from(DEFAULT_STATE_DIR)
}

/// An enrolment says something that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct BadEnrolment {
    /// The key in the file.
    pub key: &'static str,
    /// What is wrong and what is expected.
    pub reason: String,
}

impl Enrolment {
    /// The JSON Schema of [`FILE_NAME`].
    pub fn schema() -> schemars::Schema {
        written::schema::<Self>(written::Parameters::None)
    }

    /// Resolves relative paths against `folder`, the folder the file lies in.
    #[must_use]
    pub fn located_in(mut self, folder: &Path) -> Self {
        let paths = [&mut self.state_dir, &mut self.root.path, &mut self.host_key, &mut self.packages.root];
        for path in paths.into_iter().chain(&mut self.ledger_dir).chain(&mut self.hooks) {
            *path = folder.join(&*path);
        }
        self
    }

    /// The agent's own SNMP users.
    pub fn users(&self) -> impl Iterator<Item = &SnmpUser> {
        [&self.monitor, &self.deployer].into_iter().chain(&self.key_administrator)
    }

    /// Where the ledger is.
    pub fn ledger(&self) -> &Path {
        self.ledger_dir.as_deref().unwrap_or(&self.state_dir)
    }

    /// Checks what types alone do not.
    ///
    /// # Errors
    /// Names the first key whose value cannot be.
    pub fn check(&self) -> Result<(), BadEnrolment> {
        let bad = |key, reason: &str| Err(BadEnrolment { key, reason: reason.to_owned() });
        if !is_host_name(&self.host) {
            return bad("host", "expected 1 to 64 letters, digits, '.', '_' or '-', not with '.' first");
        }
        let sink = self.inform.as_ref().map(|sink| ("inform.user", &sink.user));
        let administrator = self.key_administrator.as_ref().map(|user| ("key_administrator", user));
        let always = [("monitor", &self.monitor), ("deployer", &self.deployer)];
        for (key, user) in always.into_iter().chain(administrator).chain(sink) {
            if user.name.is_empty() || user.name.len() > 32 {
                return bad(key, "a user name has 1 to 32 bytes");
            }
            if user.auth.chars().count().min(user.privacy.chars().count()) < PASSPHRASE_CHARACTERS {
                return bad(key, "a passphrase has at least 8 characters");
            }
        }
        if self.monitor.name == self.deployer.name {
            return bad("deployer", "must be another user than monitor, or its rights would be the monitor's too");
        }
        if administrator.is_some_and(|(_, user)| [&self.monitor.name, &self.deployer.name].contains(&&user.name)) {
            return bad(
                "key_administrator",
                "must be another user than monitor and deployer, or they could change keys",
            );
        }
        if !self.tags.fit() {
            return bad("tags", "a location and a function have at most 64 bytes each, on one line");
        }
        if self.fetch.sources.len() > limits::SOURCES {
            return bad("fetch.sources", "at most 8 places: name those nearest to the host");
        }
        Ok(())
    }
}

/// Whether a name may be a host's: it stands in results, and these are bounded ([`limits::RESULT_BYTES`]); and it names files of the
/// server.
pub fn is_host_name(name: &str) -> bool {
    (1..=limits::HOST_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
