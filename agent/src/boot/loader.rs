//! The boot loader of this host: found, asked and told.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{
    BootError, Menu, Unable,
    environment::{Environment, NEXT, PREVIOUS, SAVED},
    grub::{self, NextEntry, Otherwise},
    place, systemd,
};
use crate::process;

/// Largest menu or entry file that is read, bytes.
const MENU_BYTES: u64 = 4 * 1024 * 1024;
/// How long bootctl may take.
const BOOTCTL: Duration = Duration::from_secs(30);

/// A boot loader that can boot an entry once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loader {
    /// GRUB 2, whichever firmware started it.
    Grub(Grub),
    /// systemd-boot.
    SystemdBoot,
}

/// Where a GRUB has its things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grub {
    menu: PathBuf,
    environment: PathBuf,
    entries: PathBuf,
}

/// Finds the boot loader of the system below `root`, and whether it can boot an entry once and come back.
///
/// # Errors
/// It cannot be looked at; the inner error is why it cannot boot once.
pub fn open(root: &Path) -> Result<Result<Loader, Unable>, BootError> {
    // The firmware's variables are this machine's, whatever tree is looked at.
    if root == Path::new("/") && started_by(root).is_some_and(|info| info.starts_with("systemd-boot")) {
        return Ok(Ok(Loader::SystemdBoot));
    }
    let places = ["boot/grub", "boot/grub2"].map(|place| root.join(place));
    let Some(folder) = places.into_iter().find(|folder| folder.join("grub.cfg").is_file()) else {
        return Ok(Err(Unable::NoLoader));
    };
    let (menu, environment) = (folder.join("grub.cfg"), folder.join("grubenv"));
    let habits = grub::habits(&read(&menu)?);
    if habits.next == NextEntry::Ignored {
        return Ok(Err(Unable::NoNextEntry { menu }));
    }
    if habits.otherwise == Otherwise::Fixed {
        return Ok(Err(Unable::FixedDefault { menu }));
    }
    // Fedora's is a link to the EFI partition.
    let environment = match environment.canonicalize() {
        Ok(path) => path,
        Err(_) => return Ok(Err(Unable::NoEnvironment { path: environment })),
    };
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    if let Some(on) = place::obstacle(&mounts, &environment) {
        return Ok(Err(Unable::NotWritable { path: environment, on }));
    }
    Environment::read(&environment)?;
    Ok(Ok(Loader::Grub(Grub { menu, environment, entries: root.join("boot/loader/entries") })))
}

/// What started this machine, by the Boot Loader Interface.
fn started_by(root: &Path) -> Option<String> {
    systemd::text(&fs::read(root.join(systemd::VARIABLES).join(systemd::variable("LoaderInfo"))).ok()?)
}

impl Loader {
    /// What it can boot now.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn menu(&self) -> Result<Menu, BootError> {
        match self {
            Self::Grub(grub) => grub.menu(),
            Self::SystemdBoot => {
                let said = bootctl(&["list", "--json=short", "--no-pager"])?;
                let wrong = |error: serde_json::Error| BootError::Program {
                    program: "bootctl list".into(),
                    reason: error.to_string(),
                };
                systemd::menu(&said).map_err(wrong)
            }
        }
    }

    /// The default entry, where one was chosen.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn default_entry(&self) -> Result<Option<String>, BootError> {
        match self {
            Self::Grub(grub) => Ok(Environment::read(&grub.environment)?.get(SAVED).map(str::to_owned)),
            Self::SystemdBoot => {
                let path = Path::new("/").join(systemd::VARIABLES).join(systemd::variable("LoaderEntryDefault"));
                match fs::read(&path) {
                    Ok(bytes) => Ok(systemd::text(&bytes).filter(|entry| !entry.is_empty())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(BootError::File { action: "read", path, source }),
                }
            }
        }
    }

    /// Makes an entry the default, or none; nothing is booted once any more.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn set_default(&self, entry: Option<&str>) -> Result<(), BootError> {
        match self {
            Self::Grub(grub) => grub.tell(&[(SAVED, entry), (NEXT, None), (PREVIOUS, None)]),
            Self::SystemdBoot => {
                bootctl(&["set-oneshot", ""])?;
                bootctl(&["set-default", entry.unwrap_or_default()]).map(drop)
            }
        }
    }

    /// Has the next boot, and only that, take an entry.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn set_once(&self, entry: &str) -> Result<(), BootError> {
        match self {
            Self::Grub(grub) => grub.tell(&[(NEXT, Some(entry))]),
            Self::SystemdBoot => bootctl(&["set-oneshot", entry]).map(drop),
        }
    }
}

impl Grub {
    fn menu(&self) -> Result<Menu, BootError> {
        let text = read(&self.menu)?;
        if !grub::has_entry_files(&text) {
            return Ok(grub::menu(&text));
        }
        let failed = |source| BootError::File { action: "read", path: self.entries.clone(), source };
        let environment = Environment::read(&self.environment)?;
        let mut entries = Vec::new();
        for file in fs::read_dir(&self.entries).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".conf")) else { continue };
            entries.extend(grub::entry_of_file(id, &read(&path)?, &environment));
        }
        // GRUB shows them newest first; it compares as rpm does, which is close enough for whoever is first.
        entries.sort_by(|one, other| super::kernels::in_order(&other.id).cmp(&super::kernels::in_order(&one.id)));
        Ok(Menu { entries })
    }

    /// All in one write.
    fn tell(&self, changes: &[(&str, Option<&str>)]) -> Result<(), BootError> {
        let before = Environment::read(&self.environment)?;
        let mut now = before.clone();
        for (name, value) in changes {
            now.set(name, *value);
        }
        if now == before { Ok(()) } else { now.write(&self.environment) }
    }
}

fn read(path: &Path) -> Result<String, BootError> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MENU_BYTES).read_to_string(&mut text))
        .map_err(|source| BootError::File { action: "read", path: path.to_owned(), source })?;
    Ok(text)
}

fn bootctl(arguments: &[&str]) -> Result<String, BootError> {
    let failed = |reason: String| BootError::Program { program: format!("bootctl {}", arguments.join(" ")), reason };
    let mut command = Command::new("bootctl");
    command.args(arguments).env("LC_ALL", "C").current_dir("/");
    let finished = process::run(&mut command, Instant::now() + BOOTCTL, MENU_BYTES, |_| {});
    let finished = finished.map_err(|error| failed(error.to_string()))?;
    if finished.succeeded() { Ok(finished.stdout) } else { Err(failed(finished.last_words())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_that_cannot_come_back_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let unable = || open(&root).unwrap().unwrap_err();
        assert_eq!(unable(), Unable::NoLoader);
        let grub = root.join("boot/grub");
        fs::create_dir_all(&grub).unwrap();
        fs::write(grub.join("grub.cfg"), "linux /vmlinuz\nboot\n").unwrap();
        assert!(matches!(unable(), Unable::NoNextEntry { .. }));
        let once = "set default=\"${next_entry}\"\nset next_entry=\nsave_env next_entry\n";
        fs::write(grub.join("grub.cfg"), format!("{once}set default=\"0\"\n")).unwrap();
        assert!(matches!(unable(), Unable::FixedDefault { .. }));
        fs::write(grub.join("grub.cfg"), format!("{once}set default=\"${{saved_entry}}\"\n")).unwrap();
        assert!(matches!(unable(), Unable::NoEnvironment { .. }));
        fs::write(grub.join("grubenv"), "").unwrap();
        assert!(matches!(open(&root), Err(BootError::Environment { .. })), "an empty block is none");
    }
}
