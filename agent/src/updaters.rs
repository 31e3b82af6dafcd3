//! Automatic updaters: programs of the system that change packages without being told. Those that are there are named,
//! and they are kept from working while a run does, by the locks that they themselves take. A lock ends with the
//! process that holds it, so an agent that is killed leaves none of them switched off.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use crate::lock::{self, Kind};

/// One that is known.
struct Updater {
    name: &'static str,
    /// It is installed when this is there.
    program: &'static str,
    /// It runs by itself when one of these is there.
    enabled: &'static [&'static str],
    lock: Option<(&'static str, Kind)>,
}

const KNOWN: &[Updater] = &[
    Updater {
        name: "apt-daily",
        program: "usr/lib/apt/apt.systemd.daily",
        enabled: &["etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer"],
        lock: Some(("var/lib/apt/daily_lock", Kind::Whole)),
    },
    Updater {
        name: "unattended-upgrades",
        program: "usr/bin/unattended-upgrade",
        enabled: &["etc/apt/apt.conf.d/20auto-upgrades"],
        lock: Some(("run/unattended-upgrades.lock", Kind::Record)),
    },
    Updater {
        name: "dnf-automatic",
        program: "usr/bin/dnf-automatic",
        enabled: &[
            "etc/systemd/system/timers.target.wants/dnf-automatic.timer",
            "etc/systemd/system/timers.target.wants/dnf-automatic-install.timer",
        ],
        // It is dnf's.
        lock: None,
    },
    // dnf 4, whoever calls it: it changes no package without this lock, and says for whom it waits. The agent itself works by rpm.
    Updater {
        name: "dnf",
        program: "usr/bin/dnf",
        enabled: &[],
        lock: Some(("var/lib/dnf/rpmdb_lock.pid", Kind::Pid)),
    },
    // zypper looks who is named in there, and waits for it or ends; it says for whom.
    Updater { name: "zypper", program: "usr/bin/zypper", enabled: &[], lock: Some(("run/zypp.pid", Kind::Pid)) },
    Updater {
        name: "transactional-update",
        program: "usr/sbin/transactional-update",
        enabled: &["etc/systemd/system/timers.target.wants/transactional-update.timer"],
        lock: None,
    },
    Updater {
        name: "PackageKit",
        program: "usr/libexec/packagekitd",
        enabled: &["usr/libexec/packagekitd"],
        lock: None,
    },
];

/// Names of the updaters below `root` that are installed and run by themselves.
pub fn enabled(root: &Path) -> Vec<&'static str> {
    // A unit is enabled by a link, which may lead out of a root that is not ours.
    let there = |path: &str| root.join(path).symlink_metadata().is_ok();
    let runs = |updater: &&Updater| there(updater.program) && updater.enabled.iter().any(|path| there(path));
    KNOWN.iter().filter(runs).map(|updater| updater.name).collect()
}

/// Updaters that wait until this is dropped.
#[derive(Debug)]
pub struct Paused {
    _locks: Vec<Held>,
}

/// A lock that is held. A file that was made for it is taken away again: after a rollback the host is as it was before.
#[derive(Debug)]
struct Held {
    _file: File,
    made: Option<PathBuf>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(path) = &self.made
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, path = %path.display(), "a lock's file could not be removed");
        }
    }
}

