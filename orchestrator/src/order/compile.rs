//! From an order as written to the order that is signed.

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use patchlab_check::{
    Digest,
    written::{self, WrittenError},
};
use patchlab_lab::{ArtifactError, ArtifactStore};
use patchlab_protocol::{
    document::{Class, OnFailure, Order, PackageFile, Replaced, RollbackClass},
    limits,
};

use super::{Change, File, Replaces, Script, Shipped, ShippedFile, Written, script};

/// An order cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The file is not an order.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// The form is right, the meaning is not.
    #[error("{key}: {problem}")]
    Meaning {
        /// The key it is about, dotted, with numbers for elements of arrays.
        key: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file that the order names is missing or altered.
    #[error("{place}, {what}: {source}")]
    Artifact {
        /// Where the order names it.
        place: Box<Place>,
        /// What it is there for, with name, version and architecture.
        what: String,
        /// Why it cannot be used.
        source: Box<ArtifactError>,
    },
    /// The file lying at the order's `path` is not the one the order names.
    #[error(
        "{place}: artifact {digest} was altered: {path} has digest {found}: put the file back that the order was drafted \
         with, or draft the order again", path = path.display()
    )]
    AlteredFile {
        /// Where the order names it.
        place: Box<Place>,
        /// The digest the order names.
        digest: Digest,
        /// The digest found.
        found: Digest,
        /// Where.
        path: PathBuf,
    },
}

impl OrderError {
    /// Whether the order is blameless: this machine could not read or keep its files.
    pub fn is_machines(&self) -> bool {
        let Self::Artifact { source, .. } = self else { return false };
        matches!(**source, ArtifactError::Full { .. } | ArtifactError::Io { .. })
    }
}

/// A line of an order's file.
#[derive(Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The order's id.
    pub id: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: order {}", self.path.display(), self.line, self.id)
    }
}

pub(super) fn wrong<T>(key: impl Into<String>, problem: impl Into<String>) -> Result<T, OrderError> {
    Err(OrderError::Meaning { key: key.into(), problem: problem.into() })
}

/// Reads, compiles and verifies: every file that the order names must be in `artifacts` with its digest. One that is not there
/// yet but lies where its `path` says is taken in.
///
/// # Errors
/// The file is no order, the order means nothing, or a file is missing or altered (its digest is named).
pub fn compile_file(path: &Path, artifacts: &ArtifactStore) -> Result<Order, OrderError> {
    let text = written::read_text(path)?;
    let written: Written = written::parse(&text, path)?;
    let order = compile(&written).map_err(|error| match error {
        OrderError::Meaning { key, problem } => {
            WrittenError::at_key(path, &text, &key, format!("key {:?}: {problem}", without_numbers(&key))).into()
        }
        other => other,
    })?;
    Files { path, text: &text, id: &order.id, artifacts }.check(&written)?;
    Ok(order)
}

/// The files that an order names, against the artifact store.
struct Files<'a> {
    path: &'a Path,
    text: &'a str,
    id: &'a str,
    artifacts: &'a ArtifactStore,
}

