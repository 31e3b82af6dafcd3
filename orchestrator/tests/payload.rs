//! Payloads over real HTTP: by digest, whole, in parts, and nothing else.

use std::sync::Arc;

use patchlab::payload::{InMemory, router};
use patchlab_lab::ArtifactStore;
use patchlab_protocol::{Audience, Digest, Envelope, SigningKey, document::Root};

#[tokio::test]
async fn documents_and_artifacts_come_by_digest_and_downloads_resume() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = ArtifactStore::open(dir.path().join("artifacts")).unwrap();
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let file = dir.path().join("x.deb");
    std::fs::write(&file, &content).unwrap();
    let (digest, size) = artifacts.put(&file).unwrap();
    let root = Root {
        version: 1,
        expires: jiff::Timestamp::MAX,
        audience: Audience::Lab,
        keys: vec![],
        thresholds: Default::default(),
    };
    let envelope = Envelope::sign(root, &SigningKey::from_seed(&[1; 32]));
    let source = Arc::new(InMemory::new([&envelope], artifacts));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router(source)).await });

    let http = reqwest::Client::new();
    let document = http.get(format!("{base}/documents/{}", envelope.digest())).send().await.unwrap();
    let bytes = document.bytes().await.unwrap();
    assert_eq!(Envelope::from_bytes(&bytes).unwrap(), envelope);

    let url = format!("{base}/artifacts/{digest}");
    let whole = http.get(&url).send().await.unwrap();
    assert_eq!((whole.status().as_u16(), whole.content_length()), (200, Some(size)));
    assert_eq!(Digest::of(whole.bytes().await.unwrap()), digest);

    // Broken off after 100,000 bytes, and taken up there.
    let mut got = content[..100_000].to_vec();
    let rest = http.get(&url).header("range", "bytes=100000-").send().await.unwrap();
    assert_eq!(rest.status(), 206);
    assert_eq!(rest.headers()["content-range"], format!("bytes 100000-{}/{size}", size - 1));
    got.extend_from_slice(&rest.bytes().await.unwrap());
    assert_eq!(Digest::of(&got), digest);

    let other = http.get(&url).header("range", "bytes=5-").header("if-range", "\"another\"").send().await.unwrap();
    assert_eq!(other.status(), 200, "another content is served whole");
    let beyond = http.get(&url).header("range", format!("bytes={size}-")).send().await.unwrap();
    assert_eq!(beyond.status(), 416);
    let head = http.head(&url).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], size.to_string());

    for (path, status) in [
        (format!("documents/{}", Digest::of("none")), 404),
        (format!("artifacts/{}", Digest::of("none")), 404),
        ("artifacts/..%2f..%2fetc%2fpasswd".into(), 400),
        ("artifacts/x".into(), 400),
        ("".into(), 404),
    ] {
        assert_eq!(http.get(format!("{base}/{path}")).send().await.unwrap().status(), status, "{path}");
    }
}
