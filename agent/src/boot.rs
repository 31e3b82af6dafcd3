//! The boot loader: a kernel that comes by an order is booted once, and stays only when the run confirms it.
//!
//! ```text
//! before the change   pin      the kernel that runs is the default, whatever the package's scripts put into the menu
//! after it            arm      the next boot, and only that, takes the new kernel
//! after the boot      confirm  the new kernel runs and the checks passed: it is the default
//!                     or rest  it does not, or they failed: the old one stays the default, or everything is as before
//! ```
//!
//! A kernel that panics brings the old one back without anybody's hand, when its command line has `panic=`: only the kernel itself can
//! reboot then. What is found ([`Found`], [`Menu`]) and what is decided from it are apart, and the decisions are pure.

mod coverage;
mod environment;
mod grub;
mod kernels;
mod loader;
mod menu;
mod place;
mod systemd;

use std::{io, path::PathBuf};

use patchlab_protocol::document::RunState;
use serde::{Deserialize, Serialize};

pub use coverage::{here, uncovered};
pub use kernels::{Brought, Kernels, awaited, installed, places, running};
pub use loader::{Loader, open};
pub use menu::{Entry, Menu};

/// A kernel's release, as uname(2) says it and as it stands after `vmlinuz-`, e.g. `6.1.0-50-cloud-amd64`.
pub type Release = String;

/// What a run remembers of a kernel that it brings; journaled before the boot loader is told anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootOnce {
    /// The kernel that ran before the change.
    pub old: Release,
    /// Its entry, the default from before the change until the new one is confirmed.
    pub entry: String,
    /// The default entry of before; absent where none was chosen, and the loader took its first.
    pub before: Option<String>,
    /// The kernels that were there before the change.
    pub kernels: Kernels,
    /// What the boot loader was told, or is about to be.
    pub told: Told,
    /// What the next boot is to take; absent before the change was made.
    #[serde(default)]
    pub new: Option<Expected>,
}

/// What the boot loader was told for a run, or is about to be: it is journaled first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// Nothing: no kernel was foreseen.
    Nothing,
    /// That the old kernel is the default, and perhaps what to boot once.
    OldKernel,
    /// That the new kernel is the default.
    NewKernel,
}

/// The kernel that is to run after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Its release.
    pub release: Release,
    /// Its entry in the boot loader's menu.
    pub entry: String,
}

/// Why a host cannot boot a kernel once. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unable {
    /// There is no boot loader that is known here.
    #[error("no boot loader that boots once is known here: neither GRUB's menu nor systemd-boot was found")]
    NoLoader,
    /// GRUB's menu does not look for the entry to boot once.
    #[error("{menu} does not boot an entry once: make it by update-grub or grub2-mkconfig")]
    NoNextEntry {
        /// The menu's file.
        menu: PathBuf,
    },
    /// GRUB's default is fixed, so a new kernel would be it at once.
    #[error("{menu} has a fixed default: write GRUB_DEFAULT=saved in /etc/default/grub, then make the menu anew")]
    FixedDefault {
        /// The menu's file.
        menu: PathBuf,
    },
    /// GRUB has nowhere to remember that it booted once.
    #[error("{path} is not there: make it by grub-editenv {path} create")]
    NoEnvironment {
        /// The environment block's file.
        path: PathBuf,
    },
    /// GRUB could not forget the entry that it boots once, and would boot it for ever.
    #[error("GRUB cannot write {path}, which is on {on}: move /boot to a plain partition with ext4, XFS or FAT")]
    NotWritable {
        /// The environment block's file.
        path: PathBuf,
        /// What it is on.
        on: String,
    },
    /// A kernel cannot be told from the others in the menu.
    #[error("kernel {0} has no entry of its own in the boot menu: make the menu anew")]
    NoEntry(Release),
    /// A kernel that panics would stand still for ever.
    #[error(
        "the boot entry of kernel {0} has no panic= on its command line, so one that panics never reboots: add panic=30"
    )]
    NoPanic(Release),
    /// The new kernel takes the old one's files.
    #[error("kernel {0} is replaced in place, so there is no older one to come back to")]
    InPlace(Release),
    /// The kernel that runs is not one of those that can be booted.
    #[error("kernel {0}, which runs, is not among those in /boot, so nothing can be come back to")]
    NotInBoot(Release),
}

/// The boot loader could not be asked or told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file of its.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Its environment block is none.
    #[error("{path} is no GRUB environment block ({reason}): make it anew by grub-editenv {path} create")]
    Environment {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program of its.
    #[error("{program}: {reason}")]
    Program {
        /// The program with its arguments.
        program: String,
        /// What it said.
        reason: String,
    },
}

/// What was found before a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The kernel that runs.
    pub running: Release,
    /// The kernels that are there.
    pub kernels: Kernels,
    /// The boot loader's menu.
    pub menu: Menu,
    /// The default entry, where one was chosen.
    pub default: Option<String>,
}

