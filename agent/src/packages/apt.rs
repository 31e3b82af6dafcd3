//! dpkg, by way of apt.
//!
//! Why apt-get and not `dpkg --install`: apt orders the work, refuses a missing dependency before anything is touched,
//! and simulates the very plan it then carries out; dpkg would begin and stop half-way. apt gets a configuration of its
//! own, in which there is no source at all: it can use the files it is given and nothing else. The host's own apt
//! configuration is not read (its hooks could change the transaction that was proven), and neither its marks of
//! automatically installed packages nor its lists and caches are touched, so that a rollback finds them as they were.
//! dpkg's own configuration, its locks, and apt's history log are the host's. apt's binary cache is thrown away before
//! each simulation, since it tells a changed dpkg database from the cached one by its size and the second in which it
//! was written: a rollback right after an apply changes neither.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use patchlab_protocol::{
    PackageSystem,
    inventory::{PackageId, Source, Sources, Transaction},
};

use super::{
    Committed, Extent, FileIdentity, Goal, Installed, PackageError, PackageManager, QUERY, QUERY_BYTES, Verified,
    asks_for_reboot, command, excluded::Excluded, prepare, simulation, succeeded,
};
use crate::{
    journal::replace,
    lock::{self, Freed},
    process::{self, ProcessMark},
    reserve::insist,
    state::Reboot,
};

/// Packages that take effect only by a reboot, beside kernels: what every process has, what nothing but a boot starts anew, and what the
/// kernel loads at boot. As with rpm.
const NEED_REBOOT: [&str; 7] =
    ["amd64-microcode", "dbus", "dbus-broker", "dbus-daemon", "intel-microcode", "libc6", "systemd"];

/// What dpkg says when somebody else holds one of its locks, in the locale that it is given.
const LOCKED: &str = "was locked by another process";

/// One line a package: its state, then what it was built from, which is nothing where nobody says.
const INSTALLED: &str =
    "${db:Status-Status} ${Package} ${Architecture} ${Version}\\t${source:Package} ${source:Version}\\n";

/// dpkg and apt, on the system below a root.
#[derive(Debug)]
pub struct Apt {
    root: PathBuf,
    work: PathBuf,
    database: PathBuf,
    native: String,
}

impl Apt {
    /// The package manager of the system below `root`; its own files go to `work`, which is made.
    ///
    /// # Errors
    /// When `work` cannot be made, or dpkg is not there.
    pub fn new(root: &Path, work: &Path) -> Result<Self, PackageError> {
        let apt = Self {
            root: root.to_owned(),
            work: work.to_owned(),
            database: root.join("var/lib/dpkg/status"),
            native: String::new(),
        };
        for folder in ["", "state/lists/partial", "cache/archives/partial"] {
            prepare(&work.join(folder))?;
        }
        prepare(&root.join("var/log/apt"))?;
        let configuration = work.join("apt.conf");
        insist(&configuration, || replace(&configuration, apt.configuration().as_bytes()))
            .map_err(|source| PackageError::Prepare { path: configuration.clone(), source })?;
        let native = apt.query("dpkg", &["--print-architecture"])?.trim().to_owned();
        Ok(Self { native, ..apt })
    }

    fn configuration(&self) -> String {
        let (root, work, status) = (self.root.display(), self.work.display(), self.database.display());
        let other_root = if self.is_own_root() { String::new() } else { format!("\"--root={root}\";") };
        format!(
            r#"Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{work}/state";
Dir::State::status "{status}";
Dir::State::extended_states "{work}/extended_states";
Dir::Cache "{work}/cache";
Dir::Log "{root}/var/log/apt";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::AutomaticRemove "false";
DPkg::Use-Pty "0";
DPkg::Options {{ "--force-confold"; "--force-confdef"; {other_root} }};
"#
        )
    }