/// An updater is at work now, or cannot be kept from it.
#[derive(Debug, thiserror::Error)]
pub enum NotPaused {
    /// It works.
    #[error("the automatic updater {name} is at work: wait until it is done, then start the run again")]
    AtWork {
        /// Which.
        name: &'static str,
        /// The file that it holds a lock on.
        lock: PathBuf,
        /// How.
        kind: Kind,
    },
    /// Its lock cannot be taken.
    #[error("the automatic updater {name} cannot be paused: {source}")]
    Lock {
        /// Which.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Keeps every updater below `root` that has a lock from working.
///
/// # Errors
/// When one is at work, or its lock cannot be taken.
pub fn pause(root: &Path) -> Result<Paused, NotPaused> {
    let installed = KNOWN.iter().filter(|updater| root.join(updater.program).exists());
    // Where there is no folder for a lock, nobody can hold it.
    let has_place = |path: &str| root.join(path).parent().is_some_and(Path::is_dir);
    let locks = installed
        .filter_map(|updater| updater.lock.map(|lock| (updater.name, lock)))
        .filter(|(_, (path, _))| has_place(path));
    let held: Result<Vec<Held>, NotPaused> =
        locks.map(|(name, (path, kind))| hold(name, &root.join(path), kind)).collect();
    Ok(Paused { _locks: held? })
}

fn hold(name: &'static str, path: &Path, kind: Kind) -> Result<Held, NotPaused> {
    let failed = |source| NotPaused::Lock { name, source };
    let open = |options: &mut OpenOptions| options.read(true).write(true).open(path);
    let (file, made) = match open(OpenOptions::new().create_new(true)) {
        Ok(file) => (file, Some(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            (open(&mut OpenOptions::new()).map_err(failed)?, None)
        }
        Err(error) => return Err(failed(error)),
    };
    match lock::try_take(&file, kind) {
        // A process that is named in a file holds it by the file alone.
        Ok(()) if kind == Kind::Pid => Ok(Held { _file: file, made: Some(path.to_owned()) }),
        Ok(()) => Ok(Held { _file: file, made }),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::ACCESS) => {
            Err(NotPaused::AtWork { name, lock: path.to_owned(), kind })
        }
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &Path, path: &str) {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), "").unwrap();
    }

    #[test]
    fn an_updater_counts_when_it_is_installed_and_enabled() {
        let root = tempfile::tempdir().unwrap();
        assert!(enabled(root.path()).is_empty() && pause(root.path()).is_ok());
        file(root.path(), "usr/bin/unattended-upgrade");
        assert!(enabled(root.path()).is_empty());
        file(root.path(), "etc/apt/apt.conf.d/20auto-upgrades");
        assert_eq!(enabled(root.path()), ["unattended-upgrades"]);
    }

    #[test]
    fn one_that_works_is_named_and_one_that_is_paused_finds_its_lock_taken() {
        let root = tempfile::tempdir().unwrap();
        file(root.path(), "usr/lib/apt/apt.systemd.daily");
        file(root.path(), "var/lib/apt/daily_lock");
        let lock = root.path().join("var/lib/apt/daily_lock");
        let works = || hold("apt-daily", &lock, Kind::Whole);
        let theirs = works().unwrap();
        assert!(matches!(pause(root.path()), Err(NotPaused::AtWork { name: "apt-daily", .. })));
        drop(theirs);
        let paused = pause(root.path()).unwrap();
        assert!(matches!(works(), Err(NotPaused::AtWork { .. })));
        drop(paused);
        assert!(works().is_ok() && lock.exists(), "what was there stays");
    }

    #[test]
    fn dnf_waits_for_the_agent_by_the_file_that_names_it_and_a_dead_process_holds_nothing() {
        let root = tempfile::tempdir().unwrap();
        file(root.path(), "usr/bin/dnf");
        file(root.path(), "var/lib/dnf/rpmdb_lock.pid");
        let lock = root.path().join("var/lib/dnf/rpmdb_lock.pid");
        let mut theirs = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(&lock, theirs.id().to_string()).unwrap();
        assert!(matches!(pause(root.path()), Err(NotPaused::AtWork { name: "dnf", .. })));
        theirs.kill().unwrap();
        theirs.wait().unwrap();
        let paused = pause(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&lock).unwrap(), std::process::id().to_string());
        drop(paused);
        assert!(!lock.exists(), "dnf would wait for as long as the agent lives");
    }

    #[test]
    fn a_lock_that_was_made_for_the_pause_is_gone_after_it() {
        let root = tempfile::tempdir().unwrap();
        file(root.path(), "usr/lib/apt/apt.systemd.daily");
        let lock = root.path().join("var/lib/apt/daily_lock");
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        let paused = pause(root.path()).unwrap();
        assert!(lock.exists());
        drop(paused);
        assert!(!lock.exists());
    }
}
