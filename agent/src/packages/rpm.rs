//! rpm.
//!
//! Why rpm and not dnf or zypper: every distribution with rpm has it, and it takes exact files and exact packages, asks no network and
//! chooses nothing. What they would add is looked after here: version locks and excludes of dnf are obeyed ([`held`]), kernels come
//! beside each other, and dnf itself is kept away by its own lock ([`crate::updaters`]). rpm orders the work, and refuses missing
//! dependencies, conflicting files and a removal that somebody needs before anything is touched.
//!
//! A simulation is rpm's own work on a copy of its database, for the records alone ([`scratch`]): what is installed afterwards there is
//! what will be installed, obsoleted packages and all. Nothing that rpm says to people is read for it.
//!
//! rpm keeps no record of a transaction under way. The agent does ([`begun`]), and carries one that was interrupted to its end by
//! installing the same files again, which also takes away the old version that a kill leaves in the database beside the new one.

mod begun;
mod held;
mod leftovers;
mod query;
mod scratch;
mod steps;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use patchlab_check::target::Ended;
use patchlab_protocol::{
    PackageSystem,
    inventory::{PackageId, Transaction},
};

use self::{
    begun::Begun,
    held::Held,
    query::{Header, Row},
    scratch::Scratch,
    steps::{Pass, Steps},
};
use super::{
    Committed, Extent, FileIdentity, Goal, Installed, PackageError, PackageManager, QUERY, QUERY_BYTES, Verified,
    asks_for_reboot, command, prepare, succeeded,
};
use crate::{
    process::{self, Finished, ProcessMark},
    state::Reboot,
};

/// Where distributions have the database, from the root: Fedora and SUSE, and all others. Where both are there, one is a link.
pub const FOLDERS: [&str; 2] = ["usr/lib/sysimage/rpm", "var/lib/rpm"];
/// Packages that take effect only by a reboot, beside kernels: what dnf-needs-restarting(8) looks at, and SUSE's of the kind. Patterns of
/// rpm's (rpm(8), `--all`).
const NEED_REBOOT: [&str; 12] = [
    "dbus",
    "dbus-1",
    "dbus-broker",
    "dbus-daemon",
    "glibc",
    "kernel",
    "kernel-core",
    "kernel-firmware*",
    "linux-firmware",
    "microcode_ctl",
    "systemd",
    "ucode-*",
];

/// The files in a folder that are a database, whatever its kind.
pub fn database(folder: &Path) -> Vec<PathBuf> {
    ["rpmdb.sqlite", "rpmdb.sqlite-wal", "Packages.db", "Packages"].map(|name| folder.join(name)).into()
}

/// rpm, on the system below a root.
#[derive(Debug)]
pub struct Rpm {
    root: PathBuf,
    work: PathBuf,
    /// The database's folder, as seen from inside the root.
    folder: PathBuf,
}

impl Rpm {
    /// The package manager of the system below `root`; its own files go to `work`, which is made.
    ///
    /// # Errors
    /// When `work` cannot be made, or rpm is not there.
    pub fn new(root: &Path, work: &Path) -> Result<Self, PackageError> {
        prepare(work)?;
        // The host's own rpm knows; in another system's tree its answer would be about this one.
        let said = query("rpm", command("rpm").args(["--eval", "%{_dbpath}"]))?;
        let folder = if root == Path::new("/") {
            PathBuf::from(said.trim())
        } else {
            let there = |folder: &&&str| database(&root.join(folder)).iter().any(|path| path.exists());
            Path::new("/").join(FOLDERS.iter().find(there).unwrap_or(&FOLDERS[1]))
        };
        Ok(Self { root: root.to_owned(), work: work.to_owned(), folder })
    }

