//! Whether what a new kernel was proven on in the lab is what this host boots.

use std::{collections::BTreeSet, fs, io, path::Path};

use patchlab_protocol::Boots;

use super::kernels::{entries, running};

/// Where dkms(8) keeps what it builds: `NAME/VERSION/KERNEL/ARCH/…`.
const DKMS: &str = "var/lib/dkms";

/// What the system below `root` boots.
///
/// # Errors
/// When it cannot be looked at.
pub fn here(root: &Path) -> io::Result<Boots> {
    let mut dkms = BTreeSet::new();
    for (name, versions) in entries(&root.join(DKMS))? {
        for (_, version) in entries(&versions)? {
            // Links and keys lie beside the versions.
            if fs::symlink_metadata(&version)?.is_dir() {
                dkms.insert(name.clone());
            }
        }
    }
    Ok(Boots { flavour: Boots::flavour_of(&running(root)?), dkms })
}

/// What of this host none of those systems has on which a kernel was proven; nothing when one of them covers it, or nobody looked at them.
pub fn uncovered<'b>(here: &Boots, proven: impl Iterator<Item = &'b Boots>) -> Option<String> {
    let of = |flavour: &Option<String>| flavour.clone().unwrap_or_else(|| "no name".to_owned());
    let mut first = None;
    for one in proven {
        let lacks: Vec<&str> = here.dkms.difference(&one.dkms).map(String::as_str).collect();
        let reason = match (here.flavour == one.flavour, lacks.as_slice()) {
            (true, []) => return None,
            (true, lacks) => format!("without the modules {} that DKMS builds here", lacks.join(", ")),
            (false, _) => {
                let [mine, its] = [&here.flavour, &one.flavour].map(of);
                format!("with a kernel of flavour {its}, and this host's is {mine}")
            }
        };
        first.get_or_insert(reason);
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boots(flavour: &str, dkms: &[&str]) -> Boots {
        Boots { flavour: Some(flavour.into()), dkms: dkms.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_host_is_covered_by_one_baseline_that_has_all_of_it() {
        let host = boots("amd64", &["zfs"]);
        let against = |proven: &[Boots]| uncovered(&host, proven.iter());
        assert_eq!(against(&[]), None, "nobody looked");
        assert_eq!(against(&[boots("amd64", &["wl", "zfs"])]), None);
        assert_eq!(against(&[boots("cloud-amd64", &[]), boots("amd64", &["zfs"])]), None);
        let lacks = against(&[boots("amd64", &["wl"])]).unwrap();
        assert!(lacks.contains("without the modules zfs"), "{lacks}");
        let other = against(&[boots("cloud-amd64", &["zfs"])]).unwrap();
        assert!(other.contains("flavour cloud-amd64, and this host's is amd64"), "{other}");
        let nameless = uncovered(&Boots::default(), [boots("amd64", &[])].iter()).unwrap();
        assert!(nameless.contains("this host's is no name"), "{nameless}");
    }

    #[test]
    fn modules_are_found_by_their_versions() {
        let root = tempfile::tempdir().unwrap();
        for (place, text) in [
            ("proc/cmdline", "BOOT_IMAGE=/vmlinuz-6.1.0-9-cloud-amd64 ro"),
            ("proc/sys/kernel/osrelease", "6.1.0-9-cloud-amd64"),
            ("var/lib/dkms/mok.key", ""),
            ("var/lib/dkms/zfs/2.1.11/source", ""),
        ] {
            let path = root.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(root.path().join("var/lib/dkms/removed")).unwrap();
        assert_eq!(here(root.path()).unwrap(), boots("cloud-amd64", &["zfs"]));
    }
}
