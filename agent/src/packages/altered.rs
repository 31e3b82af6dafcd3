//! Installed files that are not what their package shipped, as `dpkg --verify` and `rpm --verify` tell them, which have the same form: what
//! differs, a letter for configuration and the like, the path.

use std::{collections::BTreeSet, fmt};

use patchlab_protocol::inventory::PackageId;
use serde::{Deserialize, Serialize};

use super::PackageError;
use crate::process::Finished;

/// Where documentation is (hier(7), and the FHS, 4.11).
const DOCUMENTATION: &[&str] =
    &["/usr/share/doc/", "/usr/share/info/", "/usr/share/licenses/", "/usr/share/locale/", "/usr/share/man/"];
/// Most files that are told; more are counted.
const TOLD: usize = 10_000;

/// Which packages' files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent<'a> {
    /// Every package's.
    Everything,
    /// These, each in the version that is installed.
    Only(&'a [(PackageId, String)]),
}

/// How a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// It is not there.
    Missing,
    /// Something else is in it, or a link leads elsewhere.
    Contents,
    /// Mode, owner, group, capabilities or device number alone. dpkg does not look at these.
    Attributes,
}

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The package's.
    Shipped,
    /// Configuration: it is there to be changed.
    Configuration,
    /// Manuals, licences and translations: small systems go without them, and nothing runs by them.
    Documentation,
}

/// A file that is not what its package shipped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Altered {
    /// Its absolute path, from the system's root.
    pub path: String,
    /// How it differs.
    pub difference: Difference,
    /// Whose it is.
    pub kind: Kind,
}

impl Altered {
    /// Whether its package cannot work as it was shipped: a file of its own, neither configuration nor documentation, is not there or has
    /// something else in it.
    pub fn is_broken(&self) -> bool {
        self.kind == Kind::Shipped && self.difference != Difference::Attributes
    }
}

impl fmt::Display for Altered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let difference = match self.difference {
            Difference::Missing => "missing",
            Difference::Contents => "altered",
            Difference::Attributes => "attributes",
        };
        let kind = match self.kind {
            Kind::Shipped => "",
            Kind::Configuration => ", configuration",
            Kind::Documentation => ", documentation",
        };
        write!(f, "{} ({difference}{kind})", self.path)
    }
}

/// What looking at installed files found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    /// Files that differ, by path.
    pub altered: Vec<Altered>,
    /// How many more there are, which are not told.
    pub untold: usize,
}

impl Verified {
    /// What a program found that was asked to verify: both exit with another code than 0 when they found something.
    ///
    /// # Errors
    /// When it was killed, or says something else than files.
    pub fn of(
        program: &'static str,
        finished: &Finished,
        is_absent_on_purpose: impl Fn(&str) -> bool,
    ) -> Result<Self, PackageError> {
        let (found, others) = Self::read(&finished.stdout, is_absent_on_purpose);
        let looked = match finished.exit {
            Some(0) => true,
            // dpkg says 2 when it gave up; rpm of how many packages it said something.
            Some(2..) if program == "dpkg" => false,
            Some(_) => !finished.stdout.trim().is_empty(),
            None => false,
        };
        if looked && others.is_empty() {
            return Ok(found);
        }
        let status = finished.exit.map_or_else(|| "killed".to_owned(), |code| format!("exit status {code}"));
        let said = others.first().map_or_else(|| finished.last_words(), |line| (*line).chars().take(200).collect());
        Err(PackageError::Failed { program, status, said })
    }

    /// The broken files ([`Altered::is_broken`]) that were not broken before.
    pub fn newly_broken(&self, before: &BTreeSet<String>) -> Vec<&Altered> {
        self.broken().filter(|file| !before.contains(&file.path)).collect()
    }

    /// Reads what was said, but for files that `is_absent_on_purpose`, with the lines that are something else.
    pub fn read(said: &str, is_absent_on_purpose: impl Fn(&str) -> bool) -> (Self, Vec<&str>) {
        let (mut altered, mut others) = (Vec::new(), Vec::new());
        for line in said.lines().filter(|line| !line.trim().is_empty()) {
            match file(line) {
                Some(Some(file)) if file.difference == Difference::Missing && is_absent_on_purpose(&file.path) => {}
                Some(found) => altered.extend(found),
                None => others.push(line),
            }
        }
        altered.sort();
        let untold = altered.len().saturating_sub(TOLD);
        altered.truncate(TOLD);
        (Self { altered, untold }, others)
    }

