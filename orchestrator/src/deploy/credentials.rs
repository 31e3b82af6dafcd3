//! SNMP credentials of a host: one file each, mode 0600, outside the store.

use std::path::Path;

use patchlab_protocol::enrolment::SnmpUser;
use serde::{Deserialize, Serialize};

use crate::place::{PlaceError, write_private};

/// The users that the manager shares with one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Tells the host what to do.
    pub deployer: SnmpUser,
    /// Signs the host's informs.
    pub inform: SnmpUser,
    /// Changes the deployer's keys and its own; `None` of a host that was enrolled before keys could change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_administrator: Option<SnmpUser>,
    /// What the keys become, or have become: a change was begun, and not yet seen to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextKeys>,
}

/// Users with the keys that a change gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextKeys {
    /// The deployer.
    pub deployer: SnmpUser,
    /// The key administrator.
    pub key_administrator: SnmpUser,
}

/// Credentials could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Its content.
    #[error("credentials {path}: {reason}; enrol the host again under a new name")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl Credentials {
    /// After a change of keys was seen to be done: the new ones.
    #[must_use]
    pub fn settled(self) -> Self {
        match self.next {
            Some(next) => Self {
                deployer: next.deployer,
                key_administrator: Some(next.key_administrator),
                next: None,
                inform: self.inform,
            },
            None => self,
        }
    }

    /// Reads a host's credentials.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let bytes = std::fs::read(path).map_err(PlaceError::io("read", path))?;
        serde_json::from_slice(&bytes).map_err(|error| CredentialsError::Unreadable {
            path: path.display().to_string(),
            reason: error.to_string(),
        })
    }

    /// Writes them.
    pub fn write(&self, path: &Path) -> Result<(), CredentialsError> {
        let bytes = serde_json::to_vec(self).map_err(|error| CredentialsError::Unreadable {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(write_private(path, &bytes)?)
    }
}
