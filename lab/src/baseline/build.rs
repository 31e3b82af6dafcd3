//! From a recipe to a stored baseline: installation and disk here, as root; first boot and freeze in a worker.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::{FlockOperation, flock};

use super::{
    Baseline, Baselines, BuildError, PoolFile, Progress, Record, StoredFile, failed,
    freeze::{FreezeOrder, FreezeWord, Freezer},
    image, pool,
};
use crate::{
    artifact::ArtifactStore,
    ledger::{Ledger, Thing},
    recipe::{Recipe, Source},
    worker::{self, Launcher, Network},
};

/// What decides what is built, beside recipe and overlay: this builder. Raised when its images change.
const BUILDER: &str = "3";

/// Files that the worker leaves for the baseline.
const FROZEN_FILES: &[&str] = &["disk.qcow2", "ram", "state", "domain.xml", "manifest.json"];

/// A baseline, and whether it had to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Built {
    /// It was built now.
    New(Baseline),
    /// One from the same inputs was there.
    Stored(Baseline),
}

impl Built {
    /// The baseline.
    pub fn baseline(&self) -> &Baseline {
        match self {
            Self::New(baseline) | Self::Stored(baseline) => baseline,
        }
    }
}

/// Passes on what the build is at.
struct Narrator<'a> {
    begun: Instant,
    step: u32,
    tell: &'a mut dyn FnMut(Progress),
}

impl Narrator<'_> {
    fn step(&mut self, step: u32, what: &str) {
        self.step = step;
        self.say(what);
    }

    fn say(&mut self, what: &str) {
        (self.tell)(Progress { step: self.step, what: what.to_owned(), elapsed: self.begun.elapsed() });
    }
}

impl Baselines {
    /// Builds the recipe's baseline, or takes it from the store when recipe, overlay and builder are the same as then.
    /// `launcher` is a command line of this program that calls [`super::serve_freeze`]. One build at a time: a second waits.
    pub fn build(
        &self,
        recipe: &Path,
        launcher: &Launcher,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Built, BuildError> {
        let recipe = Recipe::read(recipe)?;
        let inputs = recipe.inputs(BUILDER)?;
        let folder = &self.places.baselines;
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        if let Some(baseline) = self.built_from(inputs)? {
            return Ok(Built::Stored(baseline));
        }
        let mut narrator = Narrator { begun: Instant::now(), step: 0, tell: progress };
        let lock = folder.join(".building");
        let file = fs::File::create(&lock).map_err(failed("create", &lock))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            narrator.say("waiting for another build to end");
            flock(&file, FlockOperation::LockExclusive).map_err(|error| failed("lock", &lock)(error.into()))?;
            if let Some(baseline) = self.built_from(inputs)? {
                return Ok(Built::Stored(baseline));
            }
        }
        crate::gc::collect(&self.places, crate::gc::Mode::Collect)?;
        let ledger = Ledger::open(&self.places)?;
        let id = format!("b-{}-{}", inputs.short(), std::process::id());
        let work = self.places.work.join(&id);
        ledger.begin(&id)?;
        ledger.creating(&id, Thing::Folder { path: work.clone() })?;
        let result = self.build_in(&recipe, &work, launcher, &mut narrator, inputs);
        let keeps_evidence = matches!(&result, Err(BuildError::Tool { .. }));
        let log = work.join("install.log");
        if keeps_evidence && log.exists() {
            // The log outlives the build that it explains.
            let kept = self.places.lab.join("last-failed-build.log");
            fs::copy(&log, &kept).map_err(failed("keep", &log))?;
        }
        fs::remove_dir_all(&work).map_err(failed("remove", &work))?;
        ledger.end(&id)?;
        result.map(Built::New).map_err(|error| match error {
            BuildError::Tool { tool, reason, log: named } if named == log => {
                BuildError::Tool { tool, reason, log: self.places.lab.join("last-failed-build.log") }
            }
            other => other,
        })
    }

