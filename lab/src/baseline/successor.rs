//! A baseline's successor: what it becomes by an order, so that the lab ages with the machines that it stands for.
//!
//! The caller puts the order on a machine that booted the parent's disk, exactly as on a managed host, and leaves that machine's disk.
//! From there it goes as with any new disk ([`super::freeze`]): a cold boot, the manifest, the freeze and its proof. What comes of
//! it is a baseline of the same name with the next number, its parent and the order in its record.

use std::{
    fs,
    path::{Path, PathBuf},
};

use patchlab_check::{Digest, PackageSystem};

use super::{
    APT, Baseline, Baselines, BuildError, Built, OrderName, PoolFile, Progress, RPM, Record,
    build::{Basis, FreezeWorker, Narrator, Undertaking},
    failed, image,
    pool::{self, Found},
    refreeze::{copy_checked, order_again},
};
use crate::{
    dnf::{self, Dnf, DnfInputs},
    room::Bytes,
    worker::Launcher,
};

/// The name of the patched machine's disk, in the folder that it is left in.
const DISK: &str = "disk.qcow2";
/// The name there of what says which packages it has.
const STATUS: &str = "status";
/// Bytes of it that are read: 64 MiB. dpkg's of 2,000 packages has some three, rpm's headers of as many some fifty.
const STATUS_LIMIT: u64 = 64 << 20;

/// What a baseline becomes another by.
#[derive(Debug, Clone)]
pub struct Patch {
    /// The order.
    pub order: OrderName,
    /// The package files that it installs; they are in the artifact store.
    pub files: Vec<PoolFile>,
}

/// Puts the patch on a machine of the parent's, telling what it is at, and leaves that machine's disk and status.
pub type PutOn<'a> = dyn FnMut(&Left<'_>, &mut dyn FnMut(&str)) -> Result<(), SuccessorError> + 'a;

/// The patch could not be put on the machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SuccessorError(String);

impl SuccessorError {
    /// For a reason in words.
    pub fn new(reason: impl ToString) -> Self {
        Self(reason.to_string())
    }
}

/// Digest of all that decides what a successor is; never a recipe's.
fn inputs(parent: Digest, order: &OrderName) -> Digest {
    Digest::of(format!("successor of {parent} by {}\n", order.digest))
}

impl Record {
    /// What made it of its parent. One that was frozen again keeps the order that its parent, or the parent's, was made by.
    pub fn made_by(&self) -> MadeBy<'_> {
        match (&self.parent, &self.order) {
            (None, _) => MadeBy::Recipe,
            (Some(parent), Some(order)) if self.inputs == inputs(*parent, order) => MadeBy::Order(*parent, order),
            (Some(parent), order) => MadeBy::Freezing(*parent, order.as_ref()),
        }
    }
}

/// What made a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeBy<'r> {
    /// Its recipe.
    Recipe,
    /// An order, of that parent.
    Order(Digest, &'r OrderName),
    /// Freezing that parent again; the parent's line has the order in it.
    Freezing(Digest, Option<&'r OrderName>),
}

/// Where a patched machine is left: files in a work folder.
#[derive(Debug)]
pub struct Left<'a> {
    /// The folder.
    folder: &'a Path,
}

impl Left<'_> {
    /// Where its disk is to lie: qcow2, over no other file.
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Where is to lie what says which packages it has: dpkg's status, or the headers of rpm's as `rpmdb --exportdb` writes them.
    pub fn status(&self) -> PathBuf {
        self.folder.join(STATUS)
    }
}

