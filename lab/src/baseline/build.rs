//! From a recipe to a stored baseline: installation and disk here, as root; first boot and freeze in a worker.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Instant,
};

use patchlab_check::Digest;
use rustix::fs::{FlockOperation, flock};

use super::{
    Baseline, Baselines, BuildError, OrderName, Os, PackageVersion, PoolFile, Progress, Record, Represents, Secrets,
    StoredFile, Weight,
    captured::{self, Captured},
    domain, failed,
    freeze::{FreezeOrder, FreezeWord, Freezer, Origin},
    image,
    pool::{self, Found},
};
use crate::{
    accelerator::Accelerator,
    artifact::ArtifactStore,
    host::LabHost,
    places::Places,
    recipe::{Installation, Recipe, Source},
    relief,
    room::{self, Bytes},
    worker::{self, Launcher, Network, OPEN_TIMEOUT, Receiver, Worker},
};

/// What decides what is built, beside recipe and overlay: this builder. Raised when its images change.
const BUILDER: &str = "4";

/// Files that the worker leaves for the baseline.
const FROZEN_FILES: &[&str] = &["disk.qcow2", "ram", "state", "domain.xml", "manifest.json"];

/// A baseline, and whether it had to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Built {
    /// It was built now.
    New(Baseline),
    /// One from the same inputs was there.
    Stored(Baseline),
    /// One from the same inputs was there, of no use as a template on this host: it was frozen again.
    Refrozen(Baseline),
}

impl Built {
    /// The baseline.
    pub fn baseline(&self) -> &Baseline {
        match self {
            Self::New(baseline) | Self::Stored(baseline) | Self::Refrozen(baseline) => baseline,
        }
    }
}

/// What makes a baseline, for the ledger, the room on the disk and errors.
pub(super) struct Undertaking<'a> {
    /// The baseline's name.
    pub(super) name: &'a str,
    /// Unique on this host.
    pub(super) id: String,
    /// For people.
    pub(super) what: String,
    /// What it needs at its peak.
    pub(super) needed: Bytes,
}

/// What is known of a baseline beside what its freeze gives.
pub(super) struct Basis {
    pub(super) name: String,
    pub(super) parent: Option<Digest>,
    pub(super) order: Option<OrderName>,
    pub(super) recipe: String,
    pub(super) inputs: Digest,
    pub(super) os: Os,
    pub(super) ready_units: Vec<String>,
    pub(super) represents: Represents,
    pub(super) pool: Vec<PoolFile>,
    pub(super) unpooled: Vec<PackageVersion>,
    pub(super) secrets: Option<Secrets>,
}

/// A baseline that is being made from a recipe.
#[derive(Clone, Copy)]
pub(super) struct Making<'a> {
    pub(super) recipe: &'a Recipe,
    /// A folder of its own, which goes.
    pub(super) work: &'a Path,
    /// What becomes the baseline's folder.
    pub(super) staged: &'a Path,
    pub(super) launcher: &'a Launcher,
}

impl Making<'_> {
    /// What the worker is to freeze.
    pub(super) fn order(&self, origin: Origin) -> FreezeOrder {
        FreezeOrder {
            memory_mib: self.recipe.memory_mib,
            screen: self.recipe.screen,
            vcpus: self.recipe.vcpus,
            ready_units: self.recipe.ready_units.clone(),
            ready_timeout_s: self.recipe.ready_timeout.as_secs(),
            origin,
        }
    }
}

/// Passes on what the build is at, and remembers it for the error that may come.
pub(super) struct Narrator<'a> {
    begun: Instant,
    step: u32,
    what: String,
    tell: &'a mut dyn FnMut(Progress),
}

impl<'a> Narrator<'a> {
    pub(super) fn new(tell: &'a mut dyn FnMut(Progress)) -> Self {
        Self { begun: Instant::now(), step: 0, what: String::new(), tell }
    }

    pub(super) fn step(&mut self, step: u32, what: &str) {
        self.step = step;
        what.clone_into(&mut self.what);
        self.say(what, Weight::Passing);
    }

