//! A package as a recipe asks for it: by its name, or by name and version.

use std::{fmt, str::FromStr};

use super::{Senseless, is_package};

/// Longest version that is taken, bytes.
const VERSION_BYTES: usize = 200;
/// What [`Wanted`] looks like, for editors.
pub(super) const PATTERN: &str = "^[a-z0-9][a-z0-9+.-]+(=[0-9][A-Za-z0-9.+~:-]*)?$";

/// A package that a recipe asks for: `nginx`, or `nginx=1.22.1-9` for that very version (apt-get(8)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Its name (Debian policy 5.6.1).
    pub name: String,
    /// The version to install (Debian policy 5.6.12); the newest that the pockets have when absent.
    pub version: Option<String>,
}

impl Wanted {
    /// What makes its version the only candidate (apt_preferences(5); above 1000 a version may be older than another that is there): it
    /// counts for essential packages, and for those that come as dependencies.
    pub(crate) fn preference(&self) -> Option<String> {
        let version = self.version.as_ref()?;
        Some(format!("Package: {}\nPin: version {version}\nPin-Priority: 1001\n\n", self.name))
    }

    /// The packages of a recipe's key; the first that is none is named by its place.
    pub(super) fn read(packages: &[String]) -> Result<Vec<Self>, Senseless> {
        let one = |(index, text): (usize, &String)| {
            text.parse().map_err(|()| Senseless {
                key: format!("packages.{index}"),
                problem: format!(
                    "expected a package's name (lower-case letters, digits, + - .), or NAME=VERSION, found {text:?}"
                ),
            })
        };
        packages.iter().enumerate().map(one).collect()
    }
}

impl FromStr for Wanted {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if !is_package(name) || version.is_some_and(|version| !is_version(version)) {
            return Err(());
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "={version}"))
    }
}

/// Whether it can be the version of a Debian package. Nothing in it means anything to a shell or to apt's preferences.
pub(super) fn is_version(text: &str) -> bool {
    text.len() <= VERSION_BYTES
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '~' | ':' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_a_name_or_a_name_and_a_version() {
        let pattern = regex::Regex::new(PATTERN).unwrap();
        for text in
            ["nginx", "libstdc++6=12.2.0-14+deb12u1", "login=1:4.13+dfsg1-1+deb12u1", "ca-certificates=20230311"]
        {
            assert_eq!(text.parse::<Wanted>().unwrap().to_string(), text);
            assert!(pattern.is_match(text), "{text}");
        }
        for text in
            ["Nginx", "nginx=", "=1", "nginx=v1", "nginx=1;reboot", "nginx=1*", "nginx/bookworm", "nginx=1=2", ""]
        {
            assert!(text.parse::<Wanted>().is_err() && !pattern.is_match(text), "{text}");
        }
    }
}
