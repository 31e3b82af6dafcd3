//! Files that rpm was writing when it was killed. It writes a file as `NAME;HHHHHHHH` and renames it, and forgets one whose time never
//! came: no package owns it, and nobody would take it away.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Removes what was left beside the files of packages, `listed` one absolute path a line, below `root`; with how many there were.
pub fn sweep(root: &Path, listed: &str) -> usize {
    let mut folders: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    for path in listed.lines() {
        if let Some((folder, name)) = path.rsplit_once('/') {
            folders.entry(root.join(folder.trim_start_matches('/'))).or_default().insert(name);
        }
    }
    let in_folder = |(folder, names): (&PathBuf, &BTreeSet<&str>)| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let left = entries.filter(|entry| {
            let name = entry.file_name();
            let of = name.to_str().and_then(is_of);
            of.is_some_and(|of| names.contains(of)) && entry.file_type().is_ok_and(|kind| !kind.is_dir())
        });
        left.filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
    };
    folders.iter().map(in_folder).sum()
}

/// The file for which a name stands in.
fn is_of(name: &str) -> Option<&str> {
    let (of, number) = name.rsplit_once(';')?;
    let hexadecimal = number.len() == 8 && number.bytes().all(|sign| matches!(sign, b'0'..=b'9' | b'a'..=b'f'));
    hexadecimal.then_some(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_in_for_a_packages_file_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/share");
        fs::create_dir_all(&folder).unwrap();
        let names = ["a", "a;6b0a7de8", "a;6b0a7de", "b;6b0a7de8", "a;6B0A7DE8"];
        names.iter().for_each(|name| fs::write(folder.join(name), "").unwrap());
        assert_eq!(sweep(root.path(), "/usr/share/a\n/usr/share/gone/c\n"), 1);
        assert!(names.iter().all(|name| folder.join(name).exists() != (*name == "a;6b0a7de8")));
    }
}