    pub(super) fn say(&mut self, what: &str, weight: Weight) {
        (self.tell)(Progress { step: self.step, what: what.to_owned(), weight, elapsed: self.begun.elapsed() });
    }
}

/// What a build needs beside the machine's memory: the installed root, its package files twice, and the disk made of it twice.
const SYSTEM_BYTES: u64 = 3 << 30;
/// Less than this left after a failure means that the disk is full, whatever the failure says: QEMU dies without a word.
const FULL_BYTES: Bytes = Bytes(4 << 20);
/// The log of the last build that failed, in the lab's folder.
const FAILED_LOG: &str = "last-failed-build.log";
/// Of each log that explains a failure, the last bytes are kept: 1 MiB.
const EVIDENCE_BYTES: usize = 1 << 20;

impl Baselines {
    /// Builds the recipe's baseline, or takes it from the store when recipe, overlay and builder are the same as then.
    /// `launcher` is a command line of this program that calls [`super::serve_freeze`]. One build at a time: a second waits.
    ///
    /// # Errors
    /// The recipe is wrong, there is no room, or a step failed; the store is then as it was, and the log's place is named.
    pub fn build(
        &self,
        recipe: &Path,
        launcher: &Launcher,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Built, BuildError> {
        let recipe = Recipe::read(recipe)?;
        let inputs = recipe.inputs(BUILDER)?;
        let inputs = match &recipe.source {
            Source::Domain(domain) => domain::inputs(domain, inputs)?,
            _ => inputs,
        };
        let folder = &self.places.baselines;
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        if let Some(baseline) = self.built_from(inputs)?.filter(|baseline| baseline.unfit_here().is_none()) {
            return Ok(Built::Stored(baseline));
        }
        let mut narrator = Narrator::new(progress);
        let _one_at_a_time = self.one_at_a_time(&mut narrator)?;
        // Another build may have ended meanwhile.
        if let Some(baseline) = self.built_from(inputs)? {
            return self.fitting(baseline, launcher, &mut narrator);
        }
        let undertaking = Undertaking {
            name: &recipe.name,
            id: format!("b-{}-{}", inputs.short(), std::process::id()),
            what: format!("building baseline {}", recipe.name),
            needed: Bytes(SYSTEM_BYTES + (recipe.memory_mib << 20)),
        };
        self.undertake(undertaking, &mut narrator, |work, narrator| {
            self.build_in(&recipe, work, launcher, narrator, inputs)
        })
        .map(Built::New)
    }

    /// Does something that makes a baseline in a work folder that goes afterwards, entered in the ledger. A failure names the step and
    /// where the log lies.
    pub(super) fn undertake(
        &self,
        undertaking: Undertaking<'_>,
        narrator: &mut Narrator<'_>,
        make: impl FnOnce(&Path, &mut Narrator<'_>) -> Result<Baseline, BuildError>,
    ) -> Result<Baseline, BuildError> {
        let Undertaking { name, id, what, needed } = undertaking;
        crate::gc::collect(&self.places, crate::gc::Mode::Collect)?;
        for gone in relief::require(&self.places, needed, &what)? {
            narrator.say(&format!("to make room, taken away: {gone}"), Weight::Lasting);
        }
        room::require(&self.places.baselines, needed, &what)?;
        let made = self.in_work_folder(&id, |work| {
            // Before the folder goes: it may be what fills the disk, and its log says why.
            let result = make(work, narrator).map_err(|error| self.name_full(error, needed));
            let evidence = result.is_err().then(|| tail(&work.join(image::LOG))).flatten();
            Ok::<_, BuildError>((result, evidence))
        });
        let (result, evidence) = made?;
        result.map_err(|source| BuildError::Step {
            name: name.to_owned(),
            step: narrator.step,
            what: narrator.what.clone(),
            log: evidence.and_then(|text| self.keep_log(&text)),
            source: Box::new(source),
        })
    }

    /// Held while a baseline is made: two at once would only wait for each other's processors.
    pub(super) fn one_at_a_time(&self, narrator: &mut Narrator<'_>) -> Result<fs::File, BuildError> {
        let lock = self.places.baselines.join(".building");
        let file = fs::File::create(&lock).map_err(failed("create", &lock))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            narrator.say("waiting for another build to end", Weight::Passing);
            flock(&file, FlockOperation::LockExclusive).map_err(|error| failed("lock", &lock)(error.into()))?;
        }
        Ok(file)
    }

    /// The log outlives the build that it explains. One that cannot be kept is no reason for another error.
    fn keep_log(&self, text: &[u8]) -> Option<PathBuf> {
        let kept = self.places.lab.join(FAILED_LOG);
        fs::write(&kept, text).ok().map(|()| kept)
    }

    /// Says that the disk is full where that is why the build failed.
    fn name_full(&self, error: BuildError, needed: Bytes) -> BuildError {
        let folder = self.places.work.clone();
        let free = room::free(&folder).unwrap_or(Bytes(0));
        if matches!(error, BuildError::NoRoom(_)) || !(room::ran_out(&error) || free < FULL_BYTES) {
            return error;
        }
        BuildError::Full { folder, free, needed, source: Box::new(error) }
    }

    fn build_in(
        &self,
        recipe: &Recipe,
        work: &Path,
        launcher: &Launcher,
        narrator: &mut Narrator<'_>,
        inputs: Digest,
    ) -> Result<Baseline, BuildError> {
        let staged = work.join("baseline");
        fs::create_dir_all(&staged).map_err(failed("create", &staged))?;
        let making = Making { recipe, work, staged: &staged, launcher };
        let (freezer, found) = match &recipe.source {
            Source::Mmdebstrap(installation) => self.install(&making, installation, narrator)?,
            Source::Disk(image) => self.capture(&making, image, narrator)?,
            Source::Domain(domain) => {
                narrator.step(1, &format!("copying the disk of domain {}", domain.name));
                let image = domain::take(domain, work)?;
                self.capture(&making, &image, narrator)?
            }
            Source::CloudImage(cloud) => self.capture_cloud(&making, cloud, narrator)?,
        };
        let basis = Basis {
            name: recipe.name.clone(),
            parent: None,
            order: None,
            recipe: recipe.text.clone(),
            inputs,
            os: recipe.os.clone(),
            ready_units: recipe.ready_units.clone(),
            represents: recipe.represents.clone(),
            pool: found.pool,
            unpooled: found.unpooled,
            secrets: None,
        };
        self.store(basis, freezer, &staged, narrator)
    }

    /// Installs a system from its suite and freezes it.
    fn install(
        &self,
        making: &Making<'_>,
        installation: &Installation,
        narrator: &mut Narrator<'_>,
    ) -> Result<(Freezer, Found), BuildError> {
        let Making { recipe, work, staged, .. } = *making;
        narrator.step(1, "opening libvirt");
        let worker = FreezeWorker::open(&self.places, making.launcher, narrator)?;
        narrator.step(1, &format!("installing packages from {}", installation.suite));
        let mut say = |what: &str| narrator.say(what, Weight::Passing);
        let installed = image::install(recipe, installation, work, &mut say)?;
        agrees(&installed.root, recipe, installation)?;
        narrator.step(2, "writing the disk");
        let pool = pool::keep(&installed.root, &installed.packages, &ArtifactStore::open(&self.places.artifacts)?)?;
        keep_apt_inputs(&installed, &staged.join("apt"))?;
        image::prepare(&recipe.name, installation.overlay.as_deref(), &installed.root)?;
        let disk = image::disk(recipe, &installed.root, work)?;
        // The root holds what the disk now holds; a full disk is nearer with both.
        fs::remove_dir_all(&installed.root).map_err(failed("remove", &installed.root))?;
        let freezer = worker.freeze(&making.order(Origin::Lab), &disk, staged, &work.join(image::LOG), narrator)?;
        Ok((freezer, Found { pool, unpooled: Vec::new() }))
    }

    /// Stores what a worker froze, with the other files of `staged`; if clones that ran from the frozen files left them as they were.
    pub(super) fn store(
        &self,
        basis: Basis,
        freezer: Freezer,
        staged: &Path,
        narrator: &mut Narrator<'_>,
    ) -> Result<Baseline, BuildError> {
        narrator.step(8, "storing, by digest");
        let mut files = BTreeMap::new();
        for path in files_below(staged)? {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed("open to readers", &path))?;
            let (sha256, size) = Digest::of_file(&path).map_err(failed("read", &path))?;
            let name = path.strip_prefix(staged).unwrap_or(&path).display().to_string();
            files.insert(name, StoredFile { sha256, size });
        }
        unchanged(&freezer.digests, &files)?;
        let record = Record {
            schema: Record::SCHEMA,
            number: self.next_number(&basis.name)?,
            name: basis.name,
            parent: basis.parent,
            order: basis.order,
            recipe: basis.recipe,
            inputs: basis.inputs,
            os: basis.os,
            hardware: freezer.hardware,
            frozen: freezer.frozen,
            ready_units: basis.ready_units,
            represents: basis.represents,
            files,
            pool: basis.pool,
            unpooled: basis.unpooled,
            coverage: Some(freezer.coverage),
            secrets: freezer.secrets.or(basis.secrets),
            verified: Some(freezer.verified),
            original: None,
        };
        Ok(self.adopt(staged, record)?)
    }
}