/// What to remember before a change that brings a kernel: the entry of the kernel that runs, which is to be the default meanwhile.
///
/// # Errors
/// Why this host could not come back to it.
pub fn pin(found: Found) -> Result<BootOnce, Unable> {
    let Found { running, kernels, menu, default } = found;
    if !kernels.has(&running) {
        return Err(Unable::NotInBoot(running));
    }
    let entry = menu.of(&running)?;
    // The new one's command line will be made of the same words.
    if !entry.reboots_on_panic() {
        return Err(Unable::NoPanic(running));
    }
    let entry = entry.id.clone();
    Ok(BootOnce { old: running, entry, before: default, kernels, told: Told::Nothing, new: None })
}

/// What the next boot is to take, now that the change was made; `None` when no kernel came.
///
/// # Errors
/// Why this host could not come back from it.
pub fn arm(once: &BootOnce, now: &Kernels, menu: &Menu) -> Result<Option<Expected>, Unable> {
    let release = match once.kernels.brought(now) {
        Brought::Nothing => return Ok(None),
        Brought::Replaced(release) if release == once.old => return Err(Unable::InPlace(release)),
        Brought::New(release) | Brought::Replaced(release) => release,
    };
    // The way back is looked at again: the package's scripts made the menu anew.
    if menu.of(&once.old)?.id != once.entry || !now.has(&once.old) {
        return Err(Unable::NoEntry(once.old.clone()));
    }
    let entry = menu.of(&release)?;
    if !entry.reboots_on_panic() {
        return Err(Unable::NoPanic(release));
    }
    let entry = entry.id.clone();
    Ok(Some(Expected { release, entry }))
}

/// The host did not come up with the kernel that was to run; names both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fallback {
    /// It came back to the old one.
    #[error("kernel {new} was booted once and did not stay up: the host fell back to kernel {old}, which ran before")]
    Old {
        /// The one that was to run.
        new: Release,
        /// The one that ran before, and runs.
        old: Release,
    },
    /// Somebody booted another.
    #[error("kernel {new} was to run after the reboot, but {running} does, and {old} did before")]
    Other {
        /// The one that was to run.
        new: Release,
        /// The one that ran before.
        old: Release,
        /// The one that runs.
        running: Release,
    },
}

/// Whether the kernel that runs after a reboot is the one that was to.
///
/// # Errors
/// It is another.
pub fn came_up(once: &BootOnce, running: &str) -> Result<(), Fallback> {
    let Some(Expected { release: new, .. }) = once.new.clone() else { return Ok(()) };
    let old = once.old.clone();
    match running {
        _ if running == new => Ok(()),
        _ if running == old => Err(Fallback::Old { new, old }),
        _ => Err(Fallback::Other { new, old, running: running.to_owned() }),
    }
}

/// The default entry that confirms a new kernel: none, as before, where the loader's first is that kernel already; so later
/// kernels come first by themselves again.
pub fn confirmed(once: &BootOnce, expected: &Expected, menu: &Menu) -> Option<String> {
    let is_first = menu.first().is_some_and(|entry| entry.release == expected.release);
    match &once.before {
        None if is_first => None,
        _ => Some(expected.entry.clone()),
    }
}

/// In what state a run leaves the boot loader that it told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The boot loader is as it was before the change: what came is gone.
    AsBefore,
    /// What came is still there, unproven: the old kernel stays the default.
    OldKernel,
}