    /// A place inside the root, from outside.
    fn outside(&self, inside: &Path) -> PathBuf {
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A program of rpm's on a database in the right root.
    fn on(&self, program: &str, database: &Path) -> Command {
        let mut command = command(program);
        if self.root != Path::new("/") {
            command.arg("--root").arg(&self.root);
        }
        command.arg("--dbpath").arg(database);
        command
    }

    fn ask<W: AsRef<OsStr>>(
        &self,
        database: &Path,
        words: impl IntoIterator<Item = W>,
    ) -> Result<String, PackageError> {
        query("rpm", self.on("rpm", database).args(words))
    }

    /// What stands in a database.
    fn rows(&self, database: &Path) -> Result<Vec<Row>, PackageError> {
        let said = self.ask(database, ["-qa", "--qf", query::INSTALLED])?;
        // It fails when one of them is provided by nobody, and says the others all the same.
        let mut command = self.on("rpm", database);
        command.args(["-q", "--qf", query::SEVERAL, "--whatprovides"]).args(query::PROVIDED_BY_SEVERAL);
        let several = finished("rpm", &mut command, Instant::now() + QUERY)?;
        query::rows(&said, &query::several(&several.stdout)).map_err(unexpected)
    }

    fn headers(&self, files: &[PathBuf]) -> Result<Vec<Header>, PackageError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let words = ["-qp", "--nosignature", "--nomanifest", "--qf", query::FILE, "--"].map(OsStr::new);
        let said = self.ask(&self.folder, words.into_iter().chain(files.iter().map(|file| file.as_os_str())))?;
        let headers = query::headers(&said).map_err(unexpected)?;
        if headers.len() == files.len() { Ok(headers) } else { Err(unexpected(query::BadLine(said))) }
    }

    /// Dependencies that nobody fulfils, as rpm says them.
    fn unfulfilled(&self, database: &Path) -> Result<BTreeSet<String>, PackageError> {
        let words = ["-Va", "--nofiles", "--noscript", "--nosignature", "--nodigest"];
        let said = finished("rpm", self.on("rpm", database).args(words), Instant::now() + QUERY)?.stdout;
        Ok(said
            .lines()
            .filter(|line| line.starts_with(char::is_whitespace))
            .map(|line| line.trim().to_owned())
            .collect())
    }

    /// Erases versions whose successors are there. Their scripts failed, or did not get so far; they are not run again.
    fn erase_superseded(
        &self,
        begun: &Begun,
        deadline: Instant,
        started: &mut dyn FnMut(ProcessMark),
    ) -> Result<(), PackageError> {
        let superseded = begun.superseded(&self.rows(&self.folder)?);
        if superseded.is_empty() {
            return Ok(());
        }
        tracing::warn!(versions = superseded.join(", "), "erasing what stands beside its successor");
        let mut command = self.on("rpm", &self.folder);
        command.args(["-e", "--nodeps", "--noscripts", "--notriggers", "--"]).args(superseded);
        succeeded("rpm", run("rpm", &mut command, deadline, started)?).map(drop)
    }

    fn nothing_half_way(&self) -> Result<(), PackageError> {
        let left = self.installed()?.unsettled;
        if left.packages().next().is_none() {
            return Ok(());
        }
        let said = format!("still half-way: {}", left.to_string().replace('\n', "; "));
        Err(PackageError::Failed { program: "rpm", status: "exit status 0".into(), said })
    }

    /// A database that is damaged is made anew from its own records.
    fn mend(&self, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        let check = || finished("rpmdb", self.on("rpmdb", &self.folder).arg("--verifydb"), deadline);
        if check()?.succeeded() {
            return Ok(());
        }
        tracing::warn!("rpm's database is damaged; rebuilding it");
        let rebuilt = run("rpmdb", self.on("rpmdb", &self.folder).arg("--rebuilddb"), deadline, started)?;
        succeeded("rpmdb", rebuilt)?;
        succeeded("rpmdb", check()?).map(drop)
    }

    /// Removes what a killed rpm was writing.
    fn sweep(&self, files: &[PathBuf]) -> Result<(), PackageError> {
        if files.is_empty() {
            return Ok(());
        }
        let words = ["-qp", "--nosignature", "--nomanifest", "--qf", "[%{FILENAMES}\\n]", "--"].map(OsStr::new);
        let listed = self.ask(&self.folder, words.into_iter().chain(files.iter().map(|file| file.as_os_str())))?;
        let swept = leftovers::sweep(&self.root, &listed);
        if swept > 0 {
            tracing::warn!(swept, "files that were being written were removed");
        }
        Ok(())
    }

    /// When this boot began, seconds since 1970; a root without a `/proc` of its own runs on this kernel.
    fn booted(&self) -> Option<u64> {
        let own = self.root.join("proc/stat");
        let path = if own.exists() { own } else { PathBuf::from("/proc/stat") };
        let stat = fs::read_to_string(path).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    }

