//! Whether the files of the packages that a run changes are what was shipped: the first of its checks. After a power loss, or on a disk
//! that fails, a package can be installed by its version and half-written by its files.
//!
//! They are looked at before the change, too: a file that was broken then, or that a package alters itself whenever it is installed, is not
//! blamed on it. Where nobody could look then, nothing is blamed afterwards. Of a package that was not there before nobody knows whether it
//! alters its own files whenever it is installed, as some vendors' do: a file of it that is missing is blamed, one that is altered is told.

use std::{collections::BTreeSet, fs, io, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc};

use patchlab_protocol::{
    Item,
    document::Checks,
    inventory::{PackageId, Transaction},
};

use super::{
    attempt::{Attempt, Stop},
    blocking,
};
use crate::{
    journal::replace,
    packages::{Altered, Difference, Extent, Installed, PackageError, Verified},
};

/// The file in a run's folder that names what was broken before, paths of files in JSON.
const FILE_NAME: &str = "broken-before.json";
/// Most files that a reason names.
const NAMED: usize = 3;

impl Attempt<'_> {
    /// Remembers which files of the packages that a transaction replaces are broken already.
    pub async fn note_broken_files(&self, transaction: &Transaction, installed: &Installed) {
        let kept = match self.verify(replaced(transaction, installed)).await {
            Ok(found) if found.untold == 0 => self.keep_broken(found.broken().map(|file| &*file.path).collect()),
            Ok(found) => {
                tracing::warn!(untold = found.untold, "too many files are altered to be remembered");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "files of packages cannot be verified, and will not be after the change either");
                Ok(())
            }
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "which files are altered cannot be remembered");
        }
    }

    fn broken_before(&self) -> PathBuf {
        self.folder.join(FILE_NAME)
    }

    fn keep_broken(&self, broken: BTreeSet<&str>) -> io::Result<()> {
        if !broken.is_empty() {
            tracing::warn!(
                files = broken.len(),
                first = broken.first(),
                "files of packages were altered before the run"
            );
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder)?;
        replace(&self.broken_before(), &serde_json::to_vec(&broken)?)
    }

    /// Compares the files of the packages that this run changed with what was shipped.
    ///
    /// # Errors
    /// When one is broken that was not before, or nobody can say any more.
    pub async fn check_files(&self) -> Result<(), Stop> {
        let before = match fs::read(self.broken_before()) {
            Ok(bytes) => serde_json::from_slice::<BTreeSet<String>>(&bytes).map_err(Stop::failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Stop::failed(error)),
        };
        let installed = self.installed().await.map_err(Stop::failed)?;
        let items = self.engine.record.read(|state| state.run(self.order, self.run).map(|run| run.items.clone()));
        let (new, replaced): (Vec<Item>, Vec<Item>) =
            items.unwrap_or_default().into_iter().partition(|item| item.from.is_empty());
        let replaced = self.verify(still_there(&replaced, &installed)).await.map_err(|error| unsaid(&error))?;
        let new = self.verify(still_there(&new, &installed)).await.map_err(|error| unsaid(&error))?;
        if replaced.untold + new.untold > 0 {
            let all = [&replaced, &new].map(|one| one.altered.len() + one.untold);
            return Err(failed(format!("{} of them", all.iter().sum::<usize>())));
        }
        let (blamed, told) = told_apart(&replaced, &new, &before);
        for file in told {
            tracing::warn!(%file, "a package that was not there before has a file that is not what it shipped");
        }
        why(&blamed).map_or(Ok(()), |reason| Err(failed(reason)))
    }

    /// Compares the files of the packages that a transaction would replace with what was shipped.
    ///
    /// # Errors
    /// When one is broken.
    pub async fn probe_files(&self, transaction: &Transaction, installed: &Installed) -> Result<(), Stop> {
        let found = self.verify(replaced(transaction, installed)).await.map_err(|error| unsaid(&error))?;
        why(&found.newly_broken(&BTreeSet::new())).map_or(Ok(()), |reason| Err(failed(reason)))
    }

    async fn verify(&self, packages: Vec<(PackageId, String)>) -> Result<Verified, PackageError> {
        let (manager, deadline) = (Arc::clone(&self.engine.packages), self.deadline);
        let verified = blocking(move || manager.verify(Extent::Only(&packages), deadline)).await;
        let broke = |error: tokio::task::JoinError| io::Error::other(error.to_string());
        verified.map_err(|error| PackageError::Run { program: "the package manager", source: broke(error) })?
    }
}

