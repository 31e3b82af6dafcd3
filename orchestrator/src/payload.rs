//! Documents and package files for agents, by digest: `/documents/DIGEST` and `/artifacts/DIGEST`.
//!
//! Everything is verified by the agent (signature, digest), so plain HTTP inside a site is enough and nobody need log in. The
//! same router serves production and, in the lab's worker, the clones of one validation. Range requests make downloads
//! resumable; the digest is the entity tag.

use std::{
    io::{self, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    routing::get,
};
use patchlab_lab::ArtifactStore;
use patchlab_protocol::Digest;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::store::Store;

/// Where payloads come from. Calls may block for a disk read.
pub trait PayloadSource: Send + Sync + 'static {
    /// The envelope of a document.
    fn document(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>>;
    /// The path of a package file.
    fn artifact(&self, digest: &Digest) -> io::Result<Option<PathBuf>>;
}

/// The server's payloads: every document in its store, every artifact.
#[derive(Debug)]
pub struct Stored {
    store: Arc<Store>,
    artifacts: ArtifactStore,
}

impl Stored {
    /// From a store and its artifacts.
    pub fn new(store: Arc<Store>, artifacts: ArtifactStore) -> Self {
        Self { store, artifacts }
    }
}

impl PayloadSource for Stored {
    fn document(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        Ok(self.store.document(digest).map_err(io::Error::other)?.map(|(_, bytes)| bytes))
    }

    fn artifact(&self, digest: &Digest) -> io::Result<Option<PathBuf>> {
        Ok(self.artifacts.has(digest).then(|| self.artifacts.path(digest)))
    }
}

/// A few documents in memory and an artifact store: what a validation in the lab serves.
#[derive(Debug)]
pub struct InMemory {
    documents: Vec<(Digest, Vec<u8>)>,
    artifacts: ArtifactStore,
}

impl InMemory {
    /// From envelopes and artifacts.
    pub fn new<'e>(
        envelopes: impl IntoIterator<Item = &'e patchlab_protocol::Envelope>,
        artifacts: ArtifactStore,
    ) -> Self {
        Self { documents: envelopes.into_iter().map(|e| (e.digest(), e.to_bytes())).collect(), artifacts }
    }
}

impl PayloadSource for InMemory {
    fn document(&self, digest: &Digest) -> io::Result<Option<Vec<u8>>> {
        Ok(self.documents.iter().find(|(name, _)| name == digest).map(|(_, bytes)| bytes.clone()))
    }

    fn artifact(&self, digest: &Digest) -> io::Result<Option<PathBuf>> {
        Ok(self.artifacts.has(digest).then(|| self.artifacts.path(digest)))
    }
}

/// The router of both paths.
pub fn router(source: Arc<dyn PayloadSource>) -> Router {
    Router::new()
        .route("/documents/{digest}", get(document))
        .route("/artifacts/{digest}", get(artifact))
        .with_state(source)
}

type Source = State<Arc<dyn PayloadSource>>;

