//! Who the enrolment door is: a key of its own, made once, which hosts know by the digest that their token says. The certificate around it
//! is made anew at every start and means nothing.

use std::{path::Path, sync::Arc};

use patchlab_protocol::{Digest, SigningKey, key::KeyError};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _},
    version::TLS13,
};

use crate::place::{PlaceError, private_folder};

/// The name in the certificate, which nobody looks at.
const NAME: &str = "patchlab-enrolment";

/// The door's key and how it speaks.
#[derive(Debug, Clone)]
pub struct Identity {
    /// SHA-256 of the key's SubjectPublicKeyInfo (DER).
    pub pin: Digest,
    /// TLS 1.3 with that key.
    pub config: Arc<ServerConfig>,
}

/// The door has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The folder of keys.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The key.
    #[error(
        "enrolment key: {0}; tokens that are about are of use with this very key alone: restore it, or remove the file and \
         make new tokens"
    )]
    Key(#[from] KeyError),
    /// The certificate.
    #[error("enrolment certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS.
    #[error("enrolment, TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Identity {
    /// From the key's file, which is made when absent, mode 0600.
    ///
    /// # Errors
    /// When the key cannot be made, read or used.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        private_folder(path.parent().unwrap_or(Path::new(".")))?;
        if !path.exists() {
            SigningKey::generate()?.write_new(path)?;
        }
        let pem = SigningKey::read(path)?.to_pem()?;
        let not_a_key = |reason: String| KeyError::NotAKey { path: path.display().to_string(), reason };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| not_a_key(error.to_string()))?;
        let key = KeyPair::try_from(&der)?;
        let certificate = CertificateParams::new(vec![NAME.to_owned()])?.self_signed(&key)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], der.into())?;
        // A host comes once.
        config.send_tls13_tickets = 0;
        Ok(Self { pin: Digest::of(key.subject_public_key_info()), config: Arc::new(config) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410, 4).
    const ED25519: &str = "302a300506032b6570032100";

    #[test]
    fn the_pin_is_of_the_key_alone_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/enrolment.pem");
        let (first, second) = (Identity::open(&path).unwrap(), Identity::open(&path).unwrap());
        assert_eq!(first.pin, second.pin);
        let key = SigningKey::read(&path).unwrap().public();
        assert_eq!(first.pin, Digest::of(hex::decode(format!("{ED25519}{key}")).unwrap()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
        assert_ne!(Identity::open(&path).unwrap().pin, first.pin);
    }
}
