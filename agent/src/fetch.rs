//! Documents and package files by their digest, over plain HTTP: `URI/documents/DIGEST` and `URI/artifacts/DIGEST`.
//!
//! What comes is believed only by its digest. Only IP literals are taken for hosts, so that no name service decides
//! what a host talks to (and a static binary needs none); redirects and proxies are not followed.

use std::{
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use patchlab_protocol::{Digest, Envelope, document::PackageFile, limits};
use reqwest::{Client, StatusCode, Url, header::RANGE, redirect};
use sha2::{Digest as _, Sha256};

use crate::journal::replace;

/// How long a connection may take to be made, and how long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// How often the rest of a file is asked for again after its transfer broke.
const ATTEMPTS: u32 = 4;

/// Something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URI is none to fetch from.
    #[error("{uri:?} is no place to fetch from: {reason}")]
    Uri {
        /// As it was given.
        uri: String,
        /// What is expected.
        reason: &'static str,
    },
    /// No answer, or a broken one.
    #[error("cannot fetch {url}: {}", reasons(.source))]
    Transfer {
        /// What was fetched.
        url: String,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// Another answer than the content.
    #[error("cannot fetch {url}: the server answered {status}")]
    Status {
        /// What was fetched.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// More than expected.
    #[error("{url} has more than {limit} bytes")]
    TooLarge {
        /// What was fetched.
        url: String,
        /// The limit, bytes.
        limit: u64,
    },
    /// Another content than the digest names.
    #[error("{url} is not what its digest names: {reason}")]
    Altered {
        /// What was fetched.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk said no.
    #[error("cannot keep {path}: {source}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl FetchError {
    /// Whether the server said that it does not have it.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. })
    }
}

/// Whether a fetched package file still has the digest by which it was named when it was verified.
pub fn is_what_its_name_says(path: &Path) -> bool {
    let named = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse::<Digest>().ok());
    named.is_some() && named == Digest::of_file(path).ok().map(|(digest, _)| digest)
}

/// A document that an earlier agent kept; `None` when it is not there, or is another one.
pub fn kept_document(path: &Path, digest: &Digest) -> Option<Envelope> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(limits::DOCUMENT_BYTES + 1).read_to_end(&mut bytes).ok()?;
    Envelope::from_bytes(&bytes).ok().filter(|envelope| envelope.digest() == *digest)
}

