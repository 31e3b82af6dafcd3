//! Files of a disk that no machine runs, without a loop device and without mounting it: its partitions by sfdisk(8), its ext file
//! systems by debugfs(8), both confined ([`Confined`]). What cannot be read so is not an error: a disk may have any file system.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    process::Stdio,
};

use patchlab_check::PackageSystem;
use serde::Deserialize;

use super::{
    BuildError,
    captured::{ARCHIVE_BYTES, Captured, STATUS},
    failed,
    intake::Confined,
};

/// Partitions that are looked at.
const PARTITIONS: usize = 16;
/// Files that are read of one folder.
const FOLDER_FILES: usize = 500;

/// What sfdisk says.
#[derive(Deserialize)]
struct Said {
    partitiontable: Table,
}

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    partitions: Vec<Partition>,
}

#[derive(Deserialize)]
struct Partition {
    /// In sectors of 512 bytes.
    start: u64,
}

/// What the system on a raw disk says of its packages; nothing where no partition has an ext file system with a dpkg status,
/// or the system is one with rpm.
pub(super) fn look_into(raw: &Path, work: &Path) -> Result<Option<Captured>, BuildError> {
    let file = File::open(raw).map_err(failed("open", raw))?;
    let tool = Confined { file: &file, limit: ARCHIVE_BYTES };
    let listed = tool.run("sfdisk", &["--json", "/dev/fd/0"], Stdio::piped())?;
    let partitions = serde_json::from_slice::<Said>(&listed.stdout).map(|said| said.partitiontable.partitions);
    let answer = work.join("answer");
    for partition in partitions.unwrap_or_default().iter().take(PARTITIONS) {
        let Some(offset) = partition.start.checked_mul(512) else { continue };
        let system = FileSystem { tool: &tool, device: format!("/dev/fd/0?offset={offset}"), answer: &answer };
        let Some(status) = system.read(&format!("/{STATUS}"))? else { continue };
        let mut files = BTreeMap::from([(STATUS.to_owned(), status)]);
        for path in Captured::wanted().into_iter().filter(|path| *path != STATUS) {
            system.gather(path, &mut files)?;
        }
        let found = Captured::of(files);
        // rpm's database says nothing to a tool that only reads files; the other system's, which may be there too, says nothing of it.
        return Ok(Some(found).filter(|found| found.named() != Some(PackageSystem::Rpm)));
    }
    Ok(None)
}

/// An ext file system on the disk.
struct FileSystem<'a> {
    tool: &'a Confined<'a>,
    device: String,
    /// A file for what the tool says.
    answer: &'a Path,
}

impl FileSystem<'_> {
    /// What one request of debugfs shows, at most as much as a tool may write.
    fn ask(&self, request: &str) -> Result<Vec<u8>, BuildError> {
        let output = File::create(self.answer).map_err(failed("create", self.answer))?;
        self.tool.run("debugfs", &["-R", request, &self.device], Stdio::from(output))?;
        let shown = fs::read(self.answer).map_err(failed("read", self.answer))?;
        fs::remove_file(self.answer).map_err(failed("remove", self.answer))?;
        Ok(shown)
    }

    /// A file's content; nothing where there is none, or an empty one.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, BuildError> {
        Ok(Some(self.ask(&format!("cat \"{path}\""))?).filter(|content| !content.is_empty()))
    }

    /// Adds a file, or the files of a folder, by their paths below the root.
    fn gather(&self, path: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<(), BuildError> {
        let listed = self.ask(&format!("ls -p \"/{path}\""))?;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        if listed.trim().is_empty() {
            files.extend(self.read(&format!("/{path}"))?.map(|content| (path.to_owned(), content)));
            return Ok(());
        }
        for (kind, name) in listed.lines().filter_map(entry).take(FOLDER_FILES) {
            let path = format!("{path}/{name}");
            let content = match kind {
                Kind::File => self.read(&format!("/{path}"))?,
                Kind::Link => {
                    let about = self.ask(&format!("stat \"/{path}\""))?;
                    let target = target(&path, &String::from_utf8_lossy(&about));
                    target.map(|target| self.read(&target)).transpose()?.flatten()
                }
            };
            files.extend(content.map(|content| (path, content)));
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    File,
    Link,
}

/// `/inode/mode/uid/gid/name/size/`; names that would end a request's quotes are passed over.
fn entry(line: &str) -> Option<(Kind, &str)> {
    let fields: Vec<&str> = line.split('/').collect();
    let (mode, name) = (fields.get(2)?, fields.get(5)?);
    let kind = match mode.get(..2)? {
        "10" => Kind::File,
        "12" => Kind::Link,
        _ => return None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~');
    (!name.is_empty() && name.chars().all(plain)).then_some((kind, name))
}

/// Where a link points that debugfs described: one in the same folder, or by its whole path.
fn target(link: &str, about: &str) -> Option<String> {
    let target = about.lines().find_map(|line| line.trim().strip_prefix("Fast link dest: \"")?.strip_suffix('"'))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~' | '/');
    if !target.chars().all(plain) || target.contains("..") {
        return None;
    }
    match (target.starts_with('/'), link.rsplit_once('/')) {
        (true, _) => Some(target.to_owned()),
        (false, Some((folder, _))) => Some(format!("/{folder}/{target}")),
        (false, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_links_are_read_and_odd_names_passed_over() {
        assert_eq!(entry("/67/100644/0/0/sources.list/47/"), Some((Kind::File, "sources.list")));
        assert_eq!(entry("/67/120777/0/0/a.gpg/5/"), Some((Kind::Link, "a.gpg")));
        for line in ["/60/040755/0/0/.//", "/67/100644/0/0/a\" b/47/", "/67/100644/0/0//47/", ""] {
            assert_eq!(entry(line), None, "{line}");
        }
        let about = |dest: &str| format!("Inode: 5   Type: symlink\nFast link dest: \"{dest}\"\n");
        let link = "usr/share/keyrings/a.gpg";
        assert_eq!(target(link, &about("a.pgp")).as_deref(), Some("/usr/share/keyrings/a.pgp"));
        assert_eq!(target(link, &about("/etc/a")).as_deref(), Some("/etc/a"));
        assert_eq!(target(link, &about("../../a")), None);
        assert_eq!(target(link, "Inode: 5   Type: regular\n"), None);
    }
}
