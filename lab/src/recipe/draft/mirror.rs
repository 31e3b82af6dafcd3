//! Asking the installer which sources it would use, apt for their signed index files, and apt again what it would install of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use super::{
    super::{Pocket, Wanted, is_name, is_package, source::CLOUD_KERNEL},
    Builder, Draft, Index, Installed, Learned, Outcome, Plan,
};
use crate::{
    apt::{Apt, AptError, AptInputs, dpkg_arch, transaction::parse_simulation},
    baseline::{Os, PACKAGES},
};

/// Releases whose baselines the tests build, with the suites that hold them.
const SUITES: &[(&str, &str, &str)] = &[("debian", "12", "bookworm"), ("debian", "13", "trixie")];
/// Component that the installer's own sources have.
const COMPONENT: &str = "main";
/// Most packages of a host that are looked up.
const PACKAGES_MOST: usize = 20_000;
/// How often apt is asked again after it left something out.
const ROUNDS: usize = 5;
/// Keys that the host's own apt trusts, as the installer does.
const KEYRINGS: &str = "/etc/apt/trusted.gpg.d";

/// No recipe can be drafted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// A baseline may not be called that.
    #[error(
        "{0:?} is no name of a baseline (up to 64 letters, digits, dots and dashes, beginning with a letter): give one with --name"
    )]
    Name(String),
    /// Nobody has shown that such a system can be built.
    #[error("no suite is known for {family} {release} {arch}: recipes are drafted for {known} on x86_64", known = known())]
    NoSuite {
        /// Its family.
        family: String,
        /// Its release.
        release: String,
        /// Its architecture.
        arch: String,
    },
    /// The host has more than anybody's.
    #[error("{0} packages are too many: up to {PACKAGES_MOST} are looked up")]
    TooMany(usize),
    /// The installer does not say what it would install from.
    #[error(
        "mmdebstrap does not say which sources it has for {suite}: {reason}; run lab/setup-host, or name a mirror with --mirror"
    )]
    Installer {
        /// The suite.
        suite: String,
        /// Its words.
        reason: String,
    },
    /// A mirror's line is of another suite.
    #[error(
        "--mirror {line:?}: a recipe for {suite} installs from {suite}, {suite}-updates and {suite}-security alone"
    )]
    Elsewhere {
        /// The line.
        line: String,
        /// The suite.
        suite: String,
    },
    /// apt cannot read the index files, or not check them.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// apt speaks otherwise than expected.
    #[error("apt's simulation says {0:?}, which is not understood")]
    Simulation(String),
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

fn known() -> String {
    SUITES.iter().map(|(family, release, _)| format!("{family} {release}")).collect::<Vec<_>>().join(" and ")
}

/// Where index files are read instead of the installer's own sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirror {
    /// An address, which is asked for the release itself.
    Address(String),
    /// A line of sources.list(5): `deb [signed-by=KEYRING] ADDRESS SUITE COMPONENT…`.
    Line(String),
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_address = ["http://", "https://", "file:/"].iter().any(|scheme| text.starts_with(scheme));
        if text.chars().any(char::is_control) || text.len() > 2000 {
            Err("expected one line".into())
        } else if text.starts_with("deb ") {
            Ok(Self::Line(text.to_owned()))
        } else if is_address && !text.contains(' ') {
            Ok(Self::Address(text.to_owned()))
        } else {
            Err("expected an address (http, https, file), or a line \"deb [signed-by=KEYRING] ADDRESS SUITE COMPONENT\"".into())
        }
    }
}

