//! Watching a folder for saves, by inotify(7).

use std::{
    fs,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

/// An editor saves in several acts; this long after the last of them a save is over.
const QUIET: Duration = Duration::from_millis(40);
/// Folders that are watched at most: a scenario's and its fixtures' are few.
const FOLDERS: usize = 200;

/// Folders, and those in them, in which saves are waited for.
pub(super) struct Watch {
    roots: Mutex<Vec<PathBuf>>,
    inotify: OwnedFd,
}

impl Watch {
    /// From now on no save is missed.
    pub(super) fn begin(root: &Path) -> Result<Self, Errno> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watch = Self { roots: Mutex::default(), inotify };
        watch.also(&[root.to_owned()])?;
        Ok(watch)
    }

    /// Waits for saves in these too; in those that are watched already it stays as it is.
    pub(super) fn also(&self, roots: &[PathBuf]) -> Result<(), Errno> {
        for root in roots {
            self.add(root)?;
            let mut known = self.known();
            if !known.contains(root) {
                known.push(root.clone());
            }
        }
        self.add_folders();
        Ok(())
    }

    /// A list of paths is whole, whoever panicked with it.
    fn known(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, folder: &Path) -> Result<(), Errno> {
        let saved = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB;
        inotify::add_watch(&self.inotify, folder, saved | WatchFlags::ONLYDIR).map(drop)
    }

    /// Folders that came later too; one that is watched already stays so, one that went again is nobody's loss.
    fn add_folders(&self) {
        let mut folders = self.known().clone();
        let mut seen = 0;
        while let Some(folder) = folders.pop().filter(|_| seen < FOLDERS) {
            seen += 1;
            let _ = self.add(&folder);
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
        }
    }

    /// Waits until something was saved, and the save is over.
    pub(super) fn await_save(&self) -> Result<(), Errno> {
        let mut is_saved = false;
        loop {
            let timeout = is_saved.then_some(QUIET).and_then(|quiet| Timespec::try_from(quiet).ok());
            match poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => {
                    self.add_folders();
                    return Ok(());
                }
                Ok(_) => is_saved |= self.read()?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether what happened until now is a save.
    fn read(&self) -> Result<bool, Errno> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut is_saved = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
                    is_saved |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                        || name.is_some_and(|name| !is_editors_own(&name));
                }
                Err(Errno::AGAIN) => return Ok(is_saved),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a file is one that editors put beside what they edit: swap files, backups, vim's trial file.
fn is_editors_own(name: &str) -> bool {
    name.starts_with('.') || name.starts_with('#') || name.ends_with('~') || name == "4913"
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use super::*;

    #[test]
    fn every_way_of_saving_is_seen_and_an_editors_own_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("smoke");
        fs::create_dir_all(root.join("data")).unwrap();
        let watch = Arc::new(Watch::begin(&root).unwrap());
        let shared = Arc::clone(&watch);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            while shared.await_save().is_ok() {
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        let seen = || told.recv_timeout(Duration::from_secs(10)).unwrap();
        fs::write(root.join("scenario.toml"), "1").unwrap();
        seen();
        fs::write(folder.path().join("new"), "2").unwrap();
        fs::rename(folder.path().join("new"), root.join("scenario.toml")).unwrap();
        seen();
        fs::write(root.join("data/page.html"), "3").unwrap();
        seen();
        fs::create_dir(root.join("later")).unwrap();
        seen();
        fs::write(root.join("later/page.html"), "4").unwrap();
        seen();
        // A fixture beside the scenario, which came to be used later.
        let fixture = folder.path().join("fixtures/db");
        fs::create_dir_all(fixture.join("data")).unwrap();
        watch.also(std::slice::from_ref(&fixture)).unwrap();
        fs::write(fixture.join("fixture.toml"), "6").unwrap();
        seen();
        fs::write(fixture.join("data/rows.sql"), "7").unwrap();
        seen();
        fs::write(root.join(".scenario.toml.swp"), "5").unwrap();
        assert!(told.recv_timeout(QUIET * 5).is_err());
        assert!(is_editors_own("scenario.toml~") && is_editors_own("4913") && !is_editors_own("load.sh"));
    }
}