/// Decides that, from how the run ended and the kernels that are there then; `None` when nothing is to be done any more.
pub fn rest(once: &BootOnce, ended: RunState, now: &Kernels) -> Option<Rest> {
    match (once.told, ended) {
        (Told::Nothing, _) | (Told::NewKernel, RunState::Succeeded) => None,
        (Told::OldKernel, RunState::Succeeded) => Some(Rest::AsBefore),
        _ if once.kernels.brought(now) == Brought::Nothing => Some(Rest::AsBefore),
        _ => Some(Rest::OldKernel),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "6.1.0-50-cloud-amd64";
    const NEW: &str = "6.1.0-51-cloud-amd64";

    fn entry(id: &str, release: &str, options: &str) -> Entry {
        Entry { id: id.into(), release: release.into(), options: options.into() }
    }

    fn menu(releases: &[&str]) -> Menu {
        let own = |release: &&str| entry(&format!("advanced>linux-{release}"), release, "ro panic=5");
        let first = releases.first().map(|release| entry("simple", release, "ro panic=5"));
        Menu { entries: first.into_iter().chain(releases.iter().map(own)).collect() }
    }

    fn found(default: Option<&str>) -> Found {
        Found {
            running: OLD.into(),
            kernels: Kernels::of(&[(OLD, 1)]),
            menu: menu(&[OLD]),
            default: default.map(str::to_owned),
        }
    }

    #[test]
    fn the_kernel_that_runs_is_pinned_by_an_entry_that_stays_its_own() {
        let once = pin(found(None)).unwrap();
        // "simple" is the newest kernel's, whichever that is.
        assert_eq!((once.entry.as_str(), once.before), ("advanced>linux-6.1.0-50-cloud-amd64", None));
        let other = Found { running: "5.0".into(), ..found(None) };
        assert_eq!(pin(other), Err(Unable::NotInBoot("5.0".into())));
        let unnamed = Found { menu: Menu { entries: vec![entry("simple", OLD, "panic=5")] }, ..found(None) };
        assert_eq!(pin(unnamed), Err(Unable::NoEntry(OLD.into())));
        let patient = Found { menu: Menu { entries: vec![entry(OLD, OLD, "ro quiet")] }, ..found(None) };
        assert_eq!(pin(patient), Err(Unable::NoPanic(OLD.into())));
    }

    #[test]
    fn a_new_kernel_beside_the_old_one_is_booted_once_and_no_other_change_is() {
        let once = pin(found(None)).unwrap();
        let armed = |kernels: &[(&str, u64)], menu: &Menu| arm(&once, &Kernels::of(kernels), menu);
        let expected = Expected { release: NEW.into(), entry: format!("advanced>linux-{NEW}") };
        assert_eq!(armed(&[(OLD, 1), (NEW, 1)], &menu(&[NEW, OLD])), Ok(Some(expected)));
        assert_eq!(armed(&[(OLD, 1)], &menu(&[OLD])), Ok(None));
        assert_eq!(armed(&[(OLD, 2)], &menu(&[OLD])), Err(Unable::InPlace(OLD.into())));
        assert_eq!(armed(&[(OLD, 1), (NEW, 1)], &menu(&[OLD])), Err(Unable::NoEntry(NEW.into())));
        // The old kernel went with the change.
        assert_eq!(armed(&[(NEW, 1)], &menu(&[NEW])), Err(Unable::NoEntry(OLD.into())));
        let mut patient = menu(&[NEW, OLD]);
        patient.entries.iter_mut().filter(|entry| entry.release == NEW).for_each(|entry| entry.options.clear());
        assert_eq!(armed(&[(OLD, 1), (NEW, 1)], &patient), Err(Unable::NoPanic(NEW.into())));
    }

    fn armed(default: Option<&str>) -> (BootOnce, Expected) {
        let mut once = pin(found(default)).unwrap();
        let new = arm(&once, &Kernels::of(&[(OLD, 1), (NEW, 1)]), &menu(&[NEW, OLD])).unwrap();
        once.new.clone_from(&new);
        (once, new.unwrap())
    }

    #[test]
    fn a_host_that_came_up_with_another_kernel_says_which_was_to_run() {
        let (once, _) = armed(None);
        assert_eq!(came_up(&once, NEW), Ok(()));
        let fell_back = came_up(&once, OLD).unwrap_err().to_string();
        assert!(fell_back.contains(NEW) && fell_back.contains(OLD), "{fell_back}");
        assert!(matches!(came_up(&once, "5.0"), Err(Fallback::Other { .. })));
        assert_eq!(came_up(&pin(found(None)).unwrap(), "5.0"), Ok(()), "no kernel was to come");
    }

    #[test]
    fn a_confirmed_kernel_is_the_default_as_the_site_chose_it() {
        let (once, new) = armed(None);
        assert_eq!(confirmed(&once, &new, &menu(&[NEW, OLD])), None, "the first is it");
        assert_eq!(confirmed(&once, &new, &menu(&[OLD, NEW])), Some(new.entry.clone()), "the first is another");
        let (once, new) = armed(Some("advanced>linux-6.1.0-50-cloud-amd64"));
        assert_eq!(confirmed(&once, &new, &menu(&[NEW, OLD])), Some(new.entry.clone()), "the site chose one");
    }

    #[test]
    fn what_was_not_confirmed_is_never_the_default() {
        let (once, _) = armed(None);
        let [gone, there] = [&[(OLD, 1)][..], &[(OLD, 1), (NEW, 1)]].map(Kernels::of);
        let rest = |told, ended, now: &Kernels| rest(&BootOnce { told, ..once.clone() }, ended, now);
        for state in RunState::ALL.into_iter().filter(|state| state.is_final()) {
            assert_eq!(rest(Told::Nothing, state, &there), None, "{state:?}");
            if state == RunState::Succeeded {
                assert_eq!(rest(Told::NewKernel, state, &there), None);
                assert_eq!(rest(Told::OldKernel, state, &there), Some(Rest::AsBefore));
                continue;
            }
            for told in [Told::OldKernel, Told::NewKernel] {
                assert_eq!(rest(told, state, &gone), Some(Rest::AsBefore), "{state:?}");
                assert_eq!(rest(told, state, &there), Some(Rest::OldKernel), "{state:?}");
            }
        }
    }
}
