//! The host's real dnf and rpm, with folders of their own: they see the baseline's packages, repositories and keys, and nothing of the
//! host. They draft orders, and find the package files of a captured system.
//!
//! ```text
//! CACHE/dnf/<digest of repositories>/     index files, kept between drafts
//! CACHE/dnf/<digest of repositories>/lock one dnf at a time
//! (temporary)/root/var/lib/rpm            the baseline's database, made of its packages' headers
//! (temporary)/{repositories, vars, dnf.conf, .rpmmacros}
//! ```
//!
//! dnf chooses and fetches. Whether a file may be used is decided here, by rpm: its signature must be one of the baseline's own keys'.
//! What a transaction would do is read from rpm's own work on the database alone, so nothing is read of what dnf says to people.

pub mod sources;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use patchlab_check::{
    Digest, PackageSystem,
    package_system::{PROVIDED_BY_SEVERAL, rpm_version},
};

use crate::apt::transaction::{Installation, Transaction};

/// What dnf needs to know of a system; kept beside a baseline when it is built.
#[derive(Debug, Clone)]
pub struct DnfInputs {
    /// The headers of all its packages, as `rpmdb --exportdb` writes them.
    pub headers: PathBuf,
    /// Its repositories (dnf.conf(5)).
    pub repositories: PathBuf,
    /// Folder with files that stand for variables in them, beside `releasever` and `basearch`.
    pub vars: PathBuf,
    /// Folder with the keys that check packages.
    pub keys: PathBuf,
    /// What `releasever` stands for: its `VERSION_ID`.
    pub release: String,
    /// rpm's name of its architecture, e.g. `x86_64`.
    pub arch: String,
}

impl DnfInputs {
    /// From the folder that a baseline has them in.
    pub fn below(folder: &Path, release: &str, arch: &str) -> Self {
        Self {
            headers: folder.join(HEADERS),
            repositories: folder.join(REPOSITORIES),
            vars: folder.join(VARS),
            keys: folder.join(KEYS),
            release: release.to_owned(),
            arch: arch.to_owned(),
        }
    }
}

/// Names in the folder that a baseline has them in.
pub(crate) const HEADERS: &str = "headers";
pub(crate) const REPOSITORIES: &str = "baseline.repo";
pub(crate) const VARS: &str = "vars";
pub(crate) const KEYS: &str = "keys";

/// dnf or rpm could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnfError {
    /// Not installed, or it could not be started.
    #[error(
        "{program} could not be started: {source}; baselines with rpm packages need it on this host: install the packages rpm and dnf"
    )]
    NotThere {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{program} could not {action}: {reason}")]
    Refused {
        /// Which.
        program: &'static str,
        /// What it was to do.
        action: &'static str,
        /// Its words.
        reason: String,
    },
    /// It speaks otherwise than expected.
    #[error("rpm says {0:?}, which is not understood")]
    Unexpected(String),
    /// A package whose signature is none of the system's keys'.
    #[error(
        "{package} is not signed by a key that the system trusts ({reason}): its repository must sign its packages, and the \
         key be in the system's /etc/pki/rpm-gpg"
    )]
    Unsigned {
        /// The file's name.
        package: String,
        /// rpm's words.
        reason: String,
    },
    /// The file system said no.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> DnfError + 'p {
    move |source| DnfError::Io { action, path: path.to_owned(), source }
}

/// A package, installed or in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name, without a version.
    pub name: String,
    /// Its architecture.
    pub arch: String,
    /// `[EPOCH:]VERSION-RELEASE`.
    pub version: String,
    /// Digests of its header, which names the digests of all its files: two with the same are the same package.
    pub header: String,
    /// Whether several versions of it can be installed at a time.
    pub beside: bool,
}

impl Package {
    /// Its name in orders: that of one of several versions has its version in it.
    pub fn order_name(&self) -> String {
        if self.beside { format!("{}@{}", self.name, self.version) } else { self.name.clone() }
    }
}

/// One line a package, installed or in a file.
const QUERY: &str =
    "%{NAME}\\t%{ARCH}\\t%{EPOCHNUM}\\t%{VERSION}\\t%{RELEASE}\\t%{SHA1HEADER}.%{SHA256HEADER}\\t[%{PROVIDENAME} ]\\n";
/// Keys of signers stand in the database as packages of this name.
const KEY_PACKAGES: &str = "gpg-pubkey";
/// The folder that is the baseline's root, in the folder of our own.
const ROOT: &str = "root";

/// dnf and rpm over a baseline's inputs.
#[derive(Debug)]
pub struct Dnf {
    dir: tempfile::TempDir,
    /// Held while this one lives; the index files are shared.
    _lock: fs::File,
    release: String,
    arch: String,
    installed: Vec<Package>,
}

