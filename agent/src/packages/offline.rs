//! An update that somebody prepared for the next boot, systemd.offline-updates(7): a host that reboots for an order would boot into it, and
//! change packages that nobody tried together.

use std::{fs, path::Path};

/// Where it is announced. systemd heeds whatever is there, also a link that leads nowhere.
const PLACES: [&str; 2] = ["system-update", "etc/system-update"];

/// The update that is prepared on the system below `root`, as a clause for people: where it is announced, and to what that leads, which
/// says whose it is (`/var/lib/PackageKit/prepared-update`, `/usr/lib/sysimage/libdnf5/offline`, …).
pub fn pending_offline(root: &Path) -> Option<String> {
    PLACES.iter().find_map(|place| {
        let path = root.join(place);
        fs::symlink_metadata(&path).ok()?;
        Some(match fs::read_link(&path) {
            Ok(target) => format!("an update is prepared for the next boot (/{place} leads to {})", target.display()),
            Err(_) => format!("an update is prepared for the next boot (/{place} is there)"),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_update_that_waits_for_the_next_boot_is_told_with_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let told = || pending_offline(root.path());
        assert_eq!(told(), None);
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/system-update"), "").unwrap();
        assert!(told().unwrap().contains("/etc/system-update is there"), "{:?}", told());
        // It leads nowhere in this root, and counts all the same.
        symlink("/var/lib/PackageKit/prepared-update", root.path().join("system-update")).unwrap();
        let said = told().unwrap();
        assert!(said.contains("(/system-update leads to /var/lib/PackageKit/prepared-update)"), "{said}");
    }
}
