//! The agent's configuration as it runs: the enrolment file read, and what it names opened and checked.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use patchlab_check::written::{self, WrittenError};
use patchlab_protocol::{
    Envelope, SigningKey,
    document::Root,
    enrolment::Enrolment,
    envelope::EnvelopeError,
    key::KeyError,
    limits,
    trust::{RootError, pinned_root},
};

use crate::fetch::Downloads;

/// The agent is not configured so that it could run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file with secrets can be read by others.
    #[error("{path} holds passphrases and can be read by others (mode {mode:o}): run chmod 600 on it and change them")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not an enrolment file, or a value in it cannot be.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// The root document is no envelope.
    #[error("root document {path}: {source}")]
    Envelope {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: EnvelopeError,
    },
    /// The root document is not the pinned one, or not valid.
    #[error("root document {path}: {source}; enrol the host again")]
    Root {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: RootError,
    },
    /// The host key cannot be used.
    #[error("host key: {0}")]
    Key(#[from] KeyError),
}

/// Everything the agent was given, read and checked.
#[derive(Debug)]
pub struct Configuration {
    /// What the file says.
    pub enrolment: Enrolment,
    /// The pinned root.
    pub root: Root,
    /// The host's enrolment key.
    pub key: SigningKey,
}

/// Reads an enrolment file that only its owner may read; its relative paths are made absolute.
///
/// # Errors
/// When it cannot be read, can be read by others, or says something that cannot be.
pub fn enrolment(path: &Path) -> Result<Enrolment, ConfigurationError> {
    let file = |source| ConfigurationError::File { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigurationError::Exposed { path: path.to_owned(), mode });
    }
    let text = written::read_text(path)?;
    let enrolment: Enrolment = written::parse(&text, path)?;
    enrolment
        .check()
        .map_err(|bad| WrittenError::at_key(path, &text, bad.key, format!("key {:?}: {}", bad.key, bad.reason)))?;
    Downloads::new(&enrolment.fetch, enrolment.state_dir.join("parts")).map_err(|bad| {
        let key = "fetch.sources";
        WrittenError::at_key(path, &text, key, format!("key {key:?}: {bad}; correct it, or take it out"))
    })?;
    let absolute = path.canonicalize().map_err(file)?;
    Ok(enrolment.located_in(absolute.parent().unwrap_or(Path::new("/"))))
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigurationError> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limits::DOCUMENT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigurationError::File { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Reads an enrolment file and all that it names.
///
/// # Errors
/// As [`enrolment`], and when the root document is not the pinned one or the host key cannot be used.
pub fn read_all(path: &Path) -> Result<Configuration, ConfigurationError> {
    let enrolment = enrolment(path)?;
    let place = &enrolment.root.path;
    let envelope = Envelope::from_bytes(&read(place)?)
        .map_err(|source| ConfigurationError::Envelope { path: place.clone(), source })?;
    let root = pinned_root(&envelope, enrolment.root.digest)
        .map_err(|source| ConfigurationError::Root { path: place.clone(), source })?;
    let key = SigningKey::read(&enrolment.host_key)?;
    Ok(Configuration { root, key, enrolment })
}
