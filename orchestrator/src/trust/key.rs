//! Key files: a private key in PEM, and beside it a small public description for whoever writes the root document.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_protocol::{Audience, PublicKey, Role, SigningKey, key::KeyError};
use serde::{Deserialize, Serialize};

/// Largest public key file read, bytes.
const PUBLIC_FILE_BYTES: u64 = 64 * 1024;

/// What a `.pub` file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicFile {
    /// What the key is for.
    pub role: Role,
    /// Where it counts.
    pub audience: Audience,
    /// The public half.
    pub public: PublicKey,
}

/// A key file could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The private key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The public description.
    #[error("public key file {path}: {source}", path = path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a public description.
    #[error("{path} is not a public key file as patchlab key generate writes it: {reason}", path = path.display())]
    NotPublic {
        /// Its path.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// It is for something else.
    #[error("{path} was made for role {found:?}, not {expected:?}: a key has one role", path = path.display())]
    WrongRole {
        /// Its path.
        path: PathBuf,
        /// Its role.
        found: Role,
        /// The role asked for.
        expected: Role,
    },
}

/// The path of the public description beside a private key.
pub fn public_path(private: &Path) -> PathBuf {
    let mut name = private.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Makes a key: FILE (0600, never overwritten) and FILE.pub.
pub fn generate(role: Role, audience: Audience, out: &Path) -> Result<PublicFile, KeyFileError> {
    let key = SigningKey::generate()?;
    key.write_new(out)?;
    let public = PublicFile { role, audience, public: key.public() };
    let path = public_path(out);
    // A role, an audience and hexadecimal digits: serialisation cannot fail.
    let mut text = serde_json::to_string(&public).unwrap_or_default();
    text.push('\n');
    fs::write(&path, text).map_err(|source| KeyFileError::File { path, source })?;
    Ok(public)
}

/// The public half of a key, from FILE.pub, or beside a private FILE.
///
/// # Errors
/// When there is none that can be read.
pub fn read_public(given: &Path) -> Result<PublicFile, KeyFileError> {
    use io::Read as _;
    let path = described(given);
    let file = |source| KeyFileError::File { path: path.clone(), source };
    let mut text = String::new();
    fs::File::open(&path).map_err(file)?.take(PUBLIC_FILE_BYTES).read_to_string(&mut text).map_err(file)?;
    serde_json::from_str(&text)
        .map_err(|error| KeyFileError::NotPublic { path: path.clone(), reason: error.to_string() })
}

/// The same, checked to be for `role`.
///
/// # Errors
/// Likewise, or when it is for another role.
pub fn public_half(given: &Path, role: Role) -> Result<PublicFile, KeyFileError> {
    let public = read_public(given)?;
    if public.role == role {
        Ok(public)
    } else {
        Err(KeyFileError::WrongRole { path: described(given), found: public.role, expected: role })
    }
}

/// The file that describes a key: itself, or the one beside a private key.
fn described(given: &Path) -> PathBuf {
    if given.extension().is_some_and(|e| e == "pub") { given.to_owned() } else { public_path(given) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_private_described_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("approver.pem");
        let made = generate(Role::Approver, Audience::Production, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(public_half(&path, Role::Approver).unwrap(), made);
        assert_eq!(SigningKey::read(&path).unwrap().public(), made.public);
        assert!(matches!(public_half(&path, Role::Drafter), Err(KeyFileError::WrongRole { .. })));
        assert!(generate(Role::Approver, Audience::Production, &path).is_err());
    }
}
