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

    /// A stored baseline, or what became of it since, frozen again if it must be: the newest of a name is what the name means, and that must
    /// not go back to what it was before an order. To be called with the lock of builds held.
    pub(super) fn fitting(
        &self,
        baseline: Baseline,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
    ) -> Result<Built, BuildError> {
        let heir = heir(&baseline, &self.list_readable()?.0).clone();
        if heir.digest != baseline.digest {
            let (heir, old) = (heir.full_name(), baseline.full_name());
            narrator.say(&format!("{heir} was made of {old} since, and is what counts"), Weight::Lasting);
        }
        match heir.unfit_here() {
            None => Ok(Built::Stored(heir)),
            Some(reason) => self.freeze_again(&heir, Some(&reason), launcher, narrator),
        }
    }

    /// Says when a name goes back: what was made of a baseline that is not the newest has nothing of what came after that.
    pub(super) fn tell_what_is_passed_over(
        &self,
        old: &Baseline,
        new: &Baseline,
        narrator: &mut Narrator<'_>,
    ) -> Result<(), BuildError> {
        if let Some(passed_over) = passed_over(old, new, &self.list_readable()?.0) {
            let (name, passed_over) = (&new.record.name, passed_over.full_name());
            let (new, old) = (new.full_name(), old.full_name());
            let what = format!(
                "{name} means {new} from now on, which was made of {old} and has nothing of {passed_over}: if that is not what you want, \
                 take it away with `patchlab baseline rm {new}`"
            );
            narrator.say(&what, Weight::Lasting);
        }
        Ok(())
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
        let new = self
            .undertake(undertaking, narrator, |work, narrator| self.freeze_again_in(old, work, launcher, narrator))?;
        self.tell_what_is_passed_over(old, &new, narrator)?;
        Ok(Built::Refrozen(new))
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

/// The newest of a name, where it comes of a baseline of that name by orders or by freezing it again; else that baseline. Pure.
fn heir<'b>(baseline: &'b Baseline, all: &'b [Baseline]) -> &'b Baseline {
    let newest = all.iter().filter(|one| one.record.name == baseline.record.name).max_by_key(|one| one.record.number);
    let parent = |one: &Baseline| all.iter().find(|other| Some(other.digest) == one.record.parent);
    let mut ancestor = newest;
    // A line is no longer than there are baselines, whatever records say.
    for _ in all {
        match ancestor {
            Some(found) if found.digest == baseline.digest => return newest.unwrap_or(baseline),
            found => ancestor = found.and_then(parent),
        }
    }
    baseline
}

/// The newest of a name before `new`, unless that was made of it. Pure.
fn passed_over<'b>(old: &Baseline, new: &Baseline, all: &'b [Baseline]) -> Option<&'b Baseline> {
    let numbers = old.record.number + 1..new.record.number;
    let between = all.iter().filter(|one| one.record.name == new.record.name && numbers.contains(&one.record.number));
    between.max_by_key(|one| one.record.number)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `name@number` of the one with that number (0: none).
    fn one(name: &str, number: u32, parent: u32) -> Baseline {
        let digest = |number: u32| Digest::of(format!("{name}@{number}"));
        let parent = (parent > 0).then(|| digest(parent));
        let record = Record { name: name.into(), number, parent, ..Record::empty() };
        Baseline { digest: digest(number), folder: "/nowhere".into(), record }
    }

    #[test]
    fn what_became_of_a_baseline_is_what_counts() {
        let (first, second, third) = (one("web", 1, 0), one("web", 2, 1), one("web", 3, 2));
        let all = [first.clone(), second.clone(), third.clone(), one("db", 4, 1)];
        assert_eq!(heir(&first, &all), &third);
        assert_eq!(heir(&third, &all), &third);
        assert_eq!(heir(&first, &all[..2]), &second);
        // Built anew of another recipe, or its line is broken: it is nobody's heir.
        assert_eq!(heir(&first, &[first.clone(), second.clone(), one("web", 3, 0)]), &first);
        assert_eq!(heir(&first, &[first.clone(), third.clone()]), &first);
        let circle = [one("web", 1, 2), one("web", 2, 1)];
        assert_eq!(heir(&first, &circle).record.number, 2);
        assert_eq!(heir(&one("web", 9, 0), &circle).record.number, 9);
    }

    #[test]
    fn a_name_that_goes_back_is_told() {
        let all = [one("web", 1, 0), one("web", 2, 1), one("web", 3, 1), one("db", 2, 0)];
        let name = |old: usize, new: usize| passed_over(&all[old], &all[new], &all).map(Baseline::full_name);
        assert_eq!(name(0, 2).as_deref(), Some("web@2"));
        assert_eq!(name(0, 1), None);
        assert_eq!(name(1, 2), None);
    }
}
