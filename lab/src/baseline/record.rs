//! The record of a baseline: what it is made of.
//!
//! A record outlives the patchlab that wrote it, so it is read forward-compatibly: unknown fields are passed over, a higher
//! [`Record::SCHEMA`] is refused. A baseline is named by the digest of the record's text, which is never written again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchlab_check::{Digest, PackageSystem};
use serde::{Deserialize, Serialize};

use super::{coverage::Coverage, proof::Verified, secrets::Secrets};
use crate::machine::{Hardware, Versions};

/// The folder of a baseline with what apt needs to draft an order ([`crate::apt::AptInputs`]).
pub const APT: &str = "apt";
/// The folder of a baseline with what dnf needs ([`crate::dnf::DnfInputs`]).
pub const RPM: &str = "rpm";

/// The record of a baseline (`baseline.json`). Fields that a later patchlab added are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form; [`Record::SCHEMA`].
    pub schema: u32,
    /// Name, from its recipe.
    pub name: String,
    /// Which of that name, from 1.
    pub number: u32,
    /// The baseline it follows, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// The order that made it of its parent, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<OrderName>,
    /// The recipe, as it was written.
    pub recipe: String,
    /// Digest of all that decides what is built: recipe, overlay, and the builder's own revision.
    pub inputs: Digest,
    /// Operating system.
    #[serde(deserialize_with = "StoredOs::deserialize")]
    pub os: Os,
    /// The machine it was frozen on.
    pub hardware: Hardware,
    /// What it was frozen under.
    pub frozen: Frozen,
    /// Units that are active when it is ready.
    pub ready_units: Vec<String>,
    /// Which hosts it speaks for.
    #[serde(deserialize_with = "StoredRepresents::deserialize")]
    pub represents: Represents,
    /// Its other files, by path below its folder.
    pub files: BTreeMap<String, StoredFile>,
    /// The package files it was installed from; the files are in the artifact store.
    pub pool: Vec<PoolFile>,
    /// Installed packages of a captured system whose files no suite has any more: no order can be rolled back to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpooled: Vec<PackageVersion>,
    /// What it stands for beside its packages; absent for those that an older patchlab froze.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
    /// What was done about secrets; absent for a system that the lab itself installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secrets>,
    /// What was shown of its freeze; absent for those that were frozen before a freeze was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    /// Its digest where it came from, when it was brought from another lab host under another number than it has here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Digest>,
}

impl Record {
    /// The version of this form that this program writes, and the highest that it reads. A field that may be passed over does not
    /// raise it.
    pub const SCHEMA: u32 = 1;

    /// Reads a record's text.
    pub(super) fn read(text: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Form {
            schema: u32,
        }
        let Form { schema } = serde_json::from_slice(text)?;
        if schema > Self::SCHEMA {
            return Err(RecordError::Newer { schema });
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// Its package system. A record of before rpm was known may be of a family that nobody knows: it is dpkg's.
    pub fn package_system(&self) -> PackageSystem {
        self.os.package_system().unwrap_or(PackageSystem::Dpkg)
    }

    /// Whether a file of a baseline is one that drafting an order needs: they lie in a folder named after what reads them.
    pub(super) fn is_for_drafting(file: &str) -> bool {
        [APT, RPM].iter().any(|folder| file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Its full name, e.g. `debian-12-web@1`.
    pub fn full_name(&self) -> String {
        format!("{}@{}", self.name, self.number)
    }
}

/// Why a text is no record.
#[derive(Debug)]
pub(super) enum RecordError {
    /// A form that only a later patchlab knows.
    Newer { schema: u32 },
    /// Not what a record looks like.
    Senseless(String),
}

impl From<serde_json::Error> for RecordError {
    fn from(error: serde_json::Error) -> Self {
        Self::Senseless(error.to_string())
    }
}

/// An operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Os {
    /// Family, e.g. `debian`.
    pub family: String,
    /// Release, e.g. `12`.
    pub release: String,
    /// Architecture, e.g. `x86_64`.
    pub arch: String,
}

impl Os {
    /// The package system of its family, where that is known.
    pub fn package_system(&self) -> Option<PackageSystem> {
        PackageSystem::of_distribution([&*self.family])
    }
}

/// What a template was frozen under. A clone of it needs the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// QEMU and libvirt.
    pub versions: Versions,
    /// The host's processor; matters under kvm.
    pub host_cpu: String,
    /// The guest's kernel.
    pub kernel: String,
    /// The guest's clock just before the manifest was taken: what changed later is not the baseline's.
    pub at: Timestamp,
}

/// Which hosts a baseline speaks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Represents {
    /// Tags that a host must have.
    pub tags: Vec<String>,
    /// Packages that a host must have.
    pub packages: Vec<String>,
}

/// A file of a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Digest of its content.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// A package file that a baseline was installed from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolFile {
    /// Package name.
    pub name: String,
    /// Full version.
    pub version: String,
    /// Architecture, e.g. `amd64`, `all`.
    pub arch: String,
    /// Length in bytes.
    pub size: u64,
    /// Digest of its content.
    pub sha256: Digest,
}

