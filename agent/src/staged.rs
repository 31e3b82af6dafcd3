//! Ways back that were staged: the files that bring replaced versions back, and the order that names them, on the host
//! before the change is made. A rollback then needs nothing from the network.
//!
//! ```text
//! STATE/staged/ORDER/ORDER.json     the order document
//! STATE/staged/ORDER/FILE.deb       files by their digests
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use patchlab_protocol::{Digest, Envelope, limits};

use crate::fetch::{file_name, is_what_its_name_says};

/// Most orders whose way back is kept; the oldest make room that no run under way needs.
pub const ORDERS: usize = 8;
/// Most bytes that are kept: 4 GiB.
pub const BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// A way back cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StagedError {
    /// It is larger than all that may be kept.
    #[error(
        "the way back has {bytes} bytes, more than the {BYTES} that are kept: the order must not ask for it to be staged"
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The others are needed.
    #[error(
        "what is staged for runs under way leaves no room for {bytes} bytes more: start it again when they have ended"
    )]
    Full {
        /// Its size.
        bytes: u64,
    },
    /// The disk said no.
    #[error("staged files {path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The staged ways back of a host.
#[derive(Debug, Clone)]
pub struct Staged {
    folder: PathBuf,
}

/// What others that are there are for, by the digests of their orders.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// For runs under way.
    pub needed: BTreeSet<Digest>,
    /// For the way back of what the host has.
    pub applied: BTreeSet<Digest>,
}

/// What one is kept for; the lesser goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// It was fetched ahead, and can be again.
    Ahead,
    /// It leads back, also with the network down.
    WayBack,
}

/// One that is there.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    purpose: Purpose,
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

/// Those that must go, what was only fetched ahead and then the oldest first, so that one of `bytes` more fits beside those that are needed; `None` when it cannot.
fn surplus(mut kept: Vec<Kept>, needed: &[Kept], bytes: u64) -> Option<Vec<Kept>> {
    kept.sort();
    let mut total: u64 = kept.iter().chain(needed).map(|one| one.bytes).sum();
    let mut count = kept.len() + needed.len();
    let mut gone = Vec::new();
    let mut least_first = kept.into_iter();
    while count >= ORDERS || total.saturating_add(bytes) > BYTES {
        let one = least_first.next()?;
        total -= one.bytes;
        count -= 1;
        gone.push(one);
    }
    Some(gone)
}

/// Whether a folder is that of one of these orders.
fn is_one_of(folder: &Path, orders: &BTreeSet<Digest>) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok()).is_some_and(|order| orders.contains(&order))
}

impl Staged {
    /// Those in `folder`, which need not be there.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where an order's way back is.
    pub fn folder(&self, order: &Digest) -> PathBuf {
        self.folder.join(order.to_string())
    }

    /// Makes a place for the way back of `order`, of `bytes`; others make room that no run needs, those first that lead back from nothing,
    /// and of these the oldest.
    ///
    /// # Errors
    /// When it is too large, those that are needed leave no room, or the disk said no.
    pub fn prepare(&self, order: &Digest, bytes: u64, wanted: &Wanted) -> Result<PathBuf, StagedError> {
        if bytes > BYTES {
            return Err(StagedError::TooLarge { bytes });
        }
        let mine = self.folder(order);
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| StagedError::Disk { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&mine).map_err(disk(&mine))?;
        let others = self.kept(&mine, &wanted.applied).map_err(disk(&self.folder))?;
        let is_needed = |one: &Kept| is_one_of(&one.path, &wanted.needed);
        let (needed, others) = others.into_iter().partition::<Vec<_>, _>(is_needed);
        let Some(surplus) = surplus(others, &needed, bytes) else {
            // What was there before stays; a folder that is empty was made just now.
            let _ = fs::remove_dir(&mine);
            return Err(StagedError::Full { bytes });
        };
        for Kept { path, purpose, .. } in surplus {
            match purpose {
                Purpose::Ahead => tracing::info!(path = %path.display(), "what was fetched ahead makes room"),
                Purpose::WayBack => tracing::warn!(
                    path = %path.display(),
                    "a staged way back makes room for a newer one: from its order, the host comes back only over the network"
                ),
            }
            fs::remove_dir_all(&path).map_err(disk(&path))?;
        }
        Ok(mine)
    }