    /// The files by which packages are broken ([`Altered::is_broken`]).
    pub fn broken(&self) -> impl Iterator<Item = &Altered> {
        self.altered.iter().filter(|file| file.is_broken())
    }
}

/// `??5?????? c /etc/web.conf`, `S.5....T.    /usr/bin/web`, `missing   c /etc/web.conf`. Inside, nothing when it differs in nothing that
/// counts: its time alone, or a file that packages only lay claim to (`g`).
fn file(line: &str) -> Option<Option<Altered>> {
    let (differs, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    let (letter, path) = match rest.split_once(" /") {
        Some((letter, _)) if letter.len() == 1 && letter != "/" => (letter, &rest[2..]),
        _ => ("", rest),
    };
    let is_differences = differs.len() >= 8 && differs.bytes().all(|sign| b"SM5DLUGTPV?.".contains(&sign));
    if !path.starts_with('/') || !(differs == "missing" || is_differences) {
        return None;
    }
    let has = |signs: &str| differs != "missing" && differs.contains(|sign| signs.contains(sign));
    let difference = match differs {
        "missing" => Difference::Missing,
        _ if has("S5L") => Difference::Contents,
        _ if has("MDUGP") => Difference::Attributes,
        _ => return Some(None),
    };
    let kind = match letter {
        "g" => return Some(None),
        "c" => Kind::Configuration,
        // rpm's letters for documentation, licences and read-me files; dpkg has none.
        "d" | "l" | "r" => Kind::Documentation,
        _ if DOCUMENTATION.iter().any(|folder| path.starts_with(folder)) => Kind::Documentation,
        _ => Kind::Shipped,
    };
    Some(Some(Altered { path: path.to_owned(), difference, kind }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DPKG: &str = "??5?????? c /etc/web.conf\n??5??????   /usr/share/a /b\nmissing     /usr/share/doc/web/copyright\n\
                        missing   c /etc/gone.conf\n?M5??????   /usr/bin/web\n";
    const RPM: &str = ".M5......  c /etc/web.conf\n....L....    /usr/bin/lnk\nS.5......    /usr/bin/web\n\
                       missing   d /usr/share/doc/web/README\n.......T.    /usr/lib/x\n.M.......    /var/log/x\n\
                       S.5......  g /var/cache/x\npackage nope is not installed\n";

    fn told(said: &str) -> (Vec<String>, Vec<&str>) {
        let (found, others) = Verified::read(said, |path| path.ends_with("/copyright"));
        (found.altered.iter().map(ToString::to_string).collect(), others)
    }

    #[test]
    fn both_say_what_differs_and_configuration_is_told_apart() {
        let (files, others) = told(DPKG);
        let expected = [
            "/etc/gone.conf (missing, configuration)",
            "/etc/web.conf (altered, configuration)",
            "/usr/bin/web (altered)",
            "/usr/share/a /b (altered)",
        ];
        assert_eq!((files.as_slice(), others.len()), (expected.map(str::to_owned).as_slice(), 0));
        let (files, others) = told(RPM);
        let expected = [
            "/etc/web.conf (altered, configuration)",
            "/usr/bin/lnk (altered)",
            "/usr/bin/web (altered)",
            "/usr/share/doc/web/README (missing, documentation)",
            "/var/log/x (attributes)",
        ];
        assert_eq!(files, expected);
        assert_eq!(others, ["package nope is not installed"]);
    }

    #[test]
    fn only_files_that_are_the_packages_own_break_it_and_what_is_too_many_is_counted() {
        let (found, _) = Verified::read(RPM, |_| false);
        let broken: Vec<&str> = found.broken().map(|file| &*file.path).collect();
        assert_eq!(broken, ["/usr/bin/lnk", "/usr/bin/web"]);
        let before = ["/usr/bin/web".to_owned()].into_iter().collect();
        assert_eq!(found.newly_broken(&before).iter().map(|file| &*file.path).collect::<Vec<_>>(), ["/usr/bin/lnk"]);
        let many: String = (0..TOLD + 7).map(|n| format!("missing     /usr/{n}\n")).collect();
        let (found, _) = Verified::read(&many, |_| false);
        assert_eq!((found.altered.len(), found.untold), (TOLD, 7));
    }
}
