//! The order: what is to change on hosts of one class, down to the digest of every file, and the way back.

use std::fmt;

use patchlab_check::Step;
use serde::{Deserialize, Serialize};

use super::Script;
use crate::{
    Digest, PackageSystem,
    envelope::{Predicate, Subject},
};

/// What is to change on hosts of one class. Names no release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Identifier for people, e.g. `PO-2026-0001`.
    pub id: String,
    /// One line.
    pub title: String,
    /// How bad it is to wait.
    pub severity: Severity,
    /// Routine, emergency or workaround.
    pub kind: Kind,
    /// Advisories it answers, e.g. `CVE-2026-0001`.
    pub advisories: Vec<String>,
    /// The hosts it is for.
    pub class: Class,
    /// Every package file to install, in no particular order: one transaction. Empty exactly when there is a script.
    pub install: Vec<PackageFile>,
    /// Every package version it replaces, with the file that brings it back. Packages in `install` without an entry here are new to
    /// the host; rollback removes them.
    pub replaces: Vec<Replaced>,
    /// Steps an agent repeats on the host after the change.
    pub production: Vec<ProductionCheck>,
    /// Orders that must have succeeded on the host before.
    pub after: Vec<Digest>,
    /// Orders that this one replaces.
    pub supersedes: Vec<Digest>,
    /// How the way back was found to be, or is expected to be.
    pub rollback: RollbackClass,
    /// No apply after this moment; a rollback stays possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<jiff::Timestamp>,
    /// What the host does by itself when the change or its checks fail there.
    #[serde(default, skip_serializing_if = "OnFailure::is_leave")]
    pub on_failure: OnFailure,
    /// When the files that bring the replaced versions back come to the host.
    #[serde(default, skip_serializing_if = "RollbackFiles::is_when_needed")]
    pub rollback_files: RollbackFiles,
    /// Whether the host is rebooted after the change, before its checks; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootRule>,
    /// The change, where no package manager makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Script>,
}

impl Order {
    /// Whether it says one thing: that packages are changed, or that a script is run.
    ///
    /// # Errors
    /// The sentence for people.
    fn says_one_thing(&self) -> Result<(), String> {
        match &self.script {
            None if self.install.is_empty() => Err(format!("order {} changes nothing", self.id)),
            None => Ok(()),
            Some(_) if !self.install.is_empty() || !self.replaces.is_empty() => {
                Err(format!("order {} has packages and a script: it must have one of them", self.id))
            }
            Some(script) => script.check().map_err(|error| format!("the script of order {}: {error}", self.id)),
        }
    }

    /// Whether the way back must be on the host before the change is made: a host that rolls back by itself must not need
    /// anybody for it.
    pub fn stages_way_back(&self) -> bool {
        self.rollback_files == RollbackFiles::Staged || self.on_failure == OnFailure::RollBack
    }
}

impl Predicate for Order {
    const TYPE: &'static str = "urn:patchlab:order:1";

    /// Every file it installs, or that its script is made of.
    fn subjects(&self) -> Vec<Subject> {
        let package =
            |file: &PackageFile| Subject::new(format!("{}_{}_{}", file.name, file.version, file.arch), file.sha256);
        let shipped = self.script.iter().flat_map(Script::shipped);
        let shipped = shipped.map(|file| Subject::new(file.name.as_str(), file.sha256));
        self.install.iter().map(package).chain(shipped).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.says_one_thing()
    }
}

/// A class of hosts: one order, one class, so that what was proven is what is applied.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// `ID` of os-release(5), e.g. `debian`.
    pub family: String,
    /// `VERSION_ID` of os-release(5), e.g. `12`.
    pub release: String,
    /// Machine architecture as uname(2) names it, e.g. `x86_64`.
    pub arch: String,
}

impl Class {
    /// The package system of its distribution; `None` when the distribution is not known.
    pub fn package_system(&self) -> Option<PackageSystem> {
        PackageSystem::of_distribution([&*self.family])
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.family, self.release, self.arch)
    }
}

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackageFile {
    /// Package name.
    pub name: String,
    /// Full version, with epoch and revision.
    pub version: String,
    /// Package architecture as the package manager names it, e.g. `amd64`, `all`.
    pub arch: String,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a package file came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// From a repository whose signature apt or rpm checked.
    VendorSigned,
    /// Packed again from an installed system.
    Repacked,
    /// Given by the person who drafted the order.
    Local,
}

/// One installed package version that the order expects to find and replaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replaced {
    /// Package name.
    pub name: String,
    /// Package architecture.
    pub arch: String,
    /// The version that must be installed before.
    pub version: String,
    /// The file that brings it back, from the baseline's pool; none makes the rollback class impossible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PackageFile>,
}

/// A step from a scenario that an agent repeats on real hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductionCheck {
    /// The scenario it comes from.
    pub scenario: String,
    /// The step.
    pub step: Step,
}

/// How bad it is to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Low.
    Low,
    /// Moderate.
    Moderate,
    /// Important.
    Important,
    /// Critical.
    Critical,
}

/// What sort of order it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The ordinary way.
    Routine,
    /// Ahead of everything else.
    Emergency,
    /// Not a fix, but makes the host safer until there is one.
    Workaround,
}

/// How sure the way back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackClass {
    /// Every replaced package has its file; the lab goes the whole way back before it may ship.
    Proven,
    /// As `proven`, over data written after the patch.
    ProvenAfterWrites,
    /// Only a snapshot of the host itself brings it back.
    SnapshotOnly,
    /// There is no way back.
    Impossible,
}

/// What a host does by itself when the change, or one of its production checks, fails there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Leaves it as it is, and says so: somebody decides.
    #[default]
    Leave,
    /// Brings the replaced versions back, from files that were there before the change was made.
    RollBack,
}

impl OnFailure {
    /// Whether it says no more than an order without it.
    pub fn is_leave(&self) -> bool {
        *self == Self::Leave
    }
}

/// That a host is rebooted after the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RebootRule {
    /// In which case.
    pub when: RebootWhen,
    /// Minutes that logged-in users have from the message to the reboot, at most 1440.
    #[serde(default)]
    #[schemars(range(max = 1440))]
    pub grace_minutes: u16,
}

/// In which case a host is rebooted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RebootWhen {
    /// When the package manager says that the change needs it.
    IfNeeded,
    /// In any case.
    Always,
}

/// When the files that bring the replaced versions back come to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackFiles {
    /// When a rollback is activated.
    #[default]
    WhenNeeded,
    /// Before the change is made: a rollback then needs no files from the network.
    Staged,
}

impl RollbackFiles {
    /// Whether it says no more than an order without it.
    pub fn is_when_needed(&self) -> bool {
        *self == Self::WhenNeeded
    }
}