async fn document(State(source): Source, Path(name): Path<String>) -> Response<Body> {
    let Ok(digest) = name.parse::<Digest>() else {
        return plain(StatusCode::BAD_REQUEST, "not a digest\n");
    };
    match tokio::task::spawn_blocking(move || source.document(&digest)).await.map_err(io::Error::other).flatten() {
        Ok(Some(bytes)) => {
            let mut response = Response::new(Body::from(bytes));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Ok(None) => plain(StatusCode::NOT_FOUND, "no such document\n"),
        Err(error) => broken(&error),
    }
}

async fn artifact(
    State(source): Source,
    method: Method,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let Ok(digest) = name.parse::<Digest>() else {
        return plain(StatusCode::BAD_REQUEST, "not a digest\n");
    };
    let found = tokio::task::spawn_blocking(move || source.artifact(&digest)).await.map_err(io::Error::other).flatten();
    let path = match found {
        Ok(Some(path)) => path,
        Ok(None) => return plain(StatusCode::NOT_FOUND, "no such artifact\n"),
        Err(error) => return broken(&error),
    };
    match send(path, &digest, &method, &headers).await {
        Ok(response) => response,
        Err(error) => broken(&error),
    }
}

async fn send(path: PathBuf, digest: &Digest, method: &Method, headers: &HeaderMap) -> io::Result<Response<Body>> {
    let mut file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let tag = format!("\"{digest}\"");
    // A range that was begun from another content starts over; content by digest never changes, so this is only for liars.
    let same = headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == tag.as_bytes());
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).filter(|_| same);
    let builder = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, tag)
        .header(header::CONTENT_TYPE, "application/octet-stream");
    let (start, end, status) = match range(asked, size) {
        Range::Whole => (0, size, StatusCode::OK),
        Range::Part { start, end } => (start, end, StatusCode::PARTIAL_CONTENT),
        Range::Unsatisfiable => {
            return builder
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"))
                .body(Body::empty())
                .map_err(io::Error::other);
        }
    };
    let mut builder = builder.status(status).header(header::CONTENT_LENGTH, end - start);
    if status == StatusCode::PARTIAL_CONTENT {
        builder = builder.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
    }
    if *method == Method::HEAD {
        return builder.body(Body::empty()).map_err(io::Error::other);
    }
    file.seek(SeekFrom::Start(start)).await?;
    builder.body(Body::from_stream(ReaderStream::new(file.take(end - start)))).map_err(io::Error::other)
}

/// What a `Range` header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// Everything: no range, or one that is not understood (RFC 9110, 14.2: ignore it).
    Whole,
    /// From `start` up to, not including, `end`.
    Part { start: u64, end: u64 },
    /// Beyond the end.
    Unsatisfiable,
}

/// One range of bytes; several at once are served whole, as the RFC allows.
fn range(asked: Option<&str>, size: u64) -> Range {
    let Some((first, last)) = asked.and_then(|text| text.strip_prefix("bytes=")).and_then(|text| text.split_once('-'))
    else {
        return Range::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), _) if first >= size => Range::Unsatisfiable,
        (Ok(first), Ok(last)) if last >= first => Range::Part { start: first, end: last.saturating_add(1).min(size) },
        (Ok(first), Err(_)) if last.trim().is_empty() => Range::Part { start: first, end: size },
        (Err(_), Ok(0)) if first.trim().is_empty() => Range::Unsatisfiable,
        (Err(_), Ok(tail)) if first.trim().is_empty() && size > 0 => {
            Range::Part { start: size.saturating_sub(tail), end: size }
        }
        _ => Range::Whole,
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

fn broken(error: &io::Error) -> Response<Body> {
    tracing::error!(%error, "payload");
    plain(StatusCode::INTERNAL_SERVER_ERROR, "the server could not read it\n")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, Range::Whole)]
    #[case(Some("bytes=0-"), Range::Part { start: 0, end: 10 })]
    #[case(Some("bytes=4-"), Range::Part { start: 4, end: 10 })]
    #[case(Some("bytes=2-3"), Range::Part { start: 2, end: 4 })]
    #[case(Some("bytes=2-99"), Range::Part { start: 2, end: 10 })]
    #[case(Some("bytes=-3"), Range::Part { start: 7, end: 10 })]
    #[case(Some("bytes=-99"), Range::Part { start: 0, end: 10 })]
    #[case(Some("bytes=10-"), Range::Unsatisfiable)]
    #[case(Some("bytes=-0"), Range::Unsatisfiable)]
    #[case(Some("bytes=5-2"), Range::Whole)]
    #[case(Some("bytes=1-2,4-5"), Range::Whole)]
    #[case(Some("lines=1-2"), Range::Whole)]
    #[case(Some("bytes=99999999999999999999-"), Range::Whole)]
    fn ranges_follow_the_rfc(#[case] asked: Option<&str>, #[case] expected: Range) {
        assert_eq!(range(asked, 10), expected);
    }

    #[test]
    fn an_empty_file_has_no_satisfiable_range() {
        assert_eq!(range(Some("bytes=0-"), 0), Range::Unsatisfiable);
        assert_eq!(range(None, 0), Range::Whole);
    }
}