/// Whether what was installed is the system that its recipe says.
fn agrees(root: &Path, recipe: &Recipe, installation: &Installation) -> Result<(), BuildError> {
    let path = root.join(captured::OS_RELEASE);
    // A system of another kind may have none, and says nothing then.
    let text =
        fs::read(&path).map_or_else(|_| BTreeMap::new(), |text| [(captured::OS_RELEASE.to_owned(), text)].into());
    let os = &recipe.os;
    Captured::of(text).is_another_than(os).map_or(Ok(()), |found| {
        let (suite, said) = (installation.suite.clone(), format!("{} {}", os.family, os.release));
        Err(BuildError::OtherSystem { suite, found, said })
    })
}

/// The frozen files are what they were before clones were made of them.
fn unchanged(before: &BTreeMap<String, Digest>, after: &BTreeMap<String, StoredFile>) -> Result<(), BuildError> {
    let changed = before.iter().find(|(name, digest)| after.get(*name).is_none_or(|file| file.sha256 != **digest));
    changed.map_or(Ok(()), |(name, _)| {
        let reason = format!("the freeze does not hold: {name} was changed by the clones that were made of it");
        Err(BuildError::Freeze { reason })
    })
}

/// The end of a log; nothing when there is none.
fn tail(path: &Path) -> Option<Vec<u8>> {
    let text = fs::read(path).ok()?;
    Some(text[text.len().saturating_sub(EVIDENCE_BYTES)..].to_vec())
}

