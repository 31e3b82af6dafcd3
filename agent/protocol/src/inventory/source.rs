//! What a package was built from. Advisories name sources: one source makes many packages, and a package that was only built anew has a
//! version of its own. It is told beside the inventory and stands in no digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PackageId;

/// Longest name and longest version that is told, bytes; what is longer is not told.
pub const SOURCE_BYTES: usize = 128;

/// A source package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Its version: dpkg's `source:Version`; of rpm the version and the release in its file's name, which has no epoch.
    pub version: String,
}

impl Source {
    /// From its parts; `None` when one of them is empty, too long, or not one word.
    pub fn new(name: &str, version: &str) -> Option<Self> {
        let is_word = |text: &str| {
            !text.is_empty()
                && text.len() <= SOURCE_BYTES
                && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        (is_word(name) && is_word(version)).then(|| Self { name: name.to_owned(), version: version.to_owned() })
    }

    /// Of the name of a source package's file, as rpm's `SOURCERPM` has it: `NAME-VERSION-RELEASE.src.rpm`.
    pub fn of_file(name: &str) -> Option<Self> {
        let stem = [".src.rpm", ".nosrc.rpm"].iter().find_map(|ending| name.strip_suffix(ending))?;
        let (rest, release) = stem.rsplit_once('-')?;
        let (name, version) = rest.rsplit_once('-')?;
        Self::new(name, &format!("{version}-{release}"))
    }
}

/// What the packages of a host were built from, as far as they say.
pub type Sources = BTreeMap<PackageId, Source>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_says_what_it_is_and_other_names_say_nothing() {
        let read = |name| Source::of_file(name).map(|source| (source.name, source.version));
        let owned = |name: &str, version: &str| Some((name.to_owned(), version.to_owned()));
        assert_eq!(read("nginx-1.20.1-14.el9.src.rpm"), owned("nginx", "1.20.1-14.el9"));
        assert_eq!(read("java-17-openjdk-17.0.9.0.9-2.el9.nosrc.rpm"), owned("java-17-openjdk", "17.0.9.0.9-2.el9"));
        for nothing in
            ["(none)", "", "nginx-1.20.1-14.el9.x86_64.rpm", "nginx.src.rpm", "-1-2.src.rpm", "a b-1-2.src.rpm"]
        {
            assert_eq!(read(nothing), None, "{nothing}");
        }
        assert_eq!(Source::new(&"x".repeat(SOURCE_BYTES + 1), "1"), None);
    }
}
