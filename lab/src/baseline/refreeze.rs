//! A baseline frozen again, from its own disk: when this host's QEMU or processor is not what it was frozen under, its memory and its
//! devices' state are of no use as a template, and every clone would boot.
//!
//! The disk is copied, booted and frozen as a new disk is ([`super::freeze`]), under the present versions. What comes of it is a
//! baseline of the same name with the next number, and the old one its parent, which stays until people take it away.

use std::{fs, path::Path};

use patchlab_check::Digest;

use super::{
    Baseline, Baselines, BuildError, Built, Progress, Record, StoreError, Weight,
    build::{Basis, FreezeWorker, Narrator, Undertaking},
    failed,
    freeze::{FreezeOrder, Origin},
    image,
};
use crate::{room::Bytes, worker::Launcher};

/// How long a system that was ready once may take to be ready again, seconds with kvm. Its recipe's own limit is not in its record.
const READY_TIMEOUT_S: u64 = 300;

/// When a baseline is frozen again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreeze {
    /// When it does not fit this host.
    IfUnfit,
    /// In any case.
    Always,
}

impl Baselines {
    /// Freezes a baseline again by a cold boot of its disk, under what this host has now; the old one stays. `launcher` is a command line of
    /// this program that calls [`super::serve_freeze`].
    ///
    /// # Errors
    /// There is no such baseline, its disk was altered, there is no room, or a step failed; the store is then as it was.
    pub fn refreeze(
        &self,
        wanted: &str,
        when: Refreeze,
        launcher: &Launcher,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Built, BuildError> {
        let mut narrator = Narrator::new(progress);
        let baseline = self.get(wanted)?;
        match (when, baseline.unfit_here()) {
            (Refreeze::IfUnfit, None) => Ok(Built::Stored(baseline)),
            (_, reason) => {
                let _one_at_a_time = self.one_at_a_time(&mut narrator)?;
                self.freeze_again(&baseline, reason.as_deref(), launcher, &mut narrator)
            }
        }
    }

    /// A stored baseline, frozen again if it must be. To be called with the lock of builds held.
    pub(super) fn fitting(
        &self,
        baseline: Baseline,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
    ) -> Result<Built, BuildError> {
        match baseline.unfit_here() {
            None => Ok(Built::Stored(baseline)),
            Some(reason) => self.freeze_again(&baseline, Some(&reason), launcher, narrator),
        }
    }

    fn freeze_again(
        &self,
        old: &Baseline,
        reason: Option<&str>,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
    ) -> Result<Built, BuildError> {
        let name = old.full_name();
        let because = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        narrator.say(&format!("freezing {name} again by a cold boot of its disk{because}"), Weight::Lasting);
        let size: u64 = old.record.files.values().map(|file| file.size).sum();
        let undertaking = Undertaking {
            name: &old.record.name,
            id: format!("r-{}-{}", old.digest.short(), std::process::id()),
            what: format!("freezing baseline {name} again"),
            // The boot may write to the disk: a GiB is far more than one does.
            needed: Bytes(size + (1 << 30)),
        };
        self.undertake(undertaking, narrator, |work, narrator| self.freeze_again_in(old, work, launcher, narrator))
            .map(Built::Refrozen)
    }

    fn freeze_again_in(
        &self,
        old: &Baseline,
        work: &Path,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
    ) -> Result<Baseline, BuildError> {
        let staged = work.join("baseline");
        fs::create_dir_all(&staged).map_err(failed("create", &staged))?;
        narrator.step(1, "opening libvirt");
        let worker = FreezeWorker::open(&self.places, launcher, narrator)?;
        narrator.step(2, "copying the disk");
        let disk = work.join("disk.qcow2");
        copy_checked(old, "disk.qcow2", &disk)?;
        for file in old.record.files.keys().filter(|file| Record::is_for_drafting(file)) {
            copy_checked(old, file, &staged.join(file))?;
        }
        let record = &old.record;
        let freezer = worker.freeze(&order_again(record), &disk, &staged, &work.join(image::LOG), narrator)?;
        let basis = Basis {
            name: record.name.clone(),
            parent: Some(old.digest),
            order: record.order.clone(),
            recipe: record.recipe.clone(),
            inputs: record.inputs,
            os: record.os.clone(),
            ready_units: record.ready_units.clone(),
            represents: record.represents.clone(),
            pool: record.pool.clone(),
            unpooled: record.unpooled.clone(),
            secrets: record.secrets.clone(),
        };
        self.store(basis, freezer, &staged, narrator)
    }
}

/// What a worker is to freeze of a system that was frozen before: it has what the lab needs, and was searched for secrets.
pub(super) fn order_again(record: &Record) -> FreezeOrder {
    FreezeOrder {
        memory_mib: record.hardware.memory_mib,
        screen: record.hardware.screen,
        vcpus: record.hardware.vcpus,
        ready_units: record.ready_units.clone(),
        ready_timeout_s: READY_TIMEOUT_S,
        origin: Origin::Lab,
    }
}

/// Copies a file of a baseline that still is what it was.
pub(super) fn copy_checked(baseline: &Baseline, file: &str, to: &Path) -> Result<(), BuildError> {
    let from = baseline.file(file);
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    fs::copy(&from, to).map_err(failed("copy", &from))?;
    let (found, _) = Digest::of_file(to).map_err(failed("read", to))?;
    let (baseline, stored) = (baseline.full_name(), baseline.record.files.get(file));
    match stored {
        Some(stored) if stored.sha256 == found => Ok(()),
        Some(stored) => {
            Err(StoreError::Altered { baseline, file: file.to_owned(), found, expected: stored.sha256 }.into())
        }
        None => Err(StoreError::Missing { baseline, file: file.to_owned() }.into()),
    }
}
