//! Whether the host is in a state to be patched at all: room on the disk, room for a kernel, power. What is found and
//! what is needed are apart, and the decision is pure. Versions, half-way packages and the transaction itself are
//! [`crate::change`]'s.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use patchlab_protocol::inventory::Transaction;

/// A new kernel and its initial ram disk, with the old one beside it, bytes.
const KERNEL_BYTES: u64 = 128 * 1024 * 1024;
/// Where packages are unpacked to, most of them.
const UNPACKED: &str = "/usr";
/// Where packages' scripts make what no package holds, most of it.
const MADE: &str = "/var";

/// What a change asks of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Bytes by folder.
    places: BTreeMap<String, u64>,
    /// Bytes that came to be somewhere: the lab saw them on a file system that holds more than one of these folders.
    somewhere: u64,
}

impl Needs {
    /// What a change takes by the sizes of its packages' files when they are unpacked, by a kernel that it brings in each of these folders,
    /// and by what the lab saw file systems grow (by mount point): a package's script may make more than a package holds.
    pub fn of(unpacked: u64, kernels: &[String], grown: &BTreeMap<String, u64>) -> Self {
        let mut places = BTreeMap::from([(UNPACKED.to_owned(), unpacked), (MADE.to_owned(), 0)]);
        places.extend(kernels.iter().map(|place| (place.clone(), KERNEL_BYTES)));
        let mut somewhere = 0;
        for (path, bytes) in grown {
            // What holds everything holds what is unpacked; it is not asked for twice.
            if path == "/" {
                somewhere = bytes.saturating_sub(unpacked);
                continue;
            }
            let there = places.entry(path.clone()).or_default();
            *there = (*there).max(*bytes);
        }
        Self { places, somewhere }
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
    /// The file system of each folder in which something is needed.
    pub disks: BTreeMap<String, Disk>,
    /// Where its power comes from.
    pub power: Power,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its device's number, by which one is told from another.
    pub device: u64,
    /// Free on it, bytes.
    pub free: u64,
}

/// The host is in no state to be patched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Too little room.
    #[error("{needed} bytes are needed in {place}, {free} are free: make room, then start the run again")]
    Room {
        /// Where: folders of one file system.
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

/// Decides, with a tenth of room to spare on every file system, whatever folders are on it.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn judge(needs: &Needs, found: &Found) -> Result<(), Unfit> {
    if found.power == Power::Battery {
        return Err(Unfit::OnBattery);
    }
    let mut disks: BTreeMap<u64, (Disk, u64, Vec<&str>)> = BTreeMap::new();
    for (place, &bytes) in &needs.places {
        let Some(disk) = found.disks.get(place) else {
            return Err(Unfit::Room { place: place.clone(), needed: bytes, free: 0 });
        };
        let (_, needed, places) = disks.entry(disk.device).or_insert((*disk, 0, Vec::new()));
        *needed = needed.saturating_add(bytes);
        let may_grow = needs.somewhere > 0 && [UNPACKED, MADE].contains(&place.as_str());
        if bytes > 0 || may_grow {
            places.push(place);
        }
    }
    for (disk, needed, places) in disks.into_values() {
        let may_grow = [UNPACKED, MADE].iter().any(|place| places.contains(place));
        let needed = if may_grow { needed.saturating_add(needs.somewhere) } else { needed };
        if disk.free < needed.saturating_add(needed / 10) {
            return Err(Unfit::Room { place: places.join(" and "), needed, free: disk.free });
        }
    }
    Ok(())
}

/// Looks at the system below `root`, in the folders in which something is needed.
///
/// # Errors
/// When a file system cannot be asked.
pub fn look(root: &Path, needs: &Needs) -> io::Result<Found> {
    let disk = |place: &String| -> io::Result<(String, Disk)> {
        let path = root.join(place.trim_start_matches('/'));
        // A folder that is not there yet is made on its parent's.
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(root);
        let found = rustix::fs::statvfs(there)?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        Ok((place.clone(), Disk { device: fs::metadata(there)?.dev(), free }))
    };
    Ok(Found { disks: needs.places.keys().map(disk).collect::<io::Result<_>>()?, power: power(root) })
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

    /// A host on which these folders are on file systems with so much free, MiB, each by a number.
    fn found(disks: &[(&str, u64, u64)]) -> Found {
        let disk =
            |(place, device, mib): &(&str, u64, u64)| (place.to_string(), Disk { device: *device, free: mib * MIB });
        Found { disks: disks.iter().map(disk).collect(), power: Power::Mains }
    }

    fn lacks(judged: Result<(), Unfit>) -> String {
        match judged {
            Err(Unfit::Room { place, .. }) => place,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn room_is_needed_for_packages_and_for_a_kernel_only_when_one_comes() {
        let apart = found(&[("/usr", 1, 1000), ("/boot", 2, 200), ("/var", 3, 50), ("/srv", 4, 0)]);
        let boot = ["/boot".to_owned()];
        let needs = |unpacked, kernels: &[String]| Needs::of(unpacked, kernels, &BTreeMap::new());
        assert_eq!(judge(&needs(900 * MIB, &boot), &apart), Ok(()));
        assert_eq!(lacks(judge(&needs(950 * MIB, &[]), &apart)), "/usr");
        let small = found(&[("/usr", 1, 1000), ("/boot", 2, 140), ("/var", 3, 50)]);
        assert_eq!(judge(&needs(MIB, &[]), &small), Ok(()));
        assert_eq!(lacks(judge(&needs(MIB, &boot), &small)), "/boot");
        // What the lab saw counts where it is more.
        let grown = |path: &str, mib: u64| Needs::of(100 * MIB, &[], &BTreeMap::from([(path.to_owned(), mib * MIB)]));
        assert_eq!(judge(&grown("/var", 40), &apart), Ok(()));
        assert_eq!(lacks(judge(&grown("/var", 48), &apart)), "/var");
        assert_eq!(lacks(judge(&grown("/srv", 1), &apart)), "/srv");
        assert_eq!(lacks(judge(&grown("/opt", 1), &apart)), "/opt", "nobody looked there");
        let battery = Found { power: Power::Battery, ..apart };
        assert_eq!(judge(&needs(0, &[]), &battery), Err(Unfit::OnBattery));
    }

    #[test]
    fn what_grew_on_the_labs_one_file_system_may_grow_on_any_of_the_hosts() {
        let grown = |mib: u64| Needs::of(100 * MIB, &[], &BTreeMap::from([("/".to_owned(), mib * MIB)]));
        let one = found(&[("/usr", 1, 1000), ("/var", 1, 1000)]);
        assert_eq!(judge(&grown(900), &one), Ok(()), "asked for once");
        assert_eq!(lacks(judge(&grown(950), &one)), "/usr and /var");
        let apart = found(&[("/usr", 1, 1000), ("/var", 2, 50)]);
        assert_eq!(judge(&grown(140), &apart), Ok(()));
        assert_eq!(lacks(judge(&grown(150), &apart)), "/var");
        // Folders of one file system share what is free there.
        let both = BTreeMap::from([("/var", 600), ("/srv", 300)].map(|(path, mib)| (path.to_owned(), mib * MIB)));
        let shared = found(&[("/usr", 1, 1000), ("/var", 1, 1000), ("/srv", 1, 1000)]);
        assert_eq!(lacks(judge(&Needs::of(100 * MIB, &[], &both), &shared)), "/srv and /usr and /var");
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
