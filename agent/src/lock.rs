//! Locks of others who change packages. Who holds one is named, and its end is awaited in the kernel, not asked for again
//! and again.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FlockOperation, fcntl_lock, flock},
    io::Errno,
    process::{Flock, FlockType, Pid, PidfdFlags, fcntl_getlk, getpid, pidfd_open},
};

use crate::process;

/// How a program keeps others away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// flock(2).
    Whole,
    /// POSIX record lock, fcntl(2).
    Record,
    /// The file holds the id of the process, as decimal digits: dnf's way. One of a process that ended holds nobody.
    Pid,
}

/// Who holds a record lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: i32,
    /// The program's name; empty when it cannot be told.
    pub program: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = if self.program.is_empty() { "a program" } else { &self.program };
        write!(f, "{program} (process {})", self.pid)
    }
}

/// Opens a lock's file as its owners do; `None` when there is none, and so nobody holds it.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who holds the record lock on a file; takes nothing.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn holder(file: &File) -> io::Result<Option<Holder>> {
    let held = fcntl_getlk(file, &Flock::from(FlockType::WriteLock))?;
    Ok(held.map(|held| {
        let pid = held.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
        Holder { pid, program }
    }))
}

/// Takes a lock if it is free.
///
/// # Errors
/// [`Errno::WOULDBLOCK`] or [`Errno::ACCESS`] when somebody else holds it.
pub fn try_take(file: &File, kind: Kind) -> Result<(), Errno> {
    match kind {
        Kind::Whole => flock(file, FlockOperation::NonBlockingLockExclusive),
        Kind::Record => fcntl_lock(file, FlockOperation::NonBlockingLockExclusive),
        Kind::Pid => take_by_pid(file),
    }
}

/// As dnf does it: whoever looks into the file and writes it has it locked for that moment.
fn take_by_pid(file: &File) -> Result<(), Errno> {
    let failed = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    flock(file, FlockOperation::NonBlockingLockExclusive)?;
    let taken = match named(file).map_err(failed)? {
        Some(pid) if pid != getpid() && process::is_alive(pid) => Err(Errno::WOULDBLOCK),
        _ => {
            let own = getpid().as_raw_nonzero().to_string();
            file.set_len(0).and_then(|()| file.write_all_at(own.as_bytes(), 0)).map_err(failed)
        }
    };
    flock(file, FlockOperation::Unlock)?;
    taken
}

/// The process that a file names.
fn named(file: &File) -> io::Result<Option<Pid>> {
    let mut bytes = [0; 20];
    let read = file.read_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(&bytes[..read]);
    Ok(text.trim().parse().ok().and_then(Pid::from_raw))
}

/// Comes back when the process that a file names has ended.
fn await_named(file: &File) -> Result<(), Errno> {
    let failed = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let Some(pid) = named(file).map_err(failed)? else { return Ok(()) };
    let ended = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        opened => opened?,
    };
    poll(&mut [PollFd::new(&ended, PollFlags::IN)], None).map(drop)
}

/// Keeps writers away, as a reader, from when they have let a record lock go until the file that comes back is closed; `None` when
/// the deadline passes before. The thread that waits then ends with the lock.
///
/// # Errors
/// When the lock cannot be waited for.
pub fn share(file: File, deadline: Instant) -> io::Result<Option<File>> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("lock".into()).spawn(move || {
        let taken = loop {
            match fcntl_lock(&file, FlockOperation::LockShared) {
                Err(Errno::INTR) => {}
                taken => break taken,
            }
        };
        // Who no longer waits drops the file, and with it the lock.
        let _ = tell.send(taken.map(|()| file));
    })?;
    match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(taken) => Ok(Some(taken?)),
        Err(_) => Ok(None),
    }
}

/// Whether a lock was let go in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// Nobody holds it.
    Free,
    /// Somebody still does.
    Held,
}

/// Waits until nobody holds the record lock on a file any more, until `deadline` at the latest; it is not held then.
///
/// # Errors
/// When the lock cannot be waited for.
pub fn await_freed(path: &Path, deadline: Instant) -> io::Result<Freed> {
    let Some(file) = open(path)? else { return Ok(Freed::Free) };
    Ok(share(file, deadline)?.map_or(Freed::Held, |_| Freed::Free))
}

/// Comes back when whoever holds the lock has let it go; it is not held then. Who no longer waits may drop this: a
/// thread of its own sleeps in the kernel, not one of the runtime's, whose end would have to wait for it.
///
/// # Errors
/// When the lock cannot be waited for.
pub async fn freed(file: File, kind: Kind) -> io::Result<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("lock".into()).spawn(move || {
        let taken = loop {
            let taken = match kind {
                Kind::Whole => flock(&file, FlockOperation::LockExclusive),
                Kind::Record => fcntl_lock(&file, FlockOperation::LockExclusive),
                Kind::Pid => await_named(&file),
            };
            if taken != Err(Errno::INTR) {
                break taken;
            }
        };
        // Whoever is told finds it free.
        drop(file);
        let _ = tell.send(taken);
    })?;
    told.await.map_err(io::Error::other)?.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_end_of_a_lock_is_awaited_and_a_wait_that_is_dropped_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daily_lock");
        assert!(open(&path).unwrap().is_none());
        fs::write(&path, "").unwrap();
        let opened = || open(&path).unwrap().unwrap();
        // A record lock of one's own is in nobody's way; that of another process is looked at in the agent's tests.
        assert_eq!(holder(&opened()).unwrap(), None);
        let theirs = opened();
        try_take(&theirs, Kind::Whole).unwrap();
        assert_eq!(try_take(&opened(), Kind::Whole), Err(Errno::WOULDBLOCK));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let wait = async |longest: u64| {
            tokio::time::timeout(Duration::from_millis(longest), freed(opened(), Kind::Whole)).await
        };
        assert!(runtime.block_on(wait(50)).is_err(), "it is held");
        drop(theirs);
        runtime.block_on(wait(20_000)).unwrap().unwrap();
        // The dropped wait came to its end too, or will in a moment.
        runtime.block_on(wait(20_000)).unwrap().unwrap();
    }

    #[test]
    fn a_process_that_a_file_names_holds_it_as_long_as_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpmdb_lock.pid");
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(&path, other.id().to_string()).unwrap();
        let opened = || open(&path).unwrap().unwrap();
        assert_eq!(try_take(&opened(), Kind::Pid), Err(Errno::WOULDBLOCK));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let wait =
            async |longest: u64| tokio::time::timeout(Duration::from_millis(longest), freed(opened(), Kind::Pid)).await;
        assert!(runtime.block_on(wait(50)).is_err(), "it lives");
        other.kill().unwrap();
        other.wait().unwrap();
        runtime.block_on(wait(20_000)).unwrap().unwrap();
        try_take(&opened(), Kind::Pid).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        try_take(&opened(), Kind::Pid).unwrap();
    }
}