    fn build_in(
        &self,
        recipe: &Recipe,
        work: &Path,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
        inputs: patchlab_check::Digest,
    ) -> Result<Baseline, BuildError> {
        let staged = work.join("baseline");
        fs::create_dir_all(&staged).map_err(failed("create", &staged))?;
        let Source::Mmdebstrap { suite, .. } = &recipe.source;
        narrator.step(1, &format!("installing packages from {suite}"));
        let installed = image::install(recipe, work, &mut |what| narrator.say(what))?;
        narrator.step(2, "writing the disk");
        let pool = pool::keep(&installed.root, &installed.packages, &ArtifactStore::open(&self.places.artifacts)?)?;
        keep_apt_inputs(&installed, &staged.join("apt"))?;
        image::prepare(recipe, &installed.root)?;
        let disk = image::disk(recipe, &installed.root, work)?;
        // The root holds what the disk now holds; a full disk is nearer with both.
        fs::remove_dir_all(&installed.root).map_err(failed("remove", &installed.root))?;
        let freezer = self.freeze(recipe, &disk, &staged, launcher, narrator)?;
        narrator.step(7, "storing, by digest");
        let record = self.record(recipe, inputs, pool, freezer, &staged)?;
        Ok(self.adopt(&staged, &record)?)
    }

    /// Lets a worker boot the disk and freeze it, and takes over what it made.
    fn freeze(
        &self,
        recipe: &Recipe,
        disk: &Path,
        staged: &Path,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
    ) -> Result<Freezer, BuildError> {
        let mut worker = worker::spawn(&self.places, launcher, &Network::Isolated)?;
        let home = fs::metadata(worker.folder()).map_err(failed("read", worker.folder()))?;
        let given = worker.folder().join("disk.qcow2");
        fs::rename(disk, &given).map_err(failed("hand over", disk))?;
        let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&home), std::os::unix::fs::MetadataExt::gid(&home));
        std::os::unix::fs::chown(&given, Some(uid), Some(gid)).map_err(failed("hand over", &given))?;
        worker.sender().send(&FreezeOrder {
            memory_mib: recipe.memory_mib,
            vcpus: recipe.vcpus,
            ready_units: recipe.ready_units.clone(),
            ready_timeout_s: recipe.ready_timeout.as_secs(),
        })?;
        let gone = || BuildError::Freeze { reason: "its worker ended without a word".into() };
        let mut receiver = worker.take_receiver().ok_or_else(gone)?;
        let freezer = loop {
            match receiver.receive()?.ok_or_else(gone)? {
                FreezeWord::Step { step, what } => narrator.step(step, &what),
                FreezeWord::Frozen(freezer) => break freezer,
                FreezeWord::Failed { reason } => return Err(BuildError::Freeze { reason }),
            }
        };
        for name in FROZEN_FILES {
            let (from, to) = (worker.folder().join(name), staged.join(name));
            fs::rename(&from, &to).map_err(failed("take over", &from))?;
            std::os::unix::fs::chown(&to, Some(0), Some(0)).map_err(failed("take over", &to))?;
        }
        worker.end()?;
        Ok(freezer)
    }

    fn record(
        &self,
        recipe: &Recipe,
        inputs: patchlab_check::Digest,
        pool: Vec<PoolFile>,
        freezer: Freezer,
        staged: &Path,
    ) -> Result<Record, BuildError> {
        let mut files = std::collections::BTreeMap::new();
        for path in files_below(staged)? {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed("open to readers", &path))?;
            let (sha256, size) = patchlab_check::Digest::of_file(&path).map_err(failed("read", &path))?;
            let name = path.strip_prefix(staged).unwrap_or(&path).display().to_string();
            files.insert(name, StoredFile { sha256, size });
        }
        Ok(Record {
            schema: 1,
            name: recipe.name.clone(),
            number: self.next_number(&recipe.name)?,
            parent: None,
            recipe: recipe.text.clone(),
            inputs,
            os: recipe.os.clone(),
            hardware: freezer.hardware,
            frozen: freezer.frozen,
            ready_units: recipe.ready_units.clone(),
            represents: recipe.represents.clone(),
            files,
            pool,
        })
    }
}

/// What drafting an order needs to ask the suite what it would install on this very system.
fn keep_apt_inputs(installed: &image::Root, apt: &Path) -> Result<(), BuildError> {
    let keyrings = apt.join("keyrings");
    fs::create_dir_all(&keyrings).map_err(failed("create", &keyrings))?;
    let copy = |from: PathBuf, to: PathBuf| fs::copy(&from, to).map(drop).map_err(failed("keep", &from));
    copy(installed.root.join("var/lib/dpkg/status"), apt.join("status"))?;
    copy(installed.sources.clone(), apt.join("sources.list"))?;
    for folder in ["usr/share/keyrings", "etc/apt/trusted.gpg.d"] {
        let folder = installed.root.join(folder);
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                copy(path.clone(), keyrings.join(name))?;
            }
        }
    }
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let path = entry.map_err(failed("read", folder))?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}
