//! Whether the host is in a state to be patched at all: room on the disk, room for a kernel, power. What is found and
//! what is needed are apart, and the decision is pure. Versions, half-way packages and the transaction itself are
//! [`crate::change`]'s.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_protocol::inventory::Transaction;

/// A new kernel, its modules' part in `/boot` and its initial ram disk, with the old one beside it, bytes.
const KERNEL_BYTES: u64 = 128 * 1024 * 1024;

/// What a transaction asks of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Files of packages when unpacked, bytes.
    pub unpacked: u64,
    /// Whether a kernel comes.
    pub kernel: Kernel,
}

/// Whether a transaction brings a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// It does.
    New,
    /// It does not.
    AsIs,
}

impl Kernel {
    /// What the transaction says.
    pub fn of(transaction: &Transaction) -> Self {
        if transaction.brings_kernel() { Self::New } else { Self::AsIs }
    }
}

/// Where the host's power comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// A battery, and nothing else.
    Battery,
    /// The mains, or the host does not say.
    Mains,
}

/// What was found on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Free for packages, bytes.
    pub free: u64,
    /// Free in `/boot`, bytes.
    pub free_in_boot: u64,
    /// Where its power comes from.
    pub power: Power,
}

/// The host is in no state to be patched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Too little room.
    #[error("{needed} bytes are needed in {place}, {free} are free: make room, then start the run again")]
    Room {
        /// Where.
        place: &'static str,
        /// How many are needed.
        needed: u64,
        /// How many there are.
        free: u64,
    },
    /// The power may end at any time.
    #[error("the host runs on its battery: connect it to the mains, then start the run again")]
    OnBattery,
}

/// Decides, with a tenth of room to spare.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn judge(needs: &Needs, found: &Found) -> Result<(), Unfit> {
    if found.power == Power::Battery {
        return Err(Unfit::OnBattery);
    }
    let boot = if needs.kernel == Kernel::New { KERNEL_BYTES } else { 0 };
    for (place, needed, free) in [("/", needs.unpacked, found.free), ("/boot", boot, found.free_in_boot)] {
        if free < needed.saturating_add(needed / 10) {
            return Err(Unfit::Room { place, needed, free });
        }
    }
    Ok(())
}

/// Looks at the system below `root`.
///
/// # Errors
/// When a file system cannot be asked.
pub fn look(root: &Path) -> io::Result<Found> {
    let free = |path: PathBuf| -> io::Result<u64> {
        let disk = rustix::fs::statvfs(if path.exists() { &path } else { root })?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    };
    Ok(Found { free: free(root.join("usr"))?, free_in_boot: free(root.join("boot"))?, power: power(root) })
}

/// Where Linux shows power supplies.
const SUPPLIES: &str = "sys/class/power_supply";

/// Where the power of the system below `root` comes from.
pub fn power(root: &Path) -> Power {
    let supplies = root.join(SUPPLIES);
    let says = |supply: &Path, file: &str| {
        fs::read_to_string(supply.join(file)).map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let supplies: Vec<PathBuf> = fs::read_dir(&supplies)
        .map(|entries| entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
        .unwrap_or_default();
    // A mouse has a battery too; it says that it is a device's.
    let battery = |supply: &PathBuf| says(supply, "type") == "Battery" && says(supply, "scope") != "Device";
    let mains = |supply: &PathBuf| says(supply, "type") != "Battery" && says(supply, "online") == "1";
    if supplies.iter().any(battery) && !supplies.iter().any(mains) { Power::Battery } else { Power::Mains }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{
        PackageSystem,
        inventory::{Change, PackageId},
    };

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn found() -> Found {
        Found { free: 1000 * MIB, free_in_boot: 200 * MIB, power: Power::Mains }
    }

    #[test]
    fn room_is_needed_for_packages_and_for_a_kernel_only_when_one_comes() {
        let needs = |unpacked, kernel| Needs { unpacked, kernel };
        assert_eq!(judge(&needs(900 * MIB, Kernel::New), &found()), Ok(()));
        let full = judge(&needs(950 * MIB, Kernel::AsIs), &found());
        assert!(matches!(full, Err(Unfit::Room { place: "/", .. })), "{full:?}");
        let small = Found { free_in_boot: 140 * MIB, ..found() };
        assert_eq!(judge(&needs(MIB, Kernel::AsIs), &small), Ok(()));
        assert!(matches!(judge(&needs(MIB, Kernel::New), &small), Err(Unfit::Room { place: "/boot", .. })));
        let battery = Found { power: Power::Battery, ..found() };
        assert_eq!(judge(&needs(0, Kernel::AsIs), &battery), Err(Unfit::OnBattery));
    }

    #[test]
    fn a_battery_counts_without_mains_and_not_when_it_is_a_mouses() {
        let root = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            let folder = root.path().join(SUPPLIES).join(name);
            fs::create_dir_all(&folder).unwrap();
            for (file, text) in files {
                fs::write(folder.join(file), format!("{text}\n")).unwrap();
            }
        };
        assert_eq!(power(root.path()), Power::Mains, "a server says nothing");
        supply("hidpp_battery_0", &[("type", "Battery"), ("scope", "Device")]);
        assert_eq!(power(root.path()), Power::Mains);
        supply("BAT0", &[("type", "Battery")]);
        supply("AC", &[("type", "Mains"), ("online", "0")]);
        assert_eq!(power(root.path()), Power::Battery);
        supply("AC", &[("type", "Mains"), ("online", "1")]);
        assert_eq!(power(root.path()), Power::Mains);
    }

    #[test]
    fn a_kernel_that_is_removed_is_none_that_comes() {
        let transaction = |line: [Option<&str>; 2]| {
            let [from, to] = line.map(|version| version.map(str::to_owned));
            let id = PackageId::new("linux-image-6.1.0-1-amd64", "amd64");
            Transaction::new(PackageSystem::Dpkg, [Change { id, from, to }])
        };
        assert_eq!(Kernel::of(&transaction([None, Some("6.1")])), Kernel::New);
        assert_eq!(Kernel::of(&transaction([Some("6.1"), None])), Kernel::AsIs);
    }
}