    /// Whether a package that takes effect only by a reboot was installed in this boot.
    fn newer_than_boot(&self) -> bool {
        let Some(booted) = self.booted() else { return false };
        let mut command = self.on("rpm", &self.folder);
        command.args(["-qa", "--qf", "%{INSTALLTIME}\\t%{NAME}\\n", "--"]).args(NEED_REBOOT);
        let said = finished("rpm", &mut command, Instant::now() + QUERY).map(|finished| finished.stdout);
        let said = said.inspect_err(|error| tracing::warn!(%error, "nobody can say whether a reboot is needed"));
        let times = |said: String| -> Vec<u64> {
            said.lines().filter_map(|line| line.split_once('\t')?.0.parse().ok()).collect()
        };
        said.map(times).unwrap_or_default().into_iter().any(|installed| installed > booted)
    }
}

fn unexpected(line: query::BadLine) -> PackageError {
    PackageError::Unexpected { program: "rpm", said: line.0 }
}

fn finished(program: &'static str, command: &mut Command, deadline: Instant) -> Result<Finished, PackageError> {
    run(program, command, deadline, |_| {})
}

fn run(
    program: &'static str,
    command: &mut Command,
    deadline: Instant,
    started: impl FnOnce(ProcessMark),
) -> Result<Finished, PackageError> {
    let finished = process::run(command, deadline, QUERY_BYTES, started);
    let finished = finished.map_err(|source| PackageError::Run { program, source })?;
    Ok(Finished { stderr: without_advice(&finished.stderr), ..finished })
}

/// Debian's rpm says before every installation that alien(1) is there: that is no reason for anything.
fn without_advice(stderr: &str) -> String {
    let is_advice =
        |line: &str| ["rpm: RPM should not be used", "rpm: However assuming"].iter().any(|said| line.starts_with(said));
    stderr.lines().filter(|line| !is_advice(line)).map(|line| format!("{line}\n")).collect()
}

fn query(program: &'static str, command: &mut Command) -> Result<String, PackageError> {
    succeeded(program, finished(program, command, Instant::now() + QUERY)?)
}

impl PackageManager for Rpm {
    fn system(&self) -> Option<PackageSystem> {
        Some(PackageSystem::Rpm)
    }

    fn installed(&self) -> Result<Installed, PackageError> {
        let begun = Begun::read(&self.work)?.map(|begun| begun.toward).unwrap_or_default();
        Ok(query::installed(&self.rows(&self.folder)?, &begun))
    }

    fn identify(&self, file: &Path) -> Result<FileIdentity, PackageError> {
        let header = self.headers(&[file.to_owned()])?.pop();
        header.map(|header| header.identity).ok_or_else(|| unexpected(query::BadLine(String::new())))
    }

    fn simulate(&self, goal: &Goal, deadline: Instant) -> Result<Transaction, PackageError> {
        let steps = Steps::of(goal, &self.headers(&goal.install)?);
        let place = Path::new(scratch::PLACE);
        let (database, lock) = (self.outside(&self.folder), self.outside(&self.folder.join(".rpm.lock")));
        let _scratch = Scratch::copy(&database, &lock, self.outside(place), deadline)?;
        let before = query::installed(&self.rows(place)?, &[]).all();
        let missing_before = if steps.erase.is_empty() { BTreeSet::new() } else { self.unfulfilled(place)? };
        for words in steps.rehearsal() {
            succeeded("rpm", finished("rpm", self.on("rpm", place).args(words), deadline)?)?;
        }
        if !steps.erase.is_empty()
            && let Some(missing) = self.unfulfilled(place)?.difference(&missing_before).next()
        {
            let said = format!("after the removal {missing}");
            return Err(PackageError::Failed { program: "rpm", status: "exit status 1".into(), said });
        }
        let after = query::installed(&self.rows(place)?, &[]).all();
        let transaction = before.changes_to(&after, PackageSystem::Rpm);
        Held::read(&self.root)?.allow(&transaction)?;
        Ok(transaction)
    }

    /// rpm waits for its own lock by itself, until it is there.
    fn commit(
        &self,
        goal: &Goal,
        deadline: Instant,
        started: &mut dyn FnMut(ProcessMark),
    ) -> Result<Committed, PackageError> {
        let at = Instant::now();
        let headers = self.headers(&goal.install)?;
        let begun = Begun::new(goal, &headers);
        begun.write(&self.work)?;
        let mut failed_scripts = Vec::new();
        let nothing = Finished {
            exit: Some(0),
            stdout: String::new(),
            stderr: String::new(),
            written: 0,
            ended: Ended::ByItself,
        };
        let mut last = nothing;
        for words in Steps::of(goal, &headers).work(Pass::First) {
            let mut command = self.on("rpm", &self.folder);
            last = run("rpm", command.args(words), deadline, &mut *started)?;
            failed_scripts.extend(steps::failed_scripts(&last.stderr));
            if !last.succeeded() {
                break;
            }
        }
        // Killed or out of time, it may have been anywhere: then the mark stays.
        if last.exit.is_some() && last.ended == Ended::ByItself {
            self.erase_superseded(&begun, deadline.max(Instant::now() + QUERY), started)?;
            Begun::clear(&self.work)?;
        }
        Ok(Committed { finished: last, duration: at.elapsed(), failed_scripts })
    }