    /// dpkg itself, on the right root.
    /// It does not wait for its locks by itself, as apt does: whoever holds one is waited for here.
    fn dpkg(
        &self,
        words: &[&str],
        deadline: Instant,
        started: &mut dyn FnMut(ProcessMark),
    ) -> Result<(), PackageError> {
        loop {
            let mut command = self.command("dpkg");
            if !self.is_own_root() {
                command.arg(format!("--root={}", self.root.display()));
            }
            command.args(["--force-confold", "--force-confdef"]).args(words);
            let finished = process::run(&mut command, deadline, QUERY_BYTES, &mut *started)
                .map_err(|source| PackageError::Run { program: "dpkg", source })?;
            match succeeded("dpkg", finished) {
                Err(PackageError::Failed { said, .. }) if said.contains(LOCKED) && Instant::now() < deadline => {
                    tracing::warn!(said, "waiting for dpkg's lock");
                    self.await_locks(deadline)?;
                }
                done => return done.map(drop),
            }
        }
    }

    fn await_locks(&self, deadline: Instant) -> Result<(), PackageError> {
        for path in self.locks() {
            match lock::await_freed(&path, deadline) {
                Ok(Freed::Free) => {}
                Ok(Freed::Held) => return Err(PackageError::Locked { path }),
                Err(source) => return Err(PackageError::Read { path, source }),
            }
        }
        Ok(())
    }

    fn nothing_half_way(&self) -> Result<(), PackageError> {
        let left = self.installed()?.unsettled;
        if left.packages().next().is_none() {
            return Ok(());
        }
        let said = format!("still half-way: {}", left.to_string().replace('\n', "; "));
        Err(PackageError::Failed { program: "dpkg", status: "exit status 0".into(), said })
    }

    fn is_own_root(&self) -> bool {
        self.root == Path::new("/")
    }

    /// A command that asks nobody anything.
    fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("APT_LISTCHANGES_FRONTEND", "none")
            .env("UCF_FORCE_CONFFOLD", "1")
            .env("APT_CONFIG", self.work.join("apt.conf"));
        command
    }

    fn query(&self, program: &'static str, arguments: &[&str]) -> Result<String, PackageError> {
        let mut command = self.command(program);
        command.args(arguments);
        let finished = process::run(&mut command, Instant::now() + QUERY, QUERY_BYTES, |_| {})
            .map_err(|source| PackageError::Run { program, source })?;
        succeeded(program, finished)
    }

    fn apt_get(&self, goal: &Goal, mode: &[&str]) -> Command {
        let mut command = self.command("apt-get");
        command.args(["install", "--assume-yes", "--quiet", "--allow-downgrades", "--purge"]).args(mode);
        command.arg("--").args(&goal.install);
        command.args(goal.remove.iter().map(|id| match id.arch.as_str() {
            "all" => format!("{}-", id.name),
            arch => format!("{}:{arch}-", id.name),
        }));
        command
    }
}

impl PackageManager for Apt {
    fn system(&self) -> Option<PackageSystem> {
        Some(PackageSystem::Dpkg)
    }

    fn installed(&self) -> Result<Installed, PackageError> {
        let admin = format!("--admindir={}", self.root.join("var/lib/dpkg").display());
        let format = format!("--showformat={INSTALLED}");
        let said = self.query("dpkg-query", &[&admin, &format, "--show"]);
        // dpkg-query exits with 1 and says so when nothing at all is installed.
        let text = match said {
            Err(PackageError::Failed { said, .. }) if said.contains("no packages found") => String::new(),
            other => other?,
        };
        installed(&text)
    }

    fn identify(&self, file: &Path) -> Result<FileIdentity, PackageError> {
        let path = file.display().to_string();
        let format = "--showformat=${Package} ${Architecture} ${Version} ${Installed-Size}";
        let said = self.query("dpkg-deb", &["--show", format, &path])?;
        match said.split_whitespace().collect::<Vec<_>>()[..] {
            [name, arch, version, ref size @ ..] => {
                // KiB, Debian policy 5.6.20; a field that may be missing.
                let kib: u64 = size.first().and_then(|size| size.parse().ok()).unwrap_or(0);
                let unpacked = kib.saturating_mul(1024);
                Ok(FileIdentity { id: PackageId::new(name, arch), version: version.to_owned(), unpacked })
            }
            _ => Err(PackageError::Unexpected { program: "dpkg-deb", said }),
        }
    }

