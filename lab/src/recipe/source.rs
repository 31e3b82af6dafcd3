//! Where a baseline's system comes from: as written, and as what it means.
//!
//! Each kind has keys of its own, some of them beside `source` in the file (`kernel`, `packages`, `overlay`): one that means nothing for
//! the kind is an error, and what comes of the check cannot hold it.

use std::path::{Path, PathBuf};

use patchlab_check::Digest;
use serde::{Deserialize, Serialize};

use super::{Senseless, Wanted, is_name, is_package};
use crate::baseline::SecretsPolicy;

/// Debian's kernel for virtual machines: small, and quick to boot.
pub(super) const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";
/// The longest address of an image.
const URL_BYTES: usize = 2000;

/// Where a baseline's system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum WrittenSource {
    /// Installed from a Debian suite's packages.
    Mmdebstrap {
        /// The suite, e.g. `bookworm`. Never a host: the mirror is the installer's own default.
        suite: String,
        /// Which of the suite's pockets: `main`, `updates`, `security`.
        pockets: Vec<Pocket>,
    },
    /// An image with cloud-init, which is given a NoCloud seed.
    CloudImage {
        /// The image, raw or qcow2, relative to this file. Either this or `url`.
        path: Option<String>,
        /// Where it is fetched from, over http or https. Either this or `path`.
        url: Option<String>,
        /// Its digest.
        sha256: Digest,
        /// What is to become of secrets in it; absent is `refuse`.
        #[serde(default)]
        secrets: SecretsPolicy,
    },
    /// The disk of a system that somebody installed; it has the guest agent.
    Disk {
        /// The image, raw or qcow2, relative to this file.
        path: String,
        /// Its digest.
        sha256: Digest,
        /// What is to become of secrets in it; absent is `refuse`.
        #[serde(default)]
        secrets: SecretsPolicy,
    },
    /// The disk of a machine that libvirt has, and that is off; it has the guest agent.
    Domain {
        /// Where libvirt is, e.g. `qemu:///system` (the default).
        #[serde(default = "system")]
        uri: String,
        /// The machine's name there.
        name: String,
        /// What is to become of secrets in it; absent is `refuse`.
        #[serde(default)]
        secrets: SecretsPolicy,
    },
}

fn system() -> String {
    "qemu:///system".into()
}

/// Keys beside `source` that mean something for some kinds alone.
#[derive(Debug, Clone)]
pub(super) struct Beside {
    pub(super) kernel: Option<String>,
    pub(super) packages: Vec<String>,
    pub(super) overlay: Option<String>,
}

/// Where a baseline's system comes from, with all that is done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Installed from a Debian suite's packages.
    Mmdebstrap(Installation),
    /// An image with cloud-init.
    CloudImage(CloudImage),
    /// The disk of a system that somebody installed. It is taken as it is.
    Disk(Image),
    /// The disk of a machine that another libvirt has. It is taken as it is.
    Domain(Domain),
}

/// An installation from a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The suite, e.g. `bookworm`.
    pub suite: String,
    /// Which of its pockets; at least one.
    pub pockets: Vec<Pocket>,
    /// The package of its kernel.
    pub kernel: String,
    /// Packages beside those that every baseline has.
    pub packages: Vec<Wanted>,
    /// Folder whose files are copied over the root.
    pub overlay: Option<PathBuf>,
}

/// An image with cloud-init, and what is added to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudImage {
    /// The image.
    pub image: Image,
    /// Packages that are installed beside what it has.
    pub packages: Vec<Wanted>,
    /// Folder whose files are copied over the root.
    pub overlay: Option<PathBuf>,
}

/// A machine that another libvirt has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Where that libvirt is.
    pub uri: String,
    /// The machine's name there.
    pub name: String,
    /// What is to become of secrets in it.
    pub secrets: SecretsPolicy,
}

/// A disk image that somebody else made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub place: Place,
    /// Its digest.
    pub sha256: Digest,
    /// What is to become of secrets in it.
    pub secrets: SecretsPolicy,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Path(PathBuf),
    /// To be fetched over http or https.
    Url(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// A part of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pocket {
    /// The release itself.
    Main,
    /// Its stable updates.
    Updates,
    /// Its security updates.
    Security,
}

impl Pocket {
    /// Every one.
    pub(super) const ALL: [Self; 3] = [Self::Main, Self::Updates, Self::Security];

    /// As a recipe has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Updates => "updates",
            Self::Security => "security",
        }
    }

    /// Name of the suite that holds this pocket of `suite`.
    pub fn suite(self, suite: &str) -> String {
        match self {
            Self::Main => suite.to_owned(),
            Self::Updates => format!("{suite}-updates"),
            Self::Security => format!("{suite}-security"),
        }
    }
}

impl Source {
    /// Folder whose files are copied over the root, for kinds that have one.
    pub fn overlay(&self) -> Option<&Path> {
        match self {
            Self::Mmdebstrap(Installation { overlay, .. }) | Self::CloudImage(CloudImage { overlay, .. }) => {
                overlay.as_deref()
            }
            Self::Disk(_) | Self::Domain(_) => None,
        }
    }
}

