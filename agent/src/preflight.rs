//! Whether the host is in a state to be patched at all: room on the disk, room for a kernel, power. What is found and
//! what is needed are apart, and the decision is pure. Versions, half-way packages and the transaction itself are
//! [`crate::change`]'s.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_protocol::inventory::Transaction;

/// A new kernel, its modules' part in `/boot` and its initial ram disk, with the old one beside it, bytes.
const KERNEL_BYTES: u64 = 128 * 1024 * 1024;

/// What a change asks of the host: bytes by folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs(BTreeMap<String, u64>);

impl Needs {
    /// What a change takes by the sizes of its packages' files when they are unpacked, and by what the lab saw file systems grow (by mount
    /// point): a package's script may make more than a package holds.
    pub fn of(unpacked: u64, kernel: Kernel, grown: &BTreeMap<String, u64>) -> Self {
        let boot = if kernel == Kernel::New { KERNEL_BYTES } else { 0 };
        let mut needs = BTreeMap::from([("/usr".to_owned(), unpacked), ("/boot".to_owned(), boot)]);
        for (path, bytes) in grown {
            // What holds everything holds what is unpacked; it is not asked for twice.
            let place = if path == "/" { "/usr" } else { path };
            let there = needs.entry(place.to_owned()).or_default();
            *there = (*there).max(*bytes);
        }
        Self(needs)
    }
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Free in each folder in which something is needed, bytes.
    pub free: BTreeMap<String, u64>,
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
        place: String,
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
    for (place, &needed) in &needs.0 {
        let free = found.free.get(place).copied().unwrap_or(0);
        if free < needed.saturating_add(needed / 10) {
            return Err(Unfit::Room { place: place.clone(), needed, free });
        }
    }
    Ok(())
}

/// Looks at the system below `root`, in the folders in which something is needed.
///
/// # Errors
/// When a file system cannot be asked.
pub fn look(root: &Path, needs: &Needs) -> io::Result<Found> {
    let free = |place: &String| -> io::Result<(String, u64)> {
        let path = root.join(place.trim_start_matches('/'));
        let disk = rustix::fs::statvfs(if path.exists() { &path } else { root })?;
        Ok((place.clone(), disk.f_bavail.saturating_mul(disk.f_frsize)))
    };
    Ok(Found { free: needs.0.keys().map(free).collect::<io::Result<_>>()?, power: power(root) })
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
        let free = [("/usr", 1000), ("/boot", 200), ("/var", 50)].map(|(place, mib)| (place.to_owned(), mib * MIB));
        Found { free: free.into(), power: Power::Mains }
    }

    #[test]
    fn room_is_needed_for_packages_and_for_a_kernel_only_when_one_comes() {
        let needs = |unpacked, kernel| Needs::of(unpacked, kernel, &BTreeMap::new());
        let lacks = |judged: Result<(), Unfit>| match judged {
            Err(Unfit::Room { place, .. }) => place,
            other => format!("{other:?}"),
        };
        assert_eq!(judge(&needs(900 * MIB, Kernel::New), &found()), Ok(()));
        assert_eq!(lacks(judge(&needs(950 * MIB, Kernel::AsIs), &found())), "/usr");
        let mut small = found();
        small.free.insert("/boot".into(), 140 * MIB);
        assert_eq!(judge(&needs(MIB, Kernel::AsIs), &small), Ok(()));
        assert_eq!(lacks(judge(&needs(MIB, Kernel::New), &small)), "/boot");
        // What the lab saw counts where it is more.
        let grown =
            |path: &str, mib: u64| Needs::of(100 * MIB, Kernel::AsIs, &BTreeMap::from([(path.to_owned(), mib * MIB)]));
        assert_eq!(judge(&grown("/", 900), &found()), Ok(()));
        assert_eq!(lacks(judge(&grown("/", 950), &found())), "/usr");
        assert_eq!(judge(&grown("/var", 40), &found()), Ok(()));
        assert_eq!(lacks(judge(&grown("/var", 48), &found())), "/var");
        assert_eq!(lacks(judge(&grown("/srv", 1), &found())), "/srv", "nobody looked there");
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