    /// rpm cannot finish a transaction without its files: one that was begun is [resumed](Self::resume).
    fn settle(&self, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        self.mend(deadline, started)?;
        match Begun::read(&self.work)? {
            Some(begun) => {
                let said = format!("a transaction was interrupted: {}", begun.names());
                Err(PackageError::Failed { program: "rpm", status: "killed".into(), said })
            }
            None => self.nothing_half_way(),
        }
    }

    fn resume(&self, goal: &Goal, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        let headers = self.headers(&goal.install)?;
        let begun = Begun::new(goal, &headers);
        begun.write(&self.work)?;
        // Names what it writes after the second it began in, and will not write over what is there: it may be the same second still.
        self.sweep(&goal.install)?;
        let rows = self.rows(&self.folder)?;
        let is_there = |id: &&PackageId| rows.iter().any(|row| row.id == **id);
        let remove = goal.remove.iter().filter(is_there).cloned().collect();
        let goal = Goal { install: goal.install.clone(), remove };
        for words in Steps::of(&goal, &headers).work(Pass::Again) {
            let done = run("rpm", self.on("rpm", &self.folder).args(words), deadline, &mut *started)?;
            // Old and new are both there when the old one's script fails once more: that is seen to below.
            if let Err(error) = succeeded("rpm", done) {
                tracing::warn!(%error, "carrying a transaction on");
            }
        }
        self.erase_superseded(&begun, deadline, started)?;
        let rows = self.rows(&self.folder)?;
        let reached = |(id, to): &(PackageId, Option<String>)| {
            let there: Vec<&str> = rows.iter().filter(|row| row.id == *id).map(|row| &*row.version).collect();
            to.as_deref().map_or(there.is_empty(), |to| there == [to])
        };
        if !begun.toward.iter().all(reached) {
            let said = format!("not all of it is where it should be: {}", begun.names());
            return Err(PackageError::Failed { program: "rpm", status: "exit status 1".into(), said });
        }
        Begun::clear(&self.work)?;
        self.nothing_half_way()
    }

    /// rpm itself passes over what it was told not to unpack (`--excludedocs`, `%_netsharedpath`).
    fn verify(&self, extent: Extent<'_>, deadline: Instant) -> Result<Verified, PackageError> {
        let labels = match extent {
            Extent::Everything => vec!["-a".to_owned()],
            Extent::Only([]) => return Ok(Verified::default()),
            Extent::Only(packages) => packages.iter().map(|(id, version)| query::label(id, version)).collect(),
        };
        let mut command = self.on("rpm", &self.folder);
        command.args(["-V", "--nodeps", "--noscripts", "--nosignature", "--nodigest", "--nomtime"]).args(labels);
        Verified::of("rpm", &finished("rpm", &mut command, deadline)?, |_| false)
    }

    fn reboot(&self, done: &Transaction) -> Reboot {
        let mut names = done.changes().iter().map(|change| change.id.base_name());
        let asked = names.any(|name| PackageSystem::Rpm.is_kernel(name))
            || asks_for_reboot(&self.root)
            || self.newer_than_boot();
        if asked { Reboot::Needed } else { Reboot::NotNeeded }
    }

    fn locks(&self) -> Vec<PathBuf> {
        vec![self.outside(&self.folder.join(".rpm.lock"))]
    }

    fn database(&self) -> Vec<PathBuf> {
        database(&self.outside(&self.folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_asks_for_a_reboot_as_on_every_other_host() {
        let root = tempfile::tempdir().unwrap();
        let rpm = Rpm { root: root.path().to_owned(), work: root.path().join("work"), folder: "/var/lib/rpm".into() };
        let nothing = Transaction::new(PackageSystem::Rpm, []);
        assert_eq!(rpm.reboot(&nothing), Reboot::NotNeeded);
        fs::create_dir(root.path().join("run")).unwrap();
        fs::write(root.path().join("run/reboot-required"), "").unwrap();
        assert_eq!(rpm.reboot(&nothing), Reboot::Needed);
    }
}