/// Asks rpm what a package file is.
///
/// # Errors
/// It is none, or rpm is not there.
pub fn identify(file: &Path) -> Result<Package, DnfError> {
    let opened = fs::File::open(file).map_err(failed("read", file))?;
    let mut command = Command::new("rpm");
    // By a name in which rpm finds neither quotes nor patterns.
    command.args(["-qp", "--nosignature", "--nomanifest", "--qf", QUERY, "--", "/proc/self/fd/0"]);
    command.stdin(opened).env("LC_ALL", "C.UTF-8");
    let said = run("rpm", "read a package file", &mut command)?;
    match &packages(&said)?[..] {
        [package] => Ok(package.clone()),
        _ => Err(DnfError::Unexpected(said)),
    }
}

impl Dnf {
    /// Sets the folders up; waits while another draft uses the same index files.
    ///
    /// # Errors
    /// The inputs cannot be used, or rpm is not there.
    pub fn open(inputs: &DnfInputs, cache: &Path) -> Result<Self, DnfError> {
        let repositories = fs::read_to_string(&inputs.repositories).map_err(failed("read", &inputs.repositories))?;
        let shared = cache.join("dnf").join(Digest::of(repositories.as_bytes()).short());
        fs::create_dir_all(&shared).map_err(failed("create", &shared))?;
        let shared = shared.canonicalize().map_err(failed("find", &shared))?;
        let lock_path = shared.join("lock");
        let lock =
            fs::File::options().create(true).append(true).open(&lock_path).map_err(failed("open", &lock_path))?;
        lock.lock().map_err(failed("lock", &lock_path))?;
        let dir =
            tempfile::Builder::new().prefix("draft-").tempdir_in(cache).map_err(failed("create a folder in", cache))?;
        let at = |name: &str| dir.path().join(name);
        for name in [ROOT, "repositories", VARS] {
            fs::create_dir_all(at(name)).map_err(failed("create", &at(name)))?;
        }
        let write = |path: PathBuf, text: &str| fs::write(&path, text).map_err(failed("write", &path));
        write(at("repositories").join(REPOSITORIES), &repositories)?;
        copy_all(&inputs.vars, &at(VARS))?;
        // Debian's rpm has its database in the caller's home otherwise.
        write(at(".rpmmacros"), "%_dbpath /var/lib/rpm\n")?;
        write(at("dnf.conf"), &configuration(dir.path(), &shared))?;
        // dnf takes its cache's place for one inside the root.
        let cache = at(ROOT).join(shared.strip_prefix("/").unwrap_or(&shared));
        let parent = cache.parent().unwrap_or(&cache).to_owned();
        fs::create_dir_all(&parent).map_err(failed("create", &parent))?;
        symlink(&shared, &cache).map_err(failed("link", &cache))?;
        let new = Self {
            dir,
            _lock: lock,
            release: inputs.release.clone(),
            arch: inputs.arch.clone(),
            installed: Vec::new(),
        };
        let headers = fs::File::open(&inputs.headers).map_err(failed("open", &inputs.headers))?;
        let mut import = new.rpm("rpmdb");
        run("rpmdb", "read the system's packages", import.arg("--importdb").stdin(headers))?;
        if let Ok(keys) = fs::read_dir(&inputs.keys) {
            for key in keys.flatten() {
                // A folder of keys holds what others left there too; what is no key checks nothing.
                let mut import = new.rpm("rpmkeys");
                output("rpmkeys", import.arg("--import").arg(key.path()))?;
            }
        }
        let installed = new.rows()?;
        Ok(Self { installed, ..new })
    }

    /// What is installed, keys apart; sorted.
    pub fn installed(&self) -> &[Package] {
        &self.installed
    }

    /// Brings the index files up to date; any that cannot be had is an error.
    ///
    /// # Errors
    /// A repository does not answer, or with nonsense.
    pub fn update(&self) -> Result<(), DnfError> {
        self.dnf("fetch the repositories' index files", &["makecache", "--refresh"]).map(drop)
    }

    /// Names of installed packages that the repositories have a newer version of.
    ///
    /// # Errors
    /// dnf said no.
    pub fn upgradable(&self) -> Result<Vec<String>, DnfError> {
        let said = self.dnf("look for newer packages", &["list", "--upgrades"])?;
        // `web.noarch    2-1    house`; a long one is wrapped, and goes on indented.
        let name = |line: &str| {
            let (name, arch) = line.split_whitespace().next()?.rsplit_once('.')?;
            let is_one = self.installed.iter().any(|package| package.name == name && package.arch == arch);
            (is_one && !line.starts_with(char::is_whitespace)).then(|| name.to_owned())
        };
        Ok(said.lines().filter_map(name).collect())
    }

