//! Hosts that lend machines to the lab: which libvirt makes them, on whose disk their files are, and how much of it all the lab may take.
//!
//! Without any, the lab's machines are of libvirt's embedded driver and below the data folder ([`LabHost::here`]). A libvirt that runs by
//! itself (`qemu:///system`) makes machines of the same kind with the same files; where it runs elsewhere, those files are not there, and
//! it is refused.

use std::{
    fmt, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
};

use patchlab_check::Digest;
use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use crate::{
    machine::{self, LabError},
    places::Places,
    room::{self, Bytes},
};

/// The name of the host that the lab has by itself.
const HERE: &str = "here";

/// A host that lends machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabHost {
    /// Its name, for people.
    pub name: String,
    /// Which libvirt.
    pub libvirt: Libvirt,
    /// How many validations it runs at once; as many as this machine has processors unless given.
    pub validations: Option<NonZeroUsize>,
    /// Memory that all its machines together may have, MiB; as much as this machine has free unless given.
    pub memory_mib: Option<u64>,
}

/// The libvirt of a host, as its URI says (<https://libvirt.org/uri.html>).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Libvirt {
    /// `qemu:///embed`, or `qemu:///embed?root=DIR`: the driver in the lab's own workers, whose files are below the data folder, or DIR.
    Embedded {
        /// DIR; a folder that exists.
        root: Option<PathBuf>,
    },
    /// One that runs by itself, e.g. `qemu:///system`.
    Foreign {
        /// Its URI.
        uri: String,
    },
}

/// Which libvirt makes a worker's machines, as the worker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The driver in its own process, with a root folder of its own. No daemon.
    Embedded,
    /// Another libvirt.
    Foreign {
        /// Its URI.
        uri: String,
        /// With what the names of the worker's machines begin there.
        prefix: String,
    },
}

/// What is wrong with a URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is no libvirt: expected {}", expected)]
pub struct UriError {
    uri: String,
    expected: &'static str,
}

/// Why a host lends nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Its folder.
    #[error("its folder {folder}: {reason}", folder = folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// What the file system said.
        reason: io::Error,
    },
    /// libvirt.
    #[error(transparent)]
    Libvirt(#[from] LabError),
}

/// What a host has, as far as it is known before machines are made there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What makes its machines, and in which version.
    pub libvirt: String,
    /// What is free on the disk of its machines' files, bytes.
    pub disk_free: u64,
}

impl FromStr for Libvirt {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        let wrong = |expected| UriError { uri: uri.to_owned(), expected };
        let Some(embedded) = uri.strip_prefix("qemu:///embed") else {
            let is_uri = uri.split_once("://").is_some_and(|(scheme, _)| !scheme.is_empty());
            let is_plain = uri.bytes().all(|byte| byte.is_ascii_graphic());
            return match is_uri && is_plain {
                true => Ok(Self::Foreign { uri: uri.to_owned() }),
                false => Err(wrong("a URI, such as qemu:///system or qemu:///embed?root=/mnt/fast")),
            };
        };
        if embedded.is_empty() {
            return Ok(Self::Embedded { root: None });
        }
        let root = embedded.strip_prefix("?root=").map(Path::new).filter(|root| root.is_absolute());
        let root = root.ok_or_else(|| wrong("qemu:///embed, or qemu:///embed?root=DIR with an absolute path"))?;
        Ok(Self::Embedded { root: Some(root.to_owned()) })
    }
}

impl TryFrom<String> for Libvirt {
    type Error = UriError;

    fn try_from(uri: String) -> Result<Self, UriError> {
        uri.parse()
    }
}

impl From<Libvirt> for String {
    fn from(libvirt: Libvirt) -> Self {
        libvirt.to_string()
    }
}

impl fmt::Display for Libvirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded { root: None } => f.write_str("qemu:///embed"),
            Self::Embedded { root: Some(root) } => write!(f, "qemu:///embed?root={}", root.display()),
            Self::Foreign { uri } => f.write_str(uri),
        }
    }
}

impl Libvirt {
    /// As a worker of this name is told.
    pub(crate) fn driver(&self, worker: &str) -> Driver {
        match self {
            Self::Embedded { .. } => Driver::Embedded,
            Self::Foreign { uri } => Driver::Foreign { uri: uri.clone(), prefix: format!("patchlab-{worker}-") },
        }
    }
}

impl LabHost {
    /// This machine, with libvirt's embedded driver, and below the data folder: what the lab has by itself.
    pub fn here() -> Self {
        Self::at(HERE, Libvirt::Embedded { root: None })
    }

