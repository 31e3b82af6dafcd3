//! Room on a disk: asked for before long work begins, so that it does not fail in its tenth minute; and recognised when it ran
//! out in the middle all the same.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

/// A number of bytes for people: `3.5 GiB`, `61 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes < 1 << 20 => write!(f, "{} KiB", bytes >> 10),
            bytes if bytes < 1 << 30 => write!(f, "{} MiB", bytes >> 20),
            bytes => {
                let tenths = u128::from(bytes) * 10 / (1 << 30);
                write!(f, "{}.{} GiB", tenths / 10, tenths % 10)
            }
        }
    }
}

/// There is not enough room for something that is about to begin. Nothing was begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} needs {needed} free in {folder}, and {free} are: make room there, or choose another folder with --data DIR{}",
    told(held)
)]
pub struct NoRoom {
    /// What is about to begin.
    pub what: String,
    /// Where.
    pub folder: PathBuf,
    /// What it needs.
    pub needed: Bytes,
    /// What there is.
    pub free: Bytes,
    /// What of the lab's own holds how much there, where that is known.
    pub held: Vec<String>,
}

fn told(held: &[String]) -> String {
    if held.is_empty() { String::new() } else { format!("; there, {}", held.join(", ")) }
}

/// What is free for this user on the file system of `folder`, or of its nearest ancestor that exists.
///
/// # Errors
/// The file system does not say.
pub fn free(folder: &Path) -> io::Result<Bytes> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(existing)?;
    Ok(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Demands room for `what` in `folder`. A file system that does not say how much there is gets the benefit of the doubt.
///
/// # Errors
/// There is less.
pub fn require(folder: &Path, needed: Bytes, what: &str) -> Result<(), NoRoom> {
    match free(folder) {
        Ok(free) if free < needed => {
            Err(NoRoom { what: what.to_owned(), folder: folder.to_owned(), needed, free, held: Vec::new() })
        }
        _ => Ok(()),
    }
}

/// Whether the error, or what caused it, is that a disk or a quota is full: by its kind, or by the words of a tool.
pub fn ran_out(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_full) || says_full(&error.to_string()) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Whether the system said that a disk or a quota is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a tool's words mean a full disk: the system's own sentence, or apt's estimate that it will not fit.
pub fn says_full(text: &str) -> bool {
    ["No space left on device", "have enough free space", "Disk quota exceeded"]
        .iter()
        .any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, shown) in
            [(0, "0 KiB"), (61 << 20, "61 MiB"), (7 << 29, "3.5 GiB"), (u64::MAX, "17179869183.9 GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_on_its_parents_disk() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        assert_eq!(require(&deep, Bytes(1), "a test"), Ok(()));
        let error = require(&deep, Bytes(u64::MAX), "a test").unwrap_err().to_string();
        assert!(
            error.starts_with("a test needs 17179869183.9 GiB free in ") && error.contains("--data DIR"),
            "{error}"
        );
    }

    #[test]
    fn a_full_disk_is_known_by_its_kind_and_by_its_words() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(ran_out(&full()) && ran_out(&io::Error::other("write failed: No space left on device")));
        assert!(ran_out(&io::Error::other("You don't have enough free space in /x.")));
        assert!(!ran_out(&io::Error::from(io::ErrorKind::NotFound)));
    }
}