impl WrittenSource {
    /// What it means, with the keys beside it; `folder` is the recipe's own.
    pub(super) fn check(self, beside: Beside, folder: &Path) -> Result<Source, Senseless> {
        let Beside { kernel, packages, overlay } = beside;
        let overlay = overlay.map(|overlay| folder.join(overlay));
        match self {
            Self::Mmdebstrap { suite, pockets } => {
                let kernel = kernel.unwrap_or_else(|| CLOUD_KERNEL.into());
                check_suite(&suite, &pockets, &kernel)?;
                let packages = check_additions(&packages, overlay.as_deref())?;
                Ok(Source::Mmdebstrap(Installation { suite, pockets, kernel, packages, overlay }))
            }
            Self::CloudImage { path, url, sha256, secrets } => {
                refuse("kernel", kernel.is_some(), "an image has its own kernel: leave this key out")?;
                let packages = check_additions(&packages, overlay.as_deref())?;
                let image = Image { place: place(path, url, folder)?, sha256, secrets };
                Ok(Source::CloudImage(CloudImage { image, packages, overlay }))
            }
            Self::Disk { path, sha256, secrets } => {
                check_as_it_is(kernel.as_deref(), &packages, overlay.as_deref())?;
                Ok(Source::Disk(Image { place: place(Some(path), None, folder)?, sha256, secrets }))
            }
            Self::Domain { uri, name, secrets } => {
                check_as_it_is(kernel.as_deref(), &packages, overlay.as_deref())?;
                let plain = |text: &str| text.len() <= URL_BYTES && text.chars().all(|c| c.is_ascii_graphic());
                let wrong = !uri.contains(':') || !plain(&uri);
                refuse("source.uri", wrong, "expected libvirt's address, e.g. \"qemu:///system\"")?;
                let wrong = name.is_empty() || name.len() > URL_BYTES || name.chars().any(char::is_control);
                refuse("source.name", wrong, "expected the name that libvirt has for the machine")?;
                Ok(Source::Domain(Domain { uri, name, secrets }))
            }
        }
    }
}

/// A disk is taken as it is: nothing is added to it.
fn check_as_it_is(kernel: Option<&str>, packages: &[String], overlay: Option<&Path>) -> Result<(), Senseless> {
    let as_it_is = "a disk is taken as it is: leave this key out";
    refuse("kernel", kernel.is_some(), as_it_is)?;
    refuse("packages", !packages.is_empty(), as_it_is)?;
    refuse("overlay", overlay.is_some(), as_it_is)
}

/// The one place of an image.
fn place(path: Option<String>, url: Option<String>, folder: &Path) -> Result<Place, Senseless> {
    match (path, url) {
        (Some(path), None) => {
            let path = folder.join(path);
            let found = format!("expected an image file, relative to the recipe, found none at {}", path.display());
            refuse("source.path", !path.is_file(), &found)?;
            Ok(Place::Path(path))
        }
        (None, Some(url)) => {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
            let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
            let good = !rest.is_empty() && url.len() <= URL_BYTES && rest.chars().all(plain);
            let host = rest.split('/').next().unwrap_or_default();
            refuse("source.url", !good, "expected an address that begins with \"https://\" or \"http://\"")?;
            refuse(
                "source.url",
                host.contains('@'),
                "an address with credentials would stand in every record of the baseline",
            )?;
            Ok(Place::Url(url))
        }
        (Some(_), Some(_)) => Err(senseless("source.url", "an image has one place: leave out \"path\" or \"url\"")),
        (None, None) => Err(senseless("source", "where is the image? expected \"path\" or \"url\"")),
    }
}

fn check_suite(suite: &str, pockets: &[Pocket], kernel: &str) -> Result<(), Senseless> {
    if !is_name(suite, 64) {
        let expected = "the name of a suite, e.g. \"bookworm\"";
        return Err(senseless("source.suite", &format!("expected {expected}, found {suite:?}")));
    }
    let at_least = "expected at least one of \"main\", \"updates\", \"security\", found none";
    refuse("source.pockets", pockets.is_empty(), at_least)?;
    if !is_package(kernel) || !kernel.starts_with("linux-image-") {
        let expected = "the name of a kernel package, e.g. \"linux-image-amd64\"";
        return Err(senseless("kernel", &format!("expected {expected}, found {kernel:?}")));
    }
    Ok(())
}

fn check_additions(packages: &[String], overlay: Option<&Path>) -> Result<Vec<Wanted>, Senseless> {
    let packages = Wanted::read(packages)?;
    match overlay.filter(|overlay| !overlay.is_dir()) {
        Some(overlay) => {
            let expected = "a folder, relative to the recipe";
            Err(senseless("overlay", &format!("expected {expected}, found no folder at {}", overlay.display())))
        }
        None => Ok(packages),
    }
}

fn senseless(key: &str, problem: &str) -> Senseless {
    Senseless { key: key.to_owned(), problem: problem.to_owned() }
}

fn refuse(key: &str, wrong: bool, problem: &str) -> Result<(), Senseless> {
    if wrong { Err(senseless(key, problem)) } else { Ok(()) }
}
