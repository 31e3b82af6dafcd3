//! Who knocks at the enrolment door without being an agent: a client that believes anybody and says what a test wants, and servers that
//! would like to be the door.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use patchlab::enrol::identity::Identity;
use patchlab_protocol::{
    Envelope, SigningKey,
    admission::{Admission, Application, Denied, PATH},
    token::EnrolmentToken,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// Believes anybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A TCP connection to the door, from one of loopback's addresses.
pub async fn tcp(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// The same, after the handshake.
pub async fn tls(stream: TcpStream) -> TlsStream<TcpStream> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    let name = ServerName::from(stream.peer_addr().unwrap().ip());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// The request of a host with that key and this token.
pub fn request(token: &EnrolmentToken, key: &SigningKey) -> Vec<u8> {
    let application = Application {
        host: token.host.clone(),
        secret: token.secret.clone(),
        key: key.public(),
        agent: "test".into(),
        updaters: vec![],
    };
    post(&Envelope::sign(application, key).to_bytes())
}

/// A request with that body.
pub fn post(body: &[u8]) -> Vec<u8> {
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: door\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// What the door answers.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn admission(&self) -> Admission {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn denied(&self) -> &'static str {
        serde_json::from_slice::<Denied>(&self.body).unwrap().denied.name()
    }
}

/// Says that, and hears the answer to its end.
pub async fn ask(door: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = tls(TcpStream::connect(door).await.unwrap()).await;
    stream.write_all(request).await.unwrap();
    heard(&mut stream).await
}

pub async fn heard(stream: &mut TlsStream<TcpStream>) -> Answer {
    let mut bytes = Vec::new();
    // One who says too much is hung up on.
    let _ = stream.read_to_end(&mut bytes).await;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, body: bytes[end + 4..].to_vec() }
}

/// Somebody who listens where a token says, and is not the door.
pub struct Impostor {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

impl Impostor {
    /// With a key of its own, in this file.
    pub async fn with_another_key(file: &Path) -> Self {
        Self::speaking(Identity::open(file).unwrap().config).await
    }

    /// With the door's very certificate, and without its key.
    pub async fn with_the_certificate_of(door: SocketAddr, file: &Path) -> Self {
        let stream = tls(TcpStream::connect(door).await.unwrap()).await;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        SigningKey::generate().unwrap().write_new(file).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from_pem_file(file).unwrap());
        let certified = CertifiedKey::new(vec![certificate], ring::sign::any_supported_type(&key).unwrap());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        Self::speaking(Arc::new(config)).await
    }

    async fn speaking(config: Arc<ServerConfig>) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), config }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// What the first who comes says to it.
    pub async fn hears(self) -> Vec<u8> {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut bytes = vec![0; 64 * 1024];
        match TlsAcceptor::from(self.config).accept(stream).await {
            Ok(mut stream) => {
                let length = stream.read(&mut bytes).await.unwrap_or(0);
                bytes.truncate(length);
                bytes
            }
            Err(_) => Vec::new(),
        }
    }
}

/// A ClientHello of TLS 1.2 (RFC 5246, 7.4.1.2) as clients made it that know no newer version: without `supported_versions`.
pub fn hello_of_tls_1_2() -> Vec<u8> {
    let suites = [0xc0, 0x2b, 0xc0, 0x2f, 0xcc, 0xa9];
    let extensions = [
        // supported_groups: x25519
        &[0, 10, 0, 4, 0, 2, 0, 29][..],
        // signature_algorithms: ed25519, ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256
        &[0, 13, 0, 8, 0, 6, 8, 7, 4, 3, 8, 4],
    ]
    .concat();
    let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    // version, random, no session, suites, no compression, extensions
    let body = [&[3, 3][..], &[7; 32], &[0], &two(suites.len()), &suites, &[1, 0], &two(extensions.len()), &extensions]
        .concat();
    let handshake = [&[1, 0][..], &two(body.len()), &body].concat();
    [&[22, 3, 1][..], &two(handshake.len()), &handshake].concat()
}