/// The worker that boots and freezes, with libvirt open.
pub(super) struct FreezeWorker {
    worker: Worker,
    receiver: Receiver,
}

impl FreezeWorker {
    fn gone() -> BuildError {
        BuildError::Freeze { reason: "its worker ended without a word".into() }
    }

    /// Starts it and waits until it has libvirt open; says what will run the machine, and how slow that is.
    pub(super) fn open(places: &Places, launcher: &Launcher, narrator: &mut Narrator<'_>) -> Result<Self, BuildError> {
        let mut worker = worker::spawn(&LabHost::here(), places, launcher, &Network::Isolated)?;
        let mut receiver = worker.take_receiver().ok_or_else(Self::gone)?;
        receiver.set_timeout(Some(OPEN_TIMEOUT))?;
        match receiver.receive()?.ok_or_else(Self::gone)? {
            FreezeWord::Open { accelerator: Accelerator::Kvm, probed } => narrator.say(&probed, Weight::Passing),
            FreezeWord::Open { accelerator: Accelerator::Tcg, probed } => narrator.say(&probed, Weight::Lasting),
            FreezeWord::Failed { reason } => return Err(BuildError::Freeze { reason }),
            word => return Err(BuildError::Freeze { reason: format!("its worker spoke out of turn: {word:?}") }),
        }
        receiver.set_timeout(None)?;
        Ok(Self { worker, receiver })
    }