    /// Fetches what brings `names` to their newest versions and installs `files`, with all that these need, into `folder`: the files that
    /// come from repositories. Each must be signed by one of the system's keys.
    ///
    /// # Errors
    /// Something is not there or does not go together; a file is not signed.
    pub fn fetch(&self, names: &[String], files: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, DnfError> {
        // Both in one transaction.
        let mut script = String::new();
        for name in names {
            script.push_str(&format!("upgrade {name}\n"));
        }
        for name in self.given(files)? {
            script.push_str(&format!("install {}\n", name.display()));
        }
        script.push_str("run\n");
        let path = self.dir.path().join("script");
        fs::write(&path, script).map_err(failed("write", &path))?;
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let (folder_word, path_word) = (folder.display().to_string(), path.display().to_string());
        let words = ["shell", "--downloadonly", "--downloaddir", &folder_word, &path_word];
        self.dnf("resolve and fetch the packages", &words)?;
        let found = files_in(folder)?;
        found.iter().try_for_each(|file| self.check(file))?;
        Ok(found)
    }

    /// Fetches into `folder` the package files of what is installed, as far as the repositories still have them. What is not signed by one
    /// of the system's keys is not given, and told.
    ///
    /// # Errors
    /// A repository does not answer.
    pub fn fetch_installed(&self, folder: &Path, tell: &mut dyn FnMut(&str)) -> Result<Vec<PathBuf>, DnfError> {
        if self.installed.is_empty() {
            return Ok(Vec::new());
        }
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let folder_word = folder.display().to_string();
        // It fails when it finds none of them.
        let fetched = self.dnf(
            "fetch the package files of what is installed",
            &["reinstall", "--downloadonly", "--downloaddir", &folder_word, "*"],
        );
        let found = files_in(folder)?;
        if found.is_empty() {
            fetched?;
        }
        let mut good = Vec::new();
        for file in found {
            match self.check(&file) {
                Ok(()) => good.push(file),
                Err(error @ DnfError::Unsigned { .. }) => tell(&error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(good)
    }

    /// What installing package files would do: rpm's own work on a copy of the records, which this one is afterwards as well.
    ///
    /// # Errors
    /// rpm refuses them.
    pub fn simulate(self, files: &[PathBuf]) -> Result<Transaction, DnfError> {
        let packages = files.iter().map(|file| identify(file)).collect::<Result<Vec<_>, _>>()?;
        let (beside, plain): (Vec<_>, Vec<_>) = files.iter().zip(&packages).partition(|(_, package)| package.beside);
        // dnf has seen to what needs what; the two only go together.
        for (word, files) in [("-U", plain), ("-i", beside)].into_iter().filter(|(_, files)| !files.is_empty()) {
            let mut command = self.rpm("rpm");
            command.args([word, "--justdb", "--noscripts", "--notriggers", "--nodeps", "--nosignature", "--"]);
            let files: Vec<PathBuf> = files.iter().map(|(file, _)| (*file).clone()).collect();
            command.args(self.given(&files)?);
            run("rpm", "simulate the transaction", &mut command)?;
        }
        Ok(transaction(&self.installed, &self.rows()?))
    }

    /// That a package file is whole, and signed by one of the system's keys.
    fn check(&self, file: &Path) -> Result<(), DnfError> {
        let mut command = self.rpm("rpmkeys");
        command.args(["--define", "_pkgverify_level all", "--checksig", "--verbose", "--"]).arg(file);
        let checked = output("rpmkeys", &mut command)?;
        if checked.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&checked.stdout).into_owned();
        let bad = |line: &&str| !line.ends_with(": OK") && !line.ends_with(':');
        let reason = said.lines().filter(bad).map(str::trim).collect::<Vec<_>>().join("; ");
        let package = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Err(DnfError::Unsigned {
            package,
            reason: if reason.is_empty() { "it has no signature".into() } else { reason },
        })
    }

    fn rows(&self) -> Result<Vec<Package>, DnfError> {
        let said = run("rpm", "read the system's packages", self.rpm("rpm").args(["-qa", "--qf", QUERY]))?;
        packages(&said)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join(ROOT)
    }

    /// Names for files in this folder, from which rpm and dnf are run: in those that people give them, both find quotes and patterns.
    fn given(&self, files: &[PathBuf]) -> Result<Vec<PathBuf>, DnfError> {
        let folder = tempfile::Builder::new().prefix("given-").tempdir_in(self.dir.path());
        let folder = folder.map_err(failed("create a folder in", self.dir.path()))?.keep();
        let name = |(number, file): (usize, &PathBuf)| {
            let name = folder.join(format!("{number}.rpm"));
            let file = file.canonicalize().map_err(failed("find", file))?;
            symlink(&file, &name).map_err(failed("name", &file))?;
            Ok(name.strip_prefix(self.dir.path()).map_or_else(|_| name.clone(), Path::to_owned))
        };
        files.iter().enumerate().map(name).collect()
    }

    /// A program of rpm's on the baseline's database.
    fn rpm(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.root());
        self.surround(&mut command);
        command
    }

    fn surround(&self, command: &mut Command) {
        command.current_dir(self.dir.path());
        command.env("HOME", self.dir.path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    }

    fn dnf(&self, action: &'static str, words: &[&str]) -> Result<String, DnfError> {
        let mut command = Command::new("dnf");
        command.arg("--config").arg(self.dir.path().join("dnf.conf"));
        command.arg(format!("--installroot={}", self.root().display()));
        command.args([format!("--releasever={}", self.release), format!("--forcearch={}", self.arch)]);
        command.args(["--assumeyes", "--quiet"]).args(words);
        self.surround(&mut command);
        run("dnf", action, &mut command)
    }
}

fn configuration(dir: &Path, cache: &Path) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    // Signatures are checked by rpm afterwards, with no more keys than the system has; dnf would ask for keys and import them.
    format!(
        "[main]\nreposdir={repositories}\nvarsdir={vars}\ncachedir={cache}\npersistdir={state}\nlogdir=/log\nplugins=0\n\
         gpgcheck=0\nlocalpkg_gpgcheck=0\ninstall_weak_deps=0\nbest=1\nkeepcache=1\nskip_if_unavailable=0\n\
         obsoletes=1\ncolor=never\n",
        repositories = at("repositories"),
        vars = at(VARS),
        cache = cache.display(),
        state = at("state"),
    )
}

/// Reads lines of [`QUERY`].
fn packages(said: &str) -> Result<Vec<Package>, DnfError> {
    let package = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [KEY_PACKAGES, ..] => Ok(None),
        [name, arch, epoch, version, release, header, provides] => {
            let several = provides.split(' ').any(|provided| PROVIDED_BY_SEVERAL.contains(&provided));
            Ok(Some(Package {
                name: name.to_owned(),
                arch: arch.to_owned(),
                version: rpm_version(epoch, version, release),
                header: header.to_owned(),
                beside: several || PackageSystem::Rpm.is_kernel(name),
            }))
        }
        _ => Err(DnfError::Unexpected(line.chars().take(200).collect())),
    };
    let mut found = said.lines().filter_map(|line| package(line).transpose()).collect::<Result<Vec<_>, _>>()?;
    found.sort();
    Ok(found)
}

/// What leads from one state to another. Pure.
fn transaction(before: &[Package], after: &[Package]) -> Transaction {
    let by_name = |packages: &[Package]| -> BTreeMap<String, Package> {
        packages.iter().map(|package| (format!("{}:{}", package.order_name(), package.arch), package.clone())).collect()
    };
    let (before, after) = (by_name(before), by_name(after));
    // An architecture may turn from or to every one.
    let same = |one: &Package, other: &Package| {
        one.order_name() == other.order_name()
            && (one.arch == other.arch || one.arch == "noarch" || other.arch == "noarch")
    };
    let gone: Vec<&Package> =
        before.iter().filter(|(key, _)| !after.contains_key(*key)).map(|(_, package)| package).collect();
    let new = after.iter().filter(|(key, package)| before.get(*key).is_none_or(|old| old.version != package.version));
    let mut install: Vec<Installation> = new
        .map(|(key, package)| {
            let from = before.get(key).or_else(|| gone.iter().copied().find(|old| same(old, package)));
            Installation {
                name: package.order_name(),
                arch: package.arch.clone(),
                from: from.map(|old| old.version.clone()),
                to: package.version.clone(),
            }
        })
        .collect();
    install.sort();
    let replaced = |old: &&&Package| !after.values().any(|package| same(old, package));
    let remove = gone.iter().filter(replaced).map(|package| package.order_name()).collect();
    Transaction { install, remove }
}

fn copy_all(from: &Path, to: &Path) -> Result<(), DnfError> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        let to = to.join(path.file_name().unwrap_or_default());
        fs::copy(&path, &to).map_err(failed("copy", &path))?;
    }
    Ok(())
}

/// The package files in a folder, sorted.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>, DnfError> {
    let entries = fs::read_dir(folder).map_err(failed("read", folder))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "rpm"))
        .collect();
    files.sort();
    Ok(files)
}

fn output(program: &'static str, command: &mut Command) -> Result<Output, DnfError> {
    command.output().map_err(|source| DnfError::NotThere { program, source })
}

fn run(program: &'static str, action: &'static str, command: &mut Command) -> Result<String, DnfError> {
    let output = output(program, command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Debian's rpm complains of being used at all.
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("rpm: "));
    let reason = lines.take(12).collect::<Vec<_>>().join("; ");
    Err(DnfError::Refused { program, action, reason })
}

#[cfg(test)]
mod tests;