    fn kept(&self, but: &Path, applied: &BTreeSet<Digest>) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path == but {
                continue;
            }
            let mut bytes = 0;
            for file in fs::read_dir(&path)? {
                bytes += file?.metadata()?.len();
            }
            let purpose = if is_one_of(&path, applied) { Purpose::WayBack } else { Purpose::Ahead };
            kept.push(Kept { purpose, used: fs::metadata(&path)?.modified()?, path, bytes });
        }
        Ok(kept)
    }

    /// The order document, when it was staged.
    pub fn order(&self, digest: &Digest) -> Option<Envelope> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.folder(digest).join(format!("{digest}.json"))).ok()?;
        file.take(limits::DOCUMENT_BYTES + 1).read_to_end(&mut bytes).ok()?;
        Envelope::from_bytes(&bytes).ok().filter(|envelope| envelope.digest() == *digest)
    }

    /// A file of an order's way back, when it was staged and is whole.
    pub fn file(&self, order: &Digest, file: &Digest) -> Option<PathBuf> {
        let path = self.folder(order).join(file_name(file));
        is_what_its_name_says(&path).then_some(path)
    }

    /// Removes what was staged for an order; nothing when there is nothing.
    ///
    /// # Errors
    /// When the disk said no.
    pub fn forget(&self, order: &Digest) -> Result<(), StagedError> {
        let path = self.folder(order);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StagedError::Disk { path, source }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn kept(sizes: &[u64]) -> Vec<Kept> {
        let one = |(number, bytes): (usize, &u64)| Kept {
            purpose: Purpose::WayBack,
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64),
            path: PathBuf::from(number.to_string()),
            bytes: *bytes,
        };
        sizes.iter().enumerate().map(one).collect()
    }

    #[test]
    fn the_oldest_make_room_by_number_and_by_size() {
        let paths = |gone: Vec<Kept>| gone.into_iter().map(|one| one.path).collect::<Vec<_>>();
        let mut ahead = kept(&[1; ORDERS]);
        ahead[5].purpose = Purpose::Ahead;
        assert_eq!(paths(surplus(ahead, &[], 1).unwrap()), [PathBuf::from("5")], "nothing leads back by it");
        let surplus = |sizes: &[u64], bytes| paths(surplus(kept(sizes), &[], bytes).unwrap());
        let gone = |sizes: &[u64], bytes| surplus(sizes, bytes).len();
        assert_eq!(gone(&[1; ORDERS - 1], 1), 0);
        assert_eq!(surplus(&[1; ORDERS], 1), [PathBuf::from("0")]);
        assert_eq!(gone(&[BYTES / 2, BYTES / 2], 0), 0);
        assert_eq!(surplus(&[BYTES / 4, BYTES / 2, BYTES / 4], BYTES / 2), ["0", "1"].map(PathBuf::from));
        assert_eq!(gone(&[1, 1], BYTES), 2);
    }

    #[test]
    fn what_a_run_under_way_needs_makes_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let staged = Staged::new(folder.path().join("staged"));
        let orders: Vec<Digest> = (0..=ORDERS).map(|number| Digest::of(number.to_string())).collect();
        let (last, first) = orders.split_last().unwrap();
        let none = Wanted::default();
        let needed = |orders: &[Digest]| Wanted { needed: orders.iter().copied().collect(), ..Wanted::default() };
        for order in first {
            staged.prepare(order, 1, &none).unwrap();
        }
        assert!(matches!(staged.prepare(last, 1, &needed(first)), Err(StagedError::Full { bytes: 1 })));
        assert!(first.iter().all(|order| staged.folder(order).exists()) && !staged.folder(last).exists());
        staged.prepare(last, 1, &needed(&first[1..])).unwrap();
        assert!(!staged.folder(&first[0]).exists() && first[1..].iter().all(|order| staged.folder(order).exists()));
    }

    #[test]
    fn a_way_back_is_kept_whole_or_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let staged = Staged::new(folder.path().join("staged"));
        let (order, content) = (Digest::of("order"), "a package");
        let file = Digest::of(content);
        assert_eq!(staged.file(&order, &file), None);
        assert!(matches!(staged.prepare(&order, BYTES + 1, &Wanted::default()), Err(StagedError::TooLarge { .. })));
        let place = staged.prepare(&order, 9, &Wanted::default()).unwrap().join(format!("{file}.deb"));
        fs::write(&place, &content[..4]).unwrap();
        assert_eq!(staged.file(&order, &file), None, "a part of it");
        fs::write(&place, content).unwrap();
        assert_eq!(staged.file(&order, &file), Some(place));
        assert!(staged.order(&order).is_none());
        staged.forget(&order).unwrap();
        staged.forget(&order).unwrap();
        assert_eq!(staged.file(&order, &file), None);
    }
}
