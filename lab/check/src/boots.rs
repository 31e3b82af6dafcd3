//! What a system boots, as far as a new kernel has to do with it: baselines, releases and hosts say it in the same words.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What of a system decides whether a new kernel that another one boots will do here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boots {
    /// The running kernel's flavour as the distribution calls it, e.g. `cloud-amd64`; absent where its release names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavour: Option<String>,
    /// Names of the modules that dkms(8) builds for each kernel there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dkms: BTreeSet<String>,
}

impl Boots {
    /// A kernel's flavour, by its release (`uname -r`): what stands behind the numbers, `cloud-amd64` of `6.1.0-50-cloud-amd64`.
    pub fn flavour_of(release: &str) -> Option<String> {
        let parts = release.split('-').skip_while(|part| part.starts_with(|c: char| c.is_ascii_digit()));
        let flavour = parts.collect::<Vec<_>>().join("-");
        (!flavour.is_empty()).then_some(flavour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flavour_stands_behind_the_numbers() {
        for (release, expected) in [
            ("6.1.0-50-cloud-amd64", Some("cloud-amd64")),
            ("6.1.0-50-amd64", Some("amd64")),
            ("6.12.48+deb13-cloud-amd64", Some("cloud-amd64")),
            ("6.8.0-45-generic", Some("generic")),
            ("5.14.0-427.el9.x86_64", None),
        ] {
            assert_eq!(Boots::flavour_of(release).as_deref(), expected, "{release}");
        }
    }
}
