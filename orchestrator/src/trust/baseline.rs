//! The seal on a baseline that goes to another lab host: a keeper's signature over the digest of its record, which accounts for every
//! byte of it.
//!
//! No root document has a say here. Hosts know no baselines; who may bring executable memory into a lab is for whoever runs that lab to
//! say, by naming keys when a baseline is imported.

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Envelope, KeyId, SigningKey,
    envelope::{EnvelopeError, Predicate, Subject},
};
use serde::{Deserialize, Serialize};

use super::key::PublicFile;

/// What a keeper says of a baseline. Subject: its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// Its full name where it comes from.
    pub baseline: String,
    /// Digest of its record: the baseline's own.
    pub record: Digest,
    /// When it was exported.
    pub at: Timestamp,
}

impl Predicate for Seal {
    const TYPE: &'static str = "urn:patchlab:baseline:1";

    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new(self.baseline.clone(), self.record)]
    }
}

/// A baseline from elsewhere is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The seal cannot be read.
    #[error("its seal cannot be read: {0}")]
    Unreadable(EnvelopeError),
    /// Nobody signed it.
    #[error("it is not signed: `patchlab baseline export` signs with a keeper's key")]
    Unsigned,
    /// Nobody who is trusted signed it.
    #[error(
        "it is signed by {}, and {}: if you trust whoever holds that key, name its public half with --trust KEY.pub",
        listed(.signers),
        trusted_listed(.trusted)
    )]
    Unknown {
        /// Those who say that they did.
        signers: Vec<KeyId>,
        /// Those who are trusted.
        trusted: Vec<KeyId>,
    },
    /// The signature is by a trusted key's name, and is not that key's over this.
    #[error("its seal was altered: the signature by {0} does not verify")]
    Forged(KeyId),
    /// The seal is for something else.
    #[error("its record was altered: it has digest {found}, and the seal is over {sealed}")]
    Altered {
        /// What it is over.
        sealed: Digest,
        /// What is there.
        found: Digest,
    },
}

fn listed(keys: &[KeyId]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn trusted_listed(keys: &[KeyId]) -> String {
    match keys {
        [] => "no key is trusted here".into(),
        keys => format!("only {} is trusted here", listed(keys)),
    }
}

/// The seal on a baseline, signed.
pub fn seal(baseline: String, record: Digest, key: &SigningKey, at: Timestamp) -> Vec<u8> {
    Envelope::sign(Seal { baseline, record, at }, key).to_bytes()
}

/// Decides whether a baseline with that seal and that record may come in, and says who vouches for it. Pure.
///
/// # Errors
/// It is unsigned, signed by nobody who is trusted, or was altered.
pub fn admit(seal: &[u8], record: Digest, trusted: &[PublicFile]) -> Result<KeyId, SealError> {
    let envelope = Envelope::from_bytes(seal).map_err(SealError::Unreadable)?;
    let signers = envelope.claimed_signers();
    if signers.is_empty() {
        return Err(SealError::Unsigned);
    }
    let keys = || trusted.iter().map(|file| &file.public);
    let Some(signer) = envelope.signers(keys()).into_iter().next() else {
        let trusted: Vec<KeyId> = keys().map(|key| key.id()).collect();
        return Err(match signers.iter().find(|signer| trusted.contains(signer)) {
            Some(forged) => SealError::Forged(forged.clone()),
            None => SealError::Unknown { signers, trusted },
        });
    };
    let said = envelope.statement::<Seal>().map_err(SealError::Unreadable)?.predicate;
    match said.record == record {
        true => Ok(signer),
        false => Err(SealError::Altered { sealed: said.record, found: record }),
    }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{Audience, Role};

    use super::*;

    fn public(key: &SigningKey) -> PublicFile {
        PublicFile { role: Role::Keeper, audience: Audience::Production, public: key.public() }
    }

    #[test]
    fn a_baseline_comes_in_by_a_trusted_keepers_seal_over_its_very_record() {
        let (keeper, other) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let record = Digest::of("record");
        let sealed = seal("web@1".into(), record, &keeper, Timestamp::UNIX_EPOCH);
        let judged = |seal: &[u8], record, trusted: &[PublicFile]| admit(seal, record, trusted);
        assert_eq!(judged(&sealed, record, &[public(&other), public(&keeper)]).unwrap(), keeper.public().id());
        assert!(matches!(judged(&sealed, record, &[public(&other)]), Err(SealError::Unknown { .. })));
        assert!(matches!(judged(&sealed, record, &[]), Err(SealError::Unknown { .. })));
        assert!(matches!(judged(&sealed, Digest::of("x"), &[public(&keeper)]), Err(SealError::Altered { .. })));
        assert!(matches!(judged(b"{}", record, &[public(&keeper)]), Err(SealError::Unreadable(_))));

        let mut json: serde_json::Value = serde_json::from_slice(&sealed).unwrap();
        let forged = seal("web@1".into(), Digest::of("evil"), &other, Timestamp::UNIX_EPOCH);
        let forged: serde_json::Value = serde_json::from_slice(&forged).unwrap();
        json["payload"] = forged["payload"].clone();
        let bytes = serde_json::to_vec(&json).unwrap();
        assert!(matches!(judged(&bytes, Digest::of("evil"), &[public(&keeper)]), Err(SealError::Forged(_))));
        json["signatures"] = serde_json::json!([]);
        let bytes = serde_json::to_vec(&json).unwrap();
        assert!(matches!(judged(&bytes, Digest::of("evil"), &[public(&keeper)]), Err(SealError::Unsigned)));
    }

    #[test]
    fn another_document_by_the_same_key_is_no_seal() {
        use patchlab_protocol::document::Approval;
        let keeper = SigningKey::from_seed(&[1; 32]);
        let approval = Approval {
            approver: "a".into(),
            order: Digest::of("record"),
            release: Digest::of("record"),
            hosts_at_most: 1,
            at: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        };
        let bytes = Envelope::sign(approval, &keeper).to_bytes();
        assert!(matches!(admit(&bytes, Digest::of("record"), &[public(&keeper)]), Err(SealError::Unreadable(_))));
    }
}
