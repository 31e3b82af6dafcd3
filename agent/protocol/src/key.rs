//! Signing keys: Ed25519, named by the digest of their public half.

use std::{fmt, io, path::Path, str::FromStr};

use ed25519_dalek::{Signer as _, Verifier as _, pkcs8::EncodePrivateKey as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

/// The first 16 bytes of the SHA-256 of a public key, as 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key:{}", self.0)
    }
}

/// What a key's signature is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Signs the root document and its successors.
    Root,
    /// Signs orders.
    Drafter,
    /// Signs releases: the lab's proof.
    Releaser,
    /// Signs approvals, a person's yes, and waivers.
    Approver,
    /// Signs activations.
    Activator,
    /// Signs rollback activations alone.
    Operator,
    /// Signs baselines that go to another lab host. No root document lists it: hosts know no baselines.
    Keeper,
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| UnknownRole(text.to_owned()))
    }
}

/// Not a role.
#[derive(Debug, thiserror::Error)]
#[error("unknown role {0:?}: expected root, drafter, releaser, approver, activator, operator or keeper")]
pub struct UnknownRole(String);

/// Where a key's signature counts. A lab's root lists lab keys; a production root lists none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Audience {
    /// Managed hosts.
    Production,
    /// Clones in one validation.
    Lab,
}

/// An Ed25519 public key, serialised as 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// This key's name.
    pub fn id(&self) -> KeyId {
        KeyId(hex::encode(&Digest::of(self.0.as_bytes()).as_bytes()[..16]))
    }

    /// Whether `signature` (64 bytes) is this key's over `message`; strict verification (RFC 8032, no small-order keys).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        ed25519_dalek::Signature::from_slice(signature).is_ok_and(|signature| {
            self.0.verify_strict(message, &signature).is_ok() && self.0.verify(message, &signature).is_ok()
        })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0.as_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| KeyError::NotAPublicKey)?;
        ed25519_dalek::VerifyingKey::from_bytes(&bytes).map(Self).map_err(|_| KeyError::NotAPublicKey)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A private key. Never serialised except to its own file, mode 0600, PKCS#8 PEM (RFC 8410).
pub struct SigningKey(ed25519_dalek::SigningKey);

/// A key could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system gave no random bytes.
    #[error("no entropy from the operating system: {0}")]
    Entropy(String),
    /// The key file could not be read or written.
    #[error("key file {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The key file can be read by others.
    #[error("key file {path} can be read by others (mode {mode:o}): run chmod 600 on it, and consider the key known")]
    Exposed {
        /// Its path.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// The file is not a PKCS#8 PEM Ed25519 key.
    #[error("key file {path} is not an Ed25519 private key in PKCS#8 PEM: {reason}")]
    NotAKey {
        /// Its path.
        path: String,
        /// The parser's words.
        reason: String,
    },
    /// Not 64 hexadecimal digits of a valid point.
    #[error("not an Ed25519 public key: expected 64 hexadecimal digits")]
    NotAPublicKey,
}

impl SigningKey {
    /// A new key from the operating system's entropy.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| KeyError::Entropy(error.to_string()))?;
        Ok(Self(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }

    /// A key from its 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// A 64-byte signature over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// PKCS#8 PEM text of the private key, for the one file it lives in.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0
            .to_pkcs8_pem(ed25519_dalek::pkcs8::spki::der::pem::LineEnding::LF)
            .map(|pem| pem.to_string())
            .map_err(|error| KeyError::NotAKey { path: "(memory)".into(), reason: error.to_string() })
    }

    /// Reads a PEM file that only its owner may read.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        use std::os::unix::fs::PermissionsExt as _;
        let file = |source| KeyError::File { path: path.display().to_string(), source };
        let mode = std::fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.display().to_string(), mode });
        }
        let text = std::fs::read_to_string(path).map_err(file)?;
        ed25519_dalek::pkcs8::DecodePrivateKey::from_pkcs8_pem(&text)
            .map(Self)
            .map_err(|error| KeyError::NotAKey { path: path.display().to_string(), reason: error.to_string() })
    }

    /// Writes a new PEM file, mode 0600; an existing file is an error, never overwritten.
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        let pem = self.to_pem()?;
        let file = |source| KeyError::File { path: path.display().to_string(), source };
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(file)?;
        out.write_all(pem.as_bytes()).and_then(|()| out.sync_all()).map_err(file)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}
