//! A version's parts, for whoever compares or shows them apart. What is signed, compared and named by digest is always the whole.

use serde::{Deserialize, Serialize};

/// `[EPOCH:]VERSION[-RELEASE]`, as deb-version(7) and rpm-version(7) write it. Release is what dpkg calls a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionParts {
    /// 0 when none is written.
    pub epoch: u32,
    /// What its makers call it.
    pub version: String,
    /// Which packaging of it; empty when there is none, as of a native package of Debian.
    pub release: String,
}

impl VersionParts {
    /// The parts of a full version. The epoch ends at the first colon, the release begins after the last hyphen; a colon without a
    /// number before it parts nothing.
    pub fn of(full: &str) -> Self {
        let numbered = full.split_once(':').and_then(|(epoch, rest)| Some((epoch.parse().ok()?, rest)));
        let (epoch, rest) = numbered.unwrap_or((0, full));
        let (version, release) = rest.rsplit_once('-').unwrap_or((rest, ""));
        Self { epoch, version: version.to_owned(), release: release.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_dpkg_and_rpm_have_the_same_three_parts() {
        for (full, epoch, version, release) in [
            ("1.22.1-9+deb12u11", 0, "1.22.1", "9+deb12u11"),
            ("1:2.3-rc1-4", 1, "2.3-rc1", "4"),
            ("12.4+deb12u5", 0, "12.4+deb12u5", ""),
            ("2:0.9-1.el9", 2, "0.9", "1.el9"),
            ("x:1-2", 0, "x:1", "2"),
        ] {
            let parts = VersionParts { epoch, version: version.into(), release: release.into() };
            assert_eq!(VersionParts::of(full), parts, "{full}");
        }
    }
}
