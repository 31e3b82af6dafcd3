//! Which package system the agent works with: what the host says of itself, otherwise the one database that is there, or none.

use std::path::{Path, PathBuf};

use patchlab_protocol::PackageSystem;

use super::rpm;
use crate::host::{self, ClassError};

/// Nobody can tell how packages are managed here.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// What the host is cannot be read.
    #[error(transparent)]
    Host(#[from] ClassError),
    /// Neither its name nor its files say it.
    #[error(
        "this system ({ids}) is none whose package system is known, and there are databases of dpkg and of rpm: \
         write system = \"dpkg\", system = \"rpm\" or system = \"none\" under [packages] in agent.toml"
    )]
    Unknown {
        /// `ID` and `ID_LIKE` of os-release(5).
        ids: String,
    },
}

/// The package system of the host below `root`; `None` where there is none.
///
/// # Errors
/// When nobody can tell.
pub fn system(root: &Path) -> Result<Option<PackageSystem>, SystemError> {
    let there = |system: &PackageSystem| databases(*system, root).iter().any(|path| path.exists());
    let found: Vec<PackageSystem> = PackageSystem::ALL.into_iter().filter(there).collect();
    choose(&host::distribution(root)?, &found)
}

/// Where a system's database may be.
fn databases(system: PackageSystem, root: &Path) -> Vec<PathBuf> {
    match system {
        PackageSystem::Dpkg => vec![root.join("var/lib/dpkg/status")],
        PackageSystem::Rpm => rpm::FOLDERS.iter().flat_map(|folder| rpm::database(&root.join(folder))).collect(),
    }
}

/// The name decides, since a host may have the other system's tools and even its database; of a name that is not known, the database.
fn choose(ids: &[String], databases: &[PackageSystem]) -> Result<Option<PackageSystem>, SystemError> {
    if let Some(system) = PackageSystem::of_distribution(ids.iter().map(String::as_str)) {
        return Ok(Some(system));
    }
    match *databases {
        [system] => Ok(Some(system)),
        [] => Ok(None),
        _ => Err(SystemError::Unknown { ids: ids.join(" ") }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_name_decides_then_the_database_and_otherwise_nobody_guesses() {
        use PackageSystem::{Dpkg, Rpm};
        let ids = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let chosen = |text: &str, databases: &[PackageSystem]| choose(&ids(text), databases).ok();
        assert_eq!(chosen("debian", &[Dpkg, Rpm]), Some(Some(Dpkg)));
        assert_eq!(chosen("almalinux rhel centos fedora", &[]), Some(Some(Rpm)));
        assert_eq!(chosen("house-os", &[Rpm]), Some(Some(Rpm)));
        assert_eq!(chosen("alpine", &[]), Some(None));
        let refused = choose(&ids("house-os"), &[Dpkg, Rpm]).unwrap_err().to_string();
        assert!(refused.contains("house-os") && refused.contains("system = \"rpm\""), "{refused}");
    }

    #[test]
    fn a_database_is_found_where_distributions_have_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/os-release"), "ID=house-os\nVERSION_ID=1\n").unwrap();
        assert_eq!(system(root.path()).unwrap(), None);
        let folder = root.path().join("usr/lib/sysimage/rpm");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("rpmdb.sqlite"), "").unwrap();
        assert_eq!(system(root.path()).unwrap(), Some(PackageSystem::Rpm));
    }
}
