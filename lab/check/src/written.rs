//! Files that people write: TOML into a type, or an error that names file, line, key and the nearest known key.
//!
//! Every reader of such a file (recipes, scenarios, orders, policies) goes through [`read`], so that a slip of the pen gets the
//! same answer everywhere: `images/web.toml:4:1: unknown key "pakages": did you mean "packages"?`. The types need nothing
//! but `#[serde(deny_unknown_fields)]`; errors of their own (`serde::de::Error::custom`) keep file, line and key.

mod parameters;
mod problem;
mod quantity;
mod schema;

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

pub use parameters::{COMBINATIONS, Combination, Findings, Scalar, combinations, parse_all, parse_with};
pub(crate) use quantity::as_text;
pub use quantity::{ByteSize, ParseQuantityError, Span};
pub use schema::{Parameters, schema};

/// Largest file read: 1 MiB. What people write is a thousand times smaller.
pub const FILE_BYTES: u64 = 1024 * 1024;

/// A file that a person wrote could not be taken as it stands.
#[derive(Debug, thiserror::Error)]
pub enum WrittenError {
    /// The file could not be read.
    #[error("{path}: cannot be read: {source}; is it the right file?", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than [`FILE_BYTES`].
    #[error("{path}: larger than {FILE_BYTES} bytes: is it the right file?", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not UTF-8 text.
    #[error("{path}:{line}:{column}: not UTF-8 text", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// The text does not say what it should.
    #[error("{path}:{line}:{column}: {problem}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong, with the key, what was expected, and the nearest known key.
        problem: String,
    },
}

impl WrittenError {
    /// A problem that shows only when the whole file is understood, placed at a key. `key` is dotted, with numbers (from 0) for
    /// elements of arrays, e.g. `step.2.http.url`; where it does not exist, the nearest enclosing one is named.
    pub fn at_key(path: &Path, text: &str, key: &str, problem: impl Into<String>) -> Self {
        let (line, column) = position(text, problem::offset_of(text, key));
        Self::Invalid { path: path.to_owned(), line, column, problem: problem.into() }
    }

    /// The line the problem is on, from 1; `None` when it is about the whole file.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Unreadable { .. } | Self::TooLarge { .. } => None,
            Self::NotText { line, .. } | Self::Invalid { line, .. } => Some(*line),
        }
    }
}

/// Reads a file that a person wrote.
///
/// # Errors
/// The file cannot be read, is larger than [`FILE_BYTES`], is not UTF-8 or TOML, or does not have the shape of `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, WrittenError> {
    parse(&read_text(path)?, path)
}

/// The text of a file that a person wrote, within the limits of [`read`].
///
/// # Errors
/// The file cannot be read, is larger than [`FILE_BYTES`], or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, WrittenError> {
    let unreadable = |source| WrittenError::Unreadable { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(WrittenError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
        let (line, column) = position(&text, good);
        WrittenError::NotText { path: path.to_owned(), line, column }
    })
}

/// Takes `text` for the content of `path`, which is only named in errors.
///
/// # Errors
/// The text is not TOML or does not have the shape of `T`.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, WrittenError> {
    toml::from_str(text).map_err(|error| invalid(text, path, &error))
}

/// The parser's error as one of ours.
fn invalid(text: &str, path: &Path, error: &toml::de::Error) -> WrittenError {
    let (offset, problem) = problem::explain(text, error);
    let (line, column) = position(text, offset);
    WrittenError::Invalid { path: path.to_owned(), line, column, problem }
}

/// Line and column, both from 1, of a byte offset; the column counts characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (line, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
}

#[cfg(test)]
mod tests;
