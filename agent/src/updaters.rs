//! Automatic updaters: programs of the system that change packages without being told. Those that are there are named, and those that have a lock
//! of their own are kept from working while a run does, by that. A lock ends with the process that holds it, so an agent that is
//! killed leaves none of them switched off. The others wait for the package manager's lock, while it works: dnf 5, PackageKit and
//! transactional-update have none to keep them away by before and after that.

mod periodic;

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
    runs: Runs,
    kept: Kept,
}

/// By what one is kept from working while a run does.
#[derive(Clone, Copy)]
enum Kept {
    /// A lock of its own.
    By(&'static str, Kind),
    /// The lock of another one here, by which it works.
    WithAnother,
    /// Nothing: it waits only while the package manager itself works.
    Not,
}

/// When one runs by itself.
enum Runs {
    /// When one of these is there.
    With(&'static [&'static str]),
    /// As apt's daily job: when its timer is enabled, and `APT::Periodic` does not switch it off.
    AptDaily(&'static str),
    /// When `APT::Periodic` has the daily job call it.
    InAptDaily,
    /// Never: somebody calls it.
    Called,
}

const KNOWN: &[Updater] = &[
    Updater {
        name: "apt-daily",
        program: "usr/lib/apt/apt.systemd.daily",
        runs: Runs::AptDaily("etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer"),
        kept: Kept::By("var/lib/apt/daily_lock", Kind::Whole),
    },
    Updater {
        name: "unattended-upgrades",
        program: "usr/bin/unattended-upgrade",
        runs: Runs::InAptDaily,
        kept: Kept::By("run/unattended-upgrades.lock", Kind::Record),
    },
    Updater {
        name: "dnf-automatic",
        program: "usr/bin/dnf-automatic",
        runs: Runs::With(&[
            "etc/systemd/system/timers.target.wants/dnf-automatic.timer",
            "etc/systemd/system/timers.target.wants/dnf-automatic-install.timer",
        ]),
        // It is dnf's.
        kept: Kept::WithAnother,
    },
    // It is dnf 5's plugin, and dnf 5 has no lock but rpm's.
    Updater {
        name: "dnf5-automatic",
        program: "usr/bin/dnf5",
        runs: Runs::With(&["etc/systemd/system/timers.target.wants/dnf5-automatic.timer"]),
        kept: Kept::Not,
    },
    // yum before dnf: who is named in there is waited for.
    Updater {
        name: "yum-cron",
        program: "usr/sbin/yum-cron",
        runs: Runs::With(&["etc/systemd/system/multi-user.target.wants/yum-cron.service"]),
        kept: Kept::By("run/yum.pid", Kind::Pid),
    },
    // dnf 4, whoever calls it: it changes no package without this lock, and says for whom it waits. The agent itself works by rpm.
    Updater {
        name: "dnf",
        program: "usr/bin/dnf",
        runs: Runs::Called,
        kept: Kept::By("var/lib/dnf/rpmdb_lock.pid", Kind::Pid),
    },
    // zypper looks who is named in there, and waits for it or ends; it says for whom.
    Updater {
        name: "zypper",
        program: "usr/bin/zypper",
        runs: Runs::Called,
        kept: Kept::By("run/zypp.pid", Kind::Pid),
    },
    Updater {
        name: "transactional-update",
        program: "usr/sbin/transactional-update",
        runs: Runs::With(&["etc/systemd/system/timers.target.wants/transactional-update.timer"]),
        kept: Kept::Not,
    },
    // Desktops call it; by itself it works in the next boot, when an update was prepared for that.
    Updater {
        name: "PackageKit",
        program: "usr/libexec/packagekitd",
        runs: Runs::With(&["var/lib/PackageKit/prepared-update"]),
        kept: Kept::Not,
    },
];

/// Names of the updaters below `root` that are installed and run by themselves.
pub fn enabled(root: &Path) -> Vec<&'static str> {
    running(root).into_iter().map(|updater| updater.name).collect()
}

/// Those of them that nothing keeps from beginning while a run works.
pub fn not_paused(root: &Path) -> Vec<&'static str> {
    let running = running(root).into_iter().filter(|updater| matches!(updater.kept, Kept::Not));
    running.map(|updater| updater.name).collect()
}

fn running(root: &Path) -> Vec<&'static Updater> {
    // A unit is enabled by a link, which may lead out of a root that is not ours.
    let there = |path: &str| root.join(path).symlink_metadata().is_ok();
    let is_on = |name: &str| periodic::value(root, name).map(|value| periodic::is_on(&value));
    // Without a word the daily job runs, and upgrades nothing.
    let daily = || is_on("Enable").unwrap_or(true);
    let runs = |updater: &&Updater| {
        let by_itself = match updater.runs {
            Runs::With(paths) => paths.iter().any(|path| there(path)),
            Runs::AptDaily(timer) => there(timer) && daily(),
            Runs::InAptDaily => daily() && is_on("Unattended-Upgrade").unwrap_or(false),
            Runs::Called => false,
        };
        there(updater.program) && by_itself
    };
    KNOWN.iter().filter(runs).collect()
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
        .filter_map(|updater| match updater.kept {
            Kept::By(path, kind) => Some((updater.name, (path, kind))),
            Kept::WithAnother | Kept::Not => None,
        })
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
        let say = |text: &str| fs::write(root.path().join("etc/apt/apt.conf.d/20auto-upgrades"), text).unwrap();
        for off in ["", "APT::Periodic::Unattended-Upgrade \"0\";"] {
            say(off);
            assert!(enabled(root.path()).is_empty(), "{off:?}");
        }
        say("APT::Periodic::Unattended-Upgrade \"1\";");
        assert_eq!(enabled(root.path()), ["unattended-upgrades"]);
        say("APT::Periodic::Unattended-Upgrade \"1\";\nAPT::Periodic::Enable \"0\";");
        assert!(enabled(root.path()).is_empty());
    }

    #[test]
    fn what_is_merely_installed_does_not_run_by_itself() {
        let root = tempfile::tempdir().unwrap();
        for program in ["usr/libexec/packagekitd", "usr/bin/dnf5", "usr/sbin/yum-cron"] {
            file(root.path(), program);
        }
        assert!(enabled(root.path()).is_empty());
        file(root.path(), "var/lib/PackageKit/prepared-update");
        file(root.path(), "etc/systemd/system/timers.target.wants/dnf5-automatic.timer");
        file(root.path(), "etc/systemd/system/multi-user.target.wants/yum-cron.service");
        assert_eq!(enabled(root.path()), ["dnf5-automatic", "yum-cron", "PackageKit"]);
        assert_eq!(not_paused(root.path()), ["dnf5-automatic", "PackageKit"]);
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
