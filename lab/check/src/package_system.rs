//! Which package system a host has, and what follows from it: the order of versions, and which packages are kernels. A version
//! can be compared only by way of its system, so never by the rules of another.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

/// A package system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PackageSystem {
    /// dpkg: Debian and what comes from it.
    Dpkg,
    /// rpm: Red Hat's and SUSE's distributions and what comes from them.
    Rpm,
}

/// `ID` of os-release(5) of distributions that have dpkg; what comes from one of them says so in `ID_LIKE`.
const DPKG: &[&str] = &["debian", "ubuntu", "raspbian", "devuan", "linuxmint", "kali"];
/// As [`DPKG`], for rpm.
const RPM: &[&str] = &[
    "fedora",
    "rhel",
    "centos",
    "rocky",
    "almalinux",
    "ol",
    "amzn",
    "suse",
    "sles",
    "opensuse",
    "opensuse-leap",
    "opensuse-tumbleweed",
    "mageia",
    "openEuler",
    "photon",
    "azurelinux",
    "mariner",
];

impl PackageSystem {
    /// Every system.
    pub const ALL: [Self; 2] = [Self::Dpkg, Self::Rpm];

    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dpkg => "dpkg",
            Self::Rpm => "rpm",
        }
    }

    /// The system of a distribution by its identifiers, `ID` first and then those of `ID_LIKE` (os-release(5)): the first that is known.
    pub fn of_distribution<'a>(ids: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        ids.into_iter().find_map(|id| match id {
            id if DPKG.contains(&id) => Some(Self::Dpkg),
            id if RPM.contains(&id) => Some(Self::Rpm),
            _ => None,
        })
    }

    /// A shell function `package_system`, which says the name of the system of the machine that it is run on: by the distribution's name,
    /// since a machine may have the other system's tools and even its database; of a name that is not known, by the database.
    pub fn shell() -> String {
        let (dpkg, rpm) = (DPKG.join("|"), RPM.join("|"));
        format!(
            r#"package_system() {{
  for id in $(ID= ID_LIKE=; {{ . /etc/os-release || . /usr/lib/os-release; }} 2>/dev/null; echo "$ID $ID_LIKE"); do
    case $id in {dpkg}) echo dpkg; return;; {rpm}) echo rpm; return;; esac
  done
  if [ -e /var/lib/dpkg/status ]; then echo dpkg; else echo rpm; fi
}}
"#
        )
    }

    /// Which of two full versions is newer: Debian policy 5.6.12, or rpm-version(7) with epoch, version and release. `None`
    /// when one of them is no version of this system.
    pub fn compare(self, one: &str, other: &str) -> Option<Ordering> {
        match self {
            Self::Dpkg => {
                let [one, other] = [one, other].map(|text| text.parse::<debversion::Version>().ok());
                Some(one?.cmp(&other?))
            }
            Self::Rpm if one.is_empty() || other.is_empty() => None,
            // Its equality is another than its order, by which 1.0 and 1..0 are the same.
            Self::Rpm => Some(rpm_version::Evr::parse(one).cmp(&rpm_version::Evr::parse(other))),
        }
    }

    /// Whether a package of this name brings a kernel to boot.
    pub fn is_kernel(self, name: &str) -> bool {
        match self {
            // Debian's and Ubuntu's, Proxmox's (pve- until its 8), Raspberry Pi OS's until its 12.
            Self::Dpkg => {
                let begins = ["linux-image-", "proxmox-kernel-", "pve-kernel-", "raspberrypi-kernel"];
                let is_aid = ["-helper", "-headers", "-dbg", "-dbgsym"].iter().any(|ends| name.ends_with(ends));
                begins.iter().any(|begins| name.starts_with(begins)) && !is_aid
            }
            // Fedora and Red Hat have their kernels' files in NAME-core; Amazon, openEuler and SUSE have one package.
            Self::Rpm => match name.strip_prefix("kernel") {
                Some("" | "-default" | "-default-base" | "-azure" | "-rt" | "-uek" | "-lt" | "-ml" | "-PAE") => true,
                Some(flavour) => flavour.starts_with('-') && flavour.ends_with("-core"),
                None => false,
            },
        }
    }
}

impl fmt::Display for PackageSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What packages of rpm provide of which several versions may be installed at a time: dnf.conf(5), `installonlypkgs`.
pub const PROVIDED_BY_SEVERAL: [&str; 4] =
    ["installonlypkg(kernel)", "installonlypkg(kernel-module)", "installonlypkg(vm)", "multiversion(kernel)"];