    fn simulate(&self, goal: &Goal, deadline: Instant) -> Result<Transaction, PackageError> {
        for name in ["pkgcache.bin", "srcpkgcache.bin"] {
            let path = self.work.join("cache").join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PackageError::Prepare { path, source });
                }
                _ => {}
            }
        }
        let mut command = self.apt_get(goal, &["--simulate"]);
        let finished = process::run(&mut command, deadline, QUERY_BYTES, |_| {})
            .map_err(|source| PackageError::Run { program: "apt-get", source })?;
        let said = succeeded("apt-get", finished)?;
        let present = self.installed()?.all();
        simulation::transaction(&said, &present, &self.native)
            .map_err(|line| PackageError::Unexpected { program: "apt-get", said: line.0 })
    }

    fn commit(
        &self,
        goal: &Goal,
        deadline: Instant,
        started: &mut dyn FnMut(ProcessMark),
    ) -> Result<Committed, PackageError> {
        let begun = Instant::now();
        // The locks were free a moment ago. Who took one since is waited for by apt itself, seconds, to the run's end.
        let patience = format!("DPkg::Lock::Timeout={}", deadline.saturating_duration_since(begun).as_secs().max(1));
        let finished = process::run(&mut self.apt_get(goal, &["--option", &patience]), deadline, QUERY_BYTES, started)
            .map_err(|source| PackageError::Run { program: "apt-get", source })?;
        // A script that fails makes dpkg fail.
        Ok(Committed { finished, duration: begun.elapsed(), failed_scripts: Vec::new() })
    }

    fn settle(&self, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        self.dpkg(&["--configure", "--pending"], deadline, started)?;
        self.nothing_half_way()
    }

    /// By dpkg alone: apt refuses to open a database with a package "in need of reinstallation" whose replacement is an
    /// older version, which is what an interrupted way back leaves.
    fn resume(&self, goal: &Goal, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), PackageError> {
        let files: Vec<String> = goal.install.iter().map(|file| file.display().to_string()).collect();
        for (action, what) in [("--install", files), ("--purge", goal.remove.iter().map(named).collect())] {
            if !what.is_empty() {
                let words: Vec<&str> = [action].into_iter().chain(what.iter().map(String::as_str)).collect();
                self.dpkg(&words, deadline, started)?;
            }
        }
        self.nothing_half_way()
    }

    fn verify(&self, extent: Extent<'_>, deadline: Instant) -> Result<Verified, PackageError> {
        let names = match extent {
            Extent::Everything => Vec::new(),
            Extent::Only([]) => return Ok(Verified::default()),
            Extent::Only(packages) => packages.iter().map(|(id, _)| named(id)).collect(),
        };
        let mut command = self.command("dpkg");
        if !self.is_own_root() {
            command.arg(format!("--root={}", self.root.display()));
        }
        command.arg("--verify").args(names);
        let finished = process::run(&mut command, deadline, QUERY_BYTES, |_| {})
            .map_err(|source| PackageError::Run { program: "dpkg", source })?;
        // dpkg reads this folder, whatever the root.
        let folder = Path::new("/etc/dpkg");
        let excluded =
            Excluded::read(folder).map_err(|source| PackageError::Read { path: folder.to_owned(), source })?;
        Verified::of("dpkg", &finished, |path| excluded.has(path))
    }

    fn reboot(&self, done: &Transaction) -> Reboot {
        // Debian itself writes no such file (Ubuntu's update-notifier-common does), so what was changed says it as well.
        let needs = |name: &str| PackageSystem::Dpkg.is_kernel(name) || NEED_REBOOT.contains(&name);
        let asked = asks_for_reboot(&self.root) || done.changes().iter().any(|change| needs(change.id.base_name()));
        if asked { Reboot::Needed } else { Reboot::NotNeeded }
    }

    /// apt and dpkg alike take the first, and whoever works without it the second.
    fn locks(&self) -> Vec<PathBuf> {
        ["lock-frontend", "lock"].map(|name| self.root.join("var/lib/dpkg").join(name)).to_vec()
    }

    fn database(&self) -> Vec<PathBuf> {
        vec![self.database.clone()]
    }
}

