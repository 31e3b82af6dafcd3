//! The envelope of every document: DSSE v1 (Dead Simple Signing Envelope, secure-systems-lab) with Ed25519 signatures over
//! an in-toto statement (in-toto attestation framework, statement v1).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::{Digest, KeyId, PublicKey, SigningKey, limits};

/// Payload type of every envelope here.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// `_type` of every statement here.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// A signed document as it is stored and travels (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    payload_type: String,
    payload: Base64,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    keyid: KeyId,
    sig: Base64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// An in-toto statement: what (`subject`) is said to be so (`predicate`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement<P> {
    #[serde(rename = "_type")]
    statement_type: String,
    /// What the statement is about, by digest.
    pub subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    /// What is said.
    pub predicate: P,
}

/// One subject of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Name for people, e.g. `PO-2026-0001`.
    pub name: String,
    /// Its digest.
    pub digest: SubjectDigest,
}

/// The digest set of a subject: SHA-256 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectDigest {
    /// SHA-256.
    pub sha256: Digest,
}

impl Subject {
    /// A subject from a name and a digest.
    pub fn new(name: impl Into<String>, sha256: Digest) -> Self {
        Self { name: name.into(), digest: SubjectDigest { sha256 } }
    }
}

/// The digest by which a document is named, before anyone has signed it.
pub fn digest_of<P: Predicate>(predicate: P) -> Digest {
    Digest::of(payload(predicate))
}

fn payload<P: Predicate>(predicate: P) -> Vec<u8> {
    let statement = Statement {
        statement_type: STATEMENT_TYPE.to_owned(),
        subject: predicate.subjects(),
        predicate_type: P::TYPE.to_owned(),
        predicate,
    };
    // A statement is made of strings, numbers, vectors and maps with string keys: serialisation cannot fail.
    serde_json::to_vec(&statement).unwrap_or_default()
}

/// What a predicate says of itself.
pub trait Predicate: Serialize + DeserializeOwned {
    /// Its `predicateType`.
    const TYPE: &'static str;

    /// What it is about. A function of the predicate, so that equal predicates make equal documents.
    fn subjects(&self) -> Vec<Subject>;

    /// Whether it can mean anything: asked wherever one is read, so that nobody works on what types alone let through.
    ///
    /// # Errors
    /// The sentence for people.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// An envelope or its statement is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Larger than [`limits::DOCUMENT_BYTES`].
    #[error("the document has {bytes} bytes, more than the limit of {limit}", limit = limits::DOCUMENT_BYTES)]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Not an envelope.
    #[error("the document is not a DSSE envelope: {0}")]
    NotAnEnvelope(#[source] serde_json::Error),
    /// Not a statement of the expected type.
    #[error("the document is not a statement of type {expected}: {reason}")]
    WrongStatement {
        /// The expected predicate type.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Envelope {
    /// Reads an envelope from its JSON bytes, within the limits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() as u64 > limits::DOCUMENT_BYTES {
            return Err(EnvelopeError::TooLarge { bytes: bytes.len() as u64 });
        }
        let envelope: Self = serde_json::from_slice(bytes).map_err(EnvelopeError::NotAnEnvelope)?;
        envelope.check()?;
        Ok(envelope)
    }

    /// Whether it is within the limits, where it came inside another document.
    ///
    /// # Errors
    /// It has another payload, or too many signatures.
    pub fn check(&self) -> Result<(), EnvelopeError> {
        if self.payload_type == PAYLOAD_TYPE && self.signatures.len() <= limits::SIGNATURES_PER_ENVELOPE {
            return Ok(());
        }
        let reason = format!("payload type {:?}, {} signatures", self.payload_type, self.signatures.len());
        Err(EnvelopeError::WrongStatement { expected: PAYLOAD_TYPE, reason })
    }

    /// The JSON bytes that travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// An envelope over a statement, signed by `key`.
    pub fn sign<P: Predicate>(predicate: P, key: &SigningKey) -> Self {
        let mut envelope = Self::unsigned(predicate);
        envelope.add_signature(key);
        envelope
    }

    /// An envelope over a statement that nobody has signed yet: a draft that goes from holder to holder.
    pub fn unsigned<P: Predicate>(predicate: P) -> Self {
        Self { payload_type: PAYLOAD_TYPE.to_owned(), payload: Base64(payload(predicate)), signatures: Vec::new() }
    }

    /// Takes over the signatures by `keys` that another envelope over the same statement carries, and that verify.
    pub fn absorb<'k>(&mut self, other: &Self, keys: impl IntoIterator<Item = &'k PublicKey>) {
        if self.digest() != other.digest() {
            return;
        }
        let signers = other.signers(keys);
        for signature in other.signatures.iter().filter(|signature| signers.contains(&signature.keyid)) {
            if self.signatures.contains(signature) {
                continue;
            }
            self.signatures.retain(|known| known.keyid != signature.keyid);
            if self.signatures.len() < limits::SIGNATURES_PER_ENVELOPE {
                self.signatures.push(signature.clone());
            }
        }
    }

    /// Adds a signature by `key`; the digest of the document does not change.
    pub fn add_signature(&mut self, key: &SigningKey) {
        let keyid = key.public().id();
        self.signatures.retain(|signature| signature.keyid != keyid);
        let sig = Base64(key.sign(&self.pre_authentication_encoding()).to_vec());
        self.signatures.push(Signature { keyid, sig });
    }

    /// The document's name: the digest of its payload. Signatures may be added without changing it.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.payload.0)
    }

    /// Those of `keys` whose signature is on the envelope and verifies, each once.
    pub fn signers<'k>(&self, keys: impl IntoIterator<Item = &'k PublicKey>) -> Vec<KeyId> {
        let message = self.pre_authentication_encoding();
        let mut ids: Vec<KeyId> = keys
            .into_iter()
            .filter(|key| {
                let id = key.id();
                self.signatures.iter().any(|s| s.keyid == id && key.verifies(&message, &s.sig.0))
            })
            .map(PublicKey::id)
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Those whose names are on its signatures. Proves nothing: see [`Envelope::signers`].
    pub fn claimed_signers(&self) -> Vec<KeyId> {
        self.signatures.iter().map(|signature| signature.keyid.clone()).collect()
    }

    /// The statement inside. Says nothing about who signed it: see [`crate::authorization`].
    pub fn statement<P: Predicate>(&self) -> Result<Statement<P>, EnvelopeError> {
        let wrong = |reason: String| EnvelopeError::WrongStatement { expected: P::TYPE, reason };
        let kind: Statement<serde_json::Value> =
            serde_json::from_slice(&self.payload.0).map_err(|error| wrong(error.to_string()))?;
        if kind.statement_type != STATEMENT_TYPE || kind.predicate_type != P::TYPE {
            return Err(wrong(format!("it is {:?} of {:?}", kind.statement_type, kind.predicate_type)));
        }
        let statement: Statement<P> =
            serde_json::from_slice(&self.payload.0).map_err(|error| wrong(error.to_string()))?;
        statement.predicate.check().map_err(wrong)?;
        Ok(statement)
    }

    /// DSSE's PAE: `DSSEv1 SP len(type) SP type SP len(body) SP body`.
    fn pre_authentication_encoding(&self) -> Vec<u8> {
        let mut bytes =
            format!("DSSEv1 {} {} {} ", self.payload_type.len(), self.payload_type, self.payload.0.len()).into_bytes();
        bytes.extend_from_slice(&self.payload.0);
        bytes
    }
}
