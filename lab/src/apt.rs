//! The host's real apt, with folders of its own: it sees the baseline's packages, sources and keys, and nothing of the host but
//! the way to the network (proxies and their credentials). It drafts orders, finds the package files of a captured system
//! ([`Apt::described`]), and resolves what a cloud image lacks.
//!
//! ```text
//! CACHE/apt/<digest of sources>/lists/    index files, kept between drafts, and apt's digest of them beside
//! CACHE/apt/<digest of sources>/lock      one apt at a time
//! (temporary)/status                      the baseline's
//! (temporary)/{sources, keyrings, archives, apt.conf}
//! ```
//!
//! apt's own signature check stays on: every way around it is refused in the sources and switched off in the configuration.

pub mod relation;
pub mod sources;
pub mod transaction;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_check::Digest;

/// What apt needs to know of a system; kept beside a baseline when it is built.
#[derive(Debug, Clone)]
pub struct AptInputs {
    /// dpkg's status file.
    pub status: PathBuf,
    /// All of its sources, `sources.list` or deb822, updates and security included.
    pub sources: PathBuf,
    /// Folder with the keyrings that check them.
    pub keyrings: PathBuf,
    /// dpkg architecture, e.g. `amd64`.
    pub arch: String,
}

/// dpkg's name for an architecture that a recipe names, e.g. `amd64` for `x86_64`.
pub fn dpkg_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// apt could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AptError {
    /// apt is not installed, or could not be started.
    #[error("apt-get could not be started: {source}; on a Debian host install the package apt")]
    NoApt {
        /// Why.
        source: io::Error,
    },
    /// apt said no.
    #[error("apt could not {action}: {reason}")]
    Apt {
        /// What it was to do.
        action: &'static str,
        /// Its words.
        reason: String,
    },
    /// The sources or keyrings cannot be used.
    #[error("{path}: {problem}", path = path.display())]
    Sources {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
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

/// What signed index files say of one package file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Digest of its content.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// A package file by what it says it is: name, architecture, version.
pub type Identity = (String, String, String);

/// Largest status or sources file: 64 MiB.
const INPUT_BYTES: u64 = 64 << 20;

/// Packages named on one command line.
const NAMES_AT_ONCE: usize = 200;

/// Its preferences, in the folder of its own.
const PREFERENCES: &str = "preferences";

/// Settings of the host's own apt that are about reaching the network, and so are taken over.
const INHERITED: &[&str] =
    &["Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv4", "Acquire::ForceIPv6"];

/// apt over a baseline's inputs.
#[derive(Debug)]
pub struct Apt {
    dir: tempfile::TempDir,
    /// Held while this apt lives; the lists are shared.
    _lock: fs::File,
    status: String,
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> AptError + 'p {
    move |source| AptError::Io { action, path: path.to_owned(), source }
}

impl Apt {
    /// Sets the folders up; waits while another draft uses the same lists.
    pub fn open(inputs: &AptInputs, cache: &Path) -> Result<Self, AptError> {
        let status = read_limited(&inputs.status)?;
        let sources = read_limited(&inputs.sources)?;
        let shared = cache.join("apt").join(Digest::of(sources.as_bytes()).short());
        let lists = shared.join("lists");
        fs::create_dir_all(lists.join("partial")).map_err(failed("create", &lists))?;
        let lock_path = shared.join("lock");
        let lock =
            fs::File::options().create(true).append(true).open(&lock_path).map_err(failed("open", &lock_path))?;
        lock.lock().map_err(failed("lock", &lock_path))?;

        let dir =
            tempfile::Builder::new().prefix("draft-").tempdir_in(cache).map_err(failed("create a folder in", cache))?;
        let root = dir.path();
        // apt fetches and checks signatures as a user of its own, who must be able to enter.
        set_mode(root, 0o755)?;
        for name in ["archives/partial", "keyrings", "sources.d", "empty", "state"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        copy_keyrings(&inputs.keyrings, &root.join("keyrings"))?;
        let rewritten = private_sources(&sources, &root.join("keyrings"))
            .map_err(|problem| AptError::Sources { path: inputs.sources.clone(), problem })?;
        let name = if is_deb822(&sources) { "sources.d/baseline.sources" } else { "sources.d/baseline.list" };
        write(&root.join(name), &rewritten)?;
        write(&root.join("status"), &status)?;
        write(&root.join(PREFERENCES), "")?;
        let configuration = configuration(root, &lists, &inputs.arch, &inherited()?);
        write(&root.join("apt.conf"), &configuration)?;
        Ok(Self { dir, _lock: lock, status })
    }

    /// The file that makes any program of apt see the baseline instead of the host, by `APT_CONFIG`.
    pub fn configuration_file(&self) -> PathBuf {
        self.dir.path().join("apt.conf")
    }

    /// dpkg's status file of the baseline.
    pub fn status(&self) -> &str {
        &self.status
    }

    /// Brings the index files up to date; any that cannot be had or checked is an error.
    pub fn update(&self) -> Result<(), AptError> {
        self.get("fetch the package lists", &["update", "-o", "APT::Update::Error-Mode=any"]).map(drop)
    }

    /// Makes these the preferences (apt_preferences(5)) in place of any before.
    pub fn prefer(&self, preferences: &str) -> Result<(), AptError> {
        write(&self.dir.path().join(PREFERENCES), preferences)
    }

    /// What apt says it would do to install `packages` (names, or absolute paths of package files).
    pub fn simulate_install(&self, packages: &[String]) -> Result<String, AptError> {
        let mut arguments = vec!["--simulate", "--no-install-recommends", "install", "--"];
        arguments.extend(packages.iter().map(String::as_str));
        self.get("resolve what to install", &arguments)
    }

    /// What apt says it would do to bring everything up to date without installing or removing packages.
    pub fn simulate_upgrade(&self) -> Result<String, AptError> {
        self.get("look for newer packages", &["--simulate", "upgrade"])
    }

    /// What the signed index files say of these packages, in every version that the sources have, by name, architecture and version.
    /// Packages that they do not have are absent.
    ///
    /// # Errors
    /// apt cannot be started.
    pub fn described(&self, names: &[String]) -> Result<BTreeMap<Identity, Described>, AptError> {
        let mut found = BTreeMap::new();
        self.show(names, &mut |text| found.extend(descriptions(text)))?;
        Ok(found)
    }

    /// Stanzas of these packages, in every version that the sources have: some at a time, each time whole stanzas.
    pub(crate) fn show(&self, names: &[String], take: &mut dyn FnMut(&str)) -> Result<(), AptError> {
        // Names that are not known make it fail after it has shown the others; command lines have their limit.
        for names in names.chunks(NAMES_AT_ONCE) {
            let mut command = Command::new("apt-cache");
            command.args(["--quiet=1", "show", "--"]).args(names);
            let output = self.surrounded(&mut command).output().map_err(|source| AptError::NoApt { source })?;
            take(&String::from_utf8_lossy(&output.stdout));
        }
        Ok(())
    }

    /// Fetches package files by name, architecture and exact version into `folder`. apt checks each against the signed lists.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn fetch(&self, wanted: &[Identity], folder: &Path) -> Result<(), AptError> {
        for wanted in wanted.chunks(NAMES_AT_ONCE) {
            let exact = |(name, arch, version): &Identity| match arch.as_str() {
                "all" => format!("{name}={version}"),
                arch => format!("{name}:{arch}={version}"),
            };
            let mut command = Command::new("apt-get");
            command.args(["--quiet=1", "download", "--"]).args(wanted.iter().map(exact)).current_dir(folder);
            self.run("fetch package files", &mut command)?;
        }
        Ok(())
    }

    /// Fetches what [`Self::simulate_install`] said; gives the paths of the package files. apt checks each against the signed lists.
    pub fn download(&self, packages: &[String]) -> Result<Vec<PathBuf>, AptError> {
        let mut arguments = vec!["--download-only", "--no-install-recommends", "--no-remove", "install", "--"];
        arguments.extend(packages.iter().map(String::as_str));
        self.get("fetch the packages", &arguments)?;
        let archives = self.dir.path().join("archives");
        let mut files = Vec::new();
        for entry in fs::read_dir(&archives).map_err(failed("read", &archives))? {
            let path = entry.map_err(failed("read", &archives))?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    fn get(&self, action: &'static str, arguments: &[&str]) -> Result<String, AptError> {
        let mut command = Command::new("apt-get");
        self.run(action, command.args(["--yes", "--quiet=1"]).args(arguments))
    }

    /// A program of apt's that sees the baseline instead of the host.
    fn surrounded<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("APT_CONFIG", self.configuration_file())
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
    }

    fn run(&self, action: &'static str, command: &mut Command) -> Result<String, AptError> {
        let output = self.surrounded(command).output().map_err(|source| AptError::NoApt { source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(AptError::Apt { action, reason: complaints(&output.stderr, &output.stdout) })
    }
}

/// Stanzas of `apt-cache show` that come from index files; those of dpkg's status have no digest.
fn descriptions(text: &str) -> BTreeMap<Identity, Described> {
    let described = |stanza: &str| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let identity = (field("Package")?.into(), field("Architecture")?.into(), field("Version")?.into());
        Some((identity, Described { sha256: field("SHA256")?.parse().ok()?, size: field("Size")?.parse().ok()? }))
    };
    text.split("\n\n").filter_map(described).collect()
}

/// What apt complained of, on one line: its errors, or its warnings where it gave none.
fn complaints(stderr: &[u8], stdout: &[u8]) -> String {
    let stderr = String::from_utf8_lossy(stderr);
    let stdout = String::from_utf8_lossy(stdout);
    let lines = |sign: &str| {
        let found: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix(sign)).collect();
        found.join("; ")
    };
    // Why packages do not go together stands on standard output, indented.
    let unmet: Vec<&str> =
        stdout.lines().map(str::trim).filter(|line| line.contains("Depends:") || line.contains("Conflicts:")).collect();
    let reason =
        [lines("E: "), unmet.join("; ")].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    if !reason.is_empty() {
        return reason;
    }
    match lines("W: ") {
        warnings if !warnings.is_empty() => warnings,
        _ => stderr.trim().replace('\n', "; "),
    }
}

/// The host's settings for reaching the network, as configuration lines.
fn inherited() -> Result<String, AptError> {
    let output = Command::new("apt-config").arg("dump").output().map_err(|source| AptError::NoApt { source })?;
    let dump = String::from_utf8_lossy(&output.stdout);
    let wanted = |line: &&str| {
        let key = line.split(' ').next().unwrap_or_default();
        INHERITED
            .iter()
            .any(|prefix| key == *prefix || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("::")))
    };
    Ok(dump.lines().filter(wanted).map(|line| format!("{line}\n")).collect())
}

fn configuration(root: &Path, lists: &Path, arch: &str, inherited: &str) -> String {
    let at = |name: &str| root.join(name).display().to_string();
    let lists = lists.display();
    format!(
        "{inherited}\
         Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"{empty}\";\n\
         Dir::Etc::preferences \"{preferences}\";\n\
         Dir::Etc::preferencesparts \"{empty}\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{sources}\";\n\
         Dir::Etc::trusted \"/dev/null\";\n\
         Dir::Etc::trustedparts \"{keyrings}\";\n\
         Dir::State \"{state}\";\n\
         Dir::State::lists \"{lists}\";\n\
         Dir::State::status \"{status}\";\n\
         Dir::State::extended_states \"{state}/extended_states\";\n\
         Dir::Cache \"{state}\";\n\
         Dir::Cache::archives \"{archives}\";\n\
         Dir::Cache::pkgcache \"{state}/pkgcache.bin\";\n\
         Dir::Cache::srcpkgcache \"{lists}/../srcpkgcache.bin\";\n\
         Dir::Log \"{state}\";\n\
         APT::Architecture \"{arch}\";\n\
         APT::Architectures {{ \"{arch}\"; }};\n\
         APT::Get::AllowUnauthenticated \"false\";\n\
         Acquire::AllowInsecureRepositories \"false\";\n\
         Acquire::AllowWeakRepositories \"false\";\n\
         Acquire::AllowDowngradeToInsecureRepositories \"false\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Binary::apt-get::APT::Keep-Downloaded-Packages \"true\";\n",
        empty = at("empty"),
        preferences = at(PREFERENCES),
        sources = at("sources.d"),
        keyrings = at("keyrings"),
        state = at("state"),
        status = at("status"),
        archives = at("archives"),
    )
}

fn is_deb822(sources: &str) -> bool {
    sources.lines().any(|line| line.to_ascii_lowercase().starts_with("types:"))
}

/// The baseline's sources with `signed-by` pointing to the baseline's keyrings instead of paths of this machine. Options by which
/// a source goes unchecked are refused.
fn private_sources(sources: &str, keyrings: &Path) -> Result<String, String> {
    let mut out = String::new();
    for line in sources.lines() {
        let lower = line.to_ascii_lowercase();
        let said = lower.trim_start();
        if !said.starts_with('#') {
            for option in ["trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure"] {
                let one_line = said.contains(&format!("[{option}=")) || said.contains(&format!(" {option}="));
                if one_line || said.starts_with(&format!("{option}:")) {
                    return Err(format!(
                        "{:?} turns the signature check off: patchlab does not draft from that",
                        line.trim()
                    ));
                }
            }
        }
        out.push_str(&with_private_keyring(line, keyrings));
        out.push('\n');
    }
    Ok(out)
}

fn with_private_keyring(line: &str, keyrings: &Path) -> String {
    let lower = line.to_ascii_lowercase();
    let Some(start) = lower.find("signed-by").map(|at| at + "signed-by".len() + 1) else { return line.to_owned() };
    let rest = &line[start..];
    let value = rest.trim_start();
    let begin = start + (rest.len() - value.len());
    let end = value.find([' ', ']', ',']).map_or(line.len(), |at| begin + at);
    let private = Path::new(&line[begin..end]).file_name().map(|name| keyrings.join(name)).filter(|path| path.exists());
    match private {
        Some(path) => format!("{}{}{}", &line[..begin], path.display(), &line[end..]),
        None => line.to_owned(),
    }
}

fn copy_keyrings(from: &Path, to: &Path) -> Result<(), AptError> {
    let mut copied = 0;
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        let path = entry.map_err(failed("read", from))?.path();
        let is_key = path.extension().is_some_and(|extension| extension == "gpg" || extension == "asc");
        // Debian ships keys that it no longer uses beside those it does: trusting a folder must not bring them back.
        let retired = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("removed-keys"));
        if let (true, true, false, Some(name)) = (is_key, path.is_file(), retired, path.file_name()) {
            let target = to.join(name);
            fs::copy(&path, &target).map_err(failed("copy", &path))?;
            set_mode(&target, 0o644)?;
            copied += 1;
        }
    }
    if copied == 0 {
        return Err(AptError::Sources {
            path: from.to_owned(),
            problem: "no keyring (*.gpg, *.asc): no signature can be checked".into(),
        });
    }
    Ok(())
}

