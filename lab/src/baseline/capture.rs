//! A baseline from a system that somebody else made: its image is taken in, looked into, booted and frozen; then its packages' files are
//! looked for, so that orders on it can be drafted and taken back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use patchlab_check::PackageSystem;

use super::{
    APT, Baselines, BuildError, IntakeError, RPM, Weight,
    build::{FreezeWorker, Making, Narrator},
    captured::{self, Captured},
    cloud::{self, Contents},
    failed,
    freeze::{Freezer, Origin},
    image, intake, offline,
    pool::{self, Found},
};
use crate::{
    apt::{Apt, AptError, AptInputs, dpkg_arch},
    artifact::ArtifactStore,
    dnf::DnfInputs,
    recipe::{CloudImage, Image, Wanted},
};

/// The package by which a lab talks to a system.
const GUEST_AGENT: &str = "qemu-guest-agent";

impl Baselines {
    /// Freezes the system on a disk as it is.
    pub(super) fn capture(
        &self,
        making: &Making<'_>,
        image: &Image,
        narrator: &mut Narrator<'_>,
    ) -> Result<(Freezer, Found), BuildError> {
        let (raw, system) = take_in(making, image, narrator)?;
        // A disk that cannot be read so may have the agent all the same.
        if system.is_some_and(|system| !system.has(&guest_agent())) {
            return Err(IntakeError::NoAgent { place: image.place.clone() }.into());
        }
        self.freeze_captured(making, image, (&raw, None), narrator)
    }

    /// Adds to a cloud image what the lab and its recipe want, by a seed, and freezes it.
    pub(super) fn capture_cloud(
        &self,
        making: &Making<'_>,
        cloud: &CloudImage,
        narrator: &mut Narrator<'_>,
    ) -> Result<(Freezer, Found), BuildError> {
        let CloudImage { image, packages, overlay } = cloud;
        let (raw, system) = take_in(making, image, narrator)?;
        let files = match system {
            Some(system) => self.lacking(making, packages, &system, narrator)?,
            None if packages.is_empty() => Vec::new(),
            None => {
                let reason = "no file system in it can be read from outside (ext2, 3 and 4 can), so nobody knows what its \
                              packages need: leave `packages` out, and use an image that has them and qemu-guest-agent";
                return Err(IntakeError::Unusable { place: image.place.clone(), reason: reason.into() }.into());
            }
        };
        let name = &making.recipe.name;
        let contents = Contents { name, packages: &files, overlay: overlay.as_deref() };
        let seed = cloud::write_seed(&contents, making.work)?;
        self.freeze_captured(making, image, (&raw, Some(&seed)), narrator)
    }