/// The one text of a version of rpm: `[EPOCH:]VERSION-RELEASE`, without an epoch when that is 0 or not there.
pub fn rpm_version(epoch: &str, version: &str, release: &str) -> String {
    match epoch.trim_start_matches('0') {
        "" | "(none)" => format!("{version}-{release}"),
        epoch => format!("{epoch}:{version}-{release}"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::{collection::vec, prelude::Strategy, strategy::ValueTree, test_runner::TestRunner};

    use super::*;

    #[test]
    fn a_shell_tells_the_system_as_this_type_does() {
        let output = Command::new("sh").args(["-c", &format!("{}package_system", PackageSystem::shell())]).output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        let text = std::fs::read_to_string("/etc/os-release").unwrap();
        let value = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            value.trim_matches('"').to_owned()
        };
        let ids = format!("{} {}", value("ID="), value("ID_LIKE="));
        let expected = PackageSystem::of_distribution(ids.split_whitespace());
        assert_eq!(Some(said.trim()), expected.map(PackageSystem::name), "{ids}");
    }

    #[test]
    fn each_system_has_an_order_of_its_own() {
        use Ordering::{Equal, Greater, Less};
        for (one, other, dpkg, rpm) in [
            ("1.0-1", "1.0-2", Less, Less),
            ("2:0.9-1", "1.0-2", Greater, Greater),
            ("0:1.0-1", "1.0-1", Equal, Equal),
            ("1.0~rc1-1", "1.0-1", Less, Less),
            // A letter is less than a number to rpm, and the other way round to dpkg after a dot.
            ("1.a-1", "1.1-1", Greater, Less),
            ("1.0+1-1", "1.0.1-1", Less, Equal),
        ] {
            assert_eq!(PackageSystem::Dpkg.compare(one, other), Some(dpkg), "dpkg, {one} {other}");
            assert_eq!(PackageSystem::Rpm.compare(one, other), Some(rpm), "rpm, {one} {other}");
        }
        // The caret is rpm's alone.
        assert_eq!(PackageSystem::Rpm.compare("1.0^git1-1", "1.0-1"), Some(Greater));
        assert_eq!(PackageSystem::Dpkg.compare("1.0^git1-1", "1.0-1"), None);
    }

    #[test]
    fn distributions_kernels_and_versions_are_told_by_their_texts() {
        let of = |ids: &[&'static str]| PackageSystem::of_distribution(ids.iter().copied());
        assert_eq!(of(&["debian"]), Some(PackageSystem::Dpkg));
        assert_eq!(of(&["rocky", "rhel", "centos", "fedora"]), Some(PackageSystem::Rpm));
        assert_eq!(of(&["pop", "ubuntu", "debian"]), Some(PackageSystem::Dpkg));
        assert_eq!(of(&["arch"]), None);
        let kernels = ["kernel", "kernel-core", "kernel-rt-core", "kernel-default", "kernel-default-base"];
        assert!(kernels.iter().all(|name| PackageSystem::Rpm.is_kernel(name)));
        let others = ["kernel-tools", "kernel-headers", "kernel-modules", "kerneloops-core", "linux-image-1"];
        assert!(!others.iter().any(|name| PackageSystem::Rpm.is_kernel(name)));
        let kernels = [
            "linux-image-6.1.0-1-amd64",
            "proxmox-kernel-6.8.12-1-pve",
            "pve-kernel-5.15.1-1-pve",
            "raspberrypi-kernel",
        ];
        assert!(kernels.iter().all(|name| PackageSystem::Dpkg.is_kernel(name)));
        let others = ["raspberrypi-kernel-headers", "pve-kernel-helper", "proxmox-kernel-helper", "linux-libc-dev"];
        assert!(!others.iter().any(|name| PackageSystem::Dpkg.is_kernel(name)));
        assert_eq!(rpm_version("0", "1.0", "1"), "1.0-1");
        assert_eq!(rpm_version("(none)", "1.0", "1"), "1.0-1");
        assert_eq!(rpm_version("10", "1.0", "1.el9"), "10:1.0-1.el9");
    }

    /// rpm's own answers, -1, 0 or 1 a line.
    fn rpm_says(pairs: &[[String; 2]]) -> std::io::Result<String> {
        let said = pairs.iter().map(|[one, other]| format!("print(rpm.vercmp('{one}','{other}')..' ') "));
        let output =
            Command::new("rpm").args(["--eval", &format!("%{{lua: {}}}", said.collect::<String>())]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn versions_of_rpm_compare_as_rpm_itself_says() {
        // Few signs, so that pairs are often close to each other.
        let part = "[0-3a-cA.~^+_]{1,6}";
        let version = (proptest::option::of(0_u32..3), part, part).prop_map(|(epoch, version, release)| {
            rpm_version(&epoch.map(|epoch| epoch.to_string()).unwrap_or_default(), &version, &release)
        });
        let mut runner = TestRunner::deterministic();
        let all = vec([version.clone(), version], 4000).new_tree(&mut runner).unwrap().current();
        for pairs in all.chunks(500) {
            let said = match rpm_says(pairs) {
                Ok(said) => said,
                Err(error) => return eprintln!("SKIPPED: rpm: {error}"),
            };
            let said: Vec<&str> = said.split_whitespace().collect();
            assert_eq!(said.len(), pairs.len());
            for ([one, other], said) in pairs.iter().zip(said) {
                let ours = PackageSystem::Rpm.compare(one, other).map(|order| (order as i8).to_string());
                assert_eq!(ours.as_deref(), Some(said), "{one} {other}");
            }
        }
    }
}
