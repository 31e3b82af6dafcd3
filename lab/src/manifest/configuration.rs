//! Configuration files that belong to packages (dpkg's conffiles, rpm's `%config`), with what was shipped and what is there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A package's configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFile {
    /// The package (`name:arch`).
    pub package: String,
    /// Of the version that the package shipped, what its system keeps: dpkg MD5, rpm SHA-256. A name of content here, no protection.
    pub shipped: String,
    /// The same of what is there; absent when nothing is, or it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Whether the package does not ship it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub obsolete: bool,
}

impl ConfigurationFile {
    /// Whether it is as its package shipped it.
    pub fn is_as_shipped(&self) -> bool {
        self.found.as_deref() == Some(self.shipped.as_str())
    }
}

/// Endings of what a package manager or ucf(1) leaves beside a configuration file for somebody to merge.
pub const LEFTOVERS: &[&str] = &[
    ".dpkg-new",
    ".dpkg-old",
    ".dpkg-dist",
    ".dpkg-tmp",
    ".ucf-new",
    ".ucf-old",
    ".ucf-dist",
    ".rpmnew",
    ".rpmsave",
    ".rpmorig",
];

/// Whether a path is something that was left for somebody to merge.
pub fn is_leftover(path: &str) -> bool {
    LEFTOVERS.iter().any(|end| path.ends_with(end))
}

/// From ` PATH MD5[ obsolete]` lines, each under its package's, and `md5sum` of those that were read; others are as they were `known`.
pub(super) fn parse(
    conffiles: &[(String, &str)],
    sums: &str,
    known: Option<&BTreeMap<String, ConfigurationFile>>,
    exists: impl Fn(&str) -> bool,
) -> BTreeMap<String, ConfigurationFile> {
    let sums: BTreeMap<&str, &str> =
        sums.lines().filter_map(|line| line.split_once("  ")).map(|(sum, path)| (path, sum)).collect();
    let file = |(package, line): &(String, &str)| {
        let (path, rest) = line.trim().split_once(' ')?;
        let mut words = rest.split(' ');
        // `newconffile` stands where a package was unpacked and never configured.
        let (shipped, obsolete) = (words.next()?.to_owned(), words.next() == Some("obsolete"));
        let before = || known.and_then(|known| known.get(path)?.found.clone());
        let found = sums.get(path).map(|sum| (*sum).to_owned()).or_else(before).filter(|_| exists(path));
        Some((path.to_owned(), ConfigurationFile { package: package.clone(), shipped, found, obsolete }))
    };
    conffiles.iter().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_shipped_changed_removed_and_not_read_again() {
        let of = |line: &'static str| ("nginx:all".to_owned(), line);
        let lines = [of(" /etc/a aa"), of(" /etc/b bb"), of(" /etc/c cc obsolete"), of(" /etc/d dd")];
        let first = parse(&lines, "aa  /etc/a\nb2  /etc/b\ncc  /etc/c\n", None, |path| path != "/etc/d");
        let states: Vec<bool> = first.values().map(ConfigurationFile::is_as_shipped).collect();
        assert_eq!(states, [true, false, true, false]);
        assert!(first["/etc/c"].obsolete && first["/etc/d"].found.is_none());
        // Only what changed is read again; what is gone has nothing, whatever it had.
        let second = parse(&lines, "a2  /etc/a\n", Some(&first), |path| path != "/etc/b");
        assert_eq!(second["/etc/a"].found.as_deref(), Some("a2"));
        assert_eq!((&second["/etc/b"].found, second["/etc/c"].is_as_shipped()), (&None, true));
        assert!(is_leftover("/etc/a.dpkg-new") && is_leftover("/x.rpmsave") && !is_leftover("/etc/dpkg-new.conf"));
    }
}