impl Baselines {
    /// Makes the successor of a baseline by a patch, or takes it from the store when it was made before. `launcher` is a command line of this program that calls [`super::serve_freeze`].
    ///
    /// # Errors
    /// The patch could not be put on, there is no room, or a step failed; the store is then as it was.
    pub fn succeed(
        &self,
        parent: &Baseline,
        patch: &Patch,
        put_on: &mut PutOn<'_>,
        launcher: &Launcher,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Built, BuildError> {
        let mut narrator = Narrator::new(progress);
        let _one_at_a_time = self.one_at_a_time(&mut narrator)?;
        let inputs = inputs(parent.digest, &patch.order);
        if let Some(baseline) = self.built_from(inputs)? {
            return self.fitting(baseline, launcher, &mut narrator);
        }
        let name = parent.full_name();
        let size: u64 = parent.record.files.values().map(|file| file.size).sum();
        let undertaking = Undertaking {
            name: &parent.record.name,
            id: format!("s-{}-{}", inputs.short(), std::process::id()),
            what: format!("making the successor of baseline {name}"),
            // The patched machine's disk beside that which is frozen, and what the patch writes.
            needed: Bytes(2 * size + (1 << 30)),
        };
        let made = self.undertake(undertaking, &mut narrator, |work, narrator| {
            narrator.step(1, &format!("putting order {} on a machine of {name}", patch.order.id));
            fs::create_dir_all(work).map_err(failed("create", work))?;
            put_on(&Left { folder: work }, &mut |what| narrator.step(1, what))?;
            self.freeze_left(&Left { folder: work }, parent, (patch, inputs), launcher, narrator)
        });
        let made = made?;
        self.tell_what_is_passed_over(parent, &made, &mut narrator)?;
        Ok(Built::New(made))
    }

    fn freeze_left(
        &self,
        left: &Left<'_>,
        parent: &Baseline,
        (patch, inputs): (&Patch, Digest),
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
    ) -> Result<Baseline, BuildError> {
        let staged = left.folder.join("baseline");
        fs::create_dir_all(&staged).map_err(failed("create", &staged))?;
        narrator.step(2, "opening libvirt");
        let worker = FreezeWorker::open(&self.places, launcher, narrator)?;
        let record = &parent.record;
        let kept = match record.package_system() {
            PackageSystem::Dpkg => format!("{APT}/status"),
            PackageSystem::Rpm => format!("{RPM}/{}", dnf::HEADERS),
        };
        for file in record.files.keys().filter(|file| Record::is_for_drafting(file) && **file != kept) {
            copy_checked(parent, file, &staged.join(file))?;
        }
        let status = read_status(&left.status())?;
        let kept = staged.join(kept);
        fs::create_dir_all(kept.parent().unwrap_or(&staged)).map_err(failed("create", &staged))?;
        fs::write(&kept, &status).map_err(failed("write", &kept))?;
        let known: Vec<PoolFile> = record.pool.iter().chain(&patch.files).cloned().collect();
        let installed = match record.package_system() {
            PackageSystem::Dpkg => pool::installed(&String::from_utf8_lossy(&status)),
            PackageSystem::Rpm => {
                let inputs = DnfInputs::below(&staged.join(RPM), &record.os.release, &record.os.arch);
                pool::installed_rpm(&Dnf::open(&inputs, left.folder)?)
            }
        };
        let found = pool::of_installed(installed, &known);
        all_known(&found, parent)?;
        // Its parent was frozen before, and the patch is known file by file.
        let freezer =
            worker.freeze(&order_again(record), &left.disk(), &staged, &left.folder.join(image::LOG), narrator)?;
        let basis = Basis {
            name: record.name.clone(),
            parent: Some(parent.digest),
            order: Some(patch.order.clone()),
            recipe: record.recipe.clone(),
            inputs,
            os: record.os.clone(),
            ready_units: record.ready_units.clone(),
            represents: record.represents.clone(),
            pool: found.pool,
            unpooled: found.unpooled,
            secrets: record.secrets.clone(),
        };
        self.store(basis, freezer, &staged, narrator)
    }
}

/// What has no file had none in the parent either.
fn all_known(found: &Found, parent: &Baseline) -> Result<(), BuildError> {
    let mut missing = found.unpooled.iter().filter(|one| !parent.record.unpooled.contains(one));
    missing.next().map_or(Ok(()), |first| {
        let first = format!("{} {} {}", first.name, first.version, first.arch);
        Err(BuildError::PoolIncomplete { count: 1 + missing.count(), first })
    })
}

/// The status that a machine left, which may be anything.
fn read_status(path: &Path) -> Result<Vec<u8>, BuildError> {
    let length = fs::metadata(path).map_err(failed("read", path))?.len();
    if length > STATUS_LIMIT {
        let reason = format!("what it says of its packages has {length} bytes, more than {STATUS_LIMIT}");
        return Err(SuccessorError::new(reason).into());
    }
    fs::read(path).map_err(failed("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_that_was_frozen_again_is_not_by_its_order() {
        let order = OrderName { id: "PO-1".into(), digest: Digest::of("order") };
        let [first, second] = ["first", "second"].map(Digest::of);
        let by_recipe = Record::empty();
        assert_eq!(by_recipe.made_by(), MadeBy::Recipe);
        let made =
            Record { parent: Some(first), order: Some(order.clone()), inputs: inputs(first, &order), ..by_recipe };
        assert_eq!(made.made_by(), MadeBy::Order(first, &order));
        let again = Record { parent: Some(second), ..made };
        assert_eq!(again.made_by(), MadeBy::Freezing(second, Some(&order)));
    }
}
