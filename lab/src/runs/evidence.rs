//! What is taken out of a worker's folder before it goes: consoles, its log, and what was brought out of its machines; of a long console
//! or log its first and its last bytes.
//!
//! The folder is the worker's, who is not trusted: links are not followed, nothing but plain files is read, and only so much of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use patchlab_check::step::Pattern;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, statat};

use crate::machine::ends;

/// Where a worker puts what it brings out of its machines, in its own folder: plain files, no folders.
pub const OUT: &str = "out";
/// Files that are kept of those brought out.
const OUT_FILES: usize = 200;
/// Bytes of them together: 64 MiB.
const OUT_BYTES: u64 = 64 * 1024 * 1024;

/// Copies them into `home`, which exists. What is not there is left out, and so is what `redact` matches in consoles and log; what was
/// brought out has been looked through by who did.
pub(super) fn take(worker: &Path, home: &Path, redact: &[Pattern]) -> io::Result<()> {
    for name in ["control.console", "patched.console", "worker.log"] {
        take_log(&worker.join(name), &home.join(name), redact)?;
    }
    take_out(worker, &home.join(OUT)).map(drop)
}

fn take_log(from: &Path, to: &Path, redact: &[Pattern]) -> io::Result<()> {
    // A pipe that lies there must not make us wait.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(from) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_link(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    if !found.is_file() || found.len() == 0 {
        return Ok(());
    }
    fs::write(to, redact.iter().fold(ends(&mut file, 0)?, |log, pattern| pattern.redact_bytes(&log).into_owned()))
}

/// Copies what a worker brought out of its machines from its folder into `to`, which is made when there is something. The names of the files.
///
/// # Errors
/// A file cannot be read or written.
pub fn take_out(worker: &Path, to: &Path) -> io::Result<Vec<String>> {
    let from = worker.join(OUT);
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(&from, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let (mut room, mut taken) = (OUT_BYTES, Vec::new());
    for entry in Dir::read_from(&folder)?.flatten().take(OUT_FILES + 2) {
        let name = entry.file_name();
        let Ok(text) = name.to_str() else { continue };
        let is_plain = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| rustix::fs::FileType::from_raw_mode(found.st_mode).is_file());
        if text.starts_with('.') || !is_plain {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            continue;
        }
        fs::create_dir_all(to)?;
        room -= copy(file, room, &to.join(text))?;
        taken.push(text.to_owned());
    }
    Ok(taken)
}

fn copy(from: File, limit: u64, to: &Path) -> io::Result<u64> {
    io::copy(&mut from.take(limit), &mut File::create(to)?)
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::machine::{LOG_HEAD, LOG_TAIL};

    #[test]
    fn plain_files_are_taken_and_links_and_pipes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (worker, home) = (dir.path().join("w"), dir.path().join("home"));
        fs::create_dir_all(worker.join("out")).unwrap();
        fs::create_dir_all(&home).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::write(worker.join("patched.console"), "Linux version 6.1").unwrap();
        symlink(&secret, worker.join("control.console")).unwrap();
        fs::write(worker.join("out/page.png"), "png").unwrap();
        symlink(&secret, worker.join("out/link")).unwrap();
        fs::create_dir(worker.join("out/deep")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(worker.join("worker.log")).status().unwrap().success());

        take(&worker, &home, &[]).unwrap();
        let mut found: Vec<_> = fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, ["out", "patched.console"]);
        let out: Vec<_> = fs::read_dir(home.join("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(out, ["page.png"]);
        take(&dir.path().join("nobody"), &home, &[]).unwrap();
    }

    #[test]
    fn secrets_are_taken_out_of_consoles_and_log() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        for name in ["patched.console", "worker.log"] {
            fs::write(dir.path().join(name), b"\xffbooted\ntoken=hunter2 end\n").unwrap();
        }
        take(dir.path(), &home, &[r"token=(\S+)".parse().unwrap()]).unwrap();
        for name in ["patched.console", "worker.log"] {
            assert_eq!(fs::read(home.join(name)).unwrap(), b"\xffbooted\ntoken=[redacted] end\n");
        }
    }

    #[test]
    fn of_a_long_console_begin_and_end_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let mut text = b"Linux version".to_vec();
        text.resize(8 << 20, b'x');
        text.extend(b"Kernel panic");
        fs::write(dir.path().join("control.console"), text).unwrap();
        take(dir.path(), &home, &[]).unwrap();
        let kept = fs::read(home.join("control.console")).unwrap();
        assert!(kept.len() as u64 <= LOG_HEAD + LOG_TAIL + 50, "{} bytes", kept.len());
        assert!(kept.starts_with(b"Linux version") && kept.ends_with(b"Kernel panic"));
    }
}
