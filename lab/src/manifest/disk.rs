//! What a machine's disks hold: file systems as statfs(2) counts them, folders as the sizes of their files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Entry, Kind};

/// Where the agent keeps what it fetched for the patch: it is no growth by the patch.
const AGENT: &str = "/var/lib/patchlab-agent/";

/// What is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Local file systems by mount point; none that live in memory, and not the lab's second disk.
    pub file_systems: BTreeMap<String, FileSystem>,
    /// Bytes of the files below folders of the first and second level, e.g. `/opt`, `/usr/lib`; what no manifest covers file by file
    /// (`/var/log`, `/var/cache`) is here as well.
    pub folders: BTreeMap<String, u64>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Its kind, e.g. `ext4`.
    pub kind: String,
    /// Bytes it has.
    pub size: u64,
    /// Bytes in use.
    pub used: u64,
}

/// From `df --output=fstype,size,used,target`, `du -k` of folders that are not covered, and the files that are.
pub(super) fn parse(df: &str, du: &str, files: &BTreeMap<String, Entry>) -> DiskUse {
    let file_system = |line: &str| {
        let mut words = line.split_whitespace();
        let kind = words.next()?.to_owned();
        let (size, used) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let target = words.collect::<Vec<_>>().join(" ");
        let own = target.starts_with("/mnt/patchlab");
        (!own && target.starts_with('/')).then_some((target, FileSystem { kind, size, used }))
    };
    let mut folders: BTreeMap<String, u64> = BTreeMap::new();
    let counts = |path: &str, entry: &Entry| entry.kind == Kind::File && !path.starts_with(AGENT);
    for (path, entry) in files.iter().filter(|(path, entry)| counts(path, entry)) {
        for end in path.match_indices('/').map(|(at, _)| at).skip(1).take(2) {
            *folders.entry(path[..end].to_owned()).or_default() += entry.size;
        }
    }
    for (kib, path) in du.lines().filter_map(|line| line.split_once('\t')) {
        folders.insert(path.to_owned(), kib.parse::<u64>().unwrap_or(0) << 10);
    }
    DiskUse { file_systems: df.lines().filter_map(file_system).collect(), folders }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_and_folders() {
        let file =
            |kind, size| Entry { kind, mode: 0, uid: 0, gid: 0, size, sha256: None, target: None, package: None };
        let files = [
            ("/usr/lib/a".to_owned(), file(Kind::File, 10)),
            ("/usr/lib/x/y/b".to_owned(), file(Kind::File, 5)),
            ("/usr/c".to_owned(), file(Kind::File, 1)),
            ("/vmlinuz".to_owned(), file(Kind::File, 7)),
            ("/usr/lib".to_owned(), file(Kind::Folder, 0)),
            ("/var/lib/patchlab-agent/files/x".to_owned(), file(Kind::File, 9)),
        ];
        let df = "Type 1B-blocks Used Mounted on\next4 4000 1000 /\nsquashfs 10 10 /mnt/patchlab\next4 5 4 /srv/a b\n";
        let found = parse(df, "12\t/var/log\n", &files.into());
        assert_eq!(found.file_systems.keys().collect::<Vec<_>>(), ["/", "/srv/a b"]);
        assert_eq!((found.file_systems["/"].size, found.file_systems["/"].used), (4000, 1000));
        let folders: Vec<(&str, u64)> = found.folders.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
        assert_eq!(folders, [("/usr", 16), ("/usr/lib", 15), ("/var/log", 12 << 10)]);
    }
}