fn read_limited(path: &Path) -> Result<String, AptError> {
    use io::Read as _;
    let mut text = String::new();
    let file = fs::File::open(path).map_err(failed("read", path))?;
    file.take(INPUT_BYTES).read_to_string(&mut text).map_err(failed("read", path))?;
    Ok(text)
}

fn write(path: &Path, text: &str) -> Result<(), AptError> {
    fs::write(path, text).map_err(failed("write", path))?;
    set_mode(path, 0o644)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), AptError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("change the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_made_private_and_unchecked_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.gpg"), "").unwrap();
        let at = dir.path().display();
        let table = [
            (
                "deb [signed-by=/usr/share/keyrings/a.gpg arch=amd64] http://h/d s main",
                format!("deb [signed-by={at}/a.gpg arch=amd64] http://h/d s main\n"),
            ),
            ("Signed-By: /usr/share/keyrings/a.gpg", format!("Signed-By: {at}/a.gpg\n")),
            (
                "deb [signed-by=/other/b.gpg] http://h/d s main",
                "deb [signed-by=/other/b.gpg] http://h/d s main\n".into(),
            ),
            ("# deb [trusted=yes] http://h/d s main", "# deb [trusted=yes] http://h/d s main\n".into()),
        ];
        for (line, expected) in table {
            assert_eq!(private_sources(line, dir.path()).unwrap(), expected);
        }
        for line in [
            "deb [trusted=yes] http://h/d s main",
            "deb [arch=amd64 trusted=yes] http://h/d s main",
            "Trusted: yes",
            "deb [ allow-insecure=yes ] http://h/d s main",
        ] {
            assert!(private_sources(line, dir.path()).unwrap_err().contains("turns the signature check off"), "{line}");
        }
    }

    #[test]
    fn only_index_files_describe_package_files() {
        let digest = "ab".repeat(32);
        let text = format!(
            "Package: a\nVersion: 2\nArchitecture: amd64\nSize: 7\nDescription: x\n y: z\nSHA256: {digest}\n\n\
             Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n\n"
        );
        let expected = Described { sha256: digest.parse().unwrap(), size: 7 };
        assert_eq!(descriptions(&text), [(("a".into(), "amd64".into(), "2".into()), expected)].into());
    }

    #[test]
    fn complaints_are_one_line() {
        let found = complaints(b"W: x\nE: Unable to locate package foo\n", b"");
        assert_eq!(found, "Unable to locate package foo");
        assert_eq!(complaints(b"E: broken\n", b" a : Depends: b (>= 2)\n"), "broken; a : Depends: b (>= 2)");
        assert_eq!(complaints(b"odd\nthings\n", b""), "odd; things");
    }
}
