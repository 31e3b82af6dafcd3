//! The mark of a transaction that was begun. rpm itself keeps none: killed in the middle, it leaves files of the new version under a
//! database of the old one, and nothing tells. So the agent writes down what is to be reached before rpm starts, and takes that away
//! when rpm has ended by itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_protocol::inventory::PackageId;
use serde::{Deserialize, Serialize};

use super::{
    super::{Goal, PackageError},
    query::{Header, Row},
};
use crate::journal::replace;

/// The file's name in the agent's folder for rpm.
const FILE_NAME: &str = "begun.json";

/// What a transaction leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begun {
    /// Packages with the version that is to be there, or that are to be gone.
    pub toward: Vec<(PackageId, Option<String>)>,
}

impl Begun {
    /// What a goal leads to; `headers` are its files' own.
    pub fn new(goal: &Goal, headers: &[Header]) -> Self {
        let install = headers.iter().map(|header| (header.identity.id.clone(), Some(header.identity.version.clone())));
        let remove = goal.remove.iter().map(|id| (id.clone(), None));
        Self { toward: install.chain(remove).collect() }
    }

    /// Reads the mark in a folder, when there is one.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, PackageError> {
        let path = folder.join(FILE_NAME);
        let failed = |source| PackageError::Read { path: path.clone(), source };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it into a folder, synced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), PackageError> {
        let path: PathBuf = folder.join(FILE_NAME);
        let bytes = serde_json::to_vec(self).map_err(io::Error::from);
        bytes.and_then(|bytes| replace(&path, &bytes)).map_err(|source| PackageError::Prepare { path, source })
    }

    /// Takes it away from a folder: the transaction ended.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(folder: &Path) -> Result<(), PackageError> {
        let path = folder.join(FILE_NAME);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PackageError::Prepare { path, source }),
            _ => Ok(()),
        }
    }

    /// The versions, as rpm is told of them, that are still there though the one that takes their place is too: what a script that fails
    /// before an erasure leaves.
    pub fn superseded(&self, rows: &[Row]) -> Vec<String> {
        let new = self.toward.iter().filter_map(|(id, to)| to.as_ref().map(|to| (id, to)));
        let there = new.filter(|(id, to)| rows.iter().any(|row| row.id == **id && row.version == **to));
        there
            .flat_map(|(id, to)| {
                let old = rows.iter().filter(move |row| id.takes_place_of(&row.id));
                old.filter(move |row| row.id != *id || row.version != *to).map(Row::label)
            })
            .collect()
    }

    /// Its packages, for people.
    pub fn names(&self) -> String {
        self.toward.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PackageId {
        PackageId::new(name, "noarch")
    }

    #[test]
    fn a_mark_is_kept_and_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Begun::read(folder.path()).unwrap(), None);
        let begun = Begun { toward: vec![(id("web"), Some("2-1".into())), (id("lib"), None)] };
        begun.write(folder.path()).unwrap();
        assert_eq!(Begun::read(folder.path()).unwrap(), Some(begun));
        Begun::clear(folder.path()).unwrap();
        Begun::clear(folder.path()).unwrap();
        assert_eq!(Begun::read(folder.path()).unwrap(), None);
        fs::write(folder.path().join(FILE_NAME), "{").unwrap();
        assert!(Begun::read(folder.path()).is_err(), "who cannot read it must not think that all is well");
    }

    #[test]
    fn only_what_stands_beside_its_successor_is_superseded() {
        let row = |name, version: &str| Row { id: id(name), version: version.into(), source: None };
        let begun = Begun { toward: vec![(id("web"), Some("1-1".into())), (id("lib"), None)] };
        assert!(begun.superseded(&[row("web", "2-1"), row("lib", "1-1")]).is_empty(), "the new one is not there");
        let both = [row("web", "2:2-1"), row("web", "1-1"), row("other", "1-1"), row("lib", "1-1")];
        assert_eq!(begun.superseded(&both), ["web-2:2-1.noarch"]);
        let x86 = Row { id: PackageId::new("web", "x86_64"), version: "1-1".into(), source: None };
        assert_eq!(begun.superseded(&[x86, row("web", "1-1")]), ["web-1-1.x86_64"]);
    }
}
