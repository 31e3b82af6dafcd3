//! What people said on the host must stay as it is: version locks of dnf 4 and dnf 5, the packages that their configuration excludes, and
//! zypper's locks.
//! rpm knows none of them, so they are looked up here before it is asked to work.

mod versionlock;
mod zypper;

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use patchlab_check::written;
use patchlab_protocol::inventory::{Change, Transaction};

use super::super::pattern::glob;
use crate::packages::PackageError;

/// Lists of the versionlock plugin, dnf-versionlock(8), one pattern a line.
const LOCKS: &[&str] = &["etc/dnf/plugins/versionlock.list", "etc/yum/pluginconf.d/versionlock.list"];
/// Where `exclude` and `excludepkgs` of dnf.conf(5) stand.
const CONFIGURATIONS: &[&str] = &["etc/dnf/dnf.conf", "etc/yum.conf"];
/// Largest such file that is read, bytes.
const FILE_BYTES: u64 = 1024 * 1024;

/// What must stay as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Only versions that match may be installed.
    locked: Vec<String>,
    /// What matches is not touched.
    excluded: Vec<String>,
    /// By dnf 5.
    versions: Vec<versionlock::Entry>,
    /// By zypper.
    zypper: Vec<zypper::Lock>,
}

impl Held {
    /// What the system below `root` says.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn read(root: &Path) -> Result<Self, PackageError> {
        let mut held = Self::default();
        for text in texts(root, LOCKS)? {
            held.add_locks(&text);
        }
        for text in texts(root, CONFIGURATIONS)? {
            held.excluded.extend(excludes(&text));
        }
        for text in texts(root, &[versionlock::LOCKS])? {
            let unreadable = |error: written::WrittenError| PackageError::Read {
                path: root.join(versionlock::LOCKS),
                source: io::Error::other(error.to_string()),
            };
            held.versions.extend(versionlock::entries(&text).map_err(unreadable)?);
        }
        for text in texts(root, &[zypper::LOCKS])? {
            held.zypper.extend(zypper::locks(&text));
        }
        Ok(held)
    }

    fn add_locks(&mut self, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix('!') {
                Some(never) => self.excluded.push(never.to_owned()),
                None => self.locked.push(line.to_owned()),
            }
        }
    }

    /// Whether a transaction leaves what is held as it is.
    ///
    /// # Errors
    /// Names what it would change.
    pub fn allow(&self, transaction: &Transaction) -> Result<(), PackageError> {
        let held = transaction.changes().iter().filter_map(|change| self.holds(change));
        let held: Vec<String> = held.take(5).collect();
        if held.is_empty() { Ok(()) } else { Err(PackageError::Held(held)) }
    }

    fn holds(&self, change: &Change) -> Option<String> {
        if let Some(held) = self.zypper.iter().find_map(|lock| lock.holds(change)) {
            return Some(held);
        }
        if let Some(held) = versionlock::holds(&self.versions, change) {
            return Some(held);
        }
        let forms = |version: &Option<String>| version.as_deref().map(|version| forms(change, version));
        let [from, to] = [&change.from, &change.to].map(|version| forms(version).unwrap_or_default());
        let matches = |forms: &[String], pattern: &str| forms.iter().any(|form| glob(pattern, form));
        let name = change.id.base_name();
        let excluded =
            self.excluded.iter().find(|pattern| matches(&from, pattern.as_str()) || matches(&to, pattern.as_str()));
        if let Some(pattern) = excluded {
            return Some(format!("{name} (excluded by {pattern:?})"));
        }
        let about = |pattern: &&String| matches(&from, pattern.as_str()) || glob(name_of(pattern), name);
        let locks: Vec<&String> = self.locked.iter().filter(about).collect();
        let allowed = locks.iter().any(|pattern| matches(&to, pattern.as_str()));
        locks.first().filter(|_| !allowed).map(|pattern| format!("{name} (locked at {pattern:?})"))
    }
}

/// A lock's version without a release is about every release of it.
fn without_release<'a>(version: &'a str, locked: &str) -> &'a str {
    if locked.contains('-') { version } else { version.split_once('-').map_or(version, |(bare, _)| bare) }
}

