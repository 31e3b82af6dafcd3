//! Room on the disk that is kept for what the agent must write when nobody else can write anything more: a patch that fills the disk must
//! not silence the one who can say so and take it back. It is given up piece by piece, and kept anew when there is room again.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

/// Its folder, in the state folder.
const FOLDER: &str = "reserve";
/// How many pieces are kept, and the size of each, bytes: 2 MiB in all. An event is a line of a few KiB; a snapshot is larger.
const PIECES: usize = 16;
const PIECE_BYTES: u64 = 128 * 1024;

/// What is kept in one folder.
#[derive(Debug, Clone)]
pub struct Reserve {
    folder: PathBuf,
}

impl Reserve {
    /// That of the agent's state folder.
    pub fn of(state_dir: &Path) -> Self {
        Self { folder: state_dir.join(FOLDER) }
    }

    /// Keeps what is missing of it. Without it the agent works as well, until the disk is full.
    pub fn keep(&self) {
        if let Err(error) = self.fill() {
            tracing::warn!(%error, path = %self.folder.display(), "no room is kept for what must be written to a full disk");
        }
    }

    fn fill(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        for piece in pieces(&self.folder) {
            if fs::metadata(&piece).is_ok_and(|found| found.len() >= PIECE_BYTES) {
                continue;
            }
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&piece)?;
            // One that is there and holds nothing would be given up for nothing.
            if let Err(error) = hold(&file) {
                fs::remove_file(&piece)?;
                return Err(error);
            }
        }
        Ok(())
    }
}

fn hold(file: &File) -> io::Result<()> {
    fallocate(file, FallocateFlags::empty(), 0, PIECE_BYTES)?;
    file.sync_all()
}

fn pieces(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = folder.to_owned();
    (0..PIECES).map(move |piece| folder.join(piece.to_string()))
}

/// Writes what must be written to a file in the state folder, or in a folder of it; while the disk is full, with a piece less of the reserve each time.
///
/// # Errors
/// What `write` says at last.
pub fn insist<T>(file: &Path, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && give_up(file) => {
                tracing::warn!(path = %file.display(), "the disk is full: a part of the reserve is given up");
            }
            done => return done,
        }
    }
}

/// Gives a piece up; whether there was one.
fn give_up(file: &Path) -> bool {
    let near = file.ancestors().skip(1).take(2).map(|folder| folder.join(FOLDER)).find(|folder| folder.is_dir());
    near.is_some_and(|folder| pieces(&folder).any(|piece| fs::remove_file(piece).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(folder: &Path) -> usize {
        pieces(&folder.join(FOLDER)).filter(|piece| piece.exists()).count()
    }

    #[test]
    fn a_piece_is_given_up_for_each_try_until_it_can_be_written_and_kept_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("apt/apt.conf");
        let reserve = Reserve::of(folder.path());
        reserve.keep();
        assert_eq!(there(folder.path()), PIECES);
        let mut full = 3;
        let wrote = insist(&file, || {
            full -= 1;
            if full > 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok("written") }
        });
        assert_eq!((wrote.unwrap(), there(folder.path())), ("written", PIECES - 2));
        reserve.keep();
        assert_eq!(there(folder.path()), PIECES);
        let refused = insist(&file, || Err::<(), _>(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!((refused.kind(), there(folder.path())), (io::ErrorKind::StorageFull, 0));
        let other = insist(&file, || Err::<(), _>(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::PermissionDenied);
    }
}
