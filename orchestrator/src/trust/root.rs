//! The root document: composed and signed offline with the root key, then installed in the data folder. A successor lies
//! beside it, and the chain of them is followed as every host follows it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patchlab_protocol::{
    Audience, Digest, Envelope, Refused, Role, SigningKey,
    document::{Root, RootKey, Scheme},
    envelope::EnvelopeError,
    limits, trust as protocol_trust,
};

use super::key::PublicFile;

/// The root document that is in force here.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    #[error("there is no document at {0}; patchlab root init makes the first root document")]
    Absent(String),
    /// Not readable, or not writable.
    #[error("document {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Not an envelope.
    #[error("document {path}: {source}")]
    NotAnEnvelope {
        /// Its path.
        path: String,
        /// Why.
        source: EnvelopeError,
    },
    /// A successor that does not follow.
    #[error(
        "root document {path} does not follow the one before it: {source}; take it away, or bring the right one back"
    )]
    DoesNotFollow {
        /// Its path.
        path: String,
        /// Why.
        source: Refused,
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

/// Puts an envelope in the place of the one in a file, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn rewrite_envelope(path: &Path, envelope: &Envelope) -> Result<(), RootFileError> {
    use io::Write as _;
    let file = |source| RootFileError::File { path: path.display().to_string(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(file)?;
    let permissions = fs::metadata(path).map_err(file)?.permissions();
    new.write_all(&envelope.to_bytes()).and_then(|()| new.as_file().sync_all()).map_err(file)?;
    fs::set_permissions(new.path(), permissions).map_err(file)?;
    new.persist(path).map(drop).map_err(|error| file(error.error))
}

/// Where a successor of that version lies: beside the root document that hosts pinned first, `root.2.json` and so on.
pub fn successor_path(document: &Path, version: u32) -> PathBuf {
    document.with_extension(format!("{version}.json"))
}

/// A root document of a file, whatever it follows: it must be signed by its own root keys.
///
/// # Errors
/// When it cannot be read, or is not.
pub fn read_one(path: &Path) -> Result<InForce, RootFileError> {
    let envelope = read_envelope(path)?;
    let digest = envelope.digest();
    let root = protocol_trust::pinned_root(&envelope, digest)
        .map_err(|source| RootFileError::Invalid { path: path.display().to_string(), source })?;
    Ok(InForce { envelope, root, digest })
}

/// The roots of a data folder, from the one its first hosts pinned to the one in force; never empty. Each is verified from
/// the one before it, as hosts do.
///
/// # Errors
/// There is none, or one of them does not follow.
pub fn read_all(document: &Path) -> Result<Vec<InForce>, RootFileError> {
    let mut roots = vec![read_one(document)?];
    while let Some(next) = following(document, &roots)? {
        roots.push(next);
    }
    Ok(roots)
}

fn following(document: &Path, roots: &[InForce]) -> Result<Option<InForce>, RootFileError> {
    let Some(current) = roots.last() else { return Ok(None) };
    let path = successor_path(document, current.root.version.saturating_add(1));
    let envelope = match read_envelope(&path) {
        Ok(envelope) => envelope,
        Err(RootFileError::Absent(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let root = protocol_trust::successor(&current.root, &envelope)
        .map_err(|source| RootFileError::DoesNotFollow { path: path.display().to_string(), source })?;
    Ok(Some(InForce { digest: envelope.digest(), envelope, root }))
}

/// The root document in force in a data folder.
///
/// # Errors
/// As [`read_all`].
pub fn read(document: &Path) -> Result<InForce, RootFileError> {
    read_all(document)?.pop().ok_or_else(|| RootFileError::Absent(document.display().to_string()))
}