fn texts(root: &Path, places: &[&str]) -> Result<Vec<String>, PackageError> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for place in places {
        let path = root.join(place);
        // One is often a link to the other.
        let Ok(path) = path.canonicalize() else { continue };
        if found.iter().any(|(known, _)| *known == path) {
            continue;
        }
        let text = read(&path).map_err(|source| PackageError::Read { path: path.clone(), source })?;
        found.push((path, text));
    }
    Ok(found.into_iter().map(|(_, text)| text).collect())
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(io::Error::other(format!("larger than {FILE_BYTES} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The patterns of `exclude` and `excludepkgs` in `[main]`; a line that begins with a blank goes on with the one before.
fn excludes(text: &str) -> Vec<String> {
    let mut patterns = Vec::new();
    let (mut in_main, mut in_key) = (false, false);
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        let words = if line.starts_with([' ', '\t']) {
            line
        } else if let Some(section) = line.trim().strip_prefix('[') {
            (in_main, in_key) = (section.starts_with("main]"), false);
            continue;
        } else {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            in_key = matches!(key.trim(), "exclude" | "excludepkgs");
            value
        };
        if in_main && in_key {
            let words = words.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
            patterns.extend(words.map(str::to_owned));
        }
    }
    patterns
}

/// How a package may be written, shortest first: `NAME`, `NAME.ARCH`, `NAME-VERSION`, `NAME-VERSION-RELEASE`, with epoch and architecture.
fn forms(change: &Change, version: &str) -> Vec<String> {
    let (name, arch) = (change.id.base_name(), &change.id.arch);
    let (epoch, short) = version.split_once(':').unwrap_or(("0", version));
    let bare = short.split_once('-').map_or(short, |(version, _)| version);
    vec![
        name.to_owned(),
        format!("{name}.{arch}"),
        format!("{name}-{bare}"),
        format!("{name}-{short}"),
        format!("{name}-{short}.{arch}"),
        format!("{name}-{epoch}:{short}"),
        format!("{name}-{epoch}:{short}.{arch}"),
    ]
}

/// The part of a pattern that stands for the name; neither version nor release has a dash.
fn name_of(pattern: &str) -> &str {
    pattern.rsplitn(3, '-').nth(2).unwrap_or(pattern)
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{PackageSystem, inventory::PackageId};

    use super::*;

    fn change(from: Option<&str>, to: Option<&str>) -> Transaction {
        let [from, to] = [from, to].map(|version| version.map(str::to_owned));
        Transaction::new(PackageSystem::Rpm, [Change { id: PackageId::new("web-server", "x86_64"), from, to }])
    }

    #[test]
    fn a_locked_package_changes_only_to_the_version_that_its_lock_names() {
        let held = |locks: &str, from, to| {
            let mut held = Held::default();
            held.add_locks(locks);
            held.allow(&change(from, to)).is_err()
        };
        let (old, new) = (Some("1.0-1"), Some("1:1.0-2"));
        assert!(!held("# nothing\n\nother-0:1.0-1.*\nserver-0:1.0-1.*\n", old, new));
        assert!(held("web-server-0:1.0-1.*\n", old, new));
        assert!(held("web-server-0:1.0-1.*\n", old, None));
        assert!(!held("web-server-0:1.0-1.*\nweb-server-1:1.0-2.*\n", old, new));
        assert!(held("web-server-0:0.9-1.*\n", old, new), "locked elsewhere");
        assert!(held("web-*\n", old, None) && !held("web-*\n", old, new), "any version matches");
        assert!(held("!web-server-1:1.0-2.*\n", old, new) && !held("!web-server-1:1.0-3.*\n", old, new));
    }

    #[test]
    fn locks_of_dnf_5_are_read_and_a_file_that_cannot_be_is_not_passed_over() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/dnf")).unwrap();
        let allows = |text: &str| {
            fs::write(root.path().join(versionlock::LOCKS), text).unwrap();
            Held::read(root.path())?.allow(&change(Some("1-1"), Some("2-1")))
        };
        let locked = "[[packages]]\nname = \"web-server\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"=\"\n\
                      value = \"1-1\"\n";
        assert!(matches!(allows(&format!("version = \"1.0\"\n{locked}")), Err(PackageError::Held(_))));
        assert!(allows("version = \"1.0\"\n").is_ok());
        assert!(matches!(allows("version = "), Err(PackageError::Read { .. })));
    }

    #[test]
    fn what_the_configuration_excludes_does_not_change() {
        let text = "[main]\ngpgcheck=1\nexclude = kernel*, glibc\n  web-?erver\n# exclude=none\n[repo]\nexclude=bash\n";
        assert_eq!(excludes(text), ["kernel*", "glibc", "web-?erver"]);
        let held = Held { excluded: excludes(text), ..Held::default() };
        let refused = held.allow(&change(Some("1-1"), Some("2-1"))).unwrap_err().to_string();
        assert!(refused.contains("held packages") && refused.contains("web-server"), "{refused}");
        assert!(
            Held { excluded: excludes("exclude=*\n"), ..Held::default() }.allow(&change(None, Some("1-1"))).is_ok()
        );
    }
}
