//! The machine the agent is on.

use std::{fs, io, io::Read as _, path::Path};

use patchlab_protocol::document::Class;

/// Largest os-release file that is read, bytes.
const OS_RELEASE_BYTES: u64 = 64 * 1024;

/// The class of the system cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ClassError {
    /// No os-release file.
    #[error("cannot read {path}, which says what system this is")]
    Unreadable {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// It lacks a key.
    #[error("{path} says no {key}")]
    Missing {
        /// Its path.
        path: String,
        /// The key.
        key: &'static str,
    },
}

/// What os-release(5) of a system says.
struct OsRelease {
    path: String,
    text: String,
}

impl OsRelease {
    fn read(root: &Path) -> Result<Self, ClassError> {
        let places = ["etc/os-release", "usr/lib/os-release"].map(|place| root.join(place));
        let file = places.iter().find(|path| path.exists()).unwrap_or(&places[0]);
        let path = file.display().to_string();
        let mut text = String::new();
        fs::File::open(file)
            .and_then(|file| file.take(OS_RELEASE_BYTES).read_to_string(&mut text))
            .map_err(|source| ClassError::Unreadable { path: path.clone(), source })?;
        Ok(Self { path, text })
    }

    fn needs(&self, key: &'static str) -> Result<String, ClassError> {
        os_release(&self.text, key).ok_or_else(|| ClassError::Missing { path: self.path.clone(), key })
    }
}

/// The class of the system below `root`: os-release(5) there, the architecture from the running kernel.
///
/// # Errors
/// When os-release cannot be read or lacks `ID`, or `VERSION_ID` and `BUILD_ID`.
pub fn class(root: &Path) -> Result<Class, ClassError> {
    let said = OsRelease::read(root)?;
    let arch = rustix::system::uname().machine().to_string_lossy().into_owned();
    // Distributions without releases have no VERSION_ID; Arch says BUILD_ID=rolling.
    let release = said.needs("VERSION_ID").or_else(|missing| said.needs("BUILD_ID").map_err(|_| missing))?;
    Ok(Class { family: said.needs("ID")?, release, arch })
}

/// The distribution of the system below `root` and those it comes from, nearest first: `ID` and `ID_LIKE` of os-release(5).
///
/// # Errors
/// When os-release cannot be read or lacks `ID`.
pub fn distribution(root: &Path) -> Result<Vec<String>, ClassError> {
    let said = OsRelease::read(root)?;
    let like = os_release(&said.text, "ID_LIKE").unwrap_or_default();
    Ok([said.needs("ID")?].into_iter().chain(like.split_whitespace().map(str::to_owned)).collect())
}

/// Names the boot of the system below `root`; a root without a `/proc` of its own runs on this kernel.
///
/// # Errors
/// When it cannot be read.
pub fn boot_id(root: &Path) -> io::Result<String> {
    let place = "proc/sys/kernel/random/boot_id";
    let own = root.join(place);
    let path = if own.exists() { own } else { Path::new("/").join(place) };
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_os_release_are_read_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(os_release(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(text, "NAME"), None);
    }

    #[test]
    fn a_distribution_names_those_it_comes_from() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/os-release"), "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n").unwrap();
        assert_eq!(distribution(root.path()).unwrap(), ["rocky", "rhel", "centos", "fedora"]);
        assert!(matches!(class(root.path()), Err(ClassError::Missing { key: "VERSION_ID", .. })));
    }
}