impl Files<'_> {
    fn check(&self, written: &Written) -> Result<(), OrderError> {
        for (c, change) in written.change.iter().enumerate() {
            for (f, file) in change.file.iter().enumerate() {
                let key = format!("change.{c}.file.{f}.sha256");
                let what = format!("which installs {} {} ({})", file.name, file.version, file.arch);
                self.take_in(file.path.as_deref(), file.sha256, &key, &what)?;
                self.verify(&file.sha256, &key, &what)?;
            }
            for (r, replaces) in change.replaces.iter().enumerate() {
                let Some(back) = &replaces.file else { continue };
                let key = format!("change.{c}.replaces.{r}.file.sha256");
                let what = format!("whose way back is {} {} ({})", replaces.name, replaces.version, replaces.arch);
                self.verify(&back.sha256, &key, &what)?;
            }
            for (key, shipped) in change.script.iter().flat_map(Script::shipped) {
                // Compiled, so drafted.
                let Shipped::Drafted(file) = shipped else { continue };
                let role = if key.starts_with("files.") { Role::Beside } else { Role::Program };
                let key = format!("change.{c}.script.{key}");
                let what = format!("which is {} of its script", file.path);
                self.take_in(Some(&file.path), file.sha256, &key, &what)?;
                let artifact = self.verify(&file.sha256, &key, &what)?;
                self.is_as_it_says(file, &artifact, role, &key)?;
            }
        }
        Ok(())
    }

    /// Whether a file of a script has the size that the order names, and a script an interpreter.
    fn is_as_it_says(&self, file: &ShippedFile, artifact: &Path, role: Role, key: &str) -> Result<(), OrderError> {
        let wrong = |problem: String| Err(WrittenError::at_key(self.path, self.text, key, problem).into());
        let unreadable = |source| {
            let source = ArtifactError::Io { action: "read", path: artifact.to_owned(), source };
            self.failed(source, key, &format!("which is {} of its script", file.path))
        };
        let found = fs::metadata(artifact).map_err(unreadable)?.len();
        if found != file.size {
            return wrong(format!("{} has {found} bytes, not {}: draft the order again", file.path, file.size));
        }
        if role == Role::Program && !script::begins_with_interpreter(artifact).map_err(unreadable)? {
            return wrong(format!("{} does not begin with #! and an interpreter: no host could run it", file.path));
        }
        Ok(())
    }

    fn place(&self, key: &str) -> Box<Place> {
        let line = WrittenError::at_key(self.path, self.text, key, "").line().unwrap_or(1);
        Box::new(Place { path: self.path.to_owned(), line, id: self.id.to_owned() })
    }

    fn verify(&self, digest: &Digest, key: &str, what: &str) -> Result<PathBuf, OrderError> {
        self.artifacts.verify(digest).map_err(|source| self.failed(source, key, what))
    }

    fn failed(&self, source: ArtifactError, key: &str, what: &str) -> OrderError {
        OrderError::Artifact { place: self.place(key), what: what.to_owned(), source: Box::new(source) }
    }

    /// Takes a file that is not in the store from where its `path` says it is.
    fn take_in(&self, path: Option<&str>, digest: Digest, key: &str, what: &str) -> Result<(), OrderError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let Some(path) = path.map(|path| dir.join(path)) else { return Ok(()) };
        if self.artifacts.has(&digest) || !path.is_file() {
            return Ok(());
        }
        let unreadable = |source| ArtifactError::Io { action: "read", path: path.clone(), source };
        let (found, _) = Digest::of_file(&path).map_err(|error| self.failed(unreadable(error), key, what))?;
        if found != digest {
            return Err(OrderError::AlteredFile { place: self.place(key), digest, found, path });
        }
        self.artifacts.put(&path).map(drop).map_err(|error| self.failed(error, key, what))
    }
}

/// What a file is in a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// One of the three that are run.
    Program,
    /// It lies beside them.
    Beside,
}

