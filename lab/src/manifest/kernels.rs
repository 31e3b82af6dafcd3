//! The kernels of a machine: what is installed, what is loaded, and how it boots. The running one is the manifest's `kernel`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Kernels beside the running one, and what that has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// Releases with an image in `/boot`, oldest first.
    pub installed: Vec<String>,
    /// The package version that the running image says in `/proc/version`, e.g. `6.1.170-3`; absent where it says none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_version: Option<String>,
    /// Modules that are loaded.
    pub modules: BTreeSet<String>,
    /// What loads the kernel.
    pub boot: BootMode,
}

/// What loads the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// A BIOS.
    Bios,
    /// UEFI firmware.
    Uefi,
}

impl BootMode {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// From names of images, `/proc/version`, `/proc/modules`, and `bios` or `uefi`.
pub(super) fn parse(images: &str, version: &str, modules: &str, boot: &str) -> Kernels {
    // `… #1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)`
    let running = version.rsplit_once(" Debian ").and_then(|(_, rest)| rest.split_whitespace().next());
    // The glob stands for itself where there is none.
    let release = |path: &str| path.rsplit_once("vmlinuz-").map(|(_, release)| release.to_owned());
    let mut installed: Vec<String> = images.lines().filter_map(release).filter(|release| release != "*").collect();
    installed.sort_by_key(|release| in_order(release));
    Kernels {
        installed,
        running_version: running.map(str::to_owned),
        modules: modules.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect(),
        boot: if boot.trim() == "uefi" { BootMode::Uefi } else { BootMode::Bios },
    }
}

/// A release's parts, numbers as numbers: `6.1.0-9` comes before `6.1.0-50`.
fn in_order(release: &str) -> Vec<(u64, String)> {
    let parts = release.split(|c: char| !c.is_ascii_alphanumeric());
    parts.map(|part| part.parse().map_or_else(|_| (0, part.to_owned()), |number| (number, String::new()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_running_and_loaded() {
        let version = "Linux version 6.1.0-50-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) \
            12.2.0) #1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)\n";
        let images = "/boot/vmlinuz-6.1.0-50-cloud-amd64\n/boot/vmlinuz-6.1.0-9-amd64\n";
        let modules = "virtio_net 77824 0 - Live 0x0000000000000000\next4 1 1 - Live 0x0\n";
        let kernels = parse(images, version, modules, "bios\n");
        assert!(kernels.modules.contains("virtio_net"));
        assert_eq!(parse("/boot/vmlinuz-*\n", version, modules, "").installed, Vec::<String>::new());
        assert_eq!(kernels.installed, ["6.1.0-9-amd64", "6.1.0-50-cloud-amd64"]);
        assert_eq!(kernels.running_version.as_deref(), Some("6.1.170-3"));
        assert_eq!((kernels.modules.len(), kernels.boot), (2, BootMode::Bios));
        assert_eq!(parse("", "Linux version 6.9 #1\n", "", "uefi\n").boot, BootMode::Uefi);
        assert_eq!(parse("", "Linux version 6.9 #1\n", "", "").running_version, None);
    }
}
