//! The package table's memory: every package has an index that stays, and the number of the change that touched it
//! last. A manager that remembers a number asks for what came after it, over restarts of both sides. What is removed
//! stays as a row without a version, until so many are removed that the oldest are forgotten.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use patchlab_protocol::inventory::{Inventory, PackageId, Source, Sources};
use serde::{Deserialize, Serialize};

use crate::journal::replace;

/// The file's name in the state folder.
pub const FILE_NAME: &str = "packages.json";
/// Most removed packages that are remembered.
const REMOVED: usize = 1024;

/// One package, installed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Package name.
    pub name: String,
    /// Package architecture.
    pub arch: String,
    /// Its version; empty when it was removed.
    pub version: String,
    /// What it was built from; nothing when it does not say, and when it was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The change that touched it last.
    pub change: u32,
}

/// Every package with its index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// The newest change; 0 before any.
    pub change: u32,
    /// The highest index given.
    pub last_index: u32,
    /// Removals up to this change may be forgotten: who knows only older numbers reads everything.
    pub forgotten: u32,
    /// By index.
    pub entries: BTreeMap<u32, Entry>,
}

impl Catalog {
    /// Takes in what is installed now, as one change, if it is one.
    pub fn update(&mut self, installed: &Inventory, sources: &Sources) {
        let next = self.change.saturating_add(1);
        let mut touched = false;
        let mut known: BTreeMap<PackageId, u32> = BTreeMap::new();
        for (index, entry) in &mut self.entries {
            let id = PackageId::new(&entry.name, &entry.arch);
            let version = installed.version(&id).unwrap_or_default();
            let source = sources.get(&id).filter(|_| !version.is_empty());
            if entry.version != version || entry.source.as_ref() != source {
                version.clone_into(&mut entry.version);
                entry.source = source.cloned();
                entry.change = next;
                touched = true;
            }
            known.insert(id, *index);
        }
        for (id, version) in installed.packages().filter(|(id, _)| !known.contains_key(*id)) {
            self.last_index = self.last_index.saturating_add(1);
            let PackageId { name, arch } = id.clone();
            let source = sources.get(id).cloned();
            let entry = Entry { name, arch, version: version.to_owned(), source, change: next };
            self.entries.insert(self.last_index, entry);
            touched = true;
        }
        if touched {
            self.change = next;
            self.forget();
        }
    }

    fn forget(&mut self) {
        let mut removed: Vec<(u32, u32)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.version.is_empty())
            .map(|(index, e)| (e.change, *index))
            .collect();
        removed.sort_unstable();
        for (change, index) in &removed[..removed.len().saturating_sub(REMOVED)] {
            self.entries.remove(index);
            self.forgotten = self.forgotten.max(*change);
        }
    }

    /// Reads the catalogue in a folder. One that cannot be read is begun anew: what is installed is the truth, and a
    /// manager sees by the smaller number that it must read everything.
    pub fn read(folder: &Path) -> Self {
        let path = folder.join(FILE_NAME);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, path = %path.display(), "the package catalogue is damaged; it begins anew");
                Self::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the package catalogue cannot be read; it begins anew");
                Self::default()
            }
        }
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let path: PathBuf = folder.join(FILE_NAME);
        replace(&path, &serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(catalog: &mut Catalog, text: &str) {
        catalog.update(&text.parse().unwrap(), &Sources::new());
    }

    fn since(catalog: &Catalog, change: u32) -> Vec<(u32, &str, &str)> {
        let changed = catalog.entries.iter().filter(|(_, entry)| entry.change > change);
        changed.map(|(index, entry)| (*index, &*entry.name, &*entry.version)).collect()
    }

    #[test]
    fn an_index_stays_and_only_what_changed_has_a_newer_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = Catalog::read(folder.path());
        update(&mut catalog, "a all 1\nb all 1\nc amd64 1\n");
        assert_eq!(catalog.change, 1);
        update(&mut catalog, "a all 1\nb all 1\nc amd64 1\n");
        assert_eq!(catalog.change, 1, "nothing changed");
        catalog.write(folder.path()).unwrap();

        let mut catalog = Catalog::read(folder.path());
        update(&mut catalog, "a all 2\nc amd64 1\nd all 1\n");
        assert_eq!(since(&catalog, 1), [(1, "a", "2"), (2, "b", ""), (4, "d", "1")]);
        update(&mut catalog, "a all 2\nb all 5\nc amd64 1\nd all 1\n");
        assert_eq!(since(&catalog, 2), [(2, "b", "5")], "what comes back has its index");
        assert_eq!(since(&catalog, 0).len(), 4);
    }

    #[test]
    fn a_source_that_comes_to_be_known_is_a_change_and_an_older_catalogue_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let old = r#"{"change":4,"last_index":1,"forgotten":0,"entries":{"1":{"name":"a","arch":"all","version":"1","change":4}}}"#;
        fs::write(folder.path().join(FILE_NAME), old).unwrap();
        let mut catalog = Catalog::read(folder.path());
        let built = |version: &str| -> Sources {
            [(PackageId::new("a", "all"), Source::new("s", version).unwrap())].into_iter().collect()
        };
        let source = |catalog: &Catalog| catalog.entries[&1].source.clone().map(|source| source.version);
        let installed: Inventory = "a all 1\n".parse().unwrap();
        for (version, change) in [("1", 5), ("1", 5), ("1.1", 6)] {
            catalog.update(&installed, &built(version));
            assert_eq!((catalog.change, source(&catalog).as_deref()), (change, Some(version)));
        }
        catalog.write(folder.path()).unwrap();
        assert_eq!(Catalog::read(folder.path()), catalog);
        catalog.update(&Inventory::default(), &built("1.1"));
        assert_eq!((catalog.change, source(&catalog)), (7, None), "what is removed was built from nothing");
    }

    #[test]
    fn removals_without_end_are_forgotten_and_it_says_up_to_where() {
        let mut catalog = Catalog::default();
        for number in 0..REMOVED + 10 {
            update(&mut catalog, &format!("p{number} all 1\n"));
        }
        assert!(catalog.entries.len() <= REMOVED + 1, "{}", catalog.entries.len());
        assert!(catalog.forgotten > 0 && catalog.forgotten < catalog.change);
    }

    #[test]
    fn a_damaged_file_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), "{").unwrap();
        assert_eq!(Catalog::read(folder.path()), Catalog::default());
    }
}
