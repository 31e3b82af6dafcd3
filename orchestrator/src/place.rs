//! Where things lie: the data folder, and the socket in the runtime folder.
//!
//! The data folder is `/var/lib/patchlab` for root, else the XDG data folder; `--data DIR` moves all of it. Unix sockets must
//! stay under 108 bytes, so they live in the runtime folder under a short hash of the data folder's path.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use patchlab_protocol::Digest;

/// The data folder and what lies in it.
#[derive(Debug, Clone)]
pub struct Data {
    dir: PathBuf,
}

/// A folder could not be found, made or trusted.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Neither `--data` nor a home.
    #[error("no data folder: neither --data DIR, XDG_DATA_HOME nor HOME is set; give --data DIR")]
    NoHome,
    /// The file system said no.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The runtime folder belongs to somebody else.
    #[error("runtime folder {path} belongs to user {owner}: remove it, or set XDG_RUNTIME_DIR to a folder of your own", path = path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
}

impl PlaceError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl Data {
    /// The folder given with `--data`, or the user's own; made when absent, for its owner alone but traversable by the
    /// lab's unprivileged worker, which reads artifacts.
    pub fn open(given: Option<PathBuf>) -> Result<Self, PlaceError> {
        let dir = match given {
            Some(dir) => dir,
            None if rustix::process::geteuid().is_root() => "/var/lib/patchlab".into(),
            None => match (env::var_os("XDG_DATA_HOME"), env::var_os("HOME")) {
                (Some(data), _) if !data.is_empty() => PathBuf::from(data).join("patchlab"),
                (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".local/share/patchlab"),
                _ => return Err(PlaceError::NoHome),
            },
        };
        fs::create_dir_all(&dir).map_err(PlaceError::io("create", &dir))?;
        let dir = dir.canonicalize().map_err(PlaceError::io("resolve", &dir))?;
        Ok(Self { dir })
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The store's database.
    pub fn database(&self) -> PathBuf {
        self.dir.join("server/store.sqlite")
    }

    /// What an administrator says of this lab, where there is anything to say.
    pub fn settings(&self) -> PathBuf {
        self.dir.join("patchlab.toml")
    }

    /// Held by the one server of this data folder.
    pub fn server_lock(&self) -> PathBuf {
        self.dir.join("server/lock")
    }

    /// The lab's folders.
    pub fn lab(&self) -> patchlab_lab::Places {
        patchlab_lab::Places::of_data(&self.dir)
    }

    /// Disks with the agent for clones, by the agent's digest.
    pub fn tools(&self) -> PathBuf {
        self.dir.join("lab/tools")
    }

    /// Package files by digest.
    pub fn artifacts(&self) -> PathBuf {
        self.dir.join("artifacts")
    }

    /// The root document that this server's hosts pin.
    pub fn root_document(&self) -> PathBuf {
        self.dir.join("root.json")
    }

    /// The server's activation key.
    pub fn activator_key(&self) -> PathBuf {
        self.dir.join("keys/activator.pem")
    }

    /// The key that seals baselines for other lab hosts, made by the first export that is given no other.
    pub fn keeper_key(&self) -> PathBuf {
        self.dir.join("keys/keeper.pem")
    }

    /// Engine id and boots of the SNMP manager's own engine, to which informs are localized; survives a rebuild.
    pub fn manager_engine(&self) -> PathBuf {
        self.dir.join("keys/manager-engine.json")
    }

    /// The bearer token for changes over TCP.
    pub fn token(&self) -> PathBuf {
        self.dir.join("keys/api.token")
    }

    /// SNMP credentials of one host; outside the database, so that a copy of that holds no secret.
    pub fn credentials(&self, host: &str) -> PathBuf {
        self.dir.join("keys/hosts").join(format!("{host}.json"))
    }

    /// The key that answers at the enrolment door: hosts that come with a token know it by its digest.
    pub fn enrolment_key(&self) -> PathBuf {
        self.dir.join("keys/enrolment.pem")
    }

    /// What hosts were told that were enrolled by a token, for one that did not hear it; gone when the token's time is over.
    pub fn admissions(&self) -> PathBuf {
        self.dir.join("keys/admissions")
    }

    /// The same, of one host.
    pub fn admission(&self, host: &str) -> PathBuf {
        self.admissions().join(format!("{host}.json"))
    }

    /// The API's socket; its folder is made, for its owner alone.
    pub fn socket(&self) -> Result<PathBuf, PlaceError> {
        use std::os::unix::ffi::OsStrExt as _;
        let folder = runtime_folder()?.join(&Digest::of(self.dir.as_os_str().as_bytes()).short()[..8]);
        private_folder(&folder)?;
        Ok(folder.join("api.sock"))
    }
}

/// The user's runtime folder: one for all data folders of this machine, gone with its boot. Made for its owner alone.
pub fn runtime_folder() -> Result<PathBuf, PlaceError> {
    let uid = rustix::process::geteuid();
    let folder = match env::var_os("XDG_RUNTIME_DIR") {
        _ if uid.is_root() => PathBuf::from("/run/patchlab"),
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("patchlab"),
        _ => env::temp_dir().join(format!("patchlab-{}", uid.as_raw())),
    };
    private_folder(&folder)?;
    Ok(folder)
}

/// Makes a folder (mode 0700) or checks that the one there is ours.
pub fn private_folder(path: &Path) -> Result<(), PlaceError> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(PlaceError::io("create", path)(error)),
    }
    let found = fs::symlink_metadata(path).map_err(PlaceError::io("look at", path))?;
    if found.uid() != rustix::process::geteuid().as_raw() || !found.is_dir() {
        return Err(PlaceError::Foreign { path: path.to_owned(), owner: found.uid() });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(PlaceError::io("change the mode of", path))
}

/// Writes a file whole or not at all, mode 0600, synced.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PlaceError> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    private_folder(dir)?;
    // A named temporary file is made with mode 0600.
    let mut file =
        tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(PlaceError::io("create a file in", dir))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(PlaceError::io("write", path))?;
    file.persist(path).map_err(|error| PlaceError::io("rename to", path)(error.error))?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(PlaceError::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_fit_whatever_the_data_folder_is_called() {
        let temporary = tempfile::tempdir().unwrap();
        let data = Data::open(Some(temporary.path().join("d".repeat(200)))).unwrap();
        assert!(data.socket().unwrap().as_os_str().len() < 108);
    }

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("keys/x");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