fn without_numbers(key: &str) -> String {
    key.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

/// Most characters of an order's id.
const ID_LENGTH: usize = 64;

/// The id of an order that is made of the one with `id`: with a suffix, and short enough for an id.
pub fn named_after(id: &str, suffix: &str) -> String {
    let room = ID_LENGTH.saturating_sub(suffix.len());
    format!("{}{suffix}", id.get(..room).unwrap_or(id))
}

/// The order that `written` means. Pure; equal input gives equal bytes, whatever the order of its lists of files.
///
/// # Errors
/// The key and what is wrong with it.
pub fn compile(written: &Written) -> Result<Order, OrderError> {
    let id = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if written.id.is_empty() || written.id.len() > ID_LENGTH || !written.id.chars().all(id) {
        return wrong("id", format!("{:?} is not 1 to 64 letters, digits, - _ and .", written.id));
    }
    if written.title.trim().is_empty() || written.title.len() > 200 || written.title.chars().any(char::is_control) {
        return wrong("title", "a title has 1 to 200 characters on one line");
    }
    let change = match written.change.as_slice() {
        [change] => change,
        [] => return wrong("change", "no [[change]]: the order would change nothing"),
        _ => return wrong("change.1", "more than one [[change]]: make an order for each class of hosts"),
    };
    let script = match &change.script {
        None => check_change(change).map(|()| None)?,
        Some(script) => Some(script::compile(change, script)?),
    };
    let class =
        Class { family: change.on.family.clone(), release: change.on.release.clone(), arch: change.on.arch.clone() };
    let mut install: Vec<PackageFile> = change.file.iter().map(package_file).collect();
    install.sort_by(|a, b| (&a.name, &a.arch, &a.version).cmp(&(&b.name, &b.arch, &b.version)));
    let mut replaces: Vec<Replaced> = change.replaces.iter().map(replaced).collect();
    replaces.sort_by(|a, b| (&a.name, &a.arch).cmp(&(&b.name, &b.arch)));
    let found = match replaces.iter().all(|replaced| replaced.file.is_some()) {
        true => RollbackClass::Proven,
        false => RollbackClass::Impossible,
    };
    if found == RollbackClass::Impossible
        && matches!(written.rollback, Some(RollbackClass::Proven | RollbackClass::ProvenAfterWrites))
    {
        return wrong("rollback", "a replaced package has no file that brings it back: the way back cannot be proven");
    }
    if let Some(rule) = written.reboot.filter(|rule| rule.grace_minutes > limits::REBOOT_GRACE_MINUTES) {
        let problem = format!("{} minutes: expected at most {}", rule.grace_minutes, limits::REBOOT_GRACE_MINUTES);
        return wrong("reboot.grace_minutes", problem);
    }
    let class_of_way_back = written.rollback.unwrap_or(found);
    let by_files = matches!(class_of_way_back, RollbackClass::Proven | RollbackClass::ProvenAfterWrites);
    if written.on_failure == OnFailure::RollBack && !by_files {
        return wrong(
            "on_failure",
            "a host can only roll back by itself where the files that bring everything back are named",
        );
    }
    Ok(Order {
        id: written.id.clone(),
        title: written.title.clone(),
        severity: written.severity,
        kind: written.kind,
        advisories: written.advisories.clone(),
        class,
        install,
        replaces,
        production: written.production.clone(),
        after: written.after.clone(),
        supersedes: written.supersedes.clone(),
        rollback: class_of_way_back,
        not_after: written.not_after,
        on_failure: written.on_failure,
        rollback_files: written.rollback_files,
        reboot: written.reboot,
        script,
    })
}

fn check_change(change: &Change) -> Result<(), OrderError> {
    if change.upgrade.is_empty() && change.packages.is_empty() && change.file.is_empty() {
        return wrong(
            "change.0",
            "nothing to do: give upgrade, packages or a script, or let `patchlab order draft` write files",
        );
    }
    if change.file.is_empty() {
        return wrong("change.0", "no [[change.file]] yet: let `patchlab order draft` resolve and fetch the packages");
    }
    if change.file.len() > limits::FILES_PER_ORDER {
        return wrong("change.0.file", format!("more than {} files", limits::FILES_PER_ORDER));
    }
    let mut seen = BTreeSet::new();
    for (index, file) in change.file.iter().enumerate() {
        if !seen.insert((&file.name, &file.arch)) {
            return wrong(format!("change.0.file.{index}"), format!("a second file for {} ({})", file.name, file.arch));
        }
        if file.size == 0 || file.size > limits::PAYLOAD_BYTES {
            let problem = format!("{} bytes: expected 1 to {}", file.size, limits::PAYLOAD_BYTES);
            return wrong(format!("change.0.file.{index}.size"), problem);
        }
    }
    for (index, upgrade) in change.upgrade.iter().enumerate() {
        let key = format!("change.0.upgrade.{index}");
        match (change.file.iter().find(|file| file.name == upgrade.name), &upgrade.to) {
            (None, _) => {
                return wrong(key, format!("no [[change.file]] brings {}: draft the order again", upgrade.name));
            }
            (Some(file), Some(to)) if file.version != *to => {
                let problem =
                    format!("{} {to} is wanted, the file brings {}: draft the order again", upgrade.name, file.version);
                return wrong(key, problem);
            }
            (Some(_), _) => {}
        }
    }
    let mut seen = BTreeSet::new();
    for (index, replaces) in change.replaces.iter().enumerate() {
        let key = format!("change.0.replaces.{index}");
        if !seen.insert((&replaces.name, &replaces.arch)) {
            return wrong(key, format!("{} ({}) is replaced twice", replaces.name, replaces.arch));
        }
        match change.file.iter().find(|file| file.name == replaces.name) {
            None => return wrong(key, format!("{} is replaced, but no [[change.file]] brings it", replaces.name)),
            Some(file) if file.version == replaces.version && file.arch == replaces.arch => {
                return wrong(key, format!("{} {} would replace itself", replaces.name, replaces.version));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn package_file(file: &File) -> PackageFile {
    PackageFile {
        name: file.name.to_string(),
        version: file.version.clone(),
        arch: file.arch.clone(),
        size: file.size,
        sha256: file.sha256,
        origin: file.origin,
    }
}

fn replaced(replaces: &Replaces) -> Replaced {
    Replaced {
        name: replaces.name.to_string(),
        arch: replaces.arch.clone(),
        version: replaces.version.clone(),
        file: replaces.file.as_ref().map(|file| PackageFile {
            name: replaces.name.to_string(),
            version: replaces.version.clone(),
            arch: file.arch.clone().unwrap_or_else(|| replaces.arch.clone()),
            size: file.size,
            sha256: file.sha256,
            origin: file.origin,
        }),
    }
}
