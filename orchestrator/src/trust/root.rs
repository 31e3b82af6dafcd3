//! The root document: composed and signed offline with the root key, then installed in the data folder.

use std::{collections::BTreeMap, fs, io, path::Path};

use jiff::Timestamp;
use patchlab_protocol::{
    Audience, Digest, Envelope, Role, SigningKey,
    document::{Root, RootKey, Scheme},
    envelope::EnvelopeError,
    limits, trust as protocol_trust,
};

use super::key::PublicFile;

/// The root document that is in force here.
#[derive(Debug, Clone)]
pub struct InForce {
    /// As signed.
    pub envelope: Envelope,
    /// What it says.
    pub root: Root,
    /// Its digest, which hosts pin.
    pub digest: Digest,
}

/// There is no root document that counts.
#[derive(Debug, thiserror::Error)]
pub enum RootFileError {
    /// No file.
    #[error("no root document at {0}: make one with patchlab root init")]
    Absent(String),
    /// Not readable.
    #[error("root document {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Not an envelope.
    #[error("root document {path}: {source}")]
    NotAnEnvelope {
        /// Its path.
        path: String,
        /// Why.
        source: EnvelopeError,
    },
    /// Not signed by itself.
    #[error("root document {path}: {source}")]
    Invalid {
        /// Its path.
        path: String,
        /// Why.
        source: protocol_trust::RootError,
    },
}

/// A first root document, signed by its root key.
pub fn compose(root_key: &SigningKey, holders: &[(String, PublicFile)], expires: Timestamp) -> Envelope {
    let key = |holder: &str, role, audience, public| RootKey {
        holder: holder.to_owned(),
        roles: vec![role],
        audience,
        scheme: Scheme::Ed25519,
        public,
    };
    let mut keys = vec![key("root", Role::Root, Audience::Production, root_key.public())];
    keys.extend(holders.iter().map(|(holder, file)| key(holder, file.role, file.audience, file.public.clone())));
    let root = Root { version: 1, expires, audience: Audience::Production, keys, thresholds: BTreeMap::new() };
    // A root document speaks of its own keys: its subject is the set of them.
    Envelope::sign(root, root_key)
}

/// Reads an envelope from a file, within the limits.
pub fn read_envelope(path: &Path) -> Result<Envelope, RootFileError> {
    use io::Read as _;
    let name = || path.display().to_string();
    let file = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => RootFileError::Absent(name()),
        _ => RootFileError::File { path: name(), source },
    };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(file)?.take(limits::DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(file)?;
    Envelope::from_bytes(&bytes).map_err(|source| RootFileError::NotAnEnvelope { path: name(), source })
}

/// Reads the root document in force: it must be signed by its own root keys.
pub fn read(path: &Path) -> Result<InForce, RootFileError> {
    let envelope = read_envelope(path)?;
    let digest = envelope.digest();
    let root = protocol_trust::pinned_root(&envelope, digest)
        .map_err(|source| RootFileError::Invalid { path: path.display().to_string(), source })?;
    Ok(InForce { envelope, root, digest })
}
