//! The form of `order.toml`.

use std::fmt;

use patchlab_check::{Digest, step::PackageName};
use patchlab_protocol::document::{
    Kind, OnFailure, Origin, ProductionCheck, RebootRule, RollbackClass, RollbackFiles, Severity,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

/// An order as it is written. `order draft` writes the same form with every file, its digest and the versions replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Identifier for people, e.g. `PO-2026-0001`.
    pub id: String,
    /// One line.
    pub title: String,
    /// How bad it is to wait.
    pub severity: Severity,
    /// Routine, emergency or workaround.
    #[serde(default = "routine")]
    pub kind: Kind,
    /// Advisories it answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advisories: Vec<String>,
    /// Digests of orders that must have succeeded on the host before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Digest>,
    /// Digests of orders that this one replaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<Digest>,
    /// Expected class of the way back; absent: found from the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackClass>,
    /// No apply after this moment, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<jiff::Timestamp>,
    /// What a host does by itself when the change or its production checks fail there; absent: nothing.
    #[serde(default, skip_serializing_if = "OnFailure::is_leave")]
    pub on_failure: OnFailure,
    /// When the files that bring the replaced versions back come to a host; `on_failure = "roll-back"` stages them in any
    /// case.
    #[serde(default, skip_serializing_if = "RollbackFiles::is_when_needed")]
    pub rollback_files: RollbackFiles,
    /// That hosts are rebooted after the change, before their checks; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootRule>,
    /// What is to change, one entry a class of hosts.
    pub change: Vec<Change>,
    /// Steps an agent repeats on the host after the change. Written by draft from the scenarios.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub production: Vec<ProductionCheck>,
}

fn routine() -> Kind {
    Kind::Routine
}

/// What is to change on one class of hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The class.
    pub on: On,
    /// Packages to bring to a newer version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrade: Vec<Upgrade>,
    /// Package files given by hand, relative to the order's file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// Scripts, for a change that no package manager makes: instead of packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
    /// Every file to install; written by draft.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file: Vec<File>,
    /// Every version replaced; written by draft.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaces: Vec<Replaces>,
}

/// A class of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct On {
    /// `ID` of os-release(5).
    pub family: String,
    /// `VERSION_ID` of os-release(5).
    pub release: String,
    /// Machine architecture as uname(2) names it.
    #[serde(default = "x86_64")]
    pub arch: String,
}

fn x86_64() -> String {
    "x86_64".into()
}

/// A package to bring to a newer version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// Package name.
    pub name: PackageName,
    /// The version to reach; absent: what draft finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Scripts that apply a change, take it back, and say whether it is there, and files that lie beside them when they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Applies the change.
    pub apply: Shipped,
    /// Takes it back.
    pub rollback: Shipped,
    /// Exits 0 when the change is in place, 10 when it is not, with anything else when it is neither; changes nothing.
    pub verify: Shipped,
    /// What lies beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Shipped>,
}

/// A file that the order ships, under the name that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Shipped {
    /// Where it lies, relative to the order's file: as people write it.
    Path(String),
    /// As `order draft` writes it.
    Drafted(ShippedFile),
}

/// A file that the order ships, as drafted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShippedFile {
    /// Where it lies, relative to the order's file; taken into the artifact store from there when it is not in it. It is shipped under
    /// its own name.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

/// By hand, so that a wrong key of the drafted form is told as everywhere.
impl<'de> Deserialize<'de> for Shipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Shipped;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a table with path, size and sha256")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Shipped, E> {
                Ok(Shipped::Path(path.to_owned()))
            }

            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<Shipped, M::Error> {
                ShippedFile::deserialize(de::value::MapAccessDeserializer::new(map)).map(Shipped::Drafted)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Shipped {
    /// Where it lies.
    pub fn path(&self) -> &str {
        match self {
            Self::Path(path) | Self::Drafted(ShippedFile { path, .. }) => path,
        }
    }
}

impl Script {
    /// Every file of it with its key below the script's table.
    pub fn shipped(&self) -> impl Iterator<Item = (String, &Shipped)> {
        let programs = [("apply", &self.apply), ("rollback", &self.rollback), ("verify", &self.verify)];
        let programs = programs.map(|(key, file)| (key.to_owned(), file));
        let files = self.files.iter().enumerate().map(|(index, file)| (format!("files.{index}"), file));
        programs.into_iter().chain(files)
    }
}

/// A package file to install.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Package name.
    pub name: PackageName,
    /// Full version.
    pub version: String,
    /// Package architecture.
    pub arch: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// Where it came from.
    #[serde(default = "local")]
    pub origin: Origin,
    /// Where the file lies, relative to the order's file; taken into the artifact store from there when it is not in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

fn local() -> Origin {
    Origin::Local
}

/// An installed version that the order expects and replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replaces {
    /// Package name.
    pub name: PackageName,
    /// The version that must be installed before.
    pub version: String,
    /// Package architecture.
    pub arch: String,
    /// The file that brings it back, from the baseline's pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<ReplacedFile>,
}

/// The file that brings a replaced version back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplacedFile {
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// Where it came from.
    pub origin: Origin,
    /// Architecture in the file, where it differs from the installed one's (a package that became `all`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
}

/// The JSON Schema of `order.toml`.
pub fn schema() -> schemars::Schema {
    patchlab_check::written::schema::<Written>(patchlab_check::written::Parameters::None)
}