/// As dpkg is told of a package: without an architecture when it is for every one.
fn named(id: &PackageId) -> String {
    if id.arch == "all" { id.name.clone() } else { id.to_string() }
}

/// Lines as dpkg-query is asked for them ([`INSTALLED`]).
fn installed(text: &str) -> Result<Installed, PackageError> {
    let [mut settled, mut unsettled] = [Vec::new(), Vec::new()];
    let mut sources = Sources::new();
    for line in text.lines() {
        let (package, source) = line.split_once('\t').unwrap_or((line, ""));
        let (status, id, version) = match package.split_whitespace().collect::<Vec<_>>()[..] {
            // Packages that are only configuration files, or wished for, have nothing unpacked.
            ["config-files" | "not-installed", ..] => continue,
            [status, name, arch, version] => (status, PackageId::new(name, arch), version.to_owned()),
            _ => return Err(PackageError::Unexpected { program: "dpkg-query", said: line.to_owned() }),
        };
        if let Some((name, version)) = source.split_once(' ') {
            sources.extend(Source::new(name, version).map(|source| (id.clone(), source)));
        }
        let stands = if status == "installed" { &mut settled } else { &mut unsettled };
        stands.push((id, version));
    }
    let [settled, unsettled] = [settled, unsettled].map(|found| found.into_iter().collect());
    Ok(Installed { system: Some(PackageSystem::Dpkg), settled, unsettled, sources })
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::inventory::Change;

    use super::*;

    #[test]
    fn a_reboot_is_needed_by_what_was_changed_or_when_the_host_says_so() {
        let root = tempfile::tempdir().unwrap();
        let (work, database) = (root.path().join("work"), root.path().join("status"));
        let apt = Apt { root: root.path().to_owned(), work, database, native: "amd64".into() };
        let reboot = |name: &str| {
            let [from, to] = ["1", "2"].map(|version| Some(version.to_owned()));
            let change = Change { id: PackageId::new(name, "amd64"), from, to };
            apt.reboot(&Transaction::new(PackageSystem::Dpkg, [change]))
        };
        for name in ["libc6", "systemd", "dbus", "linux-image-amd64", "pve-kernel-6.2", "intel-microcode"] {
            assert_eq!(reboot(name), Reboot::Needed, "{name}");
        }
        assert_eq!((reboot("nginx"), reboot("libc6-dev")), (Reboot::NotNeeded, Reboot::NotNeeded));
        fs::create_dir(root.path().join("run")).unwrap();
        fs::write(root.path().join("run/reboot-required"), "").unwrap();
        assert_eq!(reboot("nginx"), Reboot::Needed);
    }

    #[test]
    fn packages_half_way_are_told_apart() {
        let text = "installed a all 1\ts 2:1\nconfig-files b amd64 1\tb 1\nhalf-configured c amd64 2\t \nnot-installed d amd64 \td \n";
        let found = installed(text).unwrap();
        assert_eq!(found.settled.to_string(), "a all 1\n");
        assert_eq!(found.unsettled.to_string(), "c amd64 2\n");
        let sources: Vec<_> =
            found.sources.iter().map(|(id, source)| (&*id.name, &*source.name, &*source.version)).collect();
        assert_eq!(sources, [("a", "s", "2:1")]);
        assert!(installed("installed a\n").is_err());
    }
}