/// Drafts the recipe of a baseline `name` for a host of that system. `cache` keeps index files between drafts; `tell` hears what is done.
///
/// # Errors
/// No recipe can be drafted for such a system, or the index files cannot be had or checked. What the suites do not have is no error.
pub fn draft(
    name: &str,
    host: (&str, &Os, &[Installed]),
    mirrors: &[Mirror],
    cache: &Path,
    tell: &mut dyn FnMut(&str),
) -> Result<Draft, DraftError> {
    let (host, os, installed) = host;
    if !is_name(name, 64) {
        return Err(DraftError::Name(name.to_owned()));
    }
    let suite = suite(os)?;
    if installed.len() > PACKAGES_MOST {
        return Err(DraftError::TooMany(installed.len()));
    }
    let lines = if mirrors.is_empty() { installers(suite)? } else { given(mirrors, suite) };
    let pockets = pockets(&lines, suite)?;
    let arch = dpkg_arch(&os.arch);
    let apt = open(&lines, arch, cache)?;
    tell("bringing index files up to date");
    apt.update()?;
    tell(&format!("looking {} packages up", installed.len()));
    let index = index(&apt, installed)?;
    let mut plan = Plan::new(installed, &index, arch, &Builder { packages: PACKAGES, kernel: CLOUD_KERNEL });
    let resolved = resolve(&apt, &mut plan, tell)?;
    let (outcome, refused) = match resolved {
        Ok(outcome) => {
            plan.settle(&outcome);
            (outcome, None)
        }
        Err(reason) => (Outcome::new(), Some(reason)),
    };
    let hosts: BTreeSet<&str> = installed.iter().map(|one| one.name.as_str()).collect();
    Ok(Draft {
        name: name.to_owned(),
        host: host.to_owned(),
        os: os.clone(),
        suite: suite.to_owned(),
        pockets,
        kernel: plan.kernel.map(str::to_owned),
        packages: plan.packages(),
        disk_gib: plan.disk_gib(),
        installed: installed.len(),
        exact: installed.len() - plan.unmatched.len(),
        beside: outcome.into_keys().filter(|name| !hosts.contains(name.as_str())).collect(),
        unmatched: plan.unmatched.into_values().collect(),
        refused,
    })
}

fn suite(os: &Os) -> Result<&'static str, DraftError> {
    let found = SUITES.iter().find(|(family, release, _)| *family == os.family && *release == os.release);
    found.filter(|_| os.arch == "x86_64").map(|(.., suite)| *suite).ok_or_else(|| DraftError::NoSuite {
        family: os.family.clone(),
        release: os.release.clone(),
        arch: os.arch.clone(),
    })
}

/// The sources that the installer would use: it writes them before it does anything else, and here does nothing else.
fn installers(suite: &str) -> Result<Vec<String>, DraftError> {
    let failed = |reason: String| DraftError::Installer { suite: suite.to_owned(), reason };
    let output = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=custom", "--format=null", "--skip=update"])
        .args(["--setup-hook=cat \"$1/etc/apt/sources.list\" >&2", suite, "-"])
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<String> = text.lines().filter(|line| line.starts_with("deb ")).map(str::to_owned).collect();
    if !output.status.success() || lines.is_empty() {
        return Err(failed(text.trim().replace('\n', "; ")));
    }
    Ok(lines)
}

fn given(mirrors: &[Mirror], suite: &str) -> Vec<String> {
    let line = |mirror: &Mirror| match mirror {
        Mirror::Address(address) => format!("deb {address} {suite} {COMPONENT}"),
        Mirror::Line(line) => line.clone(),
    };
    mirrors.iter().map(line).collect()
}

/// Which pockets of the suite the lines are of.
fn pockets(lines: &[String], suite: &str) -> Result<Vec<Pocket>, DraftError> {
    let mut found = BTreeSet::new();
    for line in lines {
        let rest = line.trim_start_matches("deb ").trim_start();
        let rest = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(rest, |(_, rest)| rest);
        let named = rest.split_whitespace().nth(1).unwrap_or_default();
        let pocket = Pocket::ALL.into_iter().find(|pocket| pocket.suite(suite) == named);
        let elsewhere = || DraftError::Elsewhere { line: line.clone(), suite: suite.to_owned() };
        found.insert(pocket.ok_or_else(elsewhere)?);
    }
    Ok(found.into_iter().collect())
}

/// apt over an empty system with these sources.
fn open(lines: &[String], arch: &str, cache: &Path) -> Result<Apt, DraftError> {
    fs::create_dir_all(cache).map_err(failed("create", cache))?;
    let folder =
        tempfile::Builder::new().prefix("sources-").tempdir_in(cache).map_err(failed("create a folder in", cache))?;
    let (status, sources) = (folder.path().join("status"), folder.path().join("sources.list"));
    for (path, text) in [(&status, String::new()), (&sources, lines.join("\n") + "\n")] {
        fs::write(path, text).map_err(failed("write", path))?;
    }
    Ok(Apt::open(&AptInputs { status, sources, keyrings: KEYRINGS.into(), arch: arch.to_owned() }, cache)?)
}