/// reqwest hides the reason in the chain of its sources.
fn reasons(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// Where a row's documents and files are.
#[derive(Debug, Clone)]
pub struct Place {
    client: Client,
    base: Url,
}

impl Place {
    /// A place from its URI.
    ///
    /// # Errors
    /// When it is not `http://ADDRESS[:PORT][/PATH]` with an IP address.
    pub fn new(uri: &str) -> Result<Self, FetchError> {
        let bad = |reason| FetchError::Uri { uri: uri.chars().take(255).collect(), reason };
        let mut base: Url = uri.parse().map_err(|_| bad("expected http://ADDRESS[:PORT][/PATH]"))?;
        if base.scheme() != "http" || base.query().is_some() || base.fragment().is_some() || base.username() != "" {
            return Err(bad("expected http://ADDRESS[:PORT][/PATH]"));
        }
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if host.parse::<IpAddr>().is_err() {
            return Err(bad("expected an IP address, host names are not resolved"));
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(SILENCE)
            .read_timeout(SILENCE)
            .build()
            .map_err(|source| FetchError::Transfer { url: uri.to_owned(), source })?;
        Ok(Self { client, base })
    }

    fn url(&self, folder: &str, digest: &Digest) -> String {
        format!("{}{folder}/{digest}", self.base)
    }

    async fn get(&self, url: &str, from: u64) -> Result<reqwest::Response, FetchError> {
        let mut request = self.client.get(url);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = request.send().await.map_err(|source| FetchError::Transfer { url: url.to_owned(), source })?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            status => Err(FetchError::Status { url: url.to_owned(), status }),
        }
    }

    /// A document, whose payload has this digest.
    ///
    /// # Errors
    /// When it cannot be had, is larger than [`limits::DOCUMENT_BYTES`], or is another one.
    pub async fn document(&self, digest: &Digest) -> Result<Envelope, FetchError> {
        let url = self.url("documents", digest);
        let mut response = self.get(&url, 0).await?;
        let mut bytes = Vec::new();
        let chunk = |source| FetchError::Transfer { url: url.clone(), source };
        while let Some(part) = response.chunk().await.map_err(chunk)? {
            bytes.extend_from_slice(&part);
            if bytes.len() as u64 > limits::DOCUMENT_BYTES {
                return Err(FetchError::TooLarge { url, limit: limits::DOCUMENT_BYTES });
            }
        }
        let altered = |reason| FetchError::Altered { url: url.clone(), reason };
        let envelope = Envelope::from_bytes(&bytes).map_err(|error| altered(error.to_string()))?;
        let found = envelope.digest();
        if found != *digest {
            return Err(altered(format!("its digest is {}", found.short())));
        }
        Ok(envelope)
    }

    /// As [`Self::document`]; it is kept in `folder`, and taken from there when it is there.
    ///
    /// # Errors
    /// As [`Self::document`], and when it cannot be kept.
    pub async fn document_into(&self, folder: &Path, digest: &Digest) -> Result<Envelope, FetchError> {
        let path = folder.join(format!("{digest}.json"));
        if let Some(kept) = kept_document(&path, digest) {
            return Ok(kept);
        }
        let envelope = self.document(digest).await?;
        replace(&path, &envelope.to_bytes()).map_err(|source| FetchError::Disk { path, source })?;
        Ok(envelope)
    }

    /// A package file into `folder`, under a name of its own; says where. The bytes are hashed as they are written,
    /// into a file that nobody else can open, so what was verified is what is installed. A broken transfer goes on
    /// where it broke; a file that is there already, whole, is not fetched again.
    ///
    /// # Errors
    /// When it cannot be had, or has another size or digest than `file` says.
    pub async fn package(
        &self,
        file: &PackageFile,
        folder: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<PathBuf, FetchError> {
        let url = self.url("artifacts", &file.sha256);
        if file.size > limits::PAYLOAD_BYTES {
            return Err(FetchError::TooLarge { url, limit: limits::PAYLOAD_BYTES });
        }
        let path = folder.join(format!("{}.deb", file.sha256));
        let disk = |source| FetchError::Disk { path: path.clone(), source };
        if is_what_its_name_says(&path) {
            progress(file.size);
            return Ok(path);
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(error)),
            _ => {}
        }
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(disk)?;
        let mut hash = Sha256::new();
        let mut have = 0;
        for attempt in 1.. {
            let part = self.rest(&url, file.size, &mut have, |bytes, had| {
                hash.update(bytes);
                progress(had);
                out.write_all(bytes).map_err(disk)
            });
            match part.await {
                Err(FetchError::Transfer { source, .. }) if attempt < ATTEMPTS => {
                    tracing::info!(%url, have, error = %reasons(&source), "the transfer broke, going on from there");
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        out.sync_all().map_err(disk)?;
        let found = Digest::from_bytes(&hash.finalize());
        if have != file.size || found != Some(file.sha256) {
            let reason = format!("it has {have} bytes and another digest, expected {} bytes", file.size);
            return Err(FetchError::Altered { url, reason });
        }
        Ok(path)
    }

    /// Whatever comes from byte `have` on, up to `size`.
    async fn rest(
        &self,
        url: &str,
        size: u64,
        have: &mut u64,
        mut take: impl FnMut(&[u8], u64) -> Result<(), FetchError>,
    ) -> Result<(), FetchError> {
        let from = *have;
        let mut response = self.get(url, from).await?;
        // A server that knows no ranges sends all of it again: what is there already is skipped.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { from };
        let broken = |source| FetchError::Transfer { url: url.to_owned(), source };
        while let Some(part) = response.chunk().await.map_err(broken)? {
            let known = skip.min(part.len() as u64);
            skip -= known;
            let new = &part[usize::try_from(known).unwrap_or(part.len())..];
            *have += new.len() as u64;
            if *have > size {
                return Err(FetchError::TooLarge { url: url.to_owned(), limit: size });
            }
            take(new, *have)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_to_an_address_is_a_place() {
        for good in ["http://127.0.0.1:8000", "http://10.0.2.2/site/a", "http://[::1]:80/x/"] {
            assert!(Place::new(good).unwrap().base.path().ends_with('/'), "{good}");
        }
        for bad in
            ["https://127.0.0.1/", "http://example.net/", "file:///etc", "http://a@127.0.0.1/", "http://1.2.3.4/?x"]
        {
            assert!(Place::new(bad).is_err(), "{bad}");
        }
    }
}