    /// A host that lends as much as it has.
    pub fn at(name: &str, libvirt: Libvirt) -> Self {
        Self { name: name.to_owned(), libvirt, validations: None, memory_mib: None }
    }

    /// The lab's folders for workers of this host: only their own is elsewhere. Below a root there may be several labs' files, so each data
    /// folder has a folder of its own there.
    pub fn places(&self, places: &Places) -> Places {
        match &self.libvirt {
            Libvirt::Embedded { root: Some(root) } => {
                let whose = Digest::of(places.work.as_os_str().as_encoded_bytes());
                let work = root.join(format!("patchlab-work-{}", &whose.short()[..8]));
                Places { work, ..places.clone() }
            }
            Libvirt::Embedded { root: None } | Libvirt::Foreign { .. } => places.clone(),
        }
    }

    /// Whether its libvirt runs by itself and lets everybody wait: it is stopped, or hangs.
    pub fn is_silent(&self) -> bool {
        let Libvirt::Foreign { uri } = &self.libvirt else { return false };
        matches!(machine::look(uri), Err(LabError::Silent { .. }))
    }

    /// Looks whether it is there and can lend anything.
    ///
    /// # Errors
    /// It cannot, and why.
    pub fn look(&self, places: &Places) -> Result<Found, HostError> {
        let work = self.places(places).work;
        let folder = |reason: io::Error| HostError::Folder { folder: work.clone(), reason };
        let libvirt = match &self.libvirt {
            Libvirt::Embedded { root } => {
                if let Some(root) = root.as_ref().filter(|root| !root.is_dir()) {
                    let reason =
                        io::Error::new(io::ErrorKind::NotFound, "no such folder: create it, or mount its disk");
                    return Err(HostError::Folder { folder: root.clone(), reason });
                }
                let qemu = machine::installed_qemu().unwrap_or_else(|| "none".into());
                format!("embedded, QEMU {qemu}")
            }
            Libvirt::Foreign { uri } => {
                let versions = machine::look(uri)?;
                format!("libvirt {}, QEMU {}", versions.libvirt, versions.qemu)
            }
        };
        let existing = work.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| folder(error.into()))?;
        let Bytes(disk_free) = room::free(&work).map_err(folder)?;
        Ok(Found { libvirt, disk_free })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_understood_and_said_again_as_they_were_written() {
        for uri in ["qemu:///embed", "qemu:///embed?root=/mnt/fast", "qemu:///system", "qemu+unix:///system?socket=/s"]
        {
            assert_eq!(uri.parse::<Libvirt>().unwrap().to_string(), uri);
        }
        for (uri, why) in [
            ("qemu:///embed?root=fast", "absolute path"),
            ("qemu:///embedded", "absolute path"),
            ("/mnt/fast", "a URI"),
            ("", "a URI"),
            ("qemu:///sys tem", "a URI"),
        ] {
            let error = uri.parse::<Libvirt>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(uri), "{error}");
        }
    }

    #[test]
    fn two_labs_below_one_root_do_not_share_a_folder() {
        let host = LabHost::at("fast", "qemu:///embed?root=/mnt/fast".parse().unwrap());
        let of = |data: &str| host.places(&Places::of_data(Path::new(data)));
        assert!(of("/a").work.starts_with("/mnt/fast") && of("/a").work != of("/b").work);
        assert_eq!(of("/a").baselines, Path::new("/a/baselines"));
        let here = Places::of_data(Path::new("/a"));
        assert_eq!(LabHost::here().places(&here), here);
    }

    #[test]
    fn a_host_that_is_not_there_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of_data(dir.path());
        let look = |uri: String| LabHost::at("x", uri.parse().unwrap()).look(&places);
        assert!(look("qemu:///embed".into()).unwrap().disk_free > 0);
        let gone = look(format!("qemu:///embed?root={}/gone", dir.path().display())).unwrap_err().to_string();
        assert!(gone.contains("/gone: no such folder"), "{gone}");
        // libvirt's driver for tests: it answers, and its machines are nobody's.
        let test = look("test:///default".into()).unwrap_err().to_string();
        assert!(test.contains("are TEST's, and the lab's are QEMU's"), "{test}");
        let silent = look(format!("qemu+unix:///system?socket={}/none", dir.path().display())).unwrap_err().to_string();
        assert!(silent.contains("cannot open"), "{silent}");
    }
}