/// What the index files have of the host's packages, and of what the builder adds to them.
fn index(apt: &Apt, installed: &[Installed]) -> Result<Index, DraftError> {
    let always: Vec<&str> = PACKAGES.iter().copied().chain([CLOUD_KERNEL]).collect();
    let hosts = installed.iter().map(|one| one.name.as_str());
    let mut next: BTreeSet<String> =
        hosts.chain(always.iter().copied()).filter(|name| is_package(name)).map(str::to_owned).collect();
    let (mut index, mut asked) = (Index::default(), BTreeSet::new());
    while !next.is_empty() && asked.len() < PACKAGES_MOST * 2 {
        let names: Vec<String> = next.iter().cloned().collect();
        apt.show(&names, &mut |text| index.add(Index::read(text)))?;
        asked.append(&mut next);
        next = index.lacking(&always, &asked);
    }
    Ok(index)
}

/// Asks apt what it would install until nothing more can be named for what it left out; or why it installs nothing.
fn resolve(apt: &Apt, plan: &mut Plan<'_>, tell: &mut dyn FnMut(&str)) -> Result<Result<Outcome, String>, DraftError> {
    let mut outcome = Outcome::new();
    for _ in 0..ROUNDS {
        tell("asking apt what it would install");
        let packages = plan.packages();
        apt.prefer(&packages.iter().filter_map(Wanted::preference).collect::<String>())?;
        let kernel = plan.kernel.unwrap_or(CLOUD_KERNEL);
        let always = PACKAGES.iter().copied().chain([kernel]).chain(plan.base()).map(str::to_owned);
        let wanted: Vec<String> = always.chain(packages.iter().map(Wanted::to_string)).collect();
        let text = match apt.simulate_install(&wanted) {
            Ok(text) => text,
            Err(AptError::Apt { reason, .. }) => return Ok(Err(reason)),
            Err(other) => return Err(other.into()),
        };
        let transaction = parse_simulation(&text).map_err(DraftError::Simulation)?;
        outcome = transaction.install.into_iter().map(|one| (one.name, one.to)).collect::<BTreeMap<_, _>>();
        if plan.learn(&outcome) == Learned::Settled {
            break;
        }
    }
    Ok(Ok(outcome))
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> DraftError + 'p {
    move |source| DraftError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_addresses_or_lines_of_the_recipes_own_suites() {
        let lines = |texts: &[&str]| {
            let mirrors: Vec<Mirror> = texts.iter().map(|text| text.parse().unwrap()).collect();
            pockets(&given(&mirrors, "bookworm"), "bookworm").map_err(|error| error.to_string())
        };
        assert_eq!(lines(&["https://mirror.example.org/debian"]).unwrap(), [Pocket::Main]);
        let security = "deb [signed-by=/k/a.gpg] https://mirror.example.org/debian-security bookworm-security main";
        assert_eq!(lines(&[security, "file:/srv/debian"]).unwrap(), [Pocket::Main, Pocket::Security]);
        let backports = "deb https://mirror.example.org/debian bookworm-backports main";
        assert!(lines(&[backports]).unwrap_err().contains("a recipe for bookworm installs from bookworm, bookworm-"));
        for text in ["ftp://mirror.example.org/debian", "bookworm", "deb http://h/d s main\ndeb http://h/e s main", ""]
        {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_system_has_a_suite_or_the_error_says_which_have() {
        let os = |family: &str, release: &str, arch: &str| Os {
            family: family.into(),
            release: release.into(),
            arch: arch.into(),
        };
        assert_eq!(suite(&os("debian", "13", "x86_64")).unwrap(), "trixie");
        for os in [os("debian", "9", "x86_64"), os("debian", "12", "aarch64"), os("ubuntu", "24.04", "x86_64")] {
            let error = suite(&os).unwrap_err().to_string();
            assert!(error.contains("debian 12 and debian 13 on x86_64"), "{error}");
        }
    }
}