fn failed(files: String) -> Stop {
    let reason = format!("files are not what their packages shipped: {files}");
    Stop::Failed { reason, checks: Checks { passed: 0, failed: 1 } }
}

fn unsaid(error: &PackageError) -> Stop {
    let reason = format!("nobody can say whether files are what their packages shipped: {error}");
    Stop::Failed { reason, checks: Checks { passed: 0, failed: 1 } }
}

/// What is blamed on a run, and what is only told, of the files of packages that it replaced and of those that were not there before it.
fn told_apart<'f>(
    replaced: &'f Verified,
    new: &'f Verified,
    before: &BTreeSet<String>,
) -> (Vec<&'f Altered>, Vec<&'f Altered>) {
    let of_new = new.newly_broken(before).into_iter();
    let (missing, told) = of_new.partition::<Vec<_>, _>(|file| file.difference == Difference::Missing);
    (replaced.newly_broken(before).into_iter().chain(missing).collect(), told)
}

/// The packages of a transaction that are there now; a script is none.
fn replaced(transaction: &Transaction, installed: &Installed) -> Vec<(PackageId, String)> {
    of_these(transaction.changes().iter().map(|change| change.id.clone()), installed)
}

/// The packages of a run that are there, at whatever version.
fn still_there(items: &[Item], installed: &Installed) -> Vec<(PackageId, String)> {
    of_these(items.iter().map(|item| PackageId::new(&item.name, &item.arch)), installed)
}

fn of_these(ids: impl Iterator<Item = PackageId>, installed: &Installed) -> Vec<(PackageId, String)> {
    ids.filter_map(|id| installed.settled.version(&id).map(str::to_owned).map(|version| (id, version))).collect()
}

/// Names broken files, for people; nothing when there is none.
fn why(broken: &[&Altered]) -> Option<String> {
    let named: Vec<String> = broken.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match broken.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!named.is_empty()).then(|| format!("{}{more}", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::{ItemState, PackageSystem};

    use super::*;
    use crate::packages::Kind;

    #[test]
    fn a_few_files_are_named_and_the_others_counted() {
        let file = |n: usize| Altered { path: format!("/{n}"), difference: Difference::Missing, kind: Kind::Shipped };
        let files: Vec<Altered> = (0..5).map(file).collect();
        let told = |many: usize| why(&files.iter().take(many).collect::<Vec<_>>());
        assert_eq!(told(0), None);
        assert_eq!(told(1).as_deref(), Some("/0 (missing)"));
        assert_eq!(told(5).as_deref(), Some("/0 (missing), /1 (missing), /2 (missing) and 2 more"));
    }

    #[test]
    fn what_a_new_package_alters_itself_is_told_and_not_blamed() {
        let files = |all: &[(&str, Difference)]| Verified {
            altered: all
                .iter()
                .map(|(path, difference)| Altered {
                    path: (*path).into(),
                    difference: *difference,
                    kind: Kind::Shipped,
                })
                .collect(),
            untold: 0,
        };
        let replaced =
            files(&[("/a", Difference::Contents), ("/b", Difference::Missing), ("/known", Difference::Contents)]);
        let new = files(&[("/c", Difference::Contents), ("/d", Difference::Missing), ("/e", Difference::Attributes)]);
        let (blamed, told) = told_apart(&replaced, &new, &["/known".to_owned()].into());
        let paths = |files: Vec<&Altered>| files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
        assert_eq!((paths(blamed), paths(told)), (vec!["/a".into(), "/b".into(), "/d".into()], vec!["/c".to_owned()]));
    }

    #[test]
    fn what_is_installed_of_a_runs_packages_is_looked_at_and_what_it_removed_is_not() {
        let item = |name: &str, to: &str| Item {
            name: name.into(),
            arch: "all".into(),
            from: "1".into(),
            to: to.into(),
            state: ItemState::Done,
        };
        let installed = Installed {
            system: Some(PackageSystem::Dpkg),
            settled: "lib all 1\nother all 1\nweb all 2\n".parse().unwrap(),
            unsettled: "".parse().unwrap(),
            sources: std::collections::BTreeMap::new(),
        };
        let found = still_there(&[item("web", "2"), item("gone", ""), item("lib", "3")], &installed);
        let names: Vec<_> = found.iter().map(|(id, version)| format!("{id} {version}")).collect();
        assert_eq!(names, ["web:all 2", "lib:all 1"]);
    }
}