    /// Gives it a file of ours, which becomes its own.
    pub(super) fn hand_over(&self, file: &Path, name: &str) -> Result<(), BuildError> {
        let folder = self.worker.folder();
        let home = fs::metadata(folder).map_err(failed("read", folder))?;
        let given = folder.join(name);
        fs::rename(file, &given).map_err(failed("hand over", file))?;
        chown(&given, Some(home.uid()), Some(home.gid())).map_err(failed("hand over", &given))
    }

    /// Lets it boot the disk and freeze it, and takes over what it made. Its logs are added to `log` when it fails.
    pub(super) fn freeze(
        mut self,
        order: &FreezeOrder,
        disk: &Path,
        staged: &Path,
        log: &Path,
        narrator: &mut Narrator<'_>,
    ) -> Result<Freezer, BuildError> {
        let folder = self.worker.folder().to_owned();
        self.hand_over(disk, "disk.qcow2")?;
        let freezer = self.converse(order, narrator).inspect_err(|_| add_logs(&folder, log))?;
        let archive = (order.origin != Origin::Lab).then_some(captured::ARCHIVE);
        for name in FROZEN_FILES.iter().copied().chain(archive) {
            let (from, to) = (folder.join(name), staged.join(name));
            fs::rename(&from, &to).map_err(failed("take over", &from))?;
            // Whoever broke out of a machine may have left a link to a file of ours there.
            if !fs::symlink_metadata(&to).map_err(failed("look at", &to))?.is_file() {
                let source = io::Error::other("its worker left something else than a regular file");
                return Err(failed("take over", &from)(source));
            }
            chown(&to, Some(0), Some(0)).map_err(failed("take over", &to))?;
        }
        self.worker.end()?;
        Ok(freezer)
    }

    fn converse(&mut self, order: &FreezeOrder, narrator: &mut Narrator<'_>) -> Result<Freezer, BuildError> {
        self.worker.sender().send(order)?;
        loop {
            match self.receiver.receive()?.ok_or_else(Self::gone)? {
                FreezeWord::Step { step, what, weight: Weight::Passing } => narrator.step(step, &what),
                FreezeWord::Step { what, weight, .. } => narrator.say(&what, weight),
                FreezeWord::Open { probed, .. } => narrator.say(&probed, Weight::Passing),
                FreezeWord::Frozen(freezer) => return Ok(*freezer),
                FreezeWord::Secrets { found, extent } => return Err(BuildError::Secrets { found, extent }),
                FreezeWord::Failed { reason } => return Err(BuildError::Freeze { reason }),
            }
        }
    }
}

/// Adds the ends of the worker's log and of its machines' consoles to the build's log: the worker's folder is about to go.
fn add_logs(folder: &Path, log: &Path) {
    let Ok(mut kept) = fs::OpenOptions::new().create(true).append(true).open(log) else { return };
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|kind| kind == "log" || kind == "console")
            && let Some(text) = tail(&path)
        {
            // What does not fit on a full disk is lost.
            let _ = writeln!(kept, "=== {}", path.display()).and_then(|()| kept.write_all(&text));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_file_that_its_clones_changed_is_refused_by_name() {
        let stored = |text: &str| StoredFile { sha256: Digest::of(text), size: 1 };
        let before = BTreeMap::from([("ram".to_owned(), Digest::of("a")), ("state".to_owned(), Digest::of("b"))]);
        let after = BTreeMap::from([("ram".to_owned(), stored("a")), ("state".to_owned(), stored("b"))]);
        assert!(unchanged(&before, &after).is_ok());
        for wrong in [Some(stored("c")), None] {
            let mut after = after.clone();
            after.remove("state");
            after.extend(wrong.map(|file| ("state".to_owned(), file)));
            let error = unchanged(&before, &after).unwrap_err().to_string();
            assert!(error.contains("state was changed"), "{error}");
        }
    }
}
