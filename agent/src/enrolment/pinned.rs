//! TLS 1.3 with the server of one key, known by its digest. Its key is Ed25519, so of all that TLS offers no more is here than that takes:
//! the rest would be half a megabyte of every host's agent, and a choice that nobody has to make.

use std::sync::Arc;

use patchlab_protocol::{Digest, PublicKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
        ring::{
            cipher_suite::{TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256},
            kx_group::X25519,
        },
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::SigningKey,
    version::TLS13,
};

/// What stands before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410, 4).
const ED25519_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// How a host speaks with the server of that key, and with no other.
pub(super) fn config(pin: Digest) -> Result<ClientConfig, Error> {
    let provider = CryptoProvider {
        cipher_suites: vec![TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![X25519],
        // Signatures are looked at below.
        signature_verification_algorithms: WebPkiSupportedAlgorithms { all: &[], mapping: &[] },
        secure_random: &System,
        key_provider: &System,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin)))
        .with_no_client_auth();
    // There is one connection, to an address.
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The operating system's entropy, and no keys of clients.
#[derive(Debug)]
struct System;

impl SecureRandom for System {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        getrandom::fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for System {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        Err(Error::General("a host shows no certificate".into()))
    }
}

/// Takes the server whose SubjectPublicKeyInfo has this SHA-256, and nobody else. No names and no authorities: the certificate is a
/// wrapping of the key, and only the key counts.
#[derive(Debug)]
struct Pinned(Digest);

impl Pinned {
    /// The key in a certificate, when it is the pinned one. A certificate that cannot be read wraps no key that anybody pinned.
    fn key(&self, certificate: &CertificateDer<'_>) -> Result<PublicKey, Error> {
        let other = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let parsed = ParsedCertificate::try_from(certificate).map_err(|_| other())?;
        let info = parsed.subject_public_key_info();
        if Digest::of(info.as_ref()) != self.0 {
            return Err(other());
        }
        let key = info.as_ref().strip_prefix(&ED25519_PREFIX).map(hex::encode);
        key.and_then(|key| key.parse().ok()).ok_or_else(other)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.key(end_entity).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    /// A certificate can be copied; that the server has the key, its signature over this very handshake says (RFC 8446, 4.4.3).
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme == SignatureScheme::ED25519 && self.key(cert)?.verifies(message, signed.signature()) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