/// An order, as far as the lab knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderName {
    /// Identifier for people, e.g. `PO-2026-0001`.
    pub id: String,
    /// Its digest.
    pub digest: Digest,
}

/// One version of a package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PackageVersion {
    /// Package name.
    pub name: String,
    /// Full version.
    pub version: String,
    /// Architecture, e.g. `amd64`, `all`.
    pub arch: String,
}

/// [`Os`] as a record has it: a recipe refuses unknown keys, a record passes them over.
#[derive(Deserialize)]
#[serde(remote = "Os")]
struct StoredOs {
    family: String,
    release: String,
    arch: String,
}

/// [`Represents`], likewise.
#[derive(Deserialize)]
#[serde(remote = "Represents")]
struct StoredRepresents {
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    packages: Vec<String>,
}

#[cfg(test)]
impl Record {
    /// `web@1`, of nothing.
    pub(super) fn empty() -> Self {
        Self {
            schema: Self::SCHEMA,
            name: "web".into(),
            number: 1,
            parent: None,
            order: None,
            recipe: String::new(),
            inputs: Digest::of("inputs"),
            os: Os { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
            hardware: Hardware {
                memory_mib: 4,
                vcpus: 1,
                accelerator: crate::accelerator::Accelerator::Tcg,
                machine: "q35".into(),
                screen: None,
            },
            frozen: Frozen {
                versions: Versions { qemu: "10.0.2".into(), libvirt: "9.0.0".into() },
                host_cpu: "x".into(),
                kernel: "6.1".into(),
                at: Timestamp::UNIX_EPOCH,
            },
            ready_units: vec![],
            represents: Represents::default(),
            files: BTreeMap::new(),
            pool: vec![],
            unpooled: vec![],
            coverage: None,
            secrets: None,
            verified: None,
            original: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as a later patchlab may write it.
    fn later(schema: u32) -> serde_json::Value {
        let digest = Digest::of("x");
        serde_json::json!({
            "schema": schema, "name": "web", "number": 1, "recipe": "", "inputs": digest, "later": [1],
            "os": { "family": "debian", "release": "12", "arch": "x86_64", "later": true },
            "hardware": { "memory_mib": 512, "vcpus": 2, "accelerator": "tcg", "machine": "q35", "later": 1 },
            "frozen": { "versions": { "qemu": "10.0.2", "libvirt": "9.0.0", "later": "1" }, "host_cpu": "x", "kernel": "6.1",
                        "at": "1970-01-01T00:00:00Z", "later": {} },
            "ready_units": [], "represents": { "tags": ["web"], "packages": [], "later": [] },
            "files": { "ram": { "sha256": digest, "size": 1, "later": 0 } },
            "pool": [{ "name": "a", "version": "1", "arch": "all", "size": 1, "sha256": digest, "later": "" }],
        })
    }

    #[test]
    fn what_a_later_patchlab_added_is_passed_over() {
        let record = Record::read(later(Record::SCHEMA).to_string().as_bytes()).unwrap();
        assert_eq!((record.os.family.as_str(), record.represents.tags), ("debian", vec!["web".to_owned()]));
    }

    #[test]
    fn a_form_of_a_later_patchlab_is_refused_by_its_number() {
        // Whatever else it says: another form may have nothing in common with this one.
        for text in [later(7).to_string(), r#"{"schema":7,"name":{}}"#.to_owned()] {
            assert!(matches!(Record::read(text.as_bytes()), Err(RecordError::Newer { schema: 7 })));
        }
        assert!(matches!(Record::read(b"{}"), Err(RecordError::Senseless(_))));
    }

    #[test]
    fn a_recipe_still_refuses_what_it_does_not_know() {
        assert!(serde_json::from_value::<Os>(later(1)["os"].clone()).is_err());
        assert!(serde_json::from_value::<Represents>(later(1)["represents"].clone()).is_err());
    }
}
