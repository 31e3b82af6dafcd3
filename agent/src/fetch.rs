//! Documents and package files by their digest, over plain HTTP: `URI/documents/DIGEST` and `URI/artifacts/DIGEST`.
//!
//! What comes is believed only by its digest, so it may come from anywhere: places near the host are asked first
//! ([`Downloads`], [`Sources`]), the one that an order's row names last. Only IP literals are taken for hosts, so that no
//! name service decides what a host talks to (and a static binary needs none); redirects and proxies are not followed.

mod limit;
mod pace;
mod partial;
mod place;
mod sources;

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use patchlab_protocol::{
    Digest, Envelope,
    document::{PackageFile, ShippedFile},
    limits,
};
pub use place::Place;
use reqwest::StatusCode;
pub use sources::{Downloads, Sources};

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
    /// The server says nothing.
    #[error("cannot fetch {url}: the server said nothing for {seconds} s")]
    Silent {
        /// What was fetched.
        url: String,
        /// For how long.
        seconds: u64,
    },
    /// The server drips.
    #[error("cannot fetch {url}: only {bytes} bytes came in {seconds} s")]
    Slow {
        /// What was fetched.
        url: String,
        /// How much came.
        bytes: u64,
        /// In how much time.
        seconds: u64,
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
    /// Nobody has it: the place that the row names neither, whose reason this is.
    #[error("{last}; {} before it, see the agent's log", nearer(*.others))]
    Everywhere {
        /// What became of it at the place that the row names.
        last: Box<FetchError>,
        /// How many nearer places failed before.
        others: usize,
    },
}

fn nearer(others: usize) -> String {
    if others == 1 { "1 nearer source failed".to_owned() } else { format!("{others} nearer sources failed") }
}

impl FetchError {
    /// Whether the server said that it does not have it; of several, the one that the row names.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Everywhere { last, .. } => last.is_absent(),
            Self::Status { status, .. } => matches!(*status, StatusCode::NOT_FOUND | StatusCode::GONE),
            _ => false,
        }
    }

    /// Whether something else came than the digest names; of several, from the one that the row names.
    pub fn is_altered(&self) -> bool {
        match self {
            Self::Everywhere { last, .. } => last.is_altered(),
            Self::Altered { .. } => true,
            _ => false,
        }
    }
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

/// A file that an order names, by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Its digest.
    pub sha256: Digest,
    /// Its size, bytes.
    pub size: u64,
}

impl From<&PackageFile> for Payload {
    fn from(file: &PackageFile) -> Self {
        Self { sha256: file.sha256, size: file.size }
    }
}

impl From<&ShippedFile> for Payload {
    fn from(file: &ShippedFile) -> Self {
        Self { sha256: file.sha256, size: file.size }
    }
}

/// The name under which a file of an order is kept: apt takes for a package file only what is called so.
pub fn file_name(digest: &Digest) -> String {
    format!("{digest}.deb")
}

/// Whether a fetched file still has the digest by which it was named when it was verified.
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