    /// The package files that a system lacks of `packages` and the guest agent, with what these need.
    fn lacking(
        &self,
        making: &Making<'_>,
        packages: &[Wanted],
        system: &Captured,
        narrator: &mut Narrator<'_>,
    ) -> Result<Vec<PathBuf>, BuildError> {
        let agent = guest_agent();
        let lacking = packages.iter().chain([&agent]).filter(|package| !system.has(package));
        let wanted: Vec<String> = lacking.map(Wanted::to_string).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        narrator.step(1, &format!("fetching {} from the image's own suites", wanted.join(", ")));
        let Making { recipe, work, .. } = *making;
        let (folder, cache, kept) = (work.join("lacking"), work.join("suites"), work.join("packages"));
        for folder in [&cache, &kept] {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        let sources = system.sources();
        system.write(&sources, &folder)?;
        let apt = Apt::open(&inputs(&folder, &recipe.os.arch), &cache)?;
        let suites = || sources.repositories.iter().map(|one| one.suite.as_str()).collect::<Vec<_>>().join(", ");
        let missing = |error: AptError| match error {
            AptError::Apt { reason, .. } if !unknown(&reason).is_empty() => BuildError::NoSuchPackage {
                packages: unknown(&reason).join(", "),
                suites: suites(),
                recipe: recipe.path.clone(),
            },
            other => other.into(),
        };
        apt.update()?;
        let store = ArtifactStore::open(&self.places.artifacts)?;
        let mut files = Vec::new();
        for path in apt.download(&wanted).map_err(missing)? {
            // Its pool: what was installed from these files is found there again.
            store.put(&path)?;
            let to = kept.join(path.file_name().unwrap_or_default());
            fs::rename(&path, &to).map_err(failed("keep", &path))?;
            files.push(to);
        }
        Ok(files)
    }

    fn freeze_captured(
        &self,
        making: &Making<'_>,
        image: &Image,
        (raw, seed): (&Path, Option<&Path>),
        narrator: &mut Narrator<'_>,
    ) -> Result<(Freezer, Found), BuildError> {
        let Making { work, staged, .. } = *making;
        narrator.step(1, "opening libvirt");
        let worker = FreezeWorker::open(&self.places, making.launcher, narrator)?;
        narrator.step(2, "writing the disk");
        let disk = work.join("disk.qcow2");
        image::to_qcow2(raw, &disk)?;
        let origin = match seed {
            Some(seed) => {
                worker.hand_over(seed, cloud::SEED)?;
                Origin::CloudImage(image.secrets)
            }
            None => Origin::Captured(image.secrets),
        };
        let freezer = worker.freeze(&making.order(origin), &disk, staged, &work.join(image::LOG), narrator)?;
        narrator.step(8, "looking for its package files");
        let captured = Captured::take(&staged.join(captured::ARCHIVE))?;
        agrees(&captured, making, image)?;
        let found = self.find_pool(making, &captured, narrator)?;
        Ok((freezer, found))
    }

    /// Keeps what drafting an order needs, and finds the package files of a captured system.
    fn find_pool(
        &self,
        making: &Making<'_>,
        captured: &Captured,
        narrator: &mut Narrator<'_>,
    ) -> Result<Found, BuildError> {
        let store = ArtifactStore::open(&self.places.artifacts)?;
        let mut tell = |what: &str, weight: Weight| narrator.say(what, weight);
        let passed_over = |passed_over: &[String], tell: &mut dyn FnMut(&str, Weight)| {
            for one in passed_over {
                tell(&format!("a repository of the system is passed over: {one}"), Weight::Lasting);
            }
        };
        let os = &making.recipe.os;
        let found = match captured.system() {
            PackageSystem::Dpkg => {
                let (apt, sources) = (making.staged.join(APT), captured.sources());
                captured.write(&sources, &apt)?;
                passed_over(&sources.passed_over, &mut tell);
                pool::find(&inputs(&apt, &os.arch), making.work, &store, &mut tell)?
            }
            PackageSystem::Rpm => {
                let (folder, sources) = (making.staged.join(RPM), captured.rpm_sources());
                captured.write_rpm(&sources, &folder)?;
                passed_over(&sources.passed_over, &mut tell);
                let inputs = DnfInputs::below(&folder, &os.release, &os.arch);
                pool::find_rpm(&inputs, making.work, &store, &mut tell)?
            }
        };
        if !found.unpooled.is_empty() {
            let (lacking, all) = (found.unpooled.len(), found.unpooled.len() + found.pool.len());
            let what = format!(
                "{lacking} of {all} installed packages have no file in the system's suites: `baseline show` names them"
            );
            narrator.say(&what, Weight::Lasting);
        }
        Ok(found)
    }
}

/// Takes an image in, and looks for the system in it: a raw disk, and what it says of its packages where that can be read.
fn take_in(
    making: &Making<'_>,
    image: &Image,
    narrator: &mut Narrator<'_>,
) -> Result<(PathBuf, Option<Captured>), BuildError> {
    narrator.step(1, &format!("taking in {}", image.place));
    let mut say = |what: &str| narrator.say(what, Weight::Passing);
    let raw = intake::take_in(image, making.recipe.disk_bytes, making.work, &mut say)?;
    let system = offline::look_into(&raw, making.work)?;
    if let Some(system) = &system {
        agrees(system, making, image)?;
    }
    Ok((raw, system))
}

/// Whether a system is the one that its recipe says, as far as it says what it is.
fn agrees(system: &Captured, making: &Making<'_>, image: &Image) -> Result<(), BuildError> {
    let os = &making.recipe.os;
    system.is_another_than(os).map_or(Ok(()), |found| {
        let (place, said) = (image.place.clone(), format!("{} {}", os.family, os.release));
        Err(IntakeError::OtherSystem { place, found, said }.into())
    })
}

fn inputs(apt: &Path, arch: &str) -> AptInputs {
    AptInputs {
        status: apt.join("status"),
        sources: apt.join("sources.list"),
        keyrings: apt.join("keyrings"),
        arch: dpkg_arch(arch).to_owned(),
    }
}

fn guest_agent() -> Wanted {
    Wanted { name: GUEST_AGENT.into(), version: None }
}

/// The names in apt's complaint that it cannot locate them.
fn unknown(reason: &str) -> Vec<String> {
    reason.split("; ").filter_map(image::missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_names_what_it_cannot_locate() {
        assert_eq!(unknown("Unable to locate package a; Version '2' for 'b' was not found; x"), ["a", "b=2"]);
    }
}
