//! Whether GRUB can write where its environment block lies.
//!
//! "For safety reasons, this storage is only available when installed on a plain disk (no LVM or RAID), using a non-checksumming
//! filesystem (no ZFS)" (GRUB manual, "The GRUB environment block"). A loader that cannot write it would boot an entry once for ever.

use std::path::Path;

/// File systems that GRUB only reads, or whose sums its writing would break: those that Debian's own grub-mkconfig(8) names, and others.
const READ_ONLY: &[&str] = &["btrfs", "zfs", "squashfs", "erofs", "romfs", "iso9660", "bcachefs", "nfs", "nfs4"];

/// What keeps GRUB from writing the file at `path`, by proc_pid_mountinfo(5); `None` when nothing does.
pub(super) fn obstacle(mountinfo: &str, path: &Path) -> Option<String> {
    // The last of those mounted over the longest part of the path is the one that is seen.
    let mounts = mountinfo.lines().filter_map(Mount::parse).filter(|mount| path.starts_with(&mount.point));
    let mount = mounts.enumerate().max_by_key(|(at, mount)| (mount.point.len(), *at))?.1;
    let device = Path::new(&mount.source);
    let is_made_of_others = device.starts_with("/dev/mapper")
        || device.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            mount.source.starts_with("/dev/") && (name.starts_with("md") || name.starts_with("dm-"))
        });
    match () {
        () if READ_ONLY.contains(&mount.kind.as_str()) => Some(mount.kind),
        () if is_made_of_others => Some(mount.source),
        () => None,
    }
}

struct Mount {
    point: String,
    kind: String,
    source: String,
}

impl Mount {
    /// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
    fn parse(line: &str) -> Option<Self> {
        let (first, second) = line.split_once(" - ")?;
        let point = first.split(' ').nth(4)?.replace(r"\040", " ");
        let mut rest = second.split(' ');
        Some(Self { point, kind: rest.next()?.to_owned(), source: rest.next()?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grub_writes_on_plain_partitions_only() {
        let mounts = |boot: &str| {
            format!("21 1 254:1 / / rw shared:1 - btrfs /dev/vda2 rw\n22 21 254:2 / /boot rw - {boot} rw\n")
        };
        let found = |boot: &str| obstacle(&mounts(boot), Path::new("/boot/grub/grubenv"));
        assert_eq!(found("ext4 /dev/vda1"), None);
        assert_eq!(found("xfs /dev/nvme0n1p2"), None);
        assert_eq!(found("ext4 /dev/mapper/vg-boot").as_deref(), Some("/dev/mapper/vg-boot"));
        assert_eq!(found("ext4 /dev/md0").as_deref(), Some("/dev/md0"));
        assert_eq!(found("zfs pool/boot").as_deref(), Some("zfs"));
        assert_eq!(obstacle(&mounts("ext4 /dev/vda1"), Path::new("/grubenv")).as_deref(), Some("btrfs"));
        let over = mounts("ext4 /dev/md0") + "23 22 254:3 / /boot rw - vfat /dev/vda3 rw\n";
        assert_eq!(obstacle(&over, Path::new("/boot/grub/grubenv")), None, "what is mounted over it counts");
    }
}
